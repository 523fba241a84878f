"""The octets of protocols, one module a protocol. No clock, no sockets, no state."""
