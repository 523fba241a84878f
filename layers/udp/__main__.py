"""The process of udp."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.udp.core import Core
from layers.udp.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters)
