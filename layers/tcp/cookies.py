"""SYN cookies (RFC 4987 section 3.6): a SYN-ACK's sequence number that says what would have been remembered.

     31        27 26    24 23                              0
    +------------+--------+---------------------------------+
    |   minute   |  MSS   |  keyed hash of all of it        |
    +------------+--------+---------------------------------+

Window scale and SACK do not fit there; as in Linux they go into the lowest bits of our timestamp, which the peer
echoes.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2s

SLOT_S = 64
SLOTS_VALID = 2  # a cookie is valid for one to two minutes
MSS_TABLE = (536, 1024, 1220, 1300, 1400, 1440, 1460, 8960)
_NO_SCALE = 15
_STAMP_BITS = 6


def make(secret: bytes, ends: bytes, peer_isn: int, mss: int, now: float) -> int:
    """The sequence number of a SYN-ACK."""
    index = max(bisect_right(MSS_TABLE, mss) - 1, 0)
    return _cookie(secret, ends, peer_isn, int(now // SLOT_S), index)


def check(secret: bytes, ends: bytes, peer_isn: int, cookie: int, now: float) -> int:
    """The MSS in a SYN cookie of ours; 0: not a valid cookie, or too old."""
    index = cookie >> 24 & 7
    current = int(now // SLOT_S)
    for slot in range(current, current - SLOTS_VALID, -1):
        if _cookie(secret, ends, peer_isn, slot, index) == cookie:
            return MSS_TABLE[index]
    return 0


def stamp(clock: int, scale: int | None, sack: bool) -> int:
    """A timestamp near `clock`, never later, that contains the peer's window scale and whether it permits SACK."""
    low = (_NO_SCALE if scale is None else scale) | sack << 4
    value = clock & 0xFFFFFFFF & -(1 << _STAMP_BITS) | low
    return value if value <= clock & 0xFFFFFFFF else (value - (1 << _STAMP_BITS)) & 0xFFFFFFFF


def read_stamp(echoed: int) -> tuple[int | None, bool]:
    """(window scale, SACK permitted) in a timestamp of `stamp`."""
    scale = echoed & 15
    return None if scale == _NO_SCALE else scale, bool(echoed >> 4 & 1)


def _cookie(secret: bytes, ends: bytes, peer_isn: int, slot: int, index: int) -> int:
    message = b"".join((ends, peer_isn.to_bytes(4, "big"), slot.to_bytes(8, "big"), bytes((index,))))
    digest = blake2s(message, digest_size=3, key=secret, person=b"cookie").digest()
    return (slot & 31) << 27 | index << 24 | int.from_bytes(digest, "big")
