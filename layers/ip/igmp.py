"""The host part of IGMP: when to report groups to routers (RFC 3376; RFC 2236 and 1112 as fallback).

A state machine: it gets changes, queries, other hosts' reports and the time, and returns (destination, message) to
send. Owns pending answers and repetitions, which a crash loses, and the parameters of the querier, which the caller
stores.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from packets.igmp import (
    ALL_ROUTERS,
    ALLOW,
    BLOCK,
    IS_EX,
    IS_IN,
    LEAVE,
    NO_GROUP,
    QUERY_INTERVAL_DEFAULT_S,
    ROBUSTNESS_DEFAULT,
    TO_EX,
    TO_IN,
    V1_REPORT,
    V2_REPORT,
    V3_ROUTERS,
    Query,
    Record,
    reports,
    short,
)

UNSOLICITED_INTERVAL_S = 1.0  # RFC 3376 section 8.11
V2_UNSOLICITED_INTERVAL_S = 10.0  # RFC 2236 section 8.10
QUERIED_SOURCES_MAX = 1024  # per group; beyond this the answer is the complete list, which includes them

Message = tuple[bytes, bytes]  # destination, IGMP message


class Filter(NamedTuple):
    """The wanted sources of a group: all but these, or (not `exclude`) only these."""

    exclude: bool
    sources: frozenset[bytes]


NOTHING = Filter(False, frozenset())  # RFC 3376 section 3.1: not a member
Change = tuple[bytes, Filter, Filter]  # group, before, now


class Querier(msgspec.Struct, array_like=True):
    """The parameters from queries. The times are those until which older versions are assumed to be present."""

    v1_until: float = 0.0
    v2_until: float = 0.0
    robustness: int = ROBUSTNESS_DEFAULT
    interval_s: float = QUERY_INTERVAL_DEFAULT_S

    def version(self, now: float) -> int:
        """RFC 3376 section 7.2.1: the compatibility mode."""
        return 1 if now < self.v1_until else 2 if now < self.v2_until else 3

    def learn(self, query: Query, now: float) -> None:
        """Process a query."""
        if query.version == 3:
            self.robustness, self.interval_s = query.robustness, query.interval_s
            return
        until = now + self.robustness * self.interval_s + query.response_s  # RFC 3376 section 8.12
        if query.version == 1:
            self.v1_until = until
        else:
            self.v2_until = until


class _Unreported:
    """A change that is not completely reported: remaining reports of the filter mode, and of each source."""

    __slots__ = ("mode_left", "sources_left")

    def __init__(self) -> None:
        self.mode_left = 0
        self.sources_left: dict[bytes, int] = {}


class _Answer:
    """A due report of one group. `sources`: those in the query; empty: the group as a whole."""

    __slots__ = ("due", "repeats", "sources")

    def __init__(self, due: float, sources: frozenset[bytes] = frozenset(), repeats: int = 0) -> None:
        self.due = due
        self.sources = sources
        self.repeats = repeats  # versions 1 and 2: further reports after this one


class Igmp:
    """`filters`: the present memberships, which the caller changes.

    `next_due`: the time at which `expire` has something to do.
    """

    def __init__(self, filters: Mapping[bytes, Filter], rng: random.Random, room_octets: int) -> None:
        self.querier = Querier()
        self.next_due: float | None = None
        self._filters = filters
        self._rng = rng
        self._room_octets = room_octets  # available for a message
        self._version = 3
        self._general_due: float | None = None
        self._changes_due: float | None = None
        self._unreported: dict[bytes, _Unreported] = {}
        self._answers: dict[bytes, _Answer] = {}
        self._reporter: set[bytes] = set()  # version 2: groups that this host was the last to report

    # -- what happens ----------------------------------------------------------------------------------------------

    def changed(self, changes: Iterable[Change], now: float) -> list[Message]:
        """`filters` has changed."""
        self._follow_version(now)
        messages = self._changed_v3(changes, now) if self._version == 3 else self._changed_v2(changes, now)
        self._plan()
        return messages

    def queried(self, query: Query, now: float) -> None:
        """Process a query of a router."""
        self.querier.learn(query, now)
        self._follow_version(now)
        if self._version == 3:
            self._schedule_v3(query, now)
        else:
            self._schedule_v2(query, now)
        self._plan()

    def overheard(self, group: bytes, now: float) -> None:
        """RFC 2236 section 3: another host's report makes ours unnecessary. In version 3 all hosts report."""
        self._follow_version(now)
        if self._version < 3:
            self._answers.pop(group, None)
            self._reporter.discard(group)
            self._plan()

    def expire(self, now: float) -> list[Message]:
        """Send due reports."""
        self._follow_version(now)
        messages: list[Message] = []
        if self._general_due is not None and self._general_due <= now:
            self._general_due = None
            messages += self._report([_state(group, wanted) for group, wanted in self._filters.items()])
        for group, answer in list(self._answers.items()):
            if answer.due <= now:
                del self._answers[group]
                v3 = self._version == 3
                messages += self._answer_v3(group, answer) if v3 else self._answer_v2(group, answer, now)
        if self._changes_due is not None and self._changes_due <= now:
            messages += self._report_changes(now)
        self._plan()
        return messages

    def _follow_version(self, now: float) -> None:
        version = self.querier.version(now)
        if version != self._version:  # RFC 3376 section 7.2.1: a change of version cancels all pending reports
            self._version = version
            self._general_due = self._changes_due = None
            self._unreported.clear()
            self._answers.clear()
            self._reporter.clear()

    def _plan(self) -> None:
        due = [answer.due for answer in self._answers.values()]
        due += [at for at in (self._general_due, self._changes_due) if at is not None]
        self.next_due = min(due, default=None)

    def _within(self, seconds: float, now: float) -> float:
        return now + self._rng.uniform(0, seconds)

    # -- version 3 -------------------------------------------------------------------------------------------------

    def _changed_v3(self, changes: Iterable[Change], now: float) -> list[Message]:
        # RFC 3376 section 5.1: a change is reported at once, together with incompletely reported changes
        times = self.querier.robustness
        for group, before, after in changes:
            unreported = self._unreported.setdefault(group, _Unreported())
            if before.exclude != after.exclude:
                unreported.mode_left = times  # more often than any source: these reports contain all of them
            else:
                unreported.sources_left.update(dict.fromkeys(before.sources ^ after.sources, times))
        return self._report_changes(now)

    def _report_changes(self, now: float) -> list[Message]:
        records: list[Record] = []
        for group, unreported in list(self._unreported.items()):
            exclude, sources = self._filters.get(group, NOTHING)
            left = unreported.sources_left
            if unreported.mode_left:
                unreported.mode_left -= 1
                records.append(Record(TO_EX if exclude else TO_IN, group, sources))
            else:
                allowed = [source for source in left if (source in sources) != exclude]
                blocked = [source for source in left if (source in sources) == exclude]
                records += [Record(kind, group, some) for kind, some in ((ALLOW, allowed), (BLOCK, blocked)) if some]
            unreported.sources_left = {source: times - 1 for source, times in left.items() if times > 1}
            if not unreported.mode_left and not unreported.sources_left:
                del self._unreported[group]
        self._changes_due = self._within(UNSOLICITED_INTERVAL_S, now) if self._unreported else None
        return self._report(records)

    def _schedule_v3(self, query: Query, now: float) -> None:
        # RFC 3376 section 5.2, rules 1 to 5
        due = self._within(query.response_s, now)
        if self._general_due is not None and self._general_due <= due:
            return
        if query.group == NO_GROUP:
            self._general_due = due
        elif query.group in self._filters:
            answer = self._answers.get(query.group)
            if answer is None:
                self._answers[query.group] = _Answer(due, query.sources)
                return
            answer.due = min(answer.due, due)
            whole = not query.sources or not answer.sources
            answer.sources = frozenset() if whole else answer.sources | query.sources
            if len(answer.sources) > QUERIED_SOURCES_MAX:
                answer.sources = frozenset()

    def _answer_v3(self, group: bytes, answer: _Answer) -> list[Message]:
        wanted = self._filters.get(group)
        if wanted is None:  # left meanwhile, which was reported
            return []
        if not answer.sources:
            return self._report([_state(group, wanted)])
        # RFC 3376 section 5.2: the wanted ones of the sources in the query, if there are any
        heard = answer.sources - wanted.sources if wanted.exclude else answer.sources & wanted.sources
        return self._report([Record(IS_IN, group, heard)] if heard else [])

    def _report(self, records: list[Record]) -> list[Message]:
        return [(V3_ROUTERS, message) for message in reports(records, self._room_octets)]

    # -- versions 1 and 2: no source filters -----------------------------------------------------------------------

    def _changed_v2(self, changes: Iterable[Change], now: float) -> list[Message]:
        messages: list[Message] = []
        for group, before, after in changes:
            if before == NOTHING:
                # RFC 2236 section 3: at once, and again in case the first is lost
                messages += self._answer_v2(group, _Answer(now, repeats=self.querier.robustness - 1), now)
            elif after == NOTHING:
                self._answers.pop(group, None)
                if group in self._reporter and self._version == 2:
                    messages.append((ALL_ROUTERS, short(LEAVE, group)))
                self._reporter.discard(group)
        return messages

    def _schedule_v2(self, query: Query, now: float) -> None:
        groups = self._filters if query.group == NO_GROUP else self._filters.keys() & {query.group}
        for group in groups:
            due, answer = self._within(query.response_s, now), self._answers.get(group)
            if answer is None:
                self._answers[group] = _Answer(due)
            else:
                answer.due = min(answer.due, due)

    def _answer_v2(self, group: bytes, answer: _Answer, now: float) -> list[Message]:
        self._reporter.add(group)
        if answer.repeats:
            self._answers[group] = _Answer(self._within(V2_UNSOLICITED_INTERVAL_S, now), repeats=answer.repeats - 1)
        return [(group, short(V2_REPORT if self._version == 2 else V1_REPORT, group))]


def _state(group: bytes, wanted: Filter) -> Record:
    return Record(IS_EX if wanted.exclude else IS_IN, group, wanted.sources)
