"""The last events of connections, for `launcher.py why`: what happened, and the clause of an RFC that says so.

Bounded, for all connections together, and in the memory of the process: a restart of tcp forgets it. Ordinary segments
of an established connection are no events, so they cost nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from struct import Struct
from typing import NamedTuple

from layers.tcp.connection import STATE_NAMES, Connection, Ends, ends_of

KEPT = 4096  # events of all connections
PAGE = 100  # events per answer, which is a line of at most 64 KiB
# Time; flow and its length; number; state; event. As objects they would take four times as much, and would keep the
# memory around them from being returned after many connections came at once.
_EVENT = Struct("=d36sBqBB")


class Event(NamedTuple):
    """A kind of event: its clause, and a sentence that may contain one number."""

    clause: str
    text: str


_events: list[Event] = []


def _event(clause: str, text: str) -> int:
    """The number of a new kind of event."""
    _events.append(Event(clause, text))
    return len(_events) - 1


def _arrives(step: str, text: str) -> int:
    return _event(f"RFC 9293 section 3.10.7.4, {step}", text)


OPENED = _event("RFC 9293 section 3.10.1", "OPEN: sent a SYN")
REFUSED_NO_PORT = _event("RFC 9293 section 3.10.7.1", "a segment arrived for which there is no connection and no "
                        "listener; sent a reset")
LISTEN_SYN = _event("RFC 9293 section 3.10.7.2, third", "a SYN arrived at a listener; sent a SYN-ACK")
LISTEN_FULL = _event("listen(2)", "a SYN was dropped: the accept queue of the listener is full")
COOKIE_SENT = _event("RFC 4987 section 3.6", "a SYN arrived while the SYN queue is full; answered with a SYN cookie")
COOKIE_CAME = _event("RFC 4987 section 3.6", "an ACK arrived that contains a valid SYN cookie")
SENT_BAD_ACK = _event("RFC 9293 section 3.10.7.3, first", "the answer to our SYN acknowledges something else; sent a "
                     "reset")
SENT_RESET = _event("RFC 9293 section 3.10.7.3, second", "the peer refused the connection with a reset")
SENT_SYN = _event("RFC 9293 section 3.10.7.3, fourth", "a SYN without ACK arrived: simultaneous open; sent a SYN-ACK")
SENT_ESTABLISHED = _event("RFC 9293 section 3.10.7.3, fourth", "the SYN-ACK arrived; sent an ACK")
ESTABLISHED_BY_ACK = _arrives("fifth, SYN-RECEIVED", "the ACK of our SYN arrived")
ACCEPT_WAITS = _event("listen(2)", "the last ACK of the handshake is ignored: the accept queue is full, or data is "
                     "awaited (TCP_DEFER_ACCEPT)")
SYN_AGAIN = _event("RFC 9293 section 3.10.7.4, first, SYN-RECEIVED", "the SYN arrived again; sent the SYN-ACK again")
OLD_TIMESTAMP = _event("RFC 7323 section 5.3, R1", "dropped a segment with an old timestamp (PAWS)")
OUTSIDE = _arrives("first", "dropped a segment outside the receive window, at RCV.NXT {0:+}")
BLIND_RESET = _event("RFC 5961 section 3.2", "a reset arrived that is not at RCV.NXT ({0:+}); sent a challenge ACK at "
                    "most")
RESET = _arrives("second", "a reset arrived")
CHALLENGED_SYN = _event("RFC 5961 section 4.2", "a SYN arrived in a synchronized state; sent a challenge ACK")
NO_ACK = _arrives("fifth", "dropped a segment without ACK")
BAD_ACK = _event("RFC 5961 section 5.2", "dropped a segment with an unacceptable ACK, at SND.UNA {0:+}")
WINDOW_CLOSED = _arrives("fifth, ESTABLISHED", "the peer closed its receive window")
WINDOW_OPENED = _arrives("fifth, ESTABLISHED", "the peer opened its receive window to {0} octets")
FIN_ACKED = _arrives("fifth, FIN-WAIT-1", "our FIN is acknowledged")
FIN_ACKED_LAST = _arrives("fifth, CLOSING and LAST-ACK", "our FIN is acknowledged")
OUT_OF_ORDER = _arrives("seventh", "text arrived {0} octets after a gap; sent a duplicate ACK (RFC 5681 section 4.2)")
UNREAD = _event("RFC 9293 section 3.6.1 (SHLD-3)", "text arrived or was left that the application will not read")
FIN_CAME = _arrives("eighth", "the peer's FIN was reached")
MARKED = _event("RFC 9768 section 3.2.2", "the peer has received {0} marked packets")
CONGESTION = _event("RFC 3168 section 6.1.2", "the peer reports a congestion mark (ECE)")
CLOSED_BY_USER = _event("RFC 9293 section 3.10.4", "CLOSE: a FIN follows the octets written so far")
INCOMPLETE = _event("RFC 9293 section 3.10.4", "CLOSE, but octets written before it were lost on their way here")
ABORTED = _event("RFC 9293 section 3.10.5", "ABORT: sent a reset")
FAILED = _event("RFC 9293 section 3.10.8", "the connection has ended; the application is told errno {0}")
IN_TIME_WAIT = _event("RFC 9293 section 3.6", "TIME-WAIT begins")
WAITED = _event("RFC 9293 section 3.10.8", "the time-wait timer, or that of an orphan in FIN-WAIT-2, expired")
REUSED = _event("RFC 9293 section 3.6.1 (MAY-2), RFC 6191", "a new SYN replaces a connection in TIME-WAIT")
SMALLER_MSS = _event("RFC 9293 section 3.9.2.2, RFC 4821", "segments contain at most {0} octets from now on")
FORMER_MSS = _event("RFC 4821 section 7", "a probe arrived: segments contain up to {0} octets again")
TIMED_OUT = _event("RFC 6298 section 5.4", "the retransmission timer expired, number {0} in a row")
GAVE_UP = _event("RFC 9293 section 3.8.3, R2", "gave up after {0} retransmissions in a row")
RETRANSMITTED = _event("RFC 6675, RFC 8985", "retransmitted from stream octet {0} on")
PROBED = _event("RFC 9293 section 3.8.6.1", "sent zero-window probe number {0}")
PROBES_UNANSWERED = _event("RFC 9293 section 3.8.6.1", "gave up after {0} unanswered zero-window probes")
KEPT_ALIVE = _event("RFC 9293 section 3.8.4", "sent keep-alive number {0}")
NOT_ALIVE = _event("RFC 9293 section 3.8.4", "gave up after {0} unanswered keep-alives")
ICMP_HARD = _event("RFC 9293 section 3.9.2.2, RFC 1122 section 4.2.3.9", "an ICMP error arrived before the connection "
                  "was established (errno {0})")
ICMP_SOFT = _event("RFC 5927 section 5", "an ICMP error arrived (errno {0}): remembered, the connection goes on")
ICMP_FORGED = _event("RFC 5927 section 4.1", "ignored an ICMP error about octets that are not in flight")
RESTORED = _event("docs/recovery.md", "tcp was restarted and restored this connection")


class Noted(NamedTuple):
    """One event."""

    now: float  # seconds of CLOCK_MONOTONIC
    ends: Ends
    state: int  # after the event, or when it began
    event: Event
    number: int  # for its sentence


class History:
    """The last events."""

    def __init__(self) -> None:
        self._packed = bytearray(KEPT * _EVENT.size)  # a ring
        self._count = 0  # events since the process began

    def note(self, now: float, conn: Connection, event: int, number: int = 0) -> None:
        """An event of a connection, one of those above."""
        flow, at = conn.flow, self._count % KEPT * _EVENT.size
        _EVENT.pack_into(self._packed, at, now, flow, len(flow), number, conn.state, event)
        self._count += 1

    def note_alone(self, now: float, ends: Ends, state: int, event: int, number: int = 0) -> None:
        """An event without a connection."""
        self._add(now, ends.flow, state, event, number)

    def note_flow(self, now: float, flow: bytes, state: int, event: int) -> None:
        """The same with the ends as `Ends.flow`."""
        self._add(now, flow, state, event, 0)

    def _add(self, now: float, flow: bytes, state: int, event: int, number: int) -> None:
        at = self._count % KEPT * _EVENT.size
        _EVENT.pack_into(self._packed, at, now, flow, len(flow), number, state, event)
        self._count += 1

    def _noted(self, number: int) -> Noted:
        """The event with this number, from 0 on."""
        now, flow, octets, value, state, event = _EVENT.unpack_from(self._packed, number % KEPT * _EVENT.size)
        return Noted(now, ends_of(flow[:octets]), state, _events[event], value)

    def page(self, ends: Sequence[tuple[str, int]], after: int) -> dict[str, object]:
        """Events with a number above `after` whose ends are these: (address, port) each, "" and 0 match any.

        {"events": [[time, local, port, peer, port, state, text, clause]...], "after": for the next page, "more"}.
        """
        found: list[list[object]] = []
        for number in range(max(after, self._count - KEPT, 0) + 1, self._count + 1):
            noted = self._noted(number - 1)
            if _matches(noted.ends, ends):
                if len(found) == PAGE:
                    return {"events": found, "after": number - 1, "more": True}
                local, port, peer, peer_port = noted.ends
                found.append([noted.now, str(ip_address(local)), port, str(ip_address(peer)), peer_port,
                              STATE_NAMES[noted.state], noted.event.text.format(noted.number), noted.event.clause])
        return {"events": found, "after": self._count, "more": False}


def _matches(ends: Ends, wanted: Sequence[tuple[str, int]]) -> bool:
    """True if each wanted end is an end of the connection of its own."""
    sides = [(str(ip_address(ends.local)), ends.port), (str(ip_address(ends.peer)), ends.peer_port)]

    def fits(one: tuple[str, int], side: tuple[str, int]) -> bool:
        return one[0] in ("", side[0]) and one[1] in (0, side[1])

    return any(all(fits(one, side) for one, side in zip(wanted, order, strict=False)) for order in (sides, sides[::-1]))
