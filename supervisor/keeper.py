"""The keeper, the supervisor process: holds what must outlive a layer, and forks, reaps and watches layers.

It has one thread and one selector. A child starts in milliseconds because the keeper has already imported its modules.
The stack ends with this process, so no error of a caller, a layer or the system may end it: `_contained` is the one
place that ensures this.
"""

from __future__ import annotations

import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from setproctitle import setproctitle

import bus.runtime.event_loop  # noqa: F401  (so that a fork finds it imported)
from bus.config import StackConfig, draw_cookie
from bus.counters import PipeCounters
from supervisor import child, lockdown
from supervisor.cleanup import CleanupProcess
from supervisor.control_server import ControlServer
from supervisor.crashes import write_recording
from supervisor.errors import BootError
from supervisor.events import EventLog
from supervisor.layer_process import LayerMessage, Process
from supervisor.locks import Locks
from supervisor.managed_layer import ManagedLayer
from supervisor.options import Options
from supervisor.placement import Placement
from supervisor.poison import write_poison
from supervisor.reserve import Reserve
from supervisor.resources import Resources
from supervisor.run_dir import Held, take
from supervisor.service import Event, State
from supervisor.shared_memory import SharedMemory
from supervisor.snapshots import Code, fingerprint, packages_of
from supervisor.switch_service import Wire
from supervisor.taps import Taps
from usernet.pipe.contract import preload

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

TICK_S = 0.2
CHECK_S = 0.25
WIRE_TICK_S = 0.05  # between two checks of the switch of a wire
CLOSE_TICK_S = 0.01  # while a layer's life sign is late
RELOAD_CHECK_S = 0.5
RUN_DIR_CHECK_S = 1.0
TROUBLE_PAUSE_S = 0.05  # after an error here that may repeat at once


class Keeper:
    """The keeper of one stack. It is the `Host` of its layers."""

    def __init__(self, options: Options, held: Held, device_fd: int, offload: tuple[str, ...],
                 cleanup_process: CleanupProcess, front: socket.socket | None = None) -> None:
        preload(options.implementation())
        self._options = options
        self._held = held
        self._front = front
        self._wire_trouble = ""
        self._run_dir_trouble = ""  # the reason why it could not be created again
        self._lost: set[str] = set()  # layers that must be restarted because of this
        self._due = self._next_check = self._next_run_dir_check = 0.0  # times of CLOCK_MONOTONIC
        self.events = EventLog()
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._wire = Wire(options.wire_dir(), self.selector, self._on_wire, options.implementation(),
                          self._show_to_link, not options.unlocked) if options.wire else None
        self._device_fd = self._wire.listener.fileno() if self._wire else device_fd
        self._pid = os.getpid()
        self._started = time.monotonic()
        interface = options.interface()
        self._config = StackConfig(
            name=options.name, run_dir=str(held.path), address=interface.ip.packed, prefix=interface.network.prefixlen,
            mac=options.mac_octets(), gateway=options.gateway_address(), mtu=options.mtu, ttl=options.ttl,
            wire=options.wire, wire_inbox=str(self._wire.inbox) if self._wire else "", tap=options.tap,
            pipes=options.implementation(), dns=options.name_servers(), cookie=draw_cookie(), layers=options.layers(),
            accept_redirects=options.accept_redirects, offload=offload, epoch=time.time() - time.monotonic(),
            owner=os.geteuid(), sysctl=options.settings(), record_crashes=options.record_crashes)
        self.shared = SharedMemory()
        self.layers = {name: ManagedLayer(name, Resources(name, held.here), self) for name in self._config.layers}
        self.taps = Taps(self.layers)
        self._locks = Locks(options, held, self._config)
        self._make_roots()
        self.placement = Placement(options.cores, options.core_list())
        self.reserve = Reserve()
        self.forced: list[str] = []  # the processes that had to be killed when the stack stopped
        self._cleanup = cleanup_process
        self._stopping = False
        self._booted = False
        self._boot_failure = ""
        self._prints = {name: fingerprint(packages_of(name)) for name in self.layers} if options.reload else {}
        self._next_reload_check = 0.0

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None]) -> None:
        """Boot, call `on_ready` when every layer serves, and run until told to stop. Leaves nothing behind.

        BootError: a layer does not start.
        """
        try:
            self._serve(on_ready)
        finally:
            self._cleanup.finish(self._held)
        if self._boot_failure:
            raise BootError(self._boot_failure)

    def _serve(self, on_ready: Callable[[], None]) -> None:
        setproctitle(f"usernet {self._options.name}: keeper")
        if not self._options.unlocked:
            lockdown.reduce()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_: None)  # reported by `wakeup`, so it never interrupts the keeper
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.watch(wakeup, partial(self._woken, wakeup))
        self._control = control_server = ControlServer(self, self._held.here, self._front)
        gc.collect()
        gc.freeze()
        self._cleanup.replace()
        self.watch(self._cleanup.pidfd, self._replace_cleanup)
        for layer in self.layers.values():
            layer.happens(Event.START)
        while not (self._stopping and all(layer.state is State.DOWN for layer in self.layers.values())):
            for key, _ in self.selector.select(max(CLOSE_TICK_S, self._due - time.monotonic())):
                self._contained(key.data)
            self._contained(self._tick)
            if not self._booted:
                self._see_to_boot(on_ready)
        self.forced = [line for layer in self.layers.values() for line in layer.forced]
        self.events.add("down", detail="stopped in order" if not self.forced else "; ".join(self.forced))
        control_server.close(self.forced)
        if self._wire:
            self._wire.leave()

    def _contained(self, callback: Callable[[], None]) -> None:
        """Call it and turn any exception into an event, so that the stack goes on."""
        try:
            callback()
        except Exception as error:
            self.events.add("trouble", detail=f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}")
            traceback.print_exc(file=sys.stderr)
            time.sleep(TROUBLE_PAUSE_S)  # the same source may raise again at once

    def _see_to_boot(self, on_ready: Callable[[], None]) -> None:
        if all(layer.state is State.UP for layer in self.layers.values()):
            self._booted = True
            waited_ms = round((time.monotonic() - self._started) * 1000, 1)
            self.events.add("up", detail=f"{len(self.layers)} layers serve", gap_ms=waited_ms)
            on_ready()
        elif not self._stopping:
            for layer in self.layers.values():
                if layer.state in (State.PAUSED, State.FAILED):
                    why = [event.detail for event in self.events.all() if event.layer == layer.name and event.detail]
                    told = why[-1].strip() if why else "no process"
                    if (last := told.splitlines()[-1]).startswith(("OSError: ", "MemoryError")):
                        told = last  # a failure of the machine, for which a traceback does not help
                    self._boot_failure = f"{layer.name} does not start: {told}"
                    self.stop()
                    return

    def _replace_cleanup(self) -> None:
        self.selector.unregister(self._cleanup.pidfd)
        self._cleanup.replace()
        self.watch(self._cleanup.pidfd, self._replace_cleanup)
        self.events.add("cleanup", detail="the cleanup process had ended and was replaced")

    def _woken(self, wakeup: int) -> None:
        os.read(wakeup, 64)
        self.stop()

    def stop(self) -> None:
        """Stop all layers, from the top down; `run` returns when they have ended."""
        if not self._stopping:
            self._stopping = True
            for layer in reversed(self.layers.values()):
                layer.happens(Event.STOP)

    def watch(self, source: FileDescriptorLike, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `source` is readable."""
        self.selector.register(source, selectors.EVENT_READ, callback)

    # -- what the layers share: see managed_layer.Host -------------------------------------------------------------

    def fork(self, layer: ManagedLayer, code: Code) -> Process:
        """A process of `layer` that loads `code` and waits to be told to serve. OSError: the fork failed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            device_fd = self._device_fd if layer.name == "link" else -1
            held, shared_fds = layer.resources, self.shared.of(layer.name)
            pid = os.fork()
            if pid == 0:
                try:
                    listener_fd = held.listener.fileno()
                    keep = [held.memory_fd, listener_fd, theirs.fileno(), device_fd, code.descriptor,
                            self._held.descriptor, *shared_fds]
                    child.become(f"usernet {self._options.name}: {layer.name}", self._pid, keep)
                    child.run_layer(layer.name, code, self._locks.config(layer.name), self._locks.lock(layer.name),
                                    self._held.descriptor, held.memory_fd, listener_fd, device_fd, shared_fds,
                                    theirs)
                finally:
                    os._exit(1)
            ours.setblocking(False)
            try:
                return Process(pid, ours, code, time.monotonic())
            except OSError:  # no descriptor for the pidfd
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def taps_of(self, layer: str) -> str:
        """The requests for the taps of a layer, as JSON."""
        return msgspec.json.encode(self.taps.requests(layer)).decode()

    def keep_poison(self, layer: str, message: LayerMessage) -> str:
        """Store a poison record in a file. Returns its path, or text about the failure."""
        record = {"kind": message.kind, "record": message.record}
        try:
            return str(write_poison(self._options.name, layer, record, bool(self._config.offload)))
        except OSError as error:
            return f"not in a file ({error.strerror}: {error.filename}); base64 {message.record[:2000]}"

    def keep_recording(self, layer: str, incarnation: int) -> str:
        """Store the last calls of a process that has crashed in a file.

        Returns its path, or text about the failure; empty: nothing was recorded.
        """
        if not self._config.record_crashes:
            return ""
        try:
            path = write_recording(self._options.name, layer, incarnation, self.layers[layer].resources.memory_fd)
        except OSError as error:
            return f"not in a file ({error.strerror}: {error.filename})"
        return str(path or "")

    # -- watching ------------------------------------------------------------------------------------------------

    def _make_roots(self) -> None:
        self._held.make_roots({name: self._locks.user(name) for name in self.layers})

    def _show_to_link(self, inbox: Path) -> None:
        self._held.show(inbox, "link")

    def _check_run_dir(self) -> None:
        """Repair the run directory if files of it were removed, because the stack cannot be reached without them.

        A removed name is linked again. A socket without any name is created again, and so is the directory; the layers
        concerned are restarted. For an application whose inbox was removed the stack is gone (ENETDOWN).
        """
        gone = self._held.is_gone()
        port = self._mend_wire()
        lost = self._lost = self._lost | (set(self.layers) if gone else self._held.mend()) | port
        if all(self.layers[name].renewing for name in lost):  # none is, or each waits for its successor
            return
        try:
            if gone:
                former, self._held = self._held, take(self._held.path, wait_s=0.0)
                former.close()
                self._locks = Locks(self._options, self._held, self._config)
                self._control.listen_again(self._held.here)
            for name in lost:
                self.layers[name].resources.listen_again(self._held.here / f"{name}.sock")
            self._make_roots()
            if self._wire:
                self._wire.show_switch()
        except OSError as error:
            trouble = f"{self._held.path} was removed and cannot be made anew: {error.strerror or error}"
            if trouble != self._run_dir_trouble:
                self.events.add("run directory", detail=trouble)
            self._run_dir_trouble = trouble
            return
        what = "the run directory" if gone else f"what {', '.join(sorted(lost))} had in the run directory"
        if lost == port:
            what = "the socket of the port on the wire"
        self.events.add("run directory", detail=f"{what} was removed, and made anew")
        # Later those whose successors have the former sockets
        self._lost = {name for name in lost if self.layers[name].renewing}
        self._run_dir_trouble = ""
        for name in lost - self._lost:
            self.renew(name)

    def _mend_wire(self) -> set[str]:
        """{"link"} if the port on the wire had lost its name."""
        trouble = ""
        try:
            return {"link"} if self._wire and self._wire.mend() else set()
        except OSError as error:
            reason = str(error.strerror or error).replace("USERNET_DIR", "XDG_RUNTIME_DIR")
            reason += f": {error.filename}" if error.filename else ""
            trouble = f"the directory of the wire was removed and cannot be made anew: {reason}"
            if trouble != self._wire_trouble:
                self._on_wire(trouble)
            return set()
        finally:
            self._wire_trouble = trouble

    def _on_wire(self, detail: str) -> None:
        self.events.add("wire", detail=detail)

    def _tick(self) -> None:
        """To be called after everything that happened, and at `_due`: a delayed start, or a closer check of a late life
        sign."""
        now = time.monotonic()
        self._due = now  # if one of the calls raises
        due = now + TICK_S
        if self._wire:
            self.reserve.at_need(partial(self._wire.tend, now))
            due = now + WIRE_TICK_S
        for layer in self.layers.values():
            due = min(due, layer.look_after(now))
        if now >= self._next_check:
            self._next_check = now + CHECK_S
            self._check(now)
        self._due = due

    def _check(self, now: float) -> None:
        """What need not be looked at for every event."""
        for layer in self.layers.values():
            layer.log_drops(now)
        if self._booted and not self._stopping and now >= self._next_run_dir_check:
            self._next_run_dir_check = now + RUN_DIR_CHECK_S
            self._check_run_dir()
        if self._options.reload and now >= self._next_reload_check and not self._stopping:
            self._next_reload_check = now + RELOAD_CHECK_S
            self._reload_changed()
        pids = {layer.name: layer.process.pid for layer in self.layers.values() if layer.process}
        frames = sum(layer.resources.words.bus_counters[PipeCounters.bus_frames_in] for layer in self.layers.values())
        if self.placement.balance(now, pids, frames):
            self.events.add("placed", detail=f"cores {self.placement.describe()}")

    def renew(self, name: str, done: Callable[[str], None] | None = None) -> None:
        """A planned restart of a layer with its code on disk; `done` is called with "" or the error."""
        layer = self.layers[name]
        if self._options.reload and not layer.renewing:
            self._prints[name] = fingerprint(packages_of(name))
        layer.renew(done)

    def _reload_changed(self) -> None:
        for name, layer in self.layers.items():
            # What changes while a successor loads is noticed when it serves
            if not layer.renewing and fingerprint(packages_of(name)) != self._prints[name]:
                self.events.add("changed", layer=name, detail="its code changed on disk")
                self.renew(name)

    def _trouble(self, now: float) -> str:
        """What is wrong with the files of the stack and its wire; empty: nothing."""
        wires = self._wire_trouble or (self._wire.trouble(now) if self._wire else "")
        return "; ".join(filter(None, (self._run_dir_trouble, wires)))

    def _state(self, trouble: str) -> str:
        if all(layer.state is State.UP for layer in self.layers.values()) and not trouble:
            return "up"
        return "degraded" if self._booted else "starting"

    def status(self, now: float) -> dict[str, Any]:
        """The object that `status` shows, without what the kernel reports about the processes."""
        config, trouble = self._config, self._trouble(now)
        return {
            "name": config.name, "address": str(self._options.interface()), "mac": config.mac.hex(":"),
            "mtu": config.mtu, "tap": "" if config.wire else config.tap, "wire": config.wire,
            "pipes": config.pipes, "offload": list(config.offload),
            "options": msgspec.to_builtins(self._options), "run_dir": config.run_dir, "keeper": self._pid,
            "kernel_end": "" if config.wire else str(self._options.kernel_end()),
            "switch": self._wire.status() if self._wire else None,
            "cores": self.placement.describe(), "uptime_s": round(now - self._started, 3),
            "state": self._state(trouble), "trouble": trouble,
            "impairments": msgspec.to_builtins(self.taps.listing()),
            "layers": {name: layer.status(now) for name, layer in self.layers.items()},
        }
