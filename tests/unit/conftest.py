"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from durable import Durable
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)  # how long an example takes is the neighbours' affair
settings.load_profile("shared machine")


@pytest.fixture
def durable() -> Iterator[Durable]:
    made = Durable()
    yield made
    made.close()
