"""A flood of SYNs: the short path does the same as the general one, and who gets in (docs/decisions/syn-flood.md)."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from struct import pack

import lengths
from hypothesis import given
from hypothesis import strategies as st

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import (
    FLAG_CHECKSUM_KNOWN,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    PACKET_HEAD,
    TRANSMIT_HEAD,
    encode,
)
from bus.streams import StreamState
from layers.tcp.cookie_limit import COOKIES_PER_S, PROVEN_MAX, CookieLimit
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from packets.checksum import checksum
from packets.tcp import ACK, FIN, PSH, RST, SYN, Options, Segment, parse, pseudo_sum

ME, OTHER = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 3))
PORT, BOUND_PORT, CALM_PORT = 80, 81, 82
QUEUE = 128  # layers.tcp.listen: the least SYN queue
FLOOD_PER_S = 26_000
PATIENCE_S = 3.0  # of a client
REPEATS_S = (0.0, 1.0, 3.0)  # when Linux sends a SYN
USUAL = Options(1460, 7, True, (123456, 0))


def packet(segment: bytes, peer: bytes, to: bytes = ME, flags: int = 0, ip_options: bytes = b"") -> bytes:
    """A PACKET record with the checksum of the segment completed, unless `flags` say that it need not be."""
    if not flags & (FLAG_CHECKSUM_KNOWN | FLAG_CHECKSUM_PARTIAL):
        total = checksum(segment[:16] + bytes(2) + segment[18:], pseudo_sum(peer, to, len(segment)))
        segment = segment[:16] + pack("!H", total) + segment[18:]
    header_octets = 20 + len(ip_options)
    header = pack("!BBHHHBBH4s4s", 0x40 | header_octets >> 2, 0, header_octets + len(segment), 0, 0, 64, 6, 0, peer, to)
    head = PACKET_HEAD.pack(1, 4, flags, header_octets, 0, 6, 64, 0, peer, to)
    return head + header + ip_options + segment


def syn(peer: bytes, port: int, sequence: int = 7, options: Options = USUAL, to_port: int = PORT) -> bytes:
    return packet(Segment(port, to_port, sequence, 0, SYN, 64240, options=options).pack(), peer)


class Server:
    """A core with three listeners: one with its SYN queue full, one bound to an address, and one with room."""

    def __init__(self, general: bool = False, **options: object) -> None:
        self.counters = Counters.new()
        self.now = 1000.0
        self.rng = random.Random(2)
        config = StackConfig(name="t", run_dir="", address=ME, prefix=24, gateway=bytes((10, 0, 0, 1)), mac=bytes(6))
        self.core = Core(config, {}, self.counters, random.Random(1))
        self.core.start(self.now)
        for handle, port, local in ((1, PORT, b""), (2, BOUND_PORT, ME), (3, CALM_PORT, b"")):
            state = StreamState(handle=handle, request=1, port=port, local=local, bind=True, listen=100, **options)
            self.core.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(state)], self.now)
        if general:  # while a segment is known that has killed tcp, all take the general path (layers.tcp.poison)
            self.core.record_set_aside(topology.IP, messages.PACKET, syn(OTHER, 1, to_port=9), self.now)
        for port in (PORT, BOUND_PORT):
            self.hears(*(syn(OTHER, each, to_port=port) for each in range(1000, 1000 + QUEUE)))

    def hears(self, *records: bytes) -> list[tuple[int, int, bytes]]:
        return self.core.receive(topology.IP, messages.PACKET, list(records), self.now)

    def answers(self, *records: bytes) -> list[Segment]:
        """The segments that answer."""
        answered = [parse(record[TRANSMIT_HEAD.size :]) for _, kind, record in self.hears(*records)
                    if kind == messages.TRANSMIT]
        assert None not in answered
        return [each for each in answered if each is not None]

    def counted(self) -> dict[str, int]:
        return {name: number for name, number in Counters.read(self.counters).items() if number}

    def noted(self) -> list[object]:
        """All events."""
        events, after, more = list[object](), 0, True
        while more:
            question = {"op": "connection_events", "ends": [("", 0)], "after": after}
            page, _ = self.core.manage(question, self.now)
            events, after, more = events + page["events"], page["after"], page["more"]
        return events

    def fills_its_limit(self) -> None:
        """All cookies of this second are sent to others."""
        before = self.counted().get("cookies_limited", 0)
        while self.counted().get("cookies_limited", 0) == before:
            self.hears(*(syn(self.rng.randbytes(3) + b"\1", 9) for _ in range(64)))


peers = st.sampled_from([bytes((10, 0, 0, 9)), bytes((198, 51, 100, 7)), OTHER])
# What looks like a SYN to PORT if the octets of the options are taken for the beginning of the segment
IP_OPTIONS, LIKE_A_SYN = b"\1\1" + PORT.to_bytes(2), 0x50020000
acknowledgments = st.sampled_from([0, LIKE_A_SYN])
numbers = st.sampled_from([0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
usual = st.builds(Options, st.sampled_from([None, 0, 1, 535, 536, 1459, 1460, 8960, 65535]),
                  st.none() | st.integers(0, 20), st.booleans(), st.none() | st.tuples(numbers, numbers),
                  sack=st.just(()), cookie=st.sampled_from([None, None, b"", bytes(8)])).map(Options.pack)
options = st.one_of(usual, st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)))
flags = st.sampled_from([SYN] * 5 + [SYN | PSH, SYN | 64 | 128, SYN | FIN, SYN | RST, SYN | ACK, ACK, RST, 0])


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A segment to a listener, in most cases a SYN, or what is left of it."""
    segment = Segment(draw(st.integers(990, 1010)), draw(st.sampled_from([PORT, PORT, BOUND_PORT, CALM_PORT, 9])),
                      draw(numbers), draw(acknowledgments), draw(flags), draw(st.sampled_from([0, 64240])),
                      payload=draw(st.sampled_from([b"", b"", b"text"])), packed=draw(options)[:40]).pack()
    made = packet(segment, draw(peers), draw(st.sampled_from([ME, ME, ME, OTHER])),
                  draw(st.sampled_from([0, 0, FLAG_CHECKSUM_KNOWN, FLAG_CHECKSUM_PARTIAL, FLAG_GROUP])),
                  draw(st.sampled_from([b"", b"", IP_OPTIONS])))
    match draw(st.sampled_from(["whole"] * 6 + ["short", "another offset", "corrupt", "padded"])):
        case "short":
            return made[: draw(st.integers(PACKET_HEAD.size + 20, len(made)))]
        case "another offset":
            return made[:50] + bytes((draw(st.integers(0, 255)),)) + made[51:]
        case "corrupt":
            return made[:42] + bytes((made[42] ^ 1,)) + made[43:]
        case "padded":
            return made + bytes(draw(st.integers(1, 6000)))
    return made


@given(lengths.lists(lengths.lists(records(), 6), 5),
       st.fixed_dictionaries({}, optional={"window_scaling": st.booleans(), "timestamps": st.booleans(),
                                           "sack": st.booleans(), "maxseg": st.sampled_from([0, 88, 1000]),
                                           "fast_open": st.sampled_from([0, 5])}),
       st.sampled_from([0.0, 0.01, 70.0]))
def test_the_short_path_does_the_same_as_the_general_one(turns: list[list[bytes]], options: dict[str, object],
                                                         passes_s: float) -> None:
    short, general = Server(**options), Server(general=True, **options)
    assert short.counted() == general.counted()
    for turn in turns:
        for server in (short, general):
            server.now += passes_s
        assert short.hears(*turn) == general.hears(*turn)
        assert short.counted() == general.counted()
    assert short.noted() == general.noted()


def test_a_cookie_of_the_short_path_opens_a_connection():
    server = Server()
    peer = bytes((198, 51, 100, 7))
    (syn_ack,) = server.answers(syn(peer, 4000, 0xFFFFFFFF))
    assert (syn_ack.flags, syn_ack.acknowledgment, syn_ack.source_port, syn_ack.destination_port) == (
        SYN | ACK, 0, PORT, 4000)
    assert syn_ack.options.mss == 1460
    assert syn_ack.options.window_scale == 7
    assert syn_ack.options.sack_permitted
    assert syn_ack.options.timestamps is not None
    echoed = Options(timestamps=(123457, syn_ack.options.timestamps[0]))
    before = server.counted().get("passive_opens", 0)
    server.hears(packet(Segment(4000, PORT, 0, syn_ack.sequence + 1, ACK, 500, options=echoed).pack(), peer))
    assert server.counted()["passive_opens"] == before + 1


def test_beyond_the_limit_both_paths_drop_the_same_syns():
    short, general = Server(), Server(general=True)
    rng = random.Random(3)
    for _ in range(4):
        flood = [syn(rng.randbytes(4)[:3] + b"\1", rng.randrange(1024, 65536), rng.getrandbits(32))
                 for _ in range(COOKIES_PER_S)]
        again = flood[-100:]
        for turn in (flood, again):
            assert short.hears(*turn) == general.hears(*turn)
        for server in (short, general):
            server.now += 0.4
    assert short.counted() == general.counted()
    assert short.counted()["cookies_limited"] > 0


def test_a_syn_that_was_dropped_is_answered_when_it_comes_again_after_a_second():
    server = Server()
    server.fills_its_limit()
    mine, another = syn(bytes((198, 18, 0, 1)), 4000), syn(bytes((198, 18, 0, 1)), 4000, sequence=8)
    assert server.answers(mine) == []
    assert server.answers(mine) == [], "a client does not repeat it at once"
    server.now += 1.0
    server.fills_its_limit()
    assert server.answers(another) == []
    assert len(server.answers(mine)) == 1


def test_a_peer_that_has_completed_a_handshake_is_answered_at_once():
    server = Server()
    peer, stranger = bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2))
    (syn_ack,) = server.answers(syn(peer, 4000, to_port=CALM_PORT))
    server.hears(packet(Segment(4000, CALM_PORT, 8, syn_ack.sequence + 1, ACK, 500).pack(), peer))
    server.fills_its_limit()
    assert server.answers(syn(stranger, 4001)) == []
    assert len(server.answers(syn(peer, 4001))) == 1


def test_the_segments_of_connections_are_processed_in_a_flood_beyond_the_limit():
    server = Server()
    peer = bytes((198, 18, 0, 1))
    (syn_ack,) = server.answers(syn(peer, 4000, to_port=CALM_PORT))
    server.hears(packet(Segment(4000, CALM_PORT, 8, syn_ack.sequence + 1, ACK, 500).pack(), peer))
    server.fills_its_limit()
    rng = random.Random(5)
    said = packet(Segment(4000, CALM_PORT, 8, syn_ack.sequence + 1, ACK | PSH, 500, payload=b"text").pack(), peer)
    flood = [syn(rng.randbytes(3) + b"\1", 5) for _ in range(60)]
    told = [record for consumer, kind, record in server.hears(*flood[:30], said, *flood[30:])
            if (consumer, kind) == (topology.SOCKETS, messages.STREAM)]
    assert [record[-4:] for record in told] == [b"text"]


def test_rfc4987_in_a_flood_new_clients_get_in_with_their_second_syn():
    """26,000 SYNs a second, from random addresses; 50 clients that come one after another and repeat their SYNs."""
    limit, rng = CookieLimit(), random.Random(4)
    clients = {1.0 + number / 50: bytes((10, 1, 0, number)) for number in range(50)}  # by the time of the first SYN
    attempts = sorted((begins + later, begins, client) for begins, client in clients.items() for later in REPEATS_S)
    took: dict[bytes, float] = {}
    for number in range(int(FLOOD_PER_S * 5.5)):
        now = 50.0 + number / FLOOD_PER_S
        limit.allows(b"", rng.randbytes(16), now)
        while attempts and attempts[0][0] <= number / FLOOD_PER_S:
            _, begins, client = attempts.pop(0)
            if client not in took and limit.allows(client, client + bytes(12), now):
                took[client] = now - 50.0 - begins
    assert not attempts
    within = [client for client, after_s in took.items() if after_s < PATIENCE_S]
    assert len(within) >= 0.95 * len(clients), sorted(took.values())


def test_the_memory_of_proven_peers_is_bounded_and_keeps_the_latest():
    limit = CookieLimit()
    addresses = [IPv4Address(number).packed for number in range(PROVEN_MAX + 1)]
    for address in (*addresses[:-1], addresses[0], addresses[-1]):
        limit.proves(address)
    while limit.allows(b"", b"", 1.0):
        pass
    assert limit.allows(addresses[0], b"0", 1.0), "it was proven again"
    assert not limit.allows(addresses[1], b"1", 1.0)
    assert limit.allows(addresses[-1], b"2", 1.0)
