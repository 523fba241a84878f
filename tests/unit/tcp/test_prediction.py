"""The short paths of an exchange (`layers.tcp.prediction`, `Recovery.sent_alone`) do the same as the general ones.

Two cores get the same inputs, one of them without the short paths. What leaves them, what is stored and counted, and
all that they know of their connections must be the same after every turn.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.held import APPLICATION_MIN
from bus.durable.stream_memory import Piece, StreamMemory
from bus.layer import Send
from bus.messages import (
    FLAG_CHECKSUM_KNOWN,
    FLAG_CHECKSUM_PARTIAL,
    FLAG_GROUP,
    PACKET_HEAD,
    TRANSMIT_HEAD,
    encode,
)
from bus.streams import StreamState
from layers.tcp import info
from layers.tcp.connection import Connection
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from layers.tcp.ecn import CE, ECT_0
from layers.tcp.prediction import Prediction
from layers.tcp.recovery import Recovery
from packets.tcp import ACK, AE, CWR, ECE, FIN, PSH, RST, SYN, URG, Options, Segment, parse
from usernet.pipe.rings import FACTS_AT, Ring
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPT_RECORD,
    ACCEPTED_HEADER,
    CLOSE_RECORD,
    MEMORY_RECORD,
    READ,
    READ_RECORD,
    RESUME,
    STREAM,
    STREAM_END,
    STREAM_HEADER,
    STREAM_MORE,
    STREAM_URGENT,
)

ME, PEER = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
LISTENER, PORT, FIRST_PEER_PORT = 5, 80, 4000
TOKEN_OF_APPLICATION = 77
ISN = 0xFFFFFF00  # numbers wrap soon
LINUX = Options(1460, 7, True, (7_000, 0))
CONFIG = StackConfig(name="t", run_dir="", address=ME, prefix=24, gateway=PEER, mac=bytes(6))


@contextmanager
def paths(short: bool, taken: Counter[str] | None = None) -> Iterator[None]:
    """Without `short` the short paths refuse everything; with it `taken` counts what they take."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Prediction, "takes"), (Recovery, "sent_alone")):
            real = getattr(owner, name)

            def counted(*arguments: object, real=real, name=name) -> bool:
                took = short and real(*arguments)
                if taken is not None:
                    taken[name] += took
                return took

            patch.setattr(owner, name, counted)
        yield


def all_of(thing: object) -> object:
    """Everything that a connection's objects contain."""
    if isinstance(thing, Ring):
        return thing.reference
    if isinstance(thing, list):
        return [all_of(each) for each in thing]
    if not type(thing).__module__.startswith("layers.tcp") or isinstance(thing, tuple):
        return thing
    names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: all_of(getattr(thing, name)) for name in names}


def differences(one: object, other: object, at: str = "") -> list[str]:
    """Where two of these differ."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [each for key in one for each in differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for number, pair in pairs for each in differences(*pair, f"{at}[{number}]")]
    return [f"{at}: {one!r} {other!r}"]


class Server:
    """A core with connections of a peer that says what it is told to."""

    def __init__(self, short: bool = True, connections: int = 2, syn: Options = LINUX, flags: int = SYN,
                 **options: object) -> None:
        self.short = short
        self.taken: Counter[str] = Counter()
        self.now = 1000.0
        token = Piece(APPLICATION_MIN, FACTS_AT, TOKEN_OF_APPLICATION.to_bytes(8, sys.byteorder))
        self.memory = StreamMemory.volatile([token])._replace(shared=True)
        os.close(self.memory.descriptors[APPLICATION_MIN])  # it is mapped
        self.state: dict[int, bytes] = {}
        self.counters = Counters.new()
        self.last: dict[int, Connection] = {}  # by the port of the peer, which is the same also while they sleep
        self.starts(1)
        declared = StreamState(handle=LISTENER, request=1, port=PORT, bind=True, listen=50, **options)
        self.tells(messages.SOCKET_SET, encode(declared))
        self.tells(ACCEPT, ACCEPT_RECORD.pack(LISTENER, 0, 0, 50))
        self.handles = []
        self.stamped = syn.timestamps is not None and declared.timestamps
        for number in range(connections):
            port = FIRST_PEER_PORT + number
            self.hears(packet(Segment(port, PORT, ISN, 0, flags, 64240, options=syn)))
            conn = self.conn(port)
            assert conn is not None
            self.now += 0.001
            usual = Options(timestamps=self.stamps(conn) if self.stamped else None)
            wire = self.acknowledgment(conn, conn.snd_nxt)
            sends = self.hears(packet(Segment(port, PORT, ISN + 1, wire, ACK, 501, options=usual)))
            self.handles += [ACCEPTED_HEADER.unpack_from(record)[1] for _, kind, record in sends
                             if kind == messages.ACCEPTED]
        assert len(self.handles) == connections

    def starts(self, seed: int) -> list[Send]:
        """The first process, or a successor after a SIGKILL."""
        self.core = Core(CONFIG, self.state, self.counters, random.Random(seed), self.memory)
        return self.core.start(self.now)

    def hears(self, *records: bytes) -> list[Send]:
        with paths(self.short, self.taken):
            return self.core.receive(topology.IP, messages.PACKET, list(records), self.now)

    def tells(self, kind: int, *records: bytes) -> list[Send]:
        with paths(self.short, self.taken):
            return self.core.receive(topology.SOCKETS, kind, list(records), self.now)

    def lends(self, number: int) -> list[Send]:
        """The application lends its memory for the octets of a connection."""
        record = MEMORY_RECORD.pack(self.handles[number], APPLICATION_MIN, TOKEN_OF_APPLICATION)
        return self.tells(messages.STREAM_MEMORY, record)

    def passes(self, seconds: float) -> list[tuple[float, list[Send]]]:
        """Let time pass; what timers send."""
        end, sent = self.now + seconds, []
        with paths(self.short, self.taken):
            while self.core.next_wake is not None and self.core.next_wake <= end and len(sent) < 200:
                self.now = max(self.now, self.core.next_wake)
                sent.append((self.now, self.core.wake(self.now)))
        self.now = end
        return sent

    def conn(self, port: int) -> Connection | None:
        """The connection of a port of the peer."""
        return self.core.engine.lookup.connections.get(PEER + ME + port.to_bytes(2) + PORT.to_bytes(2))

    def stamps(self, conn: Connection, age: int = 0) -> tuple[int, int]:
        """The peer's timestamps: its clock in milliseconds, and an echo of ours."""
        return int(self.now * 1000) - age & 0xFFFFFFFF, int(self.now * 1000) + conn.timestamp_offset - 1 & 0xFFFFFFFF

    def acknowledgment(self, conn: Connection, number: int) -> int:
        return (conn.iss + number) & 0xFFFFFFFF

    def known(self) -> dict[str, object]:
        """All that the core has counted, stored and remembers."""
        engine = self.core.engine
        conns = list(engine.lookup.connections.values())
        self.last |= {conn.ends.peer_port: conn for conn in conns}
        return {
            "counted": Counters.read(self.counters), "state": dict(self.state),
            "stored": list(self.core.memory_pieces()), "wake": self.core.next_wake,
            "connections": [all_of(conn) for conn in conns],
            "info": [info.header(engine, conn) + info.tcp_info(engine, conn) for conn in conns],
        }

    def noted(self) -> dict[str, object]:
        """The last events."""
        events, _ = self.core.manage({"op": "connection_events", "ends": [("", 0)], "after": 0}, self.now)
        return events


def packet(segment: Segment, flags: int = FLAG_CHECKSUM_KNOWN, tos: int = 0, ip_options: bytes = b"") -> bytes:
    """A PACKET record."""
    header = 20 + len(ip_options)
    head = PACKET_HEAD.pack(1, 4, flags, header, 0, 6, 64, tos, PEER, ME)
    return head + bytes(20) + ip_options + segment.pack()


# -- the usual exchange


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("syn", [LINUX, Options(1460, 7, True), Options(1460)])
def test_all_segments_of_a_plain_exchange_take_the_short_paths(syn, lent):
    server = Server(syn=syn)
    if lent:
        server.lends(0)
        server.lends(1)
    for number in range(20):
        records = []
        for port in (FIRST_PEER_PORT, FIRST_PEER_PORT + 1):
            conn = server.conn(port)
            assert conn is not None
            assert (conn.home > 0) == lent
            usual = Options(timestamps=server.stamps(conn) if server.stamped else None)
            records.append(packet(Segment(port, PORT, (ISN + conn.rcv_nxt) & 0xFFFFFFFF,
                                          server.acknowledgment(conn, conn.snd_nxt), ACK | PSH, 501, options=usual,
                                          payload=b"request")))
        told = [record for _, kind, record in server.hears(*records) if kind == STREAM]
        assert [record[STREAM_HEADER.size :] for record in told] == [b"request"] * 2
        server.now += 0.001
        sends = server.tells(STREAM, *(STREAM_HEADER.pack(handle, 0, 6 * number) + b"answer"
                                       for handle in server.handles))
        answers = [parse(record[TRANSMIT_HEAD.size :]) for _, kind, record in sends if kind == messages.TRANSMIT]
        assert [answer and bytes(answer.payload) for answer in answers] == [b"answer"] * 2
        server.now += 0.01
    assert server.taken == {"takes": 40, "sent_alone": 40}


# -- anything else

PLAIN_SEGMENT = {
    "port": FIRST_PEER_PORT, "flags": ACK | PSH, "ahead": 0, "share": 1.0, "more": 0, "window": 501, "text": 64,
    "options": "usual", "head": FLAG_CHECKSUM_KNOWN, "tos": 0, "ip_options": b"", "cut": 0}
OTHER_SEGMENTS = {
    "port": [FIRST_PEER_PORT + 1] * 3,
    "flags": [ACK, ACK, ACK, ACK, ACK | FIN, ACK | FIN | PSH, ACK | PSH | URG, ACK | ECE, ACK | PSH | CWR,
              ACK | PSH | AE, SYN, SYN | ACK, RST, RST | ACK, PSH, 0],
    "ahead": [1, 64, 1448, -1, -64, -1448, 70_000, 1 << 31],
    # of our octets: which share of what is in flight it acknowledges, and how many more
    "share": [0.0, 0.5], "more": [1, -1, -5000],
    "window": [500, 502, 1, 0, 65535],
    "text": [0, 0, 0, 1, 536, 1000, 1447, 1448, 1460, 1461, 2035, 2036, 2048, 3000, 9000],
    "options": ["none", "plain", "old", "no echo", "strange echo", "block", "duplicate", "reordered", "mss"],
    "head": [FLAG_CHECKSUM_PARTIAL, 0, FLAG_GROUP, FLAG_GROUP | FLAG_CHECKSUM_KNOWN],
    "tos": [ECT_0, CE, CE, CE], "ip_options": [b"\1\1\1\1"], "cut": [1, 12, 40]}
TOGETHER = [  # beyond a gap: an ACK, a FIN, text with an old ACK; a window that closes; what is more probable
    {"ahead": 64, "flags": ACK, "text": 0}, {"ahead": 64, "flags": ACK | FIN, "text": 0}, {"ahead": 64, "more": -1},
    {"window": 0, "text": 0}, {"window": 502}, {"share": 0.5, "text": 0}, {"share": 0.0, "text": 0},
    {"flags": ACK | PSH | AE}, {"options": "old"}, {"options": "reordered"}, {"text": 0, "cut": 1}]
PLAIN_WRITE = {"number": 0, "offset": 0, "flags": 0, "text": 64}
OTHER_WRITES = {
    "number": [1, 1], "offset": [-1, -64, 1], "flags": [STREAM_MORE, STREAM_URGENT, STREAM_END],
    "text": [1, 0, 1000, 1400, 1407, 1408, 1419, 1420, 1448, 1500, 5000, 70_000]}


def mostly(plain: dict[str, object], others: dict[str, list], *together: dict[str, object]) -> st.SearchStrategy[
        dict[str, object]]:
    """The plain one, or one that differs in one or two respects, or in what belongs together."""
    changes = st.sampled_from([{name: value} for name, values in others.items() for value in values])
    return weighted((6, st.just(plain)), (2, changes.map(lambda change: plain | change)),
                    (1, st.tuples(changes, changes).map(lambda both: plain | both[0] | both[1])),
                    (2, st.sampled_from([*together, {}]).map(lambda change: plain | change)))


def weighted(*choices: tuple[int, st.SearchStrategy[object]]) -> st.SearchStrategy[object]:
    return st.sampled_from([choice for weight, choice in choices for _ in range(weight)]).flatmap(lambda choice: choice)


def step(kind: str, wanted: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.tuples(st.just(kind), wanted)


set_options = st.fixed_dictionaries({}, optional={
    "nodelay": st.booleans(), "cork": st.booleans(), "quickack": st.sampled_from([None, False, True]),
    "notsent_lowat": st.sampled_from([0, 1, 4096]), "keepalive": st.booleans(), "keepidle": st.just(1),
    "maxseg": st.sampled_from([0, 100, 536]), "receive_buffer": st.sampled_from([0, 2304, 300_000, 300_000]),
    "send_buffer": st.sampled_from([0, 4608]), "window_clamp": st.sampled_from([0, 1000]),
    "congestion": st.sampled_from(["cubic", "reno"]), "ttl": st.sampled_from([64, 3])})
which = st.sampled_from([0, 0, 1])
steps = weighted(
    (24, step("hear", st.lists(mostly(PLAIN_SEGMENT, OTHER_SEGMENTS, *TOGETHER), min_size=1, max_size=3))),
    (16, step("write", st.lists(mostly(PLAIN_WRITE, OTHER_WRITES), min_size=1, max_size=2))),
    (12, step("pass", st.sampled_from([0.0004] * 8 + [0.003, 0.015, 0.045] * 2 + [0.3, 1.1, 3.0, 70.0]))),
    (3, step("read", st.tuples(which, st.sampled_from([0, 0, 10, 5000]), st.sampled_from([0, 0, RESUME])))),
    (3, step("set", st.tuples(which, set_options))),
    (1, step("lend", which)),
    (1, step("close", st.tuples(which, st.sampled_from([-1, 0, 5])))),
    (1, step("restart", st.none())))


def segment(server: Server, wanted: dict[str, object]) -> bytes:
    """A PACKET record, relative to what `server` expects from the peer."""
    port = wanted["port"]
    conn = server.last[port]
    value, echo = server.stamps(conn)
    octets = random.Random(conn.rcv_nxt + wanted["ahead"]).randbytes(wanted["text"])
    una, nxt = conn.snd_una, conn.snd_nxt
    ack = una + int((nxt - una) * wanted["share"]) + wanted["more"]
    blocks = ((server.acknowledgment(conn, una + (nxt - una) // 2), server.acknowledgment(conn, nxt)),)
    made = {
        "none": Options(), "plain": Options(timestamps=(value, echo)), "old": Options(timestamps=(value - 5000, echo)),
        "no echo": Options(timestamps=(value, 0)), "strange echo": Options(timestamps=(value, echo - (1 << 23))),
        "block": Options(timestamps=(value, echo), sack=blocks), "mss": Options(500),
        "duplicate": Options(timestamps=(value, echo), sack=((server.acknowledgment(conn, una - 10),
                                                              server.acknowledgment(conn, una)),)),
        "usual": Options(timestamps=(value, echo) if conn.timestamps_ok else None), "reordered": Options(),
    }[wanted["options"]]
    stamps = made.timestamps
    if stamps is not None:
        made = made._replace(timestamps=(stamps[0] & 0xFFFFFFFF, stamps[1] & 0xFFFFFFFF))
    packed = made.pack()
    if wanted["options"] == "reordered":  # timestamps before the padding
        packed = Options(timestamps=(value, echo)).pack()
        packed = packed[2:] + packed[:2]
    record = packet(Segment(port, PORT, (ISN + conn.rcv_nxt + wanted["ahead"]) & 0xFFFFFFFF,
                            server.acknowledgment(conn, ack), wanted["flags"], wanted["window"], 3, payload=octets,
                            packed=packed), wanted["head"], wanted["tos"], wanted["ip_options"])
    return record[: len(record) - wanted["cut"]]


def goes_on(servers: tuple[Server, Server], step: tuple[str, object]) -> list[object]:
    """Both do the same; what comes of it."""
    kind, wanted = step
    first = servers[0]
    match kind:
        case "hear":
            records, ahead = [], Counter[int]()  # the plain ones of a turn follow each other
            for each in wanted:
                records.append(segment(first, each | {"ahead": each["ahead"] + ahead[each["port"]]}))
                ahead[each["port"]] += each["text"] * (not each["ahead"])
            return [server.hears(*records) for server in servers]
        case "write":
            records = []
            for each in wanted:
                number = each["number"]
                offset = max(0, first.last[FIRST_PEER_PORT + number].written - 1 + each["offset"])
                text = random.Random(offset).randbytes(each["text"])
                records.append(STREAM_HEADER.pack(first.handles[number], each["flags"], offset) + text)
            return [server.tells(STREAM, *records) for server in servers]
        case "read":
            number, less, flags = wanted
            taken = max(0, first.last[FIRST_PEER_PORT + number].rcv_nxt - 1 - less)
            record = READ_RECORD.pack(first.handles[number], flags, taken, taken)
            return [server.tells(READ, record) for server in servers]
        case "set":
            number, options = wanted
            record = encode(StreamState(handle=first.handles[number], request=9, **options))
            return [server.tells(messages.SOCKET_SET, record) for server in servers]
        case "close":
            number, linger = wanted
            record = CLOSE_RECORD.pack(first.handles[number], linger, 1 << 40, 1 << 40)
            return [server.tells(messages.SOCKET_CLOSE, record) for server in servers]
        case "lend":
            return [server.lends(wanted) for server in servers]
        case "restart":
            return [server.starts(2) for server in servers]
    return [server.passes(wanted) for server in servers]


syns = st.sampled_from([LINUX] * 6 + [Options(1460, 7, True), Options(1460), Options(8960, 3, False, (1, 0)),
                                      Options(None, None, True, (0xFFFFFFFF, 0))])


@settings(max_examples=300)
@given(st.lists(steps, min_size=10, max_size=40), syns,
       st.sampled_from([SYN, SYN, SYN | ECE | CWR, SYN | AE | CWR | ECE]),
       st.fixed_dictionaries({"ecn": st.sampled_from([2, 3])}, optional={
           "nodelay": st.booleans(), "receive_buffer": st.sampled_from([0, 4096])}))
def test_the_short_paths_do_the_same_as_the_general_ones(steps: list[tuple[str, object]], syn: Options, flags: int,
                                                         options: dict[str, object]) -> None:
    servers = Server(True, 2, syn, flags, **options), Server(False, 2, syn, flags, **options)
    assert differences(servers[0].known(), servers[1].known()) == []
    for step in steps:
        short, general = goes_on(servers, step)
        assert short == general
        assert differences(servers[0].known(), servers[1].known()) == []
    assert servers[0].noted() == servers[1].noted()
    assert servers[1].taken.total() == 0
