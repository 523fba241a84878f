"""The protocol of a virtual wire, between the link layers of several stacks and the switch that joins them.

A wire is a directory. Each participant listens there on a socket `port-NUMBER.sock` and sends to the switch's socket,
`switch.sock`. Both send frames of kind ETHERNET, whose records are whole Ethernet frames without check sequence. The
first message of a port is empty and announces it. `sender` is the number of the sending port. Incarnation and sequence
number are not used, because a wire may lose frames. A port exists as long as the process that listens on its socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bus.config import STACK_USERS
from bus.messages import ETHERNET
from usernet.pipe.frame import FrameError, pack_frame, unpack_frame

SWITCH_SOCKET = "switch.sock"
SWITCH_LOCK = "lock"  # the switch holds a flock(2) on it, so there is at most one
SWITCH_COUNTERS = "counters"  # its counter words, for `status`
PORTS = "port-*.sock"
CONNECTIONS_MAX = 512  # at a port or the switch, including connections of ended processes
NEW_PORTS = "port-*.new"  # do not listen yet


class Users:
    """The users that may be at the other end: the owner of the wire, or a user of a stack's processes if the owner is
    root."""

    def __init__(self, owner: int) -> None:
        self._owner = owner

    def __contains__(self, uid: object) -> bool:
        return uid == self._owner or (self._owner == 0 and uid in STACK_USERS)


def port_name(number: int) -> str:
    """File name of the socket on which port `number` receives."""
    return f"port-{number:x}.sock"


def port_number(path: Path) -> int:
    """The number of the port with that socket. ValueError: not the name of a port."""
    return int(path.stem.removeprefix("port-"), 16)


def pack(number: int, frames: Sequence[bytes]) -> bytes:
    """Encode one message of port `number`."""
    return pack_frame(ETHERNET, number, 0, 0, frames)


def unpack(message: bytes) -> tuple[int, list[bytes]]:
    """(number of the port, frames) of a message. ValueError: not such a message."""
    kind, _, number, _, frames = unpack_frame(message)
    if kind != ETHERNET:
        raise FrameError(f"kind {kind}, expected {ETHERNET}")
    return number, frames
