"""Sending and receiving datagrams: the data path of a socket.

Received datagrams wait in the socket's description; a sent one is one record. The socket service is asked only for
setup: the first datagram to a destination asks for source address and size limit.
"""

from __future__ import annotations

import errno
import os
import socket as _std
import threading
import warnings
import weakref
from collections.abc import Iterable
from struct import Struct
from typing import Any

from usernet.client.buffers import HELD_OCTETS_MIN, Buffers, patience
from usernet.client.connection import Connection
from usernet.client.description import DESTINATIONS_MAX, Description
from usernet.client.readiness import Descriptor
from usernet.client.sharing import Waiting, taken
from usernet.client.stack import Stack
from usernet.errors import os_error, would_block
from usernet.pipe.messages import (
    DATAGRAM_COST,
    DATAGRAM_HEADER,
    SEGMENT_SIZE,
    SEGMENTS_MAX,
    SEND,
    SEND_SEGMENTS,
    SEND_SEGMENTS_HELD,
    SocketError,
    datagram_header,
)
from usernet.sockets.arguments import as_int, contiguous
from usernet.sockets.cmsg import IP_HEADER_OCTETS, SO_EE_ORIGIN_LOCAL, Steering, error_as_datagram
from usernet.sockets.cork import MORE, Piece, held
from usernet.sockets.ip_options import before
from usernet.sockets.sendmmsg import Runs
from usernet.sockets.sockaddr import parse

UDP_HEADER_OCTETS = 8
SUPER_OCTETS_MAX = 65535 - IP_HEADER_OCTETS - UDP_HEADER_OCTETS  # UDP_SEGMENT: total of all datagrams
ICMP_ECHO_REQUEST = (8, 0)  # RFC 792: type and code; a ping socket may send nothing else (icmp(7))
ICMP_HEADER_OCTETS = 8
ANY = b"\0\0\0\0"

PLAIN, PING, RAW, STREAM = "dgram", "ping", "raw", "stream"  # kinds of sockets in the application protocol
_HEADERS_OCTETS = {PLAIN: IP_HEADER_OCTETS + UDP_HEADER_OCTETS, PING: IP_HEADER_OCTETS, RAW: IP_HEADER_OCTETS}
_HEADER = DATAGRAM_HEADER.size
_SENDER = Struct("<8xH2x4s")  # of a DATAGRAM_HEADER the peer's port and address: a sixth faster than to unpack it all
# As plain integers: an operation on an IntFlag takes half a microsecond, and every datagram needs some.
_PEEK, _DONTWAIT = int(_std.MSG_PEEK), int(_std.MSG_DONTWAIT)
_ERRQUEUE, _OOB = int(_std.MSG_ERRQUEUE), int(_std.MSG_OOB)
_PEER = object()  # key of the connected peer among the destinations
_CLOSED = Description(threading.RLock(), -1, 0)
_CLOSED.error = errno.EBADF

Address = tuple[str, int]


class Datagrams:
    """A socket of the service, of one of the kinds in `_HEADERS_OCTETS`."""

    __slots__ = ("__weakref__", "_box", "_connection", "_descriptor", "_gone", "_kind", "_stack", "_timeout")

    def __init__(self) -> None:
        self._box = _CLOSED
        self._descriptor: Descriptor | None = None
        self._gone = os.strerror(errno.EBADF)
        self._timeout: float | None = None

    def _open(self, stack: Stack, kind: str, protocol: int = 0) -> None:
        """Open a new socket. `protocol`: of a raw socket."""
        self._stack = stack
        self._kind = kind
        self._connection: Connection = stack.connection
        self._own(self._connection.open_socket(kind, protocol))

    def _share(self, original: Datagrams) -> None:
        """Become a duplicate of another object's socket."""
        box = original._box
        self._stack, self._kind, self._connection = original._stack, original._kind, original._connection
        self._own(box)
        if box is _CLOSED or box.handle not in self._connection.boxes:  # closed meanwhile
            self._box = _CLOSED
            self._raise_error()

    def _own(self, box: Description) -> None:
        box.owners[id(self)] = weakref.ref(self)
        self._box = box

    # -- sending ------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, flags: int, address: object, steering: Steering | None = None) -> int:
        box = self._box
        if flags.__class__ is not int:
            flags = as_int(flags)
        if data.__class__ is not bytes:
            data = _octets(data)
        octets = len(data)
        if flags:
            as_int(flags)
            if flags & _OOB and box is not _CLOSED:
                raise os_error(errno.EOPNOTSUPP)  # Linux, udp_sendmsg: before all else
        if box is not _CLOSED:
            self._connection.glance()
        if box.error or box.shut_for_writing:
            self._raise_error(writing=True)
        if (box.begun is not None or box.corked or flags & MORE) and self._kind == PLAIN:
            if box.begun is None:
                self._header(box, data, address, steering)  # errors of the first piece are raised at once
            whole = held(box, Piece(data, address, steering), flags)
            if whole is None:
                return octets
            data, address, steering = whole
        timeout = self._timeout
        if flags and flags & _DONTWAIT:
            timeout = 0.0
        segment = steering.segment if steering is not None and steering.segment else box.segment_octets
        if segment and len(data) > segment and self._kind == PLAIN:
            self._send_super(box, data, segment, address, steering, timeout)
            return octets
        if steering is not None and steering.options is not None:
            record = self._header(box, data, address, steering) + before(steering.options, data)
        else:
            record = self._header(box, data, address, steering) + data
        self._transmit(SEND, (record,), timeout)
        return octets

    def _send_super(self, box: Description, data: bytes, segment: int, address: object, steering: Steering | None,
                    timeout: float | None) -> None:
        """Many datagrams in one record, for UDP_SEGMENT (udp(7))."""
        if len(data) > SUPER_OCTETS_MAX:
            raise os_error(errno.EMSGSIZE)
        if len(data) > segment * SEGMENTS_MAX:
            raise os_error(errno.EINVAL)
        header = self._header(box, data[:segment], address, steering)
        if steering is not None and steering.options is not None:
            cut = [before(steering.options, data[at : at + segment]) for at in range(0, len(data), segment)]
            segment, data = len(cut[0]), b"".join(cut)
        elif len(data) >= HELD_OCTETS_MIN and (buffers := self._connection.buffers()) is not None:
            reference = buffers.put((data,)) or buffers.put_soon((data,), patience(timeout))
            if reference is not None:
                self._transmit_held(buffers, [header + SEGMENT_SIZE.pack(segment) + reference], timeout)
                return
        self._transmit(SEND_SEGMENTS, (header + SEGMENT_SIZE.pack(segment) + data,), timeout)

    def _transmit_held(self, buffers: Buffers, records: list[bytes], timeout: float | None) -> None:
        """Records with references to buffers."""
        try:
            self._transmit(SEND_SEGMENTS_HELD, records, timeout)
        except OSError:
            buffers.take_back(records)
            raise

    def _header(self, box: Description, data: bytes, address: object, steering: Steering | None = None) -> bytes:
        """The head of a SEND. OSError as on Linux: it cannot be sent."""
        if box.stale:
            box.stale = False
            box.destinations.clear()
        key = (address, steering.source) if steering is not None and steering.source else address
        try:
            header, limit = box.destinations[key]
        except (KeyError, TypeError):  # TypeError: not hashable, so not an address
            header, limit = self._prepare(address, key, steering)
        octets = len(data)
        if steering is not None and steering.options is not None:
            octets += len(steering.options) - box.options_octets  # the limit does not include them
            if box.header_included:
                raise os_error(errno.EINVAL)  # Linux, raw_sendmsg
        if octets > limit:
            header, limit = self._prepare(address, key, steering)  # the path may carry more by now
            if octets > limit:
                self._too_long(box, header, limit)
        if self._kind != PLAIN and not self._may_send(data):
            raise os_error(errno.EINVAL)
        if steering is not None:
            header = steering.header(header)
        return header

    def _may_send(self, data: bytes) -> bool:
        """True if a ping socket may send the data, or a raw one whose data contains the packet's header."""
        if self._kind == PING:
            return len(data) >= ICMP_HEADER_OCTETS and tuple(data[:2]) == ICMP_ECHO_REQUEST
        return not self._box.header_included or (
            len(data) >= IP_HEADER_OCTETS and IP_HEADER_OCTETS <= (data[0] & 15) * 4 <= len(data))

    @property
    def _overhead(self) -> int:
        """Octets of headers that the stack adds."""
        return 0 if self._box.header_included else _HEADERS_OCTETS[self._kind]

    def _transmit(self, kind: int, records: tuple[bytes, ...] | list[bytes], timeout: float | None) -> None:
        limit = self._box.send_timeout
        if timeout is not None or limit is None:
            self._connection.send(kind, records, timeout)
            return
        try:
            self._connection.send(kind, records, limit)
        except TimeoutError:
            raise would_block() from None  # socket(7): SO_SNDTIMEO fails with EAGAIN

    def _too_long(self, box: Description, header: bytes, limit: int) -> None:
        if box.keep_errors:  # Linux ip_local_error: no payload, and the port of the peer if there is one
            port = box.peer[1] if box.peer else 0
            _, _, _, _, _, _, _, destination, _ = DATAGRAM_HEADER.unpack(header)
            mtu = limit + self._overhead
            error = SocketError(box.handle, errno.EMSGSIZE, SO_EE_ORIGIN_LOCAL, 0, 0, mtu, ANY, destination, port)
            box.keep(error.pack())
            self._connection.readers.taken_from(box)
        raise os_error(errno.EMSGSIZE)

    def _prepare(self, address: object, key: object, steering: Steering | None) -> tuple[bytes, int]:
        """Ask the service about a destination, once."""
        if address is not _PEER:
            octets, port = parse(address, "sendto", self._stack)
            host = self._host(octets)
        elif self._box.peer is not None:
            host, port = self._box.peer
        else:
            raise os_error(errno.EDESTADDRREQ)
        source = {"source": _std.inet_ntoa(steering.source)} if steering is not None and steering.source else {}
        reply = self._request("prepare", address=host, port=port, **source)
        self._box.local = reply["local"], reply["port"]
        return self._remember(key, host, port, reply)

    def _specific_destination(self, record: bytes) -> bytes:
        """The specific own address for a datagram: if its destination is a group, the address that would answer.

        RFC 1122 section 4.1.3.5: the specific-destination address, computed as on Linux (fib_compute_spec_dst).
        """
        destination: bytes
        _, _, _, _, _, port, _, source, destination = DATAGRAM_HEADER.unpack_from(record)
        ours = _std.inet_aton(str(self._connection.welcome["address"]))
        if destination == ours or destination[0] == 127:
            return destination
        known, key = self._box.specific, source + destination
        if key not in known:
            if len(known) >= DESTINATIONS_MAX:
                known.clear()
            known[key] = self._found_specific(source, port, destination) or ours
        return known[key]

    def _found_specific(self, source: bytes, port: int, destination: bytes) -> bytes | None:
        for chosen in ({"source": _std.inet_ntoa(destination)}, {}):  # refused unless it is an own address
            try:
                reply = self._request("prepare", address=_std.inet_ntoa(source), port=port or 1, **chosen)
            except OSError:
                continue
            address = _std.inet_aton(reply["source"])
            if chosen or address != destination:  # a socket may be bound to the group
                return address
        return None

    def _remember(self, key: object, host: str, port: int, reply: dict[str, Any]) -> tuple[bytes, int]:
        box = self._box
        header = datagram_header(box.handle, _std.inet_aton(host), port, _std.inet_aton(reply["source"]))
        if len(box.destinations) >= DESTINATIONS_MAX:
            box.destinations.clear()
        box.destinations[key] = destination = header, reply["mtu"] - self._overhead
        return destination

    def _host(self, octets: bytes) -> str:
        """0.0.0.0 as a destination means this host, as on Linux: the bound address, else 127.0.0.1."""
        if octets != ANY:
            return _std.inet_ntoa(octets)
        local = self._box.local[0]
        return "127.0.0.1" if local == "0.0.0.0" else local

    def sendmany(self, datagrams: Iterable[tuple[bytes, Address | None]]) -> int:
        """Send many datagrams, each with its address (None: the peer), up to 64 in one message to the stack.

        Consecutive datagrams of equal size to one address travel through the stack as one record, as with UDP_SEGMENT.
        Returns the number sent. As with sendmmsg(2) that is fewer than all if one could not be sent; its error is
        raised only if it was the first. The timeout is for each message to the stack.
        """
        box = self._box
        if box is not _CLOSED:
            self._connection.glance()
        if box.error or box.shut_for_writing:
            self._raise_error(writing=True)
        runs = Runs(segmenting=self._kind == PLAIN and bool(self._connection.welcome.get("segments")))
        try:
            for data, address in datagrams:
                data = data if data.__class__ is bytes else _octets(data)
                runs.add(self._header(box, data, _PEER if address is None else address), data)
        except OSError:
            if not runs:
                raise
        sent = 0
        buffers = self._connection.buffers() if runs.long else None
        for kind, records, count in runs.frames(buffers, patience(self._timeout)):
            try:
                if buffers is not None and kind == SEND_SEGMENTS_HELD:
                    self._transmit_held(buffers, records, self._timeout)
                else:
                    self._transmit(kind, records, self._timeout)
            except OSError:
                if not sent:
                    raise
                break
            sent += count
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------

    def receive_record(self, flags: int = 0) -> bytes:
        """The next datagram with its DATAGRAM_HEADER, which contains destination, TTL and TOS.

        Empty if the socket was shut down for reading and nothing is left. With MSG_ERRQUEUE it is the sent datagram
        that the oldest error quotes, as far as it is quoted.
        """
        if flags & _ERRQUEUE:
            return error_as_datagram(self._take_error())
        box = self._box
        items = box.items
        if items:  # otherwise the call reads anyway
            self._connection.glance()
        if box.error:
            self._raise_error()
        while True:
            if items:  # otherwise the exception costs more than the question
                try:
                    record = items[0] if flags & _PEEK else items.popleft()
                    break
                except IndexError:
                    pass  # another thread has it
            timeout = 0.0 if flags & _DONTWAIT else self._timeout
            if box.ended:
                self._connection.look()
                if not items and timeout == 0:
                    raise would_block()  # as on Linux, only a blocking call gets the end
                if not items:
                    return b""
            with Waiting(self._connection, box, items, timeout == 0):
                self._wait(box, timeout)
            if box.error:
                self._raise_error(box)
        if not flags & _PEEK:
            box.consumed += len(record) + DATAGRAM_COST
            if box.consumed >= box.credit_due:
                self._connection.credit(box)
            if box.descriptors and not items:
                self._connection.readers.taken_from(box)
            if box.shared:
                taken(self._connection, box, 1)
        return record

    def _wait(self, box: Description, timeout: float | None) -> None:
        if timeout is not None or box.receive_timeout is None:
            self._connection.readers.wait(box, timeout)
            return
        try:
            self._connection.readers.wait(box, box.receive_timeout)
        except TimeoutError:
            raise would_block() from None  # socket(7): SO_RCVTIMEO fails with EAGAIN

    def recvmany(self, count: int, bufsize: int = 65535) -> list[tuple[bytes, Address]]:
        """Wait for a datagram and return all that are available, at most `count`, each as from recvfrom."""
        if count < 1 or bufsize < 0:
            raise ValueError(f"recvmany({count}, {bufsize}): the count must be positive, and bufsize not negative")
        record = self.receive_record()
        box = self._box
        items = box.items
        records = [record] if record else []
        octets = 0
        try:
            while len(records) < count:
                record = items.popleft()
                octets += len(record)
                records.append(record)
        except IndexError:
            pass
        if len(records) > 1:
            box.consumed += octets + (len(records) - 1) * DATAGRAM_COST
            if box.consumed >= box.credit_due:
                self._connection.credit(box)
            self._connection.readers.taken_from(box)
            if box.shared:
                taken(self._connection, box, len(records) - 1)
        end = _HEADER + bufsize
        return [(record[_HEADER:end], _sender(record)) for record in records]  # type: ignore[misc]

    def _take_error(self) -> bytes:
        """The oldest SOCKET_ERROR. EAGAIN: there is none, because MSG_ERRQUEUE does not wait (recv(2)).

        But with a timeout the standard module waits until the socket has an error or a datagram.
        """
        self._check_open()
        box = self._box
        if not box.errors and self._timeout:
            self._connection.readers.wait(box, self._timeout)
        elif not box.errors:
            self._connection.look()
        try:
            return box.next_error()
        except IndexError:
            if self._connection.down:
                self._raise_error()
            raise would_block() from None
        finally:
            self._connection.readers.taken_from(box)

    # -- the state of the socket ----------------------------------------------------------------------------------

    def _request(self, op: str, **fields: object) -> dict[str, Any]:
        self._check_open()
        return self._connection.request(op, handle=self._box.handle, **fields)

    def _check_open(self) -> None:
        if self._box is _CLOSED:
            self._raise_error()

    def _raise_error(self, box: Description | None = None, writing: bool = False) -> None:
        """`box`: what a call waits at. If its stack was closed meanwhile, that is told and not the socket's end."""
        box = box or self._box
        if box is _CLOSED or (self._box is _CLOSED and not self._connection.down):
            raise OSError(errno.EBADF, self._gone)
        number, box.error = box.error, 0
        if self._connection.down:
            number = errno.ENETDOWN  # permanent
        if number:
            self._connection.readers.taken_from(box)
            raise os_error(number)
        if writing and box.shut_for_writing:
            raise os_error(errno.EPIPE)

    def _close(self) -> None:
        box, self._box = self._box, _CLOSED
        descriptor, self._descriptor = self._descriptor, None
        if box is not _CLOSED:
            self._connection.release(box, id(self), descriptor)

    def disown(self, reason: str) -> None:
        """In a forked child: the socket stays with the parent."""
        self._box.owners.pop(id(self), None)
        self._box, self._gone = _CLOSED, reason
        self._abandon()

    def inherit(self, connection: Connection, box: Description) -> None:
        """In a forked child: the same socket, by the child's own connection."""
        if self._box is _CLOSED:
            return
        self._box.owners.pop(id(self), None)
        self._connection = connection
        self._own(box)
        self._abandon()

    def _abandon(self) -> None:
        if self._descriptor is not None:
            self._descriptor.abandon()
            self._descriptor = None

    def __del__(self) -> None:
        if self._box is not _CLOSED and not self._connection.closed:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self._close()


def _octets(data: Any) -> bytes:
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}") from None
    return bytes(contiguous(view))


def _sender(record: bytes) -> Address | None:
    if not record:
        return None  # the end, after shutdown
    port, source = _SENDER.unpack_from(record)
    return _std.inet_ntoa(source), port
