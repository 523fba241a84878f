"""What several layers need: routes, ports, the base of transports, what an ICMP error means to a socket."""
