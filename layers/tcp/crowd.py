"""The short path of a SYN that finds the SYN queue of its listener full: from PACKET record to TRANSMIT record.

In a flood of SYNs most segments are of this kind. The general path (`layers.tcp.records`, `engine`, `listen`) makes a
dozen objects of each and takes three times as long. A test compares the two for any SYN: the same record leaves, and
the same is counted. What is unusual takes the general path. With `layers.tcp.records` and `prediction` this module
knows the format of records.
"""

from __future__ import annotations

from struct import Struct

from bus import messages, topology
from bus.messages import FAMILY_4, FLAG_CHECKED, FLAG_GROUP, PACKET_HEAD, TRANSMIT_HEAD
from layers.tcp import cookies, listen
from layers.tcp.counters import Counters as C
from layers.tcp.engine import Engine
from layers.tcp.records import PLAIN_FLAGS, Records
from packets import ipv4
from packets.checksum import verifies
from packets.tcp import (
    ACK,
    FIN,
    HEADER,
    HEADER_OCTETS,
    MSS_ALONE,
    MSS_DEFAULT,
    PROTOCOL,
    RST,
    SYN,
    mss_alone,
    parse_options,
)

_TCP_AT = PACKET_HEAD.size + ipv4.HEADER_OCTETS
_OPTIONS_AT = _TCP_AT + HEADER_OCTETS
_MSS_END = _OPTIONS_AT + 4
FLAGS_AT = _TCP_AT + 13  # of the TCP header in a PACKET record without IP options
NOT_ALONE, ALONE = FIN | SYN | RST | ACK, SYN  # mask and value of the flags of a SYN
_ADDRESSES = slice(10, PACKET_HEAD.size)
_PORTS_AND_SEQUENCE = slice(_TCP_AT, _TCP_AT + 8)
# Of a PACKET record: family, flags, octets of IP header, source, destination, ports, sequence number, data offset.
_SYN = Struct(f"!xBBB6x4s4s{ipv4.HEADER_OCTETS}x2sHI4xB")
_SYN_ACK = Struct(TRANSMIT_HEAD.format + HEADER.format[1:].replace("HH", "H2s", 1))  # the peer's port as octets

from_bytes = int.from_bytes


class Crowd:
    """The short path."""

    def __init__(self, engine: Engine, records: Records) -> None:
        self._engine = engine
        self._records = records

    def takes(self, record: bytes) -> bool:
        """Answer or drop a SYN, a PACKET record with `ALONE` at FLAGS_AT; False: it must take the general path."""
        engine = self._engine
        family, flags, header_octets, source, destination, peer_port, port, sequence, offset = _SYN.unpack_from(record)
        if header_octets != ipv4.HEADER_OCTETS or flags & FLAG_GROUP or family != FAMILY_4:
            return False
        identity = record[_ADDRESSES] + record[_PORTS_AND_SEQUENCE]
        flow = identity[:-4]
        lookup = engine.lookup
        listener = lookup.listener(destination, port, flow)
        if listener is None or not listener.crowded or listener.full or lookup.connections.get(flow) is not None:
            return False
        now = engine.now
        if not engine.cookie_limit.allows(source, identity, now):
            engine.counters[C.cookies_limited] += 1
            return True
        start = _TCP_AT + (offset >> 4 << 2)
        if start < _OPTIONS_AT or start > len(record):
            return False
        # RFC 9293 section 3.1 (MUST-2, MUST-3). A big integer modulo 65535 is the sum of its words, so that of the
        # addresses is the sum of both (packets.checksum).
        pseudo = from_bytes(record[_ADDRESSES]) + PROTOCOL
        if not flags & FLAG_CHECKED and not verifies(record[_TCP_AT:], pseudo + len(record) - _TCP_AT):
            return False
        own = listener.options
        if start == _MSS_END and record[_OPTIONS_AT : _OPTIONS_AT + 2] == MSS_ALONE:
            mss = from_bytes(record[_OPTIONS_AT + 2 : start])
            options = mss_alone(engine.route_mss(source, own))
        else:
            asked = parse_options(record[_OPTIONS_AT:start])
            mss, options = asked.mss or 0, listen.cookie_options(engine, own, source, asked).pack()
        ends = b"".join((destination, flow[-2:], source, peer_port))
        listen.count_cookie(engine, flow)
        isn = cookies.make(engine.secret, ends, sequence, mss or MSS_DEFAULT, now)
        octets = HEADER_OCTETS + len(options)
        engine.counters[C.segments_out] += 1
        answer = _SYN_ACK.pack(0, 0, FAMILY_4, PLAIN_FLAGS, PROTOCOL, self._records.ttl, 0, 0, destination, source,
                               port, peer_port, isn, (sequence + 1) & 0xFFFFFFFF, octets << 2, SYN | ACK,
                               listen.COOKIE_WINDOW, (pseudo + octets) % 65535 or 65535, 0)
        self._records.sends.append((topology.IP, messages.TRANSMIT, answer + options))
        return True
