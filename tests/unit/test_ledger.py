"""The ledger of requirements (docs/rfc*.md) says what is true: see tests/ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger import Row, collected, faults, load, page, page_of, sources

BY_NUMBER = pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)


@BY_NUMBER
def test_the_page_is_what_the_ledger_makes(source: Path) -> None:
    assert page_of(source).read_text() == page(source), "python -m tests.ledger makes it anew"


@BY_NUMBER
def test_every_requirement_says_what_shows_it_or_why_not(source: Path) -> None:
    assert [fault for row in load(source).rows() for fault in faults(row)] == []


@BY_NUMBER
def test_no_requirement_stands_there_twice(source: Path) -> None:
    names = [(row.section, row.says) for row in load(source).rows()]
    assert len(set(names)) == len(names)


def test_every_test_that_is_named_is_there_and_collected() -> None:
    named = {test for source in sources() for row in load(source).rows() for test in row.tests}
    assert sorted(named - collected({test.partition("::")[0] for test in named})) == []


@pytest.mark.parametrize("row", [
    Row("1", "MUST", "do it", "met"), Row("1", "MUST", "do it", "not met"), Row("1", "WILL", "do it", "met", ("a",)),
    Row("1", "MUST", "do it", "not met", ("a",), "why"), Row("1", "MAY", "do it", "does not apply"),
])  # fmt: skip
def test_a_row_with_a_fault_is_found(row: Row) -> None:
    assert len(faults(row)) == 1


def test_a_test_that_is_not_there_is_not_collected(tmp_path: Path) -> None:
    there = collected({"unit/test_ledger.py"})
    assert "unit/test_ledger.py::test_a_row_with_a_fault_is_found" in there
    assert "unit/test_ledger.py::BY_NUMBER" not in there
