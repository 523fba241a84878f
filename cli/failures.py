"""Errors of the system that say what they are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Inside, an OSError without a file name gets `what` as its file name, which the message of `cli.main` contains."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = what
        raise
