"""Runs: consecutive records with one consumer and one kind, which leave in one frame."""

from __future__ import annotations

from collections.abc import Iterable

from bus.layer import Send

Run = tuple[int, int, list[bytes]]  # (consumer's id, or the sender's of what is received; kind; records)


def runs(items: Iterable[Send]) -> list[Run]:
    """The runs of some records, in order."""
    found: list[Run] = []
    run: list[bytes] = []
    peer = kind = -1
    for item_peer, item_kind, record in items:
        if item_kind != kind or item_peer != peer:
            peer, kind, run = item_peer, item_kind, []
            found.append((peer, kind, run))
        run.append(record)
    return found
