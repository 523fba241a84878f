"""CPython's suites over a stack of their own each: all pass but for what is listed with its reason."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import pytest

from tests.system.conftest import unavailable, unique_name
from tests.system.peers import Stack

from .expectations import problems
from .suites import ROOT, SUITES, run

if not (ROOT / "usernet" / "sockets" / "streams.py").exists():
    SUITES = ()  # all of them need streams


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str) -> None:
    if importlib.util.find_spec("test.test_socket") is None:
        unavailable("no CPython tests here (Debian: libpython3.11-testsuite)")
    with tempfile.TemporaryDirectory(prefix="uc", dir="/tmp") as scratch:  # socket paths are limited
        stack = Stack(Path(scratch), unique_name())
        try:
            stack.up("--wire", stack.name)
            results = run(suite, "usernet", Path(scratch), stack.env)
        finally:
            stack.end()
    assert len(results) > 1, results
    unexpected = problems(results)
    assert not unexpected, "\n".join(unexpected)
