"""The modest flows beside the steady ones: what needs several packets, a group's consent, or a router's advice.

fragments   datagrams of 4,000 to 20,000 octets, there and back, asked by either end
groups      numbered datagrams to a group that the other end has joined, each way; a router's question who is in it
paths       a far host behind the kernel's end, over a link of a smaller MTU: DF up to that MTU, fragments beyond; and
            hosts there that have had no traffic yet, whose path MTU is still to be learnt

Roles: `far` is the far host, `router` the kernel's end of all this, `member` the application of the stack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as kernel
import struct
import time
from pathlib import Path

from tests.faults.flows import Book, Switchboard

TICK_S = 0.05  # 20 of each kind a second
KERNEL_END = "10.0.0.1"
ECHO_PORT = 5055  # of the stack's application
LARGE_ECHO_PORT = 5067
FAR_ECHO_PORT = 5068
GROUP_PORT = 5069
GROUP_IN, GROUP_OUT = "239.1.2.3", "239.1.2.4"  # joined by the stack's application, by the kernel's end
PASSING_GROUPS = ("239.1.3.1", "239.1.3.2")  # joined and left at once
FAR_NETWORK = "10.9.0.0/16"
ROUTER, FAR = "10.9.0.1", "10.9.0.2"
FRESH_FAR_NETWORK = "10.9.128.0/17"  # all of it is the far host
FAR_MTU = 1300
IP_UDP_OCTETS = 28
LARGE = range(4000, 20001)
LARGE_BURST, GROUP_BURST = 5, 8
LARGE_WINDOW = 8
PATH_PATIENCE_S, PATH_AGAIN_S = 2.0, 0.1
IP_PKTINFO, IP_MTU_DISCOVER, IP_MTU, PMTUDISC_DO = 8, 10, 14, 2  # ip(7), <linux/in.h>
NUMBER = struct.Struct("!Q")
PATTERN = bytes(range(251)) * 80
MEMBER_READY = "member-ready"
NAMESPACE = "far-pid"


def large(number: int) -> bytes:
    """The datagram of that number: its size goes with it."""
    return NUMBER.pack(number) + PATTERN[: LARGE[number * 977 % len(LARGE)] - NUMBER.size]


def sized(number: int, octets: int) -> bytes:
    """A numbered payload of so many octets."""
    return NUMBER.pack(number) + PATTERN[: octets - NUMBER.size]


def _large_window(board: Switchboard) -> int:
    """The most large datagrams each way that may be under way, where the steady flows have a window; 0: any number."""
    return min(board.cells[Switchboard.WINDOW], LARGE_WINDOW)


def taken(book: Book, endpoint: kernel.socket, made) -> None:
    """Everything that came for `endpoint` goes into the book; `made(number)` is what it should be."""
    try:
        while True:
            data = endpoint.recv(65535, kernel.MSG_DONTWAIT)
            now = time.monotonic()
            number = NUMBER.unpack_from(data)[0] if len(data) >= NUMBER.size else -1
            if number < 0 or data != made(number):
                book.error(f"{len(data)} octets came back that are not what was sent: {data[:16].hex()}", now)
            else:
                book.answer(number, now)
    except BlockingIOError:
        pass


class Ticks:
    """Due every TICK_S; and says which moments the campaign has asked for since the last tick."""

    def __init__(self, board: Switchboard) -> None:
        self._cells = board.cells
        self._next = time.monotonic()
        self._seen = list(board.cells)

    def wanted(self, cell: int) -> bool:
        """Once for each time that the campaign counts up `cell`."""
        wanted = self._cells[cell] != self._seen[cell]
        self._seen[cell] = self._cells[cell]
        return wanted

    def due(self, now: float) -> bool:
        """Whether a tick is due."""
        if now < self._next:
            return False
        self._next = max(self._next + TICK_S, now)
        return not self._cells[Switchboard.PAUSE]

    def stopped(self) -> bool:
        """The campaign is over."""
        return bool(self._cells[Switchboard.STOP])


def far(folder: Path, address: str, board: Switchboard) -> None:
    """The far host: an echo, in a network namespace that the lab joins to the kernel's end by this process's pid."""
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "pid").rename(folder / NAMESPACE)  # which is there once it is written
    endpoint = kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    endpoint.bind(("0.0.0.0", FAR_ECHO_PORT))
    endpoint.setsockopt(kernel.IPPROTO_IP, IP_MTU_DISCOVER, 0)
    endpoint.setsockopt(kernel.IPPROTO_IP, IP_PKTINFO, 1)
    endpoint.settimeout(0.2)
    while not board.cells[Switchboard.STOP]:
        try:
            data, ancillary, _, peer = endpoint.recvmsg(65535, 256)
            endpoint.sendmsg([data], ancillary, 0, peer)  # from the address that was asked
        except TimeoutError:
            continue
        except OSError:  # not joined to anything yet
            time.sleep(0.01)


def router(folder: Path, address: str, board: Switchboard) -> None:
    """Kernel sockets on the kernel's end of the cable."""
    large_in, group_in, group_out = (Book(folder, name) for name in ("large-in", "group-in", "group-out"))
    asker, echo, sender, member = (kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) for _ in range(4))
    asker.connect((address, ECHO_PORT))
    asker.setsockopt(kernel.IPPROTO_IP, IP_MTU_DISCOVER, 0)
    echo.bind((KERNEL_END, LARGE_ECHO_PORT))
    own = kernel.inet_aton(KERNEL_END)
    sender.setsockopt(kernel.IPPROTO_IP, kernel.IP_MULTICAST_IF, own)
    member.bind((GROUP_OUT, GROUP_PORT))
    member.setsockopt(kernel.IPPROTO_IP, kernel.IP_ADD_MEMBERSHIP, kernel.inet_aton(GROUP_OUT) + own)
    ticks = Ticks(board)
    while not ticks.stopped():
        now = time.monotonic()
        due = ticks.due(now)
        for _ in range(LARGE_BURST * ticks.wanted(Switchboard.FRAGMENTS) + due):
            if large_in.room(now, _large_window(board)):
                asker.send(large(large_in.next(now)))
        for _ in range(GROUP_BURST * ticks.wanted(Switchboard.GROUPS) + due):
            sender.sendto(sized(group_in.next(now), 56), (GROUP_IN, GROUP_PORT))
        taken(large_in, asker, large)
        taken(group_out, member, lambda number: sized(number, 56))
        try:
            while True:
                data, peer = echo.recvfrom(65535, kernel.MSG_DONTWAIT)
                echo.sendto(data, peer)
        except BlockingIOError:
            pass
        time.sleep(0.002)


class Member:
    """The application of the stack."""

    def __init__(self, folder: Path, address: str, board: Switchboard) -> None:
        import usernet

        self._usernet = usernet
        self._address = address
        self._board = board
        self._ticks = Ticks(board)
        self._large, self._in, self._out = (Book(folder, name) for name in ("large-out", "group-in", "group-out"))
        self._narrow, self._paths = (Book(folder, name, ordered=False) for name in ("narrow", "paths"))
        self._asker = self._socket()
        self._listener = self._socket((GROUP_IN, GROUP_PORT))
        self._listener.setsockopt(usernet.IPPROTO_IP, usernet.IP_ADD_MEMBERSHIP, self._membership(GROUP_IN))
        self._sender = self._socket()
        self._learn()
        self._df = self._socket()
        self._df.setsockopt(usernet.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        self._df.connect((FAR, FAR_ECHO_PORT))
        self._plain = self._socket()
        self._searching: dict[int, tuple] = {}  # number -> socket, when to try again
        (folder / MEMBER_READY).touch()

    def _socket(self, local: tuple[str, int] | None = None):
        endpoint = self._usernet.socket(self._usernet.AF_INET, self._usernet.SOCK_DGRAM)
        endpoint.bind(local or (self._address, 0))
        return endpoint

    def _membership(self, group: str) -> bytes:
        return kernel.inet_aton(group) + kernel.inet_aton(self._address)

    def _learn(self) -> None:
        """Before the first fault: the path MTU to the far host is known.

        By a socket of its own: the router may have something to say to each of several tries, and each is an error.
        """
        deadline = time.monotonic() + 5.0
        with self._socket() as scout:
            scout.setsockopt(self._usernet.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
            scout.connect((FAR, FAR_ECHO_PORT))
            while scout.getsockopt(self._usernet.IPPROTO_IP, IP_MTU) != FAR_MTU:
                if time.monotonic() > deadline:
                    raise TimeoutError("no router told the path MTU")
                with contextlib.suppress(OSError):  # EMSGSIZE: the router's answer to an earlier one
                    self._try(scout)
                time.sleep(0.02)

    def _try(self, endpoint) -> bool:
        """Send a datagram that only the first link carries, DF; True where it is refused, as it is too long."""
        try:
            endpoint.send(bytes(1500 - IP_UDP_OCTETS))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return True
        return False

    def run(self) -> None:
        """Until told to stop."""
        ticks = self._ticks
        while not ticks.stopped():
            now = time.monotonic()
            due = ticks.due(now)
            try:
                for _ in range(LARGE_BURST * ticks.wanted(Switchboard.FRAGMENTS) + due):
                    if self._large.room(now, _large_window(self._board)):
                        self._asker.sendto(large(self._large.next(now)), (KERNEL_END, LARGE_ECHO_PORT))
                groups = ticks.wanted(Switchboard.GROUPS)
                if groups:
                    self._pass_by()
                for _ in range(GROUP_BURST * groups + due):
                    self._sender.sendto(sized(self._out.next(now), 56), (GROUP_OUT, GROUP_PORT))
                if due:
                    self._far(now)
                if ticks.wanted(Switchboard.PATHS):
                    self._explore(now)
                self._search(now)
                taken(self._large, self._asker, large)
                taken(self._in, self._listener, lambda number: sized(number, 56))
                taken(self._narrow, self._df, _far_payload)
                taken(self._narrow, self._plain, _far_payload)
            except OSError as error:
                self._large.error(repr(error), time.monotonic())
            time.sleep(0.005)
        for endpoint in (self._asker, self._listener, self._sender, self._df, self._plain):
            endpoint.close()

    def _pass_by(self) -> None:
        """Join groups and leave them."""
        for group in PASSING_GROUPS:
            with self._socket() as endpoint:
                endpoint.setsockopt(self._usernet.IPPROTO_IP, self._usernet.IP_ADD_MEMBERSHIP, self._membership(group))
                endpoint.setsockopt(self._usernet.IPPROTO_IP, self._usernet.IP_DROP_MEMBERSHIP, self._membership(group))

    def _far(self, now: float) -> None:
        """One datagram that fits the way, DF, by turns with one that does not, to be fragmented; and one refused."""
        number = self._narrow.next(now)
        if number % 2:
            self._plain.sendto(_far_payload(number), (FAR, FAR_ECHO_PORT))
            return
        self._df.send(_far_payload(number))
        if not self._try(self._df):
            self._narrow.error("a datagram longer than the path carries was taken, with DF", now)

    def _explore(self, now: float) -> None:
        """A far host without earlier traffic: its path MTU is the answer."""
        number = self._paths.next(now)
        endpoint = self._socket()
        endpoint.setsockopt(self._usernet.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        endpoint.connect((kernel.inet_ntoa((0x0A098000 + 1 + number).to_bytes(4, "big")), FAR_ECHO_PORT))
        self._searching[number] = endpoint, now

    def _search(self, now: float) -> None:
        for number, (endpoint, due) in list(self._searching.items()):
            if now < due:
                continue
            try:
                found = self._try(endpoint)
            except OSError as error:  # what the router said of an earlier one
                found = error.errno == errno.EMSGSIZE
            if found:
                self._paths.answer(number, now)
            if found or now > self._paths.sent[number] + PATH_PATIENCE_S:
                endpoint.close()
                del self._searching[number]
            else:
                self._searching[number] = endpoint, now + PATH_AGAIN_S


def _far_payload(number: int) -> bytes:
    return sized(number, 2600 if number % 2 else FAR_MTU - IP_UDP_OCTETS)


def member(folder: Path, address: str, board: Switchboard) -> None:
    """Run the application."""
    Member(folder, address, board).run()
