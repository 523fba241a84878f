"""A layer's process: its loop, its pipes, its device, its clients."""
