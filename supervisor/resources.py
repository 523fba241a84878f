"""What the keeper holds for one layer across all of its processes: durable memory, inbox, notices, requests."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bus.counters import PipeCounters
from bus.durable import layout
from bus.messages import Notice
from bus.runtime.control import LINE_OCTETS
from bus.runtime.taps import TapRequests

LISTEN_BACKLOG = 256
QUESTIONS_MAX = 1000  # pending requests to one layer


class Question(NamedTuple):
    """A request to a layer's core, and the callback for its answer."""

    text: Callable[[], str]  # the request as JSON at the time of the call
    answered: Callable[[dict[str, Any]], None]


class Resources:
    """The resources of one layer."""

    def __init__(self, name: str, here: Path) -> None:
        self.memory_fd = layout.create(name)
        self.words = layout.Words(self.memory_fd)
        self.listener = _listener(here / f"{name}.sock")
        self.lock: dict[str, Any] | None = None  # the rights that its processes gave up (supervisor.lockdown.Lock)
        self.counters: dict[str, str] = {}  # {name: role}, in the order of the words
        self.notices: dict[Notice, float] = {}  # {notice: time since which it holds (epoch)}
        self.questions: dict[int, Question] = {}
        self._asked = 0

    def listen_again(self, inbox: Path) -> None:
        """A new listening socket for the processes that are forked from now on; the name of the old one was removed."""
        inbox.unlink(missing_ok=True)
        former, self.listener = self.listener, _listener(inbox)
        former.close()

    @property
    def beat(self) -> float:
        """The last life sign of the layer's loop, in seconds of CLOCK_MONOTONIC."""
        return self.words.beat[0]

    @property
    def in_hand(self) -> tuple[int, ...]:
        """What the layer is processing, or has processed last: sender and number of a frame, and a record in it."""
        return tuple(self.words.words[layout.IN_HAND_SENDER : layout.IN_HAND_RECORD + 1])

    def counter_values(self) -> dict[str, int]:
        """The layer's own counters by name."""
        return dict(zip(self.counters, self.words.counters, strict=False))

    def pipe_values(self) -> dict[str, list[int]]:
        """Of each pipe where something waits or was dropped: [waiting, dropped, dropped on the way in].

        The key is the place of the other end (`bus.durable.layout.pipe_cell`).
        """
        words = self.words.words
        found = {str(cell): [words[first + cell] for first in (layout.PIPE_WAITING, layout.PIPE_DROPPED,
                                                               layout.PIPE_DROPPED_IN)]
                 for cell in range(layout.PIPE_CELLS)}
        return {cell: values for cell, values in found.items() if any(values)}

    def bus_counter_values(self) -> dict[str, int]:
        """The bus's counters for the layer."""
        return dict(zip(PipeCounters.declared, self.words.bus_counters, strict=False))

    def ask(self, request: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> str:
        """The text of the request for the layer; `answered` is called with the answer, even if a later process sends
        it."""
        if len(self.questions) >= QUESTIONS_MAX:
            answered({"error": f"{len(self.questions)} requests to this layer are pending already"})
            return ""
        self._asked += 1
        # identifies a repeated request to the core: see bus.layer.ManagedCore
        request = request | {"order": self._asked}
        text = msgspec.json.encode({"id": self._asked, "request": request}).decode()
        if len(text.encode()) > LINE_OCTETS:
            answered({"error": f"a request of more than {LINE_OCTETS} octets"})
            return ""
        self.questions[self._asked] = Question(lambda: text, answered)
        return text

    def tap(self, requests: Callable[[], TapRequests], answered: Callable[[], None]) -> str:
        """The same for the layer's taps; a repeated request contains the requirements of that moment."""
        self._asked += 1
        number = self._asked
        question = Question(lambda: msgspec.json.encode({"id": number, "taps": requests()}).decode(),
                            lambda _: answered())
        self.questions[number] = question
        return question.text()

    def answered(self, number: int, answer: dict[str, Any]) -> None:
        """Process the core's answer to a request; a second answer to the same request is ignored."""
        question = self.questions.pop(number, None)
        if question is not None:
            question.answered(answer)

    def notice(self, told: list[Notice], now: float) -> tuple[list[Notice], list[Notice]]:
        """Replace the notices by those that hold now; returns (new ones, those that ended)."""
        former = self.notices
        self.notices = {notice: former.get(notice, now) for notice in told}
        return ([notice for notice in self.notices if notice not in former],
                [notice for notice in former if notice not in self.notices])

    def standing_notices(self) -> list[dict[str, Any]]:
        """The notices that hold, for `status`."""
        return [{"event": notice.event, "detail": notice.detail, "since": since, **dict(notice.facts)}
                for notice, since in self.notices.items()]


def _listener(inbox: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(inbox))
    listener.listen(LISTEN_BACKLOG)
    return listener
