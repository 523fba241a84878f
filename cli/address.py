"""`address`: the stack's addresses."""

from __future__ import annotations

import argparse
import ipaddress
from typing import Any

from cli import stack
from cli.main import OK
from supervisor.options import UsageError

TEXT = "the stack's addresses: list, add ADDRESS/PREFIX, del ADDRESS/PREFIX"
ADDRESS_USAGE = "usage: address list | address add ADDRESS/PREFIX | address del ADDRESS/PREFIX"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("words", nargs="*", metavar="OPERATION", help="list (default), add or del ADDRESS/PREFIX")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def run(given: argparse.Namespace) -> int:
    """List the addresses or change one. UsageError: invalid words. Refused: ip refuses the change."""
    if given.words in ([], ["list"]):
        for line in stack.manage(given.name, "ip", op="address_list")["addresses"]:
            print(line)
        return OK
    stack.manage(given.name, "ip", **address_order(given.words))
    stack.say(given, f"address {' '.join(given.words)}: done")
    return OK


def address_order(words: list[str]) -> dict[str, Any]:
    """The request for `add ADDRESS/PREFIX` or `del ADDRESS/PREFIX`. UsageError: anything else."""
    if len(words) != 2 or words[0] not in ("add", "del"):
        raise UsageError(ADDRESS_USAGE)
    order, text = words
    try:
        if "/" not in text:
            raise ValueError("no prefix length")
        interface = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise UsageError(f"address {order} {text}: {error}; expected an address like 10.0.5.2/24") from error
    return {"op": f"address_{order}", "address": str(interface)}
