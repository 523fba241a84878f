"""Over bad cables the stack carries nearly what Linux carries, and its flows share evenly."""

from __future__ import annotations

import os
from statistics import median

import pytest

from tests.system.conftest import unavailable

from .__main__ import once
from .conditions import CONDITIONS, SHARED, jain
from .lab import SUBJECTS, WAYS, Lab

SECONDS = 8.0
# Linux notices a path's smaller MTU by four time-outs, 3.5 s, and a sender of 20 Mbit/s is in slow start for 2 s more.
SECONDS_OF = {"MTU 1200, no ICMP": 20.0}
FLOOR = 0.7  # of Linux's goodput
EVEN = 0.85  # Jain's index
# What is lost is a matter of luck, and of when a process gets its processor: a round may halve what either carries. So
# a median decides, of as many rounds as it takes, up to this number. docs/conformance.md tells how to measure more.
ROUNDS = 5


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        unavailable("needs root: network namespaces that are entered")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_goodput_beside_linux(condition: str) -> None:
    found: dict[str, list[dict[str, float]]] = {subject: [] for subject in SUBJECTS}
    for seed in range(1, ROUNDS + 1):
        for subject, rounds in found.items():
            rounds.append(once(subject, condition, SECONDS_OF.get(condition, SECONDS), seed))
        linux, ours = ({way: median(each[way] for each in rounds) for way in WAYS} for rounds in found.values())
        if seed % 2 and all(ours[way] >= FLOOR * linux[way] for way in WAYS):
            return
    pytest.fail(f"{ours} beside {linux}: {found}")


@pytest.mark.parametrize("flows", [2, 100])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_flows_share_a_cable_evenly(subject: str, flows: int) -> None:
    found: list[tuple[float, ...]] = []
    for seed in range(1, ROUNDS + 1):
        with Lab(subject, SHARED, seed) as lab:
            found.append(tuple(jain(lab.transfer(way, SECONDS, flows)) for way in WAYS))
        if seed % 2 and all(median(indices) >= EVEN for indices in zip(*found, strict=True)):
            return
    pytest.fail(f"up, down: {found}")
