"""TLS over the streams of a stack, with the standard ssl module.

OpenSSL needs a descriptor of the kernel, or memory buffers. Here it gets memory buffers (ssl.MemoryBIO), whose octets
are copied from and to the stream, a record at a time, as OpenSSL reads a descriptor: what it has not asked for stays in
the stream, where select sees it. The rest is the standard class's.
"""

from __future__ import annotations

import errno
import socket as _std
import ssl
import threading
import weakref
from typing import Any

from usernet.compat import standard
from usernet.sockets.base import BaseSocket

RECORD_HEADER_OCTETS = 5  # RFC 8446 section 5.1: type, version (2), length of the rest (2)
_INCOMPLETE = "The operation did not complete"

_wrap_standard = ssl.SSLContext.wrap_socket


class _Carried:
    """Replaces OpenSSL's connection: calls it, and transfers the octets of its memory buffers."""

    def __init__(self, connection: Any, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, stream: BaseSocket,
                 owner: Any) -> None:
        # A reference to the owner would be a cycle, and an unclosed socket would stay until the garbage is collected.
        object.__setattr__(self, "_parts", (connection, incoming, outgoing, stream, weakref.ref(owner)))
        object.__setattr__(self, "_unsent", b"")
        object.__setattr__(self, "_header", b"")  # of the record that arrives
        object.__setattr__(self, "_rest", 0)  # octets of it that have not arrived, once its header has
        # One thread may read while another writes. Only one at a time calls OpenSSL, which never waits; the octets that
        # it has written leave in order.
        object.__setattr__(self, "_calling", threading.Lock())
        object.__setattr__(self, "_sending", threading.Lock())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._parts[0], name, value)

    def read(self, *arguments: Any) -> Any:
        return self._carry(self._parts[0].read, *arguments)

    def write(self, data: Any) -> int:
        self._send()
        written: int = self._carry(self._parts[0].write, data)
        try:
            self._send()
        except ssl.SSLWantWriteError:
            pass  # they are in the buffer, and leave before later ones
        return written

    def do_handshake(self) -> None:
        self._carry(self._parts[0].do_handshake)
        self._send()

    def shutdown(self) -> Any:
        self._carry(self._parts[0].shutdown)
        return self._parts[4]()

    def _carry(self, call: Any, *arguments: Any) -> Any:
        _, incoming, _, stream, _ = self._parts
        while True:
            try:
                with self._calling:
                    result = call(*arguments)
            except ssl.SSLWantReadError:
                self._try_to_send()
                try:
                    data = stream.recv(self._rest or RECORD_HEADER_OCTETS - len(self._header))
                except BlockingIOError:
                    raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, f"{_INCOMPLETE} (read)") from None
                with self._calling:
                    if data:
                        self._follow(data)
                        incoming.write(data)
                    else:
                        incoming.write_eof()
            except ssl.SSLError:
                self._try_to_send()  # an alert
                raise
            else:
                self._try_to_send()
                return result

    def _follow(self, data: bytes) -> None:
        """Where in its record the stream is after `data`."""
        header, rest = self._header, self._rest
        if rest:
            rest -= len(data)
        else:
            header += data
            if len(header) == RECORD_HEADER_OCTETS:
                header, rest = b"", int.from_bytes(header[3:])
        object.__setattr__(self, "_header", header)
        object.__setattr__(self, "_rest", rest)

    def _send(self, wait: bool = True) -> None:
        """Send the octets that OpenSSL has written. SSLWantWriteError: this would block.

        `wait`: for another sending thread; otherwise that thread sends them, because it checks again before it stops.
        """
        outgoing = self._parts[2]
        while (self._unsent or outgoing.pending) and self._sending.acquire(wait):
            try:
                with self._calling:
                    data = self._unsent + outgoing.read()
                self._send_in_turn(data)
            finally:
                self._sending.release()

    def _send_in_turn(self, data: bytes) -> None:
        try:
            while data:
                sent = self._parts[3].send(data)
                data = data[sent:]
        except BlockingIOError:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, f"{_INCOMPLETE} (write)") from None
        finally:
            object.__setattr__(self, "_unsent", data)

    def _try_to_send(self) -> None:
        try:
            self._send(wait=False)
        except (ssl.SSLWantWriteError, OSError):
            pass  # the next call reports the error


Delegating = type("Delegating", (standard.Socket,), standard.METHODS)


class StackSSLSocket(ssl.SSLSocket, Delegating):  # type: ignore[misc, valid-type]
    """An SSLSocket over a stream of a stack."""

    _connected: bool
    _sslobj: Any

    @classmethod
    def over(cls, sock: Any, context: ssl.SSLContext, server_side: bool, do_handshake_on_connect: bool,
             suppress_ragged_eofs: bool, server_hostname: str | None, session: Any) -> StackSSLSocket:
        """As SSLContext.wrap_socket, with the same checks."""
        if sock.type != _std.SOCK_STREAM:
            raise NotImplementedError("only stream sockets are supported")
        if server_side and server_hostname:
            raise ValueError("server_hostname can only be specified in client mode")
        if server_side and session is not None:
            raise ValueError("session can only be specified in client mode")
        if context.check_hostname and not server_hostname:
            raise ValueError("check_hostname requires server_hostname")
        made = cls.__new__(cls)
        standard.become(made, standard.give_up(sock))  # type: ignore[arg-type]
        made._context, made._session, made._sslobj = context, session, None
        made.server_side = server_side
        made.server_hostname = context._encode_hostname(server_hostname)  # type: ignore[attr-defined]
        made.do_handshake_on_connect = do_handshake_on_connect
        made.suppress_ragged_eofs = suppress_ragged_eofs
        made._connected = False
        try:
            made.getpeername()
            made._connected = True
            made._begin()
            if do_handshake_on_connect:
                if made.gettimeout() == 0.0:
                    raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
                made.do_handshake()
        except OSError as error:
            if made._connected or error.errno != errno.ENOTCONN:
                made.close()
                raise
            made._refuse_what_came_before()
        except ValueError:
            made.close()
            raise
        return made

    def _refuse_what_came_before(self) -> None:
        """Octets of a connection that has ended did not come through TLS: CVE-2023-40217."""
        try:
            if not standard.inner_of(self).recv(1, _std.MSG_DONTWAIT):  # type: ignore[union-attr]
                return
        except OSError:
            return
        self.close()
        refused = ssl.SSLError(errno.ENOTCONN, "Closed before TLS handshake with data in recv buffer.")
        refused.reason, refused.library = refused.args[1], None  # type: ignore[assignment]
        raise refused

    def _begin(self) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = self._context._wrap_bio(
            incoming, outgoing, self.server_side, self.server_hostname, owner=self, session=self._session)
        self._sslobj = _Carried(connection, incoming, outgoing, standard.inner_of(self), self)  # type: ignore

    def _real_connect(self, addr: Any, connect_ex: bool) -> Any:
        if self.server_side:
            raise ValueError("can't connect in server-side mode")
        if self._connected or self._sslobj is not None:
            raise ValueError("attempt to connect already-connected SSLSocket!")
        self._begin()
        inner = standard.inner_of(self)
        try:
            result = (inner.connect_ex if connect_ex else inner.connect)(addr)  # type: ignore[union-attr]
            if not result:
                self._connected = True
                if self.do_handshake_on_connect:
                    self.do_handshake()
        except (OSError, ValueError):
            self._sslobj = None
            raise
        return result

    def _create(self, *_: Any, **__: Any) -> Any:
        raise TypeError("use SSLContext.wrap_socket")


def wrap_socket(self: ssl.SSLContext, sock: Any, server_side: bool = False, do_handshake_on_connect: bool = True,
                suppress_ragged_eofs: bool = True, server_hostname: str | None = None, session: Any = None) -> Any:
    """SSLContext.wrap_socket for sockets of a stack and of the kernel."""
    arguments = server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname, session
    if standard.inner_of(sock) is None:
        return _wrap_standard(self, sock, *arguments)
    return StackSSLSocket.over(sock, self, *arguments)


def install() -> None:
    """From now on contexts wrap the sockets of a stack."""
    ssl.SSLContext.wrap_socket = wrap_socket  # type: ignore[method-assign, assignment]
