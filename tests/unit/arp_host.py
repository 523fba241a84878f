"""A host with the ARP core in it, for the unit tests: what it hears, says, stores, and shows."""

from __future__ import annotations

import ipaddress
import random
import struct

import msgspec
from scapy.layers.l2 import ARP

from bus.config import StackConfig
from bus.messages import ARP_IN, ARP_OUT, NEIGHBOR, RESOLVE, ROUTES, UNREACHABLE, Routes, encode
from bus.topology import IP, KEEPER, LINK
from layers.arp import acd, tables
from layers.arp import core as arp
from layers.arp.counters import Counters

BROADCAST = b"\xff" * 6
OUR_MAC = bytes.fromhex("02005e000002")
PEER_MAC = bytes.fromhex("02005e000001")
OTHER_MAC = bytes.fromhex("02005e000009")
OUR = "10.0.0.2"
PEER = "10.0.0.1"
OTHER = "10.0.0.9"


def ip4(address: str | int) -> bytes:
    return ipaddress.IPv4Address(address).packed


def colons(mac: bytes) -> str:
    return mac.hex(":")


def arp_packet(operation: int, mac: bytes, sender: str, target: str, target_mac: bytes = bytes(6)) -> bytes:
    return bytes(ARP(op=operation, hwsrc=colons(mac), psrc=sender, hwdst=colons(target_mac), pdst=target))


def request(mac: bytes, sender: str, target: str) -> bytes:
    return arp_packet(1, mac, sender, target)


def reply(mac: bytes, sender: str, target: str = OUR) -> bytes:
    return arp_packet(2, mac, sender, target, OUR_MAC)


class Host:
    """A core, the clock it lives by, and its state, which outlives it. Its address was probed, unless it is new."""

    def __init__(self, prefix: int = 24, state: dict[int, bytes] | None = None, now: float = 1000.0,
                 new: bool = False, seed: int = 1) -> None:
        self.state = {} if state is None else state
        self.now = now
        self.config = StackConfig(name="t", run_dir="", address=ip4(OUR), prefix=prefix, mac=OUR_MAC)
        if not new:
            self.state.setdefault(acd.OWN_KEY, probed(prefix))
        self.boots(seed)

    def boots(self, seed: int = 1) -> None:
        """Starts, for the first time or again."""
        self.counts = Counters.new()
        self.core = arp.Core(self.config, self.state, self.counts, random.Random(seed))
        sends = self.core.start(self.now)
        self.noticed = [msgspec.msgpack.decode(record) for consumer, _, record in sends if consumer == KEEPER]
        self.announced = [send for send in sends if send[0] != KEEPER]

    @property
    def stored(self) -> dict[int, bytes]:
        """The state that is about neighbours."""
        return {key: value for key, value in self.state.items() if key not in (acd.OWN_KEY, tables.ORDER_KEY)}

    def owns(self, *interfaces: str) -> list:
        """ip announces our addresses."""
        parsed = [ipaddress.IPv4Interface(interface) for interface in interfaces]
        routes = Routes([(each.ip.packed, each.network.prefixlen) for each in parsed], [])
        return self.core.receive(IP, ROUTES, [encode(routes)], self.now)

    def manage(self, op: str, **request: str) -> tuple[dict, list]:
        return self.core.manage({"op": f"neighbor_{op}", **request}, self.now)

    def listed(self) -> dict[str, str]:
        """States by address, as a person sees them."""
        return {each["address"]: each["state"] for each in self.manage("list")[0]["neighbors"]}

    def hears(self, *packets: bytes) -> list:
        return self.core.receive(LINK, ARP_IN, list(packets), self.now)

    def resolves(self, *addresses: str) -> list:
        return self.core.receive(IP, RESOLVE, [ip4(address) for address in addresses], self.now)

    def passes(self, seconds: float) -> list[tuple[float, tuple]]:
        """Lets time pass; (when, what was sent)."""
        end = self.now + seconds
        sends = []
        while self.core.next_wake is not None and self.core.next_wake <= end:
            self.now = self.core.next_wake
            sends += [(self.now, send) for send in self.core.wake(self.now)]
        self.now = end
        return sends

    def counted(self, name: str) -> int:
        return self.counts[getattr(Counters, name)]

    def knows(self, address: str = PEER) -> bytes | None:
        """The MAC that a freshly started ip would be told of."""
        told = {record[:4]: record[4:] for _, _, record in self.core.neighbor_started(IP, self.now)}
        return told.get(ip4(address))

    def learn(self, address: str = PEER, mac: bytes = PEER_MAC) -> None:
        self.hears(request(mac, address, OUR))
        assert self.knows(address) == mac


def probed(prefix: int) -> bytes:
    """What a core stores that has probed and announced its address."""
    return struct.pack("<4sBB6sd", ip4(OUR), prefix, acd.SETTLED, bytes(6), 0.0)


def told(address: str = PEER, mac: bytes = PEER_MAC) -> tuple:
    return IP, NEIGHBOR, ip4(address) + mac


def unreachable(address: str = PEER) -> tuple:
    return IP, UNREACHABLE, ip4(address)


def asks(send: tuple, to: bytes, target: str = PEER) -> bool:
    """True where `send` is a request of ours for `target`, sent to the MAC `to`."""
    consumer, kind, record = send
    sent = ARP(record[6:])
    return (consumer, kind, record[:6], sent.op, sent.hwsrc, sent.psrc, sent.hwdst, sent.pdst) == (
        LINK, ARP_OUT, to, 1, colons(OUR_MAC), OUR, colons(bytes(6)), target)
