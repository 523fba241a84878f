"""The runtime of a layer's process: its event loop, pipes, device and clients."""
