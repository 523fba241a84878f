"""Layers glued together in memory, with a clock that the test moves: no bus, no process, no sleep.

The cores are the real ones, joined as `bus.topology` says; the test is the socket service and the device.
"""

from __future__ import annotations

import importlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from itertools import groupby

import records

from bus import messages, topology
from bus.config import StackConfig
from bus.layer import Send
from bus.messages import (
    DATAGRAM_HEADER,
    SocketError,
    SocketReply,
    SocketState,
    datagram_header,
    decode_socket_reply,
    encode,
)

GLUED = ("link", "arp", "ip", "icmp", "udp", "tcp")
SETTLED_AFTER_S = 10.0  # RFC 5227 section 1.1: by then our address has been probed for and announced
ALLOWED = {(topology.LAYERS[pipe.producer], topology.LAYERS[pipe.consumer]): pipe.kinds for pipe in topology.PIPES}


def ip4(address: str) -> bytes:
    return IPv4Address(address).packed


class Stack:
    """One stack. `frames` has what it sent to the device, `told` what it told the socket service."""

    def __init__(self, address: str, mac: str, gateway: str = "", seed: int = 0, **settings) -> None:
        self.config = StackConfig(name="t", run_dir="", address=IPv4Address(address).packed, prefix=24, mtu=1500,
                                  gateway=IPv4Address(gateway).packed if gateway else b"",
                                  mac=bytes.fromhex(mac.replace(":", "")), **settings)
        self.address, self.mac = address, mac
        self.now = 1000.0
        self.frames: list[bytes] = []
        self.told: list[tuple[int, int, bytes]] = []  # sender, kind, record
        self.notices = encode([])  # what people should know
        self._random = random.Random(seed)
        self._under_way: deque[tuple[int, Send]] = deque()
        self._counters = {}
        self._declared = {}
        self._states: dict[str, dict[int, bytes]] = {}
        self._cores = {}
        for layer in GLUED:
            self._declared[layer] = importlib.import_module(f"layers.{layer}.counters").Counters
            self._counters[layer] = self._declared[layer].new()
            self._states[layer] = {}
            self._make(layer)
        for layer in GLUED:
            self._start(layer)
        self._run()
        self.passes(SETTLED_AFTER_S)
        self.frames.clear()

    def _make(self, layer: str) -> None:
        core = importlib.import_module(f"layers.{layer}.core").Core
        self._cores[topology.LAYERS[layer]] = core(
            self.config, self._states[layer], self._counters[layer], self._random
        )

    def _start(self, layer: str) -> None:
        number = topology.LAYERS[layer]
        self._take(number, self._cores[number].start(self.now))

    # -- time and crashes ----------------------------------------------------------------------------------------

    def crash(self, layer: str) -> None:
        """The layer dies between two records and starts again; its neighbours are told."""
        self._make(layer)
        self._start(layer)
        number = topology.LAYERS[layer]
        for neighbor in topology.outputs(layer):
            if neighbor in GLUED:
                core = self._cores[topology.LAYERS[neighbor]]
                self._take(topology.LAYERS[neighbor], core.neighbor_started(number, self.now))
        self._run()

    def passes(self, seconds: float) -> None:
        """Let time pass, waking each core when it asked for it."""
        end = self.now + seconds
        while True:
            due = [core.next_wake for core in self._cores.values() if core.next_wake is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            for number, core in self._cores.items():
                if core.next_wake is not None and core.next_wake <= self.now:
                    self._take(number, core.wake(self.now))
            self._run()
        self.now = end

    # -- records -------------------------------------------------------------------------------------------------

    def _take(self, sender: int, sends: Iterable[Send]) -> None:
        self._under_way += [(sender, send) for send in sends]

    def _run(self) -> None:
        """Hand on what is under way until nothing is; records that follow each other arrive together, as on the bus."""
        while self._under_way:
            batch, self._under_way = self._under_way, deque()
            for (sender, consumer, kind), run in groupby(batch, lambda one: (one[0], *one[1][:2])):
                records = [send[2] for _, send in run]
                if consumer == topology.DEVICE:
                    assert (sender, kind) == (topology.LINK, messages.ETHERNET)
                    self.frames += records
                    continue
                if consumer == topology.KEEPER:
                    assert kind == messages.NOTICES
                    self.notices = records[-1]
                    continue
                assert kind in ALLOWED[sender, consumer], (sender, consumer, messages.KIND_NAMES[kind])
                if consumer == topology.SOCKETS:
                    self.told += [(sender, kind, record) for record in records]
                else:
                    self._take(consumer, self._cores[consumer].receive(sender, kind, records, self.now))

    def takes(self, frames: list[bytes]) -> None:
        """Frames come in from the device."""
        self._take(
            topology.LINK, self._cores[topology.LINK].receive(topology.DEVICE, messages.ETHERNET, frames, self.now)
        )
        self._run()

    def hears(self, *frames: object) -> list[bytes]:
        """Frames come in from the device; the frames that go out thereupon."""
        self.takes([bytes(frame) for frame in frames])
        return self.sent()

    def sent(self) -> list[bytes]:
        """The frames that were sent and not yet taken away."""
        frames, self.frames = self.frames, []
        return frames

    def counted(self, layer: str) -> dict[str, int]:
        """The counters of a layer that are not zero."""
        return {name: count for name, count in self._declared[layer].read(self._counters[layer]).items() if count}

    def dropped(self, layer: str) -> dict[str, int]:
        """Those of them that count drops."""
        declared = self._declared[layer].declared
        return {name: count for name, count in self.counted(layer).items() if declared[name].role == "drop"}

    def tells(self, layer: str, sender: int, kind: int, *records: bytes) -> None:
        """Records of a neighbour's, whatever they are."""
        number = topology.LAYERS[layer]
        self._take(number, self._cores[number].receive(sender, kind, list(records), self.now))
        self._run()

    # -- as the socket service -----------------------------------------------------------------------------------

    def _asks(self, layer: str, kind: int, record: bytes) -> None:
        number = topology.LAYERS[layer]
        assert kind in ALLOWED[topology.SOCKETS, number]
        self._take(number, self._cores[number].receive(topology.SOCKETS, kind, [record], self.now))
        self._run()

    def _heard(self, kind: int) -> list[bytes]:
        found = [record for _, told, record in self.told if told == kind]
        self.told = [entry for entry in self.told if entry[1] != kind]
        return found

    def declares(self, handle: int, layer: str = "udp", **state: object) -> SocketReply:
        """SOCKET_SET, and its answer. Addresses are text."""
        for name in ("local", "peer"):
            if name in state:
                state[name] = records.address(str(state[name]))
        wanted = SocketState(handle=handle, request=handle, **state)
        self._asks(layer, messages.SOCKET_SET, encode(wanted))
        (reply,) = self._heard(messages.SOCKET_REPLY)
        return decode_socket_reply(reply)

    def joins(self, handle: int, *groups: messages.SourceFilter) -> None:
        """MEMBERSHIP: the groups of a socket, all of them."""
        self._asks("ip", messages.MEMBERSHIP, encode(messages.Membership(handle, groups)))

    def sends(self, handle: int, payload: bytes, to: str = "0.0.0.0", port: int = 0, layer: str = "udp") -> None:
        """SEND; without a destination to the connected peer."""
        self._asks(layer, messages.SEND, datagram_header(handle, ip4(to), port, bytes(4), 0, 0, 0) + payload)

    def ordered(self, layer: str, op: str, **fields: object) -> dict[str, object]:
        """What the command line asks of a layer, and its answer."""
        number = topology.LAYERS[layer]
        answer, sends = self._cores[number].manage({"op": op, **fields}, self.now)
        self._take(number, sends)
        self._run()
        return answer

    def received(self) -> list[tuple[int, str, int, bytes]]:
        """(handle, source, port, payload) of the datagrams handed up since the last call."""
        found = []
        for record in self._heard(messages.DATAGRAM):
            handle, _, _, _, _, port, _, source, _ = DATAGRAM_HEADER.unpack_from(record)
            found.append((handle, str(IPv4Address(source)), port, record[DATAGRAM_HEADER.size :]))
        return found

    def errors(self) -> list[tuple[int, int, str, int]]:
        """(handle, errno, offender, type) of the errors told since the last call."""
        found = []
        for record in self._heard(messages.SOCKET_ERROR):
            handle, number, _, icmp_type, _, _, offender, _, _ = SocketError.of(record)
            found.append((handle, number, str(IPv4Address(offender)), icmp_type))
        return found


Impairment = Callable[[list[bytes]], list[bytes]]


class Cable:
    """Joins two stacks; `impair` may do to the frames of one moment what a bad cable does."""

    def __init__(self, one: Stack, other: Stack, impair: Impairment = lambda frames: frames) -> None:
        self.one, self.other, self.impair = one, other, impair
        self.carried = {one.address: 0, other.address: 0}  # frames that arrived, by receiver

    def run(self) -> None:
        """Carry frames until there are none."""
        while True:
            moving = [(self.other, self.one.sent()), (self.one, self.other.sent())]
            if not any(frames for _, frames in moving):
                return
            for receiver, frames in moving:
                arriving = self.impair(frames)
                self.carried[receiver.address] += len(arriving)
                receiver.takes(arriving)

    def passes(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass at both ends."""
        end = self.one.now + seconds
        while self.one.now < end:
            for stack in (self.one, self.other):
                stack.passes(min(step, end - stack.now))
            self.run()


class BadCable:
    """Loses, repeats, reorders, truncates and lengthens frames, by a seeded random."""

    KINDS = ("lost", "repeated", "late", "cut", "lengthened")

    def __init__(self, seed: int, share: float) -> None:
        self._random = random.Random(seed)
        self._share = share
        self._late: list[bytes] = []
        self.did = dict.fromkeys(self.KINDS, 0)

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        chance, arriving = self._random, []
        late, self._late = self._late, []
        for frame in frames:
            if chance.random() >= self._share:
                arriving.append(frame)
                continue
            kind = chance.choice(self.KINDS)
            self.did[kind] += 1
            if kind == "repeated":
                arriving += [frame, frame]
            elif kind == "late":
                self._late.append(frame)
            elif kind == "cut":
                arriving.append(frame[: chance.randrange(len(frame))])
            elif kind == "lengthened":
                arriving.append(frame + chance.randbytes(chance.randint(1, 46)))
        return arriving + late
