"""One layer as the keeper sees it: what it holds for the layer, and the process or processes that are it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bus.counters import PipeCounters
from bus.durable import layout
from bus.messages import Notice
from supervisor.policy import Restarts, Sample, Watch
from supervisor.snapshots import Booted, Code

LISTEN_BACKLOG = 256
CPUCLOCK_SCHED = 2  # the clock of clock_getcpuclockid(3), as glibc and Linux make it from a pid; 1 us to read


class Process:
    """A process that is, or stands ready to become, an incarnation of a layer."""

    def __init__(self, pid: int, line: socket.socket, code: Code, now: float) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.line = line
        self.incarnation = 0  # given with the word to go
        self.code = code
        self.started = now
        self.ready_at: float | None = None
        self.loaded = False
        self.stopping = False
        self.why = ""  # what it said, or what was done to it, before it died
        self.watch = Watch()

    def go(self, incarnation: int, now: float) -> None:
        """Let it serve, as soon as its code is loaded."""
        self.incarnation = incarnation
        self.started = now
        self.tell(f"go {incarnation}")

    def tell(self, word: str) -> None:
        """Say "go" or "stop" to the layer."""
        try:
            self.line.send(word.encode())
        except OSError:
            pass  # it is dying; the pidfd tells

    def messages(self) -> list[dict]:
        """What it has told."""
        found = []
        try:
            while octets := self.line.recv(1 << 18):
                found.append(msgspec.json.decode(octets, type=dict))
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

    def close(self) -> None:
        """Let go of its descriptors; it has been reaped."""
        self.line.close()
        os.close(self.pidfd)


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


class Question(NamedTuple):
    """Something that a layer's core was asked, and who waits for the answer."""

    text: str
    answered: Callable[[dict], None]


class Service:
    """One layer: durable memory, inbox, code, and its process. `state` as in `status`."""

    def __init__(self, name: str, run_dir: Path) -> None:
        self.name = name
        self.memory_fd = layout.create(name)
        self.words = layout.Words(self.memory_fd)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(run_dir / f"{name}.sock"))
        self.listener.listen(LISTEN_BACKLOG)
        self.code: Code = Booted(name)
        self.former: Code | None = None  # while a new version has yet to prove itself
        self.process: Process | None = None
        self.successor: Process | None = None  # of a planned restart, while it loads the new code
        self.spare: Process | None = None  # forked ahead, so that a death costs no fork
        self.spare_at: float | None = None  # when to fork the next one
        self.incarnation = 0
        self.restarts = 0
        self.state = "starting"
        self.policy = Restarts()
        self.away_since: float | None = None
        self.start_at: float | None = None  # a pause before the next start ends then
        self.counters: dict[str, str] = {}  # name -> role, in the order of the words
        self.notices: dict[Notice, float] = {}  # what people should know of it, and since when (epoch)
        self.questions: dict[int, Question] = {}
        self._asked = 0
        self.waiting: list[Callable[[str], None]] = []  # restart requests: called with "" or what went wrong

    def processes(self) -> list[Process]:
        """All that are there."""
        return [process for process in (self.process, self.successor, self.spare) if process is not None]

    @property
    def beat(self) -> float:
        """When its loop last turned, in seconds of CLOCK_MONOTONIC."""
        return self.words.beat[0]

    def counter_values(self) -> dict[str, int]:
        """The layer's own counters by name."""
        return dict(zip(self.counters, self.words.counters, strict=False))

    def bus_counter_values(self) -> dict[str, int]:
        """What the bus counted for it."""
        return dict(zip(PipeCounters.declared, self.words.bus_counters, strict=False))

    def ask(self, request: dict, answered: Callable[[dict], None]) -> None:
        """Ask the layer's core; `answered` is called when it answers, be it the present process or a successor."""
        self._asked += 1
        request = request | {"order": self._asked}  # by this the core knows it again: see bus.layer.ManagedCore
        question = Question(msgspec.json.encode({"id": self._asked, "request": request}).decode(), answered)
        self.questions[self._asked] = question
        if self.process is not None:
            self.process.tell(question.text)

    def answered(self, message: dict) -> None:
        """The core's answer to a question; a second answer to the same is ignored."""
        question = self.questions.pop(message["id"], None)
        if question is not None:
            question.answered(message["answer"])

    def notice(self, told: list, now: float) -> tuple[list[Notice], list[Notice]]:
        """Take what the core says holds now; (what is new of it, what held before and is over)."""
        former = self.notices
        self.notices = {notice: former.get(notice, now) for notice in msgspec.convert(told, list[Notice])}
        return ([notice for notice in self.notices if notice not in former],
                [notice for notice in former if notice not in self.notices])

    def standing_notices(self) -> list[dict]:
        """The notices, as `status` shows them."""
        return [{"event": notice.event, "detail": notice.detail, "since": since, **dict(notice.facts)}
                for notice, since in self.notices.items()]

    def answer_waiting(self, problem: str) -> None:
        """Tell those who asked for a restart how it went."""
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell(problem)
