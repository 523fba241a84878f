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
from supervisor.control_server import ControlServer
from supervisor.events import EventLog
from supervisor.options import Options
from supervisor.placement import Placement
from supervisor.poison import write_poison
from supervisor.policy import SUSPECT_AFTER_S
from supervisor.service import Process, Service, sample, used_s
from supervisor.snapshots import Code, Snapshot, fingerprint, packages_of
from supervisor.switch_service import Wire
from usernet.pipe.contract import preload

TICK_S = 0.2
WIRE_TICK_S = 0.05  # its switch may have to be started anew
CLOSE_TICK_S = 0.01  # while a layer's life sign is late
STOP_TIMEOUT_S = 0.5  # for a layer that was told to stop
LOAD_TIMEOUT_S = 10.0  # for a new version to be imported
SPARE_AFTER_S = 0.1  # from a layer's serving to the fork of its spare
PROBATION_S = 3.0  # a new version that dies within is rolled back
RELOAD_CHECK_S = 0.5


class Keeper:
    """One stack."""

    def __init__(self, options: Options, run_dir: Path, lock_fd: int, device_fd: int,
                 offload: tuple[str, ...] = ()) -> None:
        preload(options.pipes)
        self._options = options
        self._run_dir = run_dir
        self._lock_fd = lock_fd
        self.events = EventLog()
        self.selector = selectors.DefaultSelector()
        self._wire = Wire(options.wire_dir(), self.selector, self._on_wire, options.pipes) if options.wire else None
        self._device_fd = self._wire.listener.fileno() if self._wire else device_fd
        self._pid = os.getpid()
        self._started = time.monotonic()
        interface = options.interface()
        self._config = StackConfig(
            name=options.name, run_dir=str(run_dir), address=int(interface.ip), prefix=interface.network.prefixlen,
            mac=options.mac_octets(), gateway=options.gateway_address(), mtu=options.mtu, ttl=options.ttl,
            wire=options.wire, wire_inbox=str(self._wire.inbox) if self._wire else "", tap=options.tap,
            pipes=options.pipes, dns=options.name_servers(), cookie=draw_cookie(), layers=options.layers(),
            accept_redirects=options.accept_redirects, offload=offload, epoch=time.time() - time.monotonic())
        self.services = {name: Service(name, run_dir) for name in self._config.layers}
        self._placement = Placement(options.cores, options.core_list())
        self._stopping = False
        self._booted = False
        self._boot_failure = ""
        self._janitor = 0
        self._prints = {name: fingerprint(packages_of(service.name)) for name, service in self.services.items()}
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
        control_server = ControlServer(self, self._run_dir)
        self._janitor = janitor.fork(self._options.name, self._run_dir)
        gc.collect()
        gc.freeze()
        for service in self.services.values():
            self._start(service)
        while not (self._stopping and all(not service.processes() for service in self.services.values())):
            for key, _ in self.selector.select(self._timeout_s()):
                key.data()
            self._tick(time.monotonic())
            if not self._booted and all(service.state == "up" for service in self.services.values()):
                self._booted = True
                self.events.add("up", detail=f"{len(self.services)} layers serve", gap_ms=self._since_ms(self._started))
                on_ready()
        self._leave()
        control_server.close()
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
        for service in reversed(self.services.values()):  # from the top down
            service.state = "down"
            service.start_at = None
            for process in service.processes():
                self._tell_stop(process, now)

    def _timeout_s(self) -> float:
        """Until something may have to be done: a start that had to wait, a closer look at a late life sign."""
        now = time.monotonic()
        due = [now + (WIRE_TICK_S if self._wire else TICK_S)]
        for service in self.services.values():
            due += [
                at for at in (service.start_at, service.spare_at if service.state == "up" else None) if at is not None
            ]
            if service.process:
                due.append(max(service.beat, service.process.started) + SUSPECT_AFTER_S)
        return max(CLOSE_TICK_S, min(due) - now)

    @staticmethod
    def _since_ms(then: float) -> float:
        return round((time.monotonic() - then) * 1000, 1)

    def watch(self, source, callback: Callable[[], None]) -> None:
        """Call back whenever `source` is readable."""
        self.selector.register(source, selectors.EVENT_READ, callback)

    # -- layers --------------------------------------------------------------------------------------------------

    def _start(self, service: Service) -> None:
        """Start the layer from the code that served last, at once."""
        service.start_at = None
        service.process, service.spare = service.spare or self._fork(service, service.code), None
        self._let_go(service)

    def _let_go(self, service: Service) -> None:
        assert service.process is not None
        service.incarnation += 1
        service.process.go(service.incarnation, time.monotonic())

    def _fork(self, service: Service, code: Code) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        device_fd = self._device_fd if service.name == "link" else -1
        pid = os.fork()
        if pid == 0:
            keep = [service.memory_fd, service.listener.fileno(), theirs.fileno(), device_fd]
            title = f"usernet {self._options.name}: {service.name}"
            child.become(title, self._pid, keep)
            child.run_layer(
                service.name,
                code,
                encode(self._config),
                service.memory_fd,
                service.listener.fileno(),
                device_fd,
                theirs,
            )
        theirs.close()
        ours.setblocking(False)
        process = Process(pid, ours, code, time.monotonic())
        self.watch(process.line, partial(self._hear, service, process))
        self.watch(process.pidfd, partial(self._bury, service, process))
        return process

    def _tell_stop(self, process: Process, now: float) -> None:
        process.stopping = True
        process.started = now  # from here on: when the stop was asked for
        process.tell("stop")
        process.tell("stop")  # one for a layer that still waits for "go"

    def _hear(self, service: Service, process: Process) -> None:
        for message in process.messages():
            event = message.get("event")
            if event == "loaded":
                process.loaded = True
                service.counters = message["counters"]
                if process is service.successor:
                    self._hand_over(service)
            elif event == "ready":
                self._ready(service, process)
            elif event == "crashed":
                process.why = message["traceback"]
            elif event == "answer":
                service.answered(message)
            elif event == "notices":
                self._notice(service, process, message["notices"])
            elif event == "poison":
                where = write_poison(self._options.name, service.name, message, bool(self._config.offload))
                self.events.add("poison", layer=service.name, pid=process.pid, incarnation=process.incarnation,
                                 detail=f"a record that killed this layer twice is set aside in {where}")

    def _notice(self, service: Service, process: Process, told: list) -> None:
        begun, over = service.notice(told, time.time())
        for event, notice in [(notice.event, notice) for notice in begun] + [(f"{n.event} over", n) for n in over]:
            self.events.add(event, layer=service.name, pid=process.pid, incarnation=process.incarnation,
                            detail=notice.detail)

    def _ready(self, service: Service, process: Process) -> None:
        process.ready_at = time.monotonic()
        self._placement.settle(process.pid, service.name)
        service.state = "up"
        gap_ms = self._since_ms(service.away_since) if service.away_since is not None else 0.0
        service.away_since = None
        self.events.add("serves", layer=service.name, pid=process.pid, incarnation=process.incarnation, gap_ms=gap_ms)
        service.answer_waiting("")
        service.spare_at = process.ready_at + SPARE_AFTER_S
        for question in service.questions.values():  # its predecessor may have died over them; they may be asked twice
            process.tell(question.text)

    def _bury(self, service: Service, process: Process) -> None:
        """A layer's process has ended: reap it, and start the next, unless it was told to end."""
        self._hear(service, process)
        self.selector.unregister(process.line)
        self.selector.unregister(process.pidfd)
        _, status = os.waitpid(process.pid, 0)
        process.close()
        now = time.monotonic()
        why = process.why or _how(status)
        if process is service.spare:
            service.spare, service.spare_at = None, now + SPARE_AFTER_S
            return
        if process is service.successor:
            service.successor = None
            if not self._stopping:
                self._new_version_failed(service, process, why)
            return
        if process is not service.process:
            return  # a spare that was dismissed
        # What it worked on when somebody killed it is not to blame; an exception or a hang may well come from that.
        blameless = not process.why and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        service.words.words[layout.BLAMELESS] = int(blameless)
        service.process = None
        if self._stopping:
            return
        if service.successor is not None and process.stopping:
            self._promote(service)
            return
        service.away_since = service.away_since if service.away_since is not None else now
        service.restarts += 1
        service.state = "restarting"
        self.events.add("died", layer=service.name, pid=process.pid, incarnation=process.incarnation, detail=why)
        if service.successor is not None:  # it died while its successor was being loaded
            return
        served_s = now - (process.ready_at or now)
        if service.former is not None and process.code is service.code and served_s < PROBATION_S:
            self._roll_back(service, "the new version died")
        pause_s = service.policy.pause_s(served_s)
        if not self._booted and pause_s != 0:
            self._boot_failure = f"{service.name} does not start: {why}"
            self.stop()
        elif pause_s is None:
            service.state = "failed"
            service.answer_waiting(f"{service.name} keeps dying: {why}")
            self.events.add(
                "failed",
                layer=service.name,
                detail=f"it keeps dying and is left alone; `launcher.py restart {service.name}` tries again",
            )
        elif pause_s == 0:
            self._start(service)
        else:
            service.start_at = now + pause_s

    # -- planned restarts ----------------------------------------------------------------------------------------

    def renew(self, service: Service, done: Callable[[str], None] | None = None) -> None:
        """Load the layer's code as it is now on disk into a successor; the present process serves on meanwhile."""
        if service.successor is not None:
            if done:
                service.waiting.append(done)
            return
        self._prints[service.name] = fingerprint(packages_of(service.name))
        try:
            snapshot = Snapshot(service.name)
        except (SyntaxError, ValueError, OSError) as error:
            self.events.add("refused", layer=service.name, detail=f"the code on disk does not compile: {error}")
            if done:
                done(f"{service.name}: the code on disk does not compile: {error}")
            return
        if done:
            service.waiting.append(done)
        service.policy.forgive()
        service.successor = self._fork(service, snapshot)

    def _hand_over(self, service: Service) -> None:
        """The successor has loaded its code: the present process may stop."""
        if service.process is None:
            self._promote(service)
        else:
            self._tell_stop(service.process, time.monotonic())
            service.away_since = time.monotonic()

    def _promote(self, service: Service) -> None:
        successor = service.successor
        assert successor is not None
        service.successor = None
        service.start_at = None
        service.process = successor
        service.restarts += 1
        service.state = "restarting"
        service.former = service.code
        service.code = successor.code
        self._dismiss_spare(service)
        self._let_go(service)

    @staticmethod
    def _dismiss_spare(service: Service) -> None:
        """It has code that is no longer the one to run."""
        spare, service.spare = service.spare, None
        if spare is not None:
            spare.kill("dismissed")

    def _new_version_failed(self, service: Service, process: Process, why: str) -> None:
        self.events.add("refused", layer=service.name, pid=process.pid, incarnation=process.incarnation, detail=why)
        service.answer_waiting(f"{service.name}: the new version did not start, the former one goes on:\n{why}")
        if service.process is None and service.state != "failed":
            self._start(service)

    def _roll_back(self, service: Service, reason: str) -> None:
        assert service.former is not None
        service.code, service.former = service.former, None
        self._dismiss_spare(service)
        self.events.add("rolled back", layer=service.name, detail=f"{reason}; the former code serves again")

    # -- watching ------------------------------------------------------------------------------------------------

    def _on_wire(self, detail: str) -> None:
        self.events.add("wire", detail=detail)

    def _tick(self, now: float) -> None:
        if self._wire:
            self._wire.tend(now)
        for service in self.services.values():
            if service.start_at is not None and now >= service.start_at and not self._stopping:
                self._start(service)
            for process in service.processes():
                self._check(service, process, now)
            if (
                service.spare_at is not None
                and now >= service.spare_at
                and service.state == "up"
                and not self._stopping
            ):
                service.spare, service.spare_at = self._fork(service, service.code), None
            if service.former is not None and service.process and service.process.ready_at \
                    and now - service.process.ready_at > PROBATION_S:
                service.former = None
        if self._options.reload and now >= self._next_reload_check:
            self._next_reload_check = now + RELOAD_CHECK_S
            self._reload_changed()
        pids = {service.name: service.process.pid for service in self.services.values() if service.process}
        frames = sum(service.words.bus_counters[PipeCounters.bus_frames_in] for service in self.services.values())
        if self._placement.balance(now, pids, frames):
            self.events.add("placed", detail=f"cores {self._placement.describe()}")

    def _check(self, service: Service, process: Process, now: float) -> None:
        if process.stopping:
            if now - process.started > STOP_TIMEOUT_S:
                process.kill("it did not stop when told")
            return
        if process is service.spare:
            return
        if process is service.successor:
            if now - process.started > LOAD_TIMEOUT_S:
                process.kill(f"its code was not loaded within {LOAD_TIMEOUT_S:.0f} s")
            return
        beat = max(service.beat, process.started)
        used = used_s(process.pid)
        if process.watch.suspicious(now, beat, used):
            found = sample(process.pid)
            served_s = beat - (process.ready_at or beat)
            if found is not None and process.watch.hung(now, found, used, serving=process.ready_at is not None,
                                                        patience=service.policy.patience(served_s)):
                if found.state == "R":
                    service.policy.looped(served_s)
                service.away_since = beat
                process.kill(f"it hung: no sign of life for {(now - beat) * 1000:.0f} ms (state {found.state})")

    def _reload_changed(self) -> None:
        for service in self.services.values():
            if service.successor is None and fingerprint(packages_of(service.name)) != self._prints[service.name]:
                self.events.add("changed", layer=service.name, detail="its code changed on disk")
                self.renew(service)

    def status(self, now: float) -> dict:
        """What `status` shows, but for what the kernel says of the processes."""
        config = self._config
        return {
            "name": config.name,
            "address": str(self._options.interface()),
            "mac": config.mac.hex(":"),
            "mtu": config.mtu,
            "tap": "" if config.wire else config.tap,
            "wire": config.wire,
            "pipes": config.pipes,
            "offload": list(config.offload),
            "run_dir": config.run_dir,
            "keeper": self._pid,
            "kernel_end": "" if config.wire else str(self._options.kernel_end()),
            "switch": self._wire.status() if self._wire else None,
            "cores": self._placement.describe(),
            "uptime_s": round(now - self._started, 3),
            "state": "up" if all(service.state == "up" for service in self.services.values()) else "degraded",
            "layers": {
                name: {
                    "pid": service.process.pid if service.process else None,
                    "state": service.state,
                    "incarnation": service.incarnation,
                    "restarts": service.restarts,
                    "uptime_s": round(now - service.process.ready_at, 3)
                    if service.process and service.process.ready_at
                    else 0.0,
                    "counters": service.counter_values(),
                    "roles": service.counters,
                    "bus": service.bus_counter_values(),
                    "notices": service.standing_notices(),
                }
                for name, service in self.services.items()
            },
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
