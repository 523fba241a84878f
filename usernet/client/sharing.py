"""Sockets over fork(2) (docs/decisions/fork.md): the child opens its own connection and becomes an owner of each.

The child knows the id of its parent's connection, which is secret to all others, and names it in its request. fork
returns in the parent after this, so that the parent may close the sockets, or end, at once.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Sized
from contextlib import suppress
from typing import Any

from usernet.client.connection import Connection
from usernet.client.description import Description
from usernet.client.streams import StreamDescription
from usernet.pipe.messages import WANT, WANT_NOW, WANT_RECORD, WANT_TAKEN, WANT_WAITS
from usernet.pipe.streams import READ

FORK_S = 5.0  # fork waits at most this long in the parent for the child
SHARE_MAX = 256  # sockets in a request

Sockets = list[tuple[Description, list[Any]]]  # descriptions, and the socket objects of each


def sockets_of(connection: Connection) -> Sockets:
    """The sockets that the program has open."""
    found = []
    for box in connection.descriptions():
        objects = [endpoint for reference in list(box.owners.values()) if (endpoint := reference()) is not None]
        if objects:
            found.append((box, objects))
    return found


# -- around a fork ----------------------------------------------------------------------------------------------------


class Fork:
    """One call of fork in the parent: `connections` are those with open sockets."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = [each for each in connections
                             if not each.closed and not each.down and sockets_of(each)]
        self._pipe: tuple[int, int] | None = os.pipe() if self._connections else None
        self._listeners = [(each, box) for each in self._connections for box, _ in sockets_of(each)
                           if isinstance(box, StreamDescription) and box.listening and not box.shared]
        for connection in self._connections:
            with suppress(OSError):
                self._settle(connection)

    @staticmethod
    def _settle(connection: Connection) -> None:
        """The stack knows exactly how far each connection was read: the child continues there."""
        for box, _ in sockets_of(connection):
            if isinstance(box, StreamDescription) and box.established and box.read != box.read_said:
                connection.send_all([(READ, box.reading())])
        connection.request("list", after=0xFFFFFFFF)  # all earlier records have arrived when it is answered

    def in_parent(self) -> None:
        """Wait until the child owns the sockets too, or has ended."""
        if self._pipe is None:
            return
        reading, writing = self._pipe
        os.close(writing)
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.poll(FORK_S * 1000)
        os.close(reading)
        for connection in self._connections:
            with suppress(OSError):
                connection.request("list", after=0xFFFFFFFF)  # so this process knows that they are shared
        for connection, box in self._listeners:
            with suppress(OSError):
                _give_back(connection, box)

    def in_child(self, reopen: Callable[[Connection], Connection]) -> None:
        """Become an owner of the sockets. `reopen`: another connection to the same stack."""
        if self._pipe is None:
            return
        reading, writing = self._pipe
        os.close(reading)
        try:
            for former in self._connections:
                _inherit(former, reopen)
        finally:
            os.close(writing)


def _inherit(former: Connection, reopen: Callable[[Connection], Connection]) -> None:
    """In the child: all sockets of one connection."""
    inherited = sockets_of(former)
    try:
        connection = reopen(former)
        shared = _share(connection, former, [box for box, _ in inherited])
    except OSError as error:
        for _, objects in inherited:
            for each in objects:
                each.disown(f"not inherited over fork: {error}")
        return
    for box, objects in inherited:
        if box.handle not in shared:
            for each in objects:
                each.disown("not inherited over fork: it was closed, or the stack has no room for more sockets")
            continue
        copy = connection.boxes[box.handle]
        for each in objects:
            each.inherit(connection, copy)
        if not copy.owners:  # a destructor has closed all of them meanwhile
            connection.forget(copy)


def _give_back(connection: Connection, listener: StreamDescription) -> None:
    """Connections that have not been accepted are for any of the processes, if there are several."""
    if not listener.shared:
        return
    unaccepted = _removed(listener)
    connection.readers.taken_from(listener)
    try:
        while unaccepted:
            connection.request("giveback", handle=listener.handle,
                               connections=[box.handle for box in unaccepted[:SHARE_MAX]])
            del unaccepted[:SHARE_MAX]
    except OSError as error:
        if error.errno == errno.EINVAL:  # the other owners have ended, or closed it, in the meantime
            _put_back(listener, unaccepted)
            connection.readers.wake(listener)
        if listener.handle not in connection.boxes:  # another thread has closed it
            for box in unaccepted:
                connection.forget(box, reset=True)


def _removed(listener: StreamDescription) -> list[StreamDescription]:
    """All connections to the listener that were not accepted; what arrives for them is still stored."""
    unaccepted = []
    with suppress(IndexError):
        while True:
            unaccepted.append(listener.incoming.popleft())
    with suppress(KeyError):
        while True:
            unaccepted.append(listener.coming.popitem()[1])
    for box in unaccepted:
        box.given_back = True
    return unaccepted


def _put_back(listener: StreamDescription, unaccepted: list[StreamDescription]) -> None:
    for box in unaccepted:
        box.given_back, box.listener = False, listener
        listener.coming[box.handle] = box
        if box.established or box.reset:
            box.arrive()


def _share(connection: Connection, former: Connection, boxes: list[Description]) -> set[int]:
    """The handles of which this process is an owner now; their descriptions are in `connection.boxes`."""
    handles = [box.handle for box in boxes]
    for box in boxes:  # before the answer, because SHARED comes first
        connection.boxes[box.handle] = box.inherited(connection.readers.lock)
    shared: set[int] = set()
    for start in range(0, len(handles), SHARE_MAX):
        reply = connection.request("share", owner=former.id, handles=handles[start : start + SHARE_MAX])
        shared.update(handle for handle, _ in reply["shared"])
    for handle in set(handles) - shared:
        del connection.boxes[handle]
    return shared


# -- reading from a shared socket -------------------------------------------------------------------------------------


def _want(connection: Connection, box: Description, flags: int) -> None:
    connection.send_all([(WANT, WANT_RECORD.pack(box.handle, flags))])


class Waiting:
    """Around waiting for a datagram or for a connection, in `arrived`: if the socket is shared, ask for it.

    `at_once`: the caller does not wait; all that is there has arrived when this begins. It is no generator with
    `contextmanager`, because each blocking `recv` needs it.
    """

    __slots__ = ("_arrived", "_at_once", "_box", "_connection", "_me")

    def __init__(self, connection: Connection, box: Description, arrived: Sized, at_once: bool) -> None:
        self._connection, self._box, self._arrived, self._at_once = connection, box, arrived, at_once
        self._me = threading.get_ident()

    def __enter__(self) -> None:
        box = self._box
        box.waiters.add(self._me)
        if box.shared and not self._arrived:
            try:
                _want(self._connection, box, WANT_NOW if self._at_once else WANT_WAITS)
                if self._at_once:
                    self._connection.request("getsockname", handle=box.handle)
            except BaseException:
                box.waiters.discard(self._me)
                raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        box = self._box
        try:
            if (box.shared and isinstance(error, OSError) and not box.descriptors and not box.waiters - {self._me}
                    and not self._at_once):
                _want(self._connection, box, 0)
        finally:
            box.waiters.discard(self._me)


def taken(connection: Connection, box: Description, count: int) -> None:
    """The program has `count` datagrams of a shared socket: no other process gets them if this one ends.

    If nothing is left, ask for more for threads or descriptors that wait.
    """
    before = min(box.before_shared, count)
    box.before_shared -= before
    flags = [WANT_TAKEN] * (count - before)
    if not box.items and (box.waiters or box.descriptors):
        flags.append(WANT_WAITS | (flags.pop() if flags else 0))
    connection.send_all([(WANT, WANT_RECORD.pack(box.handle, each)) for each in flags])


def want_next(connection: Connection, box: Description) -> None:
    """Nothing is left of a shared socket: ask for more if a thread or a descriptor waits."""
    if box.waiters or box.descriptors:
        _want(connection, box, WANT_WAITS)


def claim(connection: Connection, box: StreamDescription) -> None:
    """accept returns a connection to a shared listener: until now it would have gone to another process at our end."""
    box.unclaimed = False
    _want(connection, box, WANT_TAKEN)
