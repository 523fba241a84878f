"""Guests: processes that are not layers and talk to one (applications, to the socket service).

A guest has an inbox `app-<id>.sock` in the run directory and introduces itself by HELLO. Who it is, the kernel says:
the credentials of the process that listens on that inbox, not the message. It goes with BYE; where it does not, its end
is seen on a pidfd. Identity and positions in both pipes are in durable cells, so a guest outlives the layer that serves
it.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from bus import topology
from bus.durable import layout
from bus.durable.journal import Journal
from bus.runtime.peers import listener_pid
from bus.runtime.pipes import Inlet, Outlet
from usernet.pipe.direct import Poller, Push
from usernet.pipe.messages import BYE, CREDIT, REQUEST, SEND, SEND_SEGMENTS, inbox_name

BACKLOG_RECORDS = 1 << 16  # behind a full pipe to a guest: what bounds them are the receive buffers of its sockets
GUEST_KINDS = frozenset({SEND, SEND_SEGMENTS, REQUEST, CREDIT, BYE})


class Guest:
    """One guest and the two pipes to it."""

    def __init__(self, number: int, place: int, pid: int, pidfd: int, outlet: Outlet, inlet: Inlet) -> None:
        self.number = number
        self.place = place
        self.pid = pid
        self.pidfd = pidfd
        self.outlet = outlet
        self.inlet = inlet
        self.heard_at_end = -1  # the number of its last frame when its end was seen


class Guests:
    """All guests of one layer. Their pipes stand among the layer's own: `inlets` by sender, `outlets` by consumer."""

    def __init__(self, run_dir: str, poller: Poller, layer: int, journal: Journal, durable: layout.Memory,
                 touched: list[Outlet], inlets: dict[int, Inlet], outlets: dict[int, Outlet]) -> None:
        self._run_dir = Path(run_dir)
        self._poller = poller
        self._layer = layer
        self._journal = journal
        self._memory = durable
        self._words = durable.words
        self._touched = touched
        self._inlets = inlets
        self._outlets = outlets
        self._ends = select.epoll()
        self.by_number: dict[int, Guest] = {}
        self.departed: list[int] = []  # known to the former incarnation, ended meanwhile

    def restore(self) -> None:
        """Take up the guests of the former incarnation again; those that ended meanwhile go to `departed`."""
        for place in range(layout.GUESTS_MAX):
            cell = layout.GUESTS + layout.GUEST_WORDS * place
            number = self._words[cell + layout.GUEST_ID]
            if not number:
                continue
            pid = self._words[cell + layout.GUEST_PID]
            if not self._remains(number, cell) or not self._attach(number, place, pid):
                self._forget(number, place)
                self.departed.append(number)

    def _remains(self, number: int, cell: int) -> bool:
        """False where its process has ended, or it took its inbox away while nobody heard its BYE."""
        same = _start_time(self._words[cell + layout.GUEST_PID]) == self._words[cell + layout.GUEST_STARTED]
        return same and (self._run_dir / inbox_name(number)).exists()

    def admit(self, number: int) -> Guest | None:
        """A stranger said HELLO. None where it has no inbox, is not ours, or no place is left."""
        if not topology.GUEST_ID_MIN <= number < topology.GUEST_ID_END:
            return None
        pid = listener_pid(self._run_dir / inbox_name(number))
        started = _start_time(pid) if pid else None
        if not pid or started is None:
            return None
        for place in range(layout.GUESTS_MAX):
            cell = layout.GUESTS + layout.GUEST_WORDS * place
            if self._words[cell + layout.GUEST_ID] == 0:
                break
        else:
            return None
        words = self._words
        words[cell + layout.GUEST_PID] = pid
        words[cell + layout.GUEST_STARTED] = started
        words[cell + layout.GUEST_DONE] = words[cell + layout.GUEST_SENT] = 0
        words[cell + layout.GUEST_ID] = number
        guest = self._attach(number, place, pid)
        if guest is None:
            self._forget(number, place)
        return guest

    def _forget(self, number: int, place: int) -> None:
        self._words[layout.GUESTS + layout.GUEST_WORDS * place + layout.GUEST_ID] = 0
        (self._run_dir / inbox_name(number)).unlink(missing_ok=True)

    def _attach(self, number: int, place: int, pid: int) -> Guest | None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        cell = layout.GUESTS + layout.GUEST_WORDS * place
        push = Push(str(self._run_dir / inbox_name(number)), self._poller)
        outlet = Outlet(push, self._layer, number, self._journal, self._memory, cell + layout.GUEST_SENT, self._touched,
                        BACKLOG_RECORDS)
        inlet = Inlet(number, GUEST_KINDS, self._memory, cell + layout.GUEST_DONE, self._journal.done.get(number, 0))
        guest = Guest(number, place, pid, pidfd, outlet, inlet)
        self.by_number[number] = guest
        self._inlets[number], self._outlets[number] = inlet, outlet
        self._ends.register(pidfd, select.EPOLLIN)
        return guest

    def ended(self) -> list[int]:
        """Guests whose process has ended and of whom nothing came since the last call; they are gone from here.

        What a process sent before it ended may still wait in its connection, unread.
        """
        if not self.by_number and not self.departed:
            return []
        numbers, self.departed = self.departed, []
        finished = {descriptor for descriptor, _ in self._ends.poll(0)}
        for guest in [guest for guest in self.by_number.values() if guest.pidfd in finished]:
            if guest.heard_at_end != guest.inlet.done:
                guest.heard_at_end = guest.inlet.done
                continue
            self.dismiss(guest)
            numbers.append(guest.number)
        return numbers

    def dismiss(self, guest: Guest) -> None:
        """Nothing comes from it any more, and nothing goes to it: its place is free."""
        self._ends.unregister(guest.pidfd)
        os.close(guest.pidfd)
        self._touched[:] = [outlet for outlet in self._touched if outlet is not guest.outlet]
        guest.outlet.socket.close()
        del self.by_number[guest.number], self._inlets[guest.number], self._outlets[guest.number]
        self._forget(guest.number, guest.place)


def _start_time(pid: int) -> int | None:
    """proc(5): field 22 of /proc/PID/stat, clock ticks since boot; tells a process from a later one of the same pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])
