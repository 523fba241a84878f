"""Rings for the octets of streams, in memory that several processes map (docs/decisions/streams.md).

A ring has 64 kB, 256 kB, 1 MiB or 4 MiB. The octet at offset n of a stream is at position n modulo the size. So a
reader needs only the offsets, and writing an octet twice writes the same value to the same position.

The *reference* of a ring is a 64-bit number, generation << 24 | first block << 8 | order + 1, never 0 and never reused.
A table of cells at the start of the memory, one for each block of 64 kB, contains the valid references. A reader checks
it before and after copying, and so detects that a ring was given to another stream meanwhile. The rings follow the
table, which is padded to whole pages.

In the memory of an application (`APPLICATION_OCTETS`) the rings are followed by a page of two cells, TOKEN and IN_USE,
and by a table with one cell for each block: the number of octets of its stream that the application has written into
the ring that begins there.
"""

from __future__ import annotations

import mmap

BLOCK_OCTETS = 1 << 16
ORDERS = 4  # 64 kB * 4 ** order
RING_OCTETS_MAX = BLOCK_OCTETS * 4 ** (ORDERS - 1)
ORDER_BITS = 8
BLOCK_BITS = 16
ORDER_MASK = (1 << ORDER_BITS) - 1
BLOCK_MASK = (1 << BLOCK_BITS) - 1
HOME_SHIFT = 56
REFERENCE_MASK = (1 << HOME_SHIFT) - 1
BLOCKS_MAX = 1 << BLOCK_BITS
PAGE = 4096

APPLICATION_BLOCKS = 512  # of an application's memory: 32 MiB
TOKEN, IN_USE = 0, 1  # its cells: a random number that shows who can read it, the octets of rings in use


def octets_for(data_octets: int) -> int:
    """The length of a mapping for this many octets of rings (a multiple of BLOCK_OCTETS)."""
    return _table_octets(data_octets // BLOCK_OCTETS) + data_octets


def _table_octets(blocks: int) -> int:
    return -(-8 * blocks // PAGE) * PAGE


def ring_octets(reference: int) -> int:
    """The size of the ring with this reference."""
    return BLOCK_OCTETS << 2 * ((reference & ORDER_MASK) - 1)


class Ring:
    """A view of a ring's memory. `reference` identifies it; in tcp its highest octet is the number of the memory."""

    __slots__ = ("_mask", "home", "memory", "reference", "size")

    def __init__(self, memory: memoryview, reference: int = 0) -> None:
        self.memory = memory
        self.reference = reference
        self.home = reference >> HOME_SHIFT  # the number of its memory; 0: that of tcp
        self.size = len(memory)
        self._mask = self.size - 1

    def write(self, offset: int, octets: bytes | memoryview) -> None:
        """Write octets at their position; at most `size` of them."""
        at, length = offset & self._mask, len(octets)
        end = at + length
        if end <= self.size:
            self.memory[at:end] = octets
        else:
            head = self.size - at
            self.memory[at:] = octets[:head]
            self.memory[: length - head] = octets[head:]

    def read(self, offset: int, length: int) -> bytes:
        """A copy of octets at their position; at most `size` of them."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return bytes(self.memory[at:end])
        return b"".join((self.memory[at:], self.memory[: end - self.size]))

    def pieces(self, offset: int, length: int) -> tuple[memoryview, ...]:
        """The same octets without a copy, in one or two pieces, for writev(2)."""
        at = offset & self._mask
        end = at + length
        if end <= self.size:
            return (self.memory[at:end],)
        return self.memory[at:], self.memory[: end - self.size]

    def copy_to(self, other: Ring, start: int, end: int) -> None:
        """Copy the octets at offsets [start, end) into another ring; at most `size` of either."""
        for piece in self.pieces(start, end - start):
            other.write(start, piece)
            start += len(piece)


class Rings:
    """The rings in a memory, as those see them that do not allocate them. `blocks`: their number; 0: as many as fit."""

    def __init__(self, mapping: mmap.mmap | memoryview, blocks: int = 0) -> None:
        self.blocks = blocks or min(len(mapping) // BLOCK_OCTETS, BLOCKS_MAX)
        while octets_for(self.blocks * BLOCK_OCTETS) > len(mapping):
            self.blocks -= 1
        self.data_at = _table_octets(self.blocks)
        view = memoryview(mapping)
        self.cells = view[: 8 * self.blocks].cast("Q")
        self._data = view[self.data_at : self.data_at + self.blocks * BLOCK_OCTETS]

    def good(self, reference: int) -> bool:
        """True if the reference is valid; to be checked again after copying."""
        block = reference >> ORDER_BITS & BLOCK_MASK
        return block < self.blocks and self.cells[block] == reference and self.fits(reference)

    def ring(self, reference: int) -> Ring | None:
        """The ring with this reference; None: the memory belongs to another stream or to none, or there is no such
        position."""
        if not self.good(reference):
            return None
        at = (reference >> ORDER_BITS & BLOCK_MASK) * BLOCK_OCTETS
        return Ring(self._data[at : at + ring_octets(reference)], reference)

    def fits(self, reference: int) -> bool:
        """True if there is such a position."""
        block, order = reference >> ORDER_BITS & BLOCK_MASK, (reference & ORDER_MASK) - 1
        return 0 <= order < ORDERS and block & 4**order - 1 == 0 and block + 4**order <= self.blocks


RINGS_AT = _table_octets(APPLICATION_BLOCKS)
FACTS_AT = octets_for(APPLICATION_BLOCKS * BLOCK_OCTETS)
APPLICATION_OCTETS = octets_for(APPLICATION_BLOCKS * BLOCK_OCTETS) + PAGE + _table_octets(APPLICATION_BLOCKS)


class ApplicationRings(Rings):
    """The memory of an application, as the application and tcp see it; zeros are one without rings."""

    def __init__(self, mapping: mmap.mmap) -> None:
        if len(mapping) != APPLICATION_OCTETS:
            raise ValueError(f"the memory of an application has {APPLICATION_OCTETS} octets, not {len(mapping)}")
        super().__init__(mapping, APPLICATION_BLOCKS)
        at, view = FACTS_AT, memoryview(mapping)
        self.facts = view[at : at + PAGE].cast("Q")  # TOKEN, IN_USE
        self.written = view[at + PAGE : at + PAGE + 8 * APPLICATION_BLOCKS].cast("Q")


def block_of(reference: int) -> int:
    """The first block of a ring."""
    return reference >> ORDER_BITS & BLOCK_MASK
