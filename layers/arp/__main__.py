"""The process of arp."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.arp.core import Core
from layers.arp.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper tells the process to stop."""
    serve(spawned, Core, Counters)
