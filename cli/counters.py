"""`counters`: all counters of the layers and the bus, with their meaning."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import NamedTuple

import msgspec

from bus.counters import PipeCounters
from cli.numbers import seconds
from cli.query import query
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "show all counters and their meaning"
# Linux's names of the same counters (RFC 4293, RFC 4113; /proc/net/snmp, /proc/net/netstat).
SNMP = {
    ("ip", "packets_in"): "IpInReceives", ("ip", "packets_out"): "IpOutRequests",
    ("ip", "bad_header_checksum"): "IpInHdrErrors", ("ip", "other_destination"): "IpInAddrErrors",
    ("ip", "unknown_protocol"): "IpInUnknownProtos", ("ip", "truncated"): "IpExtInTruncatedPkts",
    ("ip", "no_route"): "IpOutNoRoutes", ("ip", "fragments_in"): "IpReasmReqds", ("ip", "reassembled"): "IpReasmOKs",
    ("ip", "reassembly_timeout"): "IpReasmTimeout", ("ip", "fragmented"): "IpFragOKs",
    ("ip", "over_mtu"): "IpFragFails", ("icmp", "received"): "IcmpInMsgs", ("icmp", "bad_checksum"): "IcmpInCsumErrors",
    ("icmp", "echo_replies_sent"): "IcmpOutEchoReps", ("icmp", "requests_sent"): "IcmpOutEchos",
    ("icmp", "timestamp_replies_sent"): "IcmpOutTimestampReps", ("udp", "delivered"): "UdpInDatagrams",
    ("udp", "packets_out"): "UdpOutDatagrams", ("udp", "no_port"): "UdpNoPorts",
    ("udp", "bad_checksum"): "UdpInCsumErrors", ("sockets", "buffer_full"): "UdpRcvbufErrors",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("layer", nargs="?", metavar="LAYER", help="only this layer (default: all)")
    parser.add_argument("--all", action="store_true", help="also show counters that are zero")
    parser.add_argument("--json", action="store_true", help="print one JSON object: layer, counter, value")
    parser.add_argument("--watch", nargs="?", type=seconds(0.05, 3600), const=1.0, metavar="S", help="repeat "
                        "every S seconds (default 1) and show the increase")


class Count(NamedTuple):
    """The present value of one counter. `role`: in, out, drop or event; `snmp`: its name on Linux, or empty."""

    layer: str
    name: str
    value: int
    role: str
    sentence: str
    snmp: str


def counts(status: dict, layer: str | None = None) -> list[Count]:
    """The counters in the keeper's status. UsageError: unknown layer."""
    if layer is not None and layer not in status["layers"]:
        raise UsageError(f"counters: no layer {layer!r}; the layers are {', '.join(status['layers'])}")
    found = []
    for name, there in status["layers"].items():
        if layer not in (None, name):
            continue
        own = importlib.import_module(f"layers.{name}.counters").Counters.declared
        found += [Count(name, counter, value, there["roles"][counter], getattr(own.get(counter), "sentence", ""),
                        SNMP.get((name, counter), "")) for counter, value in there["counters"].items()]
        found += [Count(name, counter, value, declared.role, declared.sentence, "")
                  for counter, declared in PipeCounters.declared.items()
                  if (value := there["bus"].get(counter)) is not None]
    return found


def table(found: list[Count], former: list[Count] | None, zeros: bool) -> str:
    """A table for the terminal; with `former`, of the increase since then."""
    before = {(count.layer, count.name): count.value for count in former or ()}
    lines: list[str] = []
    layer = ""
    for count in found:
        if not count.value and not zeros:
            continue
        if count.layer != layer:
            layer = count.layer
            lines += [*([""] if lines else []), layer]
        since = count.value - before.get((count.layer, count.name), count.value)
        more = f"{since:>+10}" if former is not None and since else " " * 10 if former is not None else ""
        mark = "!" if count.role == "drop" else " "
        names = f"{count.name} ({count.snmp})" if count.snmp else count.name
        lines.append(f"{mark}{count.value:>12}{more}  {names:<42} {count.sentence}")
    return "\n".join(lines) or "all counters are zero"


def run(given: argparse.Namespace) -> int:
    """Print the counters once, or repeatedly."""
    folder, former = run_dir(given.name), None
    while True:
        found = counts(query(folder, "status"), given.layer)
        if given.json:
            by_layer: dict[str, dict[str, int]] = {}
            for count in found:
                by_layer.setdefault(count.layer, {})[count.name] = count.value
            text = msgspec.json.encode(by_layer).decode()
        else:
            text = table(found, former, given.all)
        if given.watch is not None and not given.json and sys.stdout.isatty():
            text = f"\033[H\033[2J{text}"
        print(text, flush=True)
        if given.watch is None:
            return 0
        former = found
        try:
            time.sleep(given.watch)
        except KeyboardInterrupt:
            return 0
