"""Durable memory: memory that the keeper holds and that outlives a layer's process, and its data structures."""
