"""link's shell: the core over the medium that the launcher chose."""

from __future__ import annotations

from bus.process import Birth, serve
from layers.link.core import Core
from layers.link.counters import Counters
from layers.link.tap import Tap


def main(birth: Birth) -> None:
    """Run until the keeper says stop."""
    serve(birth, Core, Counters, lambda birth: Tap(birth.medium_fd))
