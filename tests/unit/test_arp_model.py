"""The neighbour cache, against a model that keeps what was seen in dicts, with crashes in between."""

from __future__ import annotations

from arp_host import OTHER_MAC, OUR, PEER_MAC, Host, colons, ip4, reply, request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.layers.l2 import ARP

from bus.messages import ARP_OUT, FORGET, NEIGHBOR, UNREACHABLE
from bus.topology import IP
from layers.arp.core import BROADCAST_TRIES, FRESH_S, RETRY_S, UNICAST_TRIES
from layers.arp.tables import ARP_TIMEOUT_S, CONFIRM_STEP_S

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.9", "10.0.0.10"])
MACS = st.sampled_from([PEER_MAC, OTHER_MAC])
ELSEWHERE = "10.0.0.200"


class Quest:
    """A neighbour is being asked for."""

    def __init__(self, now: float, tries: int, unknown: bool) -> None:
        self.due, self.left, self.unknown = now + RETRY_S, tries - 1, unknown


class NeighborsAgainstAModel(RuleBasedStateMachine):
    """Whatever is heard, asked and ordered: a person sees what the model says, and ip's copy is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host()
        self.learnt: dict[str, tuple[bytes, float]] = {}  # MAC, when it was seen
        self.permanent: dict[str, bytes] = {}
        self.quests: dict[str, Quest] = {}
        self.copy: dict[bytes, bytes] = {}  # ip's
        self.asked: dict[str, float] = {}

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(address=ADDRESSES, mac=MACS, wanted=st.sampled_from([OUR, ELSEWHERE]))
    def a_request_comes(self, address, mac, wanted):
        self.take(self.host.hears(request(mac, address, wanted)))
        self.see(address, mac, adds=wanted == OUR)

    @rule(address=ADDRESSES, mac=MACS)
    def a_reply_comes(self, address, mac):
        self.take(self.host.hears(reply(mac, address)))
        self.see(address, mac, adds=False)  # as on Linux: unless it was asked for

    @rule(address=ADDRESSES)
    def ip_asks(self, address):
        answers = self.take(self.host.resolves(address))
        mac = self.mac(address)
        assert answers == ([] if mac is None else [(NEIGHBOR, ip4(address) + mac)])
        if address in self.quests or address in self.permanent:
            return
        if mac is None:
            self.quests[address] = Quest(self.now, BROADCAST_TRIES, unknown=True)
        elif self.now - self.learnt[address][1] >= FRESH_S:
            self.quests[address] = Quest(self.now, UNICAST_TRIES + BROADCAST_TRIES, unknown=False)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, FRESH_S, ARP_TIMEOUT_S]))
    def time_passes(self, seconds):
        end = self.now + seconds
        told = []
        while self.host.core.next_wake is not None and self.host.core.next_wake <= end:
            told += self.take([send for _, send in self.host.passes(self.host.core.next_wake - self.now)])
        self.host.passes(end - self.now)
        assert sorted(told) == sorted((UNREACHABLE, ip4(address)) for address in self.quests_end(end))

    @rule(address=ADDRESSES, mac=MACS, deleted=st.booleans(), before=st.sampled_from([0.0, 1.0, 2.0]),
          after=st.sampled_from([0.0, 1.0, 3.0, 4.0, 5.0]))
    def a_neighbour_is_asked_again_when_it_was_silent_for_a_while(self, address, mac, deleted, before, after):
        self.a_request_comes(address, mac, OUR)
        self.time_passes(FRESH_S)
        self.ip_asks(address)
        self.time_passes(before)
        if deleted:
            self.a_person_deletes(address)
        self.time_passes(after)

    @rule(address=ADDRESSES, mac=MACS)
    def a_person_adds(self, address, mac):
        answer, sends = self.host.manage("add", address=address, mac=colons(mac))
        assert answer == {}
        self.take(sends)
        self.permanent[address] = mac
        self.learnt.pop(address, None)
        self.quests.pop(address, None)

    @rule(address=ADDRESSES)
    def a_person_deletes(self, address):
        there = self.mac(address) is not None
        answer, sends = self.host.manage("del", address=address)
        assert ("error" in answer) is not there
        self.take(sends)
        if there:
            self.drop(address)

    @rule()
    def a_person_flushes(self):
        doomed = [address for address in self.learnt if self.mac(address) is not None]
        answer, sends = self.host.manage("flush")
        assert answer == {"deleted": len(doomed)}
        self.take(sends)
        for address in doomed:
            self.drop(address)

    @rule()
    def arp_crashes(self):
        self.host.boots()
        self.take(self.host.announced)
        self.quests.clear()
        self.asked.clear()

    # -- the model -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.host.now

    def mac(self, address: str) -> bytes | None:
        """RFC 1122 section 2.3.2.1: what was not seen for a minute is not known."""
        if address in self.permanent:
            return self.permanent[address]
        mac, seen = self.learnt.get(address, (b"", -ARP_TIMEOUT_S))
        return mac if self.now - seen < ARP_TIMEOUT_S else None

    def see(self, address: str, mac: bytes, adds: bool) -> None:
        """RFC 826: what is known is updated; `adds`: what is not is added. What was sought is found."""
        if address in self.permanent:
            return
        known = self.mac(address)
        sought = self.quests.pop(address, None)
        if known is not None or sought or adds:
            new = known != mac or self.now - self.learnt[address][1] >= CONFIRM_STEP_S
            self.learnt[address] = (mac, self.now) if new else self.learnt[address]

    def drop(self, address: str) -> None:
        self.permanent.pop(address, None)
        self.learnt.pop(address, None)
        self.asked.pop(address, None)  # after a deletion by hand it may be asked for at once
        if address in self.quests:
            self.quests[address].left = BROADCAST_TRIES

    def quests_end(self, end: float) -> list[str]:
        """The neighbours that did not answer until `end`, and are forgotten."""
        lost = []
        for address, quest in list(self.quests.items()):
            while quest.due <= end and quest.left >= 0:
                quest.due, quest.left = quest.due + RETRY_S, quest.left - 1
            if quest.left < 0:
                lost.append(address)
                del self.quests[address]
                self.learnt.pop(address, None)
        return lost

    def take(self, sends: list) -> list:
        """Keep ip's copy, and an eye on the requests; what ip was told."""
        told = [(kind, record) for consumer, kind, record in sends if consumer == IP]
        for kind, record in told:
            if kind == NEIGHBOR:
                self.copy[record[:4]] = record[4:]
            else:
                assert kind in (UNREACHABLE, FORGET)
                self.copy.pop(record, None)
        for _, kind, record in sends:
            asks = ARP(record[6:]) if kind == ARP_OUT else None
            if asks is not None and asks.op == 1:  # RFC 1122 section 2.3.2.1: one per second and destination at most
                assert self.now - self.asked.get(asks.pdst, 0.0) >= RETRY_S
                self.asked[asks.pdst] = self.now
        return told

    # -- both ------------------------------------------------------------------------------------------------------

    @invariant()
    def a_person_sees_what_the_model_says(self):
        states = dict.fromkeys(self.permanent, "permanent")
        for address, (_, seen) in self.learnt.items():
            if self.now - seen < FRESH_S:
                states[address] = "reachable"
            elif self.mac(address) is not None:
                states[address] = "probing" if address in self.quests else "stale"
        states |= {address: "incomplete" for address, quest in self.quests.items() if quest.unknown}
        assert self.host.listed() == states

    @invariant()
    def ip_knows_what_arp_knows(self):
        for address in {*self.learnt, *self.permanent}:
            mac = self.mac(address)
            assert mac in (None, self.copy.get(ip4(address)))
            assert self.host.knows(address) == mac


TestNeighborsAgainstAModel = NeighborsAgainstAModel.TestCase
TestNeighborsAgainstAModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
