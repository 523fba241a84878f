"""Reassembly: by example, and against a model that keeps single octets."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.layers.inet import IP
from scapy.packet import Raw

from layers.ip import reassembly
from layers.ip.counters import Counters
from layers.ip.reassembly import OCTETS_MAX, SOURCE_OCTETS_MAX, SOURCES_MAX, TIMEOUT_S, Reassembly
from packets.checksum import verifies
from packets.fragments import Fragment, parse

HOST, FLOODER = "10.0.0.1", "10.0.0.66"


def fragment(start: int, data: bytes, more: bool, source: str = HOST, number: int = 7, **fields) -> bytes:
    fields |= {"id": number, "frag": start // 8, "flags": "MF" if more else ""}
    return bytes(IP(src=source, dst="10.0.0.2", proto=17, **fields) / Raw(data))


class Bench:
    def __init__(self) -> None:
        self.counters = Counters.new()
        self.reassembly = Reassembly(self.counters)

    def add(self, *arguments, now: float = 0.0, **fields) -> bytes | None:
        return self.reassembly.add(parse(fragment(*arguments, **fields)), now)

    def dropped(self) -> dict[str, int]:
        counted = Counters.read(self.counters)
        return {name: counted[name] for name, counter in Counters.declared.items()
                if counter.role == "drop" and counted[name]}

    def empty(self) -> bool:
        books = self.reassembly
        return not len(books) and not books.cost and not books._sources and books.next_expiry is None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_many_datagrams_expire_in_portions_the_oldest_first(bench, monkeypatch):
    monkeypatch.setattr(reassembly, "EXPIRED_AT_ONCE", 4)
    for number in range(10):
        bench.add(0, A, True, number=number, now=number / 10)
    numbers, portions = [], []
    while bench.reassembly.next_expiry is not None:
        assert bench.reassembly.next_expiry == TIMEOUT_S + len(numbers) / 10
        firsts = bench.reassembly.expire(TIMEOUT_S + 5)
        portions.append(len(firsts))
        numbers += [IP(first).id for first in firsts]
    assert (portions, numbers) == ([4, 4, 2], [*range(10)])
    assert bench.empty()


A, B, C = b"a" * 16, b"b" * 24, b"c" * 5


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_rfc791_3_2_fragments_in_any_order_make_the_packet(bench, order):
    fragments = [(0, A, True), (16, B, True), (40, C, False)]
    *nothing, whole = [bench.add(*fragments[index]) for index in order]
    assert nothing == [None, None]
    assert whole == bytes(IP(src=HOST, dst="10.0.0.2", proto=17, id=7) / Raw(A + B + C))
    assert bench.empty()
    assert bench.dropped() == {}


def test_rfc791_2_3_source_destination_protocol_and_number_tell_packets_apart(bench):
    for fields in ({"source": "10.0.0.3"}, {"number": 8}):
        bench.add(0, A, True, **fields)
    other = bytearray(fragment(0, A, True))
    other[9] = 1
    bench.reassembly.add(parse(bytes(other)), 0.0)
    assert bench.add(16, C, False) is None
    assert bench.add(0, b"A" * 16, True) is not None
    assert len(bench.reassembly) == 3


@pytest.mark.parametrize("ttl", [0, 1, 29, 31, 255])
def test_rfc1122_3_3_2_the_time_does_not_depend_on_the_ttl(bench, ttl):
    bench.add(0, A, True, ttl=ttl)
    bench.add(16, B, True, now=1.0, ttl=ttl)
    assert bench.reassembly.next_expiry == TIMEOUT_S
    assert bench.reassembly.expire(TIMEOUT_S - 0.001) == []
    assert len(bench.reassembly.expire(TIMEOUT_S)) == 1


def test_a_repeated_fragment_is_ignored(bench):
    for _ in range(3):
        assert bench.add(0, A, True) is None
        assert bench.add(40, C, False) is None
    assert bench.add(16, B, True) is not None
    assert bench.dropped() == {"fragment_repeated": 4}


@pytest.mark.parametrize("contained", [(0, b"x" * 16, True), (0, A[:8], True), (8, b"a" * 8, True), (8, b"x" * 8, True),
                                       (40, C, False)])
def test_rfc791_3_2_what_is_contained_in_what_is_there_changes_nothing(bench, contained):
    """As Linux's inet_frag_queue_insert: the first octets stay."""
    bench.add(0, A, True)
    bench.add(40, C, False)
    assert bench.add(*contained) is None
    whole = bench.add(16, B, True)
    assert whole is not None
    assert whole[20:] == A + B + C
    assert bench.dropped() == {"fragment_repeated": 1}


@pytest.mark.parametrize("contradiction", [
    (0, A, False),  # the same data, but said to be the last
    (0, A + b"a" * 8, True), (8, b"a" * 16, True),  # teardrop and its kin
    (8, C, False), (48, B, False), (56, b"b" * 8, True),  # another end, data beyond the end
])  # fmt: skip
def test_rfc5722_4_a_contradiction_spoils_the_whole_packet_until_its_time_is_over(bench, contradiction):
    bench.add(0, A, True)
    bench.add(40, C, False)
    assert bench.add(*contradiction) is None
    assert bench.add(16, B, True) is None
    assert bench.add(0, A, True) is None
    assert bench.dropped() == {"fragment_spoilt": 3}
    assert bench.reassembly.expire(TIMEOUT_S) == []  # no error is sent
    assert bench.empty()
    for piece in ((0, A, True), (16, B, True)):
        assert bench.add(*piece, now=TIMEOUT_S) is None
    assert bench.add(40, C, False, now=TIMEOUT_S) is not None


@pytest.mark.parametrize(("start", "data", "more", "counter"), [
    (0, b"", True, "fragment_malformed"), (8, b"", False, "fragment_malformed"),
    (0, b"abc", True, "fragment_malformed"),
    (65528, b"12345678", False, "fragment_beyond"), (65512, b"1234", False, "fragment_beyond"),  # ping of death
    (65528, b"12345678", True, "fragment_beyond"),
])  # fmt: skip
def test_an_impossible_fragment_is_counted_and_does_no_harm(bench, start, data, more, counter):
    bench.add(0, A, True)
    assert bench.add(start, data, more) is None
    assert bench.dropped() == {counter: 1}
    assert bench.add(16, C, False) is not None


def test_the_longest_packet_there_can_be(bench):
    assert bench.add(0, bytes(65512), True) is None
    assert len(bench.add(65512, b"123", False)) == 65535


def test_options_in_the_first_fragment_can_make_a_packet_too_long(bench):
    first = fragment(0, bytes(65504), True)
    assert bench.reassembly.add(parse(b"\x46" + first[1:20] + b"\x01" * 4 + first[20:]), 0.0) is None
    assert bench.add(65504, b"1" * 11, False) is None
    assert bench.dropped() == {"fragment_beyond": 1}
    assert bench.empty()


def test_rfc8200_4_5_nothing_here_is_of_ipv4_alone(bench):
    source, other = bytes(15) + b"\1", bytes(15) + b"\2"
    made = []

    def piece(start, data, more, sender=source):
        return Fragment(sender, sender + b"number", start, more, 65535, 0, b"header", data, lambda *parts: bytes(
            made.append(parts) or b"whole"))

    assert bench.reassembly.add(piece(8, B, False), 0.0) is None
    assert bench.reassembly.add(piece(0, A[:8], True, other), 0.0) is None
    assert bench.reassembly.add(piece(0, A[:8], True), 0.0) == b"whole"
    assert made == [(b"header", [A[:8], B], False)]
    assert len(bench.reassembly) == 1
    assert bench.reassembly.expire(TIMEOUT_S) == [b"header" + A[:8]]


def test_the_header_is_that_of_the_first_fragment(bench):
    assert bench.add(16, C, False, ttl=3, tos=4) is None
    whole = IP(bench.add(0, A, True, ttl=9, tos=0x28))
    assert (whole.ttl, whole.tos, whole.flags, whole.frag, whole.len) == (9, 0x28, 0, 0, 41)
    assert verifies(bytes(whole)[:20])


@pytest.mark.parametrize(("first", "second", "result"), [
    (0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 3, 3), (3, 1, 3), (1, 2, 1), (0, 3, None), (0, 2, None),
    (1, 0, None),
])  # fmt: skip
def test_rfc3168_5_3_congestion_on_the_way_of_one_fragment_is_that_of_the_packet(bench, first, second, result):
    bench.add(0, A, True, tos=first)
    whole = bench.add(16, C, False, tos=second)
    assert (whole[1] if whole else None) == result
    assert bench.dropped() == ({} if whole else {"reassembly_ecn": 1})


def test_rfc1122_3_3_2_what_is_not_whole_in_time_is_given_up_and_told_if_it_has_a_beginning(bench):
    first = fragment(0, A, True)
    bench.reassembly.add(parse(first), 1.0)
    bench.add(16, B, True, number=8, now=2.0)
    bench.add(16, B, True, now=20.0)  # does not prolong
    assert bench.reassembly.next_expiry == 1.0 + TIMEOUT_S
    assert bench.reassembly.expire(TIMEOUT_S) == []
    assert bench.reassembly.expire(1.0 + TIMEOUT_S) == [first]
    assert bench.reassembly.next_expiry == 2.0 + TIMEOUT_S
    assert bench.reassembly.expire(100.0) == []
    assert bench.dropped() == {"reassembly_timeout": 2}
    assert bench.empty()


def test_one_source_cannot_use_up_what_there_is_nor_make_others_give_way(bench):
    assert bench.add(0, A, True) is None
    for number in range(5000):
        bench.add(8, bytes(1480), True, source=FLOODER, number=number)
        assert bench.reassembly._sources[bytes((10, 0, 0, 66))].cost <= SOURCE_OCTETS_MAX
    assert bench.add(16, C, False) is not None
    assert set(bench.dropped()) == {"reassembly_evicted"}


def test_tiny_fragments_are_charged_for_what_they_cost(bench):
    for start in range(8, 65000, 8):
        bench.add(start, bytes(8), True)
    assert bench.reassembly.cost <= SOURCE_OCTETS_MAX
    assert bench.dropped() == {"reassembly_evicted": 2}


def test_of_many_sources_the_greediest_give_way_first(bench):
    assert bench.add(0, A, True) is None
    for last in range(20):
        for number in range(400):
            bench.add(8, bytes(1480), True, source=f"10.0.1.{last}", number=number)
            assert bench.reassembly.cost <= OCTETS_MAX
    assert bench.add(16, C, False) is not None


def test_invented_sources_are_bounded_in_number(bench):
    for number in range(SOURCES_MAX + 5):
        bench.add(0, A, True, source=f"10.1.{number >> 8}.{number & 255}")
    assert len(bench.reassembly) == SOURCES_MAX
    assert bench.dropped() == {"reassembly_evicted": 5}
    assert bench.add(16, C, False, source=f"10.1.{SOURCES_MAX >> 8}.4") is not None


class AgainstAModel(RuleBasedStateMachine):
    """The model: for each packet a dict of single octets, of which the first to arrive stays."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.now = 0.0
        self.model: dict[int, dict] = {}

    @rule(number=st.integers(0, 2), start=st.integers(0, 5), words=st.integers(0, 3), tail=st.integers(0, 7),
          more=st.booleans(), fill=st.integers(0, 1))
    def fragment_comes(self, number, start, words, tail, more, fill):
        data = bytes([fill]) * (words * 8 + tail)
        got = self.bench.add(start * 8, data, more, number=number, now=self.now)
        assert got == self.expected(number, start * 8, data, more)

    @rule(seconds=st.sampled_from([1.0, 10.0, TIMEOUT_S]))
    def time_passes(self, seconds):
        self.now += seconds
        told = [first[4] << 8 | first[5] for first in self.bench.reassembly.expire(self.now)]
        old = {number: packet for number, packet in self.model.items() if packet["since"] + TIMEOUT_S <= self.now}
        assert sorted(told) == sorted(number for number, packet in old.items()
                                      if not packet["spoilt"] and 0 in packet["octets"])
        for number in old:
            del self.model[number]

    def expected(self, number: int, start: int, data: bytes, more: bool) -> bytes | None:
        if not data or (more and len(data) % 8):
            return None
        packet = self.model.setdefault(number, {"since": self.now, "octets": {}, "end": None, "spoilt": False})
        octets, places = packet["octets"], range(start, start + len(data))
        if packet["spoilt"] or self.contradicts(packet, places, more):
            packet["spoilt"] = True
            return None
        for place, octet in zip(places, data, strict=True):
            octets.setdefault(place, octet)  # Linux, inet_frag_queue_insert: what is there already stays
        if not more:
            packet["end"] = places.stop
        end = packet["end"]
        if end is None or len(octets) < end:
            return None
        del self.model[number]
        whole = bytes(packet["octets"][place] for place in range(end))
        return bytes(IP(src=HOST, dst="10.0.0.2", proto=17, id=number) / Raw(whole))

    @staticmethod
    def contradicts(packet: dict, places: range, more: bool) -> bool:
        """A fragment beyond the end, another end, or one that overlaps others without being contained in them."""
        octets, end = packet["octets"], packet["end"]
        if end is not None and (places.stop > end or (not more and places.stop != end)):
            return True
        if not more and any(place >= places.stop for place in octets):
            return True
        known = [place in octets for place in places]
        return any(known) and not all(known)

    @invariant()
    def the_books_balance(self):
        books = self.bench.reassembly
        assert len(books) == len(self.model)
        assert books.cost == sum(source.cost for source in books._sources.values())
        assert books.cost == sum(
            reassembly.DATAGRAM_COST + sum(len(piece) + reassembly.PIECE_COST for piece in datagram.pieces)
            for datagram in books._datagrams.values())


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
