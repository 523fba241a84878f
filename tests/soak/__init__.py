"""The soak: a stack under mixed load for an hour, and what it holds meanwhile."""
