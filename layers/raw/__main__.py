"""raw's shell: the core on the bus."""

from __future__ import annotations

from bus.runtime.process import Birth, serve
from layers.raw.core import Core
from layers.raw.counters import Counters


def main(birth: Birth) -> None:
    """Run until the keeper says stop."""
    serve(birth, Core, Counters)
