"""The load of streams, one process a role and side:
`python -m tests.faults.streams ROLE SIDE NET FOLDER OWN PEER TICK`.

bulk    numbered blocks as fast as the pace allows, one connection each way; the receiver compares every octet
calls   64 connections with a request of 64 octets each now and then, and 100 idle ones, which are asked once at the end
short   connections that are opened, asked once and closed, all the time, from either side

SIDE is `near`, the stack whose layers are hit, or `far`, its peer. NET says whose sockets: `usernet`, or `kernel` on
the kernel's end of the cable. TICK: seconds from block to block, and from request to request. Both sides of a flow
write into its book: the sender what was sent, the receiver (of bulk) or the caller what was answered. An error that
begins with WRONG or ENDED is about octets or about a connection.
"""

from __future__ import annotations

import ctypes
import gc
import selectors
import signal
import socket as kernel
import struct
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import ModuleType

from tests.faults.flows import COUNT, Book, Switchboard
from tests.faults.load import Pace

BULK_PORT, CALLS_PORT, SHORT_PORT = 5101, 5102, 5103
BLOCK_OCTETS = 1 << 14
CALL_OCTETS = 64
CALLERS, IDLE = 64, 100
SHORT_TICK_S = 0.02
PATIENCE_S = 30.0  # of any call: beyond, its connection is taken for lost
LOOK_S = 1.0  # interval at which a receiver looks whether what it waits for was sent
END_S = 5.0  # for connections to end after the load was told to stop
NUMBER = struct.Struct("!Q")
PATTERN = bytes(place * 7 % 251 for place in range(251)) * (BLOCK_OCTETS // 251 + 2)
WRONG, ENDED = "octets wrong: ", "connection lost: "
ROLES, SIDES = ("calls", "short", "bulk"), ("near", "far")  # in the order of their start


def block(number: int, octets: int = BLOCK_OCTETS) -> bytes:
    """A block that tells its number, by each of its octets."""
    return NUMBER.pack(number) + PATTERN[number % 251 :][: octets - NUMBER.size]


class End:
    """One side of the load: whose sockets, which addresses, which books."""

    def __init__(self, side: str, net: ModuleType, folder: Path, own: str, peer: str, tick_s: float) -> None:
        self.is_far = side == "far"
        self.net = net
        self.own, self.peer, self.tick_s = own, peer, tick_s
        self._folder = folder
        self.board = Switchboard(folder)

    def book(self, name: str, ordered: bool = True) -> Book:
        """A flow's book."""
        return Book(self._folder, name, ordered)

    @property
    def stopped(self) -> bool:
        """Whether the load is to end."""
        return bool(self.board.cells[Switchboard.STOP])

    def listener(self, port: int, backlog: int = 256):
        """A socket that listens; `accept` of it looks at the switchboard now and then."""
        listener = self.net.socket(self.net.AF_INET, self.net.SOCK_STREAM)
        listener.setsockopt(self.net.SOL_SOCKET, self.net.SO_REUSEADDR, 1)
        listener.bind((self.own, port))
        listener.listen(backlog)
        listener.settimeout(0.2)
        return listener

    def connected(self, port: int, first: bool = False):
        """A connection to the peer; `first`: the peer may not listen yet."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            sock = self.net.socket(self.net.AF_INET, self.net.SOCK_STREAM)
            try:
                sock.settimeout(PATIENCE_S)
                sock.setsockopt(self.net.IPPROTO_TCP, self.net.TCP_NODELAY, 1)
                sock.connect((self.peer, port))
                return sock
            except OSError:
                sock.close()
                if not first or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


# -- bulk


def bulk(end: End) -> None:
    """Send one way, take the other."""
    ways = ("bulk-in", "bulk-out") if end.is_far else ("bulk-out", "bulk-in")
    sent, received = (end.book(name) for name in ways)
    taker = threading.Thread(target=_take, args=(end, end.listener(BULK_PORT), received), daemon=True)
    taker.start()
    pace = Pace(end.board, end.tick_s)
    sock, is_first = None, True
    while not end.stopped:
        try:
            if sock is None:
                sock = end.connected(BULK_PORT, is_first)
                if is_first:
                    _ready(end, "bulk")
                is_first = False
            for _ in range(pace.due(time.monotonic())):
                sock.sendall(block(sent.next(time.monotonic())))
        except OSError as error:
            sent.error(f"{ENDED}sending: {error!r}", time.monotonic())
            if sock is not None:
                sock.close()
            sock = None
        time.sleep(pace.wait_s())
    if sock is not None:
        sock.close()
    taker.join(END_S)


def _take(end: End, listener, book: Book) -> None:
    while not end.stopped:
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            continue
        with sock:
            sock.settimeout(LOOK_S)
            try:
                _compare(sock, book)
            except OSError as error:
                if not end.stopped:
                    book.error(f"{ENDED}receiving: {error!r}", time.monotonic())


def _compare(sock, book: Book) -> None:
    """Until the end of the stream. The first block of a connection says which number it begins with."""
    buffer = bytearray(BLOCK_OCTETS)
    view, wanted = memoryview(buffer), -1
    while True:
        filled = 0
        while filled < BLOCK_OCTETS:
            octets = _taken(sock, view[filled:], book, wanted)
            if not octets:
                if filled:
                    book.error(f"{WRONG}the stream ended inside block {wanted}", time.monotonic())
                return
            filled += octets
        now = time.monotonic()
        number = NUMBER.unpack_from(buffer)[0] if wanted < 0 else wanted
        expected = block(number)
        if buffer == expected:
            book.answer(number, now)
        else:
            differing = sum(a != b for a, b in zip(buffer, expected, strict=True))
            book.error(f"{WRONG}{differing} of block {number}, which begins {buffer[:16].hex()}", now)
        wanted = number + 1


def _taken(sock, view: memoryview, book: Book, wanted: int) -> int:
    """As recv_into. TimeoutError: block `wanted` was sent long ago; the load may be paused, so silence says nothing."""
    while True:
        overdue = 0 <= wanted < book.cells[COUNT] and time.monotonic() > book.sent[wanted] + PATIENCE_S
        try:
            return sock.recv_into(view)
        except TimeoutError:
            if overdue:
                raise


# -- requests and responses, and idle connections


def calls(end: End) -> None:
    """The far side calls, the near side answers."""
    if end.is_far:
        _call(end)
    else:
        _answer(end)


def _answer(end: End) -> None:
    listener = end.listener(CALLS_PORT)
    listener.setblocking(False)
    book = end.book("calls", ordered=False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    _ready(end, "calls")
    open_ones, heard_at = 0, time.monotonic()
    while True:
        # The caller asks the idle ones after the stop, one after the other.
        if end.stopped and (not open_ones or time.monotonic() > heard_at + END_S):
            return
        for key, happened in selector.select(0.2):
            heard_at = time.monotonic()
            sock, owed = key.fileobj, key.data
            try:
                if sock is listener:
                    while True:
                        accepted, _ = listener.accept()
                        accepted.setblocking(False)
                        selector.register(accepted, selectors.EVENT_READ, bytearray())
                        open_ones += 1
                octets = sock.recv(4096) if happened & selectors.EVENT_READ else b""
                owed += octets
                if owed:
                    _pay(key, selector)
                    continue
            except BlockingIOError:
                continue
            except OSError as error:
                book.error(f"{ENDED}answering: {error!r}", time.monotonic())
            selector.unregister(sock)
            sock.close()
            open_ones -= 1


def _pay(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Send what is owed, as far as there is room: a call that does not wait finds none while a layer comes back."""
    sock, owed = key.fileobj, key.data
    try:
        del owed[: sock.send(owed)]
    except BlockingIOError:
        pass
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if owed else 0)
    if events != key.events:
        selector.modify(sock, events, owed)


def _call(end: End) -> None:
    book, idle_book = end.book("calls", ordered=False), end.book("idle", ordered=False)
    selector = selectors.DefaultSelector()
    free: deque = deque()
    for _ in range(CALLERS):
        sock = end.connected(CALLS_PORT, True)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, [-1, bytearray()])
        free.append(sock)
    idle = [end.connected(CALLS_PORT, True) for _ in range(IDLE)]
    _ready(end, "calls")
    pace = Pace(end.board, end.tick_s)
    while not end.stopped:
        now = time.monotonic()
        for _ in range(min(pace.due(now), len(free))):
            sock = free.popleft()
            number = book.next(time.monotonic())
            try:
                selector.get_key(sock).data[0] = number
                sock.send(block(number, CALL_OCTETS))
            except OSError as error:
                book.error(f"{ENDED}calling: {error!r}", time.monotonic())
                selector.unregister(sock)
                sock.close()
        for key, _ in selector.select(pace.wait_s()):
            _take_answer(key, free, book, selector)
    for sock in idle:
        now = time.monotonic()
        number = idle_book.next(now)
        try:
            sock.sendall(block(number, CALL_OCTETS))
            answer = sock.recv(CALL_OCTETS)
            if answer == block(number, CALL_OCTETS):
                idle_book.answer(number, time.monotonic())
            else:
                idle_book.error(f"{WRONG}{answer.hex()}", time.monotonic())
        except OSError as error:
            idle_book.error(f"{ENDED}idle: {error!r}", time.monotonic())
        sock.close()
    for sock in free:
        sock.close()


def _take_answer(key: selectors.SelectorKey, free: deque, book: Book, selector: selectors.BaseSelector) -> None:
    sock, (number, got) = key.fileobj, key.data
    try:
        octets = sock.recv(4096)
        if not octets:
            raise ConnectionResetError("end of stream")
    except BlockingIOError:
        return
    except OSError as error:
        book.error(f"{ENDED}waiting for an answer: {error!r}", time.monotonic())
        selector.unregister(sock)
        sock.close()
        return
    got += octets
    if len(got) < CALL_OCTETS:
        return
    if number >= 0 and got == block(number, CALL_OCTETS):
        book.answer(number, time.monotonic())
    else:
        book.error(f"{WRONG}an answer to number {number}: {got.hex()}", time.monotonic())
    key.data[:] = [-1, bytearray()]
    free.append(sock)


# -- short connections


def short(end: End) -> None:
    """Both sides call and answer."""
    book = end.book("short-in" if end.is_far else "short-out")
    server = threading.Thread(target=_serve_short, args=(end, end.listener(SHORT_PORT)), daemon=True)
    server.start()
    end.connected(SHORT_PORT, True).close()
    _ready(end, "short")
    while not end.stopped:
        now = time.monotonic()
        if not end.board.cells[Switchboard.PAUSE]:
            number = book.next(now)
            try:
                with end.connected(SHORT_PORT) as sock:
                    sock.sendall(block(number, CALL_OCTETS))
                    answer = b""
                    while len(answer) < CALL_OCTETS and (octets := sock.recv(CALL_OCTETS - len(answer))):
                        answer += octets
                if answer == block(number, CALL_OCTETS):
                    book.answer(number, time.monotonic())
                else:
                    book.error(f"{WRONG}{answer.hex()}", time.monotonic())
            except OSError as error:
                book.error(f"{ENDED}short: {error!r}", time.monotonic())
        time.sleep(max(0.0, now + SHORT_TICK_S - time.monotonic()))
    server.join(END_S)


def _serve_short(end: End, listener) -> None:
    while not end.stopped:
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            continue
        with sock:
            sock.settimeout(PATIENCE_S)
            try:
                question = b""
                while len(question) < CALL_OCTETS and (octets := sock.recv(CALL_OCTETS - len(question))):
                    question += octets
                sock.sendall(question)
            except OSError:
                pass  # the caller's book tells


def ready_cell(role: str, side: str) -> int:
    """The cell of the switchboard in which a process says that it is there."""
    return Switchboard.ROLES_READY + ROLES.index(role) * len(SIDES) + SIDES.index(side)


def _ready(end: End, role: str) -> None:
    end.board.cells[ready_cell(role, SIDES[end.is_far])] = 1


def main() -> None:
    """Run one role until told to stop."""
    role, side, net, folder, own, peer, tick_s = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never without the campaign
    if net == "kernel":
        sockets: ModuleType = kernel
    else:
        import usernet

        sockets = usernet
    gc.collect()
    gc.freeze()
    {"bulk": bulk, "calls": calls, "short": short}[role](End(side, sockets, Path(folder), own, peer, float(tick_s)))


if __name__ == "__main__":
    main()
