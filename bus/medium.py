"""What lies below link, whatever it is."""

from __future__ import annotations

from typing import Protocol


class Medium(Protocol):
    """What lies below link."""

    edge_triggered: bool  # `fileno` announces frames only once: `read` has to be called until there are none

    writes_through: bool  # what `write` was given has left when it returns, and not at `flush`

    def fileno(self) -> int:
        """Becomes readable when frames arrive."""

    def read(self) -> list[bytes]:
        """The frames that are there, at most what one scratch memory holds; empty: none."""

    def write(self, frame: bytes) -> None:
        """Send one frame, now or at `flush`, or drop it where the medium is full."""

    def flush(self) -> None:
        """The turn is over: what was written leaves."""
