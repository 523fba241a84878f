"""Control messages: echo, error reports, ping sockets (RFC 792, RFC 1122 section 3.2.2)."""
