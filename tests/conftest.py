"""All tests: what they say of the ledger (tests/ledger/verdict.py) decides about the run, too."""

from __future__ import annotations

import signal

import pytest

from tests.ledger.verdict import Verdict


def pytest_configure(config: pytest.Config) -> None:
    """The process that xdist's workers report to, if there are any; what tests start can be interrupted.

    A shell that runs pytest in the background has it ignore SIGINT, and what is ignored is inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict())
