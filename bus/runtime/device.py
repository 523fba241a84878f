"""The interface of the device below link: a TAP or a port on a wire."""

from __future__ import annotations

from typing import Protocol

from bus.durable.rx_log import RxLog


class Device(Protocol):
    """The device below link."""

    edge_triggered: bool  # `fileno` signals frames only once, so `read` must be called until there are none

    writes_through: bool  # True: `write` sends at once. False: `flush` sends

    def fileno(self) -> int:
        """Becomes readable when frames arrive."""

    def read(self, batch: RxLog) -> list[bytes]:
        """The available frames, at most a batch, which are also stored in `batch`; empty: none."""

    def length(self, octets: memoryview) -> int:
        """The length of the frame at the beginning of `octets`, which `read` stored but did not count; 0: unknown."""

    def write(self, frame: bytes) -> None:
        """Send one frame, at once or at `flush`; drop it if the device is full."""

    def flush(self) -> None:
        """Send the frames of this turn."""
