"""IP options in what comes in, by example and with any octets."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import lengths
import pytest
import records
from hypothesis import example, given
from hypothesis import strategies as st
from records import GROUP, LOOPED, from_link

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    REPORT_HEAD,
    TRANSMIT_DONT_FRAGMENT,
    TRANSMIT_MAY_FRAGMENT,
)
from layers.ip.core import Core
from layers.ip.counters import Counters
from layers.ip.options import examine
from packets import ip_options, ipv4
from packets.checksum import verifies
from packets.icmp import as_received

ME, PEER, OTHER = (IPv4Address(f"10.0.0.{last}").packed for last in (2, 7, 9))
MAC = b"\x02" * 6
NOW = 1000.5
MIDNIGHT = 1_700_006_400.0  # 2023-11-15, 00:00 UT
TIME = (1000500).to_bytes(4, "big")  # RFC 791: milliseconds since midnight UT


class Layer:
    def __init__(self) -> None:
        config = StackConfig(name="t", run_dir="", address=ME, prefix=24, mac=MAC,
                             epoch=MIDNIGHT)
        self.counters = Counters.new()
        self.core = Core(config, {}, self.counters, random.Random(1))
        self.core.start(0.0)
        self.core.receive(topology.ARP, messages.NEIGHBOR, [PEER + MAC], 0.0)

    def hears(self, options: bytes, destination: bytes = ME, flags: int = 0) -> list:
        template = ipv4.header_template(PEER, destination, 17, 64, 0, False)
        header = ipv4.header_with_options(template, options, 20 + len(options) + 8, 7)
        return self.core.receive(topology.LINK, messages.PACKET, [from_link(header + b"payload.", flags)], NOW)

    def dropped(self) -> dict[str, int]:
        counted = Counters.read(self.counters)
        return {name: counted[name] for name, counter in Counters.declared.items()
                if counter.role == "drop" and counted[name]}


@pytest.fixture
def layer() -> Layer:
    return Layer()


def words(*options: bytes) -> bytes:
    return ip_options.join(options)


def route(pointer: int, *slots: bytes) -> bytes:
    return bytes((7, 3 + 4 * len(slots), pointer)) + b"".join(slots)


def stamp(pointer: int, flag: int, *slots: bytes, overflow: int = 0) -> bytes:
    return bytes((68, 4 + 4 * len(slots), pointer, overflow << 4 | flag)) + b"".join(slots)


NONE = bytes(4)


def whole(record: bytes, flags: int = 0) -> bytes:
    """The packet of a PACKET record, whose head says what its IP header does."""
    assert record == records.up(record[records.UP :], flags)
    return record[records.UP :]


@pytest.mark.parametrize(("came", "becomes"), [
    (route(4, NONE, NONE), route(8, ME, NONE)), (route(8, PEER, NONE), route(12, PEER, ME)),
    (route(12, PEER, OTHER), route(12, PEER, OTHER)),  # RFC 791: full, so it stays as it is
    (stamp(5, 0, NONE, NONE), stamp(9, 0, TIME, NONE)), (stamp(9, 0, PEER, NONE), stamp(13, 0, PEER, TIME)),
    (stamp(9, 0, NONE), stamp(9, 0, NONE, overflow=1)),
    (stamp(5, 1, NONE, NONE), stamp(13, 1, ME, TIME)),
    (stamp(5, 3, ME, NONE), stamp(13, 3, ME, TIME)), (stamp(5, 3, OTHER, NONE), stamp(5, 3, OTHER, NONE)),
    (b"\x94\x04\0\0", b"\x94\x04\0\0"), (b"\x01\x01\x01\x01", b"\x01\x01\x01\x01"), (b"\xfe\x04ab", b"\xfe\x04ab"),
    (b"\0\x07\xff\xff", b"\0\x07\xff\xff"),  # behind the end of the list
])  # fmt: skip
def test_rfc791_3_1_our_address_and_time_are_recorded_where_there_is_room(layer, came, becomes):
    ((consumer, kind, record),) = layer.hears(words(came))
    assert (consumer, kind) == (topology.UDP, messages.PACKET)
    record = whole(record)
    header_octets = (record[0] & 15) * 4
    assert record[20:header_octets] == words(becomes)
    assert verifies(record[:header_octets])
    assert record[header_octets:] == b"payload."


@pytest.mark.parametrize(("protocol", "upper"), [(1, topology.ICMP), (17, topology.UDP)])
@pytest.mark.parametrize("option", [b"\x82\x0bsecret...", b"\x88\x04id", b"\x94\x04\0\0", b"\x5e\x06what",
                                    route(8, PEER), stamp(9, 0, NONE)])
def test_rfc1122_3_2_1_8_every_option_goes_up_whatever_it_is(layer, option, protocol, upper):
    options = words(option)
    template = ipv4.header_template(PEER, ME, protocol, 64, 0, False)
    header = ipv4.header_with_options(template, options, 20 + len(options) + 8, 7)
    packet = from_link(header + b"payload.")
    ((consumer, kind, record),) = layer.core.receive(topology.LINK, messages.PACKET, [packet], NOW)
    record = whole(record)
    assert (consumer, kind) == (upper, messages.PACKET)
    full = option[0] == 68  # RFC 791: it counts those that it has no room for
    assert record[20:-8] == (words(stamp(9, 0, NONE, overflow=1)) if full else options)


SLOT = st.sampled_from([PEER, OTHER, bytes(4), b"\0\1\2\3"])


@st.composite
def honest_option(draw) -> bytes:
    """A record route or timestamp as an honest sender makes it: what is still free is zero, or names an address."""
    taken = draw(st.lists(SLOT, max_size=3))
    free = draw(st.integers(0, 2)) if taken else draw(st.integers(1, 2))
    if draw(st.booleans()):
        return route(4 + 4 * len(taken), *taken, *[NONE] * free)
    flag = draw(st.sampled_from([0, 1, 3]))
    count = draw(st.integers(0, 14)) if not free else 0
    if not flag:
        return stamp(5 + 4 * len(taken), 0, *taken, *[NONE] * free, overflow=count)
    taken, free = taken[:1], min(free, 1)
    asked = draw(st.sampled_from([ME, OTHER])) if flag == 3 else NONE
    slots = [part for slot in taken for part in (slot, b"time")] + [part for _ in range(free) for part in (asked, NONE)]
    return stamp(5 + 8 * len(taken), flag, *slots, overflow=0 if free else count)


@given(st.lists(st.one_of(honest_option(), st.just(b"\x94\x04\0\0"), st.just(b"\x01")), max_size=3), st.integers(0, 3))
def test_rfc1122_3_2_2_what_was_filled_in_is_not_quoted(options, padding):
    """icmp takes out of a packet exactly what ip has put in."""
    if sum(map(len, options)) + padding > 40:
        options = options[:1]
    options = words(b"\x01" * padding, *options)
    template = ipv4.header_template(PEER, ME, 17, 64, 0, False)
    came = ipv4.header_with_options(template, options, 20 + len(options) + 8, 7) + b"payload."
    header, problem, _ = examine(came[:-8], ME, MIDNIGHT)
    if not problem:  # as where one option comes twice
        assert as_received(header + came[-8:]) == came


def test_nothing_is_recorded_in_what_is_not_for_us_alone(layer):
    ((_, kind, record),) = layer.hears(words(route(4, NONE)), destination=b"\xff" * 4, flags=GROUP)
    assert kind == messages.PACKET
    assert whole(record, GROUP)[20:28] == words(route(4, NONE))


@pytest.mark.parametrize("kind", [131, 137])
def test_rfc7126_4_3_and_4_4_a_source_routed_packet_is_dropped(layer, kind):
    assert layer.hears(words(bytes((kind, 7, 4)) + ME)) == []
    assert layer.hears(words(bytes((kind, 7, 8)) + ME)) == []  # even if we are where it ends
    assert layer.dropped() == {"source_routed": 2}


@pytest.mark.parametrize(("options", "pointer"), [
    (b"\x07", 20), (b"\x01\x07\x00", 21), (b"\x07\x01", 20), (b"\x07\x09\x04", 20), (b"\xfe\x29\0\0", 20),
    (b"\x01\x01\x01\xfe", 23),  # no room for a length
    (b"\x07\x02\x01\x01", 21), (route(3, NONE), 22), (route(5, NONE), 22), (route(0, NONE), 22),
    (b"\x44\x03\x05\x01", 21), (stamp(4, 0, NONE), 22), (stamp(6, 0, NONE), 22), (stamp(5, 1, NONE), 22),
    (b"\x94\x03\0\0", 21), (stamp(6, 2, NONE), 22), (stamp(9, 0, NONE, overflow=15), 23),
    (route(4, NONE) + route(4, NONE), 27), (stamp(5, 0, NONE) + stamp(5, 0, NONE), 28),
])  # fmt: skip
def test_rfc1122_3_2_2_5_what_is_malformed_is_told_with_a_pointer_to_it(layer, options, pointer):
    ((consumer, kind, record),) = layer.hears(words(options))
    assert (consumer, kind) == (topology.ICMP, messages.REPORT_ERROR)
    assert REPORT_HEAD.unpack_from(record) == (12, 0, pointer)
    assert record.endswith(b"payload.")
    assert layer.dropped() == {"bad_options": 1}


PIECES = st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([
    route(4, NONE), route(8, PEER), stamp(5, 1, NONE, NONE), stamp(9, 0, NONE), stamp(9, 0, NONE, overflow=15),
    stamp(5, 3, ME, NONE), stamp(5, 3, OTHER, NONE), b"\x94\x04\0\0", b"\x01", b"\0"])), max_size=5)


@given(PIECES)
def test_no_options_do_any_harm(pieces):
    options = b"".join(pieces)[:40]
    layer = Layer()
    sends = layer.hears(words(options))
    assert len(sends) + layer.dropped().get("source_routed", 0) == 1
    for consumer, _, record in sends:
        if consumer == topology.UDP:
            packet = whole(record)
            assert verifies(packet[: (packet[0] & 15) * 4])


@given(lengths.octets(40) | PIECES.map(b"".join))
@example(route(4, NONE) + b"\x01\x01" + stamp(5, 0, NONE) + b"\0\x07")
@example(route(4, NONE) + b"\x94\x09")
def test_the_walk_through_options_meets_all_of_them_up_to_the_end_or_to_what_is_malformed(options):
    end = 0
    found = list(ip_options.walk(options))
    for offset, option in found:
        assert set(options[end:offset]) <= {ip_options.NO_OPERATION}
        assert option == b"" or option == options[offset : offset + option[1]]
        end = offset + len(option)
    assert b"" not in [option for _, option in found[:-1]]
    rest = options[end:]
    if found and not found[-1][1]:
        assert len(rest) < 2 or rest[1] < 2 or rest[1] > len(rest)
    else:
        assert rest.lstrip(b"\x01")[:1] in (b"", b"\0")


# -- options that we send ------------------------------------------------------------------------------------------


def transmit(layer: Layer, options: bytes, flags: int = TRANSMIT_MAY_FRAGMENT, segment: bytes = b"segment.",
             to: bytes = PEER) -> list:
    head = records.transmit(ME, to, 1, flags=flags, options=options)
    return layer.core.receive(topology.ICMP, messages.TRANSMIT, [head + segment], 0.0)


def test_a_segment_may_come_with_options(layer):
    for flags, field in ((TRANSMIT_MAY_FRAGMENT, 0), (TRANSMIT_DONT_FRAGMENT, 0x4000)):
        ((consumer, kind, record),) = transmit(layer, words(route(8, ME)), flags)
        sent = record[records.OUT :]
        assert (consumer, kind, sent[0]) == (topology.LINK, messages.PACKET_OUT, 0x47)
        assert sent[2] << 8 | sent[3] == len(sent) == 36
        assert sent[6] << 8 | sent[7] == field
        assert verifies(sent[:28])
        assert sent[20:] == words(route(8, ME)) + b"segment."


def test_a_segment_with_options_to_ourselves(layer):
    ((consumer, kind, record),) = transmit(layer, words(route(8, ME)), to=ME)
    assert (consumer, kind) == (topology.ICMP, messages.PACKET)
    assert whole(record, LOOPED)[20:28] == words(route(8, ME))


def test_a_long_segment_with_options_leaves_in_fragments(layer):
    sends = transmit(layer, words(route(8, ME)), segment=bytes(3000))
    assert [record[records.OUT] for _, _, record in sends] == [0x47, 0x45, 0x45]
    assert max(len(record) - records.OUT for _, _, record in sends) <= 1500


@pytest.mark.parametrize(("options", "missing"), [(bytes(44), 0), (bytes(2), 0), (bytes(8), 1), (bytes(8), 8)])
def test_options_that_are_not_there_or_too_long_are_refused(layer, options, missing):
    record = records.transmit(ME, PEER, 1, options=options)
    assert layer.core.receive(topology.ICMP, messages.TRANSMIT, [record[: len(record) - missing]], 0.0) == []
    assert layer.dropped() == {"bad_transmit": 1}
