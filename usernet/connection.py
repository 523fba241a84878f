"""The connection of this process to one stack's socket service.

Owns the two ZeroMQ sockets, the numbering of frames and the hand-over of what comes in to those who wait for it. There
is no thread of its own: whoever waits first reads the inbox for all (the leader), the others sleep until there is
something for them or the leader leaves. A restart of the service is noticed by its HELLO, which whoever reads or sends
next comes across; nothing of it is to be seen above.

Locks, in the order in which they may be taken: `_reading` (the leader's), `_sending`, `_waiting_lock`.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import secrets
import stat
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import msgspec
import zmq

from usernet.mailbox import Mailbox, Readers
from usernet.names import os_error, timed_out, would_block
from usernet.protocol import (
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    DATAGRAM,
    ERROR_RECORD,
    HELLO,
    MAX_FRAME_OCTETS,
    MAX_RECORDS,
    REPLY,
    REQUEST,
    RESUME,
    SOCKET_ERROR,
    VERSION,
    FrameError,
    inbox_name,
    pack_frame,
    unpack_frame,
)
from usernet.rundir import SERVICE_SOCKET
from usernet.sequence import Incoming, Journal, incarnation_of

CONNECT_TIMEOUT_S = 5.0
HELLO_INTERVAL_S = 0.5
REQUEST_TIMEOUT_S = 10.0
SEND_HIGH_WATER = 64  # frames that wait in ZeroMQ while the service is away
LOOK_INTERVAL_S = 0.005  # who only sends looks into the inbox that often, for errors and restarts
ALIVE_INTERVAL_S = 1.0  # who is blocked on the service asks that often whether the stack is still there
WAKE = "inproc://wake"
FAREWELL_S = 0.2  # how long a process that ends waits for its last frames to leave
INCARNATION = 1  # an application's pipe has one life; after a fork there is a new one with a new id

_from_bytes = int.from_bytes
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode


class _Unanswered:
    """A request under way."""

    __slots__ = ("box", "record", "sequence")

    def __init__(self, record: bytes, box: Mailbox | None) -> None:
        self.record = record
        self.box = box  # where its answer is waited for, if it is
        self.sequence: int | None = None  # of the frame that carries it; None: not sent yet


class Connection:
    """See the module's docstring. ConnectionRefusedError or TimeoutError where there is no stack."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = run_dir
        self.name = name
        self.pid = os.getpid()
        self.welcome: dict[str, object] = {}
        self.closed = False
        self.malformed = 0  # frames from the service that do not parse
        self.orphans: deque[int] = deque()  # handles of sockets that were dropped without close
        self._check_running()
        self.id = (1 << 32) + secrets.randbelow((1 << 53) - (1 << 32))
        self.inbox_path = run_dir / inbox_name(self.id)
        self.readers = Readers(self._read)
        self._sending = threading.Lock()
        self._boxes: dict[int, Mailbox] = {}  # by handle
        self._requests: dict[int, _Unanswered] = {}
        self._request_ids = itertools.count(1)
        self._incoming, self._journal = Incoming(), Journal()
        self._receive_timeout_ms = -1
        self._looked = 0.0
        self._context = zmq.Context()
        self.sockets: weakref.WeakSet = weakref.WeakSet()
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, zmq.ZMQError):
                raise OSError(error.errno, f"{error.strerror}: {self.inbox_path}") from error
            raise

    def _check_running(self) -> None:
        path = self.run_dir / SERVICE_SOCKET
        try:
            running = stat.S_ISSOCK(path.stat().st_mode)
        except OSError:
            running = False
        if not running:
            raise ConnectionRefusedError(
                errno.ECONNREFUSED,
                f"no usernet stack {self.name!r} is running (looked in {self.run_dir}); "
                "start one with: launcher.py up --detach",
            )

    def _open(self) -> None:
        self._inbox = self._socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 0)  # the receive buffers bound it; a bound here would lose replies too
        self._inbox.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._inbox.bind(f"ipc://{self.inbox_path}")
        self._inbox.bind(WAKE)
        self._outbox = self._socket(zmq.PUSH)
        self._outbox.connect(f"ipc://{self.run_dir / SERVICE_SOCKET}")
        deadline = monotonic() + CONNECT_TIMEOUT_S
        while not self.welcome:
            if monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the usernet stack {self.name!r} in {self.run_dir} did not answer within "
                    f"{CONNECT_TIMEOUT_S:.0f} s; see: launcher.py status"
                )
            hello = {"version": VERSION, "inbox": self.inbox_path.name, "done": self._incoming.done}
            self._push(self._unnumbered(HELLO, hello), deadline)
            until = monotonic() + HELLO_INTERVAL_S
            while not self.welcome and (left := until - monotonic()) > 0:
                self._read(left)

    def _socket(self, kind: int) -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_OCTETS)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 1000)
        return socket

    def alive(self) -> bool:
        """False once the stack was taken down: our inbox went with its run directory."""
        return not self.closed and self.inbox_path.exists()

    def close(self, linger_s: float = FAREWELL_S) -> None:
        """Let the last frames leave and be gone; the service closes the sockets of whoever is gone."""
        if self.closed or self.pid != os.getpid():
            return
        self.closed = True
        if not self.readers.reading.acquire(blocking=False):
            poke = self._context.socket(zmq.PUSH)  # an empty message to ourselves wakes the thread that is reading
            poke.connect(WAKE)
            poke.send(b"", zmq.NOBLOCK)
            if not self.readers.reading.acquire(timeout=ALIVE_INTERVAL_S):
                return
        if self._sending.acquire(timeout=2 * ALIVE_INTERVAL_S):
            self._context.destroy(linger=int(linger_s * 1000))
            self._sending.release()
            self.inbox_path.unlink(missing_ok=True)
        self.readers.leave()

    # -- receiving: what begins with _ only while leading ----------------------------------------------------------

    def look(self) -> None:
        """Take what is in the inbox, if nobody is at it anyway."""
        if self.readers.reading.acquire(blocking=False):
            try:
                for frame in self._drain():
                    self._take(frame)
            finally:
                self.readers.leave()

    def _read(self, timeout: float | None) -> bool:
        """Wait for a frame and take it; False where none came. None: for ever, 0: do not wait."""
        if self.closed:
            raise os_error(errno.ENETDOWN)
        milliseconds = -1 if timeout is None else max(0, math.ceil(timeout * 1000))
        if milliseconds != self._receive_timeout_ms:
            self._inbox.setsockopt(zmq.RCVTIMEO, milliseconds)
            self._receive_timeout_ms = milliseconds
        try:
            frame = self._inbox.recv()
        except zmq.Again:
            return False
        self._take(frame)
        return True

    def _drain(self) -> Iterator[bytes]:
        self._looked = monotonic()
        while int(self._inbox.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield self._inbox.recv(zmq.NOBLOCK)

    def _take(self, frame: bytes, late: bool = False) -> None:
        try:
            kind, incarnation, _, sequence, records = unpack_frame(frame)
            if sequence == 0:
                self._greeted(kind, incarnation, _decode(records[0]))
                return
            accepted = self._incoming.accept_late(sequence) if late else self._incoming.accept(incarnation, sequence)
        except (FrameError, IndexError, KeyError, msgspec.DecodeError):
            self.malformed += 1
            return
        if not accepted:
            return
        boxes = self._boxes
        if kind == DATAGRAM:
            for record in records:
                box = boxes.get(_from_bytes(record[:4], "little"))
                if box is not None:
                    box.items.append(record)
                    if box.waiters:
                        self.readers.wake(box)
        elif kind == REPLY:
            for record in records:
                self._replied(record)
        elif kind == SOCKET_ERROR:
            for record in records:
                self._failed(record)
        elif kind == CREDIT:
            for record in records:
                box = boxes.get(CREDIT_RECORD.unpack(record)[0])
                if box is not None:
                    self._tell_queued([box])

    def _replied(self, record: bytes) -> None:
        request = self._requests.pop(_decode(record)["id"], None)
        if request is not None and request.box is not None:
            request.box.items.append(record)
            self.readers.wake(request.box)

    def _failed(self, record: bytes) -> None:
        handle, number = ERROR_RECORD.unpack_from(record)[:2]
        box = self._boxes.get(handle)
        if box is not None:
            box.stale = True
            box.error = number or box.error
            self.readers.wake(box)

    def _greeted(self, kind: int, incarnation: int, fields: dict) -> None:
        if kind == RESUME:
            self._incoming.resumed(incarnation, int(fields["first"]))
        elif kind == HELLO and incarnation >= self._incoming.incarnation:
            done = int(fields["done"])
            later = []
            if self.welcome and incarnation > self._incoming.incarnation:
                # What the former incarnation got out before it died may still be behind this in the inbox: ZeroMQ
                # takes turns between the old connection and the new. It is not to be lost.
                for frame in self._drain():
                    if incarnation_of(frame) < incarnation:
                        self._take(frame, late=True)
                    else:
                        later.append(frame)
            again = self._incoming.started(incarnation) and bool(self.welcome)
            self.welcome = fields
            self._resume(done)
            if again:
                self._tell_queued(list(self._boxes.values()))
            for frame in later:
                self._take(frame)

    # -- sending ------------------------------------------------------------------------------------------------

    def send(self, kind: int, record: bytes, timeout: float | None) -> int:
        """Send one record; returns its frame's number. Blocks while the pipe is full, at most for `timeout`."""
        if monotonic() - self._looked > LOOK_INTERVAL_S:
            self.look()
        return self._number(kind, (record,), timeout)

    def _number(self, kind: int, records: tuple[bytes, ...] | list[bytes], timeout: float | None) -> int:
        with self._sending:
            if self.closed:
                raise os_error(errno.ENETDOWN)
            journal = self._journal
            sequence = journal.sequence + 1
            frame = pack_frame(kind, self.id, INCARNATION, sequence, records)
            try:
                self._outbox.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                if timeout == 0:
                    raise would_block() from None
                self._push(frame, None if timeout is None else monotonic() + timeout)
            journal.append(frame)
            return sequence

    def _push(self, frame: bytes, deadline: float | None) -> None:
        """Send, waiting for room in the pipe. ENETDOWN where the stack is gone."""
        while True:
            left = ALIVE_INTERVAL_S if deadline is None else min(deadline - monotonic(), ALIVE_INTERVAL_S)
            if left <= 0:
                raise timed_out()
            self._outbox.setsockopt(zmq.SNDTIMEO, math.ceil(left * 1000))
            try:
                self._outbox.send(frame)
                return
            except zmq.Again:
                if not self.alive():
                    raise os_error(errno.ENETDOWN) from None

    def _unnumbered(self, kind: int, fields: dict[str, object]) -> bytes:
        return pack_frame(kind, self.id, INCARNATION, 0, [_encode(fields)])

    def _resume(self, done: int) -> None:
        """Repeat what the service has not processed; requests that are no longer kept as frames are made anew."""
        with self._sending:
            deadline = monotonic() + CONNECT_TIMEOUT_S
            first, frames = self._journal.after(done)
            self._push(self._unnumbered(RESUME, {"first": first, "done": self._incoming.done}), deadline)
            for frame in frames:
                self._push(frame, deadline)
        for request in list(self._requests.values()):
            if request.sequence is not None and request.sequence < first:
                request.sequence = self._number(REQUEST, (request.record,), CONNECT_TIMEOUT_S)

    def credit(self, box: Mailbox) -> None:
        """Give receive buffer back that was consumed."""
        octets, box.consumed = box.consumed, 0
        try:
            self._number(CREDIT, (CREDIT_RECORD.pack(box.handle, min(octets, CREDIT_TOTAL - 1)),), 0)
        except BlockingIOError:
            box.consumed += octets  # the service is away: next time

    def _tell_queued(self, boxes: list[Mailbox]) -> None:
        """Say how much is queued, where the service asks or has forgotten it."""
        records = []
        for box in boxes:
            box.consumed = 0
            records.append(CREDIT_RECORD.pack(box.handle, min(box.queued(), CREDIT_TOTAL - 1) | CREDIT_TOTAL))
        for start in range(0, len(records), MAX_RECORDS):
            self._number(CREDIT, records[start : start + MAX_RECORDS], CONNECT_TIMEOUT_S)

    # -- requests -----------------------------------------------------------------------------------------------

    def request(self, op: str, **fields: object) -> dict:
        """Ask the service and wait for the answer; OSError where it is an error, TimeoutError where none comes."""
        self._bury_orphans()
        box = self.readers.new_box()
        number = self._ask(op, fields, box)
        try:
            self._await(box, op)
        finally:
            self._requests.pop(number, None)
        reply = _decode(box.items.popleft())
        if reply["errno"]:
            raise os_error(reply["errno"])
        return reply

    def _await(self, box: Mailbox, op: str) -> None:
        deadline = monotonic() + REQUEST_TIMEOUT_S
        while not box.items:
            try:
                self.readers.wait(box, ALIVE_INTERVAL_S)
            except TimeoutError:
                if monotonic() > deadline or not self.alive():
                    raise self._no_answer(op) from None

    def _ask(self, op: str, fields: dict[str, object], box: Mailbox | None) -> int:
        number = next(self._request_ids)
        request = _Unanswered(_encode({"id": number, "op": op, **fields}), box)
        self._requests[number] = request
        try:
            request.sequence = self.send(REQUEST, request.record, REQUEST_TIMEOUT_S)
        except BaseException as error:
            self._requests.pop(number, None)
            if isinstance(error, TimeoutError):
                raise self._no_answer(op) from None
            raise
        return number

    def _no_answer(self, op: str) -> OSError:
        if not self.alive():
            return OSError(errno.ENETDOWN, f"the usernet stack in {self.run_dir} was taken down")
        return TimeoutError(errno.ETIMEDOUT, f"the usernet stack in {self.run_dir} did not answer {op!r}")

    def open_socket(self, kind: str) -> Mailbox:
        """A new socket of the service; its mailbox knows its handle."""
        reply = self.request("socket", type=kind)
        box = self.readers.new_box()
        box.handle = reply["handle"]
        box.set_buffer(reply["receive_buffer"])
        self._boxes[box.handle] = box
        return box

    def close_socket(self, handle: int) -> None:
        """Close it; there is nothing to wait for, as later requests come after this one."""
        if self._boxes.pop(handle, None) is not None and not self.closed:
            self._ask("close", {"handle": handle}, None)

    def _bury_orphans(self) -> None:
        while self.orphans:
            self.close_socket(self.orphans.popleft())

