"""`impair` as a person drives it: both directions, one flow, over a layer's death (beside tc-netem: tests/netem)."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from .peers import STACK, Stack, received, wait_for

ROUND_TRIP = re.compile(r"rtt min/avg/max/mdev = ([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+) ms")


def ping(stack: Stack, count: int, *, size: int = 56, interval_s: float = 0.01) -> tuple[int, tuple[float, ...]]:
    """Replies to the first `count` requests, and (least, mean, most, deviation) of all round trips in ms.

    With -w, because ping(8) would soon stop waiting for a late one (Stack.pinged); it goes on until as many came.
    """
    out = stack.execute("ping", "-c", count, "-i", interval_s, "-w", 30, "-s", size, STACK, status=None).stdout
    found = ROUND_TRIP.search(out)
    assert found, out
    return len(answered(out, count)), tuple(map(float, found.groups()))


def answered(output: str, count: int) -> set[int]:
    """Which of the first `count` requests of ping(8) were."""
    return {int(number) for number in re.findall(r"icmp_seq=(\d+)", output)} & set(range(1, count + 1))


def least_of(stack: Stack, at_least_ms: float, below_ms: float) -> None:
    """The least round trip is in between; a busy machine may make all of a few longer, but not for ever."""

    def tried() -> bool:
        least = ping(stack, 5, interval_s=0.05)[1][0]
        assert least >= at_least_ms
        return least < below_ms

    wait_for(f"a round trip below {below_ms} ms", tried)


@pytest.fixture
def clear(stack):
    """The module's stack; whatever a test does to it, it is undone."""
    ping(stack, 1)
    yield stack
    stack.run("impair", "--clear")


def test_delay_is_added_once_a_direction(clear):
    clear.run("impair", "link:device", "--delay", "30ms")
    least_of(clear, 30, 60)
    clear.run("impair", "device", "--delay", "30ms")
    least_of(clear, 60, 110)
    clear.run("impair", "--clear")
    least_of(clear, 0, 30)


def test_loss_and_its_counter(clear):
    lost_before = clear.counters("link")["bus_impaired_lost"]
    answered_before = clear.counters("icmp")["echo_replies_sent"]
    clear.run("impair", "device:link", "--flow", "icmp", "--loss", "20%", "--seed", "4")
    clear.execute("ping", "-q", "-c", 300, "-i", 0.01, STACK)

    def all_counted() -> int:
        """How many were lost, once each of the 300 was lost or answered."""
        lost = clear.counters("link")["bus_impaired_lost"] - lost_before
        answers = clear.counters("icmp")["echo_replies_sent"] - answered_before
        return lost if answers + lost == 300 else 0

    assert 30 <= wait_for("all to be counted", all_counted) <= 95  # five standard deviations around 60


def test_the_same_seed_loses_the_same(clear):
    def lost() -> set[int]:
        clear.run("impair", "--clear")
        clear.run("impair", "device:link", "--flow", "icmp", "--loss", "30%", "--seed", "11")
        out = clear.execute("ping", "-c", 60, "-i", 0.01, "-w", 30, STACK).stdout
        return set(range(1, 61)) - answered(out, 60)

    first = lost()
    assert first
    assert lost() == first


def test_drop_nth_is_exact(clear):
    clear.run("impair", "device:link", "--flow", "icmp", "--drop-nth", "10")
    assert ping(clear, 100)[0] == 90


def test_duplicates_arrive(clear):
    clear.run("impair", "link:device", "--duplicate", "100%")
    out = clear.execute("ping", "-c", 10, "-i", 0.02, "-w", 30, STACK).stdout
    assert "+10 duplicates" in out or "+9 duplicates" in out  # ping may end before the last


def test_corruption_is_noticed_by_a_checksum(clear):
    def noticed() -> int:
        return clear.counters("ip")["bad_header_checksum"] + clear.counters("icmp")["bad_checksum"]

    before = noticed()
    clear.run("impair", "link:ip", "--corrupt", "100%", "--seed", "1")
    assert received(clear.execute("ping", "-c", 20, "-i", 0.01, "-W", 1, STACK, status=1).stdout) == 0
    wait_for("a wrong checksum", lambda: noticed() > before)


def test_rate_spaces_what_is_sent(clear):
    clear.run("impair", "link:device", "--rate", "1mbit")
    with clear.bound() as app, clear.kernel.udp() as peer:
        def tried() -> bool:
            started = time.monotonic()
            for _ in range(50):
                app.sendto(bytes(1208), peer.getsockname())  # 1250 octets of frame: 10 ms each
            for _ in range(50):
                peer.recv(2000)
            took = time.monotonic() - started
            assert took >= 0.49  # the first leaves at once
            return took < 2

        wait_for("the rate", tried)


def test_one_flow_suffers_and_the_others_do_not(clear):
    clear.run("impair", "udp dst port 7777", "--loss", "100%")
    assert ping(clear, 5)[0] == 5
    with clear.bound() as app, clear.kernel.udp(7777) as bad, clear.kernel.udp(7778) as good:
        app.sendto(b"lost", bad.getsockname())
        app.sendto(b"there", good.getsockname())
        assert good.recv(100) == b"there"
        bad.settimeout(0.1)
        with pytest.raises(TimeoutError):
            bad.recv(100)


def test_any_pipe_may_be_impaired(clear):
    clear.run("impair", "udp:sockets", "--delay", "40ms")
    with clear.bound() as app, clear.kernel.udp() as peer:
        started = time.monotonic()
        peer.sendto(b"late", app.getsockname())
        assert app.recv(100) == b"late"
        assert time.monotonic() - started >= 0.04
    least_of(clear, 0, 40)


def test_it_survives_a_layers_restart_and_shows_in_status(new_stack):
    stack = new_stack().up("--profile", "transatlantic")
    assert {one["pipe"] for one in stack.status()["impairments"]} == {"link:device", "device:link"}
    assert "impaired: link:device: delay 40ms" in stack.run("status").stdout
    for incarnation, restart in ((2, lambda: os.kill(stack.pids()["link"], signal.SIGKILL)),
                                 (3, lambda: stack.run("restart", "link"))):
        restart()
        wait_for("link", lambda incarnation=incarnation: stack.serves(link=incarnation))
        replies, (least, *_) = ping(stack, 3, interval_s=0.05)
        assert replies == 3
        assert least >= 80
    stack.run("down")
    assert stack.up().status()["impairments"] == []


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["nowhere", "--loss", "5%"], "no pipe 'nowhere'"), (["device", "--loss", "5"], "expected a value like 5%"),
    (["device", "--reorder", "5%"], "reorder needs a delay"), (["--loss", "5%"], "impair: no pipe or flow given"),
    (["device", "--profile", "moon"], "no network 'moon'; the networks are gprs"),
    (["device", "--list", "--loss", "5%"], "cannot be combined with an impairment"),
    (["device", "--delay", "5000s"], "delay"), (["device", "--flow", "prt 4", "--loss", "1%"], "--flow 'prt 4'")])
def test_bad_arguments_have_a_clear_error(stack, arguments, complaint):
    done = stack.run("impair", *arguments, status=None)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert stack.run("impair").stdout == "nothing is impaired\n"


def test_an_unknown_network_boots_nothing(new_stack):
    stack = new_stack()
    assert "no network 'moon'" in stack.run("up", "--detach", "--profile", "moon", status=2).stderr
    assert not stack.processes()
