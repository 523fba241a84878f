"""udp: the User Datagram Protocol (RFC 768)."""
