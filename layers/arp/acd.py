"""Address conflict detection (RFC 5227) for the stack's own addresses: probing, announcing, conflicts.

A new address is used at once. RFC 5227 section 2.1 demands probing for six seconds first; but this stack boots in a
fraction of one, and a configured address would not be given up anyway (section 2.4 (c)). So the probes are sent while
the address is in use, and a conflict is reported to the user and the address is defended, whenever a conflict is
noticed.

Everything is in durable state: a restart continues where its predecessor stopped, and neither probes again nor defends
early.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from struct import Struct

from bus.layer import CounterWords, Send, State
from bus.messages import ARP_OUT, NOTICES, Notice, encode
from bus.topology import KEEPER, LINK
from layers.arp.counters import Counters
from layers.common import source_address
from layers.common.routes import links_of
from packets import arp
from packets.addresses import IPV4_OCTETS, is_host, is_loopback, is_unicast

OWN_KEY = 0  # in state

# RFC 5227 section 1.1
PROBE_WAIT_S = 1.0
PROBE_NUM = 3
PROBE_MIN_S = 1.0
PROBE_MAX_S = 2.0
ANNOUNCE_WAIT_S = 2.0
ANNOUNCE_NUM = 2
ANNOUNCE_INTERVAL_S = 2.0
DEFEND_INTERVAL_S = 10.0

SETTLED = PROBE_NUM + ANNOUNCE_NUM  # steps of a new address until it is probed and announced
CONFLICT_OVER_S = 300.0  # without another packet from the rival; a host in use sends ARP packets about once a minute

# address, prefix length, finished steps, rival's MAC (zero: none), time when the rival was last recorded
_CLAIM = Struct("<4sBB6sd")


class Claim:
    """One own address. `due`: time of its next step, or of the end of its conflict; None: nothing to do."""

    __slots__ = ("address", "due", "prefix", "rival", "seen", "steps")

    def __init__(self, address: bytes, prefix: int, steps: int = 0, rival: bytes = arp.MAC_ZERO,
                 seen: float = 0.0) -> None:
        self.address = address
        self.prefix = prefix
        self.steps = steps
        self.rival = rival
        self.seen = seen
        self.due: float | None = None

    @property
    def contested(self) -> bool:
        """True if another host claims the address."""
        return self.rival != arp.MAC_ZERO

    @property
    def on_trial(self) -> bool:
        """RFC 5227 section 2.1.1: True from the beginning of the probing until ANNOUNCE_WAIT after the last probe."""
        return self.steps <= PROBE_NUM


class Claims:
    """The own addresses, in the order in which ip announced them."""

    next_wake: float | None

    def __init__(self, mac: bytes, state: State, counters: CounterWords, rng: random.Random) -> None:
        self.by_address: dict[bytes, Claim] = {}
        self.next_wake = None
        self._mac = mac
        self._state = state
        self._counters = counters
        self._rng = rng
        self._links = links_of([])

    def start(self, configured: tuple[bytes, int], now: float) -> list[Send]:
        """Restore the state of a former process; without one, use the configured address until ip announces others."""
        stored = self._state.get(OWN_KEY)
        claims = _unpacked(stored) if stored is not None else None
        if claims is None:
            self.set([configured], now)
        else:
            self._adopt(claims, now)
        return [self._notices()]

    def set(self, addresses: Iterable[tuple[bytes, int]], now: float) -> list[Send]:
        """Replace the own addresses; new ones will be probed. ValueError: not addresses."""
        wanted = {}
        for address, prefix in links_of(list(addresses)).announced.addresses:
            # ARP is for IPv4 only. RFC 1122 section 3.2.1.3 (g): loopback addresses are on no link
            if len(address) == IPV4_OCTETS and not is_loopback(address):
                wanted[address] = claim = self.by_address.get(address) or Claim(address, prefix)
                claim.prefix = prefix
        contested = self._contested()
        self._adopt(wanted.values(), now)
        self._store()
        return [self._notices()] if self._contested() != contested else []

    def _adopt(self, claims: Iterable[Claim], now: float) -> None:
        self.by_address = {claim.address: claim for claim in claims}
        self._links = links_of([(claim.address, claim.prefix) for claim in self.by_address.values()])
        for claim in self.by_address.values():
            if claim.due is None:
                self._schedule(claim, now)
        self._set_wake()

    # Questions

    def source_for(self, target: bytes) -> bytes:
        """The sender address of a request for `target`: an own address in its network, else the first; zero without
        any."""
        return source_address.of_link(target, self._links) or arp.ADDRESS_ZERO

    def on_link(self, address: bytes) -> bool:
        """True if an own network contains the address."""
        return self._links.lookup(address) is not None

    def may_be_neighbor(self, address: bytes) -> bool:
        """True for the address of another single host: not 0/8, loopback, multicast, class E, an own or a broadcast
        address."""
        if not is_unicast(address) or address in self.by_address:
            return False
        link = self._links.lookup(address)
        return link is None or is_host(address, link.prefix)

    # Probing and conflicts

    def wake(self, now: float) -> list[Send]:
        """Take the steps that are due."""
        sends: list[Send] = []
        if self.next_wake is None or now < self.next_wake:
            return sends
        for claim in self.by_address.values():
            if claim.due is None or claim.due > now:
                continue
            if claim.contested:
                claim.rival = arp.MAC_ZERO
                sends.append(self._notices())
            elif claim.steps < PROBE_NUM:
                self._counters[Counters.probes_sent] += 1
                sends.append((LINK, ARP_OUT, arp.MAC_BROADCAST + arp.probe(self._mac, claim.address)))
                claim.steps += 1
            else:
                self._counters[Counters.announcements_sent] += 1
                sends.append(self._announcement(claim))
                claim.steps += 1
            self._schedule(claim, now)
        self._store()
        self._set_wake()
        return sends

    def contest(self, claim: Claim, mac: bytes, now: float) -> list[Send]:
        """Another host claims an own address: report it, and defend the address at most once per DEFEND_INTERVAL_S."""
        # RFC 5227 section 2.4 (c): announce once, "record the time", and not again while that is recent, because two
        # defending hosts would otherwise send announcements for ever. The same interval limits reports.
        if claim.contested and now - claim.seen < DEFEND_INTERVAL_S:
            return []
        news = claim.rival != mac
        claim.rival = mac
        claim.seen = now
        claim.steps = SETTLED  # the probes have served their purpose, and the defence is an announcement
        self._schedule(claim, now)
        self._store()
        self._set_wake()
        self._counters[Counters.defences_sent] += 1
        sends = [self._announcement(claim)]
        if news:
            sends.append(self._notices())
        return sends

    def _announcement(self, claim: Claim) -> Send:
        return LINK, ARP_OUT, arp.MAC_BROADCAST + arp.announcement(self._mac, claim.address)

    def _schedule(self, claim: Claim, now: float) -> None:
        """Set the time of the next step of `claim`, whose previous step was taken now."""
        if claim.contested:
            claim.due = min(now, claim.seen) + CONFLICT_OVER_S
        # RFC 5227 section 2.1.1: hosts that are switched on together must not all probe at the same time
        elif claim.steps == 0:
            claim.due = now + self._rng.uniform(0, PROBE_WAIT_S)
        elif claim.steps < PROBE_NUM:
            claim.due = now + self._rng.uniform(PROBE_MIN_S, PROBE_MAX_S)
        elif claim.steps == PROBE_NUM:
            claim.due = now + ANNOUNCE_WAIT_S
        elif claim.steps < SETTLED:  # RFC 5227 section 2.3
            claim.due = now + ANNOUNCE_INTERVAL_S
        else:  # RFC 5227 section 2.1: MUST NOT probe periodically
            claim.due = None

    def _contested(self) -> list[Claim]:
        return [claim for claim in self.by_address.values() if claim.contested]

    def _notices(self) -> Send:
        notices = []
        for claim in self._contested():
            address, mac = arp.dotted(claim.address), claim.rival.hex(":")
            notices.append(Notice("conflict", f"{mac} claims the stack's address {address}",
                                  (("address", address), ("mac", mac))))
        return KEEPER, NOTICES, encode(notices)

    def _store(self) -> None:
        self._state[OWN_KEY] = b"".join(
            _CLAIM.pack(claim.address, claim.prefix, claim.steps, claim.rival, claim.seen)
            for claim in self.by_address.values())

    def _set_wake(self) -> None:
        self.next_wake = min((claim.due for claim in self.by_address.values() if claim.due is not None), default=None)


def _unpacked(stored: bytes) -> list[Claim] | None:
    """A stored claim; None: not valid."""
    if len(stored) % _CLAIM.size:
        return None
    claims = [Claim(*fields) for fields in _CLAIM.iter_unpack(stored)]
    try:
        links_of([(claim.address, claim.prefix) for claim in claims])
    except ValueError:
        return None
    return claims
