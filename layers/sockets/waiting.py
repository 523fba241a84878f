"""Long requests, and what their applications ask after them.

A `list` takes longer the more sockets there are, `share` and `giveback` the more sockets they name, and a frame may
contain 256 of them. They are executed at the end of the turn and in further turns, a limited part in each, and one
application after the other, so that none makes the others wait. The requests of one application stay in order.

Forgets in a crash: all of them. As their applications have no answer, they ask again.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from bus.layer import CounterWords, Send
from layers.sockets.counters import Counters
from layers.sockets.limits import LONG_WAITING_MAX, Shares
from layers.sockets.replies import refusal
from layers.sockets.requests import LIST_MAX, GiveBack, List, Request, Share

AT_ONCE = 256  # sockets in the requests that are executed in one turn, and records sent for them: about 3 ms


class WaitingRequests:
    """See the module's docstring. `execute` carries out a request and returns what to send."""

    def __init__(self, execute: Callable[[int, Request], list[Send]], counters: CounterWords) -> None:
        self._execute = execute
        self._counters = counters
        self._waiting: dict[int, deque[Request]] = {}  # by client, in the order in which it is their turn
        self._shares = Shares(LONG_WAITING_MAX)

    @property
    def waiting(self) -> bool:
        """True if `execute` has something to do."""
        return bool(self._waiting)

    def take(self, client: int, request: Request) -> list[Send]:
        """Execute a request, unless it is a long one or has to wait behind one."""
        queue = self._waiting.get(client)
        if queue is None and not isinstance(request, List | Share | GiveBack):
            return self._execute(client, request)
        if not self._shares.allows(client):
            self._counters[Counters.limit] += 1
            self._counters[Counters.refused] += 1
            return [refusal(client, request.id, errno.ENOBUFS)]
        self._shares.take(client)
        self._waiting.setdefault(client, deque()).append(request)
        return []

    def execute(self) -> list[Send]:
        """Execute the next part of the requests of one application."""
        sends: list[Send] = []
        if not self._waiting:
            return sends
        client = next(iter(self._waiting))
        queue = self._waiting.pop(client)
        room = AT_ONCE
        while queue and room > 0:
            request = queue.popleft()
            self._shares.take(client, -1)
            sent = self._execute(client, request)
            room -= _sockets(request) + len(sent)
            sends += sent
        if queue:
            self._waiting[client] = queue  # behind the others
        return sends

    def forget(self, client: int) -> None:
        """The process of the client has ended."""
        self._shares.take(client, -len(self._waiting.pop(client, ())))


def _sockets(request: Request) -> int:
    """How many sockets a request is about."""
    if isinstance(request, List):
        return LIST_MAX
    return len(request.handles if isinstance(request, Share) else
               request.connections if isinstance(request, GiveBack) else ())
