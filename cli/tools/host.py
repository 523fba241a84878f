"""`launcher.py host`: ask a name server through the stack; the output is that of host(1)."""

from __future__ import annotations

import argparse

from cli.tools import address_of, failures, refuse, stack_of

TEXT = "ask the stack's name servers, or SERVER, for a name or an address"
WORDS = {
    "A": "has address", "AAAA": "has IPv6 address", "CNAME": "is an alias for", "MX": "mail is handled by",
    "NS": "name server", "PTR": "domain name pointer", "TXT": "descriptive text",
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("-t", "--type", metavar="T", help="type of the records: A (default; PTR for an address), MX, "
                        "TXT, …")
    parser.add_argument("host", metavar="NAME")
    parser.add_argument("server", metavar="SERVER", nargs="?")


def run(given: argparse.Namespace) -> int:
    """Print the records, one line each; returns 1 if there are none."""
    from usernet.dns import is_type, lookup  # imported only where it is needed

    if not given.host:
        refuse(f"host: {given.host!r}: expected an address or a name")
    stack = stack_of(given)
    servers = [address_of("host", given.server, stack)] if given.server else None
    with failures(f"host: {given.host}"):
        if given.type and not is_type(given.type):
            refuse(f"host: -t {given.type} is not a type of record; the types are A, AAAA, CNAME, MX, NS, PTR, SOA, "
                   "TXT, …")
        for owner, kind, value in lookup(given.host, given.type, stack, servers):
            print(f"{owner} {WORDS.get(kind, f'has {kind} record')} {value}")
    return 0
