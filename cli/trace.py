"""`trace`: follow packets through the stack: times in layers and pipes, and where and why packets were dropped."""

from __future__ import annotations

import argparse
import heapq
import ipaddress
import signal
import sys
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from zlib import crc32

import msgspec

from bus import messages, topology, views
from bus.runtime import ring
from cli.numbers import seconds, whole
from cli.pipes import APP, DEVICE, Pipe, all_pipes
from cli.watching import Seen, Watch, sentence
from packets import ethernet, ipv4, pcapng, summary
from packets.filter import FilterError, Test, compile_filter
from supervisor.control import Client
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "follow packets through the stack: times in each layer and pipe, drops and why"
# A packet has reached its end when it was not seen for this time: one that has left or was dropped,
_ENDED_NS = 500_000_000
# one in a layer, which may wait for a processor so long,
_INSIDE_NS = 2_000_000_000
# and one in a pipe, whose consumer may be restarting, or in a layer that holds packets: while arp asks for an address
# (three requests, one a second), or for an impairment of the device.
_HELD_NS = 6_000_000_000
_HOLDING = ("link", "ip")
_UDP_OCTETS = 8
_RETURNS = (messages.ICMP_ERROR, messages.REPORT_ERROR)  # with these a packet goes back, as part of an error about it


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("flow", metavar="ADDRESS|FLOW", help="10.0.0.1, or an expression like 'udp port 53'")
    parser.add_argument("--count", type=whole(1), metavar="N", help="stop after N packets")
    parser.add_argument("--seconds", type=seconds(above=True), metavar="S", help="stop after S seconds")


class Step(msgspec.Struct):
    """A packet at one end of a pipe."""

    when_ns: int
    pipe: Pipe
    arrived: bool  # True: at the pipe's consumer; False: at its producer
    kind: int
    dropped: str = ""  # name of the counter
    layer: str = ""
    error: str = ""  # type and code of an ICMP error

    @property
    def ended(self) -> bool:
        """True if the packet has left the stack or was dropped."""
        return bool(self.dropped) or (self.pipe.consumer in (DEVICE, APP) and not self.arrived)

    @property
    def over_ns(self) -> int:
        """The time when the packet has reached its end, unless another step follows until then."""
        held = not self.arrived or self.pipe.consumer in _HOLDING
        return self.when_ns + (_ENDED_NS if self.ended else _HELD_NS if held else _INSIDE_NS)


class Journey(msgspec.Struct):
    """The path of one packet."""

    key: tuple[int, int]
    line: str  # description of the packet, from the step where most of it is known
    steps: list[Step]
    wanted: bool = False
    due_ns: int = 0  # when it may be over
    over: bool = False


class Tracer:
    """Joins the observations of different layers of the same packet.

    Packets are matched by their payload, because headers change on the way. Among several packets with the same
    payload, the one whose last step leads to this one is chosen.
    """

    def __init__(self, test: Test, with_vnet: bool) -> None:
        self._test = test
        self._with_vnet = with_vnet
        self._open: dict[tuple[int, int], list[Journey]] = {}
        self._due: list[tuple[int, int, Journey]] = []  # a heap: the time when a journey may be over, number, journey
        self._numbers = count()
        self._wanted: deque[Journey] = deque()  # that match the filter, in order

    def see(self, seen: Seen) -> None:
        """Process records at one end of a pipe."""
        if not views.shows_packets(seen.kind):
            return
        for record in seen.records:
            for octets in views.packets_of(seen.kind, [record], self._with_vnet, seen.pipe.protocol):
                packet = octets
                if views.is_frame(seen.kind):
                    if octets[2 * ethernet.MAC_OCTETS : ethernet.HEADER_OCTETS] != ethernet.TYPE_IPV4:
                        continue
                    packet = octets[ethernet.HEADER_OCTETS :]
                if len(packet) >= ipv4.HEADER_OCTETS and seen.kind not in (messages.ARP_IN, messages.ARP_OUT):
                    self._see(seen, packet, f"type {record[0]}, code {record[1]}" if seen.kind in _RETURNS else "")

    def _see(self, seen: Seen, packet: bytes, error: str) -> None:
        start = (packet[0] & 15) * 4
        payload = packet[start : int.from_bytes(packet[2:4], "big")]
        key = packet[9], crc32(payload[_UDP_OCTETS:])
        arrived = seen.direction != ring.OUT
        step = Step(seen.when_ns, seen.pipe, arrived, seen.kind, seen.counter, seen.layer, error)
        journeys = self._open.setdefault(key, [])
        wanted, line = self._test(packet), summary.ipv4(packet)
        for journey in reversed(journeys):
            if _leads_to(journey.steps[-1], step):
                journey.steps.append(step)
                if wanted:
                    self._want(journey)
                if step.over_ns < journey.due_ns:
                    self._expect(journey)
                if seen.pipe.link_type == pcapng.LINKTYPE_ETHERNET or seen.kind == messages.TRANSMIT:
                    journey.line = line
                return
        journeys.append(Journey(key, line, [step]))
        if wanted:
            self._want(journeys[-1])
        self._expect(journeys[-1])

    def _want(self, journey: Journey) -> None:
        if not journey.wanted:
            journey.wanted = True
            self._wanted.append(journey)

    def _expect(self, journey: Journey) -> None:
        journey.due_ns = journey.steps[-1].over_ns
        heapq.heappush(self._due, (journey.due_ns, next(self._numbers), journey))

    def over(self, now_ns: int) -> Iterator[Journey]:
        """The finished journeys that match the filter, in the order in which they began."""
        while self._due and self._due[0][0] < now_ns:
            _, _, journey = heapq.heappop(self._due)
            if journey.over:
                continue
            journey.over = journey.steps[-1].over_ns < now_ns
            if not journey.over:
                self._expect(journey)
                continue
            journeys = self._open[journey.key]
            journeys.remove(journey)
            if not journeys:
                del self._open[journey.key]
        while self._wanted and self._wanted[0].over:
            yield self._wanted.popleft()


def _leads_to(last: Step, step: Step) -> bool:
    """True if a packet last seen at step `last` can be the one seen at this step."""
    if last.dropped:
        return False
    if last.pipe == step.pipe:
        return bool(step.dropped) or (step.arrived and not last.arrived)
    back = last.pipe.producer == step.pipe.consumer
    onward = last.pipe.consumer == step.pipe.producer and back <= (step.kind in _RETURNS)
    return onward and (not step.arrived or (bool(step.dropped) and step.layer == step.pipe.producer))


def describe(journey: Journey) -> str:
    """Text for a journey, one line for each layer and pipe."""
    steps, origin = journey.steps, journey.steps[0].pipe.producer
    lines = [journey.line, *([f"  from {origin}"] if origin in (DEVICE, APP) else [])]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        name = messages.KIND_NAMES.get(step.kind, str(step.kind)) + (f", {step.error}" if step.error else "")
        if step.dropped:
            lines.append(f"  dropped by {step.layer}: {step.dropped}: {sentence(step.layer, step.dropped)}")
            break
        where = f"in {step.pipe.consumer}" if step.arrived else f"pipe {step.pipe.name}"
        if following is None:
            ends_here = step.pipe.consumer in (DEVICE, APP) and not step.arrived
            lines.append(f"  to {step.pipe.consumer}" if ends_here else f"  {where:<20} the packet ends here ({name})")
        else:
            lines.append(f"  {where:<20} {(following.when_ns - step.when_ns) / 1000:>9.1f} us  {name}")
    total = (steps[-1].when_ns - steps[0].when_ns) / 1000
    return "\n".join([*lines, f"  {'altogether':<20} {total:>9.1f} us", ""])


def _test(text: str) -> Test:
    try:
        return compile_filter(f"host {ipaddress.IPv4Address(text)}")
    except ValueError:
        pass
    try:
        return compile_filter(text)
    except FilterError as error:
        raise UsageError(f"trace: {error}") from error


def run(given: argparse.Namespace) -> int:
    """Follow packets until the count is reached, Ctrl-C is pressed, or the stack ends."""
    test, left = _test(given.flow), given.count or -1
    with Client(run_dir(given.name)) as client:
        pipes = all_pipes([name for name in client.request("status")["layers"] if name in topology.LAYERS])
    with Watch(given.name, pipes, both_ends=True) as watch:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, lambda *_: watch.stop())
        signal.setitimer(signal.ITIMER_REAL, given.seconds or 0)
        print("tracing; Ctrl-C ends it", file=sys.stderr)
        tracer = Tracer(test, watch.with_vnet)
        for batch in watch:
            for seen in batch:
                tracer.see(seen)
            for journey in tracer.over(watch.merger.at_ns):
                print(describe(journey), flush=True)
                left -= 1
                if left == 0:
                    return 0
        for journey in islice(tracer.over(1 << 63), left if left >= 0 else None):
            print(describe(journey), flush=True)
        if watch.ended:
            print("the stack has ended", file=sys.stderr)
    return 0
