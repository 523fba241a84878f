"""link's shell: the core over the medium that the launcher chose."""

from __future__ import annotations

from bus.durable.layout import Words
from bus.runtime.device import Medium
from bus.runtime.process import Birth, serve
from layers.link.core import Core
from layers.link.counters import Counters
from layers.link.tap import Tap
from layers.link.wire_port import Wire


def medium(birth: Birth) -> Medium:
    """The TAP, or the port on a wire; both count what they drop among link's own counters."""
    counters = Words(birth.memory_fd).counters
    if birth.config.wire:
        return Wire(birth.config.wire_inbox, birth.medium_fd, counters)
    return Tap(birth.medium_fd, counters, bool(birth.config.offload))


def main(birth: Birth) -> None:
    """Run until the keeper says stop."""
    serve(birth, Core, Counters, medium)
