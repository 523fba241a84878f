"""What the page in the browser shows of a connection: its segments for a while, and what TCP knows meanwhile."""

from __future__ import annotations

import time
from typing import Any

from bus.runtime import ring
from cli import ss
from cli.capture import packets
from cli.pipes import Pipe
from cli.watching import Watch
from packets import ipv4, tcp
from supervisor.options import UsageError

LISTED_MAX = 50  # connections in the list
SEGMENTS_MAX = 3000  # in a plot, the last ones
_ASKED_S = 0.25  # the interval of the questions for struct tcp_info
_INFO = ("rtt", "rttvar", "snd_cwnd", "snd_mss", "snd_wnd", "rcv_space", "total_retrans", "lost")


def name_of(connection: dict[str, Any]) -> str:
    """LOCAL:PORT-PEER:PORT."""
    return "-".join(f"{address}:{port}" for address, port in (connection["local"], connection["peer"]))


def listed(name: str | None) -> list[dict[str, Any]]:
    """The connections of a stack that have a peer, at most LISTED_MAX: {"name", "state", "recv_q", "send_q"}."""
    found = [each for each in ss.connections(name, False) if each["peer"]]
    return [{"name": name_of(each), "state": each["state"], "recv_q": each["recv_q"], "send_q": each["send_q"]}
            for each in found[:LISTED_MAX]]


def plot(name: str | None, wanted: str, seconds: float) -> dict[str, Any]:
    """The segments of a connection during some seconds, and its struct tcp_info at intervals. UsageError: unknown one.

    {"segments": [[seconds, sent, sequence, length, flags, acknowledgment, window]...], "info": [{"at", "rtt"...}...]}:
    `sent` is true if the stack sent it; times count from the beginning; the window is in octets; sequence numbers are
    those of the segment.
    """
    connection = _find(name, wanted)
    scales = connection.get("info", {}).get("wscale", 0)
    ports = connection["local"][1], connection["peer"][1]
    segments: list[list[Any]] = []
    info: list[dict[str, Any]] = []
    with Watch(name, [Pipe("ip", "tcp"), Pipe("tcp", "ip")]) as watch:
        began = time.monotonic()
        began_ns, asked = watch.now_ns(), 0.0
        while (passed := time.monotonic() - began) < seconds and not watch.ended:
            if passed >= asked:
                asked = passed + _ASKED_S
                known = _find(name, wanted, required=False).get("info", {})
                info.append({"at": round(passed, 3)} | {key: known.get(key, 0) for key in _INFO})
            for seen in watch.poll(0.05):
                if seen.direction == ring.DROPPED or seen.when_ns < began_ns:
                    continue
                for octets in packets(seen, watch.with_vnet, False):
                    found = _segment(octets, ports, seen.pipe.producer == "tcp", scales)
                    if found:
                        segments.append([round((seen.when_ns - began_ns) / 1e9, 6), *found])
    return {"name": wanted, "state": connection["state"], "segments": segments[-SEGMENTS_MAX:], "info": info,
            "seconds": seconds}


def _find(name: str | None, wanted: str, required: bool = True) -> dict[str, Any]:
    for each in ss.connections(name, True):
        if each["peer"] and name_of(each) == wanted:
            return each
    if required:
        raise UsageError(f"no connection {wanted!r}; expected one like 10.0.0.2:80-10.0.0.1:5000")
    return {}


def _segment(octets: bytes, ports: tuple[int, int], sent: bool, scales: int) -> list[Any] | None:
    """[sent, sequence, length, flags, acknowledgment, window] of a segment of the connection with these ports."""
    header = 4 * (octets[0] & 15) if octets else 0
    if len(octets) < header + tcp.HEADER_OCTETS or octets[9] != ipv4.TCP:
        return None
    segment = tcp.parse(octets[header:])
    if segment is None or (segment.source_port, segment.destination_port) != (ports if sent else ports[::-1]):
        return None
    scale = 0 if segment.flags & tcp.SYN else scales >> 4 if sent else scales & 15
    return [sent, segment.sequence, segment.length, segment.flags, segment.acknowledgment, segment.window << scale]
