"""link's shell: the core over the device that the launcher chose."""

from __future__ import annotations

from bus.durable.layout import Words
from bus.runtime.device import Device
from bus.runtime.process import SpawnArguments, serve
from layers.link.core import Core
from layers.link.counters import Counters
from layers.link.tap import Tap
from layers.link.wire_port import Wire


def device(spawned: SpawnArguments) -> Device:
    """The TAP, or the port on a wire; both count what they drop among link's own counters."""
    counters = Words(spawned.memory_fd).counters
    if spawned.config.wire:
        return Wire(spawned.config, spawned.device_fd, counters)
    return Tap(spawned.device_fd, counters, bool(spawned.config.offload))


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper says stop."""
    serve(spawned, Core, Counters, device)
