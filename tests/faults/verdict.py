"""What each incident did to the applications, told from their books alone; and the sums."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from tests.faults.campaign import UNDER_WAY_S, Done
from tests.faults.flows import COUNT, Book
from tests.faults.lab import Load
from tests.faults.streams import ENDED, WRONG

GAP_WINDOW_S = 3.0
CONTROL_WINDOW_S = 0.15  # a piece of a quiet time, to compare with
ARP_STORM = 20  # ARP packets of ours around one incident: more than the resolutions that it asks for and their retries
NOTES_MAX = 8


class Verdict(msgspec.Struct, kw_only=True):
    """One incident, judged."""

    layers: list[str]
    kinds: list[str]
    moment: str
    lost: dict[str, int]
    gap_ms: float  # the longest pause between answers, of any steady flow
    control_ms: float = 0.0  # the longest such pause just before the fault
    away_ms: float  # the keeper's figure: from death, or the last sign of life, to serving again
    duplicated: int = 0
    reordered: int = 0
    errors: list[str] = []
    notes: list[str] = []  # of what was duplicated or out of order
    arp_packets: int = 0
    recovered: bool = True
    timeouts: int = 0  # retransmission timeouts of the peer

    @property
    def lost_total(self) -> int:
        """Datagrams, pings and churned sockets' questions without an answer."""
        return sum(self.lost.values())

    @property
    def transparent(self) -> bool:
        """The applications' books show nothing."""
        return self.recovered and not (self.lost_total or self.duplicated or self.reordered or self.errors)


def judge(done: list[Done], load: Load, end: float) -> list[Verdict]:
    """A verdict per incident, once the load has been stopped.

    Whatever happens from shortly before one to shortly before the next is put down to it; all later errors to the last.
    """
    books, timeouts = load.books, load.timeouts_at_end
    oddities = [(when, kind, f"{name}: {what}") for name, book in books.items() for when, kind, what in book.oddities()]
    verdicts = []
    followers = [*((later.began, later.timeouts) for later in done[1:]), (end, timeouts)]
    for each, (following, timeouts_after) in zip(done, followers, strict=True):
        start, stop = each.began - UNDER_WAY_S, following - UNDER_WAY_S
        odd: dict[str, list[str]] = defaultdict(list)
        for when, kind, text in oddities:
            if start <= when < stop or (kind == "error" and each is done[-1] and when >= stop):
                odd[kind].append(text)
        verdicts.append(Verdict(
            layers=[fault.layer for fault in each.incident.faults],
            kinds=[fault.kind for fault in each.incident.faults],
            moment=each.incident.moment,
            lost={name: lost(books[name], start, stop) for name in load.flows},
            gap_ms=round(1000 * max(gap(book, each, stop) for book in load.steady), 1),
            control_ms=round(1000 * max(_longest(book, each.quiet_from, each.began, each.began)
                                        for book in load.steady), 1),
            timeouts=timeouts_after - each.timeouts,
            away_ms=max((event.get("gap_ms", 0.0) for event in each.events if event["event"] == "serves"), default=0.0),
            duplicated=len(odd["duplicated"]), reordered=len(odd["reordered"]), errors=odd["error"],
            notes=[f"{kind} {text}" for kind in ("duplicated", "reordered") for text in odd[kind]][:NOTES_MAX],
            arp_packets=len(odd["arp"]), recovered=each.recovered))
    return verdicts


def controls(began: float, ended: float, load: Load) -> list[Verdict]:
    """A quiet time, cut into windows and judged like incidents."""
    books = load.books
    verdicts = []
    start = began
    while start + CONTROL_WINDOW_S <= ended:
        stop = start + CONTROL_WINDOW_S
        odd = [(kind, f"{name}: {what}") for name, book in books.items() for when, kind, what in book.oddities()
               if start <= when < stop]
        verdicts.append(Verdict(
            layers=[], kinds=[], moment="none", lost={name: lost(books[name], start, stop) for name in load.flows},
            gap_ms=round(1000 * max(_longest(book, start, stop) for book in load.steady), 1), away_ms=0.0,
            duplicated=sum(kind == "duplicated" for kind, _ in odd),
            reordered=sum(kind == "reordered" for kind, _ in odd),
            errors=[text for kind, text in odd if kind == "error"], arp_packets=sum(kind == "arp" for kind, _ in odd)))
        start = stop
    return verdicts


def lost(book: Book, start: float, stop: float) -> int:
    """Numbers sent from `start` to `stop` that were never answered."""
    sent = book.sent[: book.cells[COUNT]]
    first, last = bisect_left(sent, start), bisect_left(sent, stop)
    return sum(not when for when in book.answered[first:last])


def gap(book: Book, done: Done, stop: float) -> float:
    """The longest pause between answers from the fault until all was well, a time like that of the control.

    In an idle moment: to the first answer after it.
    """
    stop = min(stop, done.began + GAP_WINDOW_S, done.ended)
    if done.incident.moment != "idle":
        return _longest(book, done.began, stop)
    sent = book.sent[: book.cells[COUNT]]
    first = bisect_left(sent, done.began)
    arrivals = [when for when in book.answered[first : bisect_left(sent, stop)] if when]
    return min(arrivals) - sent[first] if arrivals else stop - done.began


def _longest(book: Book, start: float, stop: float, until: float = float("inf")) -> float:
    """Between answers to what was sent until `stop`, those after `until` left out."""
    sent = book.sent[: book.cells[COUNT]]
    first, last = bisect_left(sent, start - 0.5), bisect_left(sent, stop)
    arrivals = sorted(when for when in book.answered[first:last] if when and when <= until)
    before = [when for when in arrivals if when <= start][-1:] or [start]
    return max((later - earlier for earlier, later in pairwise([*before, *(w for w in arrivals if w > start)])),
               default=stop - start)


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


class Sum(msgspec.Struct, kw_only=True):
    """Verdicts of one kind, summed up."""

    what: str
    faults: int
    transparent: int
    lost: tuple[float, float, float]  # p50, p95, max
    gap_ms: tuple[float, float, float]  # p50, p99, max
    control_ms: tuple[float, float]  # p50, p99
    without_timeout: int  # incidents during which the peer had no retransmission timeout
    octets_wrong: int  # how often
    ended: int  # connections
    duplicated: int
    reordered: int
    errors: int


def summed(what: str, verdicts: Sequence[Verdict]) -> Sum:
    """One line of a table."""
    losses = [verdict.lost_total for verdict in verdicts]
    gaps = [verdict.gap_ms for verdict in verdicts]
    control = [verdict.control_ms for verdict in verdicts]
    texts = [text.partition(": ")[2] for verdict in verdicts for text in verdict.errors]
    return Sum(
        what=what, faults=len(verdicts), transparent=sum(verdict.transparent for verdict in verdicts),
        lost=(percentile(losses, 50), percentile(losses, 95), max(losses, default=0)),
        gap_ms=(percentile(gaps, 50), percentile(gaps, 99), max(gaps, default=0.0)),
        control_ms=(percentile(control, 50), percentile(control, 99)),
        without_timeout=sum(not verdict.timeouts for verdict in verdicts),
        octets_wrong=sum(text.startswith(WRONG) for text in texts), ended=sum(text.startswith(ENDED) for text in texts),
        duplicated=sum(verdict.duplicated for verdict in verdicts),
        reordered=sum(verdict.reordered for verdict in verdicts), errors=sum(len(v.errors) for v in verdicts))
