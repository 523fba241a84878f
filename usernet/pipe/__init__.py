"""Both ends of a pipe: frames, their numbering, the sockets that carry them. The layers of the stack use it too."""
