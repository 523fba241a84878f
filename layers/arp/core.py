"""ARP (RFC 826): resolves the MAC of a neighbour for ip, and answers for the stack's own addresses.

Owns the neighbour table; ip holds a copy of it, and the packets that wait for a resolution. ip sends RESOLVE for an
address that it does not know, and from time to time for one that it keeps using; each request is answered by NEIGHBOR
or UNREACHABLE. arp announces neighbours that it learns otherwise to ip, and sends FORGET when the user deletes one. ip
sends the own addresses in ROUTES; layers/arp/acd.py probes and defends them.

A crash loses the pending resolutions: ip asks again when it sees that arp has started. Everything else is stored.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import repeat

from bus.config import StackConfig
from bus.layer import CounterWords, Send, State
from bus.messages import ARP_IN, ARP_OUT, FORGET, NEIGHBOR, RESOLVE, ROUTES, UNREACHABLE, decode_routes
from bus.topology import IP, LINK
from layers.arp.acd import Claims
from layers.arp.counters import Counters
from layers.arp.tables import ORDER_KEY, Neighbors
from layers.common.rate_limit import TokenBucket
from packets import arp
from packets.addresses import IPV4_OCTETS

FRESH_S = 20.0  # a neighbour confirmed within this time is not verified again; shorter than ip's interval, about 30 s
RETRY_S = 1.0  # RFC 1122 section 2.3.2.1: at most one request per second and destination
BROADCAST_TRIES = 3  # Linux: net.ipv4.neigh.default.mcast_solicit
UNICAST_TRIES = 2  # RFC 1122 section 2.3.2.1: delete the entry after N polls without a reply, "typically N is 2"
MAX_UNKNOWN = 1024  # pending resolutions of unknown addresses; verifications are limited by the number of neighbours
LEARN_PER_SECOND = 200  # unsolicited changes: limits the cost of a flood with invented senders for ip and the state
LEARN_BURST = 256  # as many as the hosts of a /24 that all send a request at once
# Resolutions that take their next step in one turn, less than 1 ms. ip has an error to send about up to 64 packets for
# each that ends without an answer (layers/ip/neighbors.py), and they leave in one frame
STEPS_AT_ONCE = 16
LIST_PAGE = 256  # neighbours per answer: a message to the keeper must fit into a packet of the control channel


class Core:
    """See bus.layer.Core. Addresses and MACs are octets here, as in the packets."""

    next_wake: float | None

    def __init__(self, config: StackConfig, state: State, counters: CounterWords, rng: random.Random) -> None:
        self.next_wake = None
        self.counters = counters
        self._mac = config.mac
        self._state = state
        self._configured = config.address, config.prefix
        self._claims = Claims(config.mac, state, counters, rng)
        self._neighbors = Neighbors(state)
        # {address: (time of the next step, MACs still to be asked, whether the address is unknown)} of pending
        # resolutions. All steps are RETRY_S apart, so the order of insertion is the order in time, and the first is the
        # next.
        self._resolutions: OrderedDict[bytes, tuple[float, Iterator[bytes], bool]] = OrderedDict()
        self._unknown = 0  # number of resolutions of unknown addresses
        self._learning = TokenBucket(LEARN_PER_SECOND, LEARN_BURST)

    def start(self, now: float) -> list[Send]:
        """Send ip the neighbours that a former process knew."""
        sends = self._claims.start(self._configured, now)
        self._neighbors.load(now)
        self.counters[Counters.reloaded] += len(self._neighbors)
        self._set_wake()
        return sends + self._announce_all(now)

    def neighbor_started(self, sender: int, now: float) -> list[Send]:
        """A new process of ip has no copy of the neighbours yet."""
        return self._announce_all(now) if sender == IP else []

    def receive(self, sender: int, kind: int, records: list[bytes], now: float) -> list[Send]:
        """Process ARP packets from link, and requests and own addresses from ip."""
        sends: list[Send] = []
        if kind == ARP_IN:
            self.counters[Counters.received] += len(records)
            for record in records:
                self._packet_in(record, now, sends)
        elif kind == RESOLVE:
            for record in records:
                self._resolve(record, now, sends)
        elif kind == ROUTES:
            for record in records:
                self._set_own(record, now, sends)
        self._set_wake()
        return sends

    def wake(self, now: float) -> list[Send]:
        """Take the next steps of own addresses and of some unanswered resolutions."""
        sends = self._claims.wake(now)
        resolutions = self._resolutions
        for _ in range(min(STEPS_AT_ONCE, len(resolutions))):
            address = next(iter(resolutions))
            due, targets, unknown = resolutions[address]
            if due > now:
                break
            self._step(address, targets, unknown, now, sends)
        self._set_wake()
        return sends

    # Requests of ip

    def _resolve(self, address: bytes, now: float, sends: list[Send]) -> None:
        counters = self.counters
        if len(address) != IPV4_OCTETS:
            counters[Counters.resolve_malformed] += 1
            return
        known = self._neighbors.get(address, now)
        if known is not None:
            mac, age_s = known
            sends.append((IP, NEIGHBOR, address + mac))
            if age_s < FRESH_S or address in self._resolutions:
                return
            # RFC 1122 section 2.3.2.1 (2), unicast poll: ask the neighbour itself first, then broadcast.
            targets = iter([mac] * UNICAST_TRIES + [arp.MAC_BROADCAST] * BROADCAST_TRIES)
        elif address in self._resolutions:
            return  # a resolution is pending, and its answer follows
        elif not self._claims.may_be_neighbor(address):
            counters[Counters.resolve_malformed] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        elif self._unknown >= MAX_UNKNOWN:
            # Refuse the newest instead of giving up the oldest: a new request for that one would exceed one per second.
            counters[Counters.resolve_refused] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        else:
            self._unknown += 1
            targets = repeat(arp.MAC_BROADCAST, BROADCAST_TRIES)
        self._step(address, targets, known is None, now, sends)

    def _step(self, address: bytes, targets: Iterator[bytes], unknown: bool, now: float, sends: list[Send]) -> None:
        """Send a request for `address` to the next of `targets`; if there is none left, the address is unreachable."""
        target = next(targets, None)
        if target is None:
            self._end_resolution(address)
            self._neighbors.forget(address)
            self.counters[Counters.unanswered] += 1
            sends.append((IP, UNREACHABLE, address))
            return
        # RFC 1122 section 2.3.2.1: no second request for `address` within RETRY_S. A failed resolution ends RETRY_S
        # after its last request, and a successful one leaves a fresh entry, so this also holds between resolutions.
        self._resolutions[address] = now + RETRY_S, targets, unknown
        self._resolutions.move_to_end(address)
        self.counters[Counters.requests_sent] += 1
        request = arp.request(self._mac, self._claims.source_for(address), address)
        sends.append((LINK, ARP_OUT, target + request))

    def _end_resolution(self, address: bytes) -> bool:
        resolution = self._resolutions.pop(address, None)
        if resolution is None:
            return False
        self._unknown -= resolution[2]
        return True

    def _set_own(self, record: bytes, now: float, sends: list[Send]) -> None:
        claims = self._claims
        try:
            sends += claims.set(decode_routes(record).addresses, now)
        except ValueError:
            self.counters[Counters.routes_malformed] += 1
            return
        for address in claims.by_address:
            self._neighbors.forget(address)  # its former MAC is no longer valid

    # Packets from link

    def _packet_in(self, octets: bytes, now: float, sends: list[Send]) -> None:
        counters, own = self.counters, self._claims.by_address
        if len(octets) < arp.PACKET_OCTETS:
            counters[Counters.too_short] += 1
            return
        # octets beyond are padding
        addressing, operation, sender_mac, sender, _, target = arp.PACKET.unpack_from(octets)
        if addressing not in (arp.ETHERNET_IPV4, arp.IEEE802_IPV4):
            counters[Counters.not_ethernet_ipv4] += 1
        elif operation not in (arp.REQUEST, arp.REPLY):
            counters[Counters.unknown_operation] += 1
        elif sender_mac == self._mac:
            counters[Counters.own_packet] += 1
        elif not arp.is_station(sender_mac):
            counters[Counters.bad_sender_mac] += 1
        elif sender in own:
            counters[Counters.conflict] += 1
            sends += self._claims.contest(own[sender], sender_mac, now)
        else:
            asks_us = operation == arp.REQUEST and target in own
            if sender == arp.ADDRESS_ZERO:
                # RFC 5227 section 2.1.1: a probe of a host that wants to know if the address is free. If arp is probing
                # for the same address, two hosts are about to use it, which is a conflict.
                counters[Counters.probes] += asks_us
                if asks_us and own[target].on_trial:
                    sends += self._claims.contest(own[target], sender_mac, now)
            elif self._claims.may_be_neighbor(sender):
                self._merge(sender, sender_mac, asks_us, now, sends)
            else:
                counters[Counters.bad_sender_address] += 1
                return
            if asks_us:
                counters[Counters.replies_sent] += 1
                sends.append((LINK, ARP_OUT, sender_mac + arp.reply(self._mac, target, sender_mac, sender)))

    def _merge(self, address: bytes, mac: bytes, asks_us: bool, now: float, sends: list[Send]) -> None:
        """RFC 826, packet reception: update the sender's entry, whatever the target; add one if the packet is to an own
        address.

        As on Linux (arp_accept=0), an unsolicited reply adds nothing, because it is easily forged.
        """
        counters = self.counters
        permanent = self._neighbors.permanent.get(address)
        if permanent is not None:
            counters[Counters.permanent_kept] += permanent != mac
            return
        if self._end_resolution(address):
            counters[Counters.resolved] += 1
        else:
            known = self._neighbors.get(address, now)
            if known is not None and known[0] == mac:
                # RFC 1122 section 2.3.2.1 (1): restart the timeout whenever a packet of the sender arrives.
                self._neighbors.confirm(address, mac, now)
                return
            if known is None and not (asks_us and self._claims.on_link(address)):
                return
            if not self._learning.allow(now):
                counters[Counters.learn_limited] += 1
                return
            counters[Counters.learnt if known is None else Counters.changed] += 1
        counters[Counters.evicted] += self._neighbors.confirm(address, mac, now)
        sends.append((IP, NEIGHBOR, address + mac))

    # Requests of the command line

    def manage(self, request: dict[str, object], now: float) -> tuple[dict[str, object], list[Send]]:
        """neighbor_list, neighbor_add, neighbor_del, neighbor_flush; see layers/arp/README.md."""
        orders = {"neighbor_list": self._list, "neighbor_add": self._add, "neighbor_del": self._delete,
                  "neighbor_flush": self._flush}
        order = orders.get(str(request.get("op")))
        sends: list[Send] = []
        try:
            if order is None:
                raise ValueError(f"arp: unknown operation {request.get('op')!r}")
            answer = order(request, now, sends)
        except ValueError as error:
            answer = {"error": str(error)}
        self._set_wake()
        return answer, sends

    def _list(self, request: dict[str, object], now: float, sends: list[Send]) -> dict[str, object]:
        """A page of neighbours, with addresses above `after`."""
        after = _address(request, "after") if "after" in request else arp.ADDRESS_ZERO
        rows: dict[bytes, tuple[str, str, float | None]] = {
            address: (mac.hex(":"), "permanent", None) for address, mac in self._neighbors.permanent.items()}
        for address, mac, age_s in self._neighbors.learnt(now):
            state = "reachable" if age_s < FRESH_S else "probing" if address in self._resolutions else "stale"
            rows[address] = mac.hex(":"), state, round(age_s, 3)
        for address, (_, _, unknown) in self._resolutions.items():
            if unknown:
                rows[address] = "", "incomplete", None
        above = sorted(address for address in rows if address > after)
        page = [dict(zip(("address", "mac", "state", "age_s"), (arp.dotted(address), *rows[address]), strict=True))
                for address in above[:LIST_PAGE]]
        return {"neighbors": page, "more": len(above) > LIST_PAGE}

    def _add(self, request: dict[str, object], now: float, sends: list[Send]) -> dict[str, object]:
        """Add a permanent neighbour, which neither packets nor ageing change."""
        address, mac = _address(request), _mac(request)
        if address in self._claims.by_address:
            raise ValueError(f"{arp.dotted(address)} is an address of this stack")
        if not self._claims.may_be_neighbor(address):
            raise ValueError(f"{arp.dotted(address)} is not the address of a single host")
        if not arp.is_station(mac):
            raise ValueError(f"{mac.hex(':')} is not the address of a single station")
        self._neighbors.set_permanent(address, mac)
        self._end_resolution(address)
        self.counters[Counters.managed] += 1
        sends.append((IP, NEIGHBOR, address + mac))
        return {}

    def _delete(self, request: dict[str, object], now: float, sends: list[Send]) -> dict[str, object]:
        address, order = _address(request), str(request.get("order", "")).encode()
        if self._neighbors.get(address, now) is not None:
            # before: if arp dies now, the request is repeated and finds nothing to delete
            self._state[ORDER_KEY] = order
        elif not order or self._state.get(ORDER_KEY) != order:
            raise ValueError(f"no neighbour {arp.dotted(address)} is known")
        self._drop(address, sends)
        return {}

    def _flush(self, request: dict[str, object], now: float, sends: list[Send]) -> dict[str, object]:
        """Delete all neighbours except the permanent ones."""
        addresses = [address for address, _, _ in self._neighbors.learnt(now)]
        for address in addresses:
            self._drop(address, sends)
        return {"deleted": len(addresses)}

    def _drop(self, address: bytes, sends: list[Send]) -> None:
        """Delete the neighbour; ip resolves it again if necessary."""
        self._neighbors.forget(address)
        resolution = self._resolutions.get(address)
        if resolution is not None:  # it was being verified: ask by broadcast from now on, not at the old MAC
            due, _, unknown = resolution
            self._resolutions[address] = due, repeat(arp.MAC_BROADCAST, BROADCAST_TRIES), unknown
        self.counters[Counters.managed] += 1
        sends.append((IP, FORGET, address))

    # Helpers

    def _announce_all(self, now: float) -> list[Send]:
        return [(IP, NEIGHBOR, address + mac) for address, mac in self._neighbors.valid(now)]

    def _set_wake(self) -> None:
        resolutions, claims_wake = self._resolutions, self._claims.next_wake
        if not resolutions:
            self.next_wake = claims_wake
            return
        wake = resolutions[next(iter(resolutions))][0]
        self.next_wake = wake if claims_wake is None or wake < claims_wake else claims_wake


def _address(request: dict[str, object], field: str = "address") -> bytes:
    """The address of a request as octets. ValueError: not an IPv4 address."""
    return IPv4Address(str(request.get(field))).packed


def _mac(request: dict[str, object]) -> bytes:
    """The MAC of a request, six pairs of hexadecimal digits, as octets. ValueError: not a MAC."""
    text = str(request.get("mac"))
    try:
        octets = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        octets = b""
    if len(octets) != 6:
        raise ValueError(f"{text!r} is not a MAC address")
    return octets
