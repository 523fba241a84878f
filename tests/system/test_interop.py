"""Programs that know nothing of this stack, on the kernel's end of the cable: what they think of it is the test.

ping(8) and tracepath(8) are in test_kernel_icmp.py and test_ip_system.py, arping(8) in test_arp_system.py, dnsmasq(8)
in test_examples.py and test_apps.py. The last of them is a second stack of ours.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import end_all, require_program, unique_name
from .peers import KERNEL, PATIENCE_S, STACK, Stack, received, wait_for

CLOSED = 9
MILLISECONDS_PER_DAY = 86_400_000
ECHO = f"""
import usernet as socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{STACK}", 0))
print(server.getsockname()[1], flush=True)
while True:
    server.sendto(*server.recvfrom(1 << 16))
"""


IN_PAIRS = ECHO.replace("    server.sendto(*server.recvfrom(1 << 16))\n", """
    pair = [server.recvfrom(1 << 16) for _ in range(2)]
    for answer in pair:
        server.sendto(*answer)
""")


@pytest.fixture(scope="module")
def echo_port(stack: Stack) -> int:
    """A UDP echo server, as an application of the stack."""
    return int(stack.application(ECHO).stdout.readline())


@pytest.fixture
def errors_to_spare(stack: Stack) -> None:
    """Some of these programs want more ICMP errors than a host gets at a time: a new icmp has given none yet."""
    before = stack.incarnations()["icmp"]
    stack.run("restart", "icmp")
    wait_for("a new icmp", lambda: stack.serves(icmp=before + 1))


def says(stack: Stack, program: str, *arguments: object, status: int | None = 0) -> str:
    """What a program on the kernel's end says, on standard output and error."""
    done = stack.execute(require_program(program), *arguments, status=status)
    return done.stdout + done.stderr


# -- echo and the way there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 1472, 1473, 16384, 65488])  # fping(8)'s own limits
def test_fping(stack: Stack, size: int) -> None:
    # Three: its receive buffer has room for as many whole answers, should it have to wait for a processor
    output = says(stack, "fping", "-c", 3, "-p", 10, "-t", 5000, "-b", size, STACK)
    assert "xmt/rcv/%loss = 3/3/0%" in output


@pytest.mark.usefixtures("errors_to_spare")
@pytest.mark.parametrize("method", [(), ("-I",)], ids=["udp", "icmp"])
def test_traceroute_finds_it_one_hop_away(stack: Stack, method: tuple) -> None:
    output = says(stack, "traceroute", "-n", "-q", 2, "-N", 2, "-m", 4, "-w", 5, *method, STACK)
    hops = output.splitlines()[1:]
    assert len(hops) == 1
    assert re.fullmatch(rf" 1  {STACK}  [\d.]+ ms  [\d.]+ ms", hops[0].rstrip())


@pytest.mark.usefixtures("errors_to_spare")
def test_traceroute_finds_the_mtu(stack: Stack) -> None:
    assert "F=1500" in says(stack, "traceroute", "-n", "-q", 1, "-m", 4, "-w", 5, "--mtu", STACK)


# -- nmap(1) -----------------------------------------------------------------------------------------------------------


def discovered(stack: Stack, *arguments: object) -> str:
    """How nmap knows that the stack is there, ARP apart; empty where it does not."""
    output = says(stack, "nmap", "-n", "-sn", "--disable-arp-ping", "--reason", *arguments, STACK)
    found = re.search(r"Host is up, received (\S+) ttl 64", output)
    return found[1] if found else ""


@pytest.mark.usefixtures("errors_to_spare")
@pytest.mark.parametrize(("probe", "answer"), [
    ("-PE", "echo-reply"), ("-PP", "timestamp-reply"), (f"-PU{CLOSED}", "port-unreach"), ("-PO132", "proto-unreach")])
def test_nmap_finds_the_stack_by_whatever_a_host_answers(stack: Stack, probe: str, answer: str) -> None:
    assert discovered(stack, probe) == answer


@pytest.mark.parametrize(("options", "answer"), [
    ("R", "echo-reply"), ("T", "echo-reply"), ("U", "echo-reply"), (f"L {KERNEL}", ""), (f"S {KERNEL}", "")])
def test_nmap_finds_it_with_ip_options_but_for_source_routes(stack: Stack, options: str, answer: str) -> None:
    patience = ("--initial-rtt-timeout", "9s") if answer else ()
    assert discovered(stack, "-PE", "--max-retries", 0, *patience, "--ip-options", options) == answer


@pytest.mark.usefixtures("errors_to_spare")
@pytest.mark.parametrize("arguments", [("-f", "--data-length", 64), ("--data-length", 1400)], ids=["fragments", "long"])
def test_nmap_finds_a_closed_port_closed_however_it_asks(stack: Stack, arguments: tuple) -> None:
    output = says(stack, "nmap", "-n", "-Pn", "-sU", *arguments, "-p", CLOSED, STACK)
    assert re.search(rf"^{CLOSED}/udp +closed ", output, re.MULTILINE)


@pytest.mark.usefixtures("errors_to_spare")
def test_nmap_tells_open_ports_from_closed_ones(stack: Stack, echo_port: int) -> None:
    output = says(stack, "nmap", "-n", "-Pn", "-sU", "-p", f"{CLOSED},{echo_port}", STACK)
    assert re.search(rf"^{CLOSED}/udp +closed ", output, re.MULTILINE)
    assert re.search(rf"^{echo_port}/udp +open ", output, re.MULTILINE)


@pytest.mark.usefixtures("errors_to_spare")
def test_nmap_finds_the_protocols_that_there_are(stack: Stack) -> None:
    output = says(stack, "nmap", "-n", "-Pn", "-sO", "-p", "1,17,50,132", STACK)
    found = dict(re.findall(r"^(\d+) +(\S+) ", output, re.MULTILINE))
    assert found == {"1": "open", "17": "open", "50": "closed", "132": "closed"}


@pytest.mark.usefixtures("errors_to_spare")
def test_rfc1122_3_2_2_nmap_finds_its_datagram_quoted_to_the_octet(stack: Stack) -> None:
    """U1 of nmap's fingerprint is its probe of a closed port; G: what our port unreachable quotes is as it was sent.

    Total length, identification and checksum of the IP header; checksum and data of the UDP datagram (RIPL to RUD).
    """
    output = says(stack, "nmap", "-n", "-Pn", "-O", "-d", "--max-os-tries", 1, "-p", CLOSED, STACK)
    probe = re.search(r"U1\((.*)\)", output)
    assert probe, output
    facts = dict(fact.split("=") for fact in probe[1].split("%"))
    assert {name: facts.get(name) for name in ("R", "T", "UN", "RIPL", "RID", "RIPCK", "RUCK", "RUD")} == {
        "R": "Y", "T": "40", "UN": "0", "RIPL": "G", "RID": "G", "RIPCK": "G", "RUCK": "G", "RUD": "G"}
    assert re.search(r"IE\(R=Y%", output)  # echo requests with a code and a TOS of their own


# -- hping3(8) ---------------------------------------------------------------------------------------------------------


def hping(stack: Stack, *arguments: object) -> str:
    """Two packets; status 1 means that there was no answer.

    The identification of fragments would be a part of hping's pid, and 0 means that the kernel gives each another one.
    """
    return says(stack, "hping3", "-n", "-c", 2, "-i", "u20000", "-N", 4321, *arguments, STACK, status=None)


def answers(stack: Stack, *arguments: object) -> str:
    """What hping says when both packets were answered; it waits a second for the last answer, whatever one tells it."""

    def tried() -> str:
        output = hping(stack, *arguments)
        return output if "2 packets received" in output else ""

    return wait_for("two answers", tried)


@pytest.mark.parametrize("arguments", [
    ("-1",), ("-1", "-d", "1400"), ("-1", "-f", "-d", "200"), ("-1", "-m", "24", "-f", "-d", "1000"),
    ("-1", "-o", "b8"), ("-1", "-d", "4000"), ("-1", "-t", "1"), ("-1", "--rroute"),
], ids=" ".join)  # fmt: skip
def test_hping_has_its_echoes_back(stack: Stack, arguments: tuple) -> None:
    output = answers(stack, *arguments)
    assert len(re.findall(rf"^len=\d+ ip={STACK} ", output, re.MULTILINE)) == 2


@pytest.fixture(scope="module")
def plain_stack(home: Path, tap: None) -> Iterator[Stack]:
    """With frames as on a cable. Through a TAP with offload two equal answers may leave as one super-packet.

    hping reads by libpcap, so it would count that as one.
    """
    booted = Stack(home, unique_name())
    try:
        yield booted.up("--no-offload")
    finally:
        end_all([booted])


@pytest.fixture(scope="module")
def pairing_port(plain_stack: Stack) -> int:
    """A UDP echo server that answers each two datagrams at once."""
    return int(plain_stack.application(IN_PAIRS).stdout.readline())


@pytest.mark.parametrize("arguments", [(), ("-d", "100"), ("-f", "-d", "500"), ("-y",)], ids=" ".join)
def test_hping_has_its_datagrams_back(plain_stack: Stack, pairing_port: int, arguments: tuple) -> None:
    answers(plain_stack, "-2", "-p", pairing_port, "-k", "-s", 4321, *arguments)


@pytest.mark.usefixtures("errors_to_spare")
def test_rfc1122_3_2_2_1_hping_is_told_of_closed_ports_and_unknown_protocols(stack: Stack) -> None:
    for error, arguments in (("Port", ("-2", "-p", CLOSED)), ("Protocol", ("-0", "-H", 132))):
        told = f"ICMP {error} Unreachable from ip={STACK}"
        wait_for(told, lambda told=told, arguments=arguments: told in hping(stack, *arguments))


def test_hping_is_told_the_time(stack: Stack) -> None:
    times = re.findall(r"Receive=(\d+) Transmit=(\d+)", answers(stack, "-1", "--icmp-ts"))
    now = int(time.time() * 1000)
    assert len(times) == 2
    assert all(received == sent for received, sent in times)
    assert all((now - int(sent)) % MILLISECONDS_PER_DAY < PATIENCE_S * 1000 for _, sent in times)


@pytest.mark.parametrize(("arguments", "layer", "counter"), [
    (("-1", "--badcksum"), "icmp", "bad_checksum"),
    (("-2", "-p", CLOSED, "--badcksum"), "udp", "bad_checksum"),
    (("-1", "--lsrr", KERNEL), "ip", "source_routed"),
    (("-1", "--icmp-addr"), "icmp", "address_mask"),
    (("-1", "-a", "10.0.0.255"), "ip", "bad_source"),
    (("-1", "-x", "-g", 65528, "-d", 64), "ip", "fragment_beyond"),
], ids=["ICMP checksum", "UDP checksum", "source route", "address mask", "source", "ping of death"])  # fmt: skip
def test_unanswered_packets_of_hping_are_counted(stack: Stack, arguments: tuple, layer: str, counter: str) -> None:
    before = stack.counters(layer)[counter]
    assert "0 packets received" in hping(stack, *arguments)
    wait_for(counter, lambda: stack.counters(layer)[counter] == before + 2)


# -- socat(1) ----------------------------------------------------------------------------------------------------------


def test_socat_talks_with_an_application(stack: Stack, echo_port: int) -> None:
    socat = require_program("socat")
    talk = stack.start(socat, "-", f"UDP4:{STACK}:{echo_port}", stdin=subprocess.PIPE)
    talk.stdin.write("through socat\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == "through socat\n"


def test_an_application_talks_with_socat(stack: Stack) -> None:
    stack.start(require_program("socat"), f"UDP4-RECVFROM:7777,bind={KERNEL},fork", "SYSTEM:tr a-z A-Z")
    with stack.socket() as app:
        app.connect((KERNEL, 7777))
        app.settimeout(0.2)

        def answered() -> bytes:
            try:
                app.send(b"hello, socat")
                return app.recv(100)
            except (TimeoutError, ConnectionRefusedError):  # it is not there yet
                return b""

        assert wait_for("an answer of socat's", answered, PATIENCE_S) == b"HELLO, SOCAT"


# -- a second stack of ours --------------------------------------------------------------------------------------------

LEFT, RIGHT = "10.0.0.2", "10.0.0.3"


@pytest.fixture(scope="module")
def left_and_right(home: Path) -> Iterator[tuple[Stack, Stack]]:
    """Two on a wire."""
    both = Stack(home, unique_name()), Stack(home, unique_name())
    try:
        for each, address in zip(both, (LEFT, RIGHT), strict=True):
            each.up("--wire", f"w-{both[0].name}", "--address", f"{address}/24")
        yield both
    finally:
        end_all(list(both))


@pytest.mark.parametrize("size", [0, 1472, 1473, 16384, 65507])
def test_ping_of_every_size_between_two_stacks(left_and_right: tuple[Stack, Stack], size: int) -> None:
    for stack, address in zip(left_and_right, (RIGHT, LEFT), strict=True):
        assert received(stack.run("ping", "-c", 1, "-W", PATIENCE_S, "-s", size, address).stdout) == 1


@pytest.mark.parametrize("octets", [0, 1472, 1473, 65507])
def test_datagrams_of_every_size_between_two_stacks(left_and_right: tuple[Stack, Stack], octets: int) -> None:
    left, right = left_and_right
    data = bytes(range(256)) * 256
    with left.bound(0, LEFT) as one, right.bound(0, RIGHT) as other:
        one.sendto(data[:octets], other.getsockname())
        assert other.recvfrom(1 << 16) == (data[:octets], one.getsockname())
        other.sendto(data[:octets], one.getsockname())
        assert one.recvfrom(1 << 16) == (data[:octets], other.getsockname())


@pytest.mark.parametrize("method", [(), ("-I",)], ids=["udp", "icmp"])
def test_traceroute_between_two_stacks(left_and_right: tuple[Stack, Stack], method: tuple) -> None:
    hops = left_and_right[0].run("traceroute", "-q", 1, "-w", PATIENCE_S, *method, RIGHT).stdout.splitlines()[1:]
    assert [hop.split()[:2] for hop in hops] == [["1", RIGHT]]


def test_a_closed_port_between_two_stacks(left_and_right: tuple[Stack, Stack]) -> None:
    with left_and_right[0].socket() as app:
        app.connect((RIGHT, CLOSED))
        app.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            app.recv(100)
