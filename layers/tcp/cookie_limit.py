"""How many SYNs are answered with SYN cookies, and which.

A SYN that finds the SYN queue of its listener full costs this stack many times what it costs who sends it, and all
layers may share one core. So COOKIES_PER_S of them are answered, about as many as the stack can serve connections; the
others are dropped and counted. Two kinds of SYN do not compete with a flood from forged addresses, but have as many
cookies again for each kind:

- SYNs of *proven* peers, from whose address a handshake was completed before. (Linux prefers them, too:
  tcp_peer_is_proven.)
- SYNs that were dropped and come again. A client repeats what is not answered, after a second at first (RFC 6298
  section 2.1); a flood with random addresses and numbers does not. So a new client gets in with its second SYN.

Owns both memories. A crash loses them: then a client needs one SYN more.
"""

from __future__ import annotations

from zlib import crc32

from layers.tcp.reset import Allowance

COOKIES_PER_S = 3000  # of each kind; the stack serves 2,700 to 3,100 connections a second (docs/performance.md)
PROVEN_MAX = 4096  # addresses, the last ones
# Octets of the memory of dropped SYNs, one for each. If 22,000 are dropped in a second, 8 % of the SYNs of the flood
# are taken for repeated ones, because another was dropped at their place; that is less than COOKIES_PER_S.
PLACES = 1 << 20
AGAIN_AFTER_S = range(1, 5)  # in whole seconds: the first three repetitions of a client come after 1, 2 and 4
_CLOCK = 255  # the seconds that a place can tell apart, from 1 on; 0: no SYN was dropped


class CookieLimit:
    """The limit."""

    def __init__(self) -> None:
        self._any = Allowance(COOKIES_PER_S)
        self._of_proven = Allowance(COOKIES_PER_S)
        self._again = Allowance(COOKIES_PER_S)
        self._proven: dict[bytes, None] = {}  # the latest last
        self._dropped = bytearray()  # when a SYN was dropped, by a hash of it; empty until one was

    def proves(self, peer: bytes) -> None:
        """A handshake with this address was completed."""
        proven = self._proven
        proven.pop(peer, None)
        proven[peer] = None
        if len(proven) > PROVEN_MAX:
            del proven[next(iter(proven))]

    def allows(self, peer: bytes, identity: bytes, now: float) -> bool:
        """True if a cookie may be sent; False: drop the SYN, which is remembered.

        `identity` is what it has in common with its repetition: addresses, ports and sequence number.
        """
        if (peer in self._proven and self._of_proven.take(now)) or self._any.take(now):
            return True
        dropped = self._dropped
        if not dropped:
            dropped = self._dropped = bytearray(PLACES)
        place = crc32(identity) & PLACES - 1
        second, then = int(now) % _CLOCK + 1, dropped[place]
        if then and (second - then) % _CLOCK in AGAIN_AFTER_S and self._again.take(now):
            return True
        dropped[place] = second
        return False
