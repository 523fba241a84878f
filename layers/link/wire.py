"""The virtual wire: link's port at a switch over ZeroMQ, in a TAP's place (bus.wire says what is agreed there)."""

from __future__ import annotations

import os
from pathlib import Path

import zmq

from bus.batch import OCTETS_MAX, Batch
from bus.core import CounterWords
from bus.pipes import PACK_OCTETS, PACK_RECORDS, set_defaults
from bus.wire import SWITCH_SOCKET, pack, port_number, unpack
from layers.link.counters import Counters as C


class Wire:
    """A medium over one port. `inbox`: its socket's path; `listener_fd`: that socket, which the keeper holds."""

    edge_triggered = True
    writes_through = False

    def __init__(self, inbox: str, listener_fd: int, counters: CounterWords) -> None:
        self._counters = counters
        self._number = port_number(Path(inbox))
        self._frames: list[bytes] = []  # written, not yet sent
        self._octets = 0
        context = zmq.Context()
        self._inbox = context.socket(zmq.PULL)
        set_defaults(self._inbox)
        self._inbox.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._inbox.setsockopt(zmq.USE_FD, listener_fd)
        self._inbox.bind(f"ipc://{inbox}")
        self._outbox = context.socket(zmq.PUSH)
        set_defaults(self._outbox)
        self._outbox.connect(f"ipc://{Path(inbox).with_name(SWITCH_SOCKET)}")
        self._outbox.send(pack(self._number, []))  # waits there until a switch listens

    def fileno(self) -> int:
        """ZeroMQ's descriptor: an edge, when something arrives after `read` found nothing."""
        return self._inbox.fileno()

    def read(self, batch: Batch) -> list[bytes]:
        """The frames of the next pack from the switch."""
        receive = self._inbox.recv
        try:
            while True:
                frames = _frames(receive(zmq.NOBLOCK))
                if frames:
                    batch.keep(frames)
                    return frames
                self._counters[C.wire_malformed] += 1
        except zmq.Again:
            return []

    def length(self, octets: memoryview) -> int:
        """Nothing is read without being counted."""
        return 0

    def write(self, frame: bytes) -> None:
        """Put one frame into the pack that leaves at `flush`."""
        if len(self._frames) == PACK_RECORDS or self._octets + len(frame) > PACK_OCTETS:
            self.flush()
        self._frames.append(frame)
        self._octets += len(frame)

    def flush(self) -> None:
        """Send the pack, or drop it where the switch is away or slow and the pipe to it is full."""
        frames = self._frames
        if not frames:
            return
        self._frames, self._octets = [], 0
        try:
            self._outbox.send(pack(self._number, frames), zmq.NOBLOCK)
        except zmq.Again:
            self._counters[C.medium_refused] += len(frames)


def _frames(message: bytes) -> list[bytes]:
    """What a message of the switch carries; nothing, if it is none or longer than the switch sends."""
    try:
        return unpack(message)[1] if len(message) <= OCTETS_MAX else []
    except ValueError:
        return []
