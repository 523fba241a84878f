"""The TCP layer (RFC 9293)."""
