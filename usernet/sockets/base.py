"""The common part of all sockets, with the standard class's names, behaviour and errors; and datagram sockets."""

from __future__ import annotations

import errno
import io
import socket as _std
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from usernet.client.description import UNNAMED
from usernet.client.readiness import Descriptor
from usernet.client.sharing import want_next
from usernet.client.stack import Stack
from usernet.errors import os_error
from usernet.sockets import cmsg
from usernet.sockets.arguments import ancillary_room, as_int, as_size, buffers_of
from usernet.sockets.datagrams import (
    _CLOSED,
    _HEADER,
    _PEER,
    ANY,
    PING,
    PLAIN,
    RAW,
    STREAM,
    Address,
    Datagrams,
    _octets,
    _sender,
)
from usernet.sockets.descriptors import leave
from usernet.sockets.settings import Settings
from usernet.sockets.sockaddr import parse
from usernet.sockets.unsupported import no_raw

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_KERNEL_SOCKET = _std.socket  # for other families; stored here because usernet.patch replaces its methods
_INTERNET = (_std.AF_INET, _std.AF_INET6)
KIND_MAX = 10  # linux/net.h: SOCK_PACKET
PROTOCOL_MAX = 255  # one octet of the IP header
_PROTOCOLS: dict[int, tuple[int, ...]] = {
    _std.SOCK_STREAM: (0, _std.IPPROTO_TCP), _std.SOCK_DGRAM: (0, _std.IPPROTO_UDP, _std.IPPROTO_ICMP)}
SIZE_SURE = 1 << 31  # a size below is one on every machine
_FLAGS_IN_TYPE = _std.SOCK_NONBLOCK | _std.SOCK_CLOEXEC

# As plain integers, because operations on IntFlags are slow.
_TRUNC, _CTRUNC, _ERRQUEUE = int(_std.MSG_TRUNC), int(_std.MSG_CTRUNC), int(_std.MSG_ERRQUEUE)

Received = tuple[bytes, list[cmsg.Control], int, Address | None]


def is_kernels(family: int, fileno: int | None) -> bool:
    """True for a socket of the kernel: of another family than AF_INET, or from a descriptor."""
    return fileno is not None or not (family == -1 or family in _INTERNET)


def judged(bufsize: SupportsIndex, flags: SupportsIndex, caller: str) -> tuple[int, int]:
    """Check size and flags, with the standard module's errors."""
    size, flags = as_size(bufsize), as_int(flags)
    if size < 0:
        raise ValueError(f"negative buffersize in {caller}")
    return size, flags


def into(buffer: ReadableBuffer, nbytes: SupportsIndex, flags: SupportsIndex,
         caller: str) -> tuple[memoryview, int, int]:
    """(the part of the buffer to fill, its length, flags), with the standard module's errors.

    The caller releases the view: an exception holds the frames that it left, and so would hold the program's buffer,
    which a handler of the exception may want to resize.
    """
    with memoryview(buffer) as given:
        if given.readonly:
            raise TypeError(f"{caller}() argument 1 must be read-write bytes-like object, not {type(buffer).__name__}")
        with given.cast("B") as octets:
            size, number = as_size(nbytes), as_int(flags)
            if size < 0:
                raise ValueError(f"negative buffersize in {caller}")
            if size > len(octets):
                raise ValueError("buffer too small for requested bytes")
            view = octets[: size or len(octets)]
    return view, len(view), number


class BaseSocket(Settings):
    """The common part of all sockets, and the behaviour of datagram sockets."""

    __slots__ = ("_closed", "_family", "_io_refs", "_proto", "_type")

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None, *,
        stack: Stack | None = None,
    ) -> None:
        if fileno is not None:
            return  # initialised before
        super().__init__()
        family, given, proto = as_int(family), as_int(type), as_int(proto)
        family = _std.AF_INET if family == -1 else family
        kind = _std.SOCK_STREAM if given == -1 else given & ~_FLAGS_IN_TYPE
        proto = 0 if proto == -1 else proto
        if family != _std.AF_INET:
            raise os_error(errno.EAFNOSUPPORT)
        if not 0 <= kind <= KIND_MAX:
            raise os_error(errno.EINVAL)
        if kind not in (_std.SOCK_STREAM, _std.SOCK_DGRAM, _std.SOCK_RAW):
            raise os_error(errno.ESOCKTNOSUPPORT)
        if not 0 <= proto <= PROTOCOL_MAX:
            raise os_error(errno.EINVAL)
        if not proto if kind == _std.SOCK_RAW else proto not in _PROTOCOLS[kind]:
            raise os_error(errno.EPROTONOSUPPORT)
        self._family, self._type, self._proto = _std.AddressFamily(family), _std.SocketKind(kind), proto
        self._timeout = 0.0 if given != -1 and given & _std.SOCK_NONBLOCK else _std.getdefaulttimeout()
        self._closed = False
        self._io_refs = 0  # number of open files from makefile
        if kind == _std.SOCK_STREAM:
            self._open(stack or Stack(), STREAM)
        elif kind == _std.SOCK_RAW:
            self._open_raw(stack or Stack(), proto)
        else:
            self._open(stack or Stack(), PING if proto == _std.IPPROTO_ICMP else PLAIN)

    def _open_raw(self, stack: Stack, protocol: int) -> None:
        try:
            self._open(stack, RAW, protocol=protocol)
        except PermissionError:
            raise no_raw() from None
        self._box.local = UNNAMED[0], protocol  # as on Linux: the port is the protocol
        self._box.header_included = protocol == _std.IPPROTO_RAW

    def dup(self) -> Self:
        """Another socket object for the same socket, as dup(2); the socket is closed with the last of them."""
        self._check_open()
        copy: Self = Datagrams.__new__(self.__class__)
        Datagrams.__init__(copy)
        copy._family, copy._type, copy._proto = self._family, self._type, self._proto
        copy._timeout, copy._closed, copy._io_refs = self._timeout, False, 0
        copy._share(self)
        return copy

    # -- names --------------------------------------------------------------------------------------------------

    def bind(self, address: Address) -> None:
        """Bind to a local address and port; port 0: an ephemeral port."""
        octets, port = parse(address, "bind", self._resolving())
        reply = self._request("bind", address=_std.inet_ntoa(octets), port=port)
        self._box.local = reply["address"], reply["port"]
        self._box.destinations.clear()

    def connect(self, address: Address) -> None:
        """Set the peer. ("0.0.0.0", 0) dissolves the connection, as on BSD (Python has no AF_UNSPEC address as on
        Linux)."""
        octets, port = parse(address, "connect", self._resolving())
        if octets == ANY and port == 0:
            self.disconnect()
            return
        host = self._host(octets)
        reply = self._request("connect", address=host, port=port)
        self._box.peer = host, port
        self._box.local = reply["local"], reply["port"]
        self._box.destinations.clear()
        self._remember(_PEER, host, port, reply)

    def connect_ex(self, address: Address) -> int:
        """As connect, but returns the errno."""
        try:
            self.connect(address)
        except OSError as error:
            if error.errno is None or isinstance(error, _std.gaierror):
                raise
            return error.errno
        return 0

    def disconnect(self) -> None:
        """Dissolve the connection: receive from any peer again."""
        reply = self._request("connect", address="0.0.0.0", port=0)
        self._box.peer = None
        self._box.local = reply["address"], reply["port"]
        self._box.destinations.clear()

    def getsockname(self) -> Address:
        """The local address and port; ("0.0.0.0", 0) before there is one."""
        self._check_open()
        return self._box.local

    def getpeername(self) -> Address:
        """The connected peer. ENOTCONN: there is none."""
        self._check_open()
        if self._box.peer is None:
            raise os_error(errno.ENOTCONN)
        return self._box.peer

    def _resolving(self) -> Stack | None:
        return None if self._box is _CLOSED else self._stack

    # -- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Send one datagram to the peer; returns its length."""
        return self._send(data, flags, _PEER)

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """As send: a datagram goes whole or not at all."""
        self._send(data, flags, _PEER)

    def sendto(self, data: bytes, /, *arguments: Any) -> int:
        """sendto(data, address) or sendto(data, flags, address): send one datagram; returns its length."""
        if len(arguments) == 1:
            return self._send(data, 0, arguments[0])
        if len(arguments) != 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(arguments)} given)")
        return self._send(data, arguments[0], arguments[1])

    def sendmsg(
        self, buffers: Iterable[bytes], ancdata: Iterable[tuple[int, int, bytes]] = (), flags: int = 0,
        address: Address | None = None, /,
    ) -> int:
        """Send one datagram from several buffers; ancillary data may set IP_TTL, IP_TOS, the source (IP_PKTINFO) and IP
        options (IP_RETOPTS)."""
        data, controls, flags = self._message(buffers, ancdata, flags, address)
        steering = cmsg.steering(controls, self._kind == RAW) if controls else None
        return self._send(data, flags, _PEER if address is None else address, steering)

    @staticmethod
    def _message(buffers: Iterable[bytes], ancdata: Iterable[tuple[int, int, bytes]], flags: int,
                 address: object) -> tuple[bytes, list[cmsg.Control], int]:
        """(octets, ancillary data, flags) of sendmsg, in the order of CPython's checks."""
        flags = as_int(flags)
        if address is not None and not isinstance(address, tuple):
            raise TypeError(f"sendmsg(): AF_INET address must be tuple, not {address.__class__.__name__}")
        data = b"".join(_octets(part) for part in buffers_of(buffers, "sendmsg"))
        controls = cmsg.items(ancdata)
        if flags < 0:
            raise os_error(errno.EINVAL)  # Linux, MSG_CMSG_COMPAT
        return data, controls, flags

    # -- receiving ----------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """The next datagram, truncated to `bufsize` octets."""
        if flags or bufsize.__class__ is not int or not 0 < bufsize < SIZE_SURE:
            bufsize, flags = judged(bufsize, flags, "recv")
            if not bufsize:
                return b""  # as in the standard module: nothing is received
        return self.receive_record(flags)[_HEADER : _HEADER + bufsize]

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """The next datagram, truncated to `bufsize` octets, and its sender."""
        if flags or bufsize.__class__ is not int or not 0 <= bufsize < SIZE_SURE:
            bufsize, flags = judged(bufsize, flags, "recvfrom")
        record = self.receive_record(flags)
        return record[_HEADER : _HEADER + bufsize], _sender(record)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """As recv, into a buffer. With MSG_TRUNC the result is the datagram's full length."""
        return self._receive_into(buffer, nbytes, flags, "recv_into")[0]

    def recvfrom_into(
        self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Address | None]:
        """As recvfrom, into a buffer. With MSG_TRUNC the result is the datagram's full length."""
        length, record = self._receive_into(buffer, nbytes, flags, "recvfrom_into")
        return length, _sender(record)

    def _receive_into(self, buffer: ReadableBuffer, nbytes: int, flags: int, caller: str) -> tuple[int, bytes]:
        view, nbytes, flags = into(buffer, nbytes, flags, caller)
        with view:
            if not view and caller == "recv_into":
                return 0, b""
            record = self.receive_record(flags)
            data = record[_HEADER : _HEADER + (nbytes or len(view))]
            view[: len(data)] = data
        return max(0, len(record) - _HEADER) if flags & _TRUNC else len(data), record

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Received:
        """(data, ancillary data, flags, sender) of the next datagram; with MSG_ERRQUEUE, of the oldest error.

        Ancillary data: according to IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVOPTS and IP_RETOPTS; IP_RECVERR for an
        error.
        """
        bufsize, ancbufsize, flags = as_size(bufsize), as_size(ancbufsize), as_int(flags)
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        room = ancillary_room(ancbufsize)
        if flags < 0:
            raise os_error(errno.EINVAL)  # Linux, MSG_CMSG_COMPAT
        return self._receive_parts(bufsize, room, flags)[1:]

    def _receive_parts(
        self, bufsize: int, ancbufsize: int, flags: int
    ) -> tuple[int, bytes, list[cmsg.Control], int, Address | None]:
        """The datagram's full length, and the result of recvmsg."""
        record, controls, told = self._receive_message(flags)
        octets = max(0, len(record) - _HEADER)
        data = record[_HEADER : _HEADER + bufsize]
        controls, cut = cmsg.fit(controls, ancbufsize)
        told |= (_CTRUNC if cut else 0) | (_TRUNC if len(data) < octets else 0)
        return octets, data, controls, told, _sender(record)

    def recvmsg_into(
        self, buffers: Iterable[bytearray | memoryview], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[cmsg.Control], int, Address | None]:
        """As recvmsg, into several buffers; the first result is the number of octets.

        With MSG_TRUNC it is the datagram's full length.
        """
        ancbufsize, flags = as_size(ancbufsize), as_int(flags)
        with ExitStack() as releasing:
            views = [releasing.enter_context(memoryview(buffer).cast("B"))
                     for buffer in buffers_of(buffers, "recvmsg_into")]
            if any(view.readonly for view in views):
                raise TypeError("recvmsg_into() argument 1 must be an iterable of read-write buffers")
            ancbufsize = ancillary_room(ancbufsize)
            if flags < 0:
                raise os_error(errno.EINVAL)  # Linux, MSG_CMSG_COMPAT
            octets, data, controls, told, sender = self._receive_parts(sum(map(len, views)), ancbufsize, flags)
            rest = data
            for view in views:
                part, rest = rest[: len(view)], rest[len(view) :]
                view[: len(part)] = part
        return octets if flags & _TRUNC else len(data), controls, told, sender

    def _receive_message(self, flags: int) -> tuple[bytes, list[cmsg.Control], int]:
        if flags & _ERRQUEUE:
            error = self._take_error()
            return cmsg.error_as_datagram(error), cmsg.error_told(error), _ERRQUEUE
        record = self.receive_record(flags)
        if not record or not self._box.ancillary:
            return record, [], 0
        wanted = self._box.ancillary
        local = self._specific_destination(record) if wanted & cmsg.WANTED[cmsg.IP_PKTINFO] else ANY
        return record, cmsg.told(wanted, record, local, self._kind == RAW), 0

    # -- what it is ------------------------------------------------------------------------------------------------

    family = property(lambda self: self._family, doc="AF_INET.")
    type = property(lambda self: self._type, doc="SOCK_DGRAM.")
    proto = property(lambda self: self._proto, doc="As given when it was made.")

    # -- descriptors --------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor for select, poll, epoll and asyncio, level-triggered; -1 once closed.

        It is readable while a datagram or an error is available, and always writable. It cannot be read or written. The
        first call creates it and starts a thread that reads for the process.
        """
        if self._box is _CLOSED:
            return -1
        if self._descriptor is None:
            box = self._box
            self._descriptor = self._new_descriptor()
            box.descriptors.add(self._descriptor)
            self._descriptor.update()
            self._connection.serve_descriptors()
            if box.shared:
                self._watched()
        return self._descriptor.number

    def _moved(self) -> Self:
        """Move the socket to another object and close this one."""
        successor = self.dup()
        successor._descriptor, self._descriptor = self._descriptor, None
        self._closed = True
        self._close()
        return successor

    def _watched(self) -> None:
        """A shared socket has a descriptor now, which shows what belongs to this process."""
        want_next(self._connection, self._box)

    def _new_descriptor(self) -> Descriptor:
        return Descriptor(self._box.ready)

    def detach(self) -> int:
        """Close this object but not the socket: `socket(fileno=...)` in this process opens it again."""
        number = self.fileno()
        if number >= 0:
            successor = self._moved()
            successor._timeout, successor._proto = _std.getdefaulttimeout(), self._proto or _std.IPPROTO_UDP
            leave(number, successor)
        return number

    def get_inheritable(self) -> bool:
        """False: another program cannot use it."""
        self._check_open()
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        """Only False is supported."""
        self._check_open()
        if inheritable:
            raise io.UnsupportedOperation("a usernet socket cannot be inherited by another program")

    makefile = _KERNEL_SOCKET.makefile  # pure Python: recv_into and send through a buffer

    def _decref_socketios(self) -> None:
        """A file of makefile's was closed."""
        self._io_refs -= self._io_refs > 0
        if self._closed:
            self.close()

    # -- the end ------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """As on Linux: ENOTCONN without a peer, but still sends fail (EPIPE) and receives return b""."""
        how = as_int(how)
        self._check_open()
        if how not in (_std.SHUT_RD, _std.SHUT_WR, _std.SHUT_RDWR):
            raise os_error(errno.EINVAL)
        if how != _std.SHUT_WR:
            self._box.ended = True
            self._connection.readers.wake(self._box)
            self._connection.wake_reader()
        if how != _std.SHUT_RD:
            self._box.shut_for_writing = True
        self.getpeername()

    def close(self) -> None:
        """Close the socket, unless files or duplicates need it; unread datagrams are lost."""
        self._closed = True
        if self._io_refs <= 0:
            self._close()

    def listen(self, backlog: int = 0) -> None:
        """EOPNOTSUPP for datagram sockets."""
        as_int(backlog)
        self._check_open()
        raise os_error(errno.EOPNOTSUPP)

    def accept(self) -> Any:
        """EOPNOTSUPP for datagram sockets."""
        self.listen()

    def sendfile(self, file: object, offset: int = 0, count: int | None = None) -> int:
        """ValueError for datagram sockets."""
        raise ValueError("only SOCK_STREAM type sockets are supported")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._closed:
            self.close()

    def __getstate__(self) -> None:
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    def __repr__(self) -> str:
        closed = self._box is _CLOSED
        text = f"<usernet.socket{' [closed]' if closed else ''} handle={-1 if closed else self._box.handle}"
        text += "" if self._descriptor is None else f", fd={self._descriptor.number}"
        text += f", family={int(self._family)}, type={int(self._type)}, proto={self._proto}"
        if not closed:
            text += f", laddr={self._box.local}" + (f", raddr={self._box.peer}" if self._box.peer else "")
        return text + ">"
