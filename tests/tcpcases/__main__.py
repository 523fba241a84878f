"""`python -m tests.tcpcases SUBJECT [NAME...]`: runs the cases, prints a table; --json FILE for tests.

linux wants a network namespace of its own: it is run again in one, if need be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cases import Case, directory, load
from .expectations import Expectations
from .judge import Differs, Trial
from .station import Station
from .subjects import NETWORK, SUBJECTS, Setting, Subject

AT_ONCE = 16
AGAIN = (4, 1, 1, 1)  # at once, when those are tried again that failed: a machine under load may miss 50 ms


def run_all(subject: Subject, cases: list[Case], at_once: int = AT_ONCE) -> dict[str, dict]:
    """By case: `difference` (empty: none), `attempts`. What is unexpected is tried again with few others beside."""
    groups: dict[tuple, list[Case]] = defaultdict(list)
    for case in cases:
        alone = case.name if any(step.kind == "knob" for step in case.steps) else ""
        groups[subject.setting(case), alone].append(case)
    expectations = Expectations(subject.name)
    results: dict[str, dict] = {}
    numbers = iter(range(1, 1 << 14))
    lock = threading.Lock()
    station: Station | None = None

    def attempt(case: Case) -> bool:
        with lock:
            number = next(numbers)
        assert station is not None
        result = results.setdefault(case.name, {"group": case.group, "attempts": 0})
        result["attempts"] += 1
        result["difference"] = ""
        try:
            Trial(subject, station, case, NETWORK[1024 + number], 20000 + number).run()
        except Differs as difference:
            result["difference"] = str(difference)
        except Exception as problem:
            result["difference"] = f"{type(problem).__name__}: {problem}"
        return not expectations.verdict(case.name, result["difference"])

    def settle(setting: Setting) -> None:
        nonlocal station
        if (cable := subject.configure(setting)) is not None:
            if station is not None:
                station.close()
            station = Station(cable, NETWORK, subject.address)
        assert station is not None
        station.find_subject()

    try:
        for (setting, _), group in groups.items():
            settle(setting)
            left = sorted(group, key=lambda case: -case.steps[-1].at)
            for workers in (at_once, *AGAIN):
                with ThreadPoolExecutor(workers) as pool:
                    left = [case for case, passed in zip(left, pool.map(attempt, left), strict=True) if not passed]
    finally:
        if station is not None:
            station.close()
        subject.close()
    return results


def print_table(results: dict[str, dict], expectations: Expectations, took_s: float) -> None:
    """What differs, and why if that is known; then how many of each group are as FreeBSD has them."""
    for name, result in results.items():
        if problem := expectations.verdict(name, result["difference"]):
            print(f"{name}\n    {problem}")
        elif result["difference"]:
            print(f"{name}\n    {result['difference']}\n    known: {expectations.of(name).why}")
    for group in dict.fromkeys(result["group"] for result in results.values()):
        of_it = [result for result in results.values() if result["group"] == group]
        print(f"{group:20} {sum(not result['difference'] for result in of_it):4} of {len(of_it)}")
    again = sum(result["attempts"] > 1 for result in results.values())
    unknown = sum(bool(expectations.verdict(name, result["difference"])) for name, result in results.items())
    print(f"{'all':20} {sum(not result['difference'] for result in results.values()):4} of {len(results)}, "
          f"{unknown} otherwise than expected, {again} tried again, {took_s:.0f} s")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.tcpcases")
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("names", nargs="*", help="cases whose names contain one of these")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.subject == "linux" and os.environ.get("USERNET_TCP_CASES_ALONE") != "1":
        os.environ["USERNET_TCP_CASES_ALONE"] = "1"
        os.execvp("unshare", ["unshare", "-rn", sys.executable, "-m", "tests.tcpcases", *sys.argv[1:]])
    cases = [case for case in load(directory())
             if not options.names or any(name in case.name for name in options.names)]
    begun = time.monotonic()
    results = run_all(SUBJECTS[options.subject](), cases)
    if options.json:
        options.json.write_text(json.dumps(results))
    print_table(results, Expectations(options.subject), time.monotonic() - begun)


if __name__ == "__main__":
    main()
