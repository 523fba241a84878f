"""`connection_list`: all connections and listeners of the stack, in pages, for `launcher.py ss`."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from layers.tcp import info
from layers.tcp.connection import LISTEN, STATE_NAMES, Connection
from usernet.pipe.streams import INFO_ANSWER

if TYPE_CHECKING:
    from layers.tcp.engine import Engine
    from layers.tcp.listen import Listener

PAGE = 48  # connections per answer, which is a line of at most 64 KiB
TIMER_NAMES = ("", "on", "keepalive", "timewait", "persist")  # ss(8), indexed by the numbers of `layers.tcp.info`


def page(engine: Engine, after: str, with_info: bool) -> dict[str, object]:
    """The connections and listeners whose `key` is above `after`, in the order of their keys.

    {"connections": [...], "more": whether there are others}. ValueError: `after` is not a key.
    """
    above = bytes.fromhex(after)
    lookup, dormant = engine.lookup, engine.dormant
    flows: list[Iterable[bytes]] = [lookup.connections, dormant.by_flow if dormant is not None else ()]
    keys: list[bytes] = []
    if above[:1] <= b"C":
        flow = above[1:] if above[:1] == b"C" else b""
        keys = [b"C" + key for key in nsmallest(PAGE + 1, (each for some in flows for each in some if each > flow))]
    if len(keys) <= PAGE:
        listeners = (b"L%08x" % handle for handle in lookup.listeners)
        keys += nsmallest(PAGE + 1, (key for key in listeners if key > above))
    found = []
    for key in keys[:PAGE]:
        shown = _of_key(engine, key)
        if shown is not None:
            found.append({"key": key.hex(), **_described(engine, shown, with_info)})
    return {"connections": found, "more": len(keys) > PAGE}


def _of_key(engine: Engine, key: bytes) -> Connection | Listener | None:
    lookup, dormant = engine.lookup, engine.dormant
    if key[:1] == b"L":
        return lookup.listeners[int(key[1:], 16)]
    note = dormant.by_flow.get(key[1:]) if dormant is not None else None
    if note is not None and dormant is not None:
        return dormant.slots.view(note)
    return lookup.connections[key[1:]]


def count(engine: Engine) -> int:
    """The number of connections."""
    dormant = engine.dormant
    return len(engine.lookup.connections) + (len(dormant.by_flow) if dormant is not None else 0)


def _described(engine: Engine, each: Connection | Listener, with_info: bool) -> dict[str, Any]:
    if not isinstance(each, Connection):
        return {"handle": each.handle, "state": STATE_NAMES[LISTEN], "local": _named(each.address, each.port),
                "peer": None, "recv_q": each.handed - each.taken, "send_q": max(each.options.listen, 0)}
    state, timer, _, due_ms, backoffs, _, unread, unacknowledged, unsent = INFO_ANSWER.unpack(info.header(engine, each))
    local, port, peer, peer_port = each.ends
    described: dict[str, Any] = {
        "handle": each.handle, "state": STATE_NAMES[state], "local": _named(local, port),
        "peer": _named(peer, peer_port), "recv_q": unread, "send_q": unacknowledged + unsent}
    if timer:
        described["timer"] = {"name": TIMER_NAMES[timer], "due_ms": due_ms, "backoffs": backoffs}
    if with_info:
        described["info"] = {"congestion": each.options.congestion, **info.named(info.tcp_info(engine, each))}
    return described


def _named(address: bytes, port: int) -> list[object]:
    return [str(ip_address(address)) if address else "0.0.0.0", port]
