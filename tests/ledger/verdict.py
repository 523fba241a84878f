"""What a test run says of the ledger: a row is met where its tests have passed, not where they were skipped.

A pytest plugin. A test that fails fails the run by itself, and test_ledger.py sees to it that all that are named are
there; what would go unnoticed is a row whose tests were all skipped, or are expected to fail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest

from tests.ledger import Row, load, sources


class Verdict:
    """Knows how each test ended that was run, by the name that rows have for it."""

    def __init__(self, rows: Iterable[Row] | None = None) -> None:
        self.rows = [row for source in sources() for row in load(source).rows()] if rows is None else list(rows)
        self.outcomes: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test with parameters has passed where it has for all of them."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.partition("[")[0].partition("@")[0].removeprefix("tests/")  # behind @ its group
            self.outcomes[name].add("skipped" if hasattr(report, "wasxfail") else report.outcome)

    def unshown(self) -> list[Row]:
        """The rows that are met, they say, and none of whose tests has passed, though all were run."""
        return [row for row in self.rows if row.state == "met" and all(test in self.outcomes for test in row.tests)
                and not any(self.outcomes[test] == {"passed"} for test in row.tests)]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The run has failed where there are any."""
        if self.unshown() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Which they are."""
        for row in self.unshown():
            tests = ", ".join(row.tests)
            line = f"LEDGER section {row.section}, {row.says!r}: none has passed of {tests}"
            terminalreporter.write_line(line, red=True)
