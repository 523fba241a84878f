"""The requests for the layers' taps: captures, each until its caller disconnects, and impairments.

The keeper holds both, so that they outlive a layer: each incarnation gets the requests at its start
(`bus.runtime.taps.TapRequests`), and running layers get every change. Impairments end with the stack.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from bus.durable import layout
from bus.runtime.impair import Settings
from bus.runtime.taps import CaptureRequest, ImpairmentRequest, TapRequests
from packets.filter import compile_filter
from supervisor.control import Caller
from supervisor.managed_layer import ManagedLayer


class Watched(msgspec.Struct, frozen=True):
    """One layer in a capture request; peers as in CaptureRequest."""

    taken: frozenset[int] = frozenset()
    sent: frozenset[int] = frozenset()
    drops: bool = False
    meter: bool = False
    record: bool = False
    every: int = 0


class Impaired(msgspec.Struct, frozen=True, omit_defaults=True):
    """An impairment of one direction of one pipe, carried out by `layer`; `peer` is the other end."""

    pipe: str
    layer: str
    peer: int
    sent: bool
    settings: Settings
    flow: str = ""


class Taps:
    """The requests for the taps of one stack."""

    def __init__(self, layers: dict[str, ManagedLayer]) -> None:
        self._layers = layers
        self._captures: dict[Caller, dict[str, CaptureRequest]] = {}
        self._free = set(range(layout.TAPS_MAX))  # numbers of free rings, the same in each layer
        self._impairments: dict[int, Impaired] = {}
        self._number = 0

    def requests(self, layer: str) -> TapRequests:
        """All requests for a layer at present."""
        return TapRequests(
            tuple(layers[layer] for layers in self._captures.values() if layer in layers),
            tuple(ImpairmentRequest(number, one.peer, one.sent, one.settings, one.flow)
                  for number, one in self._impairments.items() if one.layer == layer))

    def capture(self, caller: Caller, layers: Any) -> None:
        """Watch layers for a caller, which gets the number of the ring and each layer's memory when all layers do so.

        Layers that are recorded are restarted, because a recording begins with a process. ValueError: invalid request.
        """
        asked = msgspec.convert(layers, dict[str, Watched])
        if not asked or not set(asked) <= set(self._layers):
            raise ValueError(f"layers are {', '.join(self._layers)}")
        if caller in self._captures or not self._free:
            raise ValueError(f"{layout.TAPS_MAX} captures at a time, one of each caller")
        slot = self._free.pop()
        self._number += 1
        self._captures[caller] = {
            layer: CaptureRequest(self._number, slot, watched.taken, watched.sent, watched.drops, watched.meter,
                                  watched.record, watched.every)
            for layer, watched in asked.items()}
        memories = [self._layers[layer].resources.memory_fd for layer in asked]
        anew = {layer for layer, watched in asked.items() if watched.record}

        def renewed(layer: str, problem: str) -> None:
            anew.discard(layer)
            if not anew:
                caller.refuse(problem) if problem else caller.answer_with(memories, {"slot": slot})

        def told() -> None:
            for layer in sorted(anew):
                self._layers[layer].renew(partial(renewed, layer))
            if not anew:
                caller.answer_with(memories, {"slot": slot})

        self.tell(asked, told)

    def hung_up(self, caller: Caller) -> None:
        """The caller has disconnected: end its capture."""
        ended = self._captures.pop(caller, {})
        if ended:
            self.tell(ended, partial(self._release, next(iter(ended.values())).slot, list(ended)))

    def _release(self, slot: int, layers: list[str]) -> None:
        """No layer writes into this ring any more: return the memory to the system."""
        for layer in layers:
            with layout.map_tap(self._layers[layer].resources.memory_fd, slot) as ring:
                ring.madvise(mmap.MADV_REMOVE)
        self._free.add(slot)

    def impair(self, wanted: Any, done: Callable[[], object]) -> None:
        """Set impairments; each replaces the one for the same pipe and flow. ValueError: invalid request."""
        asked = msgspec.convert(wanted, list[Impaired])
        for one in asked:
            if one.layer not in self._layers:
                raise ValueError(f"{one.pipe}: layer {one.layer} is not in this stack")
            if one.flow:
                compile_filter(one.flow)
        for one in asked:
            for number, other in list(self._impairments.items()):
                if (other.pipe, other.flow) == (one.pipe, one.flow):
                    del self._impairments[number]
            if not one.settings.idle:
                self._number += 1
                self._impairments[self._number] = one
        self.tell({one.layer for one in asked}, done)

    def clear(self, pipes: Iterable[str], flow: str | None) -> list[Impaired]:
        """Remove the impairments of these pipes (none given: of all) and of `flow` if it is given; returns them.

        The caller must `tell` the layers afterwards.
        """
        wanted = set(pipes)
        ended = {number: one for number, one in self._impairments.items()
                 if (not wanted or one.pipe in wanted) and flow in (None, one.flow)}
        for number in ended:
            del self._impairments[number]
        return list(ended.values())

    def listing(self) -> list[Impaired]:
        """The present impairments."""
        return list(self._impairments.values())

    def tell(self, layers: Iterable[str], done: Callable[[], object]) -> None:
        """Send these layers their present requests; `done` is called when all have applied them."""
        waiting = set(layers)
        if not waiting:
            done()

        def answered(layer: str) -> None:
            waiting.discard(layer)
            if not waiting:
                done()

        for layer in sorted(waiting):
            self._layers[layer].tap(partial(self.requests, layer), partial(answered, layer))
