"""What protocols look like in octets, one module a protocol. No clock, no sockets, no state."""
