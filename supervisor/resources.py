"""What the keeper holds for one layer, whatever process serves it: durable memory, inbox, notices, questions."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bus.counters import PipeCounters
from bus.durable import layout
from bus.messages import Notice
from bus.runtime.control import LINE_OCTETS
from bus.runtime.taps import TapRequests

LISTEN_BACKLOG = 256
QUESTIONS_MAX = 1000  # of one layer that wait for their answers


class Question(NamedTuple):
    """Something that a layer's core was asked, and who waits for the answer."""

    text: Callable[[], str]  # JSON, as it is now
    answered: Callable[[dict], None]


class Resources:
    """One layer's."""

    def __init__(self, name: str, here: Path) -> None:
        self.memory_fd = layout.create(name)
        self.words = layout.Words(self.memory_fd)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(here / f"{name}.sock"))
        self.listener.listen(LISTEN_BACKLOG)
        self.lock: dict | None = None  # what its processes gave up (supervisor.lockdown.Lock)
        self.counters: dict[str, str] = {}  # name -> role, in the order of the words
        self.notices: dict[Notice, float] = {}  # what people should know of it, and since when (epoch)
        self.questions: dict[int, Question] = {}
        self._asked = 0

    @property
    def beat(self) -> float:
        """When the layer's loop last turned, in seconds of CLOCK_MONOTONIC."""
        return self.words.beat[0]

    def counter_values(self) -> dict[str, int]:
        """The layer's own counters by name."""
        return dict(zip(self.counters, self.words.counters, strict=False))

    def bus_counter_values(self) -> dict[str, int]:
        """What the bus counted for it."""
        return dict(zip(PipeCounters.declared, self.words.bus_counters, strict=False))

    def ask(self, request: dict, answered: Callable[[dict], None]) -> str:
        """The question as the layer takes it; `answered` is called when it answers, be it by a later process."""
        if len(self.questions) >= QUESTIONS_MAX:
            answered({"error": f"{len(self.questions)} questions wait for this layer's answer already"})
            return ""
        self._asked += 1
        request = request | {"order": self._asked}  # by this the core knows it again: see bus.layer.ManagedCore
        text = msgspec.json.encode({"id": self._asked, "request": request}).decode()
        if len(text.encode()) > LINE_OCTETS:
            answered({"error": f"a request of more than {LINE_OCTETS} octets"})
            return ""
        self.questions[self._asked] = Question(lambda: text, answered)
        return text

    def tap(self, requests: Callable[[], TapRequests], answered: Callable[[], None]) -> str:
        """Likewise, what is asked of the layer's taps: each time that it is told, what is asked then."""
        self._asked += 1
        number = self._asked
        question = Question(lambda: msgspec.json.encode({"id": number, "taps": requests()}).decode(),
                            lambda _: answered())
        self.questions[number] = question
        return question.text()

    def answered(self, number: int, answer: dict) -> None:
        """The core's answer to a question; a second answer to the same is ignored."""
        question = self.questions.pop(number, None)
        if question is not None:
            question.answered(answer)

    def notice(self, told: list[Notice], now: float) -> tuple[list[Notice], list[Notice]]:
        """Take what the core says holds now; (what is new of it, what held before and is over)."""
        former = self.notices
        self.notices = {notice: former.get(notice, now) for notice in told}
        return ([notice for notice in self.notices if notice not in former],
                [notice for notice in former if notice not in self.notices])

    def standing_notices(self) -> list[dict]:
        """The notices, as `status` shows them."""
        return [{"event": notice.event, "detail": notice.detail, "since": since, **dict(notice.facts)}
                for notice, since in self.notices.items()]
