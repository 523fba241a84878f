"""The socket class: the standard one's names, behaviour and errors, for datagrams of a usernet stack.

What has come in waits in the socket's mailbox; what is to be said goes out as one record. The socket service is asked
only where something is set up: `sendto` asks once per destination and then knows source address and size limit.
"""

from __future__ import annotations

import errno
import io
import math
import os
import socket as _std
import threading
import warnings
from sys import byteorder

from usernet.connection import Connection
from usernet.mailbox import DATAGRAM_COST, Mailbox
from usernet.names import os_error, parse, would_block
from usernet.protocol import DATAGRAM_HEADER, SEND, SEND_HEADER, SEND_TTL_DEFAULT
from usernet.stack import Stack

DESTINATIONS_MAX = 1024  # destinations a socket remembers; then it asks again
IP_HEADER_OCTETS = 20
UDP_HEADER_OCTETS = 8
ICMP_ECHO_REQUEST = (8, 0)  # RFC 792: type and code; all that a ping socket may send (icmp(7))
ICMP_HEADER_OCTETS = 8
ANY = b"\0\0\0\0"
FORKED = "this socket belongs to the parent process; make a new one after fork"

_HEADER = DATAGRAM_HEADER.size
_FLAGS_IN_TYPE = _std.SOCK_NONBLOCK | _std.SOCK_CLOEXEC
_PEER = object()  # the key of the connected peer among the destinations
_CLOSED = Mailbox(threading.Lock())
_CLOSED.error = errno.EBADF


class socket:  # noqa: N801  (the standard module's name)
    """A UDP or ping socket (SOCK_DGRAM with IPPROTO_ICMP). `stack`: which stack, where not the default one."""

    __slots__ = (
        "__weakref__", "_box", "_connection", "_destinations", "_family", "_gone", "_local", "_overhead", "_peer",
        "_ping", "_proto", "_timeout", "_type",
    )

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        stack: Stack | None = None,
    ) -> None:
        self._box = _CLOSED
        self._gone = os.strerror(errno.EBADF)
        if fileno is not None:
            raise io.UnsupportedOperation("a usernet socket cannot be made from a file descriptor")
        family = _std.AF_INET if family == -1 else family
        kind = _std.SOCK_STREAM if type == -1 else type & ~_FLAGS_IN_TYPE
        proto = 0 if proto == -1 else proto
        if family != _std.AF_INET:
            raise os_error(errno.EAFNOSUPPORT)
        if kind != _std.SOCK_DGRAM:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if proto not in (0, _std.IPPROTO_UDP, _std.IPPROTO_ICMP):
            raise os_error(errno.EPROTONOSUPPORT)
        self._family, self._type, self._proto = _std.AddressFamily(family), _std.SocketKind(kind), proto
        self._timeout = 0.0 if type != -1 and type & _std.SOCK_NONBLOCK else _std.getdefaulttimeout()
        self._ping = proto == _std.IPPROTO_ICMP
        self._overhead = IP_HEADER_OCTETS + (0 if self._ping else UDP_HEADER_OCTETS)
        self._local: tuple[str, int] = ("0.0.0.0", 0)
        self._peer: tuple[str, int] | None = None
        self._destinations: dict[object, tuple[bytes, int]] = {}  # address -> (SEND_HEADER, payload octets at most)
        self._connection: Connection = (stack or Stack()).connection
        self._box = self._connection.open_socket("ping" if self._ping else "dgram")
        self._connection.sockets.add(self)

    # -- names --------------------------------------------------------------------------------------------------

    def bind(self, address: tuple[str, int]) -> None:
        """Take a local address and port; port 0: any that is free."""
        octets, port = parse(address, "bind")
        reply = self._request("bind", address=_std.inet_ntoa(octets), port=port)
        self._local = reply["address"], reply["port"]
        self._destinations.clear()

    def connect(self, address: tuple[str, int]) -> None:
        """Set the peer. ("0.0.0.0", 0) undoes that, as on BSD (there is no way to say AF_UNSPEC, as on Linux)."""
        octets, port = parse(address, "connect")
        if octets == ANY and port == 0:
            self.disconnect()
            return
        host = self._host(octets)
        reply = self._request("connect", address=host, port=port)
        self._peer = host, port
        self._local = reply["local"], reply["port"]
        self._destinations.clear()
        self._remember(_PEER, host, port, reply)

    def connect_ex(self, address: tuple[str, int]) -> int:
        """As connect, but returns the errno."""
        try:
            self.connect(address)
        except OSError as error:
            if error.errno is None or isinstance(error, _std.gaierror):
                raise
            return error.errno
        return 0

    def disconnect(self) -> None:
        """Undo connect: receive from everyone again."""
        reply = self._request("connect", address="0.0.0.0", port=0)
        self._peer = None
        self._local = reply["address"], reply["port"]
        self._destinations.clear()

    def getsockname(self) -> tuple[str, int]:
        """The local address and port; ("0.0.0.0", 0) before there is one."""
        self._check_open()
        return self._local

    def getpeername(self) -> tuple[str, int]:
        """The connected peer; ENOTCONN without one."""
        self._check_open()
        if self._peer is None:
            raise os_error(errno.ENOTCONN)
        return self._peer

    # -- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send one datagram to the peer; returns its length."""
        return self._send(data, flags, _PEER)

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """As send: a datagram goes whole or not at all."""
        self._send(data, flags, _PEER)

    def sendto(self, data: bytes, *arguments: object) -> int:
        """sendto(data, address) or sendto(data, flags, address): send one datagram; returns its length."""
        if len(arguments) == 1:
            return self._send(data, 0, arguments[0])
        if len(arguments) != 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(arguments)} given)")
        return self._send(data, arguments[0], arguments[1])  # type: ignore[arg-type]

    def _send(self, data: bytes, flags: int, address: object) -> int:
        box = self._box
        if box.error:
            self._raise_error()
        if data.__class__ is not bytes:
            data = _octets(data)
        if box.stale:
            box.stale = False
            self._destinations.clear()
        try:
            header, limit = self._destinations[address]
        except (KeyError, TypeError):  # TypeError: cannot be hashed, so is no address either
            header, limit = self._prepare(address)
        if len(data) > limit:
            raise os_error(errno.EMSGSIZE)
        if self._ping and (len(data) < ICMP_HEADER_OCTETS or tuple(data[:2]) != ICMP_ECHO_REQUEST):
            raise os_error(errno.EINVAL)
        if flags:
            if flags & _std.MSG_OOB:
                raise os_error(errno.EOPNOTSUPP)
            self._connection.send(SEND, header + data, 0 if flags & _std.MSG_DONTWAIT else self._timeout)
        else:
            self._connection.send(SEND, header + data, self._timeout)
        return len(data)

    def _prepare(self, address: object) -> tuple[bytes, int]:
        """Ask the service about a destination, once."""
        if address is not _PEER:
            octets, port = parse(address, "sendto")
            host = self._host(octets)
        elif self._peer is not None:
            host, port = self._peer
        else:
            raise os_error(errno.EDESTADDRREQ)
        reply = self._request("prepare", address=host, port=port)
        self._local = reply["local"], reply["port"]
        return self._remember(address, host, port, reply)

    def _remember(self, address: object, host: str, port: int, reply: dict) -> tuple[bytes, int]:
        header = SEND_HEADER.pack(
            self._box.handle, _std.inet_aton(host), port, _std.inet_aton(reply["source"]), SEND_TTL_DEFAULT, 0, 0
        )
        if len(self._destinations) >= DESTINATIONS_MAX:
            self._destinations.clear()
        self._destinations[address] = destination = header, reply["mtu"] - self._overhead
        return destination

    def _host(self, octets: bytes) -> str:
        """0.0.0.0 as a destination is this host, as on Linux."""
        return self._connection.welcome["address"] if octets == ANY else _std.inet_ntoa(octets)  # type: ignore

    # -- receiving ----------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """The next datagram, cut to `bufsize` octets."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        return self.receive_record(flags)[_HEADER : _HEADER + bufsize]

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, cut to `bufsize` octets, and its sender."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        record = self.receive_record(flags)
        return record[_HEADER : _HEADER + bufsize], _sender(record)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """As recv, into a buffer. With MSG_TRUNC the result is the datagram's real length."""
        return self._receive_into(buffer, nbytes, flags, "recv_into")[0]

    def recvfrom_into(
        self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, tuple[str, int]]:
        """As recvfrom, into a buffer. With MSG_TRUNC the result is the datagram's real length."""
        length, record = self._receive_into(buffer, nbytes, flags, "recvfrom_into")
        return length, _sender(record)

    def _receive_into(self, buffer: object, nbytes: int, flags: int, caller: str) -> tuple[int, bytes]:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if view.readonly:
            raise TypeError(f"{caller}() argument 1 must be read-write bytes-like object, not {type(buffer).__name__}")
        if nbytes < 0:
            raise ValueError(f"negative buffersize in {caller}")
        if nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        record = self.receive_record(flags)
        data = record[_HEADER : _HEADER + (nbytes or len(view))]
        view[: len(data)] = data
        return len(record) - _HEADER if flags & _std.MSG_TRUNC else len(data), record

    def receive_record(self, flags: int = 0) -> bytes:
        """The next datagram with its DATAGRAM_HEADER (usernet.protocol), which also tells destination, TTL and TOS."""
        box = self._box
        if box.error:
            self._raise_error()
        items = box.items
        while True:
            try:
                record = items[0] if flags & _std.MSG_PEEK else items.popleft()
                break
            except IndexError:
                pass
            if flags & _std.MSG_ERRQUEUE:
                raise would_block()
            self._connection.readers.wait(box, 0 if flags & _std.MSG_DONTWAIT else self._timeout)
            if box.error:
                self._raise_error()
        if not flags & _std.MSG_PEEK:
            box.consumed += len(record) + DATAGRAM_COST
            if box.consumed >= box.credit_due:
                self._connection.credit(box)
        return record

    # -- options ------------------------------------------------------------------------------------------------

    def setsockopt(self, level: int, optname: int, value: int | bytes | None, optlen: int | None = None) -> None:
        """Those of usernet's socket service (its README lists them); ENOPROTOOPT for others."""
        if value is None:
            raise os_error(errno.EFAULT)
        if not (isinstance(value, int) and -(1 << 31) <= value < 1 << 31):
            value = _octets(value)
        reply = self._request("setsockopt", level=level, name=optname, value=value)
        self._destinations.clear()
        if (level, optname) == (_std.SOL_SOCKET, _std.SO_RCVBUF):
            self._box.set_buffer(reply["value"])

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> int | bytes:
        """The option's value; as the octets of a C int where `buflen` says how many."""
        self._check_open()
        if not 0 <= buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        if (level, optname) == (_std.SOL_SOCKET, _std.SO_ERROR):
            self._connection.look()
            value, self._box.error = self._box.error, 0
        else:
            value = self._request("getsockopt", level=level, name=optname)["value"]
        return value.to_bytes(4, byteorder, signed=True)[:buflen] if buflen else value

    def settimeout(self, value: float | None) -> None:
        """Seconds that a call may take; 0: it does not wait, None: for ever."""
        if value is not None:
            value = float(value)
            if math.isnan(value):
                raise ValueError("Invalid value NaN (not a number)")
            if value < 0:
                raise ValueError("Timeout value out of range")
        self._timeout = value

    def gettimeout(self) -> float | None:
        """As set by settimeout."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """settimeout(None) or settimeout(0.0)."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """False where the timeout is 0."""
        return self._timeout != 0

    @property
    def timeout(self) -> float | None:
        """As set by settimeout."""
        return self._timeout

    @property
    def family(self) -> _std.AddressFamily:
        """AF_INET."""
        return self._family

    @property
    def type(self) -> _std.SocketKind:
        """SOCK_DGRAM."""
        return self._type

    @property
    def proto(self) -> int:
        """As given when it was made."""
        return self._proto

    # -- what datagram sockets, or these, do not do ---------------------------------------------------------------

    def fileno(self) -> int:
        """-1 once closed. There is no descriptor yet: use timeouts, or a thread per socket."""
        if self._box is _CLOSED:
            return -1
        raise io.UnsupportedOperation("a usernet socket has no file descriptor yet: use settimeout, or a thread")

    def detach(self) -> int:
        """There is nothing to detach."""
        raise io.UnsupportedOperation("a usernet socket has no file descriptor to detach")

    def listen(self, backlog: int = 0) -> None:
        """EOPNOTSUPP: not for datagrams."""
        self._check_open()
        raise os_error(errno.EOPNOTSUPP)

    def accept(self) -> None:
        """EOPNOTSUPP: not for datagrams."""
        self.listen()

    def shutdown(self, how: int) -> None:
        """ENOTCONN without a peer; otherwise not supported yet."""
        self.getpeername()
        raise os_error(errno.EOPNOTSUPP)

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the port; datagrams not yet read are gone."""
        box, self._box = self._box, _CLOSED
        self._destinations = {}
        if box is not _CLOSED:
            self._connection.close_socket(box.handle)

    def disown(self) -> None:
        """In a forked child: the socket stays with the parent."""
        self._box, self._destinations, self._gone = _CLOSED, {}, FORKED

    def __enter__(self) -> socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._box is not _CLOSED and not self._connection.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            # Not closed here and now: a destructor may run in the middle of anything, with locks held.
            self._connection.orphans.append(self._box.handle)

    def __getstate__(self) -> None:
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    def __repr__(self) -> str:
        closed = self._box is _CLOSED
        text = f"<usernet.socket{' [closed]' if closed else ''} handle={-1 if closed else self._box.handle}"
        text += f", family={int(self._family)}, type={int(self._type)}, proto={self._proto}"
        if not closed:
            text += f", laddr={self._local}" + (f", raddr={self._peer}" if self._peer else "")
        return text + ">"

    def _request(self, op: str, **fields: object) -> dict:
        self._check_open()
        return self._connection.request(op, handle=self._box.handle, **fields)

    def _check_open(self) -> None:
        if self._box is _CLOSED:
            self._raise_error()

    def _raise_error(self) -> None:
        box = self._box
        if box is _CLOSED:
            raise OSError(errno.EBADF, self._gone)
        number, box.error = box.error, 0
        raise os_error(number)


def _octets(data: object) -> bytes:
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}") from None


def _sender(record: bytes) -> tuple[str, int]:
    _, source, port, _, _, _ = DATAGRAM_HEADER.unpack_from(record)
    return _std.inet_ntoa(source), port
