"""The ledger of requirements (docs/rfc*.md) says what is true: see tests/ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger import Row, collected, faults, load, page, page_of, sources
from tests.ledger.verdict import Verdict

pytest_plugins = ["pytester"]

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


@pytest.mark.parametrize(("tests", "state", "status"), [
    (("unit/test_it.py::test_passes",), "met", pytest.ExitCode.OK),
    (("unit/test_it.py::test_is_skipped",), "met", pytest.ExitCode.TESTS_FAILED),
    (("unit/test_it.py::test_skips_itself",), "met", pytest.ExitCode.TESTS_FAILED),
    (("unit/test_it.py::test_fails_as_expected",), "met", pytest.ExitCode.TESTS_FAILED),
    (("unit/test_it.py::test_passes_by_halves",), "met", pytest.ExitCode.TESTS_FAILED),
    (("unit/test_it.py::test_is_skipped", "unit/test_it.py::test_passes"), "met", pytest.ExitCode.OK),
    (("unit/test_it.py::test_is_skipped", "unit/test_else.py::test_not_run"), "met", pytest.ExitCode.OK),
    ((), "not met", pytest.ExitCode.OK),
])  # fmt: skip
def test_a_row_that_is_met_without_a_test_that_passed_fails_the_run(pytester, tests, state, status):
    (pytester.mkdir("tests") / "unit").mkdir()
    (pytester.path / "tests/unit/test_it.py").write_text("""
import pytest
def test_passes(): pass
@pytest.mark.skip
def test_is_skipped(): pass
def test_skips_itself(): pytest.skip("no")
@pytest.mark.xfail
def test_fails_as_expected(): assert False
@pytest.mark.parametrize("skipped", [0, 1])
def test_passes_by_halves(skipped):
    if skipped: pytest.skip("no")
""")
    verdict = Verdict([Row("1", "MUST", "do it", state, tests, "" if tests else "why")])
    result = pytester.inline_run("tests", plugins=[verdict])
    assert result.ret == status


def test_a_test_of_a_group_of_xdists_has_the_name_that_rows_have_for_it(pytester) -> None:
    (pytester.mkdir("tests") / "unit").mkdir()
    (pytester.path / "tests/unit/test_it.py").write_text("""
import pytest
@pytest.mark.xdist_group("some")
def test_passes(): pass
""")
    verdict = Verdict([])
    pytester.inline_run("-n", "1", "--dist", "loadgroup", "tests", plugins=[verdict])
    assert verdict.outcomes == {"unit/test_it.py::test_passes": {"passed"}}
