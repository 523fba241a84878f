"""Whatever comes from the wire or from an application, the core does not raise, and what it holds is bounded."""

from __future__ import annotations

import random

import pytest

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import ERROR_HEAD, PACKET_HEAD, TRANSMIT_HEAD, encode
from bus.streams import StreamState
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from packets.tcp import FIN, RST, SYN, Options, Segment, parse
from tests.unit.tcp.host import A, B
from usernet.pipe.streams import (
    ACCEPT,
    ACCEPT_RECORD,
    ACCEPTED_HEADER,
    CLOSE_RECORD,
    READ,
    READ_RECORD,
    STREAM,
    STREAM_HEADER,
    STREAM_INFO,
)

INTERESTING = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65535, 65536, 1460)


class Fuzzer:
    """A core with a listener and connections in all states, and a peer that says anything."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        config = StackConfig(name="t", run_dir="", address=B, prefix=24, mac=bytes(6))
        self.core = Core(config, {}, Counters.new(), random.Random(seed))
        self.now = 1000.0
        self.core.start(self.now)
        self.known: list[Segment] = []  # what the core sent last
        self.handles = [5]
        self.tell(messages.SOCKET_SET, encode(StreamState(handle=5, request=1, port=80, bind=True, listen=50)))

    def take(self, sends: list) -> None:
        for _, kind, record in sends:
            if kind == messages.TRANSMIT:
                parsed = parse(record[TRANSMIT_HEAD.size :])
                assert parsed is not None
                self.known = [*self.known[-30:], parsed]
            elif kind == messages.ACCEPTED:
                _, handle, number, *_ = ACCEPTED_HEADER.unpack_from(record)
                self.handles = [*self.handles[-30:], handle]
                self.tell(ACCEPT, ACCEPT_RECORD.pack(5, 0, number, number + 50))

    def tell(self, kind: int, record: bytes) -> None:
        self.take(self.core.receive(topology.SOCKETS, kind, [record], self.now))

    def number(self) -> int:
        rng = self.rng
        if self.known and rng.random() < 0.8:
            about = rng.choice(self.known)
            base = rng.choice((about.sequence, about.acknowledgment, about.sequence + len(about.payload)))
        else:
            base = rng.choice(INTERESTING)
        return (base + rng.choice((0, 0, 0, 1, -1, 2, 100, -100, 65535, 1 << 31))) & 0xFFFFFFFF

    def segment(self) -> None:
        rng = self.rng
        about = rng.choice(self.known) if self.known and rng.random() < 0.9 else None
        ports = (about.destination_port, about.source_port) if about else (rng.randrange(1, 50), 80)
        flags = rng.choice((16, 16, 16, 24, SYN, SYN | 16, FIN | 16, RST, RST | 16, 32 | 16, rng.randrange(256)))
        if about is None:
            flags = SYN
        options = Options(rng.choice((None, 0, 1, 536, 1460, 65535)), rng.choice((None, 0, 7, 14)), rng.random() < 0.5,
                          (self.number(), self.number()) if rng.random() < 0.4 else None)
        if rng.random() < 0.3:
            options = Options(sack=tuple((self.number(), self.number()) for _ in range(rng.randrange(1, 4))))
        text = rng.randbytes(rng.choice((0, 0, 0, 1, 10, 536, 1460, 9000)))
        octets = Segment(*ports, self.number(), self.number(), flags, rng.choice((0, 1, 100, 65535)),
                         rng.choice((0, 0, 1, 65535)), options, text).pack()
        if rng.random() < 0.1:
            octets = bytes(octet ^ (rng.random() < 0.02) << rng.randrange(8) for octet in octets)
        if rng.random() < 0.05:
            octets = octets[: rng.randrange(len(octets) + 1)]
        head = PACKET_HEAD.pack(1, 4, 2, 20, rng.choice((0, 0, 536)), 6, 64, rng.randrange(4), A, B) + bytes(20)
        self.take(self.core.receive(topology.IP, messages.PACKET, [head + octets], self.now))

    def application(self) -> None:
        rng = self.rng
        handle = rng.choice((*self.handles, rng.randrange(1, 9)))
        total = rng.choice((0, 1, 100, 5000, (1 << 64) - 1, rng.randrange(1 << 16)))
        choice = rng.randrange(8)
        if choice == 0:
            self.tell(READ, READ_RECORD.pack(handle, rng.randrange(2), total, total))
        elif choice in (1, 2, 3):
            conn = self.core.engine.lookup.by_handle.get(handle)
            offset = conn.written - 1 if conn is not None and rng.random() < 0.8 else total
            text = rng.randbytes(rng.choice((0, 1, 3000, 65536)))
            self.tell(STREAM, STREAM_HEADER.pack(handle, rng.choice((0, 0, 0, 1, 2, 4, 7)), offset) + text)
        elif choice == 4:
            self.tell(messages.SOCKET_CLOSE, CLOSE_RECORD.pack(handle, rng.choice((-1, 0, 5)), total, total))
        elif choice == 5:
            self.tell(STREAM_INFO, STREAM_HEADER.pack(rng.choice((handle, 0)), 0, 1))
        elif choice == 6:
            fields = {"nodelay": rng.random() < 0.5, "cork": rng.random() < 0.5, "keepalive": rng.random() < 0.5,
                      "receive_buffer": rng.choice((0, 4096)), "maxseg": rng.choice((0, 88)),
                      "port": rng.choice((0, 80)), "listen": rng.choice((-1, -1, -1, 50))}
            self.tell(messages.SOCKET_SET, encode(StreamState(
                handle=handle, request=rng.randrange(99), connect=rng.choice((0, rng.randrange(99))),
                peer=A, peer_port=rng.randrange(3), **fields)))
        else:
            kind = rng.choice((READ, STREAM, ACCEPT, messages.SOCKET_SET, messages.SOCKET_CLOSE, STREAM_INFO))
            self.tell(kind, rng.randbytes(rng.randrange(40)))
        if 5 not in self.core.engine.lookup.listeners:
            self.tell(messages.SOCKET_SET, encode(StreamState(
                handle=rng.randrange(100, 1 << 30), request=1, port=80, bind=True, listen=50, reuse_address=True)))

    def error(self) -> None:
        rng = self.rng
        if self.known:
            quoted = rng.choice(self.known).pack()[: rng.choice((8, 20, 100))]
            head = ERROR_HEAD.pack(rng.choice((3, 11, 12, 4)), rng.randrange(17), rng.choice((1, 2)), 4,
                                   rng.choice((0, 100, 576, 1400)), 1500, 6, 20, A, B, A)
            record = (head + bytes(20) + quoted)[: rng.choice((10, 1000, 1000))]
            self.take(self.core.receive(topology.IP, messages.ICMP_ERROR, [record], self.now))

    def step(self) -> None:
        self.rng.choices((self.segment, self.application, self.error), (8, 4, 1))[0]()
        self.now += self.rng.choice((0, 0, 0.0001, 0.01, 0.3, 3.0))
        for _ in range(50):
            if self.core.next_wake is None or self.core.next_wake > self.now:
                break
            self.take(self.core.wake(self.now))
        else:
            raise AssertionError("a timer that does nothing")


@pytest.mark.parametrize("seed", range(12))
def test_no_octets_kill_the_core_and_a_successor_takes_up_what_there_is(seed):
    fuzzer = Fuzzer(seed)
    for _ in range(1500):
        fuzzer.step()
    engine = fuzzer.core.engine
    for conn in engine.lookup.connections.values():
        assert conn.snd_una <= conn.snd_nxt <= conn.written + (conn.end is not None)
        assert conn.read <= max(conn.rcv_nxt, 1)
        assert conn.advertised >= conn.rcv_nxt - 1
        assert len(conn.out_of_order or ()) <= 64
