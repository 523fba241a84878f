"""The interface of the device below link: a TAP or a port on a wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bus import messages
from bus.durable import layout
from bus.durable.frames import Windows
from bus.durable.held import NO_HOLDINGS, Holdings
from bus.durable.rx_log import RxLog
from bus.runtime.inbox import Inbox


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

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """The same for a frame in several parts."""

    def flush(self) -> None:
        """Send the frames of this turn."""


class DeviceEnd:
    """The layer's end of its device: batches of frames in, numbered like the frames of a pipe; frames out, each once.

    What the former process had read and not processed is still here (`bus.durable.rx_log`), and so is how much of the
    output for the frame in its hands it had written already: 55 SIGKILLs under 16,000 echoes/s duplicated 16 datagrams
    without this count, and none with it. It costs 0.6 us per frame.
    """

    def __init__(self, device: Device, durable: layout.Memory, inbox: Inbox, held: Holdings = NO_HOLDINGS,
                 windows: Windows | None = None) -> None:
        self.device = device
        self.inbox = inbox  # of the batches
        self.read_at = 0.0  # when the last batch was read
        self._held = held
        self._words = durable.words
        self._batch = RxLog(durable, windows)
        self._written_cell = layout.WRITTEN  # for the sender of the frame being processed
        self._to_skip = 0  # number of writes for this frame that the former process has done

    def read(self, now: float) -> list[bytes]:
        """The next batch; empty: there is none."""
        self._batch.open(self.inbox.done + 1)
        frames = self.device.read(self._batch)
        if frames:
            self.read_at = now
            self.inbox.done += 1
        return frames

    def runs(self, frames: list[bytes]) -> list[tuple[int, list[bytes]]]:
        """[(kind, frames)] of a batch, in order: ETHERNET, or ETHERNET_HELD for those that are only referred to."""
        held = self._batch.held
        if not held:
            return [(messages.ETHERNET, frames)]
        runs: list[tuple[int, list[bytes]]] = []
        for number, frame in enumerate(frames):
            kind = messages.ETHERNET_HELD if number in held else messages.ETHERNET
            if runs and runs[-1][0] == kind:
                runs[-1][1].append(frame)
            else:
                runs.append((kind, [frame]))
        return runs

    def left(self) -> list[bytes]:
        """The frames that the former process had read from the device but not processed."""
        number, frames = self._batch.left(self.device.length)
        if number <= self.inbox.done:
            self._batch.close()
            return []
        if frames:
            self.inbox.done = number
        return frames

    def begin(self, sender: int, sequence: int) -> None:
        """The output for this frame of `sender` follows; the former process may have written a part of it."""
        words, cell = self._words, layout.WRITTEN + sender
        known, written = divmod(words[cell], 1 << layout.WRITTEN_SHIFT)
        if known == sequence:
            self._to_skip = written
        else:
            self._to_skip = 0
            words[cell] = sequence << layout.WRITTEN_SHIFT
        self._written_cell = cell

    def write(self, frame: bytes) -> None:
        """Write one frame to the device, unless the former process did so before it died during the same work."""
        if self._is_new():
            self.device.write(frame)

    def write_held(self, record: bytes) -> None:
        """The same for an ETHERNET_HELD record. Its octets are not needed again: this process's successor skips it."""
        if self._is_new():
            found = self._held.pieces(record)
            if found is None:
                return
            self.device.write_parts((found[0], *found[1]))
        self._held.spend(record)
        if self._held.spent:
            self._held.settle()

    def _is_new(self) -> bool:
        if self._to_skip:
            self._to_skip -= 1
            return False
        if self.device.writes_through:
            # before the write: a SIGKILL during a system call takes effect at its end
            self._words[self._written_cell] += 1
        return True

    def flush(self) -> None:
        """The turn ends: send what the device has held back; the batch is processed."""
        self.device.flush()
        self._batch.close()
