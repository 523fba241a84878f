"""ARP with the Linux kernel and arping(8) as peers; frames that neither sends are made by scapy."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether

from cli import stack as running

from .conftest import require_program
from .peers import KERNEL, NOBODY, PATIENCE_S, STACK, TAP, Stack, frames, next_frame, received, wait_for

BROADCAST = "ff:ff:ff:ff:ff:ff"
ZERO = "00:00:00:00:00:00"
RIVAL, OTHER_RIVAL = "02:00:00:00:00:66", "02:00:00:00:00:67"
SECOND = "10.0.0.3"
ABSENT, ABSENT_MAC = "10.0.0.88", "02:00:00:00:00:88"
SECOND_MAC = "02:00:00:00:00:11"
FLUSHES = 8
ETH_P_ARP = 0x0806  # linux/if_ether.h
CLAIMS = 20
PROBES = 3  # RFC 5227 section 1.1, PROBE_NUM
BOOTS = 5


def arp_of(stack: Stack, **fields: object) -> Callable[[bytes], bool]:
    """A predicate for frames: ARP from the stack's MAC with these fields."""
    mac = stack.mac

    def check(frame: bytes) -> bool:
        packet = Ether(frame)
        return ARP in packet and packet[ARP].hwsrc == mac and all(
            getattr(packet[ARP], name) == value for name, value in fields.items())

    return check


def claim(mac: str, address: str = STACK, operation: int = 1) -> bytes:
    """A host at `mac` claims an address of the stack."""
    return bytes(Ether(src=mac, dst=BROADCAST) / ARP(op=operation, hwsrc=mac, psrc=address, hwdst=ZERO, pdst=address))


def neighbors(stack: Stack) -> dict[str, list[str]]:
    """What `launcher.py neighbor` prints: MAC, state, age by address."""
    lines = stack.run("neighbor", "list").stdout.splitlines()[1:]
    return {address: rest for address, *rest in map(str.split, lines)}


def settled(stack: Stack) -> Stack:
    """Wait until its address has been probed and announced."""
    wait_for("the second announcement", lambda: stack.counters("arp")["announcements_sent"] == 2)
    return stack


@pytest.fixture
def own(new_stack) -> Stack:
    """A booted stack for one test, whose address has been probed."""
    return settled(new_stack().up())


# -- answering arping --------------------------------------------------------------------------------------------------


@pytest.fixture
def arping(stack: Stack):
    """arping(8) on the kernel's end, at a stack that has finished probing; returns the finished process."""
    require_program("arping")
    settled(stack)

    def run(*arguments: object, status: int = 0):
        return stack.execute("arping", "-I", TAP, *arguments, status=status)

    return run


def test_rfc826_arping_is_answered_once_a_request(stack: Stack, arping) -> None:
    reply = arp_of(stack, op=2, psrc=STACK, pdst=KERNEL)
    with stack.kernel.packet(ETH_P_ARP) as cable:
        output = arping("-c", 2, "-w", 10, STACK, status=None).stdout  # it waits a second for an answer, and no longer
        for _ in range(int(re.findall(r"Sent (\d+) probes", output)[0])):
            next_frame(cable, reply)
        assert not any(map(reply, frames(cable, 0.2)))


def test_rfc5227_2_1_1_duplicate_address_detection_finds_the_stack(stack: Stack, arping) -> None:
    before = stack.counters("arp")["probes"]
    output = arping("-D", "-c", 20, "-w", 20, STACK, status=1).stdout
    assert stack.mac.upper() in output
    assert stack.counters("arp")["probes"] > before
    assert stack.status()["conflicts"] == []


def test_rfc5227_2_1_1_duplicate_address_detection_of_a_free_address_gets_no_reply(arping) -> None:
    arping("-D", "-c", 1, "-w", 1, NOBODY)


@pytest.mark.parametrize("gratuitous", ["-U", "-A"])
def test_gratuitous_arp_of_a_host_that_is_not_known_teaches_nothing(stack: Stack, arping, gratuitous: str) -> None:
    stack.run("neighbor", "flush")
    arping(gratuitous, "-c", 1, "-w", 1, KERNEL, status=None)
    assert KERNEL not in neighbors(stack)


@pytest.mark.parametrize("gratuitous", ["-U", "-A"])
def test_rfc826_gratuitous_arp_moves_a_known_host_to_its_new_mac(new_stack, gratuitous: str) -> None:
    require_program("arping")
    stack = new_stack().up()
    stack.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK)
    stack.execute("ip", "link", "set", TAP, "address", SECOND_MAC)
    assert neighbors(stack)[KERNEL][0] != SECOND_MAC
    stack.execute("arping", "-I", TAP, gratuitous, "-c", 1, "-w", 1, KERNEL, status=None)
    wait_for("the new MAC", lambda: neighbors(stack)[KERNEL][0] == SECOND_MAC)
    assert stack.pinged(3, "-i", 0.01) == 3


def test_the_kernel_finds_the_stack_and_verifies_it_by_unicast(stack: Stack) -> None:
    stack.execute("ip", "neigh", "flush", "dev", TAP)
    stack.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK)
    entry = stack.kernel.neighbor()
    assert stack.mac in entry
    assert "REACHABLE" in entry
    stack.execute("ip", "neigh", "change", STACK, "dev", TAP, "nud", "probe")
    wait_for("the answer to the kernel's poll", lambda: "REACHABLE" in stack.kernel.neighbor())


# -- our own address ---------------------------------------------------------------------------------------------------


def test_rfc5227_2_1_the_address_serves_at_once_and_is_probed_and_announced_beside(new_stack) -> None:
    for _ in range(BOOTS):
        stack = new_stack().up()
        with stack.kernel.packet() as cable:
            in_time = stack.counters("arp")["probes_sent"] < PROBES
            assert received(stack.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK).stdout) == 1
            if not in_time or stack.counters("arp")["announcements_sent"]:
                continue  # these processes have waited for more than two seconds before they could look
            next_frame(cable, arp_of(stack, op=1, psrc="0.0.0.0", pdst=STACK, hwdst=ZERO))
            next_frame(cable, arp_of(stack, op=1, psrc=STACK, pdst=STACK, hwdst=ZERO))
            break
    else:
        raise AssertionError("the address served only after it had been announced")
    settled(stack)
    stack.run("sabotage", "arp", "kill")
    wait_for("arp's return", lambda: stack.serves(arp=2))
    counters = stack.counters("arp")
    assert (counters["probes_sent"], counters["announcements_sent"], counters["defences_sent"]) == (PROBES, 2, 0)
    assert stack.status()["conflicts"] == []


def test_rfc5227_2_1_an_address_that_is_added_serves_at_once_is_probed_and_goes_when_it_is_deleted(own: Stack) -> None:
    with own.kernel.packet() as cable:
        own.run("address", "add", f"{SECOND}/24")
        assert received(own.execute("ping", "-c", 1, "-W", PATIENCE_S, SECOND).stdout) == 1
        next_frame(cable, arp_of(own, op=1, psrc="0.0.0.0", pdst=SECOND))
        next_frame(cable, arp_of(own, op=1, psrc=SECOND, pdst=SECOND))
    wait_for("the second announcement", lambda: own.counters("arp")["announcements_sent"] == 4)
    assert own.counters("arp")["probes_sent"] == 2 * PROBES
    own.run("address", "del", f"{SECOND}/24")
    own.execute("ip", "neigh", "flush", "dev", TAP)
    assert received(own.execute("ping", "-c", 1, "-W", 1, SECOND, status=1).stdout) == 0


def test_rfc5227_2_1_1_a_host_that_answers_our_probe_is_reported(own: Stack) -> None:
    with own.kernel.packet() as cable:
        own.run("address", "add", f"{SECOND}/24")
        next_frame(cable, arp_of(own, psrc="0.0.0.0", pdst=SECOND))
        cable.send(claim(RIVAL, SECOND, operation=2))
        next_frame(cable, arp_of(own, op=1, psrc=SECOND, pdst=SECOND))
    (conflict,) = wait_for("the conflict in status", lambda: own.status()["conflicts"])
    assert (conflict["address"], conflict["mac"]) == (SECOND, RIVAL)
    assert own.counters("arp")["announcements_sent"] == 2  # those of the first address


def test_rfc5227_2_4_c_a_rival_is_reported_and_our_address_defended_once(own: Stack) -> None:
    started = time.time()
    with own.kernel.packet() as cable:
        for _ in range(CLAIMS):
            cable.send(claim(RIVAL))
        defence = next_frame(cable, arp_of(own, op=1, psrc=STACK, pdst=STACK))
        assert Ether(defence).dst == BROADCAST
    wait_for("all claims", lambda: own.counters("arp")["conflict"] == CLAIMS)
    # What is reported, and the time of the defence, outlive the process. At once, as after ten seconds a claim is news
    os.kill(own.pids()["arp"], signal.SIGKILL)
    wait_for("arp's return", lambda: own.serves(arp=2))
    with own.kernel.packet() as cable:
        cable.send(claim(OTHER_RIVAL))
        wait_for("the claim", lambda: own.counters("arp")["conflict"] == CLAIMS + 1)
    assert own.counters("arp")["defences_sent"] == 1

    (conflict,) = own.status()["conflicts"]
    assert (conflict["address"], conflict["mac"]) == (STACK, RIVAL)
    assert started - 1 <= conflict["since"] <= time.time()
    assert f"{RIVAL} claims the stack's address {STACK}" in own.run("status").stdout
    (event,) = [event for event in own.events() if event["event"] == "conflict"]
    assert (event["layer"], event["detail"]) == ("arp", f"{RIVAL} claims the stack's address {STACK}")
    assert own.pinged(3, "-i", 0.01) == 3


# -- neighbours --------------------------------------------------------------------------------------------------------


def test_a_neighbour_that_is_not_there_is_incomplete_then_unreachable(stack: Stack) -> None:
    with stack.socket() as sock, stack.socket() as other:
        def shown() -> bool:
            other.sendto(b"x", (NOBODY, 9))  # so that it is asked for again where the launcher takes longer than that
            return neighbors(stack).get(NOBODY) == ["-", "incomplete", "-"]

        sock.connect((NOBODY, 9))
        sock.send(b"anybody there?")
        wait_for("an incomplete neighbour", shown)
        with pytest.raises(OSError) as caught:
            sock.recv(1)
        assert caught.value.errno == errno.EHOSTUNREACH
    wait_for("its end", lambda: NOBODY not in neighbors(stack))


def test_rfc1122_2_3_2_1_requests_for_a_neighbour_that_is_not_there_are_a_second_apart(stack: Stack) -> None:
    with stack.kernel.packet() as cable, stack.socket() as sock:
        asks = arp_of(stack, op=1, psrc=STACK, pdst=ABSENT)
        before = time.monotonic()
        for _ in range(50):
            sock.sendto(b"x", (ABSENT, 9))
        next_frame(cable, asks)
        next_frame(cable, asks)
        assert time.monotonic() - before >= 1


def test_a_permanent_neighbour_is_used_unasked_and_survives_arp(own: Stack) -> None:
    own.run("neighbor", "add", ABSENT, ABSENT_MAC)
    assert neighbors(own)[ABSENT] == [ABSENT_MAC, "permanent", "-"]

    def sends_there(text: bytes) -> None:
        with own.kernel.packet() as cable, own.socket() as sock:
            sock.sendto(text, (ABSENT, 9))
            for frame in frames(cable):
                assert ARP not in Ether(frame) or Ether(frame)[ARP].pdst != ABSENT
                if text in frame:
                    assert Ether(frame).dst == ABSENT_MAC
                    return
        raise AssertionError("it did not leave")

    sends_there(b"before")
    own.run("sabotage", "arp", "kill")
    wait_for("arp's return", lambda: own.serves(arp=2))
    assert neighbors(own)[ABSENT] == [ABSENT_MAC, "permanent", "-"]
    own.run("sabotage", "ip", "kill")  # and ip is told again
    wait_for("ip's return", lambda: own.serves(ip=2))
    sends_there(b"after")
    own.run("neighbor", "flush")
    assert list(neighbors(own)) == [ABSENT]
    own.run("neighbor", "del", ABSENT)
    assert neighbors(own) == {}


def test_a_wrong_permanent_neighbour_cuts_the_kernel_off_until_it_is_deleted(own: Stack) -> None:
    own.run("neighbor", "add", KERNEL, ABSENT_MAC)
    assert received(own.execute("ping", "-c", 1, "-W", 1, STACK, status=1).stdout) == 0
    own.run("neighbor", "del", KERNEL)
    assert received(own.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK).stdout) == 1


def test_flush_under_traffic_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    with stack.kernel.packet(ETH_P_ARP) as cable, open(tmp_path / "output", "w+") as output:
        # So rarely that ip, which keeps 64 packets for a neighbour, has room for what comes while a process waits
        ping = stack.start("ping", "-i", 0.05, STACK, stdout=output)
        flushes = 0

        def flushed() -> bool:
            nonlocal flushes
            flushes += stack.run("neighbor", "flush").stdout == "1 deleted\n"
            return flushes == FLUSHES

        wait_for("flushes", flushed)
        ping.send_signal(signal.SIGINT)
        assert ping.wait(PATIENCE_S) == 0
        requests = sum(map(arp_of(stack, op=1, pdst=KERNEL, psrc=STACK), frames(cable, 0.1)))
        output.seek(0)
        answered = [int(number) for number in re.findall(r"icmp_seq=(\d+)", output.read())]
    assert answered == list(range(1, len(answered) + 1))  # the last may have been under way when ping(8) was ended
    assert requests >= flushes - 1  # each made ip ask anew, but perhaps the last


def test_the_list_is_longer_than_one_answer(own: Stack) -> None:
    for number in range(300):
        address = str(ipaddress.IPv4Address("10.1.0.0") + number)
        running.query(own.run_dir, "manage", layer="arp",
                       request={"op": "neighbor_add", "address": address, "mac": ABSENT_MAC})
    assert len(neighbors(own)) == 300


# -- the command's errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "status", "text"), [
    (["polish"], 2, "unknown operation 'polish'"),
    (["add", ABSENT], 2, "neighbor add ADDRESS MAC"),
    (["add", "10.0.0", ABSENT_MAC], 2, "'10.0.0' is not an IPv4 address"),
    (["add", ABSENT, "02:00"], 2, "'02:00' is not a MAC address"),
    (["flush", ABSENT], 2, "neighbor flush"),
    (["add", STACK, ABSENT_MAC], 1, "10.0.0.2 is an address of this stack"),
    (["add", ABSENT, BROADCAST], 1, "is not the address of a single station"),
    (["add", "10.0.0.255", ABSENT_MAC], 1, "is not the address of a single host"),
    (["del", NOBODY], 1, f"no neighbour {NOBODY} is known"),
])
def test_an_impossible_order_is_one_line_on_standard_error(stack: Stack, words: list, status: int, text: str) -> None:
    done = stack.run("neighbor", *words, status=status)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_without_a_stack_it_says_so(new_stack) -> None:
    assert "no stack is running" in new_stack().run("neighbor", "list", status=2).stderr
