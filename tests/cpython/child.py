"""One suite in a process of its own: `python -m tests.cpython.child SUITE JOURNAL`.

The journal has a line of JSON for each test that begins and one for its end. Tests that it has already are left out, so
that after one that hung the rest goes on in another process.
"""

from __future__ import annotations

import json
import socket
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

FOREIGN = ("VSOCK",)  # no Internet: for ever without a hypervisor


class Journal(unittest.TestResult):
    """Writes what becomes of each test."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a", buffering=1)
        self._outcome: tuple[str, str] | None = None

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = None
        self._write(test.id(), "begun")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._write(test.id(), *(self._outcome or ("passed", "")))

    def addSubTest(self, test, subtest, err) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._outcome = "failed", self._last_line(err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._outcome = self._outcome or ("skipped", reason)
        if not hasattr(test, "_testMethodName"):  # a class or a module, which has no startTest
            self._write(test.id(), "skipped", reason)

    def addError(self, test: unittest.TestCase, err) -> None:
        super().addError(test, err)
        self._outcome = "failed", self._last_line(err)
        if not hasattr(test, "_testMethodName"):
            self._write(test.id(), *self._outcome)

    def addFailure(self, test: unittest.TestCase, err) -> None:
        super().addFailure(test, err)
        self._outcome = "failed", self._last_line(err)

    def addExpectedFailure(self, test, err) -> None:
        super().addExpectedFailure(test, err)

    def _last_line(self, err) -> str:
        return f"{err[0].__name__}: {err[1]}".strip().splitlines()[0][:200]

    def _write(self, name: str, outcome: str, why: str = "") -> None:
        self._file.write(json.dumps([name, outcome, why]) + "\n")


def journal_of(path: Path) -> dict[str, tuple[str, str]]:
    """The last that is known of each test: outcome and why."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: (outcome, why) for name, outcome, why in lines}


def _flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from _flat(each)
        else:
            yield each


def main() -> None:
    """See above."""
    from test import support

    name, path = sys.argv[1], Path(sys.argv[2])
    # The library's reader is a thread that lives as long as the process: there before tests count threads.
    early = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    early.fileno()
    # Nothing beyond this machine, nothing large; what asks for the network before it tests the loopback has it.
    support.use_resources = ["network"] if name == "test.test_socketserver" else []
    support.verbose = False
    known = journal_of(path)
    loaded = unittest.defaultTestLoader.loadTestsFromName(name)
    left = [test for test in _flat(loaded) if test.id() not in known and _class_of(test) not in known
            and not any(foreign in test.id() for foreign in FOREIGN)]
    unittest.TestSuite(left).run(Journal(path))


def _class_of(test: unittest.TestCase) -> str:
    """As a class is named that is skipped, or fails, as a whole."""
    return f"setUpClass ({test.id().rpartition('.')[0]})"


if __name__ == "__main__":
    main()
