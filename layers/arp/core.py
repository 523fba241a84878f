"""ARP (RFC 826): finds the MAC of a neighbour for ip, and answers for our own address.

Owns the table of neighbours; ip holds a copy of it, and the packets that wait for a resolution. ip asks (RESOLVE) for
an address that it does not know, and again from time to time for one that it keeps using; each request is answered by
NEIGHBOR or UNREACHABLE. What arp learns unasked it announces to ip.

A crash loses the resolutions under way: ip asks again when it sees that arp started. It also loses when we last
defended our address, so a restart may defend it once too soon. The neighbours are kept.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from itertools import repeat

from bus.config import StackConfig
from bus.core import CounterWords, Send, State
from bus.ratelimit import TokenBucket
from bus.routes import ALL_ONES, mask
from bus.table import ARP_IN, ARP_OUT, IP, LINK, NEIGHBOR, RESOLVE, UNREACHABLE
from layers.arp import packet
from layers.arp.counters import Counters
from layers.arp.tables import Neighbors

FRESH_S = 20.0  # a neighbour confirmed this recently is not verified again; below ip's interval of asking, about 30 s
RETRY_S = 1.0  # RFC 1122 section 2.3.2.1: at most one request per second and destination
BROADCAST_TRIES = 3  # Linux: net.ipv4.neigh.default.mcast_solicit
UNICAST_TRIES = 2  # RFC 1122 section 2.3.2.1: the entry goes after N polls without a reply, "typically N is 2"
MAX_UNKNOWN = 1024  # resolutions of unknown addresses at a time; verifications are as many as neighbours at most
LEARN_PER_SECOND = 200  # changes that nobody asked for: a storm of invented senders costs ip and the state no more
LEARN_BURST = 256  # the hosts of a /24, all asking at once
DEFEND_INTERVAL_S = 10.0  # RFC 5227 section 1.1


class Core:
    """See bus.core.Core. Addresses and MACs are octets here, as in the packets."""

    next_wake: float | None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self.next_wake = None
        self.counters = counters
        self._mac = config.mac
        self._address = config.address.to_bytes(4, "big")  # the one that our requests come from
        self._own = frozenset({self._address})
        self._mask = mask(config.prefix)
        self._network = config.address & self._mask
        self._neighbors = Neighbors(state)
        # Resolutions under way: address -> (time of the next step, MACs still to be asked, is the address unknown). All
        # steps are RETRY_S apart, so the order of insertion is the order in time and the first one is the next.
        self._resolutions: OrderedDict[bytes, tuple[float, Iterator[bytes], bool]] = OrderedDict()
        self._unknown = 0  # how many resolutions are of unknown addresses
        self._learning = TokenBucket(LEARN_PER_SECOND, LEARN_BURST)
        self._may_defend = 0.0  # the next time that we may

    def start(self, now: float) -> list[Send]:
        """Tells ip of the neighbours that a former process knew."""
        self._neighbors.load(now)
        self.counters[Counters.reloaded] += len(self._neighbors)
        return self._announce_all(now)

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """A new ip has no copy of the neighbours yet."""
        return self._announce_all(now) if sender == IP else []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """ARP packets from the link, requests to resolve from ip."""
        sends: list[Send] = []
        if kind == ARP_IN:
            self.counters[Counters.received] += len(records)
            for record in records:
                self._packet_in(record, now, sends)
        elif kind == RESOLVE:
            for record in records:
                self._resolve(record, now, sends)
        self._set_wake()
        return sends

    def wake(self, now: float) -> list[Send]:
        """Resolutions without an answer take their next step."""
        sends: list[Send] = []
        resolutions = self._resolutions
        while resolutions:
            address = next(iter(resolutions))
            due, targets, unknown = resolutions[address]
            if due > now:
                break
            self._step(address, targets, unknown, now, sends)
        self._set_wake()
        return sends

    # What ip asks

    def _resolve(self, address: bytes, now: float, sends: list[Send]) -> None:
        counters = self.counters
        if len(address) != 4:
            counters[Counters.resolve_malformed] += 1
            return
        known = self._neighbors.get(address, now)
        if known is not None:
            mac, age_s = known
            sends.append((IP, NEIGHBOR, address + mac))
            if age_s < FRESH_S or address in self._resolutions:
                return
            # RFC 1122 section 2.3.2.1 (2), unicast poll: ask the neighbour itself; then, if need be, everybody.
            targets = iter([mac] * UNICAST_TRIES + [packet.MAC_BROADCAST] * BROADCAST_TRIES)
        elif address in self._resolutions:
            return  # under way: the answer follows
        elif not self._is_neighbor(address):
            counters[Counters.resolve_malformed] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        elif self._unknown >= MAX_UNKNOWN:
            # The newest is refused, not the oldest given up: a new request for that one would break the cap of one
            # per second.
            counters[Counters.resolve_refused] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        else:
            self._unknown += 1
            targets = repeat(packet.MAC_BROADCAST, BROADCAST_TRIES)
        self._step(address, targets, known is None, now, sends)

    def _step(self, address: bytes, targets: Iterator[bytes], unknown: bool, now: float, sends: list[Send]) -> None:
        """Asks the next of `targets` for `address`; when all were asked, nobody has it."""
        target = next(targets, None)
        if target is None:
            self._end_resolution(address)
            self._neighbors.forget(address)
            self.counters[Counters.unanswered] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        # RFC 1122 section 2.3.2.1: no second request for `address` within RETRY_S. A resolution that fails ends RETRY_S
        # after its last request, one that succeeds leaves a fresh entry: so it holds from one to the next, too.
        self._resolutions[address] = now + RETRY_S, targets, unknown
        self._resolutions.move_to_end(address)
        self.counters[Counters.requests_sent] += 1
        sends.append((LINK, ARP_OUT, target + packet.request(self._mac, self._address, address)))

    def _end_resolution(self, address: bytes) -> bool:
        resolution = self._resolutions.pop(address, None)
        if resolution is None:
            return False
        self._unknown -= resolution[2]
        return True

    # What the link brings

    def _packet_in(self, octets: bytes, now: float, sends: list[Send]) -> None:
        counters = self.counters
        if len(octets) < packet.PACKET_OCTETS:
            counters[Counters.too_short] += 1
            return
        addressing, operation, sender_mac, sender, _, target = packet.PACKET.unpack_from(octets)  # the rest is padding
        if addressing != packet.ETHERNET_IPV4:
            counters[Counters.not_ethernet_ipv4] += 1
        elif operation not in (packet.REQUEST, packet.REPLY):
            counters[Counters.unknown_operation] += 1
        elif sender_mac == self._mac:
            counters[Counters.own_packet] += 1
        elif not packet.is_station(sender_mac):
            counters[Counters.bad_sender_mac] += 1
        elif sender in self._own:
            counters[Counters.conflict] += 1
            self._defend(sender, now, sends)
        else:
            asks_us = operation == packet.REQUEST and target in self._own
            if sender == packet.ADDRESS_ZERO:
                # RFC 5227 section 2.1.1: a probe, by somebody who wants to know whether the address is free.
                counters[Counters.probes] += asks_us
            elif self._is_neighbor(sender):
                self._merge(sender, sender_mac, asks_us, now, sends)
            else:
                counters[Counters.bad_sender_address] += 1
                return
            if asks_us:
                counters[Counters.replies_sent] += 1
                sends.append((LINK, ARP_OUT, sender_mac + packet.reply(self._mac, target, sender_mac, sender)))

    def _merge(self, address: bytes, mac: bytes, asks_us: bool, now: float, sends: list[Send]) -> None:
        """RFC 826, packet reception: update the sender's entry, whomever the packet is for; add one if it is for us.

        As in Linux (arp_accept=0), a reply that nobody asked for adds nothing: it would be too easy to lie.
        """
        counters = self.counters
        if self._end_resolution(address):
            counters[Counters.resolved] += 1
        else:
            known = self._neighbors.get(address, now)
            if known is not None and known[0] == mac:
                # RFC 1122 section 2.3.2.1 (1): the timeout starts anew whenever the sender is seen.
                self._neighbors.confirm(address, mac, now)
                return
            if known is None and not (asks_us and self._on_link(address)):
                return
            if not self._learning.allow(now):
                counters[Counters.learn_limited] += 1
                return
            counters[Counters.learnt if known is None else Counters.changed] += 1
        counters[Counters.evicted] += self._neighbors.confirm(address, mac, now)
        sends.append((IP, NEIGHBOR, address + mac))

    def _defend(self, address: bytes, now: float, sends: list[Send]) -> None:
        # RFC 5227 section 2.4 (c): the address is ours by configuration and is not given up; announce it, but not more
        # often than every DEFEND_INTERVAL_S, or two defenders would shout at each other for ever.
        if now < self._may_defend:
            return
        self._may_defend = now + DEFEND_INTERVAL_S
        self.counters[Counters.defences_sent] += 1
        sends.append((LINK, ARP_OUT, packet.MAC_BROADCAST + packet.announcement(self._mac, address)))

    # Helpers

    def _is_neighbor(self, address: bytes) -> bool:
        """True for an address of one other host: not of 0/8, loopback, multicast, class E, ours, a broadcast."""
        first = address[0]
        if first in (0, 127) or first >= 224 or address in self._own:
            return False
        number = int.from_bytes(address, "big")
        hosts = ~self._mask & ALL_ONES
        # RFC 3021: a network of two addresses (/31) has no broadcast address.
        return hosts <= 1 or number & self._mask != self._network or 0 < number & hosts < hosts

    def _on_link(self, address: bytes) -> bool:
        return int.from_bytes(address, "big") & self._mask == self._network

    def _announce_all(self, now: float) -> list[Send]:
        return [(IP, NEIGHBOR, address + mac) for address, mac in self._neighbors.valid(now)]

    def _set_wake(self) -> None:
        resolutions = self._resolutions
        self.next_wake = resolutions[next(iter(resolutions))][0] if resolutions else None
