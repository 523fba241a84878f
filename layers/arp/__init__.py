"""arp: address resolution, the MAC address of an IPv4 neighbour (RFC 826)."""
