"""The UDP layer (RFC 768)."""
