"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from durable import Durable
from hypothesis import settings
from usernet_service import Service

settings.register_profile("shared machine", deadline=None)  # how long an example takes is the neighbours' affair
settings.load_profile("shared machine")


@pytest.fixture
def durable() -> Iterator[Durable]:
    made = Durable()
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport,
                                                                                          pytest.TestReport]:
    """The report of a failed test says what its socket service was doing."""
    report = yield
    if report.failed:
        services = {id(value): value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Service)}
        report.sections += [("socket service", service.report()) for service in services.values()]
    return report
