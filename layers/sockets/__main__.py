"""The process of sockets."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.sockets.core import Core
from layers.sockets.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters)
