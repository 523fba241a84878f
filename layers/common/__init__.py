"""Code that several layers share: routes, ports, the base class of transports, the meaning of an ICMP error for a
socket."""
