"""Carries a schedule out: waits until all is well, brings the moment about, commits the faults, awaits the recovery."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import psutil

from supervisor.control import Client, Refused
from supervisor.policy import AT_ONCE, STABLE_S
from tests.faults.flows import Book, Switchboard
from tests.faults.lab import LAYERS, Follower, Lab, Load
from tests.faults.schedule import Fault, Incident
from tests.faults.watch import Watch

RECOVERY_TIMEOUT_S = 15.0
SETTLED_NUMBERS = 20  # of each flow, all answered, before the next fault
SETTLE_TIMEOUT_S = 1.0
CONTROL_S = 0.15  # before each incident: what the machine alone does to the load
BUSY = "import time; until = time.monotonic() + 5\nwhile time.monotonic() < until: pass"
BUSY_PER_PROCESSOR = 2
UNDER_WAY_S = 0.02  # what was sent so shortly before a fault may be lost by it
CELL_OF = {"burst": Switchboard.BURSTS, "resolution": Switchboard.RESOLUTIONS, "fragments": Switchboard.FRAGMENTS,
           "groups": Switchboard.GROUPS, "paths": Switchboard.PATHS}  # what the load is told to bring the moment about


class Done(NamedTuple):
    """An incident that took place. Times are seconds of CLOCK_MONOTONIC."""

    incident: Incident
    began: float  # the first fault
    resumed: float  # the load went on (idle), or the same as `began`
    recovered: bool
    events: list[dict]  # the keeper's
    quiet_from: float = 0.0  # from then on there was no fault, until it began
    timeouts: int = 0  # of the peer, until it began
    ended: float = float("inf")  # all was well again


class Campaign:
    """One load, hit by incident after incident."""

    def __init__(self, lab: Lab, load: Load, watch: Watch | None = None) -> None:
        self._lab = lab
        self._load = load
        self._watch = watch
        self._follower = Follower(lab)
        self._served: dict[str, float] = {}  # when a layer came back last
        self._deaths: Counter[str] = Counter()  # of a layer, in a row, each soon after it came back
        self._recovered_at = 0.0  # from the last incident
        self._restarting = threading.Thread()  # a planned restart, which goes on beyond its incident

    def run(self, incidents: list[Incident], until: float = float("inf")) -> list[Done]:
        """All of them, or those that can be had until then; stops where one is not recovered from."""
        done: list[Done] = []
        for incident in incidents:
            if time.monotonic() > until or (done and not done[-1].recovered):
                break
            self._wait_until_well(incident)
            with self._hardship(incident):
                quiet_from = time.monotonic()
                time.sleep(CONTROL_S)
                timeouts = self._load.timeouts()
                done.append(self._hit(incident)._replace(quiet_from=quiet_from, timeouts=timeouts))
            if self._watch:
                self._watch.sample()
        return done

    @contextlib.contextmanager
    def _hardship(self, incident: Incident) -> Iterator[None]:
        """What makes this moment hard, from before its control to its recovery."""
        if incident.moment == "busy":  # processes that want all processors; they end by themselves, too
            # Each in a session of its own: in one with the load, which sleeps all the time, they would keep all others
            # from the processors for seconds (docs/recovery.md: the kernel's scheduling of sessions).
            count = BUSY_PER_PROCESSOR * (os.cpu_count() or 1)
            neighbours = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
            try:
                yield
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                    neighbour.wait()
        elif incident.moment == "descriptors":  # the keeper gets no further ones (EMFILE)
            with limited([self._lab.status()["keeper"]], resource.RLIMIT_NOFILE):
                yield
        elif incident.moment == "layers' descriptors":  # the layers get no further ones, as successors connect to them
            layers = self._lab.status()["layers"]
            with limited([layer["pid"] for layer in layers.values()], resource.RLIMIT_NOFILE):
                yield
        elif incident.moment == "processes":  # the keeper may not fork (EAGAIN), unless it is root
            self._wait_for_spares()
            with limited([self._lab.status()["keeper"]], resource.RLIMIT_NPROC):
                yield
        elif incident.moment == "space":  # no file can be made in the run and the state directory, if they are limited
            with self._lab.without_space():
                yield
        else:
            yield

    def quiet(self, seconds: float) -> tuple[float, float]:
        """No fault: the control. Returns when it began and ended."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            time.sleep(0.2)
            if self._watch:
                self._watch.sample()
        return began, time.monotonic()

    def _wait_for_spares(self) -> None:
        """Each layer has a process in reserve: all that there is for it while the keeper may not fork.

        RuntimeError: one has none in time.
        """
        keeper = psutil.Process(self._lab.status()["keeper"])
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while without := set(LAYERS) - _with_spare(keeper):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no process in reserve: {', '.join(sorted(without))}")
            time.sleep(0.01)

    def _wait_until_well(self, incident: Incident) -> None:
        """A death will be answered at once, and what the last incident delayed is answered (or taken for lost).

        So is some of what was sent since: each incident has a time of its own.
        """
        if self._restarting.ident is not None:
            self._restarting.join(RECOVERY_TIMEOUT_S)
        # SIGKILLs from outside are no reason for a pause
        for layer, deaths in Counter(fault.layer for fault in incident.faults if fault.kind != "kill").items():
            stable_at = self._served.get(layer, 0.0) + STABLE_S
            if self._deaths[layer] + deaths > AT_ONCE:
                time.sleep(max(0.0, stable_at - time.monotonic()))
            if time.monotonic() >= stable_at:
                self._deaths[layer] = 0
            self._deaths[layer] += deaths
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while not all(_settled(book, self._recovered_at) for book in self._load.steady) and time.monotonic() < deadline:
            time.sleep(0.002)

    def _hit(self, incident: Incident) -> Done:
        board = self._load.board.cells
        start = len(self._follower.events)
        if incident.moment == "idle":
            board[Switchboard.PAUSE] = 1
            time.sleep(0.03)
        elif incident.moment == "restart":  # a planned one, of the layer that is hit
            self._restarting = threading.Thread(target=self._restart, args=(incident.faults[0].layer,), daemon=True)
            self._restarting.start()
        elif incident.moment in CELL_OF:
            board[CELL_OF[incident.moment]] += 1
        if len(incident.faults) == 1:
            time.sleep(incident.later_s)
        began = time.monotonic()
        killed = -1
        for number, fault in enumerate(incident.faults):
            if number and incident.moment in ("recovery", "again"):
                time.sleep(incident.later_s)
            killed = self._commit(fault, unlike=killed if incident.moment == "again" else -1)
        resumed = time.monotonic() if incident.moment == "idle" else began
        board[Switchboard.PAUSE] = 0
        recovered = self._wait_recovered(incident, start)
        return Done(incident, began, resumed, recovered, self._follower.events[start:], ended=time.monotonic())

    def _restart(self, layer: str) -> None:
        """Whether it succeeds depends on what is hit in the middle of it; the layer serves afterwards in any case."""
        with contextlib.suppress(OSError, RuntimeError, Refused), Client(self._lab.run_dir) as client:
            client.request("restart", layers=[layer])

    def _commit(self, fault: Fault, unlike: int) -> int:
        """Returns the pid that was hit; waits until there is one other than `unlike`."""
        deadline = time.monotonic() + 1.0
        while True:
            pid = self._lab.status()["layers"][fault.layer]["pid"]
            if (pid is not None and pid != unlike) or time.monotonic() > deadline:
                break
            time.sleep(0.0005)
        try:
            return self._lab.ask("sabotage", layer=fault.layer, fault=fault.kind)["pid"]
        except (RuntimeError, Refused):  # there is no process of it
            return -1

    def _wait_recovered(self, incident: Incident, start: int) -> bool:
        """Every layer that was hit serves again, and every steady flow has an answer to something sent after that."""
        wanted = {fault.layer: 0 for fault in incident.faults}
        if incident.moment == "restart":
            return self._wait_up(incident.faults[0].layer)

        def served(events: list[dict]) -> float:
            deaths = dict.fromkeys(wanted, 0)
            up = dict.fromkeys(wanted, 0.0)
            for event in events:
                layer = event.get("layer", "")
                if layer in wanted and event["event"] == "died":
                    deaths[layer] += 1
                    up[layer] = 0.0
                elif layer in wanted and event["event"] == "serves" and deaths[layer]:
                    up[layer] = event["received"]
            return max(up.values()) if all(up.values()) else 0.0

        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while True:
            serves = self._follower.wait(start, served, deadline - time.monotonic())
            if not serves:
                return False
            answering = self._load.wait_answering(serves, min(2.0, max(0.0, deadline - time.monotonic())))
            if served(self._follower.events[start:]) == serves and answering:  # else: it died again meanwhile
                break
            if time.monotonic() > deadline:
                return False
        for layer in LAYERS:
            if layer in wanted:
                self._served[layer] = serves
        self._recovered_at = time.monotonic()
        return True

    def _wait_up(self, layer: str) -> bool:
        """The layer serves, and does not wait for a successor; the steady flows are answered."""
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline:
            before = self._lab.status()["layers"][layer]
            if before["state"] == "up" and self._load.wait_answering(time.monotonic(), 2.0):
                after = self._lab.status()["layers"][layer]
                if (after["state"], after["incarnation"]) == ("up", before["incarnation"]):
                    self._served[layer] = self._recovered_at = time.monotonic()
                    return True
            time.sleep(0.002)
        return False


@contextlib.contextmanager
def limited(pids: list[int], what: int) -> Iterator[None]:
    """Processes that get no more of a resource than they have."""
    former = {}
    try:
        for pid in pids:
            try:
                former[pid] = resource.prlimit(pid, what)
            except PermissionError:  # on a wire, layers are other users' processes
                print(f"process {pid} keeps its limits: this needs CAP_SYS_RESOURCE", file=sys.stderr)
                continue
            held = {int(name) for name in os.listdir(f"/proc/{pid}/fd")} if what == resource.RLIMIT_NOFILE else {0}
            # a new descriptor gets the lowest free number
            resource.prlimit(pid, what, (min({*range(len(held) + 1)} - held), former[pid][1]))
        yield
    finally:
        for pid, limits in former.items():
            with contextlib.suppress(ProcessLookupError):  # it was hit
                resource.prlimit(pid, what, limits)


def _with_spare(keeper: psutil.Process) -> set[str]:
    """The layers of which there are two processes: the one that serves, and its spare."""
    count: Counter[str] = Counter()
    for process in keeper.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            count["".join(process.cmdline()[:1]).rpartition(": ")[2]] += 1  # its title
    return {layer for layer in LAYERS if count[layer] >= 2}


def _settled(book: Book, since: float) -> bool:
    """The newest numbers up to a few milliseconds ago are answered, and so many were sent since then."""
    count = book.cells[0]
    horizon = time.monotonic() - 0.01
    number = count - 1
    seen = 0
    while number >= 0 and seen < SETTLED_NUMBERS:
        if book.sent[number] < horizon:
            if not book.answered[number] or book.sent[number] < since:
                return False
            seen += 1
        number -= 1
    return True
