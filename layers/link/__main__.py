"""The process of link: its core, over the configured device."""

from __future__ import annotations

import mmap

from bus.config import TCP_SEGMENTATION
from bus.durable.frames import FRAMES_OCTETS, Windows
from bus.durable.held import FRAMES
from bus.durable.layout import Words
from bus.runtime.device import Device
from bus.runtime.process import SpawnArguments, serve
from layers.link.core import Core
from layers.link.counters import Counters
from layers.link.tap import Tap
from layers.link.wire_port import Wire


def device(spawned: SpawnArguments) -> Device:
    """The TAP, or the port on a wire; both count dropped frames in link's counters."""
    words = Words(spawned.memory_fd)
    if spawned.refers and TCP_SEGMENTATION in spawned.config.offload:
        spawned.windows = Windows(mmap.mmap(spawned.shared_fds[FRAMES], FRAMES_OCTETS))
    if spawned.config.wire:
        return Wire(spawned.config, spawned.device_fd, words)
    return Tap(spawned.device_fd, words.counters, bool(spawned.config.offload))


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters, device)
