"""Fixtures: a lab with its load, shared by the tests that leave it as they found it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.faults.lab import WINDOW, Lab, Load


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skips, or fails under CI=true, where no sandbox with a TAP can be had; the reason is the launcher's own."""
    try:
        if shutil.which("ip") is None:
            raise RuntimeError("no ip(8) here")
        with Lab():
            pass
    except RuntimeError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def lab(sandbox: None) -> Iterator[Lab]:
    """A booted stack."""
    with Lab() as booted:
        yield booted


@pytest.fixture
def load(lab: Lab) -> Load:
    """The load of `lab`."""
    return Load(lab, WINDOW)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They need a TAP, and the machine for themselves: one after the other."""
    for item in items:
        if "tests/faults" in str(item.path):
            item.add_marker(pytest.mark.tap)
            item.add_marker(pytest.mark.xdist_group("faults"))
