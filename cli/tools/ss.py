"""`launcher.py ss`: the sockets of all applications of a stack."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from cli.tools import stack_of

TEXT = "show the sockets of all applications: addresses, owners, queued octets, drops"

ANSWER_S = 0.05  # applications report in batches what they have read; the service asks them when the list is requested


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("-u", "--udp", dest="types", action="append_const", const="dgram", help="UDP sockets only")
    parser.add_argument("-t", "--tcp", dest="types", action="append_const", const="stream", help="none yet")
    parser.add_argument("-w", "--raw", dest="types", action="append_const", const="raw", help="raw sockets only")
    parser.add_argument("--ping", dest="types", action="append_const", const="ping", help="ping sockets only")
    parser.add_argument("-l", "--listening", action="store_true", help="only sockets without a peer")
    for flag, name in (("-a", "all"), ("-n", "numeric"), ("-p", "processes")):
        parser.add_argument(
            flag, f"--{name}", action="store_true", help="ignored: these are always shown"
        )


def run(given: argparse.Namespace) -> int:
    """Print the sockets."""
    stack = stack_of(given)
    listed = stack.list_sockets()
    if any(each["queued"] for each in listed):
        time.sleep(ANSWER_S)
        listed = stack.list_sockets()
    sockets = [{**each, "process": process_name(each["pid"])} for each in listed
               if (not given.types or each["type"] in given.types) and not (given.listening and each["peer"])]
    print(json.dumps(sockets, indent=2) if given.json else table(sockets))
    return 0


def process_name(pid: int) -> str:
    """The name of a process (proc(5), comm); empty if the process has ended or is not visible."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def table(sockets: list[dict[str, Any]]) -> str:
    """A table for the terminal."""
    lines = [f"{'type':<6} {'local':<22} {'peer':<22} {'queued':>8} {'drops':>7}  process"]
    for each in sockets:
        kind = "udp" if each["type"] == "dgram" else each["type"]
        lines.append(f"{kind:<6} {name(each['local']):<22} {name(each['peer']):<22} {each['queued']:>8} "
                     f"{each['drops']:>7}  {each['process'] or '-'} [{each['pid']}]")
    return "\n".join(lines)


def name(address: list | None) -> str:
    """ADDRESS:PORT, with a star for an unspecified part, as ss(8)."""
    host, port = address or ("0.0.0.0", 0)
    return f"{'*' if host == '0.0.0.0' else host}:{port or '*'}"
