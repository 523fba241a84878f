"""Flows of records: whoever sends too much loses its own, in every kind of record with a packet."""

from __future__ import annotations

import pytest
from records import from_link, out, transmit, up
from scapy.all import ICMP, IP, TCP, UDP, fragment

from bus import messages
from bus.flow import flow_of
from bus.runtime.backlog import BACKLOG_OCTETS, Backlog

ME, OTHER, MAC = "10.0.0.2", "10.0.0.9", bytes(6)
KINDS = {
    "from link": (messages.PACKET, from_link),
    "up": (messages.PACKET, up),
    "out": (messages.PACKET_OUT, lambda packet: out(MAC, packet)),
    "transmit": (messages.TRANSMIT, lambda packet: transmit(packet.src, packet.dst, packet.proto) + bytes(packet[1])),
}


@pytest.fixture(params=KINDS)
def record(request):
    kind, make = KINDS[request.param]
    return lambda packet: (kind, make(IP(bytes(packet))))


def udp(port: int, payload: bytes = b"", source: str = ME, to: str = OTHER, protocol: type = UDP):
    return IP(src=source, dst=to) / protocol(sport=port, dport=7) / payload


def test_packets_of_the_same_ends_are_one_flow(record):
    assert flow_of(*record(udp(5))) == flow_of(*record(udp(5, b"another")))


def test_packets_of_other_ends_are_other_flows(record):
    packets = [udp(5), udp(6), udp(5, source="10.0.0.3"), udp(5, to="10.0.0.3")]
    assert len({flow_of(*record(each)) for each in packets}) == len(packets)


def test_tcp_has_ports_and_icmp_has_none(record):
    assert flow_of(*record(udp(5, protocol=TCP))) != flow_of(*record(udp(6, protocol=TCP)))
    echoes = [IP(src=ME, dst=OTHER) / ICMP(id=1, seq=number) / bytes(8) for number in (1, 2)]
    assert flow_of(*record(echoes[0])) == flow_of(*record(echoes[1]))


@pytest.mark.parametrize("kind", ["from link", "out"])
def test_fragments_without_ports_are_one_flow_whatever_they_contain(kind):
    number, make = KINDS[kind]
    _, *rest = fragment(udp(5, bytes(range(256)) * 32), 1480)
    assert len(rest) > 3
    assert len({flow_of(number, make(IP(bytes(each)))) for each in rest}) == 1


@pytest.mark.parametrize("length", range(44))
@pytest.mark.parametrize("kind", [messages.PACKET, messages.PACKET_OUT, messages.TRANSMIT, messages.SEND])
def test_a_record_that_is_too_short_has_a_flow(kind, length):
    assert len(flow_of(kind, bytes(length))) <= 12


def test_records_of_sockets_are_told_from_others_by_their_handles():
    one, same, other = (flow_of(messages.SEND, record) for record in (b"\1\0\0\0abc", b"\1\0\0\0x", b"\2\0\0\0abc"))
    assert one == same != other


def test_a_flood_behind_a_full_pipe_makes_room_for_another_flow(record):
    backlog = Backlog(1 << 16)
    kind, flood = record(udp(5, bytes(9000)))
    fits = BACKLOG_OCTETS // len(flood)
    assert backlog.add_data(kind, [flood] * (fits + 9)) == fits
    quiet = [record(udp(6, b"%d" % number))[1] for number in range(10)]
    for each in quiet:
        backlog.add_data(kind, [each])
    left = []
    while backlog:
        left += backlog.pop(64, 1 << 16)[1]
    assert [each for each in left if len(each) < 1000] == quiet
    assert len(left) - len(quiet) >= fits - 1
