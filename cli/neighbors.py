"""`neighbor`: what arp knows of the neighbours, and orders to it."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from cli import commands
from supervisor.options import UsageError

OPERANDS = {"list": (), "add": ("ADDRESS", "MAC"), "del": ("ADDRESS",), "flush": ()}
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


def run(name: str | None, words: list[str]) -> int:
    """Do what `neighbor WORDS` says. UsageError where it says nothing that can be done."""
    order, *given = words or ["list"]
    operands = OPERANDS.get(order)
    if operands is None:
        raise UsageError(f"neighbor: no order '{order}'; there are {', '.join(OPERANDS)}")
    if len(given) != len(operands):
        raise UsageError(f"neighbor: give it like: launcher.py neighbor {' '.join([order, *operands])}")
    request = {operand.lower(): _checked(operand, text) for operand, text in zip(operands, given, strict=True)}
    if order == "list":
        print(table(collect(name)))
        return commands.OK
    answer = commands.manage(name, "arp", op=f"neighbor_{order}", **request)
    if order == "flush":
        print(f"{answer['deleted']} deleted")
    return commands.OK


def _checked(operand: str, text: str) -> str:
    if operand == "MAC":
        if not _MAC.fullmatch(text.lower()):
            raise UsageError(f"neighbor: '{text}' is not a MAC address; give it like 02:00:00:00:00:02")
        return text.lower()
    try:
        return str(IPv4Address(text))
    except AddressValueError as error:
        raise UsageError(f"neighbor: '{text}' is not an IPv4 address") from error


def collect(name: str | None) -> list[dict[str, Any]]:
    """All neighbours, by address. arp gives them a page at a time."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        after = {"after": found[-1]["address"]} if found else {}
        answer = commands.manage(name, "arp", op="neighbor_list", **after)
        found += answer["neighbors"]
        more = answer["more"]
    return found


def table(neighbors: list[dict[str, Any]]) -> str:
    """A table for a person. The age is the time since a packet of the neighbour's was seen."""
    lines = [f"{'address':<15}  {'mac':<17}  {'state':<10}  {'age':>7}"]
    for neighbor in neighbors:
        age = "-" if neighbor["age_s"] is None else f"{neighbor['age_s']:.1f} s"
        lines.append(f"{neighbor['address']:<15}  {neighbor['mac'] or '-':<17}  {neighbor['state']:<10}  {age:>7}")
    return "\n".join(lines)
