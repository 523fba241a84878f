"""Every case against the kernel's TCP and the stack's; and against the judge itself, which must be able to object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import unavailable

from .cases import GROUPS, ROOT, directory, load
from .expectations import Expectations

SUBJECTS = [pytest.param(name, marks=pytest.mark.xdist_group(f"tcp-cases-{name}")) for name in ("linux", "usernet")
            if name == "linux" or (ROOT / "usernet" / "sockets" / "streams.py").exists()]
CASES = [case.name for case in load(directory())] if directory().is_dir() else ["(no cases)"]
RUN_S = 300


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory):
    """Runs them at the first call for a subject; the results by case."""
    if not directory().is_dir():
        unavailable(f"no {directory()}")
    results: dict[str, dict | Exception] = {}

    def run(subject: str) -> dict:
        if subject not in results:
            try:
                results[subject] = _run(subject, directory(), tmp_path_factory.mktemp("cases"))
            except Exception as failure:  # and not for each case again
                results[subject] = failure
        result = results[subject]
        if isinstance(result, Exception):
            raise result
        return result

    return run


def _run(subject: str, cases: Path, scratch: Path) -> dict[str, dict]:
    file = scratch / f"{subject}.json"
    done = subprocess.run([sys.executable, "-m", "tests.tcpcases", subject, "--json", str(file)], cwd=ROOT,
                          env={**os.environ, "USERNET_TCP_CASES": str(cases)}, capture_output=True, text=True,
                          timeout=RUN_S)
    assert file.exists(), done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.timeout(RUN_S + 60)
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("case", CASES)
def test_case(subject: str, case: str, run_cases) -> None:
    problem = Expectations(subject).verdict(case, run_cases(subject)[case]["difference"])
    assert not problem, problem


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_expectation_is_of_some_case(subject: str, run_cases) -> None:
    assert not Expectations(subject).idle(run_cases(subject))


# What a wrong TCP would send in the place of the segment that is expected, or not send.
FORGERIES = {
    "flags": lambda out: out | {"flags": out["flags"] + "P"},
    "seq": lambda out: out | {"seq": out["seq"] + 1},
    "ack": lambda out: out | {"ack": out.get("ack", 0) + 1},
    "len": lambda out: out | {"len": out["len"] + 1},
    "option": lambda out: out | {"options": [*out["options"], ["sack", "7:9"]]},
}
ESTABLISHED = "rcv-rst-established-outside-left-secure-ipv4"


@pytest.mark.xdist_group("tcp-cases-linux")
def test_judge_objects_to_every_field_of_a_segment(run_cases, tmp_path) -> None:
    """A case that passes, falsified in one place of the last segment that goes out, has to differ."""
    assert not run_cases("linux")[ESTABLISHED]["difference"]
    written = next(json.loads(line) for line in (directory() / f"{GROUPS[0]}.jsonl").read_text().splitlines()
                   if json.loads(line)["name"] == ESTABLISHED)
    last = max(number for number, step in enumerate(written["steps"]) if "out" in step)
    falsified = [written | {"name": what, "steps": [
        step | {"out": forge(step["out"])} if number == last else step for number, step in enumerate(written["steps"])]}
        for what, forge in FORGERIES.items()]
    later = {"at": 0.6, "call": "socket", "args": "..., SOCK_STREAM, IPPROTO_TCP", "result": 3, "errno": None}
    falsified.append(written | {"name": "missing", "steps": [*written["steps"][:last], later]})
    falsified.append(written | {"name": "call", "steps": [
        step | {"result": 1} if step.get("call") == "close" else step for step in written["steps"]]})
    for group in GROUPS:
        (tmp_path / f"{group}.jsonl").write_text("\n".join(map(json.dumps, falsified)) if group == GROUPS[0] else "")
    judged = _run("linux", tmp_path, tmp_path)
    assert {name: bool(result["difference"]) for name, result in judged.items()} == dict.fromkeys(
        [*FORGERIES, "missing", "call"], True)
