"""The socket service: what applications talk to (README.md)."""
