"""What is agreed on a virtual wire, between the links of several stacks and the switch that joins them.

A wire is a directory. Whoever takes part listens there on a socket `port-NUMBER.sock`, and sends to the switch's,
`switch.sock`: first one frame HELLO without records, then frames ETHERNET, whose records are Ethernet frames, whole and
without check sequence. Back come frames ETHERNET. `sender` is the port's number; incarnation and sequence mean nothing
here, for a wire is a cable: what is lost is lost. A port is there as long as the process that listens on its socket.
"""

from __future__ import annotations

from pathlib import Path

SWITCH_SOCKET = "switch.sock"
SWITCH_LOCK = "lock"  # the switch holds a flock(2) on it: there is one at most
SWITCH_COUNTERS = "counters"  # its counter words, for `status`
PORTS = "port-*.sock"


def port_name(number: int) -> str:
    """File name of the socket on which port `number` receives."""
    return f"port-{number:x}.sock"


def port_number(path: Path) -> int:
    """The number of the port with that socket; ValueError where it is none's."""
    return int(path.stem.removeprefix("port-"), 16)
