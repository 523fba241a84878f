"""The keeper's control server: answers the requests on the control socket."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bus.durable import layout
from bus.durable.held import row_at
from bus.runtime.sabotage import FAULTS
from supervisor import control
from supervisor.events import KEEPER, Event, EventLog
from supervisor.managed_layer import ManagedLayer
from supervisor.shared_memory import SharedMemory
from supervisor.taps import Taps
from usernet.pipe.run_dir import peer

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

CALLERS_MAX = 64  # at a time; each needs a descriptor of the keeper
STARVED_TOLD_S = 10.0  # minimum time between two such events
STARVED_PAUSE_S = 0.02
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Stack(Protocol):
    """The interface of the keeper for the control server."""

    events: EventLog
    selector: selectors.BaseSelector
    layers: dict[str, ManagedLayer]
    taps: Taps
    shared: SharedMemory

    def watch(self, source: FileDescriptorLike, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `source` is readable."""

    def status(self, now: float) -> dict[str, Any]:
        """The object that `status` shows."""

    def stop(self) -> None:
        """Stop all layers."""

    def renew(self, name: str, done: Callable[[str], None] | None = None) -> None:
        """A planned restart of a layer."""


class ControlServer:
    """Serves any number of callers. A request that takes time is answered when it is done."""

    def __init__(self, keeper: Stack, run_dir: Path, front: socket.socket | None) -> None:
        self._keeper = keeper
        self._listener = control.listen(run_dir)
        self._front = front  # the abstract socket, for callers without access to the other
        self._wait_for_down: list[control.Caller] = []
        self._callers: set[control.Caller] = set()
        # a reserved descriptor, to answer a caller when there is no other
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._next_starved_told = 0.0
        keeper.watch(self._listener, partial(self._accept, self._listener))
        if front is not None:
            keeper.watch(front, partial(self._accept, front))

    def listen_again(self, run_dir: Path) -> None:
        """Listen in a new run directory, too."""
        self._keeper.selector.unregister(self._listener)
        self._listener.close()
        self._listener = control.listen(run_dir)
        self._keeper.watch(self._listener, partial(self._accept, self._listener))

    def close(self, forced: list[str]) -> None:
        """The stack has stopped: answer the callers that asked for it.

        `forced`: the processes that had to be killed.
        """
        self._listener.close()
        if self._front is not None:
            self._front.close()
        for caller in self._wait_for_down:
            caller.answer({"forced": forced})

    def _accept(self, listener: socket.socket) -> None:
        try:
            caller = control.accept(listener)
        except OSError as error:
            self._starved(error, listener)
            return
        if caller is None:
            return
        if len(self._callers) >= CALLERS_MAX:
            caller.refuse(f"{CALLERS_MAX} callers are connected already")
            caller.connection.close()
            return
        self._callers.add(caller)
        self._keeper.watch(caller, partial(self._serve, caller))

    def _starved(self, error: OSError, listener: socket.socket) -> None:
        """No descriptor for a caller: use the reserved one to tell the caller.

        Without a reserved one the caller waits.
        """
        now = time.monotonic()
        if now >= self._next_starved_told:
            self._next_starved_told = now + STARVED_TOLD_S
            self._keeper.events.add("starved", detail=f"the keeper cannot accept callers: {error.strerror}")
        try:
            os.close(self._spare)
            caller = control.accept(listener)
            if caller is not None:
                caller.refuse(f"the keeper cannot accept this caller: {error.strerror}")
                caller.connection.close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            time.sleep(STARVED_PAUSE_S)  # the listener stays readable

    def _hang_up(self, caller: control.Caller) -> None:
        self._callers.discard(caller)
        self._keeper.selector.unregister(caller)
        caller.connection.close()
        self._keeper.taps.hung_up(caller)

    def _watch_caller(self, caller: control.Caller) -> None:
        """Also wait for writability while output is queued."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.output else 0)
        if caller.connection.fileno() >= 0:
            self._keeper.selector.modify(caller, events, partial(self._serve, caller))

    def _serve(self, caller: control.Caller) -> None:
        """Serve a caller's requests. An exception ends the conversation with this caller only."""
        try:
            requests = caller.requests() if caller.flush() else None
            for request in requests or ():
                self._answer(caller, request)
        except Exception as error:
            caller.refuse(f"the request failed: {type(error).__name__}: {error}")
            requests = None
        if requests is None:
            self._hang_up(caller)
        else:
            self._watch_caller(caller)

    def _answer(self, caller: control.Caller, request: dict[str, Any]) -> None:
        answers = {"status": self._on_status, "down": self._on_down, "restart": self._on_restart,
                   "events": self._on_events, "sabotage": self._on_sabotage, "manage": self._on_manage,
                   "capture": self._on_capture, "impair": self._on_impair, "clear": self._on_clear,
                   "impairments": self._on_impairments, "levels": self._on_levels, "memory": self._on_memory}
        answer = answers.get(str(request.get("op")))
        if answer is None:
            caller.refuse(f"unknown request {request.get('op')!r}; the requests are {', '.join(answers)}")
        else:
            answer(caller, request)

    def _log(self, event: str, caller: control.Caller, what: str, layer: str = "") -> None:
        """Add an event with the caller that requested what follows."""
        pid, _ = peer(caller.connection)
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            name = "it has ended"
        self._keeper.events.add(event, layer=layer, detail=f"{what} by process {pid} ({name})")

    def _on_status(self, caller: control.Caller, request: dict[str, Any]) -> None:
        caller.answer(self._keeper.status(time.monotonic()))

    def _on_down(self, caller: control.Caller, request: dict[str, Any]) -> None:
        self._log("down", caller, "asked for")
        self._wait_for_down.append(caller)
        self._keeper.stop()

    def _on_restart(self, caller: control.Caller, request: dict[str, Any]) -> None:
        layers, names = self._keeper.layers, request.get("layers")
        if not isinstance(names, list) or not names or not all(str(name) in layers for name in names):
            caller.refuse(f"restart: 'layers' is {names!r}; expected a list of {', '.join(layers)}")
            return
        outcome: dict[str, str] = {}

        def done(name: str, problem: str) -> None:
            outcome[name] = problem
            if len(outcome) == len(set(names)):
                problems = [text for text in outcome.values() if text]
                caller.refuse("\n".join(problems)) if problems else caller.answer(sorted(outcome))

        for name in dict.fromkeys(names):
            self._log("restart", caller, "asked for", name)
            self._keeper.renew(name, partial(done, name))

    def _on_sabotage(self, caller: control.Caller, request: dict[str, Any]) -> None:
        layer, fault = self._keeper.layers.get(str(request.get("layer"))), str(request.get("fault"))
        if layer is None or layer.process is None or fault not in {*SIGNALS, *FAULTS}:
            running = [name for name, other in self._keeper.layers.items() if other.process]
            caller.refuse(f"sabotage {request.get('layer')} {fault}: layers that run are {', '.join(running)}; "
                          f"faults are {', '.join([*SIGNALS, *FAULTS])}")
            return
        self._log("sabotage", caller, f"{fault}, ordered", layer.name)
        if fault in SIGNALS:
            signal.pidfd_send_signal(layer.process.pidfd, SIGNALS[fault])
        else:
            layer.resources.words.words[layout.SABOTAGE] = FAULTS[fault]
        caller.answer({"pid": layer.process.pid})

    def _on_manage(self, caller: control.Caller, request: dict[str, Any]) -> None:
        """Pass a request on to one layer's core; it is answered even if the layer is restarted meanwhile."""
        layer = self._keeper.layers.get(str(request.get("layer")))
        if layer is None or not isinstance(request.get("request"), dict):
            caller.refuse(f"manage: layer {request.get('layer')!r} and a request; layers are "
                          f"{', '.join(self._keeper.layers)}")
            return

        def answered(answer: dict[str, Any]) -> None:
            caller.refuse(answer["error"]) if "error" in answer else caller.answer(answer)

        layer.ask(request["request"], answered)

    def _on_capture(self, caller: control.Caller, request: dict[str, Any]) -> None:
        """Watch layers until the caller disconnects; answered when all of them copy the requested records."""
        try:
            self._keeper.taps.capture(caller, request.get("layers"))
        except ValueError as error:
            caller.refuse(f"capture: {error}")

    def _on_impair(self, caller: control.Caller, request: dict[str, Any]) -> None:
        try:
            self._keeper.taps.impair(request.get("impairments"), lambda: caller.answer({}))
        except ValueError as error:
            caller.refuse(f"impair: {error}")

    def _on_clear(self, caller: control.Caller, request: dict[str, Any]) -> None:
        pipes, flow = request.get("pipes"), request.get("flow")
        if not isinstance(pipes, list) or not isinstance(flow, str | None):
            caller.refuse("clear what?")
            return
        ended = self._keeper.taps.clear(map(str, pipes), flow)
        self._keeper.taps.tell({one.layer for one in ended}, lambda: caller.answer(ended))

    def _on_impairments(self, caller: control.Caller, request: dict[str, Any]) -> None:
        caller.answer(self._keeper.taps.listing())

    def _on_levels(self, caller: control.Caller, request: dict[str, Any]) -> None:
        """Change levels of the event log ({layer or "keeper": level} in `set`); answered with all of them."""
        events, sources = self._keeper.events, [KEEPER, *self._keeper.layers]
        wanted = request.get("set", {})
        try:
            if not isinstance(wanted, dict) or not set(wanted) <= set(sources):
                raise ValueError(f"expected {', '.join(sources)}")
            for source, level in wanted.items():
                events.set_level(source, str(level))
        except ValueError as error:
            caller.refuse(f"log: {error}")
            return
        caller.answer({source: events.level(source) for source in sources})

    def _on_memory(self, caller: control.Caller, request: dict[str, Any]) -> None:
        """The memory of an application, for the process that asks; with `buffers` also the table of returned ones."""
        try:
            number, descriptor = self._keeper.shared.lend(peer(caller.connection)[0])
        except OSError as error:
            caller.refuse(f"memory: {error.strerror}")
        else:
            if request.get("buffers") is True:
                caller.answer_with([descriptor, self._keeper.shared.returned],
                                   {"number": number, "returned": row_at(number)})
            else:
                caller.answer_with([descriptor], {"number": number})

    def _on_events(self, caller: control.Caller, request: dict[str, Any]) -> None:
        for event in self._keeper.events.all():
            caller.send(event)
        if not request.get("follow"):
            caller.finish()
            return

        def follow(event: Event) -> bool:
            heard = caller.send(event)
            self._watch_caller(caller)
            return heard

        self._keeper.events.follow(follow)
