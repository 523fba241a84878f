"""Which fault hits which layer at which moment. Pure: a seed tells all of it, so a run can be repeated."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

LAYERS = ("link", "arp", "ip", "icmp", "udp", "tcp", "sockets")

# Faults, and how often each is drawn. Hangs take half a second each to be noticed, so they are rare.
KINDS = {"kill": 84, "raise": 8, "stop": 2, "loop": 2, "sleep": 2, "memory": 2}
HANGS = ("stop", "loop", "sleep", "memory")

# Moments. The load is steady but for `idle`. `fragments`: large datagrams are being cut and put together, both ways;
# `groups`: a router asks who is in which group, while others are joined and left; `paths`: a router tells of a narrower
# way; `busy`: processes that belong to nobody want the processors, too; `restart`: in the middle of a planned restart
# of the layer; `descriptors`: the keeper has none left; `layers' descriptors`: no layer has; `processes`: the keeper
# may not fork, which does not hold for root; `space`: the file systems of the run and the state directory are full, if
# the lab has its own (tests.faults.lab.SmallLab); `recovery`: a second layer is hit while the first one comes
# back; `again`: the same layer is hit as soon as its successor is there.
MOMENTS = {"steady": 30, "burst": 18, "resolution": 10, "fragments": 10, "groups": 7, "paths": 5, "idle": 6,
           "busy": 4, "restart": 4, "descriptors": 2, "layers' descriptors": 2, "processes": 1, "space": 1,
           "recovery": 7, "two": 5, "again": 3, "all": 1}
STREAM_MOMENTS = {"steady": 56, "recovery": 13, "two": 11, "again": 8, "restart": 4, "descriptors": 2,
                  "layers' descriptors": 2, "processes": 2, "busy": 4, "all": 2}  # with a load of streams
LATER_MAX_S = {"burst": 0.003, "resolution": 0.004, "fragments": 0.006, "groups": 0.02, "paths": 0.006,
               "restart": 0.06, "recovery": 0.012, "again": 0.012}


class Fault(NamedTuple):
    """One fault of one layer."""

    kind: str
    layer: str


class Incident(NamedTuple):
    """Faults that belong together. `later_s`: from the moment's beginning to the (second) fault."""

    moment: str
    faults: tuple[Fault, ...]
    later_s: float


def drawn(seed: int, per_layer: int, moments: dict[str, int] = MOMENTS) -> list[Incident]:
    """Incidents until each layer has had `per_layer` faults. Layers take turns, so that each can recover meanwhile."""
    random = Random(seed)
    turns = random.sample(LAYERS, len(LAYERS))
    had: Counter[str] = Counter()
    incidents = []
    turn = 0
    while min(had[layer] for layer in LAYERS) < per_layer:
        layer = turns[turn % len(turns)]
        turn += 1
        if had[layer] >= per_layer:
            continue
        incident = _draw(random, layer, moments)
        had.update(fault.layer for fault in incident.faults)
        incidents.append(incident)
    return incidents


def every(kinds: tuple[str, ...], moment: str = "steady") -> list[Incident]:
    """Each kind at each layer once."""
    return [Incident(moment, (Fault(kind, layer),), 0.0) for kind in kinds for layer in LAYERS]


def _draw(random: Random, layer: str, moments: dict[str, int]) -> Incident:
    moment = _weighted(random, moments)
    later_s = random.uniform(0, LATER_MAX_S.get(moment, 0.0))
    if moment == "all":
        return Incident(moment, tuple(Fault("kill", each) for each in random.sample(LAYERS, len(LAYERS))), later_s)
    if moment == "again":
        return Incident(moment, (Fault("kill", layer), Fault("kill", layer)), later_s)
    first = Fault(_weighted(random, KINDS), layer)
    if moment in ("recovery", "two"):
        other = random.choice([each for each in LAYERS if each != layer])
        return Incident(moment, (first, Fault(_weighted(random, KINDS), other)), later_s)
    return Incident(moment, (first,), later_s)


def _weighted(random: Random, weights: dict[str, int]) -> str:
    return random.choices(list(weights), list(weights.values()))[0]
