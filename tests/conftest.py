"""All tests: what they say of the ledger (tests/ledger/verdict.py) decides about the run, too."""

from __future__ import annotations

import pytest

from tests.ledger.verdict import Verdict


def pytest_configure(config: pytest.Config) -> None:
    """Where there are workers, the one whom they report to."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict())
