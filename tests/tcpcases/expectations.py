"""What `expectations.toml` says of a case."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Expectation:
    """How a case differs, as a pattern of the judge's words, and why that is right or known."""

    how: re.Pattern[str]
    why: str


class Expectations:
    """Of one subject."""

    def __init__(self, subject: str) -> None:
        entries = tomllib.loads(Path(__file__).with_name("expectations.toml").read_text())["differs"]
        self._entries = [entry for entry in entries if subject in entry["subjects"]]

    def of(self, case: str) -> Expectation | None:
        """None: it has to pass."""
        found = [entry for entry in self._entries if any(fnmatch(case, pattern) for pattern in entry["cases"])]
        assert len(found) <= 1, f"{case} is listed twice"
        return Expectation(re.compile(found[0]["how"]), found[0]["why"]) if found else None

    def verdict(self, case: str, difference: str) -> str:
        """What is not as expected; empty where all is."""
        expected = self.of(case)
        if expected is None or (difference and expected.how.search(difference)):
            return difference if expected is None else ""
        return difference or f"is listed as one that differs ({expected.how.pattern}), and passes"

    def idle(self, cases: Iterable[str]) -> list[str]:
        """The patterns of cases that no case matches."""
        names = list(cases)
        return [pattern for entry in self._entries for pattern in entry["cases"]
                if not any(fnmatch(name, pattern) for name in names)]

