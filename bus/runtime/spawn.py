"""What the keeper passes to a layer's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bus.config import StackConfig
from bus.durable.frames import Windows
from bus.durable.held import NO_HOLDINGS, Holdings
from bus.runtime.control import Control


def _unlocked() -> tuple[str, object]:
    return "", None


@dataclass(slots=True)
class SpawnArguments:
    """What the keeper passes to a layer at its fork."""

    layer: str
    config: StackConfig
    memory_fd: int
    listener_fd: int
    control: Control
    device_fd: int = -1
    shared_fds: tuple[int, ...] = ()  # of the memories for payload (bus.durable.held), by number
    held: Holdings = NO_HOLDINGS  # these memories, once the layer serves
    windows: Windows | None = None  # of link, if its device can read frames into shared memory
    refers: bool = True  # False: the layer sends no references, because its calls are recorded
    # applies the restrictions; returns (the run directory from then on, the result)
    lock: Callable[[], tuple[str, object]] = _unlocked
    statm_fd: int = -1  # of /proc/self/statm, opened before no file can be opened any more
