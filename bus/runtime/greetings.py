"""Greetings: who is at the other ends of a layer's pipes, and what is repeated when one of them starts.

Neighbours say HELLO when they start and are answered by RESUME (`usernet.pipe.numbering`). Clients introduce themselves
by HELLO, and leave by BYE (`bus.runtime.clients`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import msgspec

from bus import topology
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.layer import ClientCore, Core, Send
from bus.runtime.clients import Clients
from bus.runtime.control import Control
from bus.runtime.inbox import Inbox
from bus.runtime.pipes import Pipes
from usernet.pipe.contract import Pull
from usernet.pipe.frame import VERSION, FrameError, of_version, unpack_frame
from usernet.pipe.messages import HELLO, RESUME
from usernet.pipe.numbering import decode_hello, decode_resume

_HELLO = bytes((HELLO,))
T = TypeVar("T")


class Greetings:
    """What a layer's loop does with them. `core`: with the present taps; `dispatch`: sends what a core returned."""

    def __init__(self, core: Core, pipes: Pipes, clients: Clients | None, pull: Pull, control: Control,
                 dispatch: Callable[[list[Send]], None]) -> None:
        self.core = core
        self._turn = pipes.turn
        self._memory = pipes.turn.memory
        self._counters = pipes.turn.memory.bus_counters
        self._inboxes, self._outboxes = pipes.inboxes, pipes.outboxes
        self._clients = clients
        self._pull = pull
        self._control = control
        self._dispatch = dispatch
        self._neighbors: dict[int, int] = {}  # {layer: pid}
        pull.know(self._is_known)

    def begin(self, cookie: int) -> None:
        """At the start: greet all neighbours, and the clients of the former process."""
        for outbox in self._outboxes.values():
            inbox = self._inboxes.get(cookie + outbox.consumer)
            outbox.greet({"version": VERSION, "done": inbox.done if inbox else 0, "pid": os.getpid()})
        if self._clients is not None:
            self._clients.restore()
            for client in self._clients.by_number.values():
                client.outbox.greet(_welcome(self._clients.core, client.number, client.inbox.done))

    def known(self, now: float) -> None:
        """The core has started: tell it of these clients."""
        if self._clients is not None:
            for client in self._clients.by_number.values():
                self._dispatch(self._clients.core.client_joined(client.number, {"pid": client.pid}, now))

    def stranger(self, kind: int, records: list[bytes], version: int, now: float) -> None:
        """A frame of an unknown sender: a new client if it is a HELLO, otherwise foreign."""
        clients = self._clients
        hello = _parsed(decode_hello, records) if clients is not None and kind == HELLO else None
        client = clients.admit(hello, version, self._pull.pid) if clients is not None and hello is not None else None
        if clients is None or hello is None or client is None:
            self._counters[C.bus_foreign] += 1
            return
        client.outbox.greet({**_welcome(clients.core, client.number, 0), "token": hello.token})
        self._dispatch(clients.core.client_joined(client.number, {"pid": client.pid}, now))

    def undecodable(self, frame: bytes, now: float) -> None:
        """A frame that cannot be decoded, or of another version of the protocol: a HELLO has the same form and is
        answered."""
        if self._clients is not None and frame[1:2] == _HELLO and frame[0] != VERSION:
            try:
                kind, _, _, sequence, records = unpack_frame(of_version(frame, VERSION))
            except FrameError:
                return
            if sequence == 0:
                self.stranger(kind, records, frame[0], now)

    def heard(self, inbox: Inbox, kind: int, incarnation: int, records: list[bytes], now: float) -> None:
        """HELLO or RESUME of a neighbour or client."""
        if incarnation < inbox.incarnation:
            self._counters[C.bus_stale] += 1
            return
        if kind == HELLO and (hello := _parsed(decode_hello, records)) is not None:
            inbox.started(incarnation)
            self._outboxes[inbox.sender].resume(hello.done, inbox.done)
            if inbox.sender < topology.CLIENT_ID_MIN:
                self._spare(inbox, hello.pid)
                self._tell_all(inbox.sender, now)
        elif kind == RESUME and (resume := _parsed(decode_resume, records)) is not None:
            self._spare(inbox, resume.pid)
            is_lossy = inbox.resumed(incarnation, resume.first)
            self._outboxes[inbox.sender].answered(resume.done, inbox.done)
            if is_lossy and isinstance(self.core, ClientCore):
                self._dispatch(self.core.frames_lost(inbox.sender, now))
            elif is_lossy:
                self._tell_all(inbox.sender, now)
        else:
            self._counters[C.bus_malformed] += 1

    def _spare(self, inbox: Inbox, pid: int | msgspec.UnsetType) -> None:
        if inbox.sender < topology.CLIENT_ID_MIN and isinstance(pid, int):
            self._neighbors[inbox.sender] = pid
            self._pull.spare(inbox.sender, pid)

    def _is_known(self, pid: int) -> bool:
        """Whether it is a neighbour or a client."""
        return pid in self._neighbors.values() or (self._clients is not None and self._clients.has(pid))

    def _tell_all(self, sender: int, now: float) -> None:
        """A neighbour has started: tell it everything again."""
        self._memory.begin_long_work()
        self._dispatch(self.core.neighbor_started(sender, now))
        self._turn.end()
        self._memory.end_long_work()

    def bye(self, inbox: Inbox, now: float) -> None:
        """A client has sent BYE."""
        assert self._clients is not None  # only clients may send BYE
        self._dispatch(self._clients.core.client_left(inbox.sender, now))
        self._clients.dismiss(self._clients.by_number[inbox.sender])

    def offended(self, inbox: Inbox, now: float) -> bool:
        """A record of a client was set aside. True: it was not the first, and the client is disconnected."""
        clients, pid = self._clients, inbox.pid
        assert clients is not None  # only clients have a pid
        clients.offended(pid)
        barred = clients.is_barred(pid)
        self._control.tell("offence", pid=pid, barred=barred)
        if barred:
            self.bye(inbox, now)
            self._turn.words[layout.IN_HAND_SENDER] = 0
        return barred


def _welcome(core: ClientCore, client: int, done: int) -> dict[str, object]:
    return {"version": VERSION, "done": done, **core.welcome(client)}


def _parsed(decode: Callable[[bytes], T], records: list[bytes]) -> T | None:
    try:
        return decode(records[0]) if len(records) == 1 else None
    except ValueError:
        return None
