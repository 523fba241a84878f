"""tcp: the Transmission Control Protocol (RFC 9293)."""
