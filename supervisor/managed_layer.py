"""One layer in the keeper: carries out the actions of its `Service`, and passes events to it."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

from bus.durable import layout
from bus.runtime.taps import TapRequests
from supervisor.events import EventLog
from supervisor.layer_process import LayerMessage, Process, how_it_ended, sample
from supervisor.limits import explain
from supervisor.placement import Placement
from supervisor.policy import SUSPECT_AFTER_S
from supervisor.reserve import Reserve
from supervisor.resources import Resources
from supervisor.service import (
    Action,
    Answer,
    Blame,
    Death,
    Dismiss,
    Event,
    Fork,
    Go,
    Kill,
    Log,
    Role,
    Serves,
    Service,
    State,
    Take,
    TellStop,
    UseCode,
)
from supervisor.snapshots import Booted, Code, Snapshot, with_source

NEVER = float("inf")
DROPS_LOGGED_S = 1.0  # the interval of the events about dropped packets


class Host(Protocol):
    """The interface of the keeper for its layers."""

    events: EventLog
    selector: selectors.BaseSelector
    placement: Placement
    reserve: Reserve

    def fork(self, layer: ManagedLayer, code: Code) -> Process:
        """A process of `layer` that loads `code` and waits to be told to serve. OSError: the fork failed."""

    def taps_of(self, layer: str) -> str:
        """The requests for the taps of a layer, as JSON."""

    def keep_recording(self, layer: str, incarnation: int) -> str:
        """Store the last calls of a crashed process in a file. Returns its path; empty: nothing was recorded."""

    def keep_poison(self, layer: str, message: LayerMessage) -> str:
        """Store a poison record in a file. Returns its path, or text about the failure."""


class ManagedLayer:
    """One layer: its state machine, its processes and its resources."""

    def __init__(self, name: str, resources: Resources, host: Host) -> None:
        self.name = name
        self.service = Service(name)
        self.resources = resources
        self.processes: dict[Role, Process] = {}
        self.forced: list[str] = []  # the processes that had to be killed when the stack stopped
        self._host = host
        self._code: Code = Booted(name)
        self._former: Code | None = None  # kept while the new code is on probation
        self._waiting: list[Callable[[str], None]] = []  # callbacks of restart requests, called with "" or the error
        self._drops: tuple[float, dict[str, int]] | None = None  # when drops were last logged, and their counters
        self._last = 0  # the pid of the process that ended last

    @property
    def state(self) -> State:
        """The state of the service."""
        return self.service.state

    @property
    def renewing(self) -> bool:
        """Whether a planned restart is under way."""
        return Role.SUCCESSOR in self.service.present

    @property
    def process(self) -> Process | None:
        """The process that serves or starts; None if there is none."""
        return self.processes.get(Role.PROCESS)

    def happens(self, event: Event, *facts: object) -> None:
        """Pass an event to the service and carry out its actions, also those after one that raises.

        OSError: the first that was raised.
        """
        now = time.monotonic()
        failed = None
        for action in self.service.happens(event, now, *facts):
            try:
                if not self._act(action, now):
                    break
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def renew(self, done: Callable[[str], None] | None = None) -> None:
        """A planned restart; `done` is called with "" or the error."""
        if done is not None:
            self._waiting.append(done)
        self.happens(Event.RENEW)

    def ask(self, request: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Send a request to the layer's core; it is answered even if the layer is restarted meanwhile."""
        question = self.resources.ask(request, answered)
        if question and self.process is not None:
            self.process.tell(question)

    def tap(self, requests: Callable[[], TapRequests], answered: Callable[[], None]) -> None:
        """Send the requests for its taps to the layer; answered even if it is restarted meanwhile."""
        question = self.resources.tap(requests, answered)
        if self.process is not None:
            self.process.tell(question)

    def _act(self, action: Action, now: float) -> bool:
        """Carry out an action; False: the following actions no longer apply."""
        match action:
            case Fork(role, new_code):
                return self._fork(role, Snapshot(self.name) if new_code else self._code)
            case Take(role):
                self.processes[Role.PROCESS] = self.processes.pop(role)
            case Go(incarnation):
                self.processes[Role.PROCESS].go(incarnation, now, self._host.taps_of(self.name))
            case TellStop(role):
                self.processes[role].tell("stop")
                self.processes[role].tell("stop")  # twice: a process that still waits for "go" consumes the first
            case Kill(role, why):
                process = self.processes[role]
                if self.state is State.STOPPING and not process.why:
                    self.forced.append(f"{self.name} [{process.pid}]: {why}")
                process.kill(why)
            case Dismiss():
                self.processes.pop(Role.SPARE).kill("dismissed")
            case UseCode("successor"):
                self._former, self._code = self._code, self.processes[Role.PROCESS].code
            case UseCode("former") if self._former is not None:
                self._code, self._former = self._former, None
            case UseCode(_):
                self._former = None
            case Blame(may_be):
                self.resources.words.words[layout.BLAMELESS] = int(not may_be)
            case Log(event, detail, gap_ms, about_process):
                self._log(event, detail, gap_ms, about_process)
            case Serves():
                self._serves()
            case Answer(problem):
                waiting, self._waiting = self._waiting, []
                for tell in waiting:
                    tell(problem)
        return True

    def _fork(self, role: Role, code: Code) -> bool:
        try:
            with self._host.reserve.opened() if role is Role.PROCESS else nullcontext():
                process = self._host.fork(self, code)
        except OSError as error:
            self.happens(Event.FORK_REFUSED, role, explain(error))
            return False
        self.processes[role] = process
        self._host.selector.register(process.line, selectors.EVENT_READ, partial(self._hear, process))
        self._host.selector.register(process.pidfd, selectors.EVENT_READ, partial(self._reap, process))
        return True

    def _log(self, event: str, detail: str, gap_ms: float, about_process: bool) -> None:
        process = self.process
        pid = (process.pid if process else self._last) if about_process else 0
        self._host.events.add(event, layer=self.name, pid=pid, detail=detail, gap_ms=gap_ms,
                              incarnation=self.service.incarnation if about_process else 0)

    def _serves(self) -> None:
        process = self.processes[Role.PROCESS]
        self._host.placement.assign(process.pid, self.name)
        for question in self.resources.questions.values():  # its predecessor may have died before it answered them
            process.tell(question.text())

    def _role(self, process: Process) -> Role | None:
        return next((role for role, its in self.processes.items() if its is process), None)

    def _hear(self, process: Process) -> None:
        try:
            for message in process.messages():
                self._heard(process, message)
        except ValueError as error:  # msgspec's DecodeError and ValidationError are subclasses
            process.kill(f"it sent the keeper an invalid message: {error}")

    def _heard(self, process: Process, message: LayerMessage) -> None:
        role = self._role(process)
        match message.event:
            case "loaded":
                self.resources.counters = message.counters
                self._locked(message.lock)
                if role is Role.SUCCESSOR:
                    self.happens(Event.LOADED)
            case "ready" if role is Role.PROCESS:
                self.happens(Event.READY)
            case "crashed":
                process.why = process.why or with_source(message.traceback, self.name)
            case "answer":
                self.resources.answered(message.id, message.answer)
            case "notices":
                self._notice(message)
            case "poison":
                self._log("poison", "a record that killed this layer twice is set aside: "
                          + self._host.keep_poison(self.name, message), 0.0, True)
            case "offence":
                barred = ", not for the first time, and is disconnected" if message.barred else ""
                self._log("offence", f"process {message.pid} sent the record that was set aside{barred}", 0.0, True)
            case "starved":
                self._log("starved", f"{message.detail}: new connections have to wait", 0.0, True)
            case _ if role is Role.PROCESS:
                raise ValueError(f"an event {message.event!r}")

    def _locked(self, told: dict[str, Any] | None) -> None:
        if told is not None and told.get("missing") and told != self.resources.lock:
            self._log("unlocked", "not available on this system: " + "; ".join(map(str, told["missing"])), 0.0, False)
        self.resources.lock = told

    def _notice(self, message: LayerMessage) -> None:
        begun, over = self.resources.notice(message.notices, time.time())
        for event, notice in [(notice.event, notice) for notice in begun] + [(f"{n.event} over", n) for n in over]:
            self._log(event, notice.detail, 0.0, True)

    def _reap(self, process: Process) -> None:
        """A process has ended: reap it and tell the service."""
        self._hear(process)
        self._host.selector.unregister(process.line)
        self._host.selector.unregister(process.pidfd)
        status = process.reap()
        self._host.reserve.fill()
        role = self._role(process)
        if role is None:
            return  # a dismissed spare
        del self.processes[role]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        death = Death(process.why or how_it_ended(status), from_outside=killed and not process.why)
        if role is Role.PROCESS:
            self._last, incarnation = process.pid, self.service.incarnation
            crashed = status != 0 and not death.from_outside and self.state is not State.STOPPING
            self.happens(Event.DIED, death)
            recording = self._host.keep_recording(self.name, incarnation) if crashed else ""
            if recording:
                self._log("recorded", f"the last calls before the crash: {recording}", 0.0, False)
        elif role is Role.SUCCESSOR:
            self.happens(Event.SUCCESSOR_DIED, death)
        else:
            self.happens(Event.SPARE_DIED)

    def look_after(self, now: float) -> float:
        """Handle deadlines, and detect a process that hangs. Returns the time of the next call, at the latest."""
        service = self.service
        due = service.next_time
        if due is not None and now >= due:
            self.happens(Event.TIME)
            due = service.next_time
        process = self.processes.get(Role.PROCESS)
        if process is not None:
            beat = max(self.resources.beat, process.started)
            late = process.watch.suspicious(now, beat, self.resources.in_hand)
            if late:
                self._judge(process, beat, now)
            due = beat + SUSPECT_AFTER_S if due is None else min(due, beat + SUSPECT_AFTER_S)
        return NEVER if due is None else due

    def _judge(self, process: Process, beat: float, now: float) -> None:
        """Look closely at a process whose life sign is late."""
        ready_at, policy = self.service.ready_at, self.service.policy
        found = self._host.reserve.at_need(partial(sample, process.pid))
        served_s = beat - (ready_at if ready_at is not None else beat)
        serving = ready_at is not None and not self.resources.words.words[layout.LONG_WORK]
        if found is not None and process.watch.hung(now, found, serving, policy.patience(served_s)):
            if found.state == "R":
                policy.looped(served_s)
            self.happens(Event.HUNG, beat, f"it hung: no life sign for {(now - beat) * 1000:.0f} ms "
                         f"(state {found.state})")

    def log_drops(self, now: float) -> None:
        """At the level "debug": once a second, what the layer has dropped since then."""
        if self._host.events.level(self.name) != "debug":
            self._drops = None
            return
        if self._drops is not None and now < self._drops[0] + DROPS_LOGGED_S:
            return
        counted = {name: value for name, value in self.resources.counter_values().items()
                   if self.resources.counters[name] == "drop"}
        before = self._drops[1] if self._drops else counted
        self._drops = now, counted
        dropped = [f"{value - before.get(name, 0)} {name}" for name, value in counted.items()
                   if value > before.get(name, 0)]
        if dropped:
            self._log("dropped", ", ".join(dropped), 0.0, True)

    def status(self, now: float) -> dict[str, Any]:
        """The part of `status` for this layer, without what the kernel reports about its process."""
        service, process = self.service, self.process
        return {
            "pid": process.pid if process else None, "state": service.state.value,
            "incarnation": service.incarnation, "restarts": service.restarts,
            "uptime_s": round(now - service.ready_at, 3) if process and service.ready_at is not None else 0.0,
            "counters": self.resources.counter_values(), "roles": self.resources.counters,
            "bus": self.resources.bus_counter_values(),
            "waiting": self.resources.words.words[layout.WAITING], "pipes": self.resources.pipe_values(),
            "notices": self.resources.standing_notices(),
            "lock": self.resources.lock or {"missing": ["it was started with --unlocked"]},
        }
