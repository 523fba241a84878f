"""`launcher.py ping`: send echo requests from the stack, as ping(8) does from the kernel."""

from __future__ import annotations

import argparse
import contextlib
import time
from statistics import mean
from typing import TYPE_CHECKING

import usernet as socket
from cli.numbers import seconds, whole
from cli.tools import BROADCASTS, address_of, failures, families, stack_of

if TYPE_CHECKING:
    from usernet.ping import Result

TEXT = "send echo requests from the stack, as one of its applications"
SIZE_DEFAULT = 56  # octets of data, as ping(8)
SIZE_MAX = 65507  # octets: 65,535 (RFC 791) minus the headers of IP and ICMP
IP_MTU_DISCOVER = 10  # linux/in.h
DISCOVERY = {"dont": 0, "want": 1, "do": 2}  # ip(7), IP_MTU_DISCOVER


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("address", metavar="ADDRESS", help="or name")
    parser.add_argument(
        "-c", "--count", type=whole(0), default=0, metavar="N", help="stop after N requests (default: Ctrl-C stops)"
    )
    parser.add_argument("-i", "--interval", type=seconds(), default=1.0, metavar="S", help="seconds between requests")
    parser.add_argument("-s", "--size", type=whole(0, SIZE_MAX), default=SIZE_DEFAULT, metavar="OCTETS",
                        help=f"octets of data (default {SIZE_DEFAULT})")
    parser.add_argument(
        "-W", "--timeout", type=seconds(above=True), default=1.0, metavar="S", help="seconds to wait for a reply"
    )
    parser.add_argument("-w", "--deadline", type=seconds(above=True), metavar="S", help="stop after S seconds")
    parser.add_argument("-t", "--ttl", type=whole(1, 255), metavar="N", help="time to live of the requests")
    parser.add_argument("-M", "--mtu-discovery", choices=DISCOVERY, metavar="do|want|dont",
                        help="do: never fragment; want: by the path MTU (default); dont: do not set DF")
    parser.add_argument("-b", "--broadcast", action="store_true", help="ADDRESS may be a broadcast address")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the summary")
    parser.add_argument(
        "-n", "--numeric", action="store_true", help="ignored: addresses are always shown as numbers"
    )
    families(parser)


def run(given: argparse.Namespace) -> int:
    """Print one line per request, as ping(8), and a summary; returns 0 if a reply arrived, else 1."""
    from usernet.ping import ping  # imported only where it is needed

    options = [(socket.IPPROTO_IP, socket.IP_TTL, given.ttl)] if given.ttl is not None else []
    if given.broadcast:
        options.append((socket.SOL_SOCKET, socket.SO_BROADCAST, 1))
    if given.mtu_discovery:
        options.append((socket.IPPROTO_IP, IP_MTU_DISCOVER, DISCOVERY[given.mtu_discovery]))
    times_ms: list[float] = []
    sent = 0
    with stack_of(given) as stack:
        address = address_of("ping", given.address, stack)
        named = address if address == given.address else f"{given.address} ({address})"
        print(f"PING {named} from {stack.address}: {given.size} octets of data", flush=True)
        end = time.monotonic() + (given.deadline or float("inf"))
        with contextlib.suppress(KeyboardInterrupt), failures(f"ping: {given.address}", BROADCASTS):
            for result in ping(stack, address, given.count or None, given.interval, given.size, given.timeout, options):
                sent += 1
                if result.round_trip_s is not None:
                    times_ms.append(result.round_trip_s * 1000)
                if not given.quiet:
                    print(line(result), flush=True)
                if time.monotonic() + given.interval > end:
                    break
    print(summary(given.address, sent, times_ms))
    return 0 if times_ms else 1


def line(result: Result) -> str:
    """One line for a reply, or for a missing one."""
    if result.round_trip_s is None:
        return f"icmp_seq={result.sequence} {result.error}"
    return (f"{result.octets} octets from {result.source}: icmp_seq={result.sequence} ttl={result.ttl} "
            f"time={result.round_trip_s * 1000:.3f} ms")


def summary(address: str, sent: int, times_ms: list[float]) -> str:
    """The lines with counts and times."""
    lost = 100 * (sent - len(times_ms)) / sent if sent else 0
    text = f"--- {address}: {sent} sent, {len(times_ms)} received, {lost:.0f}% lost"
    if times_ms:
        text += f", min/avg/max {min(times_ms):.3f}/{mean(times_ms):.3f}/{max(times_ms):.3f} ms"
    return text
