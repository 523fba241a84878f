"""`list`: the running stacks of this user."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from cli import stack
from cli.main import OK
from cli.up import addresses_of
from supervisor.control import NotRunning, Refused

TEXT = "the running stacks of this user"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects (docs/commands.md)")


def run(given: argparse.Namespace) -> int:
    """Print one line for each stack, or nothing if none runs."""
    found: list[dict[str, Any]] = []
    for folder in stack.all_folders():
        try:
            status = stack.query(folder, "status")
        except (NotRunning, Refused, OSError) as error:
            found.append({"name": stack.name_of(folder), "state": f"does not answer: {error}", "address": "", "on": "",
                          "uptime_s": 0.0, "keeper": None})
            continue
        cable = f"wire {status['wire']}" if status["wire"] else status["tap"]
        found.append({key: status[key] for key in ("name", "state", "uptime_s", "keeper")}
                     | {"address": ", ".join(addresses_of(status)), "on": cable})
    if given.json:
        print(json.dumps(found, indent=2))
        return OK
    for each in found:
        uptime = time.strftime("%H:%M:%S", time.gmtime(each["uptime_s"]))
        print(f"{each['name']:<16} {each['state']:<9} {each['address']:<18} {each['on']:<12} {uptime}")
    return OK
