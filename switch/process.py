"""The switch's process: sockets, clock and files around the core.

It holds the flock on the wire's lock file during its whole life, so a wire has at most one switch. It finds ports by
their socket files, at the start by listing them, later when they introduce themselves. A pidfd shows the end of a
port's process. With the last port the switch ends and removes its files. If it is killed, a keeper on the wire starts
the next (supervisor.switch_service), which lists the ports and learns the stations again.

The wire's directory is its root directory, so it can reach no other socket. It removes the directory itself by
descriptors of those above, which are good for nothing else: no permitted call but unlinkat(2) and openat(2) takes one,
and Landlock lets these two only remove empty directories.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import socket
import sys
import time
from pathlib import Path

from bus.runtime.outbox import PACK_OCTETS, PACK_RECORDS
from bus.runtime.peers import listener_pid
from bus.wire import (
    CONNECTIONS_MAX,
    MESSAGE_OCTETS_MAX,
    NEW_PORTS,
    PORTS,
    SWITCH_COUNTERS,
    SWITCH_LOCK,
    SWITCH_SOCKET,
    Numbered,
    Users,
    pack,
    port_name,
    port_number,
    unpack,
)
from packets import vnet
from switch import plain
from switch.core import Switch
from switch.counters import Counters as C
from usernet.pipe.contract import Push, Trust, bounded, open_poller
from usernet.pipe.run_dir import PARENTS

PORTS_MAX = 256
WAITING_MAX = 1000  # messages for a port while its link layer comes back: as many as frames at a TAP
DESCRIPTORS_A_PORT = 4  # a pidfd, a PUSH and its connection, the connection that came from it
COUNTERS_OCTETS = mmap.PAGESIZE
BEAT_NS = COUNTERS_OCTETS // 8 - 1  # the word with CLOCK_MONOTONIC of the loop's last turn
TICK_S = 0.1  # the longest turn: as in a layer (bus.runtime.event_loop); otherwise the keepers would consider it hung


class Port:
    """One stack on the wire: its process, and the pipe to its link layer."""

    def __init__(self, number: int, pidfd: int, outbox: Push, incarnation: int) -> None:
        self.number = number
        self.pidfd = pidfd
        self.outbox = outbox
        self.messages = Numbered(incarnation)
        self.offload = False  # it takes frames with a virtio_net_hdr
        self.repeat()

    def send(self, message: bytes) -> bool:
        """Send it with its number. False: too many wait already."""
        numbered = self.messages.next(message)
        if not self.outbox.send(numbered):
            return False
        self.messages.sent(numbered)
        return True

    def repeat(self) -> None:
        """Send again what the port may not have."""
        for message in self.messages.repeated():
            if not self.outbox.send(message):
                return  # the port asks again when it sees what comes after these


class Place:
    """The directory of a wire with what a switch needs of it, opened before the switch gives up its rights.

    `above`: the directories to remove when they are empty, innermost first: (descriptor of the parent, name).
    """

    def __init__(self, directory: Path) -> None:
        self.folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.counters = _counter_words(directory / SWITCH_COUNTERS)
        self.listener = _listener(directory / SWITCH_SOCKET)
        removed = [directory, directory.parent]
        if directory.parent.parent.name in PARENTS:  # empty after the last stack
            removed.append(directory.parent.parent)
        self.above = [(os.open(each.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), each.name) for each in removed]


class Process:
    """The switch of the wire at `place`, whose directory now has the path `directory`."""

    def __init__(self, place: Place, directory: Path, pipes: str) -> None:
        self._place = place
        self._directory = directory
        self._counters = place.counters
        self._switch = Switch(self._counters)
        self._incarnation = int(time.monotonic() * 1e3) & 0xFFFFFFFF or 1  # another one than the switch before
        self._ports: dict[int, Port] = {}
        self._by_pidfd: dict[int, Port] = {}
        self._poller = open_poller(pipes, Trust(os.geteuid(), Users(os.geteuid())))
        self._ports_max = bounded(PORTS_MAX, self._poller.descriptors_reserved, DESCRIPTORS_A_PORT)
        self._inbox = self._poller.pull(place.listener, MESSAGE_OCTETS_MAX, CONNECTIONS_MAX, self._refused)

    def run(self) -> None:
        """Serve until no port is left, then remove the wire."""
        gc.collect()
        gc.freeze()
        wait, pushes, by_pidfd, read = self._poller.epoll.poll, self._poller.pushes, self._by_pidfd, self._inbox.read
        while self._look():
            while self._ports:
                ready = wait(TICK_S)
                now = time.monotonic()
                self._counters[BEAT_NS] = int(now * 1e9)
                self._inbox.expire(now)
                ended = [by_pidfd[descriptor] for descriptor, _ in ready if descriptor in by_pidfd]
                for descriptor, _ in ready:
                    if descriptor in pushes:
                        pushes[descriptor].hear()
                    else:
                        for message in read(descriptor) or ():
                            self._take(message, now)
                for port in ended:  # last, because the numbers of its descriptors may be reused at once
                    self._leave(port)
        self._remove()

    def _look(self) -> bool:
        """Add the ports whose files exist and remove the files of ended ones. False: there is no port."""
        for path in self._directory.glob(PORTS):
            if self._admit(path) is None and not listener_pid(path, os.geteuid()):
                path.unlink(missing_ok=True)  # a port listens before its file has this name, so its process has ended
        return bool(self._ports)

    def _remove(self) -> None:
        """Remove all files. If a port appears meanwhile the directory stays, and its keeper finds the lock free."""
        left = [path.name for path in self._directory.glob(NEW_PORTS)]
        for name in (*left, SWITCH_SOCKET, SWITCH_COUNTERS, SWITCH_LOCK):
            (self._directory / name).unlink(missing_ok=True)
        try:
            for parent, name in self._place.above:
                os.rmdir(name, dir_fd=parent)
        except OSError:
            pass  # ENOTEMPTY: another stack uses it now

    # -- ports ---------------------------------------------------------------------------------------------------

    def _admit(self, path: Path) -> Port | None:
        """The port with that socket, if a process of this user listens there and there is room."""
        pid = listener_pid(path, os.geteuid())
        try:
            number = port_number(path)
            pidfd = os.pidfd_open(pid)  # no process has pid 0
        except (ValueError, OSError):
            return None
        if number in self._ports or len(self._ports) >= self._ports_max:
            os.close(pidfd)
            return self._ports.get(number)
        port = Port(number, pidfd, self._poller.push(str(path), WAITING_MAX), self._incarnation)
        self._ports[number] = self._by_pidfd[pidfd] = port
        self._poller.epoll.register(pidfd, select.EPOLLIN)
        self._switch.join(number)
        return port

    def _leave(self, port: Port) -> None:
        self._poller.epoll.unregister(port.pidfd)
        os.close(port.pidfd)
        port.outbox.close()
        del self._ports[port.number], self._by_pidfd[port.pidfd]
        self._switch.leave(port.number)
        (self._directory / port_name(port.number)).unlink(missing_ok=True)

    # -- frames --------------------------------------------------------------------------------------------------

    def _take(self, message: bytes, now: float) -> None:
        counters = self._counters
        try:
            sender, incarnation, taken, frames, offload = unpack(message)
        except ValueError:
            counters[C.malformed] += 1
            return
        port = self._ports.get(sender) or self._admit(self._directory / port_name(sender))
        if port is None:
            counters[C.stranger] += 1
            return
        port.messages.took(incarnation, taken)
        port.offload = port.offload or offload
        if not frames:
            port.repeat()
            return
        for number, chosen in self._switch.forward(sender, frames, now, vnet.HEADER_OCTETS if offload else 0).items():
            other = self._ports[number]
            if offload and not other.offload:
                self._send_plain(other, sender, chosen)
            elif len(chosen) < len(frames):
                self._send(other, pack(sender, 0, 0, chosen, offload), len(chosen))
            else:  # the usual case: the message need not be packed again
                self._send(other, message, len(chosen))

    def _send_plain(self, port: Port, sender: int, frames: list[bytes]) -> None:
        """Send frames that have a virtio_net_hdr to a port that does not know it."""
        part: list[bytes] = []
        octets = 0
        for frame in frames:
            pieces = plain.frames(frame)
            self._counters[C.bad_offload] += not pieces
            for piece in pieces:
                if part and (len(part) == PACK_RECORDS or octets + len(piece) > PACK_OCTETS):
                    self._send(port, pack(sender, 0, 0, part), len(part))
                    part, octets = [], 0
                part.append(piece)
                octets += len(piece)
        if part:
            self._send(port, pack(sender, 0, 0, part), len(part))

    def _refused(self, _: int) -> None:
        self._counters[C.refused] += 1

    def _send(self, port: Port, message: bytes, frames: int) -> None:
        self._counters[C.frames_out if port.send(message) else C.port_full] += frames


def _listener(path: Path) -> int:
    """A descriptor that listens there, replacing that of a former switch."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)  # link layers may be other users; the directory keeps others out
    listener.listen(CONNECTIONS_MAX)
    return listener.detach()


def _counter_words(path: Path) -> memoryview:
    """The counters of this wire, in a file that others can read and that survives a killed switch."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as file:
        file.truncate(COUNTERS_OCTETS)
        return memoryview(mmap.mmap(file.fileno(), COUNTERS_OCTETS)).cast("Q")


def read_beat(directory: Path) -> float:
    """Time of the last turn of the switch of the wire in `directory`, in seconds of CLOCK_MONOTONIC; 0: unknown."""
    try:
        with (directory / SWITCH_COUNTERS).open("rb", buffering=0) as file:
            return int.from_bytes(os.pread(file.fileno(), 8, 8 * BEAT_NS), sys.byteorder) / 1e9
    except OSError:
        return 0.0


def read_counters(directory: Path) -> dict[str, int]:
    """The counters of the switch of the wire in `directory`; empty while there is none."""
    try:
        return C.read(memoryview((directory / SWITCH_COUNTERS).read_bytes()).cast("Q"))
    except (OSError, IndexError, TypeError):
        return {}
