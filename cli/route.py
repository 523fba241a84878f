"""`route`: show and change the stack's routes, in the words of ip-route(8)."""

from __future__ import annotations

import argparse
import ipaddress
from typing import Any

from cli import stack
from cli.main import OK
from supervisor.options import UsageError

ROUTE_USAGE = ("usage: route list | route add DEST/PREFIX [via GATEWAY] [metric N] [src ADDRESS] [mtu N] | "
               "route del DEST/PREFIX [via GATEWAY] [metric N]; DEST/PREFIX may be 'default'")
TEXT = "the stack's routes: list, add DEST/PREFIX [via GATEWAY] ..., del DEST/PREFIX"
DEFAULT = "0.0.0.0/0"
KEYWORDS = {"via": "gateway", "src": "source", "metric": "metric", "mtu": "mtu"}
OF_DEL = ("via", "metric")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("words", nargs="*", metavar="OPERATION", help="list (default), add DEST/PREFIX [via GATEWAY] "
                        "[metric N] [src ADDRESS] [mtu N], or del DEST/PREFIX [via GATEWAY] [metric N]; also: default")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """List the routes or change one. UsageError: invalid words. Refused: ip refuses the change."""
    if given.words in ([], ["list"]):
        for line in collect(given.name):
            print(route_line(line))
        return OK
    stack.manage(given.name, "ip", **route_order(given.words))
    stack.say(given, f"route {' '.join(given.words)}: done")
    return OK


def collect(name: str | None) -> list[dict[str, Any]]:
    """All routes. ip returns them in pages."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        answer = stack.manage(name, "ip", op="route_list", after=len(found))
        found += answer["routes"]
        more = answer["more"]
    return found


def route_order(words: list[str]) -> dict[str, Any]:
    """The request for `add ...` or `del ...`. UsageError: anything else."""
    order, *rest = words
    if order not in ("add", "del") or len(rest) % 2 == 0:
        raise UsageError(ROUTE_USAGE)
    request: dict[str, Any] = {"op": f"route_{order}", "destination": _network(rest[0])}
    for keyword, value in zip(rest[1::2], rest[2::2], strict=True):
        field = KEYWORDS.get(keyword)
        if field is None or field in request or (order == "del" and keyword not in OF_DEL):
            raise UsageError(ROUTE_USAGE)
        request[field] = _number(keyword, value) if keyword in ("metric", "mtu") else _host(keyword, value)
    return request


def _network(text: str) -> str:
    try:
        return DEFAULT if text == "default" else str(ipaddress.IPv4Network(text))
    except ValueError as error:
        raise UsageError(f"route: {error}; expected a network like 10.9.0.0/16, or default") from error


def _host(keyword: str, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise UsageError(f"route: {keyword} {text}: {error}") from error


def _number(keyword: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise UsageError(f"route: {keyword} {text}: must be a number")
    return int(text)


def route_line(line: dict[str, Any]) -> str:
    """One route, in a format similar to ip-route(8)."""
    parts = ["default" if line["destination"] == DEFAULT else line["destination"]]
    parts += [f"via {line['gateway']}"] if line["gateway"] else []
    parts += [f"src {line['source']}"] if line["source"] else []
    parts += [f"metric {line['metric']}"] if line["metric"] else []
    parts += [f"mtu {line['mtu']}"]
    kind = {"connected": "connected", "chosen": "", "path": f"path MTU, for {line.get('expires_s')} s",
            "redirect": f"redirected, for {line.get('expires_s')} s",
            "dead": "its gateway does not answer",
            "unusable": "unusable: its source address or the route to its gateway no longer exists"}[line["kind"]]
    return " ".join(parts) + (f"  ({kind})" if kind else "")
