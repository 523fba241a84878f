"""Loss recovery as a whole: the parts together on a simulated path, where every loss is chosen."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netsim import MSS, START_S, Flow, Path, Segment

from layers.tcp import advisory
from layers.tcp.recovery import LOSS, OPEN, RECOVERY, Recovery

RTT_S = 0.02
BOTH = pytest.mark.parametrize("sack", [True, False])


def flow(segments: int, *lose: int, **options) -> Flow:
    """A transfer of so many segments over 20 ms and 100 Mbit/s that loses the transmissions counted."""
    path = Path(rtt_s=RTT_S, lose=lose)
    return Flow(path, segments * MSS, **options)


@BOTH
@pytest.mark.parametrize("timestamps", [True, False])
def test_without_a_loss_nothing_is_sent_twice_and_nothing_expires(sack, timestamps):
    it = flow(1000, sack=sack, timestamps=timestamps)
    it.run()
    assert (it.transmissions, it.timeouts, it.recovery.retransmits) == (1000, 0, 0)
    assert it.recovery.freed
    assert it.recovery.deadline is None


@BOTH
def test_rfc5681_3_2_a_loss_in_the_middle_is_repaired_without_a_time_out(sack):
    it = flow(300, 150, sack=sack)
    it.run()
    assert (it.transmissions, it.timeouts, it.receiver.duplicates) == (301, 0, 0)
    assert it.recovery.ssthresh < 1 << 30


@BOTH
def test_rfc6582_several_losses_of_a_window_are_one_reduction(sack):
    it = flow(600, 150, 153, 160, 165, sack=sack, congestion="reno")
    before = []
    it.trace = lambda it: before.append((it.recovery._state, it.recovery.ssthresh))
    it.run()
    assert it.timeouts == 0
    assert len({ssthresh for _, ssthresh in before}) == 2
    assert {state for state, _ in before} == {OPEN, RECOVERY}


def test_rfc3042_each_of_the_first_duplicates_lets_a_new_segment_leave():
    it = flow(10, sack=False)
    it.run()
    recovery, now = it.recovery, it.clock.now
    una = it.una
    recovery.control.cwnd = recovery.control.ssthresh = 4.0 * MSS
    for number in range(4):
        recovery.sent(una + number * MSS, una + (number + 1) * MSS, now, False)
    assert recovery.allowance(now) == 0
    for duplicates in (1, 2):
        recovery.acknowledged(una, (), now + RTT_S, True, None)
        assert (recovery.allowance(now), recovery.lost()) == (duplicates * MSS, None)
    recovery.acknowledged(una, (), now + RTT_S, True, None)
    assert recovery.lost() == (una, una + MSS)


def test_rfc8985_7_the_last_segments_are_probed_for_and_no_time_out_is_needed():
    for lose in ((19,), (18, 19), (17, 18, 19), (15, 16, 17, 18, 19)):
        it = flow(20, *lose)
        assert it.run() < 0.4
        assert it.timeouts == 0, lose


def test_rfc8985_7_3_there_is_one_probe_and_none_before_a_round_trip_was_measured_again():
    it = flow(10)
    it.run()
    recovery, now = it.recovery, it.clock.now
    una = it.una
    recovery.sent(una, una + MSS, now, True)
    expiry = recovery.deadline
    assert expiry < now + recovery.rto_s + 1e-9
    assert not recovery.expire(expiry)  # a probe, not the time-out
    assert recovery.lost() == (una, una + MSS)
    assert recovery.allowance(expiry) >= MSS
    recovery.sent(una, una + MSS, expiry, True)
    assert recovery.deadline == pytest.approx(expiry + recovery.rto_s)  # no second probe: the time-out, anew
    recovery.acknowledged(una + MSS, (), expiry + RTT_S, False, None)  # of which of both is open (Karn)
    recovery.sent(una + MSS, una + 2 * MSS, expiry + RTT_S, True)
    assert recovery.deadline == pytest.approx(expiry + RTT_S + recovery.rto_s)
    recovery.acknowledged(una + 2 * MSS, (), expiry + 2 * RTT_S, False, None)
    recovery.sent(una + 2 * MSS, una + 4 * MSS, expiry + 2 * RTT_S, True)
    assert recovery.deadline < expiry + 2 * RTT_S + recovery.rto_s


def test_rfc8985_3_2_a_retransmission_that_is_lost_is_sent_again_without_a_time_out():
    it = flow(1000, 150)
    resent = []
    it.trace = lambda it: resent.append(it.transmissions) if it.recovery.retransmits == 1 and not resent else None
    it.run()
    again = resent[0] - 1
    it = flow(1000, 150, again)
    it.run()
    assert (it.timeouts, it.lost, it.recovery.retransmits) == (0, 2, 2)


@BOTH
def test_rfc6298_5_everything_lost_is_repaired_by_the_timer_which_backs_off(sack):
    it = flow(4, *range(10), sack=sack)
    expiries = []
    it.trace = lambda it: expiries.append(it.clock.now - START_S) if it.timeouts > len(expiries) else None
    it.run()
    assert it.timeouts >= 3
    pauses = [later - sooner for sooner, later in pairwise(expiries)]
    assert all(1.9 < later / sooner < 2.1 for sooner, later in pairwise(pauses))
    assert it.recovery.backoffs == 0


def test_rfc5681_3_1_a_time_out_starts_with_one_segment():
    it = flow(400, *range(100, 420))
    windows = []
    it.trace = lambda it: windows.append(it.recovery.cwnd) if it.recovery._state == LOSS else None
    it.run()
    assert it.timeouts
    assert windows[0] == MSS


@pytest.mark.parametrize("timestamps", [True, False])
def test_rfc5682_a_delay_that_looks_like_a_loss_costs_no_window(timestamps):
    it = flow(2000, congestion="reno", timestamps=timestamps, window=200 * MSS)
    it.clock.at(START_S + 0.15, lambda: None)
    it.clock.run(lambda: it.clock.now >= START_S + 0.15, START_S + 1)
    before = it.recovery.cwnd
    stall(it, 0.5)
    it.run()
    assert it.timeouts == 1
    assert it.recovery.cwnd >= before
    assert it.recovery.ssthresh > 1 << 30


def stall(it: Flow, seconds: float) -> None:
    """Whatever is sent and answered in the next seconds arrives together, then."""
    until = it.clock.now + seconds
    arrive, held = it.acknowledgment, []

    def late(*what):
        if it.clock.now < until:
            held.append(what)
            if len(held) == 1:
                it.clock.at(until, release)
        else:
            arrive(*what)

    def release():
        for number, what in enumerate(held):
            it.clock.at(until + number * 1e-4, arrive, *what)

    it.acknowledgment = late  # type: ignore[method-assign]


def test_rfc3708_duplicates_reported_of_all_that_was_sent_again_undo_the_reduction():
    """A burst arrives so late that it is taken for lost and sent again."""
    it = Flow(Path(rtt_s=RTT_S), 2000 * MSS, timestamps=False)
    deliver, count = it.receiver.segment, [0]

    def late(segment: Segment) -> None:
        count[0] += 1
        if count[0] in (200, 201):
            it.clock.at(it.clock.now + 0.03, deliver, segment)
        else:
            deliver(segment)

    it.receiver.segment = late  # type: ignore[method-assign]
    it.run()
    assert it.receiver.duplicates == it.recovery.retransmits > 0
    assert it.recovery.ssthresh > 1 << 30
    assert it.recovery._rack.reordering_seen


def test_reordering_by_a_few_segments_costs_neither_octets_nor_window():
    path = Path(rtt_s=RTT_S, reorder=0.05, reorder_s=0.0005)
    it = Flow(path, 3000 * MSS)
    it.run()
    assert it.receiver.duplicates <= 3
    assert it.timeouts == 0


@pytest.mark.parametrize("rtt_s", [0.00005, 0.001])
def test_round_trips_shorter_than_a_turn_of_the_loop(rtt_s):
    """gVisor's flows stopped at very small round trips: reordering within a turn looked like loss."""
    path = Path(rtt_s=rtt_s, rate_bits=1e10, queue=10_000, reorder=0.01, reorder_s=0.0003)
    it = Flow(path, 5000 * MSS, turn_s=0.001)
    seconds = it.run()
    assert it.timeouts == 0
    assert it.transmissions <= 5000 * 1.02
    assert 5000 * MSS * 8 / seconds > 4e8


def test_rfc3168_6_1_2_a_mark_halves_the_window_once_a_round_trip_and_sends_nothing_again():
    it = flow(2000, congestion="reno")
    it.clock.at(START_S + 0.1, lambda: None)
    it.clock.run(lambda: it.clock.now >= START_S + 0.1, START_S + 1)
    recovery = it.recovery
    recovery.congestion_experienced(it.clock.now)
    window = recovery.cwnd
    assert window == recovery.ssthresh
    recovery.congestion_experienced(it.clock.now)
    assert (recovery.cwnd, recovery.retransmits) == (window, 0)


def test_rfc2018_8_a_peer_that_reneges_gets_it_all_again():
    it = flow(100, 50)
    forgotten = []

    def renege():
        if it.receiver.ranges and not forgotten:
            forgotten.extend(it.receiver.ranges)
            it.receiver.ranges.clear()
        elif not forgotten:
            it.clock.at(it.clock.now + 0.001, renege)

    it.clock.at(START_S + 0.04, renege)
    it.run()
    assert forgotten
    assert it.receiver.rcv_nxt == 1 + 100 * MSS


def test_rfc7661_4_2_the_window_of_an_application_that_says_little_does_not_grow():
    it = flow(1)
    it.run()
    for _ in range(200):
        it.write(2 * MSS)
        it.run()
    assert it.recovery.cwnd <= 14 * MSS


def test_rfc5681_4_1_a_window_that_rested_is_the_initial_one():
    it = flow(2000, window=1 << 22)
    it.run()
    assert it.recovery.cwnd > 200 * MSS
    assert it.recovery.allowance(it.clock.now + 60) == 10 * MSS


def test_a_smaller_path_mtu_cuts_what_is_in_flight_without_a_reduction():
    it = flow(100)
    it.clock.run(lambda: it.clock.now > START_S + 0.03, START_S + 0.03)
    recovery, window = it.recovery, it.recovery.cwnd
    recovery.reduce_mss(500)
    assert recovery.lost() == (it.una, it.nxt)
    assert (recovery.cwnd, recovery.in_flight) == (window, 0)
    assert recovery.ssthresh > 1 << 30


def test_before_anything_was_sent_the_initial_window_follows_the_segment_size():
    recovery = Recovery(1460)
    recovery.sent(0, 1, 1.0, True)
    recovery.reduce_mss(536)
    assert (recovery.cwnd, recovery.lost()) == (5360, None)


def test_rfc6298_5_7_and_rfc6928_2_a_syn_that_is_lost_once_costs_no_window_and_twice_does():
    for expiries, window in ((0, 10 * MSS), (1, 10 * MSS), (2, MSS)):
        recovery = Recovery(MSS)
        now = 10.0
        recovery.sent(0, 1, now, True)
        for number in range(expiries):
            assert recovery.deadline == pytest.approx(now + 2**number)
            now = recovery.deadline
            assert recovery.expire(now)
            assert recovery.lost() == (0, 1)
            assert recovery.allowance(now) >= 1
            recovery.sent(0, 1, now, True)
        recovery.acknowledged(1, (), now + 0.05, False, None)
        assert recovery.cwnd == window
        assert (recovery.rto_s == 3.0) is (expiries > 0)


def test_a_window_probe_is_neither_in_flight_nor_a_loss_of_the_path():
    recovery = Recovery(MSS, sack=True)
    recovery.sent(0, 1, 1.0, True)
    recovery.acknowledged(1, (), 1.02, False, None)
    for _ in range(3):
        recovery.probe(1, 2)
        assert (recovery.in_flight, recovery.deadline, recovery.lost()) == (0, None, (1, 2))
    recovery.acknowledged(2, (), 9.0, False, None)
    assert (recovery.freed, recovery.ssthresh > 1 << 30, recovery.rto_s < 0.3) == (True, True, True)


def test_a_successor_starts_from_the_stored_advice():
    it = flow(2000, 1000)
    it.run()
    saved = advisory.pack(it.recovery)
    assert len(saved) == advisory.OCTETS <= 48
    successor = Recovery(MSS)
    advisory.unpack(successor, saved)
    assert successor.rtt_s == pytest.approx(it.recovery.rtt_s, rel=1e-6)
    assert (successor.cwnd, successor.ssthresh) == (
        pytest.approx(it.recovery.cwnd, rel=1e-6), pytest.approx(it.recovery.ssthresh, rel=1e-6))
    other = Recovery(MSS, "reno")
    advisory.unpack(other, saved)
    assert other.cwnd == pytest.approx(it.recovery.cwnd, rel=1e-6)


@given(st.binary(min_size=advisory.OCTETS, max_size=advisory.OCTETS), st.sampled_from(["cubic", "reno"]))
def test_no_octets_that_are_loaded_are_an_exception_or_an_absurd_window(octets, name):
    recovery = Recovery(MSS, name)
    advisory.unpack(recovery, octets)
    assert MSS <= recovery.cwnd <= 1 << 31
    assert 0 < recovery.rto_s <= 120


@BOTH
@pytest.mark.parametrize("arrived", [0, 1, 20, 40])
def test_a_successor_asks_with_one_segment_what_has_arrived(sack, arrived):
    """Forty segments were in flight when the predecessor died, and so many of them arrive."""
    it = flow(70, *range(30 + arrived, 70), sack=sack)
    it.clock.run(lambda: it.transmissions >= 70, START_S + 1)
    assert it.nxt - it.una >= 40 * MSS
    saved = advisory.pack(it.recovery)
    it.recovery = Recovery(MSS, sack=sack)
    advisory.unpack(it.recovery, saved)
    it.timer_at = None
    it.recovery.restored(it.una, it.nxt, it.clock.now)
    it.flush()
    assert it.transmissions == 71
    it.run()
    assert it.receiver.rcv_nxt == 1 + 70 * MSS
    assert it.transmissions - 70 <= 1 + 40 - arrived
    assert (it.timeouts, it.recovery.ssthresh > 1 << 30) == (0, True)


def test_another_algorithm_goes_on_from_the_same_window():
    it = flow(2000, 100)
    it.clock.run(lambda: it.una > 1000 * MSS, START_S + 5)
    before = (it.recovery.cwnd, it.recovery.ssthresh)
    it.recovery.use("reno")
    assert (it.recovery.cwnd, it.recovery.ssthresh, it.recovery.control.name) == (*before, "reno")
    it.run()


def test_an_algorithm_that_a_successor_has_not_is_the_default():
    recovery = Recovery(MSS, "vegas")
    assert recovery.control.name == "cubic"
    recovery.use("vegas")
    assert recovery.control.name == "cubic"


def test_advice_is_due_after_the_handshake_and_then_at_most_once_in_its_interval():
    recovery, memory, now, stored_at = Recovery(MSS), memoryview(bytearray(48)), START_S, []
    for number in range(350):
        recovery.sent(number, number + 1, now, True)
        now += 0.001
        recovery.acknowledged(number + 1, (), now, False, None)
        if recovery.advises:
            recovery.store(memory, 0)
            stored_at.append(now)
    assert len(stored_at) == 4
    assert stored_at[0] == pytest.approx(START_S + 0.001)
    assert all(later - earlier >= advisory.INTERVAL_S for earlier, later in pairwise(stored_at))
    successor = Recovery(MSS)
    successor.load(memory)
    assert successor.rtt_s == pytest.approx(0.001)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_path_delivers_in_bounded_time(data):
    """Losses, reordering, duplicates, any option: all arrives, and the sender's sums are what they should be."""
    path = Path(rtt_s=data.draw(st.sampled_from([0.0001, 0.01, 0.2])), rate_bits=data.draw(st.sampled_from([1e6, 1e8])),
                queue=data.draw(st.integers(2, 100)), loss=data.draw(st.floats(0, 0.3)),
                reorder=data.draw(st.floats(0, 0.5)), reorder_s=data.draw(st.floats(0, 0.3)),
                duplicate=data.draw(st.floats(0, 0.3)))
    it = Flow(path, data.draw(st.integers(1, 100_000)), data.draw(st.sampled_from(["cubic", "reno"])),
              data.draw(st.integers(0, 1000)), data.draw(st.booleans()), data.draw(st.booleans()),
              data.draw(st.sampled_from([MSS, 10_000, 65_535, 1 << 22])),
              data.draw(st.sampled_from([0.0, 0.001])), data.draw(st.sampled_from([MSS, 5 * MSS])))

    def check(it: Flow) -> None:
        recovery, board = it.recovery, it.recovery.board
        assert (board.una, board.nxt) == (it.una, it.nxt)
        assert sum(entry.end - entry.start for entry in board.entries) == board.flight
        assert board.pipe >= 0
        assert recovery.cwnd >= min(MSS, it.nxt)
        assert (recovery.deadline is None) == recovery.freed

    it.trace = check
    it.run(limit_s=5000)
    assert it.receiver.rcv_nxt == it.nxt == it.written


def test_two_runs_are_the_same():
    random.seed(5)
    path = Path(loss=0.02, reorder=0.02, reorder_s=0.002, duplicate=0.01)
    results = {(flow.run(), flow.transmissions) for flow in (Flow(path, 500 * MSS, seed=7) for _ in range(2))}
    assert len(results) == 1


def test_a_successor_that_knows_of_former_retransmissions_asks_all_the_same():
    it = flow(70, 5)
    it.clock.run(lambda: it.transmissions >= 60, START_S + 1)
    saved = advisory.pack(it.recovery)
    assert it.recovery.retransmits
    successor = Recovery(MSS, sack=True)
    advisory.unpack(successor, saved)
    assert successor.retransmits == it.recovery.retransmits
    successor.restored(it.una, it.nxt, it.clock.now)
    assert successor.allowance(it.clock.now) == MSS
    successor.sent(it.una, it.una + MSS, it.clock.now, False)
    assert successor.allowance(it.clock.now) == 0
    assert successor.deadline is not None
    assert not successor.expire(successor.deadline)
    assert successor.allowance(it.clock.now + 1) > MSS


def test_congestion_states_are_linux_s():
    it, states = flow(1000, 100, *range(900, 1500)), set()
    it.trace = lambda it: states.add(it.recovery.congestion_state)
    it.run()
    assert states == {0, 1, 3, 4}  # enum tcp_ca_state: open, disorder, recovery, loss
