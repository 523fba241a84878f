"""What outlives a process: memory that the keeper holds, and what is laid out in it."""
