"""Pacing of large windows (docs/decisions/pacing.md)."""

from __future__ import annotations

import pytest
from netsim import MSS, Flow, Path

from layers.tcp import pacing
from layers.tcp.pacing import PACED_RTT_MIN_S, SLOW_START_RATIO, TURN_S, Pacing

NOW, RTT_S, CWND = 50.0, 0.02, 100.0 * MSS


def allowed(it: Pacing, now: float, room: int = 1 << 20, slow_start: bool = False, rtt_s: float = RTT_S,
            cwnd: float = CWND) -> int:
    return it.allowance(room, cwnd, slow_start, rtt_s, MSS, now)


def test_a_window_leaves_over_the_round_trip_and_not_at_once():
    it, now, sent, bursts = Pacing(), NOW, 0, []
    while sent < CWND:
        burst = allowed(it, now)
        if burst:
            it.sent(burst, now)
            sent += burst
            bursts.append(burst)
        else:
            assert it.due is not None
            assert it.due > now
            now = it.due
    assert max(bursts) <= max(2 * MSS, it.rate * TURN_S)
    assert now - NOW == pytest.approx(RTT_S / pacing.RATIO, rel=0.15)


def test_a_timer_that_comes_late_is_made_up_for():
    it, now, sent = Pacing(), NOW, 0
    for _ in range(10):
        while burst := allowed(it, now):
            it.sent(burst, now)
            sent += burst
        now = it.due + 0.005  # the loop was busy
    assert sent == pytest.approx(it.rate * (now - 0.005 - NOW), rel=0.1)


def quantum(it: Pacing) -> float:
    return max(2 * MSS, it.rate * TURN_S)


def after_waiting() -> tuple[Pacing, float]:
    """Something waits for the timer; when that is due."""
    it = Pacing()
    while burst := allowed(it, NOW):
        it.sent(burst, NOW)
    assert it.due is not None
    return it, it.due


def test_time_in_which_the_window_or_a_recovery_was_the_limit_is_not_made_up_for():
    it, due = after_waiting()
    it.held()
    assert allowed(it, due + RTT_S) <= quantum(it)


def test_what_a_late_timer_has_made_up_for_counts_in_that_turn_only():
    it, due = after_waiting()
    late = due + RTT_S
    assert allowed(it, late) > 50 * MSS
    it.sent(2 * MSS, late)  # there was no more
    assert allowed(it, late) > 50 * MSS
    assert allowed(it, late + 1e-3) <= quantum(it)


def largest_burst(flow: Flow, since: float) -> int:
    """Run a flow to its end; the maximum number of segments sent at one time from `since` on."""
    sent: dict[float, int] = {}
    before = flow.transmissions

    def count(it: Flow) -> None:
        nonlocal before
        if it.clock.now >= since:
            sent[it.clock.now] = sent.get(it.clock.now, 0) + it.transmissions - before
        before = it.transmissions

    flow.trace = count
    flow.run()
    return max(sent.values())


def test_octets_written_late_in_a_recovery_do_not_leave_at_once():
    """Until then the application was the limit, so what proportional rate reduction permits has been saved up."""
    flow = Flow(Path(rtt_s=0.2, queue=1000, lose=(400,)), 640 * MSS)
    flow.clock.run(lambda: flow.recovery.congestion_state == 3, 1e9)
    begun = flow.clock.now
    flow.clock.at(begun + 0.19, flow.write, 300 * MSS)
    assert largest_burst(flow, begun + 0.19) <= 10


def test_a_full_window_holds_the_pacing():
    flow = Flow(Path(rtt_s=0.2), 400 * MSS)
    flow.run()
    recovery, now = flow.recovery, flow.clock.now
    while burst := recovery.allowance(now):
        recovery.sent(flow.nxt, flow.nxt + burst, now, False)
        flow.nxt += burst
    assert recovery.pacing.due is not None
    window, recovery.control.cwnd = recovery.control.cwnd, float(MSS)
    assert recovery.allowance(now + 0.001) == 0
    recovery.control.cwnd = window
    assert recovery.allowance(now + 0.15) <= quantum(recovery.pacing)


def test_a_pause_of_the_application_is_not_made_up_for():
    it = Pacing()
    it.sent(allowed(it, NOW), NOW)
    assert allowed(it, NOW + 10) <= max(2 * MSS, it.rate * TURN_S)


def test_slow_start_is_twice_as_fast_as_its_window():
    it = Pacing()
    allowed(it, NOW, slow_start=True)
    assert it.rate == SLOW_START_RATIO * CWND / RTT_S


@pytest.mark.parametrize(("rtt_s", "cwnd"), [(PACED_RTT_MIN_S / 2, CWND), (RTT_S, 10.0 * MSS)])
def test_short_round_trips_and_small_windows_are_not_paced(rtt_s, cwnd):
    it = Pacing()
    for _ in range(5):
        assert allowed(it, NOW, 64_000, rtt_s=rtt_s, cwnd=cwnd) == 64_000
        it.sent(64_000, NOW)
    assert it.due is None


def test_where_nothing_is_in_flight_an_initial_window_leaves_at_once():
    it = Pacing()
    it.starts(10 * MSS)
    assert allowed(it, NOW) == 10 * MSS
    for _ in range(10):
        assert allowed(it, NOW) >= MSS
        it.sent(MSS, NOW)
    assert allowed(it, NOW) == 0
    assert it.due == pytest.approx(NOW + 10 * MSS / it.rate)


def test_less_than_a_segment_leaves_when_it_is_all_there_is_room_for():
    it = Pacing()
    assert allowed(it, NOW, 10) == 10


def dropped(queue: int, paced: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int]:
    """Seconds and drops of 300 kB, sent at once after 3 s of silence, over a queue."""
    monkeypatch.setattr(pacing, "PACED_RTT_MIN_S", 0.004 if paced else 1e9)
    flow = Flow(Path(queue=queue), 2_000_000)
    flow.run()
    begun = flow.clock.now + 3
    flow.clock.at(begun, lambda: None)
    flow.clock.run(lambda: flow.clock.now >= begun, 1e9)
    before = flow.dropped
    flow.write(300_000)
    flow.clock.run(lambda: flow.una > flow.total, 1e9)
    return flow.clock.now - begun, flow.dropped - before


def test_a_window_after_a_pause_does_not_overflow_a_short_queue(monkeypatch):
    paced, lost = dropped(10, True, monkeypatch)
    burst, lost_of_burst = dropped(10, False, monkeypatch)
    assert (lost, lost_of_burst > 0) == (0, True)
    assert paced < 0.8 * burst


def test_slow_start_goes_further_where_the_queue_is_shorter_than_the_path(monkeypatch):
    seconds = {}
    for paced in (True, False):
        monkeypatch.setattr(pacing, "PACED_RTT_MIN_S", 0.004 if paced else 1e9)
        seconds[paced] = Flow(Path(queue=20), 2_000_000).run()
    assert seconds[True] < 0.7 * seconds[False]
