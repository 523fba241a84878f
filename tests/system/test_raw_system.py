"""Raw sockets with the Linux kernel as peer, and as the model of what they do."""

from __future__ import annotations

import errno
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import pytest
from scapy.layers.inet import ICMP, IP, UDP, ICMPerror
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from .conftest import end_all, unique_name
from .peers import KERNEL, NOBODY, PATIENCE_S, ROOT, STACK, Stack, next_frame, wait_for

EXPERIMENT = 253  # RFC 3692
SOL_RAW, ICMP_FILTER = 255, 1
UINT32 = Struct("=I")

PING = """
import os, socket, struct, sys

def checksum(octets):
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - (total >> 16) - (total & 0xFFFF)

with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.getprotobyname("icmp")) as endpoint:
    endpoint.settimeout(10)
    for number in range(3):
        request = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, number) + b"data" * 4
        request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
        endpoint.sendto(request, (sys.argv[1], 0))
        while True:
            packet, (address, port) = endpoint.recvfrom(1500)
            header = (packet[0] & 15) * 4
            if packet[header] == 0 and packet[header + 4:] == request[4:]:
                print(f"{address} {port} {number} ttl={packet[8]}")
                break
"""


@pytest.fixture(scope="module")
def stack(home: Path, tap: None) -> Iterator[Stack]:
    """One whose owner allows raw sockets."""
    booted = Stack(home, unique_name())
    try:
        yield booted.up("--allow-raw")
    finally:
        end_all([booted])


@pytest.fixture
def raw(stack: Stack) -> Iterator[Callable]:
    """Makes raw sockets of the stack."""
    made = []

    def make(protocol: int = EXPERIMENT):
        made.append(stack.socket(socket.SOCK_RAW, protocol))
        return made[-1]

    yield make
    for each in made:
        each.close()


def kernel_raw(stack: Stack, protocol: int = EXPERIMENT) -> socket.socket:
    """A raw socket of the kernel's."""
    return stack.kernel.socket(kind=socket.SOCK_RAW, proto=protocol)


# -- consent -----------------------------------------------------------------------------------------------------------


def test_a_raw_socket_needs_the_option_of_the_owner(new_stack) -> None:
    plain = new_stack().up()
    with pytest.raises(PermissionError, match="--allow-raw"):
        plain.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with pytest.raises(OSError, match="Protocol not supported"):
        plain.socket(socket.SOCK_RAW, 0)
    assert "raw" not in plain.status()["layers"]
    assert "no layer 'raw'; the layers are link, " in plain.run("sabotage", "raw", "kill", status=2).stderr
    with plain.bound() as endpoint, plain.kernel.udp() as peer:
        endpoint.sendto(b"all else serves", peer.getsockname())
        assert peer.recv(100) == b"all else serves"


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_icmp_is_heard_whole_and_answered_all_the_same(stack: Stack, raw) -> None:
    ears = raw(socket.IPPROTO_ICMP)
    assert "1 received" in stack.execute("ping", "-c", 1, "-W", 10, "-p", "a5", STACK).stdout
    packet, peer = ears.recvfrom(2000)
    heard = IP(packet)
    assert peer == (KERNEL, 0)
    assert (heard.src, heard.dst, heard[ICMP].type) == (KERNEL, STACK, 8)
    assert b"\xa5" * 16 in packet


def test_udp_is_copied_to_every_raw_socket_and_still_delivered(stack: Stack, raw) -> None:
    ears = [raw(socket.IPPROTO_UDP), raw(socket.IPPROTO_UDP)]
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"for all", app.getsockname())
        assert app.recv(100) == b"for all"
        for each in ears:
            heard = IP(each.recv(2000))
            assert bytes(heard[UDP].payload) == b"for all"
            whole = heard.copy()
            del whole[UDP].chksum
            assert bytes(whole) == bytes(heard)


def test_rfc1122_3_2_2_1_protocol_unreachable_only_without_a_raw_socket(stack: Stack, raw) -> None:
    with kernel_raw(stack) as mouth, stack.kernel.packet() as cable:
        mouth.sendto(b"anybody?", (STACK, 0))

        def unreachable(frame: bytes) -> bool:
            got = Ether(frame)
            return ICMP in got and (got[ICMP].type, got[ICMP].code) == (3, 2)

        assert next_frame(cable, unreachable)
        ears = raw()
        mouth.sendto(b"you there", (STACK, 0))
        packet, peer = ears.recvfrom(100)
        assert (packet[20:], peer) == (b"you there", (KERNEL, 0))


def test_raw7_icmp_filter_and_connect(stack: Stack, raw) -> None:
    ears = raw(socket.IPPROTO_ICMP)
    ears.setsockopt(SOL_RAW, ICMP_FILTER, UINT32.pack(~(1 << 0) & 0xFFFFFFFF))  # echo replies only
    ears.connect((KERNEL, 0))
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    stack.run("ping", "-c", 1, "-W", 10, STACK)
    stack.run("ping", "-c", 1, "-W", 10, KERNEL)
    heard = IP(ears.recv(2000))
    assert (heard.src, heard[ICMP].type) == (KERNEL, 0)
    ears.settimeout(0.1)
    with pytest.raises(TimeoutError):
        ears.recv(2000)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_a_payload_of_any_protocol_reaches_the_kernel(stack: Stack, raw) -> None:
    mouth = raw()
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 7)
    with kernel_raw(stack) as ears:
        assert mouth.sendto(b"payload", (KERNEL, 0)) == 7
        heard = IP(ears.recv(100))
        assert (heard.src, heard.dst, heard.ttl, heard.proto) == (STACK, KERNEL, 7, EXPERIMENT)
        assert bytes(heard.payload) == b"payload"


def test_ip7_hdrincl_a_crafted_packet_is_seen_on_the_cable(stack: Stack, raw) -> None:
    mouth = raw(socket.IPPROTO_RAW)
    header = IP(src="203.0.113.9", dst="198.51.100.1", ttl=3, id=4711, proto=EXPERIMENT, tos=4)
    crafted = bytes(header / Raw(b"crafted"))
    with stack.kernel.packet() as cable:
        assert mouth.sendto(crafted, (KERNEL, 0)) == len(crafted)
        frame = next_frame(cable, lambda frame: b"crafted" in frame)
    assert frame[14 : 14 + len(crafted)] == crafted
    assert frame[:6] == stack.kernel.mac()


def test_an_error_from_the_network_reaches_a_connected_socket(stack: Stack, raw) -> None:
    endpoint = raw()
    endpoint.connect((KERNEL, 0))
    endpoint.send(b"the kernel has no such protocol")
    with pytest.raises(OSError, match="Protocol not available"):
        endpoint.recv(100)


def test_a_neighbour_that_is_not_there(stack: Stack, raw) -> None:
    endpoint = raw()
    endpoint.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    endpoint.sendto(b"anybody there?", (NOBODY, 0))
    with pytest.raises(OSError, match="No route to host"):
        endpoint.recv(100)


# -- as on Linux -------------------------------------------------------------------------------------------------------


HEADER = bytes(IP(src="0.0.0.0", dst=KERNEL, proto=EXPERIMENT))
STEPS: dict[str, Callable] = {
    "name": lambda s, own, peer: s.getsockname()[1],
    "type": lambda s, own, peer: s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "protocol": lambda s, own, peer: s.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
    "bind twice": lambda s, own, peer: (s.bind((own, 7)), s.bind(("0.0.0.0", 8)), s.getsockname()),
    "bind elsewhere": lambda s, own, peer: s.bind(("192.0.2.1", 0)),
    "bind when connected": lambda s, own, peer: (s.connect((peer, 9)), s.bind((own, 0))),
    "peer": lambda s, own, peer: (s.connect((peer, 9)), s.getpeername()[1], s.getsockname()[0] == own),
    "no peer": lambda s, own, peer: s.getpeername(),
    "send nowhere": lambda s, own, peer: s.send(b"data"),
    "broadcast": lambda s, own, peer: s.sendto(b"data", ("10.0.0.255", 0)),
    "filter": lambda s, own, peer: (s.setsockopt(SOL_RAW, ICMP_FILTER, UINT32.pack(5)), s.getsockopt(SOL_RAW, 1, 4)),
    "header included": lambda s, own, peer: (
        s.getsockopt(0, socket.IP_HDRINCL), s.setsockopt(0, socket.IP_HDRINCL, 1), s.getsockopt(0, socket.IP_HDRINCL)),
    "too long": lambda s, own, peer: s.sendto(bytes(65536), (peer, 0)),
    "too long with a header": lambda s, own, peer: (
        s.setsockopt(0, socket.IP_HDRINCL, 1), s.sendto(HEADER + bytes(1481), (peer, 0))),
    "no header": lambda s, own, peer: (s.setsockopt(0, socket.IP_HDRINCL, 1), s.sendto(HEADER[:19], (peer, 0))),
    "a header that is longer": lambda s, own, peer: (
        s.setsockopt(0, socket.IP_HDRINCL, 1), s.sendto(b"\x46" + HEADER[1:], (peer, 0))),
    "listen": lambda s, own, peer: s.listen(),
}  # fmt: skip


def outcome(step: Callable, endpoint, own: str, peer: str) -> object:
    """What it returned, own addresses aside, or its errno."""
    try:
        return re.sub(rf"{re.escape(own)}|{re.escape(peer)}", "*", repr(step(endpoint, own, peer)))
    except OSError as error:
        return errno.errorcode[error.errno]


@pytest.mark.parametrize("protocol", [socket.IPPROTO_ICMP, socket.IPPROTO_UDP, EXPERIMENT, socket.IPPROTO_RAW])
@pytest.mark.parametrize("step", STEPS)
def test_raw7_the_same_as_linux(stack: Stack, raw, step: str, protocol: int) -> None:
    with kernel_raw(stack, protocol) as model:
        expected = outcome(STEPS[step], model, KERNEL, STACK)
    assert outcome(STEPS[step], raw(protocol), STACK, KERNEL) == expected


@pytest.mark.parametrize("option", [(0, socket.IP_HDRINCL), (SOL_RAW, ICMP_FILTER)])
def test_a_udp_socket_has_no_raw_socket_options(stack: Stack, option: tuple[int, int]) -> None:
    with stack.socket() as endpoint, pytest.raises(OSError, match="Protocol not available"):
        endpoint.setsockopt(*option, bytes(4))


# -- programs and crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [KERNEL, STACK])
def test_an_unmodified_program_pings_through_a_raw_socket(stack: Stack, tmp_path: Path, address: str) -> None:
    program = tmp_path / "ping.py"
    program.write_text(PING)
    child = stack.spawn([sys.executable, "-m", "usernet", str(program), address], cwd=ROOT)
    output, _ = child.communicate(timeout=60)
    assert output.splitlines() == [f"{address} 0 {number} ttl=64" for number in range(3)]


@pytest.mark.parametrize("victim", ["raw", "ip", "sockets"])
def test_raw_sockets_survive_the_death_of_a_layer(stack: Stack, raw, victim: str) -> None:
    ears, mouth = raw(), raw()
    ears.connect((KERNEL, 0))
    before = stack.incarnations()[victim]
    with kernel_raw(stack) as peer:
        stack.run("sabotage", victim, "kill")
        peer.sendto(b"under way", (STACK, 0))
        mouth.sendto(b"and back", (KERNEL, 0))
        assert ears.recv(100)[20:] == b"under way"
        assert peer.recv(100)[20:] == b"and back"
        wait_for("the restart", lambda: stack.serves(**{victim: before + 1}))
        assert ears.getpeername() == (KERNEL, 0)


# -- what icmp owes a host beside echo ---------------------------------------------------------------------------------


def test_rfc1122_3_2_2_8_a_timestamp_request_is_answered_with_the_time_of_day(stack: Stack) -> None:
    with kernel_raw(stack, socket.IPPROTO_ICMP) as endpoint:
        endpoint.sendto(bytes(ICMP(type=13, id=77, seq=1, ts_ori=123)), (STACK, 0))
        while ICMP not in (reply := IP(endpoint.recv(2000))) or reply[ICMP].type != 14:
            pass
    now_ms = int(time.time() * 1000) % 86_400_000
    assert (reply[ICMP].id, reply[ICMP].seq, reply[ICMP].ts_ori) == (77, 1, 123)
    assert reply[ICMP].ts_rx == reply[ICMP].ts_tx
    assert (now_ms - reply[ICMP].ts_rx) % 86_400_000 < 20_000


def test_rfc1122_3_2_2_8_a_timestamp_reply_reaches_the_socket_that_asked(stack: Stack, raw) -> None:
    endpoint = raw(socket.IPPROTO_ICMP)
    endpoint.settimeout(PATIENCE_S)
    endpoint.sendto(bytes(ICMP(type=13, id=78, seq=2, ts_ori=123)), (KERNEL, 0))
    while (reply := IP(endpoint.recv(2000)))[ICMP].type != 14:
        pass
    assert (reply.src, reply[ICMP].id, reply[ICMP].seq, reply[ICMP].ts_ori) == (KERNEL, 78, 2, 123)
    now_ms = int(time.time() * 1000) % 86_400_000
    assert (now_ms - reply[ICMP].ts_tx) % 86_400_000 < PATIENCE_S * 1000


def test_rfc4884_an_error_with_extensions_is_understood(stack: Stack, raw) -> None:
    endpoint = raw()
    endpoint.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    endpoint.connect(("198.51.100.9", 0))
    with stack.kernel.packet() as cable, kernel_raw(stack, socket.IPPROTO_ICMP) as mouth:
        endpoint.send(b"too far for its TTL")
        sent = Ether(next_frame(cable, lambda frame: b"too far" in frame))[IP]
        quote = bytes(sent)[: sent.len].ljust(128, b"\0")
        extension = bytes.fromhex("2000dfff000801010000a140")
        error = ICMP(bytes(ICMP(type=11, length=32) / Raw(quote + extension)))
        del error.chksum
        mouth.sendto(bytes(error), (STACK, 0))
        assert ICMPerror not in sent
    data, controls, _, _ = endpoint.recvmsg(2000, 2000, 0x2000)  # MSG_ERRQUEUE
    assert data == b"too far for its TTL"
    assert controls[0][2][4:7] == bytes((2, 11, 0))  # by ICMP: time exceeded, in transit


# -- multicast ---------------------------------------------------------------------------------------------------------

GROUP = "239.1.2.3"
IP_MULTICAST_ALL = 49  # linux/in.h


def mreq(interface: str = "0.0.0.0") -> bytes:
    return socket.inet_aton(GROUP) + socket.inet_aton(interface)


@pytest.mark.parametrize("ours", [True, False], ids=["stack", "kernel"])
def test_a_raw_socket_hears_the_groups_of_its_own(stack: Stack, raw: Callable, ours: bool) -> None:
    """One end listens, the other sends; both ends are to behave alike."""
    member, sender = (raw(), kernel_raw(stack)) if ours else (kernel_raw(stack), raw())
    interface = "0.0.0.0" if ours else KERNEL
    (sender if ours else member).setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(KERNEL))
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 9)
    member.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)

    def heard(data: bytes) -> bool:
        """Whether a multicast arrives before what is sent to us alone after it."""
        sender.sendto(data, (GROUP, 0))
        sender.sendto(b"ours alone", (STACK if ours else KERNEL, 0))
        packet = IP(member.recv(1500))
        if packet.dst != GROUP:
            return False
        assert (bytes(packet.payload), packet.ttl) == (data, 9)
        assert bytes(IP(member.recv(1500)).payload) == b"ours alone"
        return True

    other = raw(200) if ours else kernel_raw(stack, 200)  # lets the group in
    other.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq(interface))
    assert not heard(b"not joined")
    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq(interface))
    assert heard(b"joined")
    member.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, mreq(interface))
    assert not heard(b"left")
    member.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 1)
    assert heard(b"what others have joined")


@pytest.mark.parametrize("loop", [1, 0])
def test_our_own_multicasts_come_back_unless_the_raw_socket_forbids_it(stack: Stack, raw: Callable, loop: int) -> None:
    outcomes = []
    for made, own, interface in ((raw(), STACK, "0.0.0.0"), (kernel_raw(stack), KERNEL, KERNEL)):
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq(interface))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
        made.sendto(b"to the group", (GROUP, 0))
        made.sendto(b"to myself", (own, 0))
        outcomes.append(bytes(IP(made.recv(1500)).payload))
    assert outcomes == [b"to the group" if loop else b"to myself"] * 2


def test_ping_sockets_send_multicasts_with_the_sockets_options(stack: Stack, raw: Callable) -> None:
    request = b"\x08\0\0\0\0\0\0\1"
    with stack.socket(socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping, stack.kernel.packet() as cable:
        listener = raw(socket.IPPROTO_ICMP)
        for ttl, loop in ((9, 1), (7, 0)):
            ping.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            ping.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, loop)
            if loop:
                ping.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq())
            ping.sendto(request, (GROUP, 0))
            frame = next_frame(cable, lambda frame: Ether(frame).haslayer(ICMP))
            assert (Ether(frame)[IP].dst, Ether(frame)[IP].ttl) == (GROUP, ttl)
            if loop:
                assert IP(listener.recv(1500)).dst == GROUP
        ping.sendto(request, (STACK, 0))
        assert IP(listener.recv(1500)).dst == STACK  # and not the group, to which nothing came back


# -- addresses that go -------------------------------------------------------------------------------------------------

ECHO = b"\x08\0\0\0\0\0\0\1"


def failure(app, message: bytes) -> int:
    """The errno with which a send fails, if it does."""
    try:
        app.sendto(message, (KERNEL, 9))
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("connected", [False, True], ids=["bound", "connected"])
@pytest.mark.parametrize(("kind", "protocol", "message"), [
    (socket.SOCK_DGRAM, 0, b"data"), (socket.SOCK_DGRAM, socket.IPPROTO_ICMP, ECHO),
    (socket.SOCK_RAW, EXPERIMENT, b"data")], ids=["udp", "ping", "raw"])
def test_as_linux_what_is_bound_to_an_address_that_has_gone_is_unreachable_until_it_is_back(
        new_stack, kind: int, protocol: int, message: bytes, connected: bool) -> None:
    stack = new_stack().up("--allow-raw")
    stack.execute("sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
    ours, theirs = "10.0.0.9", "10.0.0.8"

    def change(order: str) -> None:
        stack.run("address", order, f"{ours}/24")
        stack.execute("ip", "address", order, f"{theirs}/24", "dev", "tap0")

    def outcomes(made, peer: str) -> list[str]:
        """Of the same calls at either end."""
        calls = [lambda: made.send(message) if connected else made.sendto(message, (peer, 9)),
                 lambda: made.sendto(message, (peer, 9)), lambda: made.connect((peer, 9))]
        found = []
        for call in calls:
            try:
                call()
                found.append("done")
            except OSError as error:
                found.append(errno.errorcode[error.errno])
        return found

    change("add")
    with stack.socket(kind, protocol) as app, stack.kernel.socket(kind=kind, proto=protocol) as other:
        for made, address, peer in ((app, ours, NOBODY), (other, theirs, NOBODY)):
            made.bind((address, 0))
            if connected:
                made.connect((peer, 9))
        app.sendto(message, (KERNEL, 9))
        change("del")
        # a sender without a reading thread gets the error soon
        assert wait_for("the news", lambda: failure(app, message)) == errno.ENETUNREACH
        assert outcomes(app, NOBODY) == outcomes(other, NOBODY) == ["ENETUNREACH"] * 3
        assert (app.getsockname()[0], other.getsockname()[0]) == (ours, theirs)
        change("add")
        wait_for("the address", lambda: outcomes(app, NOBODY) == ["done"] * 3)
        assert outcomes(other, NOBODY) == ["done"] * 3
