"""`ss`: the sockets of all applications of a stack, and the connections that outlived theirs."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from cli import stack as running
from cli.tools import families, stack_of

TEXT = "show the sockets of all applications: addresses, owners, queues, drops; TCP's states and timers"

ANSWER_S = 0.05  # applications report in batches what they have read; the service asks them when the list is requested
STATES = {"ESTABLISHED": "ESTAB", "SYN-RECEIVED": "SYN-RECV", "CLOSED": "UNCONN"}  # the names of ss(8)
MICROSECONDS = ("rto", "ato", "rcv_rtt", "min_rtt")  # in struct tcp_info; shown in milliseconds, as ss(8)
SEGMENTS = {"snd_mss": "mss", "rcv_mss": "rcvmss", "advmss": "advmss", "pmtu": "pmtu", "snd_cwnd": "cwnd",
            "snd_ssthresh": "ssthresh"}
COUNTS = ("bytes_sent", "bytes_acked", "bytes_received", "unacked", "sacked", "lost", "retrans", "total_retrans",
          "backoff", "notsent_bytes", "rcv_space", "rcv_ssthresh", "snd_wnd")
UNKNOWN, UNLIMITED = 0xFFFFFFFF, 0x7FFFFFFF  # a minimum that was never measured; a threshold that was never met
OPTIONS = ((1, "ts"), (2, "sack"), (8, "ecn"))  # TCPI_OPT_TIMESTAMPS, _SACK, _ECN


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")
    parser.add_argument("-u", "--udp", dest="types", action="append_const", const="dgram", help="UDP sockets only")
    parser.add_argument("-t", "--tcp", dest="types", action="append_const", const="stream", help="TCP sockets only")
    parser.add_argument("-w", "--raw", dest="types", action="append_const", const="raw", help="raw sockets only")
    parser.add_argument("--ping", dest="types", action="append_const", const="ping", help="ping sockets only")
    parser.add_argument("-l", "--listening", action="store_true", help="only sockets without a peer")
    parser.add_argument("-i", "--info", action="store_true", help="what TCP knows of each connection: round-trip time, "
                        "windows, congestion control")
    for flag, name in (("-a", "all"), ("-n", "numeric"), ("-p", "processes"), ("-o", "options")):
        parser.add_argument(
            flag, f"--{name}", action="store_true", help="ignored: these are always shown"
        )
    families(parser)


def run(given: argparse.Namespace) -> int:
    """Print the sockets."""
    stack = stack_of(given)
    listed = stack.list_sockets()
    if any(each["queued"] for each in listed):
        time.sleep(ANSWER_S)
        listed = stack.list_sockets()
    sockets = [each for each in with_connections(listed, connections(given.name, given.info))
               if (not given.types or each["type"] in given.types) and not (given.listening and each["peer"])]
    print(json.dumps(sockets, indent=2) if given.json else table(sockets))
    return 0


def connections(name: str | None, info: bool) -> list[dict[str, Any]]:
    """All connections of tcp, with the owner's handle, or 0. tcp returns them in pages."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        after = found[-1]["key"] if found else ""
        answer = running.manage(name, "tcp", op="connection_list", after=after, info=info)
        found += answer["connections"]
        more = answer["more"]
    return found


def with_connections(listed: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One list of the sockets of the socket service and the connections of tcp."""
    by_handle = {each["handle"]: each for each in found if each["handle"]}
    sockets = []
    for each in listed:
        of_tcp = by_handle.pop(each["handle"], {}) if each["type"] == "stream" else {}
        state = of_tcp.get("state", "ESTABLISHED" if each["peer"] and each["type"] != "stream" else "CLOSED")
        sockets.append({"recv_q": each["queued"], "send_q": 0, **each, **of_tcp, "state": STATES.get(state, state),
                        "process": process_name(each["pid"])})
    # Without an owner: TIME-WAIT, orphans, connections that were not accepted yet.
    sockets += [{"type": "stream", "drops": 0, "queued": each["recv_q"], **each, "pid": 0, "process": "",
                 "state": STATES.get(each["state"], each["state"])}
                for each in (*by_handle.values(), *(each for each in found if not each["handle"]))]
    return [{key: value for key, value in each.items() if key != "key"} for each in sockets]


def process_name(pid: int) -> str:
    """The name of a process (proc(5), comm); empty if the process has ended or is not visible."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def table(sockets: list[dict[str, Any]]) -> str:
    """A table for the terminal."""
    lines = [f"{'type':<6} {'local':<22} {'peer':<22} {'queued':>8} {'drops':>7}  process"]
    """A table for a person."""
    lines = [f"{'type':<5} {'state':<10} {'recv-q':>6} {'send-q':>6} {'local':<21} {'peer':<21} {'drops':>5}  process"]
    for each in sockets:
        kind = {"dgram": "udp", "stream": "tcp"}.get(each["type"], each["type"])
        owner = f"{each['process'] or '-'} [{each['pid']}]" if each["pid"] else "-"
        lines.append(f"{kind:<5} {each['state']:<10} {each['recv_q']:>6} {each['send_q']:>6} {name(each['local']):<21} "
                     f"{name(each['peer']):<21} {each['drops']:>5}  {owner}{timer(each.get('timer'))}")
        if info := each.get("info"):
            lines.append("      " + details(info))
    return "\n".join(lines)


def timer(running_: dict[str, Any] | None) -> str:
    """As ss(8) with -o: the running timer, the time until it expires, and the number of expiries."""
    return f" timer:({running_['name']},{running_['due_ms']}ms,{running_['backoffs']})" if running_ else ""


def details(info: dict[str, Any]) -> str:
    """As ss(8) with -i: times in milliseconds, the rest in segments or octets as in struct tcp_info."""
    options, scales = info.get("options", 0), info.get("wscale", 0)
    words = [name for bit, name in OPTIONS if options & bit] + [info["congestion"]]
    if options & 4:  # TCPI_OPT_WSCALE
        words.append(f"wscale:{scales & 15},{scales >> 4}")
    if "rtt" in info:
        words.append(f"rtt:{info['rtt'] / 1000:g}/{info.get('rttvar', 0) / 1000:g}")
    words += [f"{field.replace('_', '')}:{info[field] / 1000:g}" for field in MICROSECONDS
              if info.get(field, UNKNOWN) != UNKNOWN]
    words += [f"{shown}:{info[field]}" for field, shown in SEGMENTS.items()
              if field in info and info[field] != UNLIMITED]
    return " ".join([*words, *(f"{field}:{info[field]}" for field in COUNTS if field in info)])


def name(address: list | None) -> str:
    """ADDRESS:PORT, with a star for an unspecified part, as ss(8)."""
    host, port = address or ("0.0.0.0", 0)
    return f"{'*' if host == '0.0.0.0' else host}:{port or '*'}"
