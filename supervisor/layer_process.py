"""One process of a layer as the keeper sees it: pid, pidfd, the line to it, and what the kernel says of it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import msgspec

from bus.messages import Notice
from supervisor.policy import Sample, Watch
from supervisor.snapshots import Code

CPUCLOCK_SCHED = 2  # the clock of clock_getcpuclockid(3), as glibc and Linux make it from a pid; 1 us to read
MESSAGE_OCTETS_MAX = 1 << 18


class LayerMessage(msgspec.Struct, kw_only=True):
    """What a layer tells the keeper (bus.runtime.control): which event, and the fields that it has."""

    event: str
    counters: dict[str, str] = {}  # loaded: name -> role
    lock: dict | None = None  # loaded: what it gave up, supervisor.lockdown.Lock
    pid: int = 0  # offence: whose record is set aside, and whether it is not heard any more
    barred: bool = False
    traceback: str = ""  # crashed
    id: int = 0  # answer: to which question
    answer: dict = {}
    notices: list[Notice] = []
    sender: int = 0  # poison: whose record, of what kind, base64
    kind: int = 0
    record: str = ""


_decode = msgspec.json.Decoder(LayerMessage).decode


class Process:
    """A process that is, or stands ready to become, an incarnation of a layer."""

    def __init__(self, pid: int, line: socket.socket, code: Code, now: float) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.line = line
        self.incarnation = 0  # given with the word to go
        self.code = code
        self.started = now
        self.why = ""  # what it said, or what was done to it, before it died
        self.watch = Watch()

    def go(self, incarnation: int, now: float, taps: str) -> None:
        """Let it serve, as soon as its code is loaded; `taps`: what is asked of its taps, JSON."""
        self.incarnation = incarnation
        self.started = now
        self.tell(f"go {incarnation} {taps}")

    def tell(self, word: str) -> None:
        """Say go, stop, or ask a question."""
        try:
            self.line.send(word.encode())
        except OSError:
            pass  # it is dying, which the pidfd tells; or it reads nothing, which its life sign tells

    def messages(self) -> list[LayerMessage]:
        """What it has told. ValueError for anything else: then it should be killed."""
        found = []
        try:
            while octets := self.line.recv(MESSAGE_OCTETS_MAX):
                found.append(_decode(octets))
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        except OSError:
            pass
        return found

    def kill(self, why: str) -> None:
        """SIGKILL, with the reason for the record."""
        self.why = self.why or why
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """The wait status of a process that has ended; lets go of its descriptors."""
        _, status = os.waitpid(self.pid, 0)
        self.line.close()
        os.close(self.pidfd)
        return status


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def sample(pid: int) -> Sample | None:
    """What the kernel says of a process now; None: it is gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        _, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return None
    return Sample(state, int(waited) / 1e9)


def used_s(pid: int) -> float:
    """The processor time that a process has used; 0: it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        return 0.0
