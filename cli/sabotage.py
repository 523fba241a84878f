"""`sabotage`: make a layer fail."""

from __future__ import annotations

import argparse

from cli import stack
from cli.main import OK
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "make a layer fail, to see how the stack recovers"
FAULTS = {
    "kill": "it receives SIGKILL, as from outside",
    "stop": "it receives SIGSTOP and hangs",
    "loop": "it enters an endless loop",
    "raise": "it raises an uncaught exception",
    "memory": "it allocates memory up to its limit",
    "sleep": "it sleeps inside a turn",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("fault", metavar="FAULT", help="; ".join(f"{fault}: {text}" for fault, text in FAULTS.items()))
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """Send the fault to the layer; returns when the layer has received it."""
    folder = run_dir(given.name)
    layers = stack.query(folder, "status")["layers"]
    if given.layer not in layers:
        raise UsageError(f"sabotage: no layer '{given.layer}'; the layers are {', '.join(layers)}")
    if given.fault not in FAULTS:
        raise UsageError(f"sabotage: no fault '{given.fault}'; the faults are {', '.join(FAULTS)}")
    answer = stack.query(folder, "sabotage", layer=given.layer, fault=given.fault)
    stack.say(given, f"{given.layer} [{answer['pid']}]: {given.fault}")
    return OK
