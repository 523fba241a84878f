"""The connection of a process to a stack's socket service."""
