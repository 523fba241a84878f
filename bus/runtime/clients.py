"""Clients: processes that are not layers and communicate with one (applications, with the socket service).

A client has an inbox `app-<number>.sock` in a directory of its layer, and introduces itself by HELLO, which names the
inbox. The kernel identifies it: by the credentials of the process that listens on that inbox, not by the message. The
layer draws an id and sends it to the inbox, so that only the client knows it. All frames in both directions contain the
id, so no other process can send frames as the client, or as the layer. A client leaves by BYE; otherwise a pidfd shows
its end. Its identity and the positions in both pipes are in durable cells, so a client outlives the layer's process.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
from dataclasses import dataclass
from pathlib import Path

from bus import topology
from bus.config import StackConfig
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.layer import ClientCore
from bus.runtime.backlog import Backlog, Pool
from bus.runtime.inbox import Inbox
from bus.runtime.outbox import Outbox
from bus.runtime.peers import listener
from bus.runtime.pipes import Pipes
from usernet.pipe.contract import Pull, Push, bounded
from usernet.pipe.frame import VERSION, of_version, pack_frame
from usernet.pipe.messages import (
    BYE,
    CREDIT,
    REFUSAL,
    REQUEST,
    SEND,
    SEND_SEGMENTS,
    SEND_SEGMENTS_HELD,
    WANT,
    inbox_name,
    inbox_number,
)
from usernet.pipe.numbering import Hello, Refusal, encode
from usernet.pipe.places import Places
from usernet.pipe.streams import ACCEPT, READ, STREAM, STREAM_HELD, STREAM_INFO, STREAM_MEMORY

BACKLOG_RECORDS = 1 << 16  # behind a full pipe to a client; the receive buffers of its sockets are the actual limit
WAITING_MAX = 8  # frames in the pipe to a client, of 64 kB and more each: 100 that do not read have 60 MB
BACKLOGS_OCTETS = 1 << 25  # of memory for such records to all clients
UNREAD_OCTETS_MAX = 1 << 22  # of replies and other control that a client does not read; beyond, it is cut off
UNREAD_OCTETS_ALL = 1 << 25  # of all clients; beyond, the one with the most is cut off
# a single record that kills the layer is a defect of the layer; a process that sends another is disconnected
OFFENCES_MAX = 2
REFUSALS_MAX = 16  # maximum of refusals being sent; a client that gets none sends HELLO again
REFUSAL_CHECKS = 10  # number of calls of `ended` within which a refusal must leave
LAST_FRAMES_S = 1.0  # the last frames of a process are read within this time of its end
CONTESTED_S_MAX = 2 * LAST_FRAMES_S  # also if a client ends at any time
ENDED_AT_ONCE = 64  # clients that leave in one call of `ended`
REFUSAL_LINGER_MS = 300  # for libzmq to connect and send it
TOOLS_PLACES = 8  # that only the tools of the command line may take, which the owner needs when all others are taken
STRANGERS_PLACES = 8  # of connections, for layers and for processes that have not said HELLO
DESCRIPTORS_A_CLIENT = 4  # a pidfd, a PUSH and its connection, the connection of the client
CLIENT_KINDS = frozenset({SEND, SEND_SEGMENTS, SEND_SEGMENTS_HELD, REQUEST, CREDIT, BYE, WANT, STREAM, STREAM_HELD,
                          STREAM_MEMORY, READ, ACCEPT, STREAM_INFO})


@dataclass(eq=False, slots=True)
class Client:
    """One client and the two pipes between it and the layer."""

    number: int  # its id
    inbox_number: int
    place: int
    pid: int
    pidfd: int
    outbox: Outbox
    inbox: Inbox
    heard_at_end: int = -1  # number of its last frame at the time when its end was noticed, and its pipe drained
    awaited_until: float = 0.0  # seconds of CLOCK_MONOTONIC: from then on it leaves, whether its pipe is drained or not


class Clients:
    """The clients of one layer. Their pipes are among the layer's `pipes`."""

    def __init__(self, core: ClientCore, config: StackConfig, pipes: Pipes) -> None:
        self.core = core
        self._folder = Path(config.run_dir)
        self._owner = config.owner
        self._pipes = pipes
        self._words = pipes.turn.words
        self._incarnation = self._words[layout.INCARNATION]
        self._counters = pipes.turn.memory.bus_counters
        self._refusals: list[tuple[Push, int]] = []  # (PUSH, number of checks) of the refusals being sent
        self._backlogs = Pool(BACKLOGS_OCTETS)
        self._ends = select.epoll()
        most = bounded(layout.CLIENTS_MAX + STRANGERS_PLACES, pipes.poller.descriptors_reserved, DESCRIPTORS_A_CLIENT)
        self._places = Places(most - STRANGERS_PLACES)
        self.by_number: dict[int, Client] = {}
        self.ending = False  # the process of a client has ended, and its last frames may not have been read
        self._contested_until: float | None = None  # seconds of CLOCK_MONOTONIC: the core waits no longer than that
        self._waits_long = False  # that time has come

    @property
    def is_contested(self) -> bool:
        """True if the core waits for `clients_checked`, and all clients have left that had ended when it began to
        wait."""
        return self.core.contested and (self._waits_long or not self.ending)

    def has(self, pid: int) -> bool:
        """True if the process is a client."""
        return self._places.has(pid)

    def restore(self) -> None:
        """Restore the clients of the former process. To the core, those that have ended meanwhile do not join."""
        for place in range(layout.CLIENTS_MAX):
            cell = layout.CLIENTS + layout.CLIENT_WORDS * place
            number = self._words[cell + layout.CLIENT_ID]
            if not number:
                continue
            former, inbox = self._words[cell + layout.CLIENT_PID], self._words[cell + layout.CLIENT_INBOX]
            pid, pidfd = listener(self._folder / inbox_name(inbox), self._owner, busy=former)
            if pid == former:
                self._attach(number, inbox, place, pid, pidfd)
                continue
            # Its process has ended, or it removed its inbox while no process received its BYE.
            if pidfd >= 0:
                os.close(pidfd)
            self._forget(inbox, place)

    def admit(self, hello: Hello, version: int, sender: int) -> Client | None:
        """A process sent HELLO in a frame of `version`. None: it is refused.

        It gets the reason if it is a process of this user and listens on its inbox. `sender`: the process that sent
        HELLO; 0: unknown.
        """
        number = inbox_number(hello.inbox)
        known = next((client for client in self.by_number.values() if client.inbox_number == number), None)
        if known is not None:  # repeat its id until it uses it; only the client itself can read it
            return None if known.inbox.incarnation else known
        inbox = self._folder / hello.inbox
        if not number or inbox.is_symlink():
            return None
        pid, pidfd = listener(inbox, self._owner)
        if not pid:
            return None
        if sender and pid != sender:
            os.close(pidfd)
            return None
        place = self._free_place()
        objection = self._objection(pid, place, hello, version)
        if place is None or objection is not None:
            os.close(pidfd)
            if objection is not None:
                self._refuse(inbox, objection, version)
            return None
        drawn = 0
        while not drawn or drawn in self._pipes.inboxes:
            drawn = topology.CLIENT_ID_MIN + secrets.randbelow(topology.CLIENT_ID_END - topology.CLIENT_ID_MIN)
        cell = layout.CLIENTS + layout.CLIENT_WORDS * place
        words = self._words
        words[cell + layout.CLIENT_PID] = pid
        words[cell + layout.CLIENT_INBOX] = number
        words[cell + layout.CLIENT_DONE] = words[cell + layout.CLIENT_SENT] = 0
        words[cell + layout.CLIENT_ID] = drawn
        return self._attach(drawn, number, place, pid, pidfd)

    def _objection(self, pid: int, place: int | None, hello: Hello, version: int) -> Refusal | None:
        """The reason for refusing the process; None: it is accepted."""
        if version != VERSION or hello.version != VERSION:
            said = version if version != VERSION else hello.version
            number, error = errno.EPROTONOSUPPORT, (
                f"this stack speaks version {VERSION} of the application protocol, the application version {said}")
        elif place is None or not self._places.has_one_for(pid) or (
                not hello.tool and len(self.by_number) >= self._places.most - TOOLS_PLACES):
            number, error = errno.EUSERS, (
                f"this stack has {len(self.by_number)} applications and no room for another one of process {pid}; "
                "`launcher.py ss` shows whose they are, and a larger `ulimit -Hn` at `up` may give room for more")
        elif self.is_barred(pid):
            number = errno.ECONNABORTED
            error = f"process {pid} was disconnected, because its records have killed the socket service"
        else:
            return None
        return Refusal(errno=number, error=error, token=hello.token)

    def _refuse(self, inbox: Path, refusal: Refusal, version: int) -> None:
        """Send a process a refusal, in a frame of its version."""
        self._counters[C.bus_turned_away] += 1
        if len(self._refusals) < REFUSALS_MAX:
            push = self._pipes.poller.push(str(inbox))
            push.send(of_version(pack_frame(REFUSAL, 0, self._incarnation, 0, [encode(refusal)]), version))
            self._refusals.append((push, 0))

    def _check_refusals(self) -> None:
        under_way, self._refusals = self._refusals, []
        for push, checks in under_way:
            push.flush()
            if checks < REFUSAL_CHECKS and (push.waiting or not push.open):
                self._refusals.append((push, checks + 1))
            else:
                push.close(REFUSAL_LINGER_MS)

    def _free_place(self) -> int | None:
        if len(self.by_number) >= self._places.most:
            return None
        first, end = layout.CLIENTS + layout.CLIENT_ID, layout.CLIENTS + layout.CLIENT_WORDS * layout.CLIENTS_MAX
        try:
            return self._words[first : end : layout.CLIENT_WORDS].tolist().index(0)
        except ValueError:
            return None

    def _offences(self) -> dict[int, int]:
        cells = self._words[layout.OFFENDERS : layout.OFFENDERS + layout.OFFENDERS_MAX].tolist()
        return {cell >> 8: cell & 0xFF for cell in cells if cell}

    def is_barred(self, pid: int) -> bool:
        """True if it sent so many records that had to be set aside that it is disconnected."""
        return self._offences().get(pid, 0) >= OFFENCES_MAX

    def offended(self, pid: int) -> None:
        """A record from this process has killed the layer repeatedly and was set aside."""
        offences = self._offences()
        mine = pid << 8 | min(offences.pop(pid, 0) + 1, 0xFF)
        cells = [mine, *(other << 8 | count for other, count in offences.items())][: layout.OFFENDERS_MAX]
        for place, cell in enumerate(cells):
            self._words[layout.OFFENDERS + place] = cell

    def _forget(self, inbox: int, place: int) -> None:
        self._words[layout.CLIENTS + layout.CLIENT_WORDS * place + layout.CLIENT_ID] = 0
        (self._folder / inbox_name(inbox)).unlink(missing_ok=True)

    def _attach(self, number: int, inbox_number: int, place: int, pid: int, pidfd: int) -> Client:
        cell = layout.CLIENTS + layout.CLIENT_WORDS * place
        pipes = self._pipes
        outbox = pipes.connect(str(self._folder / inbox_name(inbox_number)), number, number, cell + layout.CLIENT_SENT,
                               Backlog(BACKLOG_RECORDS, self._backlogs), WAITING_MAX)
        inbox = pipes.inboxes[number] = pipes.inbox(number, CLIENT_KINDS, cell + layout.CLIENT_DONE, pid)
        client = Client(number, inbox_number, place, pid, pidfd, outbox, inbox)
        self.by_number[number] = client
        self._places.add(pid)
        self._ends.register(pidfd, select.EPOLLIN)
        return client

    def ended(self, pull: Pull, now: float) -> list[int]:
        """Clients whose process has ended, whose pipe to `pull` is drained, and that sent no frame since the last call;
        removes them.

        Frames that a process sent before its end may still be in its connection, or with libzmq's thread. A connection
        that a forked child has inherited does not end with the process, so this is limited in time (LAST_FRAMES_S).
        """
        if self._refusals:
            self._check_refusals()
        if not self.by_number:
            return []
        if not self.core.contested:
            self._contested_until = None
        elif self._contested_until is None:
            self._contested_until = now + CONTESTED_S_MAX
        self._waits_long = self._contested_until is not None and now >= self._contested_until
        numbers: list[int] = []
        finished = {descriptor for descriptor, _ in self._ends.poll(0, ENDED_AT_ONCE)}
        self.ending = len(finished) == ENDED_AT_ONCE
        for client in [client for client in self.by_number.values() if client.pidfd in finished]:
            client.awaited_until = client.awaited_until or now + LAST_FRAMES_S
            if now < client.awaited_until and not pull.drained(client.pid):
                client.heard_at_end = -1
                self.ending = True
                continue
            if client.heard_at_end != client.inbox.done:
                client.heard_at_end = client.inbox.done
                self.ending = True
                continue
            self.dismiss(client)
            numbers.append(client.number)
        return numbers + self._cut_off()

    def _cut_off(self) -> list[int]:
        """Dismiss clients that ask and do not read the answers: control is not dropped, so they would fill the
        memory."""
        unread = {client: client.outbox.unread_octets for client in self.by_number.values() if client.outbox.blocked}
        total = sum(unread.values())
        numbers = []
        for client, octets in sorted(unread.items(), key=lambda each: -each[1]):
            if octets <= UNREAD_OCTETS_MAX and total <= UNREAD_OCTETS_ALL:
                break
            self._counters[C.bus_cut_off] += 1
            self.dismiss(client)
            numbers.append(client.number)
            total -= octets
        return numbers

    def dismiss(self, client: Client) -> None:
        """Remove a client and free its place."""
        self._ends.unregister(client.pidfd)
        os.close(client.pidfd)
        self._pipes.remove(client.number)
        del self.by_number[client.number]
        self._places.remove(client.pid)
        self._forget(client.inbox_number, client.place)
