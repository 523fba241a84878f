"""`python -m tests.cpython SUBJECT [SUITE...]`: a table of CPython's suites over `kernel` or `usernet`."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.system.conftest import unique_name
from tests.system.peers import Stack

from .suites import SUITES, run


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.cpython")
    parser.add_argument("subject", choices=("kernel", "usernet"))
    parser.add_argument("suites", nargs="*", default=SUITES)
    parser.add_argument("-v", action="store_true", help="what did not pass, test by test")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="uc", dir="/tmp") as scratch:
        stack = Stack(Path(scratch), unique_name())
        if options.subject == "usernet":
            stack.up("--wire", stack.name)
        try:
            print(f"{'suite':34} passed failed hung skipped")
            for suite in options.suites:
                results = run(suite, options.subject, Path(scratch), stack.env)
                count = Counter(outcome for outcome, _ in results.values())
                print(f"{suite:34} {count['passed']:6} {count['failed']:6} {count['hung']:4} {count['skipped']:7}",
                      flush=True)
                if options.v:
                    for name, (outcome, why) in results.items():
                        if outcome != "passed":
                            print(f"    {outcome:8} {name.removeprefix('test.')}  {why}")
        finally:
            stack.end()


if __name__ == "__main__":
    main()
