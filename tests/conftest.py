"""All tests: what they say of the ledger (tests/ledger/verdict.py) decides about the run, too."""

from __future__ import annotations

import pytest

from tests.ledger.verdict import Verdict


def pytest_configure(config: pytest.Config) -> None:
    """The process that xdist's workers report to, if there are any."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict())
