"""Buffers: the payload of datagrams that a process sends, in memory that it shares with the stack
(docs/decisions/datagrams-by-reference.md).

They are in the memory that the keeper lends an application, behind its rings (`usernet.pipe.rings`): BUFFERS rings of
the smallest size after a table of their own. The application alone uses them. For each use it writes a new reference
into the table, then the payloads, then sends a record with the reference. The stack writes the reference into a table
of its own when it has sent the octets, or has copied them: then the buffer is *returned*, and may be used again. Every
application may read that table.

A record refers to octets in a buffer by REFERENCE, always at its end. Its second field is the token of the memory,
which only this application can read, so no process can refer to the memory of another one.
"""

from __future__ import annotations

import mmap
from struct import Struct

from usernet.pipe.rings import (
    APPLICATION_OCTETS,
    BLOCK_BITS,
    BLOCK_OCTETS,
    FACTS_AT,
    ORDER_BITS,
    PAGE,
    TOKEN,
    Rings,
    octets_for,
)

BUFFERS = 64  # of an application
BUFFER_OCTETS = BLOCK_OCTETS
BUFFERS_AT = APPLICATION_OCTETS  # in the memory of an application
BUFFERS_OCTETS = octets_for(BUFFERS * BUFFER_OCTETS)
MEMORY_OCTETS = BUFFERS_AT + BUFFERS_OCTETS  # of an application, with its buffers
ROW_OCTETS = 8 * BUFFERS  # of the table of returned buffers, for one application
# reference of the buffer, token, octets, BUFFER_MEMORY | number of the memory; of other memories: bus.durable.held
REFERENCE = Struct("!QQII")
REFERENCE_OCTETS = REFERENCE.size
BUFFER_MEMORY = 1 << 16
# The time after which a buffer that did not come back is free all the same: its record was lost. While a layer is away
# records wait for it, so this is longer than anything that a layer may take to come back.
LOST_S = 30.0

_GENERATION_SHIFT = ORDER_BITS + BLOCK_BITS
_GENERATION_MASK = (1 << 64 - _GENERATION_SHIFT) - 1


class BufferMemory(Rings):
    """The buffers of one application. `descriptor`: of its memory. ValueError: that has no buffers."""

    def __init__(self, descriptor: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> None:
        # one mapping, because each takes a descriptor
        view = memoryview(mmap.mmap(descriptor, MEMORY_OCTETS - FACTS_AT, prot=prot, offset=FACTS_AT))
        super().__init__(view[BUFFERS_AT - FACTS_AT :], BUFFERS)
        self._facts = view[:PAGE].cast("Q")

    @property
    def token(self) -> int:
        """The token of the memory."""
        token: int = self._facts[TOKEN]
        return token

    def next(self, block: int) -> int:
        """Begin another use of a buffer: earlier references are not valid any more. Returns the reference."""
        generation = (self.cells[block] >> _GENERATION_SHIFT) + 1 & _GENERATION_MASK
        reference: int = generation << _GENERATION_SHIFT | block << ORDER_BITS | 1
        self.cells[block] = reference
        return reference

    def octets(self, block: int) -> memoryview:
        """The octets of a buffer."""
        return self._data[block * BUFFER_OCTETS : (block + 1) * BUFFER_OCTETS]
