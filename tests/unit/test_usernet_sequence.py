"""The numbered pipe at the application's end, and where a stack is found."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import lengths
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usernet.pipe import run_dir
from usernet.pipe.numbering import NEXT, REPLAY_FRAMES_MAX, REPLAY_OCTETS_MAX, Incoming, ReplayBuffer, Verdict


def resumed(first: int = 1) -> Incoming:
    incoming = Incoming()
    incoming.started(1)
    incoming.resumed(1, first)
    return incoming


def test_frames_are_taken_once_and_in_order():
    incoming = resumed()
    assert [incoming.judge(1, number) is NEXT for number in (1, 2, 2, 1, 3)] == [True, True, False, False, True]


def test_ahead_of_its_turn_waits_for_the_repetition():
    incoming = resumed()
    incoming.judge(1, 1)
    assert incoming.started(2)
    assert incoming.judge(2, 5) is Verdict.EARLY
    incoming.resumed(2, 2)
    assert [incoming.judge(2, number) for number in (2, 3, 4, 5)] == [NEXT] * 4
    assert incoming.lost == 0


def test_frames_that_cannot_be_repeated_are_counted_as_lost():
    incoming = resumed()
    incoming.started(2)
    incoming.resumed(2, 11)
    assert (incoming.lost, incoming.judge(2, 11)) == (10, NEXT)


def test_a_gap_outside_a_repetition_is_lost_and_counted():
    incoming = resumed()
    assert incoming.judge(1, 4) is NEXT
    assert incoming.lost == 3


def test_a_former_incarnation_is_stale():
    incoming = resumed()
    incoming.started(3)
    incoming.resumed(3, 1)
    assert incoming.judge(1, 1) is Verdict.STALE
    assert not incoming.started(2)


@given(lengths.runs(st.integers(0, 3000) | st.just(30_000), 5, 1, 2, 100, REPLAY_FRAMES_MAX), st.integers(0, 1500))
@example([0] * (REPLAY_FRAMES_MAX + 1), 0)
@example([30_000] * 200, 50)
@example([REPLAY_OCTETS_MAX // 512 - 4] * 512, 0)
@example([REPLAY_OCTETS_MAX // 512 - 3] + [REPLAY_OCTETS_MAX // 512 - 4] * 511, 0)
def test_the_journal_repeats_exactly_the_tail_it_has(sizes, done):
    journal = ReplayBuffer()
    for number, size in enumerate(sizes, 1):
        journal.append(number.to_bytes(4, "big") + bytes(size))
    first, frames = journal.after(done)
    numbers = [int.from_bytes(frame[:4], "big") for frame in frames]
    assert numbers == list(range(first, len(sizes) + 1))
    kept = octets = 0
    while kept < min(len(sizes), REPLAY_FRAMES_MAX) and octets + sizes[-1 - kept] + 4 <= REPLAY_OCTETS_MAX:
        octets += sizes[-1 - kept] + 4
        kept += 1
    assert first == min(max(done, len(sizes) - kept), len(sizes)) + 1


@given(st.integers(1, 300), st.integers(0, 300), st.data())
def test_sender_and_receiver_agree_after_any_crash(sent, reached, data):
    """Frames up to `reached` got through; after HELLO, RESUME and repetition nothing the journal has is missing."""
    journal, incoming = ReplayBuffer(), resumed()
    for number in range(1, sent + 1):
        journal.append(b"%d" % number)
        if number <= reached:
            assert incoming.judge(1, number) is NEXT
    incoming.started(2)
    following = min(sent, reached) + 1
    early = data.draw(st.integers(1, sent + 5) | st.just(following))
    assert (incoming.judge(2, early) is NEXT) == (early == following)  # overtakes the repetition
    first, frames = journal.after(incoming.done)
    incoming.resumed(2, first)
    taken = [frame for number, frame in enumerate(frames, first) if incoming.judge(2, number) is NEXT]
    assert taken == frames[len(frames) - len(taken) :]
    assert incoming.done == (early if early == following > sent else sent)
    assert incoming.lost == 0


def test_run_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("USERNET_DIR", "/somewhere/else")
    assert run_dir.run_dir() == Path("/somewhere/else")
    assert run_dir.run_dir("lab") != Path("/somewhere/else")
    monkeypatch.delenv("USERNET_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.delenv("USERNET_NAME", raising=False)
    assert run_dir.run_dir() == Path("/run/user/1/usernet/default")
    monkeypatch.setenv("USERNET_NAME", "lab")
    assert run_dir.run_dir() == Path("/run/user/1/usernet/lab")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_dir.run_dir("x") == Path(tempfile.gettempdir()) / f"usernet-{os.getuid()}" / "x"


@pytest.mark.parametrize("name", ["..", ".x", "-x", "a/b", "a" * 33, "ü", "a\n", "a b"])
def test_invalid_names(name):
    with pytest.raises(ValueError, match="invalid name of a stack"):
        run_dir.run_dir(name)
