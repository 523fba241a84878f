"""How stream sockets begin: connect, listen, accept. BaseSocket has the common part of all sockets."""

from __future__ import annotations

import errno
import socket as _std
from collections.abc import Callable
from typing import Self

from usernet.client.connection import REQUEST_TIMEOUT_S
from usernet.client.description import UNNAMED
from usernet.client.sharing import Waiting, claim, want_next
from usernet.client.streams import StreamDescription
from usernet.errors import os_error, would_block
from usernet.sockets.arguments import as_int
from usernet.sockets.base import BaseSocket
from usernet.sockets.datagrams import _CLOSED, Address, Datagrams
from usernet.sockets.sockaddr import parse

_DONTWAIT = int(_std.MSG_DONTWAIT)


class StreamOpening(BaseSocket):
    """See the module's docstring."""

    __slots__ = ()

    @property
    def _stream(self) -> StreamDescription:
        box = self._box
        if box is _CLOSED:
            self._raise_error()
        assert isinstance(box, StreamDescription)
        return box

    def _taken(self) -> StreamDescription:
        """The stream; if it is shared after a fork, it belongs to this process from now on, until another takes it."""
        box = self._box
        if isinstance(box, StreamDescription) and not (box.shared or box.adrift):
            return box  # the usual case
        box = self._stream
        if box.shared and not box.listening:
            self._request("take")
        if box.adrift and not box.told and box.established:
            self._connection.readers.wait(box, REQUEST_TIMEOUT_S, lambda: box.told or bool(box.reset))
        return box

    def _adopted(self, original: StreamOpening, box: StreamDescription) -> Self:
        """Initialise this object for `box`, a connection of the listener `original`."""
        Datagrams.__init__(self)
        self._family, self._type, self._proto = original._family, original._type, original._proto
        self._timeout, self._closed, self._io_refs = _std.getdefaulttimeout(), False, 0
        if self._timeout is None and original._timeout == 0:
            self._timeout = None  # Linux: an accepted socket blocks, whatever the listener's mode
        self._stack, self._kind, self._connection = original._stack, original._kind, original._connection
        self._own(box)
        return self

    # -- waiting --------------------------------------------------------------------------------------------------

    def _await(self, until: Callable[[], bool], flags: int = 0, writing: bool = False) -> None:
        """Wait for a condition. Raises the errors of a timeout."""
        box = self._stream
        timeout = 0.0 if flags & _DONTWAIT else self._timeout
        limit = box.send_timeout if writing else box.receive_timeout
        if timeout is not None or limit is None:
            self._connection.readers.wait(box, timeout, until)
            return
        try:
            self._connection.readers.wait(box, limit, until)
        except TimeoutError:
            raise would_block() from None

    def _changed(self, box: StreamDescription) -> None:
        """Octets were taken or written: update the descriptors."""
        self._connection.readers.taken_from(box)

    # -- names ----------------------------------------------------------------------------------------------------

    def connect(self, address: Address) -> None:
        """Open a connection. BlockingIOError (EINPROGRESS): the socket does not wait."""
        octets, port = parse(address, "connect", self._resolving())
        box = self._taken()
        if box.listening or (box.peer is not None and not box.connecting):  # also if the connection was reset
            raise os_error(errno.EISCONN)
        if box.connecting and not box.established and not box.reset and self._timeout == 0:
            self._connection.look()  # a program that calls again and again until there is an outcome
            if self._connection.down:
                self._raise_error()
        if box.connecting and box.reset and not box.attempted:
            self._outcome(box)
        if box.connecting and not box.reset:
            if self._timeout == 0 and not box.established:
                raise os_error(errno.EALREADY)
        else:
            if box.fast_connect and not box.connecting:
                if box.deferred is not None:
                    raise os_error(errno.EISCONN)
                box.deferred = _std.inet_ntoa(octets), port
                self._changed(box)
                return
            self._begin_connect(box, _std.inet_ntoa(octets), port)
            if self._timeout == 0:
                raise os_error(errno.EINPROGRESS)  # even if the result is known already, as on Linux
        self._await(lambda: box.established or bool(box.reset), writing=True)
        self._outcome(box)

    def _begin_connect(self, box: StreamDescription, host: str, port: int, **how: bool) -> None:
        box.begin()
        box.deferred = None
        try:
            reply = self._request("connect", address=host, port=port, **how)
        except BaseException:
            box.connecting = False
            raise
        box.peer = reply["peer"], port
        box.named = box.local[0]
        box.local = reply["local"], reply["port"]
        self._changed(box)

    @staticmethod
    def _outcome(box: StreamDescription) -> None:
        box.attempted = True
        if box.reset:
            number, box.error = box.error or errno.ECONNABORTED, 0  # Linux: the reason was reported already
            box.unconnected()
            raise os_error(number)
        box.connecting = False

    def connect_ex(self, address: Address) -> int:
        """As connect, but returns the errno; EAGAIN after a timeout."""
        try:
            self.connect(address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            if error.errno is None or isinstance(error, _std.gaierror):
                raise
            return error.errno
        return 0

    def disconnect(self) -> None:
        """EOPNOTSUPP: streams end by shutdown and close."""
        self._check_open()
        raise os_error(errno.EOPNOTSUPP)

    def getpeername(self) -> Address:
        """The peer. ENOTCONN: no connection."""
        box = self._stream
        self._connection.look()
        if box.peer is None or not box.established or box.over:
            raise os_error(errno.ENOTCONN)
        return box.peer

    def listen(self, backlog: int = 128) -> None:
        """Listen for connections; at most `backlog` of them wait for accept."""
        box = self._stream
        backlog = max(0, min(as_int(backlog), 4096))  # Linux net.core.somaxconn
        if box.connecting or box.peer is not None or box.deferred is not None:
            raise os_error(errno.EINVAL)  # Linux, __inet_listen_sk
        reply = self._request("listen", backlog=backlog)
        box.local = reply["address"], reply["port"]
        box.listens(backlog)
        if not box.shared:
            self._connection.send_all(box.granting())
        self._changed(box)

    def accept(self) -> tuple[Self, Address]:
        """(a new socket, the peer's address) for the next connection."""
        listener = self._stream
        if not listener.listening:
            raise os_error(errno.EINVAL)
        while True:
            with Waiting(self._connection, listener, listener.incoming, self._timeout == 0):
                self._await(lambda: bool(listener.incoming or listener.error or listener.ended))
            if listener.error:
                self._raise_error(listener)
            try:
                box = listener.incoming.popleft()
            except IndexError:
                if listener.ended:
                    raise os_error(errno.EINVAL) from None
                continue  # another thread has accepted it
            break
        if box.unclaimed:
            claim(self._connection, box)
        if not listener.shared:
            if listener.grant_due():
                self._connection.send_all(listener.granting())
        elif not listener.incoming:
            want_next(self._connection, listener)
        self._changed(listener)
        made = Datagrams.__new__(self.__class__)
        return made._adopted(self, box), box.peer or UNNAMED
