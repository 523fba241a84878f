"""The process of icmp."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.icmp.core import Core
from layers.icmp.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters)
