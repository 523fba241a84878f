"""Over bad cables the stack carries nearly what Linux carries, and its flows share evenly."""

from __future__ import annotations

import os

import pytest

from tests.system.conftest import unavailable

from .__main__ import measure
from .conditions import CONDITIONS, SHARED, jain
from .lab import SUBJECTS, Lab

SECONDS = 8.0
# Linux notices a path's smaller MTU by four time-outs, 3.5 s, and a sender of 20 Mbit/s is in slow start for 2 s more.
SECONDS_OF = {"MTU 1200, no ICMP": 20.0}
FLOOR = 0.7  # of Linux's goodput, and it is measured once here: docs/conformance.md has tables, and how to repeat them


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        unavailable("needs root: network namespaces that are entered")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_goodput_beside_linux(condition: str) -> None:
    linux, ours = (measure(subject, condition, SECONDS_OF.get(condition, SECONDS), rounds=1) for subject in SUBJECTS)
    assert ours["up"] >= FLOOR * linux["up"], (linux, ours)
    assert ours["down"] >= FLOOR * linux["down"], (linux, ours)


@pytest.mark.parametrize("flows", [2, 100])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_flows_share_a_cable_evenly(subject: str, flows: int) -> None:
    with Lab(subject, SHARED) as lab:
        for way in ("up", "down"):
            assert jain(lab.transfer(way, SECONDS, flows)) >= 0.85, way
