"""What `expectations.toml` allows of CPython's suites."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

# Of every Linux machine without these modules, whoever's sockets they are.
FOREIGN_SKIPS = re.compile(
    "AF_ALG|Bluetooth|CAN ISOTP|CAN J1939|SocketCan|QIPCRTR|RDS sockets|TIPC|SCTP|[Ww]indows|macOS|Linux specific|"
    "KqueueSelector|DevpollSelector|as root|network|blocks connections|^SSLv|^TLSv1|Python default ciphers|"
    "AF_UNIX sockets|AF_INET and AF_INET6|month name|local time|FIXME|^$")
_WRITTEN = tomllib.loads(Path(__file__).with_name("expectations.toml").read_text())
_DIFFERS = [pattern for entry in _WRITTEN["differs"] for pattern in entry["tests"]]
_SOMETIMES = [(pattern, re.compile(entry["reason"]))
              for entry in _WRITTEN["sometimes"] for pattern in entry["tests"]]
_SKIPS = re.compile("|".join([FOREIGN_SKIPS.pattern, *(r for entry in _WRITTEN["skips"] for r in entry["reasons"])]))


def problems(results: dict[str, tuple[str, str]]) -> list[str]:
    """What is not as expected, of a suite's results by test."""
    found = []
    for name, (outcome, why) in results.items():
        listed = any(fnmatch(name.removeprefix("test."), pattern) for pattern in _DIFFERS)
        listed |= any(fnmatch(name.removeprefix("test."), pattern) and bool(reason.search(why))
                      for pattern, reason in _SOMETIMES)
        if outcome == "passed" and name.removeprefix("test.") in _DIFFERS:
            found.append(f"{name} is listed and passes")
        elif outcome == "skipped" and not listed and not _SKIPS.search(why):
            found.append(f"{name} is skipped: {why}")
        elif outcome in ("failed", "hung") and not listed:
            found.append(f"{name} {outcome}: {why}")
    return found
