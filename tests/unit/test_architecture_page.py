"""docs/ARCHITECTURE.md says what is so: its picture is the table's, and what it names is there."""

from __future__ import annotations

import ast
import re

import pytest

from cli import picture

PAGE = picture.PAGE.read_text()
ROOT = picture.PAGE.parent.parent


def test_the_picture_is_the_one_that_the_table_makes() -> None:
    assert picture.updated(PAGE) == PAGE, "python -m cli.picture brings it up to date"


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`([a-z_/]+\.py):(\w+)`", PAGE))))
def test_every_function_that_is_named_is_there(named: tuple[str, str]) -> None:
    path, function = named
    tree = ast.parse((ROOT / path).read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", PAGE))))
def test_every_place_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists() or path == "layers/"
