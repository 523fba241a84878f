"""What lies below link, whatever it is."""

from __future__ import annotations

from typing import Protocol

from bus.durable.rx_log import RxLog


class Device(Protocol):
    """What lies below link."""

    edge_triggered: bool  # `fileno` announces frames only once: `read` has to be called until there are none

    writes_through: bool  # what `write` was given has left when it returns, and not at `flush`

    def fileno(self) -> int:
        """Becomes readable when frames arrive."""

    def read(self, batch: RxLog) -> list[bytes]:
        """The frames that are there, as many as a batch holds, and they are kept there; empty: none."""

    def length(self, octets: memoryview) -> int:
        """Of the frame at the beginning of `octets`, that `read` put there and did not count; 0: cannot be told."""

    def write(self, frame: bytes) -> None:
        """Send one frame, now or at `flush`, or drop it where the device is full."""

    def flush(self) -> None:
        """The turn is over: what was written leaves."""
