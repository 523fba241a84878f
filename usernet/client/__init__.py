"""A process's connection to a stack's socket service."""
