"""Checksum and segmentation offload at the TAP, on and off: what arrives at the kernel, behind it, and from it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, UDP

from .conftest import end_all, require_program, unavailable, unique_name
from .peers import PATIENCE_S, STACK, Stack, wait_for

UDP_SEGMENT = 103  # linux/udp.h
ROUTER, FAR, PORT = "10.1.0.1", "10.1.0.2", 5007
SIZE, COUNT = 1472, 100

# Prints, once ready, the IPv4 packets to PORT that come in on r1; ends after as many as it was told.
CATCH = """
import json, socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as cable:
    cable.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    cable.bind(("r1", 0x0800))
    cable.settimeout(float(sys.argv[2]))
    print("ready", flush=True)
    found = []
    try:
        while len(found) < int(sys.argv[1]):
            packet = cable.recv(1 << 17)[14:]
            if packet[9] == 17 and packet[22:24] == (5007).to_bytes(2, "big"):
                found.append(packet.hex())
    except TimeoutError:
        pass
    print(json.dumps(found), flush=True)
"""
# Takes checksum and segmentation offload from an interface (linux/ethtool.h): its packets are as on a real wire.
NO_OFFLOAD = """
import array, fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    for command in (0x17, 0x1f, 0x24):  # ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO
        value = array.array("B", struct.pack("=II", command, 0))
        fcntl.ioctl(control, 0x8946, struct.pack("16sP", sys.argv[1].encode(), value.buffer_info()[0]))
"""


@pytest.fixture(scope="module", params=[(), ("--no-offload",)], ids=["on", "off"])
def either(request: pytest.FixtureRequest, home, tap: None) -> Iterator[Stack]:
    """A stack with offload, and one without."""
    stack = Stack(home, unique_name())
    try:
        yield stack.up(*request.param)
    finally:
        end_all([stack])


def datagrams(size: int = SIZE, last: int = 7) -> list[bytes]:
    """Some of one size and a shorter one, none like another."""
    return [number.to_bytes(2, "big") + bytes(size - 2) for number in range(COUNT)] + [b"z" * last]


def dropped(stack: Stack) -> dict[str, int]:
    """What the layers dropped between the two ends."""
    layers = stack.status()["layers"]
    return {name: layer["packets_dropped"] for name, layer in layers.items() if layer["packets_dropped"]}


def test_status_says_what_the_kernel_takes_off_our_hands(new_stack: Callable[[], Stack]) -> None:
    stack = new_stack().up()
    offload = stack.status()["offload"]
    assert offload in (["checksum", "tcp-segmentation", "udp-segmentation"], ["checksum", "tcp-segmentation"])
    assert f"offload {', '.join(offload)}" in stack.run("status").stdout
    stack.run("down")
    config = stack.home / f"{stack.name}.toml"
    config.write_text("no_offload = true\n")
    stack.up("--config", config)
    assert stack.status()["offload"] == []
    assert "offload none" in stack.run("status").stdout


def test_many_datagrams_out_arrive_one_by_one(either: Stack) -> None:
    with either.bound() as app, either.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        app.sendto(b"", peer.getsockname())
        assert peer.recv(2048) == b""  # so the neighbour is known: what waits for that leaves one by one
        before = either.counters("link")["frames_out"]
        for start in range(0, COUNT + 1, 40):  # what a socket buffer of Linux holds
            some = datagrams()[start : start + 40]
            assert app.sendmany([(data, peer.getsockname()) for data in some]) == len(some)
            assert [peer.recv(2048) for _ in some] == some
        frames = either.counters("link")["frames_out"] - before
        if "udp-segmentation" in either.status()["offload"]:
            assert frames < COUNT / 10
        else:
            assert frames >= COUNT


def test_udp_segment_in_a_socket_option_and_in_ancillary_data(either: Stack) -> None:
    with either.bound() as app, either.kernel.udp() as peer:
        app.connect(peer.getsockname())
        whole = b"".join(datagrams(1000)[:20]) + b"rest"
        app.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
        assert app.getsockopt(socket.SOL_UDP, UDP_SEGMENT) == 1000
        assert app.send(whole) == len(whole)
        assert b"".join(peer.recv(2048) for _ in range(21)) == whole
        app.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 0)
        app.sendmsg([whole], [(socket.SOL_UDP, UDP_SEGMENT, (500).to_bytes(2, sys.byteorder))])
        assert [len(peer.recv(2048)) for _ in range(41)] == [500] * 40 + [4]
        for refused, segment in ((bytes(1290), 10), (bytes(65508), 1000)):  # more than 128; more than a packet
            app.setsockopt(socket.SOL_UDP, UDP_SEGMENT, segment)
            with pytest.raises(OSError, match=r"Invalid argument|too long"):
                app.send(refused)


def test_segments_above_the_mtu_are_fragmented_each(either: Stack) -> None:
    with either.bound() as app, either.kernel.udp() as peer:
        some = datagrams(4000)[:10]
        assert app.sendmany([(data, peer.getsockname()) for data in some]) == 10
        assert [peer.recv(8192) for _ in some] == some


def test_many_datagrams_in_arrive_one_by_one(either: Stack) -> None:
    with either.bound() as app, either.kernel.udp() as peer:
        peer.connect(app.getsockname())
        peer.setsockopt(socket.SOL_UDP, UDP_SEGMENT, SIZE)
        some = [*datagrams()[:40], b"short"]
        peer.send(b"".join(some))
        got: list[bytes] = []
        while len(got) < len(some):
            got += [data for data, sender in app.recvmany(64) if sender == peer.getsockname()]
        assert got == some
        peer.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 0)
        for size in (0, 1, 2, 1471, SIZE, 9000):  # the last in fragments
            peer.send(bytes(size))
            assert app.recv(10_000) == bytes(size)
        assert "udp" not in dropped(either)


def test_many_datagrams_within_the_stack(either: Stack) -> None:
    with either.bound() as one, either.bound() as other:
        some = datagrams()[:60]
        one.sendmany([(data, other.getsockname()) for data in some])
        got: list[bytes] = []
        while len(got) < len(some):
            got += [data for data, _ in other.recvmany(64)]
        assert got == some


def test_a_broadcast_super_packet_reaches_a_socket_that_listens(either: Stack) -> None:
    with either.bound(address="0.0.0.0") as app, either.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        peer.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 100)
        peer.sendto(b"a" * 100 + b"b" * 100 + b"c", ("10.0.0.255", app.getsockname()[1]))
        assert [app.recv(1000) for _ in range(3)] == [b"a" * 100, b"b" * 100, b"c"]


def test_a_closed_port_refuses_a_super_packet(either: Stack) -> None:
    with either.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 100)
        peer.connect((STACK, 9))

        def refused() -> bool:  # errors are limited in number, and earlier tests may have had some
            try:
                peer.send(bytes(1000))
                peer.settimeout(0.2)
                peer.recv(100)
            except TimeoutError:
                return False
            except ConnectionRefusedError:
                return True
            return False

        wait_for("a port unreachable", refused)


def test_it_goes_on_over_the_death_of_link(either: Stack) -> None:
    with either.bound() as app, either.kernel.udp() as peer:
        either.run("restart", "link", "ip", "udp")
        some = datagrams()[:40]
        app.sendmany([(data, peer.getsockname()) for data in some])
        assert [peer.recv(2048) for _ in some] == some


def test_behind_a_router_every_packet_is_as_on_a_wire(either: Stack) -> None:
    """A second namespace behind the kernel's end, over a link that has no offload: there all has been made good."""
    require_program("unshare")
    require_program("nsenter")
    second = either.start("unshare", "-n", "sh", "-c", "echo ready; exec sleep 600")
    assert second.stdout.readline() == "ready\n"
    forwards = either.execute("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", status=None)
    if forwards.returncode:
        unavailable(f"the sandbox's kernel will not route: {forwards.stderr.strip()}")
    there = ["nsenter", "-t", second.pid, "-n"]
    for command in (
        ["ip", "link", "add", "r0", "type", "veth", "peer", "name", "r1", "netns", second.pid],
        [sys.executable, "-c", NO_OFFLOAD, "r0"],
        ["ip", "address", "add", f"{ROUTER}/24", "dev", "r0"], ["ip", "link", "set", "r0", "up"],
        [*there, "ip", "link", "set", "r1", "up"], [*there, "ip", "address", "add", f"{FAR}/24", "dev", "r1"],
    ):
        either.execute(*command)
    some = [*datagrams()[:40], b"", b"x", bytes(777)]
    catcher = either.start(*there, sys.executable, "-c", CATCH, len(some), PATIENCE_S)
    assert catcher.stdout.readline() == "ready\n"
    with either.bound() as app:
        assert app.sendmany([(data, (FAR, PORT)) for data in some]) == len(some)
    packets = [bytes.fromhex(packet) for packet in json.loads(catcher.stdout.readline())]
    assert [bytes(IP(packet)[UDP].payload)[: IP(packet)[UDP].len - 8] for packet in packets] == some
    for packet in packets:
        again = IP(packet)
        assert again.src == STACK
        del again.chksum, again[UDP].chksum
        assert bytes(again) == packet
