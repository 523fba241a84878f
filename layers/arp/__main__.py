"""arp's shell: the core on the bus."""

from __future__ import annotations

from bus.runtime.process import SpawnArguments, serve
from layers.arp.core import Core
from layers.arp.counters import Counters


def main(spawned: SpawnArguments) -> None:
    """Run until the keeper says stop."""
    serve(spawned, Core, Counters)
