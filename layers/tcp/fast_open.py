"""Fast Open (RFC 7413): text in a SYN, from a peer that has proved before that it has its address.

Server: a SYN with the option but without a valid cookie gets one in its SYN-ACK. A SYN with a valid cookie and text
makes a connection that is passed up at once, in SYN-RECEIVED, and that may send. As many of them as TCP_FASTOPEN says
may wait for the end of their handshake; beyond, as without a cookie, the text is left to be sent again. The cookie is a
keyed hash of both addresses, whose key is the stack's secret, so cookies outlive a restart.

Client: `Cookies` are those that peers gave us, in memory only. With one, the SYN waits for the first text; without, the
SYN asks for one. A SYN that is sent again, as middleboxes may drop what they do not know, has neither text nor option.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2s
from hmac import compare_digest
from typing import TYPE_CHECKING

from layers.tcp.connection import Connection, Ends
from layers.tcp.counters import Counters as C
from packets.tcp import OPTIONS_OCTETS_MAX, Options, Segment

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.listen import Listener

COOKIE_OCTETS = 8  # RFC 7413 section 4.1.1: 4 to 16; as many as Linux has
PEERS_MAX = 1024  # of which cookies are kept


class Cookies:
    """The cookies of peers, and the MSS that each told (RFC 7413 section 4.1.3)."""

    def __init__(self) -> None:
        self._of: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()

    def get(self, peer: bytes) -> tuple[bytes, int] | None:
        """(cookie, MSS); None: there is none."""
        return self._of.get(peer)

    def put(self, peer: bytes, cookie: bytes, mss: int) -> None:
        """The peer has given this cookie; empty: it is not to be used any more."""
        self._of.pop(peer, None)
        if cookie:
            self._of[peer] = cookie, mss
            if len(self._of) > PEERS_MAX:
                self._of.popitem(last=False)


def cookie_for(secret: bytes, ends: Ends) -> bytes:
    """The cookie of a client at `ends.peer`."""
    return blake2s(ends.peer + ends.local, digest_size=COOKIE_OCTETS, key=secret, person=b"fastopen").digest()


# -- server -----------------------------------------------------------------------------------------------------------


def takes_text(engine: Engine, listener: Listener, conn: Connection, segment: Segment) -> bool:
    """A SYN to a listener with TCP_FASTOPEN: take its text, or give a cookie (RFC 7413 section 4.2.1)."""
    offered = segment.options.cookie
    if offered is None:
        return False
    cookie = cookie_for(engine.secret, conn.ends)
    if not compare_digest(cookie, offered):
        conn.cookie = cookie
        engine.counters[C.fast_open_cookies] += 1
        return False
    waiting = sum(1 for each in listener.syn_queue if each.accept_number)
    if not segment.payload or waiting >= listener.options.fast_open or listener.full:
        engine.counters[C.fast_open_refused] += 1
        return False
    engine.counters[C.fast_opens] += 1
    return True


# -- client -----------------------------------------------------------------------------------------------------------


def begins(engine: Engine, conn: Connection) -> bool:
    """A connection with Fast Open begins; True: its SYN waits for the first text."""
    known = engine.fast_open.get(conn.ends.peer)
    conn.cookie = known[0] if known is not None else b""
    conn.syn_held = known is not None
    return conn.syn_held


def text(engine: Engine, conn: Connection, offer: Options) -> bytes:
    """The text of a first SYN with a cookie; empty: none fits, or there is none."""
    known = engine.fast_open.get(conn.ends.peer)
    if known is None or not conn.cookie or conn.send_ring is None:
        return b""
    room = min(conn.path_mss, known[1]) - len(offer.pack())
    return conn.send_ring.read(0, max(0, min(conn.written - 1, room)))


def answered(engine: Engine, conn: Connection, segment: Segment, ack: int) -> None:
    """The SYN-ACK of a connection with Fast Open: its cookie, and how much of the text was taken."""
    cookie = segment.options.cookie
    if cookie and conn.cookie is not None:
        engine.fast_open.put(conn.ends.peer, cookie, conn.peer_mss)
    recovery = conn.recovery
    if conn.snd_nxt > ack and recovery is not None:
        recovery.board.lose(ack, conn.snd_nxt)  # section 4.2.2: sent again at once, which is no sign of congestion
        conn.syn_octets = ack - 1


def timed_out(engine: Engine, conn: Connection) -> None:
    """The first SYN was not answered: without the option, now and for the next connections (section 4.1.3.1)."""
    if conn.cookie:
        engine.fast_open.put(conn.ends.peer, b"", 0)
    conn.cookie = None


def fits(offer: Options) -> bool:
    """True if the options with the cookie are not longer than a header permits."""
    return len(offer.pack()) <= OPTIONS_OCTETS_MAX
