"""Stream sockets: TCP, as in tcp(7) and the standard module. `usernet.sockets.opening` has connections' beginnings."""

from __future__ import annotations

import errno
import socket as _std
import struct
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from usernet.client.readiness import Descriptor, StreamDescriptor
from usernet.client.streams import OFFER_AFTER_OCTETS, OFFER_OCTETS, StreamDescription
from usernet.errors import os_error, timed_out, would_block
from usernet.pipe.streams import INFO_ANSWER, READ, STREAM_MORE, STREAM_URGENT
from usernet.sockets import cmsg
from usernet.sockets.arguments import as_int, contiguous
from usernet.sockets.base import _KERNEL_SOCKET, SIZE_SURE, Received, into, judged
from usernet.sockets.datagrams import Address
from usernet.sockets.opening import StreamOpening
from usernet.sockets.sockaddr import parse

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TCP_INFO = 11  # linux/tcp.h
_PEEK, _DONTWAIT, _WAITALL = int(_std.MSG_PEEK), int(_std.MSG_DONTWAIT), int(_std.MSG_WAITALL)
_CTRUNC = int(_std.MSG_CTRUNC)
_FASTOPEN = 0x20000000  # linux/socket.h: MSG_FASTOPEN
FAST_OPEN_OCTETS = 1400  # of a first SYN at most: less than a segment, and tcp has room for it
_TRUNC, _OOB, _ERRQUEUE, _MORE = int(_std.MSG_TRUNC), int(_std.MSG_OOB), int(_std.MSG_ERRQUEUE), int(_std.MSG_MORE)


class StreamBehaviour(StreamOpening):
    """See the module's docstring."""

    __slots__ = ()

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Send as much of `data` as there is room for, at least one octet; returns the number."""
        if data.__class__ is bytes and len(data) < OFFER_OCTETS:
            return self._send_octets(data, as_int(flags))
        with _view(data) as view:
            return self._send_octets(view, as_int(flags))

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """Send all of it; the socket's timeout is for the whole call."""
        flags, sent = as_int(flags), 0
        deadline = None if self._timeout is None else monotonic() + self._timeout
        if data.__class__ is bytes and len(data) < OFFER_OCTETS:
            sent = self._send_octets(data, flags, deadline)
            if sent == len(data):
                return
        with _view(data) as view:
            while True:
                with view[sent:] as rest:
                    sent += self._send_octets(rest, flags, deadline)
                if sent == len(view):
                    return

    def sendto(self, data: bytes, /, *arguments: Any) -> int:
        """As send. With MSG_FASTOPEN: connect to the address, and send with the SYN where the peer permits it."""
        if len(arguments) not in (1, 2):
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(arguments)} given)")
        octets, port = parse(arguments[-1], "sendto", self._resolving())
        flags = as_int(arguments[0]) if len(arguments) == 2 else 0
        with _view(data) as view:
            if flags & _FASTOPEN:
                return self._send_opening(view, flags, (_std.inet_ntoa(octets), port))
            return self._send_octets(view, flags)

    def sendmsg(
        self, buffers: Iterable[bytes], ancdata: Iterable[tuple[int, int, bytes]] = (), flags: int = 0,
        address: Address | None = None, /,
    ) -> int:
        """As send, from several buffers. There is no ancillary data for streams."""
        data, controls, flags = self._message(buffers, ancdata, flags, address)
        octets, port = (b"", 0) if address is None else parse(address, "sendmsg", self._resolving())
        for level, kind, _ in controls:
            if level == _std.SOL_SOCKET and (level, kind) not in cmsg.IGNORED:
                raise os_error(errno.EINVAL)  # Linux sock_cmsg_send; other levels are ignored
        if flags & _FASTOPEN and address is not None:
            return self._send_opening(memoryview(data), flags, (_std.inet_ntoa(octets), port))
        return self._send_octets(memoryview(data), flags)

    def _send_opening(self, view: memoryview | bytes, flags: int, peer: tuple[str, int]) -> int:
        """Connect with Fast Open (RFC 7413): the first octets go to tcp before the connection is established."""
        box = self._stream
        if box.listening or box.established or (box.connecting and not box.reset):
            raise os_error(errno.EISCONN if not box.connecting else errno.EALREADY)
        if not view:
            return 0
        with box.writing:
            self._begin_connect(box, *peer, fast_open=True)
            if box.limit < FAST_OPEN_OCTETS:  # else nothing is stored: another thread may be taking a ROOM
                box.limit = FAST_OPEN_OCTETS
            octets, kind, record = box.write(view, STREAM_MORE if flags & _MORE else 0)
            self._send_record(box, octets, kind, record, self._timeout)
        self._changed(box)
        if self._timeout != 0 and not flags & _DONTWAIT:
            self._await(lambda: box.established or bool(box.reset), writing=True)
            self._outcome(box)
        return octets

    def sendmany(self, datagrams: object) -> int:
        """ValueError for stream sockets."""
        raise ValueError("only SOCK_DGRAM type sockets are supported")

    def _send_octets(self, view: memoryview | bytes, flags: int, deadline: float | None = None) -> int:
        """`view`: not bytes if they are many, because each part that is sent would be a copy."""
        box = self._taken()
        timeout = 0.0 if flags & _DONTWAIT else self._timeout
        if box.deferred is not None and view:
            return self._send_opening(view, flags, box.deferred)
        while True:
            self._check_writable(box)
            if not view:
                return 0
            if len(view) >= OFFER_OCTETS and box.established and not box.offered:
                self._connection.share(box)
            with box.writing:
                if box.established and box.limit > box.written:
                    asked = flags and (STREAM_MORE if flags & _MORE else 0) | (STREAM_URGENT if flags & _OOB else 0)
                    octets, kind, record = box.write(view, asked)
                    self._send_record(box, octets, kind, record, timeout)
                    if box.descriptors and not box.writable():  # else they show that already
                        self._changed(box)
                    return octets
            if deadline is not None and timeout != 0:
                self._await_until(box, deadline)
            else:
                self._await(box.writable, flags, writing=True)

    def _await_until(self, box: StreamDescription, deadline: float) -> None:
        left = deadline - monotonic()
        if left <= 0:
            raise timed_out()
        self._connection.readers.wait(box, left, box.writable)

    def _send_record(self, box: StreamDescription, octets: int, kind: int, record: bytes,
                     timeout: float | None) -> None:
        try:
            self._connection.glance()
            self._connection.send(kind, (record,), timeout)
        except BaseException as error:
            undone = box.unwrite(octets)
            if undone or not isinstance(error, BlockingIOError | TimeoutError):
                raise

    def _check_writable(self, box: StreamDescription) -> None:
        if box.error or self._connection.down:
            self._raise_error(box)
        if box.shut_for_writing or box.reset or not (box.established or box.connecting):
            raise os_error(errno.EPIPE)

    # -- receiving ------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Up to `bufsize` octets; empty at the end of the stream."""
        if flags or flags.__class__ is not int or bufsize.__class__ is not int or not 0 < bufsize < SIZE_SURE:
            bufsize, flags = judged(bufsize, flags, "recv")
            if not bufsize:
                return b""
        return self._receive_octets(bufsize, flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """As recv; the address in the result is None, as with the standard module."""
        bufsize, flags = judged(bufsize, flags, "recvfrom")
        return self._receive_octets(bufsize, flags), None

    def _receive_into(self, buffer: ReadableBuffer, nbytes: int, flags: int, caller: str) -> tuple[int, bytes]:
        view, nbytes, flags = into(buffer, nbytes, flags, caller)
        with view:
            if not view:
                return 0, b""
            data = self._receive_octets(nbytes, flags)
            if not flags & _TRUNC:
                view[: len(data)] = data
        return len(data), b""

    def _receive_parts(self, bufsize: int, ancbufsize: int, flags: int) -> tuple[int, bytes, list[Any], int, None]:
        data = self._receive_octets(bufsize, flags)
        box, told, controls = self._stream, flags & _OOB, list[cmsg.Control]()
        if box.tells_unread:
            self._connection.look()
            controls, cut = cmsg.fit(cmsg.unread_told(box.unread_hint), ancbufsize)
            told |= _CTRUNC if cut else 0
        return len(data), data, controls, told, None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Received:
        """As recv; with TCP_INQ the ancillary data say how many octets wait after those in the result."""
        return super().recvmsg(bufsize, ancbufsize, flags)

    def recvmany(self, count: int, bufsize: int = 65535) -> list[tuple[bytes, Address]]:
        """ValueError for stream sockets."""
        raise ValueError("only SOCK_DGRAM type sockets are supported")

    def _receive_octets(self, count: int, flags: int) -> bytes:
        box = self._taken()
        if flags and flags & (_OOB | _ERRQUEUE):
            return self._receive_urgent(box, flags)
        if box.listening or not (box.established or box.connecting or box.peer or box.error or box.ended):
            raise os_error(errno.ENOTCONN)
        peek = flags & _PEEK != 0
        enough = 1 if not flags and box.low_water == 1 else (
            (count if flags & _WAITALL else min(box.low_water, count)) or 1)  # Linux, sock_rcvlowat
        wanted = enough if peek else 1
        parts: list[bytes] = []
        got = 0
        while True:
            if peek:
                self._connection.look()  # a program that polls waits for more than is there
            data = b""
            if box.items or box.urgent:
                with box.taking:
                    data = box.take(count - got, peek)
                    due = not peek and (box.read_due() or (box.shared and bool(data)))
                if due:
                    self._connection.send_all([(READ, box.reading())])
            if box.have >= OFFER_AFTER_OCTETS and not box.offered and box.established:
                self._connection.share(box)
            if box.descriptors and (data or box.urgent_hidden):
                self._changed(box)
            if data:
                if len(data) >= enough and not parts:
                    return data  # the usual case
                got += len(data)
                parts.append(data)
            if got >= enough or (not count and box.unread):
                break
            if parts and box.urgent and box.urgent - 1 == box.read + got * peek:
                break  # Linux: a call never returns octets from both sides of the urgent mark
            if parts and peek:
                parts.clear()  # all of it again, when more has arrived
                got = 0
            if box.end_came and not box.unread:
                break  # Linux tcp_recvmsg_locked: SOCK_DONE comes before an error
            if box.error or self._connection.down:
                if parts:
                    break
                self._raise_error(box)
            if box.at_end:
                break
            try:
                self._await(lambda: not box.lacks(wanted), flags)
            except OSError:
                if parts:
                    break
                raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _receive_urgent(self, box: StreamDescription, flags: int) -> bytes:
        """MSG_OOB (Linux, tcp_recv_urg): never waits."""
        self._connection.look()
        if self._connection.down:
            self._raise_error()
        if flags & _ERRQUEUE:
            raise would_block()
        with box.taking:
            if box.oob_inline or box.urgent <= box.read or box.urgent_taken:
                raise os_error(errno.EINVAL)
            octet = box.take_urgent(bool(flags & _PEEK))
        if not octet and not box.at_end_or_over:
            raise would_block()
        self._changed(box)
        return octet

    # -- the end --------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """Close one or both directions. ENOTCONN: no connection."""
        box = self._taken()
        if as_int(how) not in (_std.SHUT_RD, _std.SHUT_WR, _std.SHUT_RDWR):
            raise os_error(errno.EINVAL)
        self._connection.look()
        connected = (box.established or box.listening) and not box.over
        if how != _std.SHUT_WR and (connected or box.peer is None):
            box.ended = True  # Linux, inet_shutdown: also without a connection, where it fails
        if not connected:
            raise os_error(errno.ENOTCONN)
        if how != _std.SHUT_RD and not box.listening:
            with box.writing:
                self._connection.send_all(box.end_writing())
        self._connection.readers.wake(box)
        self._connection.wake_reader()

    def _close(self) -> None:
        box = self._box
        if (isinstance(box, StreamDescription) and box.linger and box.established and not box.reset
                and len(box.owners) == 1 and self._timeout != 0):
            self._linger(box, box.linger)
        super()._close()

    def _linger(self, box: StreamDescription, seconds: int) -> None:
        """SO_LINGER: wait until the peer has acknowledged everything; after the timeout the rest is lost."""
        try:
            with box.writing:
                self._connection.send_all(box.end_writing())
            self._connection.readers.wait(box, seconds, lambda: box.finished or bool(box.reset))
        except OSError:
            pass

    def __del__(self) -> None:
        if isinstance(self._box, StreamDescription) and self._box.linger:
            self._box.linger = None  # a destructor does not wait
        super().__del__()

    # -- options, descriptors -------------------------------------------------------------------------------------

    def getsockopt(self, level: int, optname: int, buflen: int | bytes = 0) -> int | bytes:
        """As for `socket`; TCP_INFO is a structure."""
        if (level, optname) == (_std.IPPROTO_TCP, TCP_INFO):
            self._check_open()
            told = self._connection.stream_info(self._box.handle)[INFO_ANSWER.size :]
            if not told:  # no connection: Linux says CLOSE, or LISTEN
                told = self._unconnected_info(self._stream)
            return told[:buflen] if isinstance(buflen, int) and buflen else int.from_bytes(told[:4], "little")
        return super().getsockopt(level, optname, buflen)

    @staticmethod
    def _unconnected_info(box: StreamDescription) -> bytes:
        """struct tcp_info without a connection: the state and, of a listener, how many wait and how many may."""
        info = bytearray(232)
        info[0] = 10 if box.listening else 7
        if box.listening:
            struct.pack_into("=2I", info, 24, len(box.incoming), box.backlog)  # tcpi_unacked, tcpi_sacked
        return bytes(info)

    def _watched(self) -> None:
        if self._stream.listening:
            super()._watched()
        else:
            self._taken()

    def _new_descriptor(self) -> Descriptor:
        return StreamDescriptor(self._stream.events)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As the standard method, by reading and sending."""
        return int(_KERNEL_SOCKET._sendfile_use_send(self, file, offset, count))  # type: ignore[attr-defined]

    _check_sendfile_params = _KERNEL_SOCKET._check_sendfile_params  # type: ignore[attr-defined]


def _view(data: ReadableBuffer) -> memoryview:
    """The octets of a program's buffer, to be released as that of `into`."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}") from None
    return contiguous(view).cast("B")
