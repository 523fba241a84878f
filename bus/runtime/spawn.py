"""What the keeper passes to a layer's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bus.config import StackConfig
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
    # applies the restrictions; returns (the run directory from then on, the result)
    lock: Callable[[], tuple[str, object]] = _unlocked
