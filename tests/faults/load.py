"""The load, one process a role: `python -m tests.faults.load ROLE FOLDER ADDRESS`.

kernel   on the kernel's end: pings and UDP datagrams to the stack, an echo for the stack's applications; looks at the
         cable for what should not be there
echo     an application of the stack that sends back what it gets
client   an application of the stack that talks to the kernel's echo
churn    an application that opens, binds, uses and closes sockets all the time

Each is one loop, paced by the clock: one message of each of its kinds every TICK_S. Where the loop is late it catches
up by a few and forgets the rest, so that a slow machine is not flooded. Where the switchboard has a window, each steady
flow has at most so many datagrams under way: then what a process that has to wait for a processor finds afterwards fits
into the queues in front of it, and what is lost is lost by the stack.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import socket as kernel
import struct
import sys
import time
from collections import deque
from pathlib import Path
from select import select

from tests.faults import extra, igmp
from tests.faults.flows import COUNT, Book, Switchboard

TICK_S = 0.001  # 1,000 of each kind a second
CATCH_UP = 4
BURST = 48  # of each kind, at once
FRESH_NEIGHBORS = 4  # addresses to resolve, at once
ECHO_PORT = 5055  # the application's
KERNEL_ECHO_PORT = 5066
KERNEL_END = "10.0.0.1"
FRESH_NETWORK = "10.0.128.0/17"  # all of it answers on the kernel's end (`Lab` adds a local route)
NUMBER = struct.Struct("!Q")
PAYLOAD_TAIL = bytes(range(48))  # numbered payloads are 56 octets, as ping(8)'s
RECEIVE_BUFFER_OCTETS = 1 << 22
SOL_RAW, ICMP_FILTER = 255, 1  # icmp.h: a mask of ICMP types not to be received
SIOCDARP = 0x8953
ETH_P_ALL = 3
REASSEMBLY_TIMEOUT = bytes((11, 1))  # RFC 792: due 30 s after fragments of a datagram were lost on their way
CHURN_TICK_S = 0.02
CHURN_OPEN = 16
CHURN_PORT = 7000
CHURN_ANSWER_S, CHURN_PATIENCE_S = 0.5, 5.0  # the latter with a window


def _sum16(octets: bytes) -> int:
    return int.from_bytes(octets, "big") % 65535


class Pace:
    """Says how many of each kind are due."""

    def __init__(self, board: Switchboard, tick_s: float = TICK_S) -> None:
        self._cells = board.cells
        self._tick_s = tick_s
        self._next = time.monotonic()
        self._bursts = board.cells[Switchboard.BURSTS]

    def due(self, now: float) -> int:
        """How many to send now."""
        cells = self._cells
        if cells[Switchboard.PAUSE]:
            self._next = now + self._tick_s
            return 0
        count = 0
        while self._next <= now and count < CATCH_UP:
            self._next += self._tick_s
            count += 1
        if self._next <= now:
            self._next = now + self._tick_s
        if cells[Switchboard.BURSTS] != self._bursts:
            self._bursts = cells[Switchboard.BURSTS]
            count += BURST
        return count

    def wait_s(self) -> float:
        """Until the next is due."""
        return max(0.0, min(self._next - time.monotonic(), self._tick_s))


class KernelEnd:
    """Kernel sockets on the kernel's end of the cable."""

    def __init__(self, folder: Path, address: str, board: Switchboard) -> None:
        self._board = board
        self._address = address
        self._pings, self._echoes = Book(folder, "ping"), Book(folder, "kernel-to-app")
        self._cable, self._query = Book(folder, "cable"), Book(folder, "query")
        self._answered = 0  # questions of the router's
        self._identifier = os.getpid() & 0xFFFF
        self._raw = kernel.socket(kernel.AF_INET, kernel.SOCK_RAW, kernel.IPPROTO_ICMP)
        self._raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ~1 & 0xFFFFFFFF))  # echo replies only
        self._raw.connect((address, 0))
        self._udp = kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        self._udp.connect((address, ECHO_PORT))
        self._echo = kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        self._echo.bind(("0.0.0.0", KERNEL_ECHO_PORT))
        self._router = igmp.socket(KERNEL_END)
        self._tap = kernel.socket(kernel.AF_PACKET, kernel.SOCK_RAW)  # hears nothing before it is bound
        _see_only_the_unusual(self._tap)
        self._tap.bind(("tap0", ETH_P_ALL))
        for each in (self._raw, self._udp, self._echo, self._tap):
            each.setblocking(False)
            each.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, RECEIVE_BUFFER_OCTETS)

    def run(self) -> None:
        """Until told to stop."""
        board, pace = self._board.cells, Pace(self._board)
        sockets = (self._raw, self._udp, self._echo, self._tap)
        resolutions, groups = board[Switchboard.RESOLUTIONS], board[Switchboard.GROUPS]
        while not board[Switchboard.STOP]:
            now = time.monotonic()
            for _ in range(pace.due(now)):
                self._send(now)
            if board[Switchboard.GROUPS] != groups:
                groups = board[Switchboard.GROUPS]
                self._query.next(now)
                igmp.ask(self._router)
            if board[Switchboard.RESOLUTIONS] != resolutions:
                resolutions = board[Switchboard.RESOLUTIONS]
                self._forget_the_stack()
            ready = select(sockets, (), (), pace.wait_s())[0]
            now = time.monotonic()
            if self._raw in ready:
                self._take_replies(now)
            if self._udp in ready:
                self._take_answers(now)
            if self._echo in ready:
                self._echo_back()
            if self._tap in ready:
                self._take_unusual(now)

    def _send(self, now: float) -> None:
        window = self._board.cells[Switchboard.WINDOW]
        if self._pings.room(now, window):
            self._ping(now)
        if self._echoes.room(now, window):
            try:
                self._udp.send(NUMBER.pack(self._echoes.next(now)) + PAYLOAD_TAIL)
            except OSError as error:
                self._echoes.error(f"send: {error}", now)

    def _ping(self, now: float) -> None:
        number = self._pings.next(now)
        body = struct.pack("!HH", self._identifier, number & 0xFFFF) + NUMBER.pack(number) + PAYLOAD_TAIL
        check = 0xFFFF - _sum16(b"\x08\0\0\0" + body)
        try:
            self._raw.send(b"\x08\0" + check.to_bytes(2, "big") + body)
        except OSError as error:
            self._pings.error(f"send: {error}", now)

    def _forget_the_stack(self) -> None:
        """arp(7): remove the neighbour entry, so that the kernel has to ask for the stack's MAC."""
        address = struct.pack("HH4s8x", kernel.AF_INET, 0, kernel.inet_aton(self._address))
        try:
            fcntl.ioctl(self._udp, SIOCDARP, struct.pack("16s16si16s16s", address, b"", 0, b"", b"tap0"))
        except OSError:
            pass  # there was none

    def _take_replies(self, now: float) -> None:
        try:
            while True:
                packet = self._raw.recv(2048)
                if struct.unpack_from("!H", packet, 24)[0] != self._identifier:
                    continue
                if packet[28:] != packet[28:36] + PAYLOAD_TAIL or _sum16(packet[20:]):
                    self._pings.error("a reply with other octets than the request", now)
                else:
                    self._pings.answer(NUMBER.unpack_from(packet, 28)[0], now)
        except BlockingIOError:
            pass

    def _take_answers(self, now: float) -> None:
        try:
            while True:
                _check(self._echoes, self._udp.recv(2048), now)
        except BlockingIOError:
            pass
        except OSError as error:  # ECONNREFUSED: the stack said Port Unreachable
            self._echoes.error(f"recv: {error}", now)

    def _echo_back(self) -> None:
        try:
            while True:
                data, peer = self._echo.recvfrom(2048)
                self._echo.sendto(data, peer)
        except BlockingIOError:
            pass

    def _take_unusual(self, now: float) -> None:
        try:
            while True:
                frame, (_, protocol, direction, *_) = self._tap.recvfrom(2048)
                if direction == kernel.PACKET_OUTGOING:  # the kernel's own, to the stack
                    continue
                if protocol == 0x0806:
                    self._cable.log("arp", frame[20:22].hex() + " " + kernel.inet_ntoa(frame[38:42]), now)
                    self._cable.next(now)
                elif frame[23] == igmp.PROTOCOL:
                    self._take_report(frame[14:], now)
                elif frame[23] == kernel.IPPROTO_ICMP and frame[34:36] == REASSEMBLY_TIMEOUT:
                    self._cable.log("given up", frame[:80].hex(), now)
                else:
                    self._cable.error(f"from the stack: {frame[:60].hex()}", now)
        except BlockingIOError:
            pass

    def _take_report(self, packet: bytes, now: float) -> None:
        """A report that names the group answers the questions of before; one that takes leave of it is wrong."""
        if self._board.cells[Switchboard.STOP]:
            return  # the application has left by now, and rightly so
        wrong, groups = igmp.read(packet)
        if not wrong and groups.get(extra.GROUP_IN) == igmp.LEFT:
            wrong = "it left a group that an application has joined"
        if wrong:
            self._cable.error(f"IGMP: {wrong}: {packet.hex()}", now)
        elif extra.GROUP_IN in groups:
            for number in range(self._answered, self._query.cells[COUNT]):
                self._query.answer(number, now)
            self._answered = self._query.cells[COUNT]


def _see_only_the_unusual(tap: kernel.socket) -> None:
    """A classic BPF filter (Linux networking/filter.rst): no UDP, no ICMP echo, as that is what the books are about."""
    accept, drop = 0xFFFF, 0
    program = [  # opcode, jump if true, if false, operand
        (0x28, 0, 0, 12), (0x15, 0, 6, 0x0800),  # EtherType; not IPv4: accept
        (0x30, 0, 0, 23), (0x15, 5, 0, 17), (0x15, 0, 3, 1),  # protocol: UDP: drop; not ICMP: accept
        (0x30, 0, 0, 34), (0x15, 2, 0, 0), (0x15, 1, 0, 8),  # ICMP type: echo reply, echo: drop
        (0x06, 0, 0, accept), (0x06, 0, 0, drop),
    ]
    octets = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(octets)
    tap.setsockopt(kernel.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(buffer)))  # SO_ATTACH_FILTER


def _check(book: Book, data: bytes, now: float) -> None:
    if len(data) != 56 or data[8:] != PAYLOAD_TAIL:
        book.error(f"an answer with other octets than the question: {data[:64].hex()}", now)
    else:
        book.answer(NUMBER.unpack_from(data)[0], now)


def echo(folder: Path, address: str, board: Switchboard) -> None:
    """Sends back what it gets; whatever goes wrong is an application error."""
    import usernet

    book = Book(folder, "echo")
    endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind(("0.0.0.0", ECHO_PORT))
    endpoint.settimeout(0.5)
    board.cells[Switchboard.READY] = 1
    while not board.cells[Switchboard.STOP]:
        try:
            data, peer = endpoint.recvfrom(65535)
            endpoint.sendto(data, peer)
        except TimeoutError:
            continue
        except OSError as error:
            book.error(repr(error), time.monotonic())
    endpoint.close()


def client(folder: Path, address: str, board: Switchboard) -> None:
    """Numbered datagrams to the kernel's echo; on request, to neighbours that are not resolved yet."""
    import usernet

    book, fresh = Book(folder, "app-to-kernel"), Book(folder, "fresh", ordered=False)
    endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind((address, 0))
    explorer = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    target = (KERNEL_END, KERNEL_ECHO_PORT)
    pace = Pace(board)
    resolutions = board.cells[Switchboard.RESOLUTIONS]
    waited_for = 0
    while not board.cells[Switchboard.STOP]:
        now = time.monotonic()
        try:
            endpoint.settimeout(None)  # a send waits where the pipe is full
            for _ in range(pace.due(now)):
                if book.room(now, board.cells[Switchboard.WINDOW]):
                    endpoint.sendto(NUMBER.pack(book.next(now)) + PAYLOAD_TAIL, target)
            if board.cells[Switchboard.RESOLUTIONS] != resolutions:
                resolutions = board.cells[Switchboard.RESOLUTIONS]
                for _ in range(FRESH_NEIGHBORS):
                    number = fresh.next(time.monotonic())
                    explorer.sendto(NUMBER.pack(number) + PAYLOAD_TAIL, (_fresh_address(number), KERNEL_ECHO_PORT))
                    waited_for += 1
            if waited_for:
                try:
                    while True:
                        _check(fresh, explorer.recv(2048, usernet.MSG_DONTWAIT), time.monotonic())
                        waited_for -= 1
                except BlockingIOError:
                    pass
            endpoint.settimeout(pace.wait_s())
            while True:
                data = endpoint.recv(2048)
                _check(book, data, time.monotonic())
                endpoint.settimeout(0)
        except (TimeoutError, BlockingIOError):
            continue
        except OSError as error:
            book.error(repr(error), time.monotonic())
    endpoint.close()
    explorer.close()


def _fresh_address(number: int) -> str:
    return kernel.inet_ntoa((0x0A008000 + 1 + number % 32000).to_bytes(4, "big"))


def churn(folder: Path, address: str, board: Switchboard) -> None:
    """Sockets that come and go, by turns UDP (to the echo, through the host) and ping (to the kernel)."""
    import usernet

    book = Book(folder, "churn")
    open_sockets: deque = deque()
    while not board.cells[Switchboard.STOP]:
        now = time.monotonic()
        if board.cells[Switchboard.PAUSE]:
            time.sleep(CHURN_TICK_S)
            continue
        number = book.next(now)
        try:
            if number % 2:
                endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM, usernet.IPPROTO_ICMP)
                question = _ping_question(number)
                target = (KERNEL_END, 0)
            else:
                endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
                port = CHURN_PORT + number % (4 * CHURN_OPEN)
                endpoint.bind((address, port))
                if endpoint.getsockname() != (address, port):
                    book.error(f"bound to {port}, but called {endpoint.getsockname()}", now)
                question, target = NUMBER.pack(number) + PAYLOAD_TAIL, (address, ECHO_PORT)
            open_sockets.append(endpoint)
            book.sent[number] = time.monotonic()  # what is asked of the network, less what the bind took
            endpoint.settimeout(CHURN_PATIENCE_S if board.cells[Switchboard.WINDOW] else CHURN_ANSWER_S)
            endpoint.sendto(question, target)
            try:
                data = endpoint.recv(2048)
                if number % 2:
                    data = data[8:]
                _check(book, data, time.monotonic())
            except TimeoutError:
                pass  # lost: the book tells
            if len(open_sockets) > CHURN_OPEN:
                open_sockets.popleft().close()
        except OSError as error:
            book.error(repr(error), time.monotonic())
        time.sleep(max(0.0, now + CHURN_TICK_S - time.monotonic()))
    for endpoint in open_sockets:
        endpoint.close()


def _ping_question(number: int) -> bytes:
    return struct.pack("!BBHHH", 8, 0, 0, 0, number & 0xFFFF) + NUMBER.pack(number) + PAYLOAD_TAIL


def main() -> None:
    """Run one role until told to stop."""
    role, folder, address = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never without the campaign
    board = Switchboard(folder)
    gc.collect()
    gc.freeze()
    roles = {"kernel": lambda *arguments: KernelEnd(*arguments).run(), "echo": echo, "client": client, "churn": churn,
             "far": extra.far, "router": extra.router, "member": extra.member}
    roles[role](folder, address, board)


if __name__ == "__main__":
    main()
