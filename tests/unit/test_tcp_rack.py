"""RACK-TLP on a scoreboard, with literal times."""

from __future__ import annotations

import pytest

from layers.tcp.rack import DSACK_ROUNDS_FORGET, TURN_S, Rack, TailProbe
from layers.tcp.scoreboard import LOST, Scoreboard

MSS = 100
RTT_S = 0.1


class Sender:
    """Ten segments, a millisecond apart from second 10 on; round trips of 100 ms."""

    def __init__(self, count: int = 10, apart_s: float = 0.001) -> None:
        self.board, self.rack = Scoreboard(MSS), Rack()
        for number in range(count):
            self.board.sent(number * MSS, (number + 1) * MSS, 10.0 + number * apart_s)

    def acknowledged(self, now: float, una: int, *blocks: tuple[int, int], echoed_at: float | None = None) -> int:
        """Octets found lost."""
        highest = self.board.top
        self.board.acknowledged(una, blocks, now)
        self.rack.acknowledged(self.board, highest, RTT_S, echoed_at, now)
        return self.detect(now)

    def detect(self, now: float, recovering: bool = False) -> int:
        return self.rack.detect(self.board, self.rack.window_s(RTT_S, RTT_S, recovering), now)

    @property
    def lost(self) -> list[int]:
        return [number for entry in self.board.entries if entry.state == LOST
                for number in range(entry.start // MSS, entry.end // MSS)]


def test_rfc8985_6_2_step_5_lost_is_what_is_older_than_what_arrived_by_a_round_trip_and_the_window():
    sender = Sender()
    assert sender.acknowledged(10.102, 0, (200, 300)) == 0
    assert sender.rack.due == pytest.approx(10.0 + RTT_S + RTT_S / 4)
    assert sender.detect(10.1249) == 0
    assert sender.detect(10.12501) == MSS
    assert (sender.lost, sender.rack.due) == ([0], pytest.approx(10.126))
    assert sender.detect(10.1261) == MSS
    assert (sender.lost, sender.rack.due) == ([0, 1], None)


def test_rfc8985_6_2_what_was_sent_later_than_what_arrived_is_not_judged():
    sender = Sender()
    sender.acknowledged(10.102, 0, (200, 300))
    sender.detect(20.0)
    assert sender.lost == [0, 1]


def test_rfc8985_3_2_the_loss_of_a_retransmission_is_found():
    sender = Sender()
    sender.acknowledged(10.104, 0, (100, 500))
    assert sender.detect(10.2) == MSS
    sender.board.sent(0, 100, 10.2)
    sender.board.sent(1000, 1100, 10.21)
    assert sender.acknowledged(10.31, 0, (100, 1100)) == 0
    assert sender.detect(10.3251) == MSS  # what was sent after it has arrived
    assert sender.lost == [0]


def test_rfc8985_6_2_step_4_without_reordering_a_recovery_waits_a_turn_of_the_loop_only():
    sender = Sender()
    sender.acknowledged(10.102, 0, (200, 300))
    assert sender.detect(10.1019, recovering=True) == MSS
    assert sender.rack.window_s(RTT_S, RTT_S, True) == TURN_S
    assert sender.rack.window_s(RTT_S, RTT_S, False) == RTT_S / 4


def test_rfc8985_6_2_step_3_reordering_is_seen_where_the_lower_comes_after_the_higher():
    sender = Sender()
    sender.acknowledged(10.102, 0, (200, 300))
    assert not sender.rack.reordering_seen
    sender.acknowledged(10.103, 200, (200, 300))
    assert sender.rack.reordering_seen
    assert sender.rack.window_s(RTT_S, RTT_S, True) == RTT_S / 4


def test_rfc8985_6_2_step_3_a_retransmission_that_fills_a_hole_is_no_reordering():
    sender = Sender()
    sender.acknowledged(10.102, 0, (100, 300))
    sender.detect(10.2)
    sender.board.sent(0, 100, 10.2)
    sender.acknowledged(10.3, 300)
    assert not sender.rack.reordering_seen


def test_rfc8985_6_2_step_4_duplicates_reported_widen_the_window_once_a_round_trip_and_16_recoveries_narrow_it():
    sender = Sender()
    sender.rack.reordering_seen = True
    sender.acknowledged(10.1, 200, (0, 100))
    sender.acknowledged(10.1, 300, (100, 200))
    assert sender.rack.window_s(RTT_S, RTT_S, True) == pytest.approx(2 * RTT_S / 4)
    sender.acknowledged(10.2, 1000, (200, 300))
    assert sender.rack.window_s(RTT_S, RTT_S, True) == pytest.approx(3 * RTT_S / 4)
    for _ in range(DSACK_ROUNDS_FORGET):
        sender.rack.recovered()
    assert sender.rack.window_s(RTT_S, RTT_S, True) == pytest.approx(RTT_S / 4)


def test_rfc8985_6_2_step_4_the_window_is_not_above_a_smoothed_round_trip():
    rack = Rack()
    rack._multiple = 100
    assert rack.window_s(RTT_S, RTT_S, False) == RTT_S


def test_rfc8985_6_2_step_2_an_answer_to_the_original_is_not_one_to_the_retransmission():
    sender = Sender()
    sender.board.sent(0, 100, 10.15)
    sender.acknowledged(10.16, 100)  # 10 ms are no round trip here
    assert (sender.rack.sent_at, sender.lost) == (0.0, [])
    sender = Sender()
    sender.board.sent(0, 100, 10.15)
    sender.acknowledged(10.26, 100, echoed_at=10.0)
    assert sender.rack.sent_at == 0.0


def test_reordering_within_a_turn_of_the_loop_is_no_loss_however_small_the_round_trip():
    """Everything sent in a turn has one time, and so has everything received in one."""
    board, rack = Scoreboard(MSS), Rack()
    for number in range(10):
        board.sent(number * MSS, (number + 1) * MSS, 10.0)
    board.acknowledged(0, [(900, 1000)], 10.0001)
    rack.acknowledged(board, 0, 0.0001, None, 10.0001)
    for recovering in (False, True):
        assert rack.detect(board, rack.window_s(0.0001, 0.0001, recovering), 10.0001) == 0
    assert rack.due == pytest.approx(10.0001 + TURN_S)


def test_rfc8985_6_3_a_time_out_takes_the_first_and_what_is_overdue():
    sender = Sender(10, apart_s=0.05)
    sender.acknowledged(10.1, 100)
    assert sender.rack.timed_out(sender.board, 0.025, 10.31) == 3 * MSS
    assert sender.lost == [1, 2, 3]


def test_rfc8985_7_2_a_probe_after_two_round_trips_and_for_a_lone_segment_after_the_delayed_ack():
    assert TailProbe.timeout_s(0.1, 500, 100) == 0.2
    assert TailProbe.timeout_s(0.1, 100, 100) == 0.4
    assert TailProbe.timeout_s(0.0, 500, 100) == 1.0


@pytest.mark.parametrize(("resent", "una", "dsack", "repeated", "repaired", "over"), [
    (True, 999, False, True, False, False),  # not yet
    (True, 1000, False, False, False, False),  # of one of them: which, is open
    (True, 1000, False, True, False, True),  # of both
    (True, 1000, True, False, False, True),
    (True, 1100, False, False, True, True),  # one only has arrived
    (False, 1000, False, False, False, True),  # it was new
])
def test_rfc8985_7_4_2_what_the_answer_to_a_probe_says(resent, una, dsack, repeated, repaired, over):
    probe = TailProbe()
    probe.sent(1000, resent)
    assert probe.acknowledged(una, dsack, repeated) is repaired
    assert (probe.end is None) is over
