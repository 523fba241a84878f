"""Header prediction: the short path of the segment that an established connection expects next, from PACKET record to
STREAM record (V. Jacobson, "4BSD Header Prediction", 1990; Linux: the fast path of tcp_rcv_established).

The segment begins at RCV.NXT, acknowledges nothing that was not sent, has no options but timestamps, and either text
that fits into the window and the ring, or an acknowledgment that advances. In exchanges and streams most are of this
kind. The general path (`layers.tcp.records`, `engine`, `arrival`, `reassembly`) makes four objects of each and asks
dozens of questions whose answers are known here. What an acknowledgment means for loss recovery, when text is
acknowledged and what the application is told is decided by the same functions in both. A test compares them: the same
records leave, and the same is stored, counted and known of the connection. Any other segment takes the general path,
without an effect of this one. With `layers.tcp.records` and `crowd` this module knows the format of PACKET records.
"""

from __future__ import annotations

from struct import Struct

from bus.messages import FAMILY_4, FLAG_CHECKED, FLAG_GROUP, PACKET_HEAD
from layers.tcp import acknowledgment, arrival, reassembly
from layers.tcp.connection import ESTABLISHED, ORPHAN
from layers.tcp.ecn import CE
from layers.tcp.engine import HELD_OCTETS_MIN, Engine
from layers.tcp.records import ECN_MASK
from layers.tcp.ring import size_for
from layers.tcp.sequence import MODULUS_MASK
from packets import ipv4
from packets.tcp import ACK, HEADER_OCTETS, PSH, TIMESTAMPS_ALONE, TIMESTAMPS_OCTETS

_TCP_AT = PACKET_HEAD.size + ipv4.HEADER_OCTETS
_OPTIONS_AT = _TCP_AT + HEADER_OCTETS
_STAMPED_TEXT_AT = _OPTIONS_AT + TIMESTAMPS_OCTETS
# Of a PACKET record: family, flags and octets of IP header, TOS, addresses, ports, sequence number, acknowledgment,
# data offset and flags, window.
_EXPECTED = Struct(f"!x3s4xBx8s{ipv4.HEADER_OCTETS}x4sIIHH4x")
_STAMPS = Struct("!4sII")  # the only options: their first octets, value, echo reply
# IPv4 without options, to this host alone, checksum verified or not needed
_HEADS = frozenset(bytes((FAMILY_4, flags, ipv4.HEADER_OCTETS)) for flags in range(256)
                   if flags & FLAG_CHECKED and not flags & FLAG_GROUP)
# Where the text begins, by data offset and flags of all that may be expected
_TEXT_AT = {start - _TCP_AT << 10 | flags: start for start in (_OPTIONS_AT, _STAMPED_TEXT_AT)
            for flags in (ACK, ACK | PSH)}
assert _EXPECTED.size == _OPTIONS_AT


class Prediction:
    """The short path."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def takes(self, record: bytes) -> bool:
        """Process a segment, a PACKET record; False: it must take the general path."""
        total = len(record)
        if not _OPTIONS_AT <= total < _OPTIONS_AT + HELD_OCTETS_MIN:
            return False
        head, tos, addresses, ports, sequence, acknowledged, form, window = _EXPECTED.unpack_from(record)
        start = _TEXT_AT.get(form)
        if start is None or head not in _HEADS:
            return False
        stamped, value, echo = start == _STAMPED_TEXT_AT, 0, 0
        if stamped:
            if total < start:
                return False
            kind, value, echo = _STAMPS.unpack_from(record, _OPTIONS_AT)
            if kind != TIMESTAMPS_ALONE:
                return False
        engine = self._engine
        try:
            conn = engine.lookup.connections[addresses + ports]
        except KeyError:
            return False
        # Nothing that the general path would have to look at
        nxt, una = conn.rcv_nxt, conn.snd_una
        if (conn.state != ESTABLISHED or sequence != (conn.irs + nxt) & MODULUS_MASK or conn.timestamps_ok != stamped
                or not window or not conn.snd_window or conn.snd_wl1 > nxt or conn.fin_at is not None
                or conn.out_of_order or conn.accurate is not None or tos & ECN_MASK == CE):
            return False
        if stamped and (value - conn.ts_recent) & 0x80000000:  # RFC 7323 section 5.3, R1
            return False
        ack = una + ((acknowledged - conn.iss - una) & MODULUS_MASK)
        octets = total - start
        end = nxt + octets
        if ack > conn.snd_nxt or not (octets or ack > una):
            return False
        ring = conn.receive_ring
        if octets:
            if conn.handle == ORPHAN or octets > conn.own_mss or end > conn.advertised:
                return False
            if ring is None:  # the first text; if there is no memory the general path looks for it again and says so
                if not reassembly.ensure_ring(engine, conn, end):
                    return False
                ring = conn.receive_ring
            elif (ring.size < size_for(conn.rcv_limit) or end - conn.read > ring.size
                  or (conn.home and not ring.home)):
                return False
        # It is expected. What follows are the steps of `layers.tcp.arrival` and `reassembly` that are left
        now = engine.now
        conn.segments_in += 1
        conn.last_heard = now
        conn.keepalive_probes = 0
        window <<= conn.peer_scale
        conn.snd_window, conn.snd_wl1, conn.snd_wl2 = window, nxt, ack
        if window > conn.window_max:
            conn.window_max = window
        if ack > una:
            arrival.acknowledged(engine, conn, ack, echo)
        if stamped and nxt <= conn.last_ack_sent:  # RFC 7323 section 4.3
            conn.ts_recent, conn.ts_recent_at = value, now
        if not octets or ring is None:
            return True
        payload = record[start:]
        conn.data_segments_in += 1
        ring.write(nxt - 1, payload)
        conn.rcv_nxt = end
        conn.ack_due += octets
        acknowledgment.text_came(engine, conn)
        engine.above.stream(conn.handle, 0, nxt - 1, payload)
        acknowledgment.measure(conn, octets, form & PSH > 0)
        if octets <= conn.peer_segment and conn.ack_due >= 2 * conn.peer_segment:
            engine.acknowledge(conn)  # see `layers.tcp.reassembly`
        else:
            engine.touch(conn)
        return True
