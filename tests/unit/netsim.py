"""A sender with the real loss recovery and congestion control, a receiver and a path between them, on a moved clock.

The sender is as much of TCP as the recovery sees: segments of one size, a receive window, timers. The path has a rate
with a queue in front of it, a delay, and loses or delays segments by a seeded generator: two runs are the same to the
octet.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, NamedTuple

from layers.tcp.recovery import Recovery

MSS = 1448
HEADER_OCTETS = 66  # Ethernet, IP, TCP with timestamps
START_S = 1000.0
DELAYED_ACK_S = 0.04
SACK_BLOCKS = 3


class Path(NamedTuple):
    """One way and back: `rtt_s` without queues; `queue` in segments; the way back is never full, and loses nothing.."""

    rtt_s: float = 0.02
    rate_bits: float = 1e8
    queue: int = 1000
    loss: float = 0.0
    reorder: float = 0.0  # so many arrive `reorder_s` late
    reorder_s: float = 0.0
    duplicate: float = 0.0
    lose_every: int = 0  # beside `loss`: each so many-th segment
    lose: tuple[int, ...] = ()  # and these transmissions, counted from 0


class Segment(NamedTuple):
    start: int
    end: int
    stamp_s: float
    ece: bool = False


class Clock:
    """Events in the order of time."""

    def __init__(self) -> None:
        self.now = START_S
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, action, args))

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Until it is so, or so late; RuntimeError where nothing is to come."""
        while not until():
            if not self._events:
                raise RuntimeError(f"all is silent at {self.now}")
            when, _, action, args = heappop(self._events)
            if when > limit_s:
                self.now = limit_s
                return
            self.now = max(self.now, when)
            action(*args)


class Receiver:
    """Reassembles, delays every other acknowledgment, reports blocks and duplicates."""

    def __init__(self, clock: Clock, answer: Callable[..., None], sack: bool, timestamps: bool) -> None:
        self.clock, self.answer, self.sack, self.timestamps = clock, answer, sack, timestamps
        self.rcv_nxt = 1
        self.ranges: list[tuple[int, int]] = []  # the latest first
        self.unacknowledged = 0
        self.stamp_s = 0.0
        self.duplicates = 0
        self._timer = 0

    def segment(self, segment: Segment) -> None:
        start, end = segment.start, segment.end
        dsack = None
        if end <= self.rcv_nxt or any(left <= start and end <= right for left, right in self.ranges):
            dsack = (start, end)
            self.duplicates += 1
        if start <= self.rcv_nxt:
            self.stamp_s = segment.stamp_s  # RFC 7323 section 4.3
        hole = bool(self.ranges)
        in_order = start <= self.rcv_nxt < end
        if dsack is None:
            joined = [each for each in self.ranges if each[0] <= end and start <= each[1]]
            self.ranges = [each for each in self.ranges if each not in joined]
            whole = (min([start, *(each[0] for each in joined)]), max([end, *(each[1] for each in joined)]))
            if whole[0] <= self.rcv_nxt:
                self.rcv_nxt = max(self.rcv_nxt, whole[1])
            else:
                self.ranges.insert(0, whole)
        self.unacknowledged += end - start
        if dsack is not None or hole or not in_order or self.unacknowledged >= 2 * MSS:
            self.acknowledge(dsack)
        else:
            self._timer += 1
            self.clock.at(self.clock.now + DELAYED_ACK_S, self._late, self._timer)

    def _late(self, number: int) -> None:
        if number == self._timer and self.unacknowledged:
            self.acknowledge(None)

    def acknowledge(self, dsack: tuple[int, int] | None) -> None:
        self.unacknowledged = 0
        blocks = ([dsack] if dsack is not None else []) + self.ranges
        self.answer(self.rcv_nxt, tuple(blocks[:SACK_BLOCKS]) if self.sack else (),
                    self.stamp_s if self.timestamps else None)


class Flow:
    """`total` octets from a sender to a receiver over a path."""

    def __init__(self, path: Path, total: int, congestion: str = "cubic", seed: int = 1, sack: bool = True,
                 timestamps: bool = True, window: int = 1 << 22, turn_s: float = 0.0, super_octets: int = MSS) -> None:
        self.path, self.total, self.window, self.turn_s, self.super_octets = path, total, window, turn_s, super_octets
        self.clock = Clock()
        self.random = random.Random(seed)
        self.recovery = Recovery(MSS, congestion, sack)
        self.receiver = Receiver(self.clock, self.answer, sack, timestamps)
        self.una = self.nxt = 0
        self.free_at = 0.0  # when the link has sent what is in its queue
        self.transmissions = self.lost = self.dropped = self.timeouts = 0
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.turn_due = False
        self.timer_at: float | None = None
        self.written = 1 + total
        self.trace: Callable[[Flow], None] | None = None
        self.recovery.sent(0, 1, START_S, True)
        self.nxt = 1
        self.clock.at(START_S + path.rtt_s, self.acknowledgment, 1, (), START_S)
        self.arm()

    def run(self, limit_s: float = 1000.0) -> float:
        """Seconds until all is acknowledged, or the limit."""
        self.clock.run(lambda: self.una > self.total, START_S + limit_s)
        return self.clock.now - START_S

    # -- the path --------------------------------------------------------------------------------------------------

    def transmit(self, start: int, end: int) -> None:
        for at in range(start, end, MSS):
            self._transmit(Segment(at, min(at + MSS, end), self.clock.now))

    def _transmit(self, segment: Segment) -> None:
        path, now, number = self.path, self.clock.now, self.transmissions
        self.transmissions += 1
        octets_s = path.rate_bits / 8
        self.free_at = max(self.free_at, now)
        if (self.free_at - now) * octets_s > path.queue * (MSS + HEADER_OCTETS):
            self.dropped += 1
            return
        self.free_at += (segment.end - segment.start + HEADER_OCTETS) / octets_s
        if (self.random.random() < path.loss or number in path.lose
                or (path.lose_every and number % path.lose_every == path.lose_every - 1)):
            self.lost += 1
            return
        late_s = path.reorder_s if path.reorder and self.random.random() < path.reorder else 0.0
        arrival = self.free_at + path.rtt_s / 2 + late_s
        self.clock.at(arrival, self.receiver.segment, segment)
        if path.duplicate and self.random.random() < path.duplicate:
            self.clock.at(arrival, self.receiver.segment, segment)

    def answer(self, ack: int, blocks: tuple[tuple[int, int], ...], stamp_s: float | None) -> None:
        self.clock.at(self.clock.now + self.path.rtt_s / 2, self.acknowledgment, ack, blocks, stamp_s)

    # -- the sender ------------------------------------------------------------------------------------------------

    def acknowledgment(self, *what: Any) -> None:
        if not self.turn_s:
            self.take(*what)
            self.flush()
            return
        self.inbox.append(what)  # the loop is busy: what comes in a turn is worked off together
        if not self.turn_due:
            self.turn_due = True
            self.clock.at(self.clock.now + self.turn_s, self.turn)

    def turn(self) -> None:
        self.turn_due = False
        while self.inbox:
            self.take(*self.inbox.popleft())
        self.flush()

    def take(self, ack: int, blocks: tuple[tuple[int, int], ...], stamp_s: float | None) -> None:
        if ack < self.una:
            return
        duplicate = ack == self.una and ack < self.nxt
        now = self.clock.now
        # A millisecond's clock, as on the wire
        echoed_s = (int(now * 1000) - int(stamp_s * 1000)) / 1000 if stamp_s is not None and ack > self.una else None
        self.una = ack
        self.recovery.acknowledged(ack, blocks, now, duplicate, echoed_s)

    def flush(self) -> None:
        recovery, now = self.recovery, self.clock.now
        while (lost := recovery.lost()) is not None:
            size = min(lost[1] - lost[0], MSS)
            if recovery.allowance(now) < size:
                break
            recovery.sent(lost[0], lost[0] + size, now, False)
            self.transmit(lost[0], lost[0] + size)
        while self.nxt < self.written:
            room, usable = recovery.allowance(now), self.una + self.window - self.nxt
            size = min(self.written - self.nxt, self.super_octets, usable, max(MSS, room // MSS * MSS))
            if room < min(size, MSS) or size <= 0 or (size < MSS and size < self.written - self.nxt):
                break
            start, self.nxt = self.nxt, self.nxt + size
            recovery.sent(start, self.nxt, now, self.nxt == self.written or usable - size < MSS)
            self.transmit(start, self.nxt)
        if self.trace is not None:
            self.trace(self)
        self.arm()

    def arm(self) -> None:
        deadline = self.recovery.deadline
        if deadline is not None and (self.timer_at is None or deadline < self.timer_at):
            self.timer_at = deadline
            self.clock.at(deadline, self.timer, deadline)

    def timer(self, at: float) -> None:
        if at != self.timer_at:
            return
        self.timer_at = None
        deadline = self.recovery.deadline
        if deadline is not None and deadline <= self.clock.now:
            self.timeouts += self.recovery.expire(self.clock.now)
            self.flush()
        self.arm()

    def write(self, octets: int) -> None:
        """The application writes more."""
        self.written += octets
        self.total = self.written - 1
        self.flush()


def goodput_bits(path: Path, total: int, **options: Any) -> float:
    """Bits a second of one transfer, from the SYN to the last acknowledgment."""
    flow = Flow(path, total, **options)
    return total * 8 / flow.run()


# The table that is kept: what a regression changes.
_LOSSES = (0.0, 0.001, 0.01, 0.05, 0.2)
_RTTS_S = (0.001, 0.02, 0.1)
_OTHERS: tuple[tuple[str, Path, dict[str, Any]], ...] = (
    ("1 % reordered by 1 ms, 20 ms", Path(reorder=0.01, reorder_s=0.001), {}),
    ("5 % reordered by 10 ms, 20 ms", Path(reorder=0.05, reorder_s=0.01), {}),
    ("5 % twice, 20 ms", Path(duplicate=0.05), {}),
    ("10 Mbit/s, queue of 1000, 20 ms", Path(rate_bits=1e7), {}),
    ("10 Mbit/s, queue of 4, 20 ms", Path(rate_bits=1e7, queue=4), {}),
    ("queue of 20, 20 ms", Path(queue=20), {}),
    ("queue of 20, 100 ms", Path(rtt_s=0.1, queue=20), {}),
    ("window of 64 kB, 100 ms", Path(rtt_s=0.1), {"window": 65535}),
    ("no SACK, 1 % lost, 20 ms", Path(loss=0.01), {"sack": False}),
    ("no timestamps, 1 % lost, 20 ms", Path(loss=0.01), {"timestamps": False}),
    ("turns of 1 ms, 0.1 % lost, 50 us", Path(rtt_s=5e-5, rate_bits=1e10, queue=9999, loss=1e-3), {"turn_s": 1e-3}),
    ("super-segments, 0.1 % lost, 1 ms, 1 Gbit/s", Path(rtt_s=1e-3, rate_bits=1e9, loss=1e-3),
     {"super_octets": 44 * MSS}),
)


def table(total: int = 2_000_000) -> str:
    """Goodput in Mbit/s of 2 MB over 100 Mbit/s with a queue of one round trip (at least 20), and over other paths."""
    lines = [f"{'path':44}{'cubic':>9}{'reno':>9}{'expired':>9}{'resent':>9}{'twice':>9}"]
    rows: list[tuple[str, Path, dict[str, Any]]] = []
    for loss in _LOSSES:
        for rtt_s in _RTTS_S:
            path = Path(rtt_s, 1e8, max(20, int(1e8 * rtt_s / 8 / 1514)), loss)
            rows.append((f"{loss * 100:g} % lost, {rtt_s * 1000:g} ms", path, {}))
    for name, path, options in (*rows, *_OTHERS):
        flows = [Flow(path, total, congestion, **options) for congestion in ("cubic", "reno")]
        goodputs = "".join(f"{total * 8e-6 / flow.run():9.3g}" for flow in flows)
        cubic = flows[0]
        lines.append(f"{name:44}{goodputs}{cubic.timeouts:9}{cubic.recovery.retransmits:9}{cubic.receiver.duplicates:9}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
