"""What is agreed on a virtual wire, between the links of several stacks and the switch that joins them.

A wire is a directory. Whoever takes part listens there on a socket `port-NUMBER.sock`, and sends to the switch's,
`switch.sock`. Both send packs: frames of kind ETHERNET, whose records are Ethernet frames, whole and without check
sequence; the first of a port is empty and makes it known. `sender` is the number of the port that a pack comes from.
Incarnation and sequence mean nothing here, for a wire is a cable: what is lost is lost. A port is there as long as the
process that listens on its socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bus.config import STACK_USERS
from bus.messages import ETHERNET
from usernet.pipe.frame import FrameError, pack_frame, unpack_frame

SWITCH_SOCKET = "switch.sock"
SWITCH_LOCK = "lock"  # the switch holds a flock(2) on it: there is one at most
SWITCH_COUNTERS = "counters"  # its counter words, for `status`
PORTS = "port-*.sock"
CONNECTIONS_MAX = 512  # at a port or the switch, some of them dead and not yet seen to be
NEW_PORTS = "port-*.new"  # do not listen yet


class Users:
    """Who may be at the other end: the owner of the wire, or one of a stack's processes where root is that."""

    def __init__(self, owner: int) -> None:
        self._owner = owner

    def __contains__(self, uid: object) -> bool:
        return uid == self._owner or (self._owner == 0 and uid in STACK_USERS)


def port_name(number: int) -> str:
    """File name of the socket on which port `number` receives."""
    return f"port-{number:x}.sock"


def port_number(path: Path) -> int:
    """The number of the port with that socket; ValueError where it is none's."""
    return int(path.stem.removeprefix("port-"), 16)


def pack(number: int, frames: Sequence[bytes]) -> bytes:
    """One message of port `number`."""
    return pack_frame(ETHERNET, number, 0, 0, frames)


def unpack(message: bytes) -> tuple[int, list[bytes]]:
    """The port's number and the frames; ValueError for anything that is no pack."""
    kind, _, number, _, frames = unpack_frame(message)
    if kind != ETHERNET:
        raise FrameError(f"kind {kind}, expected {ETHERNET}")
    return number, frames
