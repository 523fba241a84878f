"""One process of a layer as the keeper sees it: pid, pidfd, control channel, and what the kernel reports about it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from bus.messages import Notice
from supervisor.policy import Sample, Watch
from supervisor.snapshots import Code

CPUCLOCK_SCHED = 2  # the clock of clock_getcpuclockid(3), as glibc and Linux make it from a pid; 1 us to read
MESSAGE_OCTETS_MAX = 1 << 18


class LayerMessage(msgspec.Struct, kw_only=True):
    """A message from a layer to the keeper (bus.runtime.control): an event and the fields that it has."""

    event: str
    counters: dict[str, str] = {}  # loaded: {name of a counter: role}
    lock: dict[str, Any] | None = None  # loaded: the rights that it gave up, supervisor.lockdown.Lock
    pid: int = 0  # offence: the process that sent the record, and whether it is disconnected
    barred: bool = False
    detail: str = ""  # starved: what there is none of
    traceback: str = ""  # crashed
    id: int = 0  # answer: the id of the request
    answer: dict[str, Any] = {}
    notices: list[Notice] = []
    sender: int = 0  # poison: sender and kind of the record, and its octets in base64
    kind: int = 0
    record: str = ""


_decode = msgspec.json.Decoder(LayerMessage).decode


class Process:
    """A process that is an incarnation of a layer or waits to become one."""

    def __init__(self, pid: int, line: socket.socket, code: Code, now: float) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.line = line
        self.incarnation = 0  # assigned when it is told to serve
        self.code = code
        self.started = now
        self.why = ""  # the reason for its end, reported by itself or set when the keeper kills it
        self.watch = Watch()

    def go(self, incarnation: int, now: float, taps: str) -> None:
        """Tell it to serve when its code is loaded; `taps`: the requests for its taps, as JSON."""
        self.incarnation = incarnation
        self.started = now
        self.tell(f"go {incarnation} {taps}")

    def tell(self, word: str) -> None:
        """Send it a word: go, stop, or a request."""
        try:
            self.line.send(word.encode())
        except OSError:
            pass  # it is dying, which the pidfd reports; or it does not read, which its life sign shows

    def messages(self) -> list[LayerMessage]:
        """The messages that it has sent. ValueError: something else; the process should be killed then."""
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
        """Send SIGKILL, and note the reason."""
        self.why = self.why or why
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """The wait status of a process that has ended; closes its descriptors."""
        _, status = os.waitpid(self.pid, 0)
        self.line.close()
        os.close(self.pidfd)
        return status


def how_it_ended(status: int) -> str:
    """Text for a wait status."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def sample(pid: int) -> Sample | None:
    """What the kernel reports about a process now; None: it has ended. OSError: anything else, as EMFILE."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    # One that was killed and not reaped yet gives no life sign, either; but what it died of tells its exit status.
    return None if state in ("Z", "X") else Sample(state, int(ran) / 1e9, int(waited) / 1e9)


def used_s(pid: int) -> float:
    """The processor time that a process has used, in seconds; 0: it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        return 0.0
