"""The pipes of a stack as the command line names them: `ip:udp` is what ip sends to udp.

Beside the layers there are `device`, the TAP or wire below link, and `app`, all applications at the socket service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from bus import topology, views
from bus.runtime.taps import APPLICATIONS
from packets import ipv4, pcapng
from supervisor.options import UsageError

DEVICE, APP = "device", "app"
_NUMBERS = {DEVICE: topology.DEVICE, APP: APPLICATIONS} | topology.LAYERS
_PROTOCOLS = {"udp": ipv4.UDP, "icmp": ipv4.ICMP, "tcp": ipv4.TCP}
_BELOW_AND_ABOVE = ((DEVICE, "link"), ("link", DEVICE), ("sockets", APP), (APP, "sockets"))
_ORDER = (DEVICE, "link", "arp", "ip", "icmp", "udp", "tcp", "raw", "sockets", APP)


class Pipe(NamedTuple):
    """One direction between two neighbours, and where it is watched: at its producer's door, if that is a layer."""

    producer: str
    consumer: str

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.producer}:{self.consumer}"

    @property
    def layer(self) -> str:
        """Whose taps show and disturb it."""
        return self.producer if self.sent else self.consumer

    @property
    def sent(self) -> bool:
        """Whether that layer sends it, or takes it in."""
        return self.producer in topology.LAYERS

    @property
    def peer(self) -> int:
        """The other end's id, for that layer."""
        return _NUMBERS[self.consumer if self.sent else self.producer]

    @property
    def protocol(self) -> int:
        """The transport's whose records go through it; 0: not known."""
        return _PROTOCOLS.get(self.producer) or _PROTOCOLS.get(self.consumer) or 0

    @property
    def link_type(self) -> int:
        """Of its packets in a capture file."""
        kinds = next((pipe.kinds for pipe in topology.PIPES if pipe[:2] == self), frozenset())
        frames = DEVICE in self or any(map(views.is_frame, kinds))
        return pcapng.LINKTYPE_ETHERNET if frames else pcapng.LINKTYPE_RAW


def all_pipes(layers: Collection[str]) -> list[Pipe]:
    """Those of a stack with these layers, from the device upwards."""
    there = {*layers, DEVICE, APP}
    ends = [*_BELOW_AND_ABOVE, *(pipe[:2] for pipe in topology.PIPES)]
    return sorted((Pipe(*pair) for pair in ends if there.issuperset(pair)),
                  key=lambda pipe: (min(map(_ORDER.index, pipe)), max(map(_ORDER.index, pipe)), pipe.producer))


def pipe_of(peer: int, layer: str, sent: bool) -> Pipe:
    """The pipe that a layer's tap speaks of by its peer's id."""
    other = APP if peer >= APPLICATIONS else DEVICE if peer == topology.DEVICE else topology.NAMES[peer]
    return Pipe(layer, other) if sent else Pipe(other, layer)


def chosen(words: Sequence[str], layers: Collection[str]) -> list[Pipe]:
    """The pipes that these words name; none: all. `ip` is every pipe of ip, `ip:` what it sends, `:ip` what it gets."""
    pipes = all_pipes(layers)
    found: list[Pipe] = []
    for word in words or ["all"]:
        producer, colon, consumer = word.partition(":")
        if word == "all":
            matching = pipes
        elif colon:
            matching = [pipe for pipe in pipes if producer in ("", pipe.producer) and consumer in ("", pipe.consumer)]
        else:
            matching = [pipe for pipe in pipes if word in pipe]
        if not matching or word == ":":
            raise UsageError(f"no pipe {word!r}; there are {', '.join(pipe.name for pipe in pipes)}")
        found += [pipe for pipe in matching if pipe not in found]
    return found
