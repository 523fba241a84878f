"""`address`: the stack's addresses."""

from __future__ import annotations

import argparse
import ipaddress
from typing import Any

from cli import stack
from cli.main import OK
from supervisor.options import UsageError

TEXT = "the stack's addresses: list, add ADDRESS/PREFIX, del ADDRESS/PREFIX"
ADDRESS_USAGE = "give it like: address list | address add ADDRESS/PREFIX | address del ADDRESS/PREFIX"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("words", nargs="*", metavar="ORDER", help="list (default), add or del ADDRESS/PREFIX")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing of what went well")


def run(given: argparse.Namespace) -> int:
    """List, or order a change; UsageError for words that make no sense, Refused where ip will not."""
    if given.words in ([], ["list"]):
        for line in stack.manage(given.name, "ip", op="address_list")["addresses"]:
            print(line)
        return OK
    stack.manage(given.name, "ip", **address_order(given.words))
    stack.say(given, f"address {' '.join(given.words)}: done")
    return OK


def address_order(words: list[str]) -> dict[str, Any]:
    """The request that `add ...` or `del ...` stands for."""
    if len(words) != 2 or words[0] not in ("add", "del"):
        raise UsageError(ADDRESS_USAGE)
    order, text = words
    try:
        if "/" not in text:
            raise ValueError("no prefix length")
        interface = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise UsageError(f"address {order} {text}: {error}; give it like 10.0.5.2/24") from error
    return {"op": f"address_{order}", "address": str(interface)}
