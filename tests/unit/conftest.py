"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from durable import Durable
from hypothesis import HealthCheck, settings
from usernet_service import Service

# How long an example takes, and how long it takes to make one, is the neighbours' affair.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
