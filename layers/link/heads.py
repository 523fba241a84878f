"""The heads of packets that link passes up (bus.messages, PACKET_HEAD)."""

from __future__ import annotations

from bus.messages import FAMILY_4, FLAG_CHECKSUM_PARTIAL, FLAG_GROUP, INTERFACE, PACKET_HEAD


def head(flags: int, size: int = 0) -> bytes:
    """The head with its flags and the segment size of a super-packet; fields that only ip knows are zero."""
    return PACKET_HEAD.pack(INTERFACE, FAMILY_4, flags, 0, size, 0, 0, 0, bytes(4), bytes(4))


PLAIN = head(0), head(FLAG_GROUP)  # indexed by whether the frame was sent to a group
PARTIAL = head(FLAG_CHECKSUM_PARTIAL), head(FLAG_CHECKSUM_PARTIAL | FLAG_GROUP)
