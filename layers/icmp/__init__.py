"""icmp: control messages, that is echo, errors and ping sockets (RFC 792, RFC 1122 section 3.2.2)."""
