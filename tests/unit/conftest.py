"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from durable import Durable


@pytest.fixture
def durable() -> Iterator[Durable]:
    made = Durable()
    yield made
    made.close()
