"""The connection of this process to one stack's socket service.

Owns the numbering of frames, and passes received frames to the threads that wait for them. It has no thread of its own:
the first waiting thread (the leader) reads the inbox for all; the others sleep until there is something for them or the
leader stops. Only if the program waits for descriptors, a thread is started (`serve_descriptors`). A restart of the
service is noticed by its HELLO, which the next thread that reads or sends finds; the layers above do not notice it.

Locks, in the order in which they may be acquired: `readers.reading` (the leader's), `_sending`, `readers.lock`. A
destructor or a signal handler never waits for any of them in `release`, nor in `send` if its own thread is sending; its
frames wait in the queue of `_sending`.

When the stack is gone (stopped, or its keeper killed), the inbox was removed with its run directory. Waiting and
sending threads check this twice a second; from then on every call fails with ENETDOWN. A new stack of the same name is
a different one: sockets are not moved to it.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from usernet.client.arrivals import Arrivals, queued
from usernet.client.buffers import Buffers
from usernet.client.channel import Line, find
from usernet.client.description import Description
from usernet.client.dispatcher import Mailbox, Readers
from usernet.client.memory import Lending
from usernet.client.readiness import Descriptor
from usernet.client.requests import Requests, Unanswered, decode
from usernet.client.sender import Frame, Sender
from usernet.client.streams import StreamDescription
from usernet.errors import os_error
from usernet.pipe.frame import MAX_RECORDS, VERSION, FrameError, unpack_frame
from usernet.pipe.messages import (
    BYE,
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    HELLO,
    INBOX_NUMBER_END,
    REFUSAL,
    REPLY,
    REQUEST,
    RESUME,
    inbox_name,
)
from usernet.pipe.numbering import NEXT, Incoming, incarnation_of
from usernet.pipe.run_dir import INBOXES
from usernet.pipe.streams import (
    INFO_HEADER,
    STREAM_INFO,
    STREAM_MEMORY,
)

CONNECT_TIMEOUT_S = 5.0
HELLO_INTERVAL_S = 0.5
REQUEST_TIMEOUT_S = 10.0
LOOK_INTERVAL_S = 0.005  # a process that only sends checks its inbox at this interval, for errors and restarts
# at its end, a process waits this long until its last frames are taken: a service that hangs is replaced
FAREWELL_S = 0.7
ALIVE_INTERVAL_S = 0.5  # interval of checking that the stack still exists, while waiting or sending
HANDLE_MAX = 0xFFFFFFFF


class Connection:
    """See the module's docstring. ConnectionRefusedError or TimeoutError: no stack."""

    def __init__(self, run_dir: Path, name: str, tool: bool = False) -> None:
        """`tool`: it is for a tool of the command line, which gets a place also if there is none for applications."""
        self.run_dir = run_dir
        self.tool = tool
        self.name = name
        self.pid = os.getpid()
        self.welcome: dict[str, Any] = {}
        self.malformed = 0  # frames from the service that cannot be decoded
        directory = find(run_dir, name)
        self._token = secrets.token_hex(16)  # only the answer to our HELLO contains it
        self._refusal: dict[str, Any] = {}  # the refusal of the service
        self.inbox_path = run_dir / INBOXES / inbox_name(1 + secrets.randbelow(INBOX_NUMBER_END - 1))
        self.readers = Readers(self._read)
        self._sender = Sender()
        self._sending, self._unnumbered = self._sender.lock, self._sender.unnumbered
        self.send = self._sender.send  # after `glance`
        self.boxes: dict[int, Description] = {}  # {handle: socket}
        self._requests = Requests()
        self._arrivals = Arrivals(self.readers, self.boxes, self._close_unwanted)
        self._incoming = Incoming()
        self._looked = 0.0
        self._ending = False
        self._checked = monotonic()
        self._line = self._sender.line = Line(directory, self.inbox_path, self._sending)
        self._lending = Lending(self._line.directory)
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        deadline = monotonic() + CONNECT_TIMEOUT_S
        while not self.welcome:
            if self._line.refused:
                raise OSError(errno.EUSERS, f"the usernet stack {self.name!r} in {self.run_dir} has no place for "
                              f"another connection of process {os.getpid()}; see: launcher.py status")
            if monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the usernet stack {self.name!r} in {self.run_dir} did not answer within "
                    f"{CONNECT_TIMEOUT_S:.0f} s; see: launcher.py status"
                )
            hello = {"version": VERSION, "inbox": self.inbox_path.name, "done": self._incoming.done,
                     "token": self._token, "tool": self.tool}
            with self._sending.lock:
                self._line.send(self._unnumbered(HELLO, hello), CONNECT_TIMEOUT_S)
            until = monotonic() + HELLO_INTERVAL_S
            while not self.welcome and not self._line.refused and (left := until - monotonic()) > 0:
                self._read(left)
                if self._refusal:
                    raise OSError(self._refusal["errno"], f"the usernet stack {self.name!r} in {self.run_dir}: "
                                  f"{self._refusal['error']}")

    @property
    def id(self) -> int:
        """Assigned by the service: a secret between the two."""
        return self._sender.id

    @property
    def down(self) -> bool:
        """True if the stack is gone."""
        return self._sender.down

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._line.closed

    def alive(self) -> bool:
        """False after the connection was closed or the stack was stopped."""
        return self._line.alive()

    def close(self, linger_s: float = FAREWELL_S) -> None:
        """Send BYE, which closes all sockets, after the service has taken all that was sent, and close the connection.

        Waits at most `linger_s` for this.
        """
        if self.closed or self.pid != os.getpid():
            return
        self._ending = True
        deadline = monotonic() + linger_s
        if self.welcome and self.alive():
            try:
                self._await_service(linger_s)
                self.send(BYE, (), max(0.0, deadline - monotonic()))
            except OSError:
                pass  # the service is restarting: it will find the inbox removed
        self._line.close()
        if not self.readers.reading.acquire(timeout=max(0.0, deadline - monotonic())):
            return
        if self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
            self._line.destroy()
            self._sending.release()
        self.readers.leave()

    def abandon(self) -> None:
        """In a forked child, which has a connection of its own for what it inherits."""
        self._line.abandon()

    def _await_service(self, timeout: float) -> None:
        """Return when the service has taken all that was sent: its answer to a later request shows this.

        Otherwise the service could notice the end of this process before its last frames, or die while processing them.
        """
        box = self.readers.new_box()
        number = self._ask("list", {"after": HANDLE_MAX}, box, timeout)
        try:
            self.readers.wait(box, timeout)
        finally:
            self._requests.under_way.pop(number, None)

    # -- receiving: what begins with _ only while leading ----------------------------------------------------------

    def look(self) -> None:
        """Process the frames in the inbox, unless another thread is reading."""
        if self.readers.lead():
            try:
                self._looked = monotonic()
                if self.closed:
                    return
                for frame in self._line.waiting():
                    self._take(frame)
                self._check_alive()
            finally:
                self.readers.leave()

    def glance(self) -> None:
        """As `look`, if that was not done recently, so that a process that only sends notices errors and restarts."""
        if not self.readers.served and monotonic() - self._looked > LOOK_INTERVAL_S:
            self.look()

    def _read(self, timeout: float | None) -> bool:
        """Wait for a frame and process it; False: none arrived. None: for ever, 0: do not wait."""
        if self._sender.down:
            raise os_error(errno.ENETDOWN)
        frame = self._line.receive(ALIVE_INTERVAL_S if timeout is None or timeout > ALIVE_INTERVAL_S else timeout)
        if frame is None:
            self._check_alive()
            return False
        self._take(frame)
        return True

    def _check_alive(self) -> None:
        """ENETDOWN if the stack is gone; checked at most once per interval."""
        if self.down or (now := monotonic()) - self._checked < ALIVE_INTERVAL_S * 0.9:
            return
        self._checked = now
        if not self.alive():
            self._lost()

    def _lost(self) -> None:
        """The stack is gone: fail all waiting threads."""
        self._sender.down = True
        requests = [request.box for request in list(self._requests.under_way.values()) if request.box is not None]
        for box in [*list(self.boxes.values()), *requests]:
            box.error = errno.ENETDOWN
            self.readers.wake(box)

    def wake_reader(self) -> None:
        """Let the reading thread check its mailbox again."""
        self._line.poke()

    def serve_descriptors(self) -> None:
        """From now on a thread reads, so that descriptors become ready while no thread waits here."""
        with self.readers.lock:
            if self.readers.served:
                return
            self.readers.served = True
        self.wake_reader()
        threading.Thread(target=self._serve, name=f"usernet {self.name}", daemon=True).start()

    def _serve(self) -> None:
        try:
            self.readers.serve(self.alive, ALIVE_INTERVAL_S)
        except OSError:
            pass  # closed
        if not self.alive():
            self._lost()

    def _take(self, frame: bytes, late: bool = False) -> None:
        try:
            kind, incarnation, number, sequence, records = unpack_frame(frame)
            if number != self._sender.id or not number:
                if self._sender.id or sequence:
                    self.malformed += 1  # not from the service
                else:
                    self._introduced(kind, number, incarnation, decode(records[0]))
                return
            if sequence == 0:
                self._greeted(kind, incarnation, decode(records[0]))
                return
            incoming = self._incoming
            verdict = incoming.judge_late(sequence) if late else incoming.judge(incarnation, sequence)
        except (FrameError, IndexError, KeyError, msgspec.DecodeError):
            self.malformed += bool(frame)  # an empty frame only wakes the reader
            return
        if verdict is not NEXT:
            return
        if kind == REPLY:
            for record in records:
                self._replied(record)
        else:
            self._answer(self._arrivals.take(kind, records))

    def stream_info(self, handle: int) -> bytes:
        """tcp's information about a connection: INFO_HEADER and struct tcp_info; empty if there is none."""
        box, number = self.readers.new_box(), self._requests.next_number()
        self._arrivals.infos[number] = box
        try:
            self.glance()
            self.send(STREAM_INFO, (INFO_HEADER.pack(handle, 0, number),), REQUEST_TIMEOUT_S)
            self.readers.wait(box, REQUEST_TIMEOUT_S)
        finally:
            del self._arrivals.infos[number]
        return box.items.popleft() if box.items else b""

    def _replied(self, record: bytes) -> None:
        self._requests.replied(record, self.boxes, self.readers)

    def _introduced(self, kind: int, number: int, incarnation: int, fields: dict[str, Any]) -> None:
        """The first answer to our HELLO."""
        if fields.get("token") != self._token:
            self.malformed += 1
        elif kind == HELLO and number:
            self._sender.id = number
            self._greeted(kind, incarnation, fields)
        elif kind == REFUSAL:
            self._refusal = fields

    def _greeted(self, kind: int, incarnation: int, fields: dict[str, Any]) -> None:
        if kind == RESUME:
            if self._incoming.resumed(incarnation, int(fields["first"])):
                self._recover()
        elif kind == HELLO and incarnation >= self._incoming.incarnation:
            done = int(fields["done"])
            if self.welcome and incarnation > self._incoming.incarnation:
                # Frames that the former process sent before it died may still be unread, because they are in another
                # connection. They must not be lost.
                later = []
                for frame in self._line.waiting():
                    if incarnation_of(frame) < incarnation:
                        self._take(frame, late=True)
                    else:
                        later.append(frame)
                self._line.put_back(later)  # another HELLO may be among them, so nothing may overtake them
            again = self._incoming.started(incarnation) and bool(self.welcome)
            self.welcome = fields
            self._resume(done)
            if again:
                boxes = list(self.boxes.values())
                self._tell_queued([box for box in boxes if not isinstance(box, StreamDescription)])
                for listener in boxes:
                    if listener.shared:
                        self._answer(self._arrivals.wanted(listener))
                    elif isinstance(listener, StreamDescription) and listener.listening:
                        self._answer(listener.granting())

    def _recover(self) -> None:
        """Frames of the service are lost: ask again for everything except datagrams."""
        boxes = list(self.boxes.values())
        self._tell_queued([box for box in boxes if not isinstance(box, StreamDescription)])
        for box in boxes:
            if isinstance(box, StreamDescription):
                self._answer(box.recovering())
        for request in list(self._requests.under_way.values()):
            if request.sequence is not None:  # the same request gets the same answer
                self._insist(REQUEST, (request.record,), request)

    def _answer(self, sends: list[tuple[int, bytes]]) -> None:
        """Send what the service is owed for its own records."""
        for kind, record in sends:
            self._insist(kind, (record,))

    def _insist(self, kind: int, records: Sequence[bytes], request: Unanswered | None = None) -> None:
        """Send, however long the pipe is full, unless this process ends. ENETDOWN: the stack is gone.

        A leader that gave up would leave a stream without room, or descriptors without the thread that serves them.
        The lock of sending is free again at times, for calls that do not wait.
        """
        while True:
            try:
                self.send(kind, records, FAREWELL_S if self._ending else CONNECT_TIMEOUT_S, request)
                return
            except TimeoutError:
                if self._ending:
                    raise

    # -- sending ------------------------------------------------------------------------------------------------

    def send_all(self, sends: list[tuple[int, bytes]]) -> None:
        """Send control records."""
        for kind, record in sends:
            self.send(kind, (record,), CONNECT_TIMEOUT_S)

    def _resume(self, done: int) -> None:
        """Repeat the frames that the service has not processed; encode requests whose frames are no longer stored
        again."""
        patience = FAREWELL_S if self._ending else None
        with self._sending.lock:
            first, frames = self._sender.sent.after(done)
            self._line.send(self._unnumbered(RESUME, {"first": first, "done": self._incoming.done}), patience)
            for frame in frames:
                self._line.send(frame, patience)
        self._sending.attend()
        for request in list(self._requests.under_way.values()):
            if request.sequence is not None and request.sequence < first:
                self._insist(REQUEST, (request.record,), request)

    def credit(self, box: Description) -> None:
        """Return consumed receive buffer to the service."""
        octets, box.consumed = box.consumed, 0
        try:
            self.send(CREDIT, (CREDIT_RECORD.pack(box.handle, min(octets, CREDIT_TOTAL - 1)),), 0)
        except BlockingIOError:
            box.consumed += octets  # the service is restarting: try again later

    def _tell_queued(self, boxes: list[Description]) -> None:
        """Report how much is queued, because the service has forgotten it."""
        records = [queued(box) for box in boxes]
        for start in range(0, len(records), MAX_RECORDS):
            self._insist(CREDIT, records[start : start + MAX_RECORDS])

    # -- requests -----------------------------------------------------------------------------------------------

    def request(self, op: str, **fields: object) -> dict[str, Any]:
        """Send a request and wait for the answer. OSError: the errno in the answer. TimeoutError: no answer."""
        if self._sending.mine():
            raise os_error(errno.EDEADLK)  # a destructor or a signal handler during a send cannot wait
        box = self.readers.new_box()
        number = self._ask(op, fields, box)
        try:
            self._await(box, op)
        finally:
            self._requests.under_way.pop(number, None)
        reply = decode(box.items.popleft())
        if reply["errno"]:
            raise os_error(reply["errno"])
        return reply

    def _await(self, box: Mailbox, op: str) -> None:
        deadline = monotonic() + REQUEST_TIMEOUT_S
        while not box.items:
            try:
                self.readers.wait(box, ALIVE_INTERVAL_S)
            except TimeoutError:
                if monotonic() > deadline:
                    raise self._no_answer(op) from None
            if box.error:
                raise self._no_answer(op)

    def _ask(self, op: str, fields: dict[str, object], box: Mailbox | None, timeout: float = REQUEST_TIMEOUT_S) -> int:
        number, request = self._requests.new(op, fields, box)
        try:
            self.glance()
            self.send(REQUEST, (request.record,), timeout, request)
        except BaseException as error:
            self._requests.under_way.pop(number, None)
            if isinstance(error, TimeoutError):
                raise self._no_answer(op) from None
            raise
        return number

    def _no_answer(self, op: str) -> OSError:
        if not self.alive():
            return OSError(errno.ENETDOWN, f"the usernet stack in {self.run_dir} was taken down")
        return TimeoutError(errno.ETIMEDOUT, f"the usernet stack in {self.run_dir} did not answer {op!r}")

    def share(self, box: StreamDescription) -> None:
        """Offer tcp the memory of this process for the octets of a stream, if the stack has one for it."""
        if box.shared:
            return  # another process could not read them
        box.offered = True
        memory = self._lending.memory()
        if memory is not None:
            box.memory = memory
            self.send_all([(STREAM_MEMORY, memory.offer(box.handle))])

    def buffers(self) -> Buffers | None:
        """The buffers for datagrams that this process sends; None: they travel in records."""
        memory = self._lending.memory() if self.welcome.get("buffers") else None
        return memory.buffers if memory is not None else None

    def open_socket(self, kind: str, protocol: int = 0) -> Description:
        """Open a socket. `protocol`: of a raw socket."""
        fields = {"protocol": protocol} if protocol else {}
        return self.boxes[self.request("socket", type=kind, segments=True, **fields)["handle"]]

    def release(self, box: Description, owner: int, descriptor: Descriptor | None) -> None:
        """Close one duplicate of a socket; with the last one, the socket. Waits for no lock: see CombiningLock.

        A second call for the same `owner` does nothing, whichever thread or destructor is first.
        """
        if descriptor is not None:
            box.descriptors.discard(descriptor)
            descriptor.close()
        if box.owners.pop(owner, None) is None or box.owners:
            return
        self.forget(box)

    def forget(self, box: Description, reset: bool = False) -> None:
        """Close a socket at the service. No answer is awaited, because later requests are executed after it."""
        if self.boxes.pop(box.handle, None) is None or self.closed or self.down or sys.is_finalizing():
            return
        if self.pid != os.getpid():  # a destructor in a forked child: the connection is the parent's
            return
        fields: dict[str, object] = {"linger": 0} if reset else {}
        if isinstance(box, StreamDescription):
            fields = {**box.closing(), **fields}
        if isinstance(box, StreamDescription) and box.listening:  # first, so that they stay if it has other owners
            for unaccepted in [*list(box.coming.values()), *list(box.incoming)]:
                self.forget(unaccepted, reset=True)
        _, request = self._requests.new("close", {"handle": box.handle, **fields}, None)
        self._sending.defer(Frame(REQUEST, (request.record,), request))

    def _close_unwanted(self, handle: int) -> None:
        """Reset a connection whose listener was closed."""
        _, request = self._requests.new("close", {"handle": handle, "linger": 0}, None)
        self._insist(REQUEST, (request.record,), request)

    def descriptions(self) -> list[Description]:
        """All open sockets."""
        return list(self.boxes.values())
