"""The keeper: holds what must outlive a layer, forks layers, reaps them, watches them.

One thread, one selector. A child starts in milliseconds because what it needs is imported here already. Everything that
the stack is ends with this process.
"""

from __future__ import annotations

import fcntl
import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from setproctitle import setproctitle

import bus.runtime.event_loop  # noqa: F401  (so that a fork finds it imported)
from bus.config import StackConfig, draw_cookie, encode
from bus.counters import PipeCounters
from bus.durable import layout
from supervisor import child, janitor
from supervisor.boot import BootError
from supervisor.control_server import Desk
from supervisor.events import EventLog
from supervisor.options import Options
from supervisor.placement import Placement
from supervisor.poison import write_poison
from supervisor.policy import SUSPECT_AFTER_S
from supervisor.service import Process, Ward, sample, used_s
from supervisor.snapshots import Code, Snapshot, fingerprint, packages_of
from supervisor.switch_service import Wire

TICK_S = 0.2
WIRE_TICK_S = 0.05  # its switch may have to be started anew
CLOSE_TICK_S = 0.01  # while a layer's life sign is late
STOP_TIMEOUT_S = 0.5  # for a layer that was told to stop
LOAD_TIMEOUT_S = 10.0  # for a new version to be imported
SPARE_AFTER_S = 0.1  # from a layer's serving to the fork of its spare
PROBATION_S = 3.0  # a new version that dies within is rolled back
RELOAD_CHECK_S = 0.5
STOP_ORDER = ("sockets", "raw", "udp", "icmp", "ip", "arp", "link")


class Keeper:
    """One stack."""

    def __init__(self, options: Options, run_dir: Path, lock_fd: int, medium_fd: int,
                 offload: tuple[str, ...] = ()) -> None:
        self._options = options
        self._run_dir = run_dir
        self._lock_fd = lock_fd
        self.events = EventLog()
        self.selector = selectors.DefaultSelector()
        self._wire = Wire(options.wire_dir(), self.selector, self._on_wire) if options.wire else None
        self._medium_fd = self._wire.listener.fileno() if self._wire else medium_fd
        self._pid = os.getpid()
        self._started = time.monotonic()
        interface = options.interface()
        self._config = StackConfig(
            name=options.name, run_dir=str(run_dir), address=int(interface.ip), prefix=interface.network.prefixlen,
            mac=options.mac_octets(), gateway=options.gateway_address(), mtu=options.mtu, ttl=options.ttl,
            wire=options.wire, wire_inbox=str(self._wire.inbox) if self._wire else "", tap=options.tap,
            dns=options.name_servers(), cookie=draw_cookie(), layers=options.layers(),
            accept_redirects=options.accept_redirects, offload=offload, epoch=time.time() - time.monotonic())
        self.wards = {name: Ward(name, run_dir) for name in self._config.layers}
        self._placement = Placement(options.cores, options.core_list())
        self._stopping = False
        self._booted = False
        self._boot_failure = ""
        self._janitor = 0
        self._prints = {name: fingerprint(packages_of(ward.name)) for name, ward in self.wards.items()}
        self._next_reload_check = 0.0

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None]) -> None:
        """Boot, call `on_ready` once every layer serves, go on until told to stop. Leaves nothing behind.

        BootError where a layer dies again and again before all serve.
        """
        setproctitle(f"usernet {self._options.name}: keeper")
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_: None)  # told by `wakeup`, so never in the middle of something
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.watch(wakeup, partial(self._woken, wakeup))
        desk = Desk(self, self._run_dir)
        self._janitor = janitor.fork(self._options.name, self._run_dir)
        gc.collect()
        gc.freeze()
        for ward in self.wards.values():
            self._start(ward)
        while not (self._stopping and all(not ward.processes() for ward in self.wards.values())):
            for key, _ in self.selector.select(self._timeout_s()):
                key.data()
            self._tick(time.monotonic())
            if not self._booted and all(ward.state == "up" for ward in self.wards.values()):
                self._booted = True
                self.events.add("up", detail=f"{len(self.wards)} layers serve", gap_ms=self._since_ms(self._started))
                on_ready()
        self._leave()
        desk.close()
        if self._boot_failure:
            raise BootError(self._boot_failure)

    def _leave(self) -> None:
        self.events.add("down", detail="stopped in order")
        os.kill(self._janitor, signal.SIGKILL)
        os.waitpid(self._janitor, 0)
        if self._wire:
            self._wire.leave()
        for name in os.listdir(self._run_dir):
            (self._run_dir / name).unlink(missing_ok=True)
        self._run_dir.rmdir()

    def _woken(self, wakeup: int) -> None:
        os.read(wakeup, 64)
        self.stop()

    def stop(self) -> None:
        """Stop all layers in order; `run` returns when they have ended."""
        if self._stopping:
            return
        self._stopping = True
        now = time.monotonic()
        for ward in (self.wards[name] for name in STOP_ORDER if name in self.wards):
            ward.state = "down"
            ward.start_at = None
            for process in ward.processes():
                self._tell_stop(process, now)

    def _timeout_s(self) -> float:
        """Until something may have to be done: a start that had to wait, a closer look at a late life sign."""
        now = time.monotonic()
        due = [now + (WIRE_TICK_S if self._wire else TICK_S)]
        for ward in self.wards.values():
            due += [at for at in (ward.start_at, ward.spare_at if ward.state == "up" else None) if at is not None]
            if ward.process:
                due.append(max(ward.beat, ward.process.started) + SUSPECT_AFTER_S)
        return max(CLOSE_TICK_S, min(due) - now)

    @staticmethod
    def _since_ms(then: float) -> float:
        return round((time.monotonic() - then) * 1000, 1)

    def watch(self, source, callback: Callable[[], None]) -> None:
        """Call back whenever `source` is readable."""
        self.selector.register(source, selectors.EVENT_READ, callback)

    # -- layers --------------------------------------------------------------------------------------------------

    def _start(self, ward: Ward) -> None:
        """Start the layer from the code that served last, at once."""
        ward.start_at = None
        ward.process, ward.spare = ward.spare or self._fork(ward, ward.code), None
        self._let_go(ward)

    def _let_go(self, ward: Ward) -> None:
        assert ward.process is not None
        ward.incarnation += 1
        ward.process.go(ward.incarnation, time.monotonic())

    def _fork(self, ward: Ward, code: Code) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        medium_fd = self._medium_fd if ward.name == "link" else -1
        pid = os.fork()
        if pid == 0:
            keep = [ward.memory_fd, ward.listener.fileno(), theirs.fileno(), medium_fd]
            title = f"usernet {self._options.name}: {ward.name}"
            child.become(title, self._pid, keep)
            child.run_layer(ward.name, code, encode(self._config), ward.memory_fd, ward.listener.fileno(), medium_fd,
                            theirs)
        theirs.close()
        ours.setblocking(False)
        process = Process(pid, ours, code, time.monotonic())
        self.watch(process.line, partial(self._hear, ward, process))
        self.watch(process.pidfd, partial(self._bury, ward, process))
        return process

    def _tell_stop(self, process: Process, now: float) -> None:
        process.stopping = True
        process.started = now  # from here on: when the stop was asked for
        process.tell("stop")
        process.tell("stop")  # one for a layer that still waits for "go"

    def _hear(self, ward: Ward, process: Process) -> None:
        for message in process.messages():
            event = message.get("event")
            if event == "loaded":
                process.loaded = True
                ward.counters = message["counters"]
                if process is ward.successor:
                    self._hand_over(ward)
            elif event == "ready":
                self._ready(ward, process)
            elif event == "crashed":
                process.why = message["traceback"]
            elif event == "answer":
                ward.answered(message)
            elif event == "notices":
                self._notice(ward, process, message["notices"])
            elif event == "poison":
                where = write_poison(self._options.name, ward.name, message, bool(self._config.offload))
                self.events.add("poison", layer=ward.name, pid=process.pid, incarnation=process.incarnation,
                                 detail=f"a record that killed this layer twice is set aside in {where}")

    def _notice(self, ward: Ward, process: Process, told: list) -> None:
        begun, over = ward.notice(told, time.time())
        for event, notice in [(notice.event, notice) for notice in begun] + [(f"{n.event} over", n) for n in over]:
            self.events.add(event, layer=ward.name, pid=process.pid, incarnation=process.incarnation,
                            detail=notice.detail)

    def _ready(self, ward: Ward, process: Process) -> None:
        process.ready_at = time.monotonic()
        self._placement.settle(process.pid, ward.name)
        ward.state = "up"
        gap_ms = self._since_ms(ward.away_since) if ward.away_since is not None else 0.0
        ward.away_since = None
        self.events.add("serves", layer=ward.name, pid=process.pid, incarnation=process.incarnation, gap_ms=gap_ms)
        ward.answer_waiting("")
        ward.spare_at = process.ready_at + SPARE_AFTER_S
        for question in ward.questions.values():  # its predecessor may have died over them; they may be asked twice
            process.tell(question.text)

    def _bury(self, ward: Ward, process: Process) -> None:
        """A layer's process has ended: reap it, and start the next, unless it was told to end."""
        self._hear(ward, process)
        self.selector.unregister(process.line)
        self.selector.unregister(process.pidfd)
        _, status = os.waitpid(process.pid, 0)
        process.close()
        now = time.monotonic()
        why = process.why or _how(status)
        if process is ward.spare:
            ward.spare, ward.spare_at = None, now + SPARE_AFTER_S
            return
        if process is ward.successor:
            ward.successor = None
            if not self._stopping:
                self._new_version_failed(ward, process, why)
            return
        if process is not ward.process:
            return  # a spare that was dismissed
        # What it worked on when somebody killed it is not to blame; an exception or a hang may well come from that.
        blameless = not process.why and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        ward.words.words[layout.BLAMELESS] = int(blameless)
        ward.process = None
        if self._stopping:
            return
        if ward.successor is not None and process.stopping:
            self._promote(ward)
            return
        ward.away_since = ward.away_since if ward.away_since is not None else now
        ward.restarts += 1
        ward.state = "restarting"
        self.events.add("died", layer=ward.name, pid=process.pid, incarnation=process.incarnation, detail=why)
        if ward.successor is not None:  # it died while its successor was being loaded
            return
        served_s = now - (process.ready_at or now)
        if ward.former is not None and process.code is ward.code and served_s < PROBATION_S:
            self._roll_back(ward, "the new version died")
        pause_s = ward.policy.pause_s(served_s)
        if not self._booted and pause_s != 0:
            self._boot_failure = f"{ward.name} does not start: {why}"
            self.stop()
        elif pause_s is None:
            ward.state = "failed"
            ward.answer_waiting(f"{ward.name} keeps dying: {why}")
            self.events.add("failed", layer=ward.name,
                             detail=f"it keeps dying and is left alone; `launcher.py restart {ward.name}` tries again")
        elif pause_s == 0:
            self._start(ward)
        else:
            ward.start_at = now + pause_s

    # -- planned restarts ----------------------------------------------------------------------------------------

    def renew(self, ward: Ward, done: Callable[[str], None] | None = None) -> None:
        """Load the layer's code as it is now on disk into a successor; the present process serves on meanwhile."""
        if ward.successor is not None:
            if done:
                ward.waiting.append(done)
            return
        self._prints[ward.name] = fingerprint(packages_of(ward.name))
        try:
            snapshot = Snapshot(ward.name)
        except (SyntaxError, ValueError, OSError) as error:
            self.events.add("refused", layer=ward.name, detail=f"the code on disk does not compile: {error}")
            if done:
                done(f"{ward.name}: the code on disk does not compile: {error}")
            return
        if done:
            ward.waiting.append(done)
        ward.policy.forgive()
        ward.successor = self._fork(ward, snapshot)

    def _hand_over(self, ward: Ward) -> None:
        """The successor has loaded its code: the present process may stop."""
        if ward.process is None:
            self._promote(ward)
        else:
            self._tell_stop(ward.process, time.monotonic())
            ward.away_since = time.monotonic()

    def _promote(self, ward: Ward) -> None:
        successor = ward.successor
        assert successor is not None
        ward.successor = None
        ward.start_at = None
        ward.process = successor
        ward.restarts += 1
        ward.state = "restarting"
        ward.former = ward.code
        ward.code = successor.code
        self._dismiss_spare(ward)
        self._let_go(ward)

    @staticmethod
    def _dismiss_spare(ward: Ward) -> None:
        """It has code that is no longer the one to run."""
        spare, ward.spare = ward.spare, None
        if spare is not None:
            spare.kill("dismissed")

    def _new_version_failed(self, ward: Ward, process: Process, why: str) -> None:
        self.events.add("refused", layer=ward.name, pid=process.pid, incarnation=process.incarnation, detail=why)
        ward.answer_waiting(f"{ward.name}: the new version did not start, the former one goes on:\n{why}")
        if ward.process is None and ward.state != "failed":
            self._start(ward)

    def _roll_back(self, ward: Ward, reason: str) -> None:
        assert ward.former is not None
        ward.code, ward.former = ward.former, None
        self._dismiss_spare(ward)
        self.events.add("rolled back", layer=ward.name, detail=f"{reason}; the former code serves again")

    # -- watching ------------------------------------------------------------------------------------------------

    def _on_wire(self, detail: str) -> None:
        self.events.add("wire", detail=detail)

    def _tick(self, now: float) -> None:
        if self._wire:
            self._wire.tend(now)
        for ward in self.wards.values():
            if ward.start_at is not None and now >= ward.start_at and not self._stopping:
                self._start(ward)
            for process in ward.processes():
                self._check(ward, process, now)
            if ward.spare_at is not None and now >= ward.spare_at and ward.state == "up" and not self._stopping:
                ward.spare, ward.spare_at = self._fork(ward, ward.code), None
            if ward.former is not None and ward.process and ward.process.ready_at \
                    and now - ward.process.ready_at > PROBATION_S:
                ward.former = None
        if self._options.reload and now >= self._next_reload_check:
            self._next_reload_check = now + RELOAD_CHECK_S
            self._reload_changed()
        pids = {ward.name: ward.process.pid for ward in self.wards.values() if ward.process}
        frames = sum(ward.words.bus_counters[PipeCounters.bus_frames_in] for ward in self.wards.values())
        if self._placement.balance(now, pids, frames):
            self.events.add("placed", detail=f"cores {self._placement.describe()}")

    def _check(self, ward: Ward, process: Process, now: float) -> None:
        if process.stopping:
            if now - process.started > STOP_TIMEOUT_S:
                process.kill("it did not stop when told")
            return
        if process is ward.spare:
            return
        if process is ward.successor:
            if now - process.started > LOAD_TIMEOUT_S:
                process.kill(f"its code was not loaded within {LOAD_TIMEOUT_S:.0f} s")
            return
        beat = max(ward.beat, process.started)
        used = used_s(process.pid)
        if process.watch.suspicious(now, beat, used):
            found = sample(process.pid)
            served_s = beat - (process.ready_at or beat)
            if found is not None and process.watch.hung(now, found, used, serving=process.ready_at is not None,
                                                        patience=ward.policy.patience(served_s)):
                if found.state == "R":
                    ward.policy.looped(served_s)
                ward.away_since = beat
                process.kill(f"it hung: no sign of life for {(now - beat) * 1000:.0f} ms (state {found.state})")

    def _reload_changed(self) -> None:
        for ward in self.wards.values():
            if ward.successor is None and fingerprint(packages_of(ward.name)) != self._prints[ward.name]:
                self.events.add("changed", layer=ward.name, detail="its code changed on disk")
                self.renew(ward)

    def status(self, now: float) -> dict:
        """What `status` shows, but for what the kernel says of the processes."""
        config = self._config
        return {
            "name": config.name, "address": str(self._options.interface()), "mac": config.mac.hex(":"),
            "mtu": config.mtu, "tap": "" if config.wire else config.tap, "wire": config.wire,
            "offload": list(config.offload), "run_dir": config.run_dir, "keeper": self._pid, "kernel_end":
                "" if config.wire else str(self._options.kernel_end()),
            "switch": self._wire.status() if self._wire else None,
            "cores": self._placement.describe(), "uptime_s": round(now - self._started, 3),
            "state": "up" if all(ward.state == "up" for ward in self.wards.values()) else "degraded",
            "layers": {name: {
                "pid": ward.process.pid if ward.process else None, "state": ward.state,
                "incarnation": ward.incarnation, "restarts": ward.restarts,
                "uptime_s": round(now - ward.process.ready_at, 3) if ward.process and ward.process.ready_at else 0.0,
                "counters": ward.counter_values(), "roles": ward.counters, "bus": ward.bus_counter_values(),
                "notices": ward.standing_notices(),
            } for name, ward in self.wards.items()},
        }


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def lock(run_dir: Path) -> int:
    """Take the run directory for this process and its janitor; waits while a former janitor still cleans up there."""
    deadline = time.monotonic() + 3.0
    while True:
        run_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(run_dir / "lock")):
                return descriptor
        except FileNotFoundError:
            pass  # removed between open and lock: once more
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise
        os.close(descriptor)
        time.sleep(0.005)
