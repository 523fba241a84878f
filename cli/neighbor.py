"""`neighbor`: show and change arp's neighbour table."""

from __future__ import annotations

import argparse
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from cli import stack
from cli.main import OK
from supervisor.options import MAC, UsageError

TEXT = "arp's neighbour table: list, add ADDRESS MAC, del ADDRESS, flush"
OPERANDS = {"list": (), "add": ("ADDRESS", "MAC"), "del": ("ADDRESS",), "flush": ()}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("words", nargs="*", metavar="OPERATION", help="list (default), add ADDRESS MAC, del ADDRESS, "
                        "or "
                        "flush (all except added neighbours)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """Carry out `neighbor WORDS`. UsageError: unknown words or invalid operands."""
    name = given.name
    order, *operands_given = given.words or ["list"]
    operands = OPERANDS.get(order)
    if operands is None:
        raise UsageError(f"neighbor: unknown operation '{order}'; the operations are {', '.join(OPERANDS)}")
    if len(operands_given) != len(operands):
        raise UsageError("neighbor: wrong number of operands; usage: launcher.py neighbor "
                         f"{' '.join([order, *operands])}")
    request = {operand.lower(): _checked(operand, text) for operand, text in zip(operands, operands_given, strict=True)}
    if order == "list":
        print(table(collect(name)))
        return OK
    answer = stack.manage(name, "arp", op=f"neighbor_{order}", **request)
    stack.say(given, f"{answer['deleted']} deleted" if order == "flush" else f"neighbor {' '.join(given.words)}: done")
    return OK


def _checked(operand: str, text: str) -> str:
    if operand == "MAC":
        if not MAC.fullmatch(text.lower()):
            raise UsageError(f"neighbor: '{text}' is not a MAC address like 02:00:00:00:00:02")
        return text.lower()
    try:
        return str(IPv4Address(text))
    except AddressValueError as error:
        raise UsageError(f"neighbor: '{text}' is not an IPv4 address") from error


def collect(name: str | None) -> list[dict[str, Any]]:
    """All neighbours, in the order of their addresses. arp returns them in pages."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        after = {"after": found[-1]["address"]} if found else {}
        answer = stack.manage(name, "arp", op="neighbor_list", **after)
        found += answer["neighbors"]
        more = answer["more"]
    return found


def table(neighbors: list[dict[str, Any]]) -> str:
    """A table for the terminal. The age is the time since the last packet from the neighbour."""
    lines = [f"{'address':<15}  {'mac':<17}  {'state':<10}  {'age':>7}"]
    for neighbor in neighbors:
        age = "-" if neighbor["age_s"] is None else f"{neighbor['age_s']:.1f} s"
        lines.append(f"{neighbor['address']:<15}  {neighbor['mac'] or '-':<17}  {neighbor['state']:<10}  {age:>7}")
    return "\n".join(lines)
