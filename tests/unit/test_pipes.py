"""The two ends of a pipe, over crashes of either at any moment."""

from __future__ import annotations

import os
import struct
from collections import deque

import lengths
import msgspec
import pytest
from durable import Durable, dies
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bus import messages, topology
from bus.counters import PipeCounters as C
from bus.durable import journal as journal_module
from bus.durable import layout
from bus.durable.journal import Journal
from bus.runtime import backlog, inbox, outbox
from bus.runtime.inbox import Inbox
from bus.runtime.outbox import Outbox
from bus.runtime.turn import Turn
from usernet.pipe import numbering
from usernet.pipe.frame import pack_frame, unpack_frame
from usernet.pipe.numbering import Verdict, decode_hello, decode_resume

DATA, CONTROL = messages.PACKET, messages.RESOLVE
KINDS = frozenset({DATA, CONTROL})
NUMBER = struct.Struct("<I")


class Queue:
    """Stands for a PUSH socket: takes frames until it is full."""

    waiting, open = False, True

    def __init__(self, room: int) -> None:
        self.room = room
        self.frames: deque[bytes] = deque()

    def send(self, frame: bytes) -> bool:
        if len(self.frames) >= self.room:
            return False
        self.frames.append(frame)
        return True


def parsed(queue: Queue) -> list[tuple[int, int, list[bytes]]]:
    """(kind, sequence, records) of the frames in `queue`."""
    return [(kind, sequence, records) for kind, _, _, sequence, records in map(unpack_frame, queue.frames)]


class Producer:
    """An Outbox over a queue, and what it stands on."""

    def __init__(self, durable: Durable, room: int = 1000, incarnation: int = 1) -> None:
        self.memory = durable.map()
        self.memory.words[layout.INCARNATION] = incarnation
        self.queue = Queue(room)
        turn = Turn(self.memory)
        self.journal, self.touched = turn.journal, turn.touched
        self.outbox = Outbox(self.queue, topology.IP, topology.UDP, layout.SENT + topology.UDP, turn)

    def ends_turn(self) -> bool:
        """As bus.runtime.event_loop does; True where something waits for room."""
        self.outbox.seal()
        self.journal.publish(())
        return self.outbox.send()

    def puts(self, kind: int, *records: bytes) -> None:
        for record in records:
            self.outbox.enqueue(kind, record)

    def counted(self, name: str) -> int:
        return self.memory.bus_counters[getattr(C, name)]


def successor_of(durable: Durable) -> Producer:
    """The producer died; what its successor sends at its start is in the queue."""
    successor = Producer(durable, incarnation=2)
    outbox.inherit(successor.memory)
    successor.outbox.greet({"done": 0})
    successor.ends_turn()
    return successor


def ahead(octets: int) -> int:
    """How many records of one flow, so long each, go ahead of a backlog."""
    return backlog.AHEAD_FLOW_OCTETS // (octets + backlog.ENTRY_OCTETS)


def new_inbox(durable: Durable) -> Inbox:
    return Inbox(topology.IP, KINDS, durable.map(), layout.DONE + topology.IP)


# -- packing -------------------------------------------------------------------------------------------------------


def test_records_of_one_turn_leave_in_one_frame_for_each_run_of_a_kind(durable):
    producer = Producer(durable)
    producer.puts(DATA, b"1", b"2")
    producer.puts(CONTROL, b"3")
    producer.puts(DATA, b"4")
    producer.ends_turn()
    assert parsed(producer.queue) == [(DATA, 1, [b"1", b"2"]), (CONTROL, 2, [b"3"]), (DATA, 3, [b"4"])]
    assert producer.touched[-1] is producer.outbox
    assert producer.counted("bus_frames_out") == 3


@pytest.mark.parametrize("octets", [[], [5], [0, 5, 300], [outbox.PACK_OCTETS - 1], [(1 << 18) + 1]])
def test_a_turn_of_one_frame_in_one_step_leaves_what_three_steps_leave(octets):
    kept = []
    for steps in (1, 3):
        durable = Durable()
        producer, taken = Producer(durable), new_inbox(durable)
        for sequence in (1, 2):
            taken.judge(1, sequence)
            producer.puts(DATA, *[bytes(length) for length in octets])
            if steps == 1:
                assert producer.outbox.send_alone(taken) == bool(octets)
            else:
                producer.outbox.seal()
                producer.journal.publish([taken])
                assert not producer.outbox.send()
        died = Journal(durable.map())
        words = durable.map().words
        kept.append((list(producer.queue.frames), died.frames(topology.UDP, 0), died.done, words[layout.JOURNAL_HEAD],
                     words[layout.SENT + topology.UDP], producer.counted("bus_frames_out")))
        durable.close()
    assert kept[0] == kept[1]


def test_a_turn_of_one_frame_that_finds_no_room_waits_for_it_and_nothing_overtakes(durable):
    producer, taken = Producer(durable, room=1), new_inbox(durable)
    for record in (b"1", b"2", b"3"):
        producer.puts(DATA, record)
        if not producer.outbox.send_alone(taken):
            assert producer.ends_turn()
    producer.queue.room = 10
    producer.puts(DATA, b"4")
    assert not producer.outbox.send_alone(taken)
    assert not producer.ends_turn()
    assert [record for _, _, records in parsed(producer.queue) for record in records] == [b"1", b"2", b"3", b"4"]
    assert [frame for _, frame in Journal(durable.map()).frames(topology.UDP, 0)] == list(producer.queue.frames)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([DATA, CONTROL]), st.integers(1, 70), st.sampled_from([0, 5, 1400, 30_000])),
                max_size=6), st.sampled_from([0, 1, 1000]))
@example([(DATA, 9, 30_000), (CONTROL, 2, 5), (DATA, 3, 5)], 0)
def test_a_run_leaves_as_its_records_would_one_by_one(groups, room):
    """However much room there is: what waits follows as soon as there is more."""
    sent = []
    for at_once in (True, False):
        durable = Durable()
        producer = Producer(durable, room=room)
        producer.puts(CONTROL, b"first")
        producer.ends_turn()
        for number, (kind, count, octets) in enumerate(groups):
            records = [bytes([number]) * (octets + each % 2) for each in range(count)]
            if at_once:
                producer.outbox.enqueue_run(kind, records)
            else:
                producer.puts(kind, *records)
        touched = list(producer.touched)
        waits = producer.ends_turn()
        assert not (waits and room == 1000)
        at_first = parsed(producer.queue)
        producer.queue.room = 1000
        while producer.ends_turn():
            pass
        sent.append((at_first, parsed(producer.queue), len(touched), waits, producer.counted("bus_pipe_full")))
        durable.close()
    assert sent[0] == sent[1]


def test_a_frame_is_bounded_in_records_and_in_octets(durable):
    producer = Producer(durable)
    producer.puts(DATA, *[b"x"] * (outbox.PACK_RECORDS + 1), *[bytes(outbox.PACK_OCTETS // 2)] * 3)
    producer.ends_turn()
    assert [len(records) for _, _, records in parsed(producer.queue)] == [outbox.PACK_RECORDS, 2, 2]


def test_a_full_pipe_keeps_the_oldest_data_drops_the_newest_and_counts_it(durable):
    producer = Producer(durable, room=1)
    records = [b"flow" + NUMBER.pack(number) for number in range(ahead(8) + outbox.BACKLOG_RECORDS + 12)]
    for record in records:
        producer.puts(DATA, record)
        assert producer.ends_turn() or len(producer.queue.frames) == 1
    assert producer.counted("bus_pipe_full") == 12 - 2  # one is in the socket, one is packed and next
    producer.queue.room = 1000
    assert not producer.ends_turn()
    sent = parsed(producer.queue)
    assert [record for _, _, frame in sent for record in frame] == records[: len(records) - 12 + 2]
    assert max(len(frame) for _, _, frame in sent) == outbox.PACK_RECORDS


def test_the_octets_of_records_behind_a_full_pipe_are_bounded_too(durable):
    producer = Producer(durable, room=1)
    large, fit = bytes(60_000), backlog.BACKLOG_OCTETS // 60_000
    for _ in range(fit + 5):
        producer.puts(DATA, large)
        producer.ends_turn()
    assert producer.counted("bus_pipe_full") == 5 - 2
    producer.queue.room = 1000
    producer.ends_turn()
    assert sum(len(records) for _, _, records in parsed(producer.queue)) == fit + 2


def test_control_is_never_dropped_and_never_overtakes(durable):
    producer = Producer(durable, room=0)
    producer.puts(DATA, b"a")
    producer.ends_turn()
    producer.puts(DATA, b"b")
    producer.ends_turn()
    producer.puts(CONTROL, *[b"c"] * 1000)
    producer.ends_turn()
    producer.queue.room = 1000
    producer.ends_turn()
    sent = [(kind, record) for kind, _, records in parsed(producer.queue) for record in records]
    assert sent == [(DATA, b"a"), (DATA, b"b")] + [(CONTROL, b"c")] * 1000
    assert producer.counted("bus_pipe_full") == 0


def test_control_that_waits_for_room_survives_its_producer_and_data_that_does_not_is_counted(durable):
    producer = Producer(durable, room=0)
    producer.puts(DATA, b"a")
    producer.ends_turn()
    producer.puts(CONTROL, b"b")
    producer.ends_turn()
    producer.puts(DATA, *[letter * backlog.AHEAD_FLOW_OCTETS for letter in (b"c", b"d")])
    producer.ends_turn()
    successor = successor_of(durable)
    assert parsed(successor.queue)[1:] == [(DATA, 1, [b"a"]), (CONTROL, 2, [b"b"])]
    assert successor.counted("bus_pipe_full") == 2


@pytest.mark.parametrize("dies", [True, False])
def test_the_first_data_of_a_flow_goes_ahead_of_a_flood_and_survives_its_producer(durable, dies):
    producer, flood = Producer(durable, room=0), b"flood" * 1800
    quiet = [b"quiet%d" % number for number in range(10)]
    producer.puts(DATA, *[flood] * 100)
    producer.ends_turn()
    for record in quiet:
        producer.puts(DATA, record, flood)
        producer.ends_turn()
    if dies:
        producer = successor_of(durable)
        assert producer.counted("bus_pipe_full") == 10, "of the flood"
        producer.outbox.resume(0, 0)
    producer.queue.frames.clear()
    producer.queue.room = 1000
    producer.ends_turn()
    sent = [record for kind, _, records in parsed(producer.queue) for record in records if kind == DATA]
    assert sent == [flood] * 100 + quiet + [flood] * (0 if dies else 10)


def test_what_goes_ahead_is_bounded_for_a_flow_and_for_all_and_stays_in_order(durable):
    producer = Producer(durable, room=0)
    producer.puts(DATA, b"first")
    producer.ends_turn()
    flows = 2 * backlog.AHEAD_OCTETS // backlog.AHEAD_FLOW_OCTETS
    records = [b"%04d%04d" % (flow, number) for number in range(2 * ahead(8)) for flow in range(flows)]
    for record in records:
        producer.puts(DATA, record)
        producer.ends_turn()
    waiting = producer.memory.words[layout.WAITING]
    went_ahead = len(records) - waiting - producer.counted("bus_pipe_full")
    assert went_ahead <= backlog.AHEAD_OCTETS // (8 + backlog.ENTRY_OCTETS)
    producer.queue.room = 10_000
    producer.ends_turn()
    _, *sent = [record for _, _, records in parsed(producer.queue) for record in records]
    for flow in range(flows):
        numbers = [int(record[4:]) for record in sent if record[:4] == b"%04d" % flow]
        assert numbers == sorted(numbers)
        assert len(numbers) > 0
    producer.queue.room = 0
    producer.puts(DATA, b"first")
    producer.ends_turn()
    producer.puts(DATA, b"0000again")
    producer.ends_turn()
    assert producer.memory.words[layout.WAITING] == 0, "the pipe had room meanwhile"


# -- what the consumer says of a frame -----------------------------------------------------------------------------


def test_an_inbox_takes_frames_in_order_and_once(durable):
    end = new_inbox(durable)
    end.resumed(0, 1)
    verdicts = [end.judge(1, number) for number in (1, 2, 2, 1, 3)]
    assert verdicts == [Verdict.NEXT, Verdict.NEXT, Verdict.REPEATED, Verdict.REPEATED, Verdict.NEXT]


def test_a_gap_is_early_until_the_resume_and_lost_after_it(durable):
    end = new_inbox(durable)
    assert end.judge(1, 5) is Verdict.EARLY
    assert end.judge(1, 1) is Verdict.NEXT  # in order: no need to wait
    end.resumed(1, 4)
    lost = durable.map().bus_counters
    assert (end.done, lost[C.bus_lost]) == (3, 2)
    assert end.judge(1, 6) is Verdict.NEXT
    assert lost[C.bus_lost] == 4


def test_a_former_incarnation_is_stale(durable):
    end = new_inbox(durable)
    assert end.judge(3, 1) is Verdict.NEXT
    assert end.judge(2, 2) is Verdict.STALE
    assert end.judge(3, 2) is Verdict.NEXT


def test_only_what_was_committed_is_done_after_a_crash(durable):
    end = new_inbox(durable)
    end.judge(1, 1)
    end.commit()
    end.judge(1, 2)
    assert new_inbox(durable).done == 1


def test_any_number_that_a_sender_may_claim_can_be_counted_and_kept(durable):
    for _ in range(3):
        end = new_inbox(durable)
        end.done = 0
        end.resumed(0, (1 << 63) - 1)
        end.judge(1, (1 << 64) - 1)
        end.commit()
    assert new_inbox(durable).done == durable.map().bus_counters[C.bus_lost] == (1 << 64) - 1


@pytest.mark.parametrize("octets", [
    b"", b"[]", b"{}", b'{"done": -1, "first": -1}', b'{"done": 1e99, "first": 1e99}', b'{"done": "1", "first": "1"}',
    b'{"done": %d, "first": %d}' % (1 << 64, 1 << 64), b'{"done": 1, "first": 1, "x": ' + b"[" * 100_000, b"\xff",
])  # fmt: skip
@pytest.mark.parametrize("decode", [decode_hello, decode_resume])
def test_invalid_greetings_are_a_value_error(decode, octets):
    with pytest.raises(ValueError):
        decode(octets)


GREETINGS = st.sampled_from([b'{"version": 2, "inbox": "client-1", "done": 5}', b'{"done": 5}',
                             b'{"first": 3, "done": 4}'])


@given(lengths.octets(60) | lengths.damaged(GREETINGS))
@example(b'{"first": 3, "done": 4}')
def test_greetings_of_any_octets_are_parsed_or_a_value_error(octets):
    for decode in (decode_hello, decode_resume):
        try:
            greeting = decode(octets)
        except ValueError:
            continue
        assert 0 <= greeting.done < 1 << 64


# -- both ends, over crashes -----------------------------------------------------------------------------------------


class End:
    """One of two neighbours: takes frames, processes records, sends records, as bus.runtime.event_loop does.

    Records are numbered in the order in which they were put. `delivered` has those whose frames were worked off.
    """

    ROOM = 3  # frames in the socket, and again on their way

    def __init__(self, number: int, other: int) -> None:
        self.number = number
        self.other = other
        self.durable = Durable()
        self.incarnation = 0
        self.alive = False
        self.streams: dict[int, deque[bytes]] = {}  # what has arrived, by the incarnation whose connection it came on
        self.put = 0  # number of the last record put
        self.whole: dict[int, int] = {}  # records of turns that were finished: number -> kind
        self.torn: list[tuple[set[int], bool]] = []  # control of turns that were not, and whether their input is done
        self.maybe: set[int] = set()  # their records: they may be delivered or not
        self.slack = 0  # data that a death in the middle of a turn may have lost or counted twice
        self.taken: dict[int, list[int]] = {}  # sequence number -> records
        self.delivered: list[int] = []

    def start(self) -> None:
        self.incarnation += 1
        self.memory = self.durable.map()
        self.memory.words[layout.INCARNATION] = self.incarnation
        self.queue = Queue(self.ROOM)
        outbox.inherit(self.memory)
        turn = Turn(self.memory)
        self.journal, self.touched = turn.journal, turn.touched
        journaled = self.journal.done.get(self.other, 0)
        self.inbox = Inbox(self.other, KINDS, self.memory, layout.DONE + self.other, journaled)
        self.outbox = Outbox(self.queue, self.number, self.other, layout.SENT + self.other, turn)
        self.alive = True
        self.outbox.greet({"done": self.inbox.done})

    def die(self) -> None:
        self._settled()
        self.alive = False
        self.streams.clear()
        self.taken.clear()
        self.queue.frames.clear()

    def take(self, frame: bytes) -> None:
        kind, incarnation, sender, sequence, records = unpack_frame(frame)
        assert sender == self.other
        if sequence == 0:
            if incarnation < self.inbox.incarnation:
                return
            if kind == messages.HELLO:
                self.inbox.started(incarnation)
                self.outbox.resume(decode_hello(records[0]).done, self.inbox.done)
            else:
                resume = decode_resume(records[0])
                self.inbox.resumed(incarnation, resume.first)
                self.outbox.answered(resume.done, self.inbox.done)
        elif self.inbox.judge(incarnation, sequence) is Verdict.NEXT:
            self.taken[sequence] = [NUMBER.unpack(record)[0] for record in records]

    def turn(self, streams: list[int], kinds: list[int]) -> None:
        for number in streams:
            waiting = [stream for stream in self.streams.values() if stream]
            if waiting:
                self.take(waiting[number % len(waiting)].popleft())
        for kind in kinds:
            self.put += 1
            self.outbox.enqueue(kind, NUMBER.pack(self.put))
        if len(self.touched) == 1 and self.outbox.send_alone(self.inbox):
            self.touched.clear()
        else:
            for each in self.touched:
                each.seal()
            self.journal.publish([self.inbox])
            self.touched[:] = {each for each in self.touched if each.send()}
        self.inbox.commit()
        self._settled()

    def done(self) -> int:
        """The number of the last frame that durable memory says is done."""
        mapped = self.durable.map()
        return max(mapped.words[layout.DONE + self.other], Journal(mapped).done.get(self.other, 0))

    def _settled(self) -> None:
        """Whatever is done is delivered; `take` is asked for the rest again after a crash."""
        done = self.done()
        for sequence in [sequence for sequence in self.taken if sequence <= done]:
            self.delivered += self.taken.pop(sequence)

    def counted(self, name: str) -> int:
        return self.memory.bus_counters[getattr(C, name)]


class TwoEnds(RuleBasedStateMachine):
    """Two neighbours that talk, and die at any line of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(topology.IP, topology.UDP), End(topology.UDP, topology.IP))
        for end in self.ends:
            end.start()

    @rule(which=st.integers(0, 1), streams=st.lists(st.integers(0, 3), max_size=5),
          kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=12),
          line=st.none() | st.integers(0, 120) | st.integers(0, 600))
    def turn(self, which, streams, kinds, line):
        end = self.ends[which]
        if not end.alive:
            return
        before, waiting, taken = end.put, end.memory.words[layout.WAITING], end.inbox.done
        if line is None:
            end.turn(streams, kinds)
            died = False
        else:
            died = dies(line, (outbox, inbox, backlog, numbering, journal_module), lambda: end.turn(streams, kinds))
        put = range(before + 1, end.put + 1)
        if died:
            end.slack += len(put) + waiting
            control = {number for number, kind in zip(put, kinds, strict=False) if kind == CONTROL}
            if end.inbox.done > taken:  # else there is no telling whether the turn was published
                end.torn.append((control, end.done() > taken))
            end.maybe.update(put)
            end.die()
        else:
            end.whole.update(zip(put, kinds, strict=True))

    @rule(which=st.integers(0, 1), frames=st.integers(1, 4))
    def carry(self, which, frames):
        """Frames get from the one process to the other."""
        end, other = self.ends[which], self.ends[1 - which]
        if not (end.alive and other.alive):
            return
        stream = other.streams.setdefault(end.incarnation, deque())
        while frames and end.queue.frames and len(stream) < End.ROOM:
            stream.append(end.queue.frames.popleft())
            frames -= 1

    @rule(which=st.integers(0, 1))
    def kill(self, which):
        if self.ends[which].alive:
            self.ends[which].die()

    @precondition(lambda self: not all(end.alive for end in self.ends))
    @rule(which=st.integers(0, 1), line=st.none() | st.integers(0, 150))
    def start(self, which, line):
        end = self.ends[which]
        if end.alive:
            return
        waiting = end.durable.map().words[layout.WAITING]
        if line is None:
            end.start()
        elif dies(line, (outbox, inbox, backlog, numbering, journal_module), end.start):
            end.slack += waiting  # counted, and not yet cleared
            end.die()

    @invariant()
    def records_arrive_in_order_and_once(self):
        for end in self.ends:
            assert all(earlier < later for earlier, later in zip(end.delivered, end.delivered[1:], strict=False))

    def teardown(self):
        try:
            self._let_everything_arrive()
            for end, other in (self.ends, self.ends[::-1]):
                self._account(end, other)
        finally:
            for end in self.ends:
                end.durable.close()

    def _let_everything_arrive(self):
        for which, end in enumerate(self.ends):
            if not end.alive:
                self.start(which, None)
        for _ in range(1000):
            for which in (0, 1):
                self.carry(which, 4)
                self.turn(which, [0] * 6, [], None)
            if not any(end.touched or end.queue.frames or any(end.streams.values()) for end in self.ends):
                return
        raise AssertionError("they never came to rest")

    def _account(self, sender: End, receiver: End):
        arrived = set(receiver.delivered)
        assert not sender.inbox.awaiting
        assert arrived <= sender.whole.keys() | sender.maybe
        for control, done in sender.torn:  # a turn whose input is done has sent all, any other will be done again
            assert control & arrived == (control if done else set())
        assert receiver.counted("bus_lost") == 0
        assert {number for number, kind in sender.whole.items() if kind == CONTROL} <= arrived
        sent = sum(1 for kind in sender.whole.values() if kind == DATA)
        delivered = sum(1 for number in arrived if sender.whole.get(number) == DATA)
        missing = sent - delivered - sender.counted("bus_pipe_full")
        assert abs(missing) <= sender.slack


def test_control_arrives_once_and_in_order_and_data_is_accounted_for_over_any_crash(monkeypatch):
    for name, value in {"REPEAT_AT_START": 3, "BACKLOG_RECORDS": 8, "PACK_RECORDS": 3}.items():
        monkeypatch.setattr(outbox, name, value)
    run_state_machine_as_test(TwoEnds, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))


# -- repetition, step by step ----------------------------------------------------------------------------------------


def converse(*ends: End) -> None:
    """Until nothing moves."""
    for _ in range(200):
        for end, other in (ends, ends[::-1]):
            stream = other.streams.setdefault(end.incarnation, deque())
            while end.queue.frames:
                stream.append(end.queue.frames.popleft())
            end.turn([0] * 8, [])


@pytest.fixture
def ends():
    pair = End(topology.IP, topology.UDP), End(topology.UDP, topology.IP)
    for end in pair:
        end.start()
    converse(*pair)
    yield pair
    for end in pair:
        end.durable.close()


def test_a_consumer_that_restarts_gets_what_died_in_its_inbox(ends):
    producer, consumer = ends
    for _ in range(6):
        producer.turn([], [DATA])
    consumer.streams[1].extend(producer.queue.frames)
    producer.queue.frames.clear()
    consumer.die()
    consumer.start()
    converse(*ends)
    assert consumer.delivered == [1, 2, 3, 4, 5, 6]
    assert producer.counted("bus_replayed") == producer.outbox.sequence


def test_a_producer_that_restarts_repeats_what_died_in_it(ends):
    producer, consumer = ends
    for _ in range(6):
        producer.turn([], [CONTROL])
    producer.die()
    producer.start()
    converse(*ends)
    assert consumer.delivered == [1, 2, 3, 4, 5, 6]


def test_a_producer_that_restarts_repeats_as_much_as_its_consumer_needs(ends):
    producer, consumer = ends
    count = outbox.REPEAT_AT_START + 40
    for _ in range(count):
        producer.turn([], [CONTROL])
    producer.die()
    producer.start()
    converse(*ends)
    assert consumer.delivered == list(range(1, count + 1))
    assert consumer.counted("bus_lost") == 0


def test_a_consumer_gets_no_frame_twice(ends):
    producer, consumer = ends
    for _ in range(6):
        producer.turn([], [CONTROL])
        converse(*ends)
    producer.die()
    producer.start()
    converse(*ends)
    assert consumer.delivered == [1, 2, 3, 4, 5, 6]
    assert producer.counted("bus_replayed") == 6  # unasked, and not a second time


def test_frames_that_the_journal_no_longer_has_are_counted_as_lost(durable):
    producer, end = Producer(durable), new_inbox(durable)
    for number in range(40):
        producer.puts(CONTROL, NUMBER.pack(number) + bytes(60_000))
        producer.ends_turn()
    producer.queue.frames.clear()  # they died with the consumer
    producer.outbox.resume(0, 0)
    producer.ends_turn()
    (_, _, (greeting,)), *repeated = parsed(producer.queue)
    end.resumed(0, decode_resume(greeting).first)
    assert all(end.judge(1, sequence) is Verdict.NEXT for _, sequence, _ in repeated)
    assert [NUMBER.unpack_from(records[0])[0] for _, _, records in repeated] == list(range(40 - len(repeated), 40))
    assert (1 << 20) // 70_000 < len(repeated) < 40
    assert len(repeated) + durable.map().bus_counters[C.bus_lost] == 40


def test_the_greetings_are_json_that_any_client_can_read(durable):
    producer = Producer(durable)
    producer.outbox.greet({"version": 2, "done": 7})
    producer.outbox.resume(0, 9)
    (hello, _, (greeting,)), (resume, _, (answer,)) = parsed(producer.queue)
    assert (hello, msgspec.json.decode(greeting)) == (messages.HELLO, {"version": 2, "done": 7})
    assert (resume, msgspec.json.decode(answer)) == (messages.RESUME, {"first": 1, "done": 9, "pid": os.getpid()})


def test_foreign_frames_do_not_confuse_the_repetition(durable):
    producer = Producer(durable)
    producer.puts(DATA, b"x")
    producer.ends_turn()
    (frame,) = producer.queue.frames
    assert frame == pack_frame(DATA, topology.IP, 1, 1, [b"x"])
    successor = Producer(durable, incarnation=9)
    successor.outbox.greet({"done": 0})
    successor.ends_turn()
    assert successor.queue.frames[1] == pack_frame(DATA, topology.IP, 9, 1, [b"x"])


def test_errors_about_datagrams_behind_a_full_pipe_are_bounded_and_counted_as_data_is(durable):
    producer = Producer(durable, room=0)
    for _ in range(ahead(40) + outbox.BACKLOG_RECORDS + 12):
        producer.puts(messages.SOCKET_ERROR, bytes(40))
        producer.ends_turn()
    assert producer.counted("bus_pipe_full") == 12 - 1
    assert producer.outbox.unread_octets < backlog.AHEAD_FLOW_OCTETS


def test_no_backlog_takes_more_of_a_pool_than_is_left_for_all_others():
    pool = backlog.Pool(1000 * (100 + backlog.ENTRY_OCTETS))
    backlogs = [backlog.Backlog(1 << 16, pool) for _ in range(3)]
    assert [each.add_data(DATA, [bytes(100)] * 2000) for each in backlogs] == [500, 250, 125]
    kind, records, data = backlogs[0].pop(64, 1 << 16)
    assert (kind, len(records), data) == (DATA, 64, 64)
    assert backlogs[1].discard() == 250
    assert backlogs[2].add_data(DATA, [bytes(100)] * 2000) == 157  # it has 282 then, as many as are free
    assert backlogs[0].discard() == 500 - 64
    backlogs[2].discard()
    assert pool.free == 1000 * (100 + backlog.ENTRY_OCTETS)
