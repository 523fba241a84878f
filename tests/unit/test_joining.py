"""Datagrams joined on the way in (link) and on the way out (udp): what comes out stands for what went in."""

from __future__ import annotations

import random
from collections import defaultdict

import lengths
from hypothesis import given, settings
from hypothesis import strategies as st
from records import PARTIAL as FLAG_PARTIAL
from records import from_link
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.packet import Raw
from test_offload import EVERYTHING, MAC, ME, PARTIAL, PEER, PEER_MAC, PLAIN, config, partial, payload_of, summed_anew

from bus import messages, topology
from bus.messages import DATAGRAM_HEADER, PACKET_HEAD, SEGMENT_SIZE, SEGMENTS_MAX, datagram_header
from layers.link.core import Core as Link
from layers.link.counters import Counters as LinkCounters
from layers.udp.coalescing import joined
from packets import offload
from packets.udp import PAYLOAD_OCTETS_MAX

HEAD = MAC + PEER_MAC + b"\x08\x00"


def frame(payload: bytes, number: int = 0, sport: int = 9, **fields) -> bytes:
    """A datagram as the kernel hands it over that was sent by a program on its side of the TAP."""
    packet = bytes(IP(src=PEER, dst=ME, id=number, **fields) / UDP(sport=sport, dport=7) / Raw(payload))
    return PARTIAL + HEAD + partial(packet)


def up(frames: list[bytes]) -> list[bytes]:
    """What link tells ip of frames that were read together: PACKET records."""
    link = Link(config(*EVERYTHING), {}, LinkCounters.new(), random.Random(1))
    sends = link.receive(topology.DEVICE, messages.ETHERNET, frames, 0.0)
    assert {send[:2] for send in sends} <= {(topology.IP, messages.PACKET)}
    return [record for _, _, record in sends]


def lone(given: bytes) -> bytes:
    """The record of a frame that is handed up as it is."""
    return from_link(given[24:], FLAG_PARTIAL)


def size_of(record: bytes) -> int:
    return PACKET_HEAD.unpack_from(record)[4]


def wire(record: bytes) -> list[bytes]:
    """The packets that a record stands for, as a wire would carry them."""
    _, _, flags, _, size, *_ = PACKET_HEAD.unpack_from(record)
    packet = record[PACKET_HEAD.size :]
    if size:
        return offload.packets(packet, 17, size)
    return [offload.completed(packet, 17) if flags & FLAG_PARTIAL else packet]


def essence(packet: bytes) -> tuple[bytes, ...]:
    """The part of a packet that must not change: all but identification and checksum."""
    return packet[:4], packet[6:10], packet[12:]


def test_datagrams_of_one_flow_go_up_as_one():
    frames = [frame(payload_of(64), number) for number in range(5)]
    [record] = up(frames)
    assert record == from_link(record[PACKET_HEAD.size :], FLAG_PARTIAL, 64)
    whole = IP(record[PACKET_HEAD.size :])
    assert (whole.len, whole[UDP].len) == (20 + 8 + 5 * 64, 8 + 5 * 64)
    assert bytes(whole) == partial(summed_anew(bytes(whole))), "lengths, header checksum and partial sum are right"


def test_a_frame_that_is_alone_goes_up_as_it_is():
    only = frame(b"data")
    assert up([only]) == [lone(only)]
    other = frame(b"data", sport=10)
    assert up([only, other]) == [lone(only), lone(other)]


def test_datagrams_with_different_heads_are_not_joined():
    base = frame(b"data", 1)
    for fields in ({"ttl": 3}, {"tos": 4}, {"flags": "DF"}, {"sport": 10}, {"options": IPOption_NOP()}):
        other = frame(b"data", 2, **fields)
        assert up([base, other]) == [lone(base), lone(other)], fields
    longer = frame(b"longer", 2)
    assert up([base, longer]) == [lone(base), lone(longer)]


def test_rfc1122_3_2_1_2_a_wrong_header_checksum_is_left_for_ip_to_see():
    frames = [frame(b"data", number) for number in range(3)]
    for at in range(3):
        wrong = frames[at][:34] + bytes([frames[at][34] ^ 1]) + frames[at][35:]
        assert lone(wrong) in up([*frames[:at], wrong, *frames[at + 1 :]]), "alone, as it came"


def test_a_fragment_does_not_overtake_what_was_sent_before_it():
    before = frame(b"data", 1)
    fragment = PLAIN + HEAD + bytes(IP(src=PEER, dst=ME, id=2, proto=17, flags="MF") / Raw(bytes(64)))
    after = frame(b"data", 3)
    first, *rest = up([before, before, fragment, after])
    assert (size_of(first), rest) == (4, [from_link(fragment[24:]), lone(after)])


def test_rfc791_3_1_a_super_packet_is_no_longer_than_a_packet_can_be():
    frames = [frame(bytes(1472), number) for number in range(64)]
    records = up(frames)
    assert [size_of(record) for record in records] == [1472] * 2
    assert all(len(record) - PACKET_HEAD.size <= 65535 for record in records)
    assert sum(len(wire(each)) for each in records) == 64


FRAMES = lengths.runs(
    st.tuples(
        st.sampled_from([0, 1, 5, 64, 65]),  # octets of payload
        st.sampled_from([9, 10]),  # source port
        st.sampled_from([{}, {}, {}, {"ttl": 3}, {"flags": "MF"}, {"frag": 7}, {"options": IPOption_NOP()}]),
        st.sampled_from([0, 0, 0, 3]),  # octets behind the packet
        st.sampled_from([PARTIAL, PARTIAL, PLAIN]),
    ),
    7, 1, 1, 1, 2, 3, 70,
)


@settings(deadline=None)
@given(FRAMES)
def test_each_flow_s_packets_come_out_as_they_went_in(drawn):
    frames = []
    for number, (size, sport, fields, padding, head) in enumerate(drawn):
        whole = frame(number.to_bytes(2, "big")[:size] + bytes(max(0, size - 2)), number, sport, **fields)
        whole = head + (whole[10:] if head == PARTIAL else HEAD + offload.completed(whole[24:], 17))
        frames.append(whole + bytes(padding))
    went_in, came_out = defaultdict(list), defaultdict(list)
    for each in frames:
        packet = offload.completed(each[24:], 17) if each.startswith(PARTIAL) else each[24:]
        went_in[packet[12:24]].append(essence(packet))
    for record in up(frames):
        for packet in wire(record):
            came_out[packet[12:24]].append(essence(packet))
    assert came_out == went_in


# -- on the way out ----------------------------------------------------------------------------------------------------

HEADERS = [datagram_header(handle, bytes(4), 7, bytes(4), 0, 0, 0) for handle in (1, 2)]
RECORDS = lengths.runs(st.tuples(st.sampled_from(HEADERS), st.sampled_from([b"", b"a", b"bc", b"de", bytes(30000)])), 9,
                       1, 2, 3, 70)


@given(RECORDS)
def test_records_joined_stand_for_the_same_datagrams_in_the_same_order(drawn):
    given_records = [header + payload for header, payload in drawn]
    back = []
    for kind, records in joined(given_records):
        for record in records:
            if kind == messages.SEND:
                back.append(record)
                continue
            header, rest = record[: DATAGRAM_HEADER.size], record[DATAGRAM_HEADER.size + SEGMENT_SIZE.size :]
            (size,) = SEGMENT_SIZE.unpack_from(record, DATAGRAM_HEADER.size)
            assert size < len(rest) <= min(PAYLOAD_OCTETS_MAX, size * SEGMENTS_MAX)
            assert len(rest) % size == 0
            back += [header + rest[at : at + size] for at in range(0, len(rest), size)]
    assert back == given_records


def test_a_run_is_one_record():
    run = [HEADERS[0] + bytes([number]) * 64 for number in range(5)]
    [(kind, [record])] = joined(run)
    assert kind == messages.SEND_SEGMENTS
    assert record == HEADERS[0] + SEGMENT_SIZE.pack(64) + b"".join(each[DATAGRAM_HEADER.size :] for each in run)
