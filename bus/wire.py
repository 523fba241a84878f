"""The protocol of a virtual wire, between the link layers of several stacks and the switch that joins them.

A wire is a directory. Each participant listens there on a socket `port-NUMBER.sock` and sends to the switch's socket,
`switch.sock`. Both send messages of kind ETHERNET, whose records are whole Ethernet frames without check sequence.
`sender` is the number of the port from which the frames came. A port exists as long as the process that listens on its
socket.

Messages of kind ETHERNET_OFFLOAD have a struct virtio_net_hdr before each frame (packets.vnet), so a frame may be a
super-packet, or have a partial checksum. The switch sends them only to ports that have sent such a message, which must
take both kinds. For the others it makes the frames as they are on a cable.

The switch numbers its messages to each port, so that a link layer loses none when it is killed (`Numbered`, `InOrder`).
Incarnation is that of the switch, in both directions. From the switch: a message with frames has its number as sequence
number; an empty one says which number the next one follows. From a port: the sequence number is that of the last
message that it took, so the switch forgets what came until then; an empty message asks for all that the switch still
has, and the first one announces the port. A port takes messages in order only, and none twice, unless it is killed
between storing the frames of one and its number. Those of incarnation 0 are not numbered: it takes them as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bus.config import STACK_USERS
from bus.durable.layout import WIRE_SWITCH, WIRE_TAKEN
from bus.durable.rx_log import FRAMES_MAX, OCTETS_MAX
from bus.messages import ETHERNET, ETHERNET_OFFLOAD
from packets import vnet
from usernet.pipe.frame import FrameError, pack_frame, unpack_frame, with_sequence

SWITCH_SOCKET = "switch.sock"
SWITCH_LOCK = "lock"  # the switch holds a flock(2) on it, so there is at most one
SWITCH_COUNTERS = "counters"  # its counter words, for `status`
PORTS = "port-*.sock"
CONNECTIONS_MAX = 512  # at a port or the switch, including connections of ended processes
MESSAGE_OCTETS_MAX = OCTETS_MAX - FRAMES_MAX * vnet.HEADER_OCTETS  # what a port takes, and perhaps puts before frames
KEPT_OCTETS = 1 << 23  # of messages that a port may ask for again
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


class Message(NamedTuple):
    """A message on a wire. `number`: that of the port. `offload`: a virtio_net_hdr stands before each frame."""

    number: int
    incarnation: int
    sequence: int
    frames: list[bytes]
    offload: bool


def pack(number: int, incarnation: int, sequence: int, frames: Sequence[bytes], offload: bool = False) -> bytes:
    """Encode one message with frames from port `number`."""
    return pack_frame(ETHERNET_OFFLOAD if offload else ETHERNET, number, incarnation, sequence, frames)


def unpack(octets: bytes) -> Message:
    """Decode a message. ValueError: it is none."""
    kind, incarnation, number, sequence, frames = unpack_frame(octets)
    if kind not in (ETHERNET, ETHERNET_OFFLOAD):
        raise FrameError(f"kind {kind}, expected {ETHERNET} or {ETHERNET_OFFLOAD}")
    return Message(number, incarnation, sequence, frames, kind == ETHERNET_OFFLOAD)


class Numbered:
    """The switch's end: the messages to one port, and the last of them, to repeat them."""

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._sent = 0  # number of the last message
        self._kept: deque[bytes] = deque()  # that one and those before it
        self._octets = 0  # in them

    def next(self, message: bytes) -> bytes:
        """The message with its number, which counts after `sent`."""
        return with_sequence(message, self._incarnation, self._sent + 1)

    def sent(self, numbered: bytes) -> None:
        """That one is in the pipe."""
        self._sent += 1
        self._kept.append(numbered)
        self._octets += len(numbered)
        while self._octets > KEPT_OCTETS:
            self._octets -= len(self._kept.popleft())

    def took(self, incarnation: int, number: int) -> None:
        """The port has all messages of that switch up to this number."""
        if incarnation == self._incarnation and number <= self._sent:
            while self._sent - len(self._kept) < number:
                self._octets -= len(self._kept.popleft())

    def repeated(self) -> list[bytes]:
        """What a port that asks is to be sent: where it begins, and all that is kept."""
        return [pack(0, self._incarnation, self._sent - len(self._kept), []), *self._kept]


class InOrder:
    """The port's end. `words`: cells of durable memory, in which its process notes what it has taken.

    `offload`: its frames, in both directions, have a virtio_net_hdr before them.
    """

    def __init__(self, words: memoryview[int], offload: bool = False) -> None:
        self._words = words
        self._offload = offload
        self._next = words[WIRE_TAKEN] + 1  # number of the message that comes next, be it new or not

    def next(self, message: bytes) -> tuple[bool, int, list[bytes]]:
        """(whether it is in order, number, frames); no frames: there is nothing to take. ValueError: not a message.

        Call `took` with the number as soon as the frames cannot be lost any more.
        """
        _, incarnation, number, frames, offload = unpack(message)
        words = self._words
        if offload != self._offload:
            if offload:
                raise FrameError("frames with a virtio_net_hdr, which this port never sent")
            frames = [vnet.PLAIN + frame for frame in frames]
        if not incarnation:
            return True, words[WIRE_TAKEN], frames
        if not frames:
            if words[WIRE_SWITCH] != incarnation:  # in this order: killed in between, all is asked for
                words[WIRE_TAKEN] = number
                words[WIRE_SWITCH] = incarnation
            self._next = number + 1
            return True, number, []
        if number != self._next or words[WIRE_SWITCH] != incarnation:
            return False, number, []
        self._next = number + 1
        return True, number, frames if number > words[WIRE_TAKEN] else []

    def took(self, number: int) -> None:
        """That message and all before it must not come again."""
        self._words[WIRE_TAKEN] = number

    def packed(self, number: int, frames: Sequence[bytes]) -> bytes:
        """A message of port `number`, which says what was taken; without frames it asks for the rest."""
        return pack(number, self._words[WIRE_SWITCH], self._words[WIRE_TAKEN], frames, self._offload)
