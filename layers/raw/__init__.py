"""Raw sockets: whole packets of any protocol, in copies, and packets that an application made (raw(7))."""
