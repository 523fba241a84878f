"""The process of ip."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.ip.core import Core
from layers.ip.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters)
