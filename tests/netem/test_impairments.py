"""What the kernel's netem does to what it sends to the stack, `impair device:link` does to what comes from it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, quantiles

import pytest

from tests.badnet.lab import PORT, TRANSFER
from tests.system.conftest import unique_name
from tests.system.peers import KERNEL, STACK, Stack

ROUNDS = 3  # by turns, so that a busy moment of the machine is nobody's
PINGS, PING_INTERVAL_S = 100, 0.01
TRANSFER_S = 3
DEVIATIONS = 5  # of a binomial distribution
DIFFERENT_MS, DIFFERENT = 4.0, 0.2
OURS = re.compile(r"(?:^| )(delay|loss|rate|reorder|duplicate|corrupt)")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Without offload, so that both handle packets of an Ethernet one by one.

    The kernel's end, too, hands its segments to netem one by one. Otherwise netem would lose, delay and duplicate what
    TCP sends at once (two segments or more) as one packet, and TCP would meet half as many losses.
    """
    home = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))
    booted = Stack(home, unique_name())
    try:
        booted.up("--no-offload")
        booted.execute("ip", "link", "set", "dev", "tap0", "gso_max_segs", "1")
        yield booted
    finally:
        booted.end()
        shutil.rmtree(home, ignore_errors=True)


class Impaired:
    """What the kernel's end sends is impaired, by netem or by `impair`, in the same words."""

    def __init__(self, stack: Stack, whose: str, words: str) -> None:
        self._stack, self._netem, self._words = stack, whose == "netem", words

    def __enter__(self) -> None:
        if self._netem:
            self._stack.execute("tc", "qdisc", "add", "dev", "tap0", "root", "netem", *self._words.split())
        else:
            self._stack.run("impair", "device:link", *OURS.sub(r" --\1", self._words).split())

    def __exit__(self, *_: object) -> None:
        if self._netem:
            self._stack.execute("tc", "qdisc", "del", "dev", "tap0", "root")
        else:
            self._stack.run("impair", "--clear")


class Pings:
    """Answers and round trips in ms of all rounds."""

    def __init__(self) -> None:
        self.answered = self.duplicates = 0
        self.round_trips: list[float] = []

    def ping(self, stack: Stack) -> None:
        """One round; with -w, because without it ping(8) waits for the last answers for two round trips only."""
        out = stack.execute("ping", "-c", PINGS, "-i", PING_INTERVAL_S, "-W", 1, "-s", 1000, STACK, status=None).stdout
        self.duplicates += out.count("(DUP!)")
        found = re.findall(r"icmp_seq=(\d+) .*time=([\d.]+) ms(?! \(DUP!\))", out)
        self.answered += len(found)
        self.round_trips += [float(time_ms) for _, time_ms in found]

    def __repr__(self) -> str:
        quartiles = ", ".join(f"{quartile:.1f}" for quartile in quantiles(self.round_trips))
        return f"{self.answered} answered, {self.duplicates} duplicates, quartiles {quartiles} ms"


@pytest.mark.parametrize("words", [
    "delay 20ms", "delay 30ms 10ms", "delay 30ms 10ms 50%", "loss 20%", "loss gemodel 5% 20%", "rate 1mbit",
    "delay 50ms reorder 40%", "duplicate 50%", "corrupt 30%"])
def test_a_ping_sees_the_same(stack: Stack, words: str) -> None:
    seen = {"netem": Pings(), "impair": Pings()}
    for _ in range(ROUNDS):
        for whose, pings in seen.items():
            with Impaired(stack, whose, words):
                pings.ping(stack)
    print(words, seen)
    theirs, ours = seen.values()
    sent = ROUNDS * PINGS
    for mine, its in ((ours.answered, theirs.answered), (ours.duplicates, theirs.duplicates)):
        share = (mine + its) / 2 / sent
        bursts = 5 if "gemodel" in words else 1  # which last for five packets on average
        assert abs(mine - its) <= 1 + DEVIATIONS * (2 * bursts * sent * share * (1 - share)) ** 0.5
    for mine_ms, its_ms in zip(quantiles(ours.round_trips), quantiles(theirs.round_trips), strict=True):
        assert mine_ms == pytest.approx(its_ms, rel=DIFFERENT, abs=DIFFERENT_MS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("words", "rounds", "within"), [
    ("rate 5mbit delay 20ms", ROUNDS, 0.1), ("delay 20ms duplicate 10%", ROUNDS, 0.3),
    ("rate 5mbit delay 30ms 5ms", ROUNDS, 0.35),
    ("delay 20ms loss 2%", 4 * ROUNDS, 0.35)])  # some twenty losses a transfer, so that each differs by a quarter
def test_a_transfer_sees_the_same(stack: Stack, words: str, rounds: int, within: float) -> None:
    server = stack.start(sys.executable, TRANSFER, "server", KERNEL, PORT)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    seen: dict[str, list[float]] = {"netem": [], "impair": []}
    for _ in range(rounds):
        for whose, rates in seen.items():
            with Impaired(stack, whose, words):
                rates.append(_goodput(stack))
    server.kill()
    server.wait()
    print(words, {whose: f"{', '.join(f'{rate:.2f}' for rate in rates)} Mbit/s" for whose, rates in seen.items()})
    assert fmean(seen["impair"]) == pytest.approx(fmean(seen["netem"]), rel=within)


def _goodput(stack: Stack) -> float:
    """Mbit/s of payload from the kernel's end to a program on the stack."""
    client = stack.spawn([sys.executable, "-m", "usernet", str(TRANSFER), "client", KERNEL, str(PORT), "down",
                          str(TRANSFER_S), "1"])
    out, _ = client.communicate(timeout=TRANSFER_S + 60)
    return json.loads(out.splitlines()[-1])[0]
