"""`why`: the last events of a TCP connection, each with the clause of an RFC that it took."""

from __future__ import annotations

import argparse
import json
import re
import time
from ipaddress import ip_address
from itertools import groupby
from typing import Any

from cli import stack
from cli.numbers import whole
from supervisor.options import UsageError

TEXT = "the last events of TCP connections, with the clauses of RFC 9293 that they took"
_NUMBER = re.compile(r"[+-]?\d+")
_EXPECTED = "expected a port, ADDRESS, ADDRESS:PORT, or two of them like 10.0.0.2:80-10.0.0.1:5000"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("connection", metavar="CONNECTION", nargs="?", default="", help="a port, ADDRESS, ADDRESS:PORT "
                        "or ADDRESS:PORT-ADDRESS:PORT (default: all connections); open or closed")
    parser.add_argument("--count", type=whole(1), metavar="N", help="the last N events of each connection")
    parser.add_argument("--json", action="store_true", help="one JSON object per line (docs/commands.md)")


def ends(text: str) -> list[tuple[str, int]]:
    """Up to two pairs of address and port; "" and 0 stand for any. UsageError: something else."""
    found = []
    for part in text.split("-") if text else ():
        address, colon, port = part.rpartition(":")
        if not part:
            raise UsageError(f"why: {text!r}: {_EXPECTED}")
        if not colon and not part.isdecimal():
            address, port = part, "0"
        try:
            if address:
                ip_address(address)
            number = int(port)
        except ValueError:
            number = -1
        if not 0 <= number <= 65535 or (colon and not number):
            raise UsageError(f"why: {text!r}: {_EXPECTED}")
        found.append((address, number))
    if len(found) > 2:
        raise UsageError(f"why: {text!r}: {_EXPECTED}")
    return found


def events(name: str | None, wanted: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """The events that tcp has kept, the oldest first; times are seconds since 1970."""
    offset = time.time() - time.monotonic()
    found: list[dict[str, Any]] = []
    after, more = 0, True
    while more:
        page = stack.manage(name, "tcp", op="connection_events", ends=wanted, after=after)
        found += [{"time": when + offset, "local": [local, port], "peer": [peer, peer_port], "state": state,
                   "event": text, "clause": clause}
                  for when, local, port, peer, peer_port, state, text, clause in page["events"]]
        after, more = page["after"], page["more"]
    return found


def lines(found: list[dict[str, Any]]) -> list[str]:
    """One line of text for each event of a connection; two for a run of events that differ in numbers only."""
    shown = []
    for _, run in groupby(found, _kind):
        first, *more = run
        shown.append(_line(first))
        if len(more) > 1:
            shown.append(f"... and {len(more)} more like this until {_clock(more[-1])}")
        else:
            shown += map(_line, more)
    return shown


def _kind(event: dict[str, Any]) -> tuple[str, str]:
    return event["state"], _NUMBER.sub("", event["event"])


def _clock(event: dict[str, Any]) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(event['time']))}.{int(event['time'] % 1 * 1e6):06}"


def _line(event: dict[str, Any]) -> str:
    return f"{_clock(event)} {event['state']:<12} {event['event']} [{event['clause']}]"


def run(given: argparse.Namespace) -> int:
    """Print the events, connection by connection; returns 1 if there are none."""
    flows: dict[str, list[dict[str, Any]]] = {}
    for event in events(given.name, ends(given.connection)):
        (local, port), (peer, peer_port) = event["local"], event["peer"]
        flows.setdefault(f"{local}:{port} - {peer}:{peer_port}", []).append(event)
    for title, own in flows.items():
        shown = own[-given.count :] if given.count else own
        if given.json:
            print("\n".join(map(json.dumps, shown)))
            continue
        print(title)
        print("\n".join("  " + line for line in lines(shown)))
    if not flows:
        which = " of such a connection" if given.connection else ""
        print(f"no events{which}; tcp keeps the last few thousand, of its present process")
    return 0 if flows else 1
