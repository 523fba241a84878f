"""The pipes of a stack as the command line names them: `ip:udp` is the pipe from ip to udp.

Two names beside those of layers are `device`, the TAP or wire below link, and `app`, all applications of the socket
service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
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
    """One direction between two neighbours. It is watched at its producer if that is a layer, else at its consumer."""

    producer: str
    consumer: str

    @property
    def name(self) -> str:
        """The name on the command line."""
        return f"{self.producer}:{self.consumer}"

    @property
    def layer(self) -> str:
        """The layer whose taps show and impair it."""
        return self.producer if self.sent else self.consumer

    @property
    def sent(self) -> bool:
        """True if that layer sends on it, False if it receives."""
        return self.producer in topology.LAYERS

    @property
    def peer(self) -> int:
        """The id of the other end, for that layer."""
        return _NUMBERS[self.consumer if self.sent else self.producer]

    @property
    def protocol(self) -> int:
        """The IP protocol of the transport whose records it carries; 0: unknown."""
        return _PROTOCOLS.get(self.producer) or _PROTOCOLS.get(self.consumer) or 0

    @property
    def link_type(self) -> int:
        """The link type of its packets in a capture file."""
        kinds = next((pipe.kinds for pipe in topology.PIPES if pipe[:2] == self), frozenset())
        frames = DEVICE in self or any(map(views.is_frame, kinds))
        return pcapng.LINKTYPE_ETHERNET if frames else pcapng.LINKTYPE_RAW


def all_pipes(layers: Collection[str]) -> list[Pipe]:
    """All pipes of a stack with these layers, from the device upwards."""
    there = {*layers, DEVICE, APP}
    ends = [*_BELOW_AND_ABOVE, *(pipe[:2] for pipe in topology.PIPES)]
    return sorted((Pipe(*pair) for pair in ends if there.issuperset(pair)),
                  key=lambda pipe: (min(map(_ORDER.index, pipe)), max(map(_ORDER.index, pipe)), pipe.producer))


@lru_cache(1024)  # each application is a peer
def pipe_of(peer: int, layer: str, sent: bool) -> Pipe:
    """The pipe at which a layer's tap saw a record from or to `peer`."""
    other = APP if peer >= APPLICATIONS else DEVICE if peer == topology.DEVICE else topology.NAMES[peer]
    return Pipe(layer, other) if sent else Pipe(other, layer)


def chosen(words: Sequence[str], layers: Collection[str]) -> list[Pipe]:
    """The pipes selected by these words; all if there are none. UsageError: unknown name.

    `ip` selects all pipes of ip, `ip:` those that it sends on, `:ip` those that it receives on.
    """
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
            raise UsageError(f"no pipe {word!r}; the pipes are {', '.join(pipe.name for pipe in pipes)}")
        found += [pipe for pipe in matching if pipe not in found]
    return found
