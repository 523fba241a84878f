"""What link says of a packet that it hands up (bus.messages, PACKET_HEAD)."""

from __future__ import annotations

from bus.messages import FAMILY_4, FLAG_CHECKSUM_PARTIAL, FLAG_GROUP, INTERFACE, PACKET_HEAD


def head(flags: int, size: int = 0) -> bytes:
    """Its flags, and the segment size of a super-packet; what only IP knows is zero."""
    return PACKET_HEAD.pack(INTERFACE, FAMILY_4, flags, 0, size, 0, 0, 0, bytes(4), bytes(4))


PLAIN = head(0), head(FLAG_GROUP)  # by whether the frame came to a group
PARTIAL = head(FLAG_CHECKSUM_PARTIAL), head(FLAG_CHECKSUM_PARTIAL | FLAG_GROUP)
