"""Both ends of a pipe: frames, their numbering, and the sockets. The layers of the stack use it, too."""
