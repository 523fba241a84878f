"""The rule of imports: each contract of pyproject.toml fails on a copy of the tree that breaks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("packets", "bus", "layers", "supervisor", "cli", "switch", "usernet")
LINT = Path(sys.executable).parent / "lint-imports"

BREACHES = [  # a file, a line that it gets, words of the contract that says no
    ("packets/udp.py", "import bus.config", "Imports go one way"),
    ("bus/config.py", "import layers.common.routes", "Imports go one way"),
    ("layers/common/routes.py", "import layers.udp.tables", "A layer imports what layers have in common"),
    ("layers/udp/core.py", "import layers.icmp.core", "A layer imports what layers have in common"),
    ("layers/udp/core.py", "import supervisor.policy", "Imports go one way"),
    ("supervisor/policy.py", "import layers.udp.core", "The supervisor starts layers"),
    ("supervisor/policy.py", "import cli.status", "Imports go one way"),
    ("usernet/errors.py", "import bus.config", "The application library ships alone"),
    ("usernet/pipe/frame.py", "import usernet.errors", "The pipes know nothing of the rest"),
    ("bus/config.py", "import usernet.client.stack", "Of the library the stack has the pipes only"),
    ("packets/arp.py", "import time", "Packet formats stand alone"),
    ("layers/udp/output.py", "import socket", "A layer but for its shell is pure"),
    ("layers/arp/tables.py", "import bus.runtime.event_loop", "A layer but for its shell is pure"),
    ("cli/tools/host.py", "import bus.config", "The tools are applications"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what the contracts are about."""
    copy = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(tree: Path) -> str:
    """What the linter says; the same words whatever the width of the terminal."""
    done = subprocess.run([LINT, "--no-cache"], cwd=tree, capture_output=True, text=True, timeout=100,
                          env={"PATH": "/usr/bin:/bin", "COLUMNS": "400"})
    return done.stdout + done.stderr


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    said = lint(tree)
    assert " 0 broken" in said, said


@pytest.mark.parametrize(("file", "line", "contract"), BREACHES, ids=[f"{file}-{line}" for file, line, _ in BREACHES])
def test_a_breach_is_told(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    kept = path.read_text()
    path.write_text(f"{kept}\n\n{line}\n")
    try:
        said = lint(tree)
    finally:
        path.write_text(kept)
    broken = [text for text in said.splitlines() if " BROKEN" in text]
    assert any(contract in text for text in broken), said
