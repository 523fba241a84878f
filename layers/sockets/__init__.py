"""sockets: the socket service, which serves the applications (README.md)."""
