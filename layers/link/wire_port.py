"""The virtual wire: link's port at a switch, over ZeroMQ, instead of a TAP (bus.wire has the protocol)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bus.config import StackConfig
from bus.durable.frames import Windows
from bus.durable.layout import Words
from bus.durable.rx_log import RxLog
from bus.runtime.outbox import PACK_OCTETS, PACK_RECORDS
from bus.wire import CONNECTIONS_MAX, MESSAGE_OCTETS_MAX, SWITCH_SOCKET, InOrder, Users, port_number
from layers.link.counters import Counters as C
from layers.link.references import REFERRED_OCTETS_MIN, refer
from usernet.pipe.contract import Trust, open_poller

ASK_INTERVAL_S = 0.05  # while messages come that are not the next one


class Wire:
    """A device for one port. `listener_fd`: its socket, which the keeper holds.

    What this process has not stored when it is killed is not taken, and the switch repeats it to the successor.
    """

    edge_triggered = True
    writes_through = False

    def __init__(self, config: StackConfig, listener_fd: int, words: Words) -> None:
        self._counters = words.counters
        self._order = InOrder(words.words, bool(config.offload))
        inbox = Path(config.run_dir, config.wire_inbox)
        self._number = port_number(inbox)
        self._frames: list[bytes] = []  # written, not yet sent
        self._octets = 0
        self._poller = open_poller(config.pipes, Trust(config.owner, Users(config.owner)))
        self._inbox = self._poller.pull(listener_fd, MESSAGE_OCTETS_MAX, CONNECTIONS_MAX, self._malformed)
        self._arrived: deque[bytes] = deque()
        self._outbox = self._poller.push(str(inbox.with_name(SWITCH_SOCKET)))
        self._ask()  # a switch that does not listen yet will find our inbox

    def fileno(self) -> int:
        """Readable when a message arrives; `read` may leave some for later calls."""
        return self._poller.epoll.fileno()

    def read(self, batch: RxLog) -> list[bytes]:
        """The frames of the next message from the switch."""
        arrived = self._arrived
        if not arrived:
            for descriptor, _ in self._poller.epoll.poll(0):
                if descriptor in self._poller.pushes:
                    self._poller.pushes[descriptor].hear()
                else:
                    arrived.extend(self._inbox.read(descriptor) or ())
        while arrived:
            number, frames = self._in_order(arrived.popleft())
            if frames:
                batch.keep(frames)
                self._order.took(number)  # a SIGKILL just before it repeats these frames
                return _referred(batch, batch.windows, frames) if batch.windows is not None else frames
        return []

    def _in_order(self, message: bytes) -> tuple[int, list[bytes]]:
        """(number, frames) of a message; no frames: it brings nothing now."""
        try:
            is_next, number, frames = self._order.next(message)
        except ValueError:
            self._malformed()
            return 0, []
        if not is_next:
            self._counters[C.wire_skipped] += 1
            if time.monotonic() > self._asked_at + ASK_INTERVAL_S:
                self._ask()
        return number, frames

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        self._outbox.send(self._order.packed(self._number, []))

    def _malformed(self, error: int = 0) -> None:
        self._counters[C.wire_malformed] += 1

    def length(self, octets: memoryview) -> int:
        """Nothing is read without being counted."""
        return 0

    def write(self, frame: bytes) -> None:
        """Add one frame to the message that leaves at `flush`."""
        if len(self._frames) == PACK_RECORDS or self._octets + len(frame) > PACK_OCTETS:
            self.flush()
        self._frames.append(frame)
        self._octets += len(frame)

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Add one frame in several parts."""
        self.write(b"".join(parts))

    def flush(self) -> None:
        """Send the message, or drop it if the switch is restarting or slow and the pipe to it is full."""
        frames = self._frames
        if not frames:
            if self._outbox.waiting:
                self._outbox.flush()
            return
        self._frames, self._octets = [], 0
        if not self._outbox.send(self._order.packed(self._number, frames)):
            self._counters[C.device_refused] += len(frames)


def _referred(batch: RxLog, windows: Windows, frames: list[bytes]) -> list[bytes]:
    """The records for the frames of a batch, of which large ones are only referred to."""
    records, start = [], 0
    for number, frame in enumerate(frames):
        end = start + len(frame)
        record = refer(batch, windows, number, start, end) if len(frame) > REFERRED_OCTETS_MIN else b""
        records.append(record or frame)
        start = end
    return records
