"""link: Ethernet II over a TAP or a virtual wire."""
