"""`python -m tests.faults`: the long form. Ends with status 1 where a promise was not kept."""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import time
from pathlib import Path

import msgspec

from tests.faults import report, schedule, verdict
from tests.faults.campaign import Campaign
from tests.faults.flows import ANSWERS
from tests.faults.lab import Lab, Load
from tests.faults.stream_load import StreamLoad, WireLab
from tests.faults.watch import Watch

SETTLED_S = 120.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat that run's schedule")
    parser.add_argument("--faults", type=int, default=300, metavar="N", help="per layer (default 300)")
    parser.add_argument("--seconds", type=float, default=480, help="no new incident after this long (default 480)")
    parser.add_argument("--control", type=float, default=20, metavar="S", help="seconds without a fault (default 20)")
    parser.add_argument("--layer", help="this layer's incidents alone")
    parser.add_argument("--kind", help="incidents of this kind alone")
    parser.add_argument("--moment", help="incidents at this moment alone")
    parser.add_argument("--load", choices=("datagrams", "streams", "wire"), default="datagrams",
                        help="datagrams, streams to the kernel, or streams between two stacks on a wire")
    parser.add_argument("--pipes", help="as `launcher.py up --pipes`")
    parser.add_argument("--json", metavar="FILE", help="every verdict, and the sums")
    parser.add_argument("--markdown", metavar="FILE", help="the table as Markdown")
    parser.add_argument("--verbose", action="store_true", help="a line for every incident that was not transparent")
    return parser.parse_args()


def main() -> int:
    """Run it and print the table."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab is left in order
    kind_of_load, kind_of_lab = {"datagrams": (Load, Lab), "streams": (StreamLoad, Lab),
                                 "wire": (StreamLoad, WireLab)}[options.load]
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    incidents = [each for each in schedule.drawn(seed, options.faults, kind_of_load.moments)
                 if options.layer in (None, each.faults[0].layer) and options.kind in (None, each.faults[0].kind)
                 and options.moment in (None, each.moment)]
    narrowed = options.layer or options.kind or options.moment
    print(f"seed {seed}: {len(incidents)} incidents, then {options.control:.0f} s without", flush=True)
    with kind_of_lab(options=("--pipes", options.pipes) if options.pipes else ()) as lab:
        load = kind_of_load(lab)
        watch = Watch(lab, load)
        campaign = Campaign(lab, load, watch)
        started = time.monotonic()
        done = campaign.run(incidents, started + options.seconds)
        took_s = time.monotonic() - started
        time.sleep(0.5)
        quiet = campaign.quiet(options.control)
        counters = {name: {key: value for key, value in {**layer["counters"], **layer["bus"]}.items() if value}
                    for name, layer in lab.status()["layers"].items()}
        load.stop()
        verdicts = verdict.judge(done, load, quiet[0])
        controls = verdict.controls(*quiet, load)
        lines = report.sums(verdicts, controls, load)
        checks = report.promises(verdicts) if options.load == "datagrams" else report.stream_promises(verdicts)
        idle = [name for name in load.flows if not load.books[name].cells[ANSWERS]]
        checks.append((not idle or bool(narrowed), f"flows without any answer: {', '.join(idle) or 'none'}"))
        # connections in TIME-WAIT grow for a minute
        leaks = watch.leaks() if options.load == "datagrams" or took_s > SETTLED_S else []
        checks.append((not leaks, f"leaks: {'; '.join(leaks) or 'none'}"))
        _show(options, lines, checks, verdicts, took_s, seed, len(incidents))
        print("sent and answered:", report.flows(load))
        if options.json:
            Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(
                {"seed": seed, "sums": lines, "verdicts": verdicts, "growth": watch.growth(), "counters": counters})))
    return 0 if all(kept for kept, _ in checks) and len(done) == len(incidents) else 1


def _show(options: argparse.Namespace, lines: list, checks: list, verdicts: list, took_s: float, seed: int,
          drawn: int) -> None:
    if options.verbose:
        for number, each in enumerate(verdicts):
            if not each.transparent:
                print(f"{number}: {report.line(each)}")
    streams = options.load != "datagrams"
    print(report.text(lines, streams))
    print(f"\n{len(verdicts)} of {drawn} incidents in {took_s:.0f} s")
    for kept, sentence in checks:
        print(f"{'kept  ' if kept else 'BROKEN'}  {sentence}")
    if options.markdown:
        command = f"python -m tests.faults {' '.join(sys.argv[1:])}"
        head = (f"{time.strftime('%Y-%m-%d')}, `{command}`, {os.cpu_count()} cores, Linux {platform.release()}, "
                f"Python {platform.python_version()}: seed {seed}, "
                f"{len(verdicts)} of {drawn} incidents in {took_s:.0f} s.\n")
        checked = "\n".join(f"- {'kept' if kept else '**broken**'}: {sentence}" for kept, sentence in checks)
        Path(options.markdown).write_text(f"{head}\n{report.markdown(lines, streams)}\n\n{checked}\n")


if __name__ == "__main__":
    sys.exit(main())
