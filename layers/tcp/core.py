"""The TCP layer: RFC 9293 and its extensions and, where they leave room, the behaviour of Linux.

Owns connections, listeners and their ports. Talks to ip (segments, routes), to icmp (errors about sent segments) and to
sockets (everything else: docs/decisions/streams.md). Forgets in a crash: octets that arrived out of order, which the
peer sends again. This module translates records to calls of the engine; `layers.tcp.engine` describes a turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from struct import error as StructError  # noqa: N812

import msgspec

from bus import messages, topology
from bus.config import StackConfig
from bus.durable.held import NO_HOLDINGS
from bus.durable.stream_memory import Piece, StreamMemory
from bus.layer import CounterWords, Octets, Send, State
from bus.messages import ERROR_HEAD, ORIGIN_LOCAL, decode_routes, encode
from bus.streams import decode_stream_state
from layers.common.routes import RouteTable
from layers.common.transport import IcmpError
from layers.tcp import icmp, info, listing, recording
from layers.tcp.calls import Calls
from layers.tcp.counters import Counters as C
from layers.tcp.crowd import ALONE, FLAGS_AT, NOT_ALONE, Crowd
from layers.tcp.durable import Durable
from layers.tcp.engine import Engine
from layers.tcp.isn import KEY_OCTETS
from layers.tcp.poison import PoisonSegments
from layers.tcp.prediction import Prediction
from layers.tcp.records import VIEW_OCTETS, Paths, Records, arrival_of
from layers.tcp.successor import Successor
from packets.tcp import ACK, QUOTED
from usernet.pipe.streams import (
    ACCEPT_RECORD,
    CLOSE_RECORD,
    HELD_RECORD,
    INFO_HEADER,
    MEMORY_RECORD,
    READ_RECORD,
    STREAM_HEADER,
)

KEY_ROUTES = 0  # keys of `state`; sockets have their handles as keys
KEY_SECRET = 1 << 32
KEY_HANDLES = (1 << 32) + 1  # and the next
KEY_POISON = (1 << 32) + 3


class Core:
    """The core of tcp; see `bus.layer.Core`."""

    held: Octets = NO_HOLDINGS

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random,
                 memory: StreamMemory | None = None) -> None:
        self.next_wake: float | None = None
        self.counters = counters
        self._state = state
        self._paths = Paths(config)
        self._records = Records(config, self._paths)
        secret = state.get(KEY_SECRET)
        if secret is None or len(secret) != KEY_OCTETS:
            secret = state[KEY_SECRET] = rng.randbytes(KEY_OCTETS)
        self._durable = Durable(memory or StreamMemory.volatile(), state, KEY_HANDLES)
        self.engine = Engine(counters, self._records, self._records, self._durable, self._durable, secret)
        self.calls = Calls(self.engine, state, rng, self._paths)
        self._crowd = Crowd(self.engine, self._records)
        self._prediction = Prediction(self.engine)
        self._poison = PoisonSegments(self.engine, state, KEY_POISON)
        self._handlers: dict[int, Callable[[bytes], None]] = {
            messages.PACKET_HELD: self._packet_held,
            messages.ICMP_ERROR: self._icmp_error,
            messages.ROUTES: self._routes,
            messages.SOCKET_SET: self._set,
            messages.SOCKET_CLOSE: self._close,
            messages.STREAM: self._stream,
            messages.STREAM_HELD: self._stream_held,
            messages.STREAM_MEMORY: self._memory,
            messages.READ: self._read,
            messages.ACCEPT: self._accept,
            messages.STREAM_INFO: self._info,
        }

    def start(self, now: float) -> list[Send]:
        """Restore routes, sockets and connections of the former process."""
        self.engine.now = now
        for key in list(self._state):
            try:
                if key == KEY_ROUTES:
                    self._paths.table = RouteTable(decode_routes(self._state[key]))
                elif key < KEY_SECRET:
                    self.calls.load(key, self._state[key])
            except ValueError:
                self.counters[C.state_unreadable] += 1
                del self._state[key]
        Successor(self._durable, self.engine, self.calls).restore()
        self.calls.repeat()
        return self._done()

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process records of one kind; see the table of pipes."""
        self.engine.now = now
        if kind == messages.PACKET:
            self._packets(records)
            return self._done()
        handler = self._handlers.get(kind)
        if handler is not None:
            for record in records:
                try:
                    handler(record)
                except StructError:
                    self.counters[C.stream_malformed] += 1
        return self._done()

    def wake(self, now: float) -> list[Send]:
        """Process the timers."""
        self.engine.now = now
        self.engine.expire()
        return self._done()

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """Repeat to the socket service what it may have lost."""
        self.engine.now = now
        if sender == topology.SOCKETS:
            self.calls.repeat()
        return self._done()

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """connection_list, with `after` (a key, in hex) and `info` (true: struct tcp_info, too); connection_events,
        with `after` (a number) and `ends` (up to two pairs of address and port; see `layers.tcp.history`);
        connection_count.
        """
        self.engine.now = now
        try:
            match request.get("op"):
                case "connection_list":
                    answer = listing.page(self.engine, str(request.get("after", "")), bool(request.get("info")))
                case "connection_events":
                    ends = msgspec.convert(request.get("ends"), list[tuple[str, int]])
                    answer = self.engine.history.page(ends[:2], msgspec.convert(request.get("after"), int))
                case "connection_count":
                    answer = {"connections": listing.count(self.engine)}
                case other:
                    raise ValueError(f"tcp: unknown operation {other!r}; the operations are connection_list, "
                                     "connection_events and connection_count")
        except ValueError as error:
            answer = {"error": str(error)}
        return answer, []

    def memory_pieces(self) -> Iterable[Piece]:
        """See bus.layer.StreamCore."""
        return recording.pieces(self._durable, self.engine, Successor(self._durable, self.engine, self.calls))

    def memories(self) -> dict[int, object]:
        """See bus.layer.StreamCore."""
        return self._durable.streams.mappings

    def with_octets(self, kind: int, records: list[bytes]) -> list[tuple[int, list[bytes]]]:
        """See bus.layer.StreamCore."""
        return recording.with_octets(self.engine, kind, records)

    def record_set_aside(self, sender: int, kind: int, record: bytes, now: float) -> list[Send]:
        """See `bus.layer.PoisonCore`: a segment that killed this layer."""
        self.engine.now = now
        if kind == messages.PACKET:
            self._poison.set_aside(record)
        return self._done()

    def _done(self) -> list[Send]:
        self.engine.flush()
        self.next_wake = self.engine.next_due
        return self._records.taken()

    # -- from below

    def _packets(self, records: list[bytes]) -> None:
        self.counters[C.segments_in] += len(records)
        short = not self._poison.known
        crowd, expected = self._crowd.takes, self._prediction.takes
        for record in records:
            if short and len(record) > FLAGS_AT:
                flags = record[FLAGS_AT] & NOT_ALONE
                if (flags == ACK and expected(record)) or (flags == ALONE and crowd(record)):
                    continue
            try:
                self._packet(record)
            except StructError:
                self.counters[C.stream_malformed] += 1

    def _packet(self, record: bytes) -> None:
        if self._poison.known and self._poison.comes_again(record):
            return
        arrival = arrival_of(record, self.counters)
        if arrival is not None:
            self.engine.arrives(arrival)

    def _packet_held(self, record: bytes) -> None:
        """A segment whose text is where link has read it."""
        self.counters[C.segments_in] += 1
        found = self.held.pieces(record)
        arrival = arrival_of(found[0], self.counters, found[1][0]) if found is not None else None
        if arrival is not None:
            self.engine.text_intact = lambda: self.held.intact(record)
            self.engine.arrives(arrival)
            self.engine.text_intact = None

    def _icmp_error(self, record: bytes) -> None:
        self.counters[C.errors_in] += 1
        _, _, _, _, _, _, _, header_octets, _, source, destination = ERROR_HEAD.unpack_from(record)
        quoted = record[ERROR_HEAD.size + header_octets :]
        if len(quoted) < QUOTED.size:
            self.counters[C.error_malformed] += 1
            return
        own_port, port, sequence = QUOTED.unpack_from(quoted)
        conn = self.engine.lookup.connections.get(destination + source + port + own_port)
        if conn is None:
            self.counters[C.error_no_connection] += 1
            return
        error, handle, options = IcmpError.of(record), conn.handle, conn.options
        local = error.origin == ORIGIN_LOCAL
        if not icmp.error(self.engine, conn, error.icmp_type, error.code, error.info, sequence, local):
            return
        self._records.sends += error.mtu_told(options)  # ip stores path MTUs for all layers (RFC 1191 section 4)
        if handle and options.receive_errors:  # ip(7), IP_RECVERR
            number = error.errno_for(options, True)
            self._records.sends.append(error.told(handle, number, int.from_bytes(port, "big"), quoted[:548]))

    def _routes(self, record: bytes) -> None:
        try:
            self._paths.table = RouteTable(decode_routes(record))
        except ValueError:
            self.counters[C.control_malformed] += 1
            return
        self._state[KEY_ROUTES] = record

    # -- from above

    def _set(self, record: bytes) -> None:
        try:
            reply = self.calls.set(decode_stream_state(record))
        except ValueError:
            reply = None
        if reply is None:
            self.counters[C.control_malformed] += 1
            return
        self.counters[C.sets] += 1
        self.counters[C.set_refused] += reply.errno != 0
        self._records.sends.append((topology.SOCKETS, messages.SOCKET_REPLY, encode(reply)))

    def _close(self, record: bytes) -> None:
        handle, linger, end, taken = CLOSE_RECORD.unpack(record)
        self.counters[C.closes] += self.calls.close(handle, linger, end, taken)

    def _stream(self, record: bytes) -> None:
        handle, flags, offset = STREAM_HEADER.unpack_from(record)
        octets = record[STREAM_HEADER.size :] if len(record) < VIEW_OCTETS else memoryview(record)[STREAM_HEADER.size :]
        self.calls.stream(handle, flags, offset, octets)

    def _stream_held(self, record: bytes) -> None:
        self.calls.stream_held(*HELD_RECORD.unpack(record))

    def _memory(self, record: bytes) -> None:
        self.calls.memory(*MEMORY_RECORD.unpack(record))

    def _read(self, record: bytes) -> None:
        self.calls.read(*READ_RECORD.unpack(record))

    def _accept(self, record: bytes) -> None:
        handle, _, taken, limit = ACCEPT_RECORD.unpack(record)
        self.calls.accept(handle, taken, limit)

    def _info(self, record: bytes) -> None:
        handle = INFO_HEADER.unpack(record)[0]
        engine = self.engine
        conn = engine.lookup.by_handle.get(handle)
        answer = record if conn is None else record + info.header(engine, conn) + info.tcp_info(engine, conn)
        self._records.sends.append((topology.SOCKETS, messages.STREAM_INFO, answer))
