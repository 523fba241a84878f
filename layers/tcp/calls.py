"""The calls of applications (RFC 9293 sections 3.10.1 to 3.10.6), as records of the socket service.

OPEN is a SOCKET_SET with `listen` or `connect`, SEND is STREAM, RECEIVE is READ, CLOSE is STREAM with STREAM_END or
SOCKET_CLOSE, ABORT is SOCKET_CLOSE with linger 0. Each may be repeated: an effect that has happened is not repeated.
"""

from __future__ import annotations

import errno
import random
from collections.abc import MutableMapping

import msgspec

from bus.messages import FAMILY_4, SocketReply, decoder, encode, in_range
from bus.streams import StreamState
from layers.tcp import acknowledgment, closing, congestion, history, listen, writing
from layers.tcp.connect import Connects, Paths
from layers.tcp.connection import CLOSED, ESTABLISHED, ORPHAN, SYN_RECEIVED, SYN_SENT, TIME_WAIT, Connection
from layers.tcp.counters import Counters as C
from layers.tcp.engine import REPEATED_AT_ONCE, Engine
from layers.tcp.listen import Listener
from layers.tcp.lookup import Claim
from packets.addresses import ANY
from usernet.pipe.rings import REFERENCE_MASK
from usernet.pipe.streams import HANDLE_END, RESUME, STREAM_END, STREAM_MORE, STREAM_URGENT, WRITTEN_UNKNOWN

KEY_CREDIT = 1 << 34  # + a listener's handle, in `state`: numbers of connections passed up, taken, and permitted


class Socket(msgspec.Struct, frozen=True, omit_defaults=True):
    """The declared socket, and its connection or listener."""

    declared: StreamState
    local: bytes = ANY
    port: int = 0
    failed: int = 0  # errno of its former connection


_decode_socket = decoder(Socket)


class Calls:
    """The sockets by handle, in memory and in `state`."""

    def __init__(self, engine: Engine, state: MutableMapping[int, bytes], rng: random.Random, paths: Paths) -> None:
        self._engine = engine
        self._state = state
        self._connects = Connects(engine, rng, paths)
        self._paths = paths
        self.sockets: dict[int, Socket] = {}
        # (time of a turn, {handle: from where it has repeated octets})
        self._resumed: tuple[float, dict[int, int]] = -1.0, {}
        engine.remember_failure = self.failed
        engine.repeat = self._repeat

    # -- OPEN and options -----------------------------------------------------------------------------------------

    def load(self, handle: int, stored: bytes) -> None:
        """Restore a socket of a former process. ValueError: invalid."""
        socket = _decode_socket(stored)
        self.sockets[handle] = socket
        if socket.port:
            self._hold(socket, automatic=bool(socket.declared.connect) and not socket.declared.bind)
        if socket.declared.listen >= 0:
            listener = Listener(handle, socket.local, socket.port, socket.declared)
            self._engine.lookup.add_listener(listener)
            credit = self._state.get(KEY_CREDIT + handle, b"").split()
            if len(credit) == 3:
                listener.handed, listener.taken, listener.limit = map(int, credit)

    def set(self, wanted: StreamState) -> SocketReply | None:
        """SOCKET_SET: change the socket and store it, or refuse and return the reason.

        None: the declaration is unusable.
        """
        handle = wanted.handle
        if not in_range(wanted) or handle >= HANDLE_END:
            return None
        before = self.sockets.get(handle) or self._accepted(handle)
        try:
            socket = self._settle(wanted, before)
        except OSError as error:
            return SocketReply(handle=handle, request=wanted.request, errno=error.errno or errno.EINVAL)
        self.sockets[handle] = socket
        self._state[handle] = encode(socket)
        return SocketReply(handle=handle, request=wanted.request, port=socket.port, local=socket.local)

    def _accepted(self, handle: int) -> Socket | None:
        conn = self._engine.lookup.by_handle.get(handle)
        return None if conn is None else Socket(msgspec.structs.replace(
            conn.options, handle=handle, listen=-1, connect=0), conn.ends.local, conn.ends.port)

    def _settle(self, wanted: StreamState, before: Socket | None) -> Socket:
        engine, handle = self._engine, wanted.handle
        if wanted.family != FAMILY_4:
            raise OSError(errno.EAFNOSUPPORT, "IPv4 only")
        if congestion.find(wanted.congestion) is None:
            raise OSError(errno.ENOENT, "no such congestion control")  # tcp(7), TCP_CONGESTION
        conn = engine.lookup.by_handle.get(handle)
        former = before
        if before is not None and before.declared.connect and wanted.connect != before.declared.connect:
            if conn is None:
                before = None  # its connection has ended: as Linux, only what the application chose is kept
            elif not wanted.connect:
                raise OSError(errno.EINVAL, "connected")  # bind, listen: Linux, inet_bind_sk, __inet_listen_sk
        local = wanted.local or (before.local if before is not None else ANY)
        if local and not self._paths.is_local(local):
            raise OSError(errno.EADDRNOTAVAIL, "not an address of this stack")
        fresh = bool(wanted.connect) and (before is None or before.declared.connect != wanted.connect)
        port = (before.port if before is not None else 0) or wanted.port
        if wanted.port and before is not None and before.port and before.port != wanted.port:
            raise OSError(errno.EINVAL, "bound already")
        bind = wanted.bind or wanted.port or wanted.listen >= 0
        if bind and conn is None:
            listening = wanted.listen >= 0
            claim = Claim(local, wanted.reuse_address, wanted.reuse_port, listening)
            bound = before is not None and before.port == port and before.local == local and (
                before.declared.listen >= 0) == listening
            if not port:
                port = self._connects.free_port()
            elif not bound and engine.lookup.ports.clashes(handle, port, claim):
                raise OSError(errno.EADDRINUSE, "the port is in use")
        elif fresh and conn is not None and self._began(conn, wanted, before):
            fresh, local, port = False, conn.ends.local, conn.ends.port
        elif fresh and conn is not None:
            raise OSError(errno.EISCONN if conn.state not in (SYN_SENT, SYN_RECEIVED) else errno.EALREADY, "connected")
        if fresh:
            local, port = self._connects.connect(wanted, local, port)
        socket = Socket(wanted, local, port, 0 if fresh or before is None else before.failed)
        if former is not None and former.port and former.port != port:
            engine.lookup.ports.release(handle, former.port)
        if port:
            self._hold(socket, automatic=fresh and not bind)
        self._listen(socket)
        conn = engine.lookup.by_handle.get(handle)
        if conn is not None:
            self._adjust(conn, wanted)
        return socket

    @staticmethod
    def _began(conn: Connection, wanted: StreamState, before: Socket | None) -> bool:
        """True if the turn of this very connect stored the connection and was then cut short by a SIGKILL."""
        return (not conn.listener and conn.ends.peer_port == wanted.peer_port and wanted.peer in (b"", conn.ends.peer)
                and (before is None or not before.declared.connect or before.failed != 0))

    def _hold(self, socket: Socket, automatic: bool = False) -> None:
        declared = socket.declared
        self._engine.lookup.ports.hold(declared.handle, socket.port, Claim(
            socket.local, declared.reuse_address, declared.reuse_port, declared.listen >= 0, automatic))

    def _listen(self, socket: Socket) -> None:
        lookup, declared = self._engine.lookup, socket.declared
        listener = lookup.listeners.get(declared.handle)
        if declared.listen < 0:
            if listener is not None:
                listen.close(self._engine, listener)
                lookup.remove_listener(listener)
        elif listener is None:
            lookup.add_listener(Listener(declared.handle, socket.local, socket.port, declared))
        else:
            listener.options = declared

    def _adjust(self, conn: Connection, wanted: StreamState) -> None:
        """Change the options of an existing connection."""
        engine, before = self._engine, conn.options
        conn.options = wanted
        if wanted.keepalive != before.keepalive or wanted.keepidle != before.keepidle:
            conn.keepalive_at = conn.last_heard + wanted.keepidle if wanted.keepalive else None
            engine.timers.schedule(conn)
        if wanted.receive_buffer != before.receive_buffer and wanted.receive_buffer:
            conn.rcv_limit = acknowledgment.initial_limit(conn)
            if not conn.own_scale:
                conn.rcv_limit = min(conn.rcv_limit, acknowledgment.UNSCALED_LIMIT)
        if wanted.send_buffer != before.send_buffer and wanted.send_buffer:
            conn.send_limit = max(wanted.send_buffer // 2, conn.mss)
        if wanted.maxseg and wanted.maxseg < conn.mss and conn.state not in (SYN_SENT, CLOSED):
            closing.lower_mss(engine, conn, wanted.maxseg)
        if wanted.quickack:
            conn.quick, conn.pingpong = acknowledgment.QUICK_ACKS, False
            conn.ack_now = conn.ack_now or conn.ack_due > 0
        if wanted.congestion != before.congestion and conn.recovery is not None:
            conn.recovery.use(wanted.congestion)
        if before.cork and not wanted.cork:
            conn.cork_at = None
        engine.touch(conn)

    # -- SEND, RECEIVE, CLOSE, ABORT ------------------------------------------------------------------------------

    def stream(self, handle: int, flags: int, offset: int, octets: bytes | memoryview) -> None:
        """STREAM: SEND, and with STREAM_END CLOSE of the sending direction."""
        self._send(handle, flags, offset, len(octets), octets, 0)

    def stream_held(self, handle: int, flags: int, offset: int, length: int, reference: int) -> None:
        """STREAM_HELD: the same with octets that the application has written into the ring."""
        self._send(handle, flags, offset, length, None, reference)

    def memory(self, handle: int, home: int, token: int) -> None:
        """STREAM_MEMORY: the application offers its memory for the octets of a connection."""
        engine = self._engine
        conn = engine.lookup.by_handle.get(handle)
        if conn is None or conn.state in (SYN_SENT, SYN_RECEIVED):
            engine.counters[C.stream_no_socket] += 1
        elif not engine.rings.lends(home, token):
            engine.counters[C.memory_refused] += 1
        else:
            writing.lend(engine, conn, home)

    def _send(self, handle: int, flags: int, offset: int, length: int, octets: bytes | memoryview | None,
              reference: int) -> None:
        engine = self._engine
        try:  # a look-up by `get` costs more (`layers.tcp.dormant`)
            conn = engine.lookup.by_handle[handle]
        except KeyError:
            engine.counters[C.stream_no_socket] += 1
            return
        number = offset + 1
        ring = conn.send_ring
        elsewhere = octets is None and (ring is None or ring.home == 0 or ring.reference & REFERENCE_MASK != reference)
        if number > conn.written or elsewhere:
            if conn.gap_told != conn.written:  # once for each gap: ask for the octets again
                conn.gap_told = conn.written
                engine.counters[C.stream_gap] += 1
                engine.room(conn, resume=True)
            return
        limit = conn.end if conn.end is not None else conn.room_said
        if number + length > limit and conn.end is None:
            limit = max(limit, conn.snd_una + conn.buffer_octets)
        if number + length > limit:
            engine.counters[C.stream_over] += 1
            length = max(0, limit - number)
            flags &= ~STREAM_END
            octets = octets[:length] if octets is not None else None
        if not (writing.written_in_ring(engine, conn, number, length) if octets is None
                else writing.write(engine, conn, number, octets)):
            engine.counters[C.no_memory] += 1
            engine.room(conn, resume=True)
            return
        end = number + length
        if flags & STREAM_URGENT and length:
            conn.snd_urgent = max(conn.snd_urgent, end)
        if end == conn.written:
            conn.more = bool(flags & STREAM_MORE)
            if not conn.more and not conn.options.cork:
                conn.cork_at = None
        if flags & STREAM_END and end == conn.written:
            closing.end_stream(engine, conn)

    def read(self, handle: int, flags: int, taken: int, have: int) -> None:
        """READ: RECEIVE."""
        engine = self._engine
        if not flags & RESUME and engine.dormant is not None and handle in engine.dormant.by_handle:
            return  # nothing is unread
        conn = engine.lookup.by_handle.get(handle)
        if conn is None:
            socket = self.sockets.get(handle) if flags & RESUME else None
            if socket is not None and socket.failed:
                engine.above.reset(handle, socket.failed)
            else:
                engine.counters[C.stream_no_socket] += 1
            return
        number = min(taken + 1, conn.rcv_nxt)
        if number > conn.read:
            acknowledgment.was_read(engine, conn, number)
            engine.touch(conn)
        if flags & RESUME and conn.state not in (SYN_SENT, SYN_RECEIVED):
            engine.room(conn, resume=True)
            start = max(have + 1, conn.read)
            if self._resumed[0] != engine.now:
                self._resumed = engine.now, {}
            if start < self._resumed[1].get(handle, start + 1):  # otherwise they were sent in this turn already
                self._resumed[1][handle] = start
                self.resume(conn, start)

    def resume(self, conn: Connection, start: int) -> None:
        """Send everything from `start` on up again."""
        engine = self._engine
        engine.told(conn, start)
        if conn.urgent:
            engine.urgent(conn)
        if conn.fin_at is not None and conn.rcv_nxt > conn.fin_at:
            engine.ended(conn)

    def accept(self, handle: int, taken: int, limit: int) -> None:
        """ACCEPT: the number of connections that may be passed up."""
        listener = self._engine.lookup.listeners.get(handle)
        if listener is not None:
            listen.credit(self._engine, listener, taken, limit)
            self._state[KEY_CREDIT + handle] = b"%d %d %d" % (listener.handed, listener.taken, listener.limit)

    def close(self, handle: int, linger: int, end: int, taken: int) -> bool:
        """SOCKET_CLOSE: CLOSE, or ABORT with linger 0."""
        engine = self._engine
        conn = engine.lookup.by_handle.get(handle)  # with the options that were declared, also if it was dormant
        socket = self.sockets.pop(handle, None)
        if socket is not None:
            self._state.pop(handle, None)
            self._state.pop(KEY_CREDIT + handle, None)
        listener = engine.lookup.listeners.get(handle)
        if listener is not None:
            listen.close(engine, listener)
            engine.lookup.remove_listener(listener)
        port = socket.port if socket is not None else conn.ends.port if conn is not None else 0
        if conn is not None:
            self._close(conn, linger, end, taken)
        if port:
            engine.lookup.ports.release(handle, port)
        engine.rings.closed(handle)
        return socket is not None or conn is not None

    def _close(self, conn: Connection, linger: int, end: int, taken: int) -> None:
        engine = self._engine
        if linger == 0:
            closing.abort(engine, conn)
            return
        if conn.state in (ESTABLISHED, SYN_RECEIVED) or conn.end is None:
            ring = conn.send_ring
            if ring is not None and ring.home and conn.end is None:
                # what it wrote counts as sent, even if no record about it has arrived
                final = min(engine.rings.written(ring) + 1, conn.room_said)
                writing.written_in_ring(engine, conn, conn.written, max(0, final - conn.written))
            if conn.end is None and conn.written <= end < WRITTEN_UNKNOWN:
                # lost on their way, and there is no application to send them again: a peer must not take a part for all
                engine.counters[C.closes_incomplete] += 1
                engine.history.note(engine.now, conn, history.INCOMPLETE)
                closing.abort(engine, conn)
                return
            closing.end_stream(engine, conn)
        closing.orphaned(engine, conn, taken + 1)

    # -- the socket service starts ----------------------------------------------------------------------------------

    def repeat(self) -> None:
        """Repeat everything that the socket service may have lost."""
        engine = self._engine
        for listener in engine.lookup.listeners.values():
            for number, (handle, ends) in listener.untaken.items():
                engine.above.accepted(listener.handle, handle, number, ends)
        for handle, socket in self.sockets.items():
            if socket.failed:
                engine.above.reset(handle, socket.failed)
        dormant = engine.dormant
        handles = (*engine.lookup.by_handle, *(dormant.by_handle if dormant is not None else ()))
        engine.repetition.replace(handles, engine.now)
        engine.go_on(REPEATED_AT_ONCE)

    def _repeat(self, handle: int) -> None:
        """Repeat the state of one connection, which need not be woken for it unless it has an option."""
        engine, dormant = self._engine, self._engine.dormant
        note = dormant.by_handle.get(handle) if dormant is not None else None
        socket = self.sockets.get(handle)
        if dormant is not None and note is not None and not (socket and socket.declared.notsent_lowat):
            written, una, limit, finished, fin_at = dormant.slots.told_of(note)
            dormant.told_limit(handle, limit - una)
            engine.above.room(handle, 1 | finished << 1, written - 1, min(max(una, 1), written) - 1, limit - 1)
            if fin_at:
                engine.above.stream(handle, STREAM_END, fin_at - 1, b"")
        elif (conn := engine.lookup.by_handle.get(handle)) is not None:
            self.repeat_state(conn)

    def repeat_state(self, conn: Connection) -> None:
        """Repeat the state of one connection."""
        if conn.state not in (SYN_SENT, SYN_RECEIVED):
            self._engine.room(conn, resume=True)
            self.resume(conn, conn.read)

    def resumed(self, conn: Connection) -> None:
        """A connection of a former process was restored."""
        lookup = self._engine.lookup
        options = conn.options
        lookup.ports.hold(conn.handle or conn, conn.ends.port, Claim(
            conn.ends.local, options.reuse_address, options.reuse_port, False, conn.automatic))
        listener = lookup.listeners.get(conn.listener)
        if listener is not None and conn.accept_number:
            listener.handed = max(listener.handed, conn.accept_number)
            if conn.accept_number > listener.taken and conn.handle != ORPHAN:
                listener.untaken[conn.accept_number] = conn.handle, conn.ends
        if options.keepalive and conn.state not in (SYN_SENT, SYN_RECEIVED, TIME_WAIT):
            conn.keepalive_at = self._engine.now + options.keepidle

    def failed(self, handle: int, number: int) -> None:
        """The connection of a socket has ended: remember the errno until the socket is closed."""
        socket = self.sockets.get(handle) or self._accepted(handle)
        if socket is not None:
            self.sockets[handle] = socket = msgspec.structs.replace(socket, failed=number)
            self._state[handle] = encode(socket)
