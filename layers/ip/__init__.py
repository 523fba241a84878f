"""ip: IPv4 for a host."""
