"""The scoreboard against a model that remembers every octet by itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layers.tcp.scoreboard import IN_FLIGHT, LOST, SACKED, Scoreboard

MSS = 100
SMALL = 5  # of the model, which counts octets


def flight(count: int = 10, at: float = 1.0) -> Scoreboard:
    """So many segments in flight, a millisecond apart."""
    board = Scoreboard(MSS)
    for number in range(count):
        board.sent(number * MSS, (number + 1) * MSS, at + number / 1000)
    return board


def states(board: Scoreboard) -> list[tuple[int, int, int]]:
    return [(entry.start // MSS, entry.end // MSS, entry.state) for entry in board.entries]


def test_rfc6675_2_pipe_is_what_is_neither_sacked_nor_lost_and_what_was_sent_again():
    board = flight()
    assert (board.pipe, board.flight) == (1000, 1000)
    board.acknowledged(100, [(500, 1000)], 2.0)
    assert (board.pipe, board.sacked, board.delivered, board.flight) == (400, 500, 600, 900)
    assert board.mark_lost_by_sack() == 400
    assert (board.pipe, board.lost) == (0, 400)
    board.sent(100, 200, 2.0)
    assert (board.pipe, board.lost, board.next_lost()) == (100, 300, (200, 500))


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.001])), min_size=1, max_size=6),
       st.lists(st.integers(0, 5), max_size=2), st.integers(1, 1800))
def test_the_short_form_of_an_acknowledgment_says_what_the_general_one_does(sent, again, acknowledged):
    """`advanced` and `acknowledged` without blocks, where nothing is sacked or lost."""
    short, general = Scoreboard(MSS), Scoreboard(MSS)
    for board in (short, general):
        now = 1.0
        for octets, pause_s in sent:
            board.sent(board.nxt, board.nxt + octets, now)
            now += pause_s
        for number in again:
            if number < len(board.entries):
                board.sent(board.entries[number].start, board.entries[number].end, now + 0.1)
    una = min(acknowledged, short.nxt)
    short.advanced(una, 2.0)
    general.acknowledged(una, (), 2.0)
    for name in ("delivered", "dsack", "first_sent_once", "newest_again", "newest_end", "newest_sent_at", "nxt", "pipe",
                 "rtt_s", "una"):
        assert getattr(short, name) == getattr(general, name), name
    assert [(each.start, each.end, each.sent_at, each.again) for each in short.entries] == [
        (each.start, each.end, each.sent_at, each.again) for each in general.entries]
    assert una < short.nxt or not short.order


def test_rfc6675_4_islost_by_three_blocks_or_more_than_two_segments_above():
    board = flight()
    board.acknowledged(0, [(100, 300)], 2.0)
    assert board.mark_lost_by_sack() == 0  # two segments are not enough
    board.acknowledged(0, [(100, 301)], 2.0)
    assert board.mark_lost_by_sack() == 100
    board = flight()
    board.acknowledged(0, [(100, 110), (300, 310), (500, 510)], 2.0)
    assert board.mark_lost_by_sack() == 100
    assert states(board)[0] == (0, 1, LOST)


def test_rfc6675_4_what_was_sent_again_is_not_lost_by_numbers():
    board = flight()
    board.acknowledged(0, [(100, 500)], 2.0)
    assert board.mark_lost_by_sack() == 100
    board.sent(0, 100, 2.0)
    board.acknowledged(0, [(100, 900)], 2.1)
    assert (board.mark_lost_by_sack(), board.next_lost()) == (0, None)


def test_rfc6675_4_nextseg_gives_the_lowest_first():
    board = flight()
    board.acknowledged(0, [(900, 1000), (700, 800), (500, 600)], 2.0)
    assert board.mark_lost_by_sack() == 500
    given_out = []
    while (lost := board.next_lost()) is not None:
        given_out.append(lost)
        board.sent(lost[0], min(lost[1], lost[0] + 200), 2.0)
    assert given_out == [(0, 500), (200, 500), (400, 500)]
    board.acknowledged(0, [(700, 1000), (500, 600)], 2.0)
    assert (board.mark_lost_by_sack(), board.next_lost()) == (100, (600, 700))
    board.acknowledged(0, [(900, 1000), (800, 850), (700, 750)], 2.0)  # repeated
    assert board.sacked == 400


def test_blocks_side_by_side_are_one_entry_and_a_repetition_changes_nothing():
    board = flight(100)
    for number in range(1, 99):
        board.acknowledged(0, [(100, 100 * (number + 1))], 2.0)
    assert states(board) == [(0, 1, IN_FLIGHT), (1, 99, SACKED), (99, 100, IN_FLIGHT)]
    board.acknowledged(0, [(200, 900)], 2.0)
    assert (board.delivered, len(board.entries)) == (0, 3)


def test_rfc2018_3_blocks_of_what_was_never_sent_or_of_nothing_are_ignored():
    board = flight()
    board.acknowledged(200, [(900, 1100), (500, 500), (600, 300), (-300, -100)], 2.0)
    assert (board.sacked, board.dsack) == (0, None)
    board.acknowledged(200, [(-300, 100)], 2.0)
    assert board.dsack == (-300, 100)


def test_rfc2883_4_1_a_block_below_the_cumulative_point_is_a_duplicate():
    board = flight()
    board.acknowledged(400, [(100, 200), (600, 700)], 2.0)
    assert (board.dsack, board.sacked) == ((100, 200), 100)


def test_rfc2883_4_2_a_block_inside_the_second_is_a_duplicate():
    board = flight()
    board.acknowledged(0, [(500, 600), (400, 800)], 2.0)
    assert (board.dsack, board.sacked) == ((500, 600), 400)
    board.acknowledged(0, [(400, 800)], 2.0)
    assert board.dsack is None


def test_rfc6298_3_karn_no_round_trip_of_what_was_sent_twice():
    board = flight(3)
    board.acknowledged(100, [], 1.05)
    assert board.rtt_s is not None
    assert abs(board.rtt_s - 0.05) < 1e-9
    board.sent(100, 200, 1.2)
    board.acknowledged(200, [], 1.25)
    assert (board.rtt_s, board.newest_again, board.newest_sent_at) == (None, True, 1.2)
    board.acknowledged(300, [], 1.3)
    assert board.rtt_s is not None


def test_a_round_trip_is_that_of_the_youngest_that_is_acknowledged():
    board = flight(10)
    board.acknowledged(500, [(700, 800)], 1.107)
    assert (board.newest_end, round(board.rtt_s, 6)) == (800, 0.1)


def test_a_super_segment_is_one_entry_until_an_acknowledgment_splits_it():
    board = Scoreboard(MSS)
    board.sent(0, 4400, 1.0)
    assert len(board.entries) == 1
    board.acknowledged(1000, [(2000, 3000)], 1.1)
    assert states(board) == [(10, 20, IN_FLIGHT), (20, 30, SACKED), (30, 44, IN_FLIGHT)]
    assert board.mark_lost_by_sack() == 1000


def test_rfc2018_8_reneging_after_a_time_out_nothing_that_was_sacked_is_relied_upon():
    board = flight()
    board.acknowledged(100, [(200, 500)], 2.0)
    assert not board.reneged
    board.acknowledged(200, [], 2.1)  # the hole is filled, and yet the peer lacks what it had
    assert board.reneged
    board.renege()
    assert (board.sacked, board.lost, board.next_lost(), board.top) == (0, 800, (200, 1000), 200)


def test_segments_wrongly_marked_lost_are_in_flight_again():
    board = flight()
    board.mark_all_lost()
    board.sent(0, 100, 2.0)
    board.forget_losses()
    assert (board.pipe, board.lost, board.next_lost()) == (1000, 0, None)


def test_rfc6582_without_sack_the_first_segment_of_what_is_left_is_lost():
    board = Scoreboard(MSS)
    board.sent(0, 1000, 1.0)
    assert board.mark_first_lost() == 100
    assert board.next_lost() == (0, 100)
    board.sent(0, 100, 1.1)
    board.acknowledged(300, [], 1.2)
    board.mark_first_lost()
    assert (board.next_lost(), board.pipe) == ((300, 400), 600)


def test_a_peer_that_sacks_single_octets_does_not_make_the_scoreboard_grow():
    board = flight(20)
    for octet in range(1, 2000, 2):
        board.acknowledged(0, [(octet, octet + 1)], 2.0)
    assert len(board.entries) <= 64 + 2 * 20 + 3
    assert board.sacked == sum(entry.end - entry.start for entry in board.entries if entry.state == SACKED)
    board.mark_all_lost()
    while (lost := board.next_lost()) is not None:  # ends
        board.sent(lost[0], min(lost[1], lost[0] + 7), 3.0)
    assert board.pipe == 2000 - board.sacked


def test_an_application_that_sends_single_octets_does_not_make_it_grow():
    board = Scoreboard(MSS)
    for octet in range(10_000):
        board.sent(octet, octet + 1, 1.0)
    assert len(board.entries) <= 64 + 2 * 10_000 // MSS + 1
    board.acknowledged(9_999, [], 2.0)
    assert (board.flight, board.delivered) == (1, 9_999)


class ScoreboardAgainstAModel(RuleBasedStateMachine):
    """Each octet from UNA to NXT has a state and the time when it was sent last."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Scoreboard(SMALL)
        self.una = 0
        self.octets: list[tuple[int, float, bool]] = []  # state, sent at, more than once
        self.now = 1.0

    @property
    def nxt(self) -> int:
        return self.una + len(self.octets)

    def change(self, start, end, function):
        for at in range(max(start, self.una), min(end, self.nxt)):
            self.octets[at - self.una] = function(*self.octets[at - self.una])

    @rule(length=st.integers(1, 20))
    def new(self, length):
        self.now += 0.001
        self.board.sent(self.nxt, self.nxt + length, self.now)
        self.octets += [(IN_FLIGHT, self.now, False)] * length

    @precondition(lambda self: self.octets)
    @rule(data=st.data())
    def acknowledge(self, data):
        self.now += 0.001
        una = data.draw(st.integers(self.una, self.nxt))
        edges = st.integers(una, self.nxt)
        blocks = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(edges, edges), max_size=3))]
        fresh = [octet for octet in self.octets[: una - self.una] if octet[0] != SACKED]
        del self.octets[: una - self.una]
        self.una = una
        for start, end in blocks:
            for at in range(start, end):
                octet = self.octets[at - una]
                if octet[0] != SACKED:
                    fresh.append(octet)
                    self.octets[at - una] = (SACKED, octet[1], octet[2])
        self.board.acknowledged(una, blocks, self.now)
        assert self.board.delivered == len(fresh)
        if all(octet[0] == IN_FLIGHT for octet in fresh):  # what was given up is one run, with one time
            assert self.board.newest_sent_at == max((octet[1] for octet in fresh), default=0.0)
            assert (self.board.first_sent_once is None) == all(octet[2] for octet in fresh)

    @precondition(lambda self: self.octets)
    @rule(most=st.integers(1, 20))
    def send_again_what_is_lost(self, most):
        lost = self.board.next_lost()
        first = next((at for at, octet in enumerate(self.octets) if octet[0] == LOST), None)
        if lost is None or first is None:
            assert lost == first
            return
        assert lost[0] == self.una + first
        assert all(octet[0] == LOST for octet in self.octets[first : lost[1] - self.una])
        self.now += 0.001
        end = min(lost[1], lost[0] + most)
        self.board.sent(lost[0], end, self.now)
        self.change(lost[0], end, lambda *_: (IN_FLIGHT, self.now, True))

    @precondition(lambda self: self.octets)
    @rule()
    def judge_by_blocks(self):
        before = self.board.lost
        found = self.board.mark_lost_by_sack()
        assert self.board.lost == before + found
        # RFC 6675 section 4: the model judges each octet by what is sacked above
        above = ranges = 0
        threshold = -1
        for at in range(len(self.octets) - 1, -1, -1):
            if self.octets[at][0] == SACKED:
                above += 1
                if at + 1 == len(self.octets) or self.octets[at + 1][0] != SACKED:
                    ranges += 1
            if above > 2 * SMALL or ranges >= 3:
                threshold = at
                break
        for at in range(threshold + 1):
            state, sent_at, again = self.octets[at]
            if state == IN_FLIGHT and not again:
                self.octets[at] = (LOST, sent_at, again)

    @precondition(lambda self: self.octets)
    @rule()
    def time_out(self):
        self.board.mark_all_lost()
        self.change(0, self.nxt, lambda state, at, again: (LOST if state == IN_FLIGHT else state, at, again))

    @precondition(lambda self: self.octets)
    @rule()
    def renege(self):
        self.board.renege()
        self.change(0, self.nxt, lambda state, at, again: (
            LOST, at, again or state == SACKED))

    @invariant()
    def both_agree(self):
        board = self.board
        assert (board.una, board.nxt) == (self.una, self.nxt)
        found = [octet for entry in board.entries for octet in [entry.state] * (entry.end - entry.start)]
        assert found == [octet[0] for octet in self.octets]
        counts = [found.count(state) for state in (IN_FLIGHT, SACKED, LOST)]
        assert [board.pipe, board.sacked, board.lost] == counts
        edges = [board.una, *(entry.end for entry in board.entries)]
        assert edges[:-1] == [entry.start for entry in board.entries]
        for entry in board.entries:
            if entry.state == IN_FLIGHT:
                times = {octet[1:] for octet in self.octets[entry.start - self.una : entry.end - self.una]}
                assert times == {(entry.sent_at, entry.again)}


TestScoreboardAgainstAModel = ScoreboardAgainstAModel.TestCase
TestScoreboardAgainstAModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 2500), st.integers(-50, 2500)), max_size=8), st.integers(0, 2000))
def test_no_block_is_an_exception(blocks, una):
    board = flight(20)
    board.acknowledged(una, blocks, 2.0)
    board.mark_lost_by_sack()
    assert board.una == una
    assert board.pipe >= 0
