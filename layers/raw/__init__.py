"""raw: raw sockets, which receive copies of whole packets and send whole packets (raw(7))."""
