"""Address resolution: which MAC address an IPv4 neighbour has (RFC 826)."""
