"""`python -m tests.badnet [CONDITION...]`: the table, Linux to Linux beside the stack to Linux."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from .conditions import CONDITIONS, SHARED, jain
from .lab import SUBJECTS, WAYS, Lab


def once(subject: str, condition: str, seconds: float, seed: int) -> dict[str, float]:
    """Mbit/s each way over a cable whose accidents depend on `seed`."""
    with Lab(subject, CONDITIONS[condition], seed) as lab:
        return {way: lab.transfer(way, seconds)[0] for way in WAYS}


def measure(subject: str, condition: str, seconds: float, rounds: int) -> dict[str, float]:
    """The median of some rounds, each over a cable of its own."""
    found = [once(subject, condition, seconds, seed) for seed in range(1, rounds + 1)]
    return {way: median(each[way] for each in found) for way in WAYS}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.badnet")
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", default=CONDITIONS)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--flows", type=int, default=0, help="instead: how evenly so many flows share a cable")
    options = parser.parse_args()
    subjects = options.subjects.split(",")
    if options.flows:
        for subject in subjects:
            for way in WAYS:
                with Lab(subject, SHARED) as lab:
                    rates = lab.transfer(way, options.seconds, options.flows)
                print(f"{subject:8} {way:5} {options.flows} flows: {sum(rates):6.1f} Mbit/s, Jain {jain(rates):.3f}")
        return
    columns = [f"{subject} {way}" for subject in subjects for way in WAYS]
    print(f"{'Mbit/s of payload':26}" + "".join(f"{column:>14}" for column in columns)
          + ("   ratio up, down" if len(subjects) > 1 else ""))
    with ThreadPoolExecutor(options.at_once) as pool:
        rows = {condition: [pool.submit(measure, subject, condition, options.seconds, options.rounds)
                            for subject in subjects] for condition in options.conditions}
        for condition, futures in rows.items():
            found = [future.result() for future in futures]
            line = f"{condition:26}" + "".join(f"{each[way]:14.2f}" for each in found for way in WAYS)
            if len(found) > 1:
                line += "".join(f"{found[1][way] / max(found[0][way], 1e-9):9.2f}" for way in WAYS)
            print(line, flush=True)


if __name__ == "__main__":
    main()
