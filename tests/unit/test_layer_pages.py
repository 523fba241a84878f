"""The README of a layer names modules that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", sorted((ROOT / "layers").glob("*/README.md")), ids=lambda page: page.parent.name)
def test_every_module_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`([a-z_/]+\.py)`", page.read_text())
    assert [path for path in named if not (page.parent / path).exists() and not (ROOT / path).exists()] == []
