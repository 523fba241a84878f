"""Echo, errors and neighbours, with the Linux kernel as peer; frames no ping(8) sends are made by scapy."""

from __future__ import annotations

import difflib
import itertools
import re
import socket
import subprocess

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPerror, UDPerror
from scapy.layers.l2 import ARP, LLC, SNAP, Dot3, Ether

from .conftest import require_program
from .peers import KERNEL, NOBODY, STACK, TAP, Stack, frames, next_frame, received, wait_for

ETHERNET_HEADER = 14
ECHO_ID = 0x4242


@pytest.fixture
def cable(stack: Stack):
    """Whole frames, to and from the stack."""
    require_program("ping")
    with stack.kernel.packet() as made:
        yield made


def echo(stack: Stack, sequence: int, data: bytes = b"x" * 56, **ip) -> Ether:
    """A valid echo request from the kernel's end."""
    fields = {"src": KERNEL, "dst": STACK} | ip
    return (Ether(src=stack.kernel.mac(), dst=bytes.fromhex(stack.mac.replace(":", "")))
            / IP(**fields) / ICMP(type=8, id=ECHO_ID, seq=sequence) / data)


def is_reply(sequence: int):
    """A predicate for frames: the echo reply of that number."""
    def check(frame: bytes) -> bool:
        packet = Ether(frame)
        return ICMP in packet and packet[ICMP].type == 0 and (packet[ICMP].id, packet[ICMP].seq) == (ECHO_ID, sequence)

    return check


def answered(cable: socket.socket, frame: bytes, marker: Ether, sequence: int) -> bool:
    """Whether the stack answers `frame` before the `marker` behind it, a valid request, is answered."""
    cable.send(frame)
    cable.send(bytes(marker))
    for got in frames(cable):
        if is_reply(sequence)(got):
            return True
        if is_reply(marker[ICMP].seq)(got):
            return False
    raise AssertionError("the marker was not answered")


def unanswered(stack: Stack, count: int, *options: object) -> list[str]:
    """The first `count` requests that were not answered, each once, in order, with the right data.

    With -w and -c, ping(8) goes on until it has that many answers or a few more; without, it soon stops waiting for a
    late one.
    """
    output = stack.execute("ping", "-c", count, "-w", 30, *options, STACK).stdout
    assert "wrong data byte" not in output
    numbers = re.findall(r"icmp_seq=(\d+)", output)
    wanted = [str(number) for number in range(1, count + 1)]
    return list(difflib.unified_diff(wanted, numbers[:count], n=0, lineterm=""))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 56, 57, 999, 1000, 1471, 1472])
def test_ping_of_any_size_up_to_the_mtu(stack: Stack, size: int) -> None:
    assert not unanswered(stack, 3, "-i", 0.01, "-s", size, "-M", "do")


def test_rfc1122_2_3_3_an_echo_in_an_ieee_802_3_frame_is_answered(stack: Stack, cable) -> None:
    """RFC 1042, between two frames of RFC 894; the answers are all of RFC 894."""
    request = echo(stack, 61)
    older = Dot3(src=request.src, dst=request.dst) / LLC(dsap=170, ssap=170, ctrl=3) / SNAP(code=0x0800)
    for frame in (echo(stack, 60), older / request[IP], echo(stack, 62)):
        cable.send(bytes(frame))
    for sequence in (60, 61, 62):
        assert Ether(next_frame(cable, is_reply(sequence))).type == 0x0800


def test_ping_flood_loses_nothing(stack: Stack) -> None:
    assert not unanswered(stack, 300, "-i", 0.01, "-p", "5aa5")  # ping's own buffer holds some 170 answers


def test_rfc1122_3_2_2_6_the_data_of_an_echo_comes_back_whole(stack: Stack, cable) -> None:
    data = bytes(range(256)) * 5
    cable.send(bytes(echo(stack, 1, data, tos=0x28)))
    reply = Ether(next_frame(cable, is_reply(1)))
    assert bytes(reply[ICMP].payload) == data
    assert (reply[IP].src, reply[IP].dst) == (STACK, KERNEL)
    assert reply[IP].tos == 0x28
    assert bytes(reply[IP].__class__(bytes(reply[IP]))) == bytes(reply[IP])


@pytest.mark.parametrize("destination", ["10.0.0.255", "255.255.255.255", "224.0.0.1"])
def test_an_echo_to_a_group_is_not_answered(stack: Stack, cable, destination: str) -> None:
    frame = echo(stack, 10, dst=destination)
    frame[Ether].dst = "ff:ff:ff:ff:ff:ff"
    assert not answered(cable, bytes(frame), echo(stack, 11), 10)


def test_ping_of_the_broadcast_address_meets_silence(stack: Stack) -> None:
    output = stack.execute("ping", "-b", "-c", 2, "-i", 0.05, "-W", 0.3, "10.0.0.255", status=1).stdout
    assert received(output) == 0


def test_a_bad_icmp_checksum_is_counted_and_not_answered(stack: Stack, cable) -> None:
    before = stack.counters("icmp")["bad_checksum"]
    frame = bytearray(bytes(echo(stack, 20)))
    frame[ETHERNET_HEADER + 20 + 2] ^= 0x01
    assert not answered(cable, bytes(frame), echo(stack, 21), 20)
    assert stack.counters("icmp")["bad_checksum"] == before + 1


def test_a_bad_ip_header_checksum_is_counted_and_not_answered(stack: Stack, cable) -> None:
    before = stack.counters("ip")["bad_header_checksum"]
    frame = bytearray(bytes(echo(stack, 30)))
    frame[ETHERNET_HEADER + 10] ^= 0x80
    assert not answered(cable, bytes(frame), echo(stack, 31), 30)
    assert stack.counters("ip")["bad_header_checksum"] == before + 1


def test_padding_after_the_packet_is_not_echoed(stack: Stack, cable) -> None:
    cable.send(bytes(echo(stack, 40, b"short")) + bytes(18))
    reply = Ether(next_frame(cable, is_reply(40)))
    assert reply[IP].len == 20 + 8 + 5
    assert bytes(reply[ICMP])[8:13] == b"short"


@pytest.mark.parametrize("source", ["127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.0.255", "224.0.0.9", STACK])
def test_rfc1122_3_2_1_3_a_source_that_no_host_has_is_not_answered(stack: Stack, cable, source: str) -> None:
    assert not answered(cable, bytes(echo(stack, 50, src=source)), echo(stack, 51), 50)


def test_a_closed_port_is_reported_and_quoted(stack: Stack, cable) -> None:
    mac = bytes.fromhex(stack.mac.replace(":", ""))
    packet = IP(src=KERNEL, dst=STACK, id=777, ttl=9) / UDP(sport=4000, dport=9) / (b"quoted" * 20)
    cable.send(bytes(Ether(src=stack.kernel.mac(), dst=mac) / packet))

    def unreachable(frame: bytes) -> bool:
        got = Ether(frame)
        return ICMP in got and (got[ICMP].type, got[ICMP].code) == (3, 3) and got[IPerror].id == 777

    error = Ether(next_frame(cable, unreachable))
    assert (error[IPerror].src, error[IPerror].dst) == (KERNEL, STACK)
    assert (error[UDPerror].sport, error[UDPerror].dport) == (4000, 9)
    # RFC 1812 section 4.3.2.3, as Linux does: as much of the packet as fits, unchanged but for hops taken.
    quoted = bytes(error[ICMP])[8:]
    assert bytes(packet).startswith(quoted)
    assert len(quoted) >= 28


def test_a_closed_port_refuses_a_socket_of_the_kernel(stack: Stack) -> None:
    with stack.kernel.udp() as probe:
        probe.connect((STACK, 9))
        probe.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            probe.recv(100)


# -- neighbours ------------------------------------------------------------------------------------------------------


def test_arping_is_answered_with_our_mac(stack: Stack) -> None:
    require_program("arping")
    output = stack.execute("arping", "-c", 2, "-w", 10, "-I", TAP, STACK).stdout
    assert stack.mac in output.lower()
    assert "Received 2 response" in output


def test_another_address_is_not_answered(stack: Stack) -> None:
    require_program("arping")
    output = stack.execute("arping", "-c", 1, "-w", 1, "-I", TAP, NOBODY, status=1).stdout
    assert "Received 0 response" in output


def test_rfc5227_2_1_1_a_probe_is_answered_and_not_learnt_from(stack: Stack) -> None:
    require_program("arping")
    output = stack.execute("arping", "-D", "-c", 1, "-w", 5, "-I", TAP, STACK, status=1).stdout
    assert "Received 1 response" in output


@pytest.mark.parametrize("announcement", [1, 2], ids=["request", "reply"])
def test_a_gratuitous_announcement_moves_the_neighbour(stack: Stack, cable, announcement: int) -> None:
    """Reachable at a first MAC, announced at a second: datagrams follow. Then back, for the tests behind this one."""
    first, second = "02:aa:00:00:00:01", "02:aa:00:00:00:02"
    address = f"10.0.0.{100 + announcement}"
    with stack.bound() as app:
        app.sendto(b"to the first", (address, 7))
        cable_sees = next_frame(cable, lambda frame: ARP in Ether(frame) and Ether(frame)[ARP].pdst == address)
        asked = Ether(cable_sees)[ARP]
        assert (asked.op, asked.psrc) == (1, STACK)
        cable.send(bytes(Ether(src=first, dst=asked.hwsrc)
                         / ARP(op=2, hwsrc=first, psrc=address, hwdst=asked.hwsrc, pdst=STACK)))
        delivered = Ether(next_frame(cable, lambda frame: b"to the first" in frame))
        assert delivered.dst == first
        cable.send(bytes(Ether(src=second, dst="ff:ff:ff:ff:ff:ff")
                         / ARP(op=announcement, hwsrc=second, psrc=address, hwdst="00:00:00:00:00:00", pdst=address)))
        attempts = itertools.count()

        def moved() -> bool:  # arp processes the announcement, other layers the datagram: either may be first
            payload = f"to the second {next(attempts)}.".encode()
            app.sendto(payload, (address, 7))
            return Ether(next_frame(cable, lambda frame: payload in frame)).dst == second

        wait_for("datagrams to the second MAC", moved)


def test_the_kernel_finds_the_stack_reachable_and_verifies_it_again(stack: Stack) -> None:
    stack.execute("ip", "neigh", "flush", "dev", TAP)
    assert received(stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout) == 1
    entry = stack.kernel.neighbor()
    assert stack.mac in entry
    assert "REACHABLE" in entry
    stack.execute("ip", "neigh", "change", STACK, "dev", TAP, "nud", "probe")  # asks by unicast, RFC 1122 2.3.2.1
    wait_for("the answer", lambda: "REACHABLE" in stack.kernel.neighbor())


# -- echo requests out of the stack -----------------------------------------------------------------------------------


def ping(stack: Stack, *arguments: object, status: int | None = 0) -> subprocess.CompletedProcess:
    """`launcher.py ping`."""
    return stack.run("ping", *arguments, status=status)


@pytest.mark.parametrize("address", [KERNEL, STACK, "127.0.0.1"], ids=["kernel", "itself", "loopback"])
def test_launcher_ping(stack: Stack, address: str) -> None:
    output = ping(stack, "-c", 3, "-i", 0.05, "-W", 10, address).stdout
    assert received(output) == 3
    assert output.count(f"octets from {address}: icmp_seq=") == 3


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65507])
def test_launcher_ping_of_any_size(stack: Stack, size: int) -> None:
    assert received(ping(stack, "-c", 1, "-W", 10, "-s", size, KERNEL).stdout) == 1


def test_launcher_ping_as_ping_8(stack: Stack) -> None:
    def several() -> bool:  # on a busy machine the first may take half of a second
        output = ping(stack, "-q", "-n", "-t", 1, "-M", "do", "-s", 1472, "-i", 0.05, "-w", 0.5, "-W", 10, KERNEL,
                      status=None).stdout
        assert output.count("\n") == 2
        return received(output) > 1

    wait_for("several answers", several)
    failed = ping(stack, "-c", 1, "-M", "do", "-s", 1473, KERNEL, status=1)
    assert failed.stderr == f"launcher.py: ping: {KERNEL}: Message too long\n"


def test_launcher_ping_beyond_what_a_packet_can_hold_is_one_clear_line(stack: Stack) -> None:
    failed = ping(stack, "-c", 1, "-s", 65508, KERNEL, status=None)
    assert failed.returncode == 2
    (line,) = filter(None, failed.stderr.splitlines())
    assert line.endswith("'65508': must be a whole number, 0 to 65507")


def test_launcher_ping_of_a_neighbour_that_is_not_there(stack: Stack) -> None:
    output = ping(stack, "-c", 1, "-W", 10, NOBODY, status=1).stdout
    assert "No route to host" in output
    assert received(output) == 0
