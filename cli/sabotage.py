"""`sabotage`: make a layer fail."""

from __future__ import annotations

import argparse

from cli import stack
from cli.main import OK
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "make a layer fail, to see what becomes of it"
FAULTS = {
    "kill": "SIGKILL, as by somebody else",
    "stop": "SIGSTOP: it hangs and does nothing",
    "loop": "it hangs in an endless loop",
    "raise": "an exception that nobody catches",
    "memory": "it allocates until it may not any more",
    "sleep": "it hangs asleep where it should not",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("fault", metavar="FAULT", help="; ".join(f"{fault}: {text}" for fault, text in FAULTS.items()))
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of what went well")


def run(given: argparse.Namespace) -> int:
    """Returns once the layer has its order."""
    folder = run_dir(given.name)
    layers = stack.query(folder, "status")["layers"]
    if given.layer not in layers:
        raise UsageError(f"sabotage: no layer '{given.layer}'; there are {', '.join(layers)}")
    if given.fault not in FAULTS:
        raise UsageError(f"sabotage: no fault '{given.fault}'; there are {', '.join(FAULTS)}")
    answer = stack.query(folder, "sabotage", layer=given.layer, fault=given.fault)
    stack.say(given, f"{given.layer} [{answer['pid']}]: {given.fault}")
    return OK
