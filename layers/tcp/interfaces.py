"""What the engine needs from the rest of the layer: output to ip and to sockets, memory for octets and connections."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from bus.durable.held import Held
from bus.streams import StreamState
from layers.tcp.connection import Connection, Ends
from layers.tcp.ring import Ring
from packets.tcp import Segment


class Arrival(NamedTuple):
    """A received segment."""

    source: bytes
    destination: bytes
    segment: Segment
    ecn: int = 0  # the ECN field of its packet (RFC 3168 section 5)


class Below(Protocol):
    """The interface to ip."""

    def transmit(self, source: bytes, destination: bytes, segment: Segment, size: int, options: StreamState | None,
                 capable: bool, held: Held | None = None) -> None:
        """Send a segment. `size`: split it into segments with this many octets of text; 0: do not split.

        `held`: its text, if it is not in the segment.

        `capable`: routers may mark it (RFC 3168: ECT).
        """

    def mtu(self, destination: bytes) -> int:
        """The path MTU to a destination, in octets of a packet."""

    def super_octets(self, mss: int) -> int:
        """The maximum text of one `transmit`."""

    def advise(self, destination: bytes) -> None:
        """RFC 9293 section 3.8.3 (MUST-20): nothing that was sent there is answered, the gateway may be dead."""


class Above(Protocol):
    """The interface to the socket service."""

    def stream(self, handle: int, flags: int, offset: int, octets: bytes | memoryview) -> None:
        """STREAM."""

    def stream_held(self, handle: int, flags: int, offset: int, length: int, ring: Ring) -> None:
        """STREAM_HELD."""

    def room(self, handle: int, flags: int, taken: int, acked: int, limit: int, ring: Ring | None = None) -> None:
        """ROOM. `ring`: for what the application writes."""

    def accepted(self, listener: int, handle: int, number: int, ends: Ends) -> None:
        """ACCEPTED."""

    def reset(self, handle: int, number: int) -> None:
        """STREAM_RESET."""


class Rings(Protocol):
    """The interface to the memory for rings."""

    @property
    def may_grow(self) -> bool:
        """False while memory is scarce."""

    def take(self, octets: int, home: int = 0) -> Ring | None:
        """A ring of that size; `home`: in the memory of that application, perhaps smaller. None: no memory."""

    def lends(self, home: int, token: int) -> bool:
        """True if there is the memory of an application with this number, and the token in it is this one."""

    def written(self, ring: Ring) -> int:
        """The octets of its stream that the application says it has written, for a ring in its memory."""

    def keep(self, handle: int, ring: Ring) -> None:
        """Its connection is gone; the application may read it until `closed`."""

    def closed(self, handle: int) -> None:
        """Return the rings that were kept for it."""

    def give(self, ring: Ring) -> None:
        """Return a ring."""

    def held(self, ring: Ring, offset: int, length: int) -> Held | None:
        """A reference to octets in a ring; None: the layers below cannot follow it."""

    @property
    def trim_at(self) -> float | None:
        """The time of the next `trim`."""

    def trim(self, now: float) -> None:
        """Return memory that was free for a while to the system."""


class Cells(Protocol):
    """The interface to the stored connections: `layers.tcp.durable`."""

    def born(self, conn: Connection) -> bool:
        """Assign a slot; False: there is none."""

    def store(self, conn: Connection) -> None:
        """Store the changes of a connection, before any output of this turn leaves."""

    def advice(self, conn: Connection) -> memoryview | None:
        """The stored state of its loss recovery."""

    def gone(self, conn: Connection) -> None:
        """Free its slot."""

    def reset(self, conn: Connection, now: float) -> None:
        """The same after this turn, which sends its RST: if it is cut short, a successor sends the RST."""

    def new_handle(self) -> int:
        """A new handle."""

    def turn_stored(self, now: float) -> None:
        """Everything of this turn has been stored."""
