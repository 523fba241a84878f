"""IPv4 with the Linux kernel as peer: fragments, options, broadcasts, path MTUs through a router, routes by order."""

from __future__ import annotations

import errno
import random
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from .conftest import end_all, require_program, unavailable, unique_name
from .peers import KERNEL, PATIENCE_S, STACK, Stack, received, wait_for

IP_MTU_DISCOVER, IP_RECVERR, IP_MTU = 10, 11, 14  # <linux/in.h>; not all of them are in Python's socket module
DONT, WANT, DO, PROBE = range(4)
DATAGRAM_MAX = 65507
ROUTER, FAR, FAR_NETWORK = "10.99.0.1", "10.99.0.2", "10.99.0.0/24"
FAR_MTU = 1400
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    server.sendto(*server.recvfrom(1 << 16))
"""


def ping(stack: Stack, *arguments: object) -> str:
    """One request of ping(8)'s. Of more it would not wait for the last reply: two round trips at most, whatever -W."""
    require_program("ping")
    return stack.execute("ping", "-c", 1, "-W", PATIENCE_S, *arguments, STACK).stdout


def data(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# -- fragments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8, 1472, 1473, 1480, 2952, 2953, 4096, 16384, 32768, 65506, 65507])
def test_ping_of_every_size(stack: Stack, size: int) -> None:
    output = ping(stack, "-s", size)
    assert received(output) == 1
    assert "wrong data byte" not in output


@pytest.mark.parametrize("strategy", ["do", "want", "dont"])
@pytest.mark.parametrize("size", [0, 1472, 1473, 16384, 65507])
def test_ping_of_every_size_with_and_without_path_mtu_discovery(stack: Stack, size: int, strategy: str) -> None:
    if strategy == "do" and size > 1472:
        refused = stack.execute("ping", "-c", 1, "-M", "do", "-s", size, STACK, status=1)
        assert "message too long, mtu=1500" in refused.stderr
    else:
        assert received(ping(stack, "-s", size, "-M", strategy)) == 1


@pytest.mark.parametrize("size", [1472, 1473, 9000, DATAGRAM_MAX])
def test_datagrams_of_every_size_both_ways(stack: Stack, size: int) -> None:
    with stack.kernel.udp() as peer, stack.bound() as app:
        app.sendto(data(size), peer.getsockname())
        assert peer.recv(1 << 16) == data(size)
        peer.sendto(data(size, 2), app.getsockname())
        assert app.recv(1 << 16) == data(size, 2)


def test_the_largest_datagram_is_the_first_to_a_neighbour(stack: Stack) -> None:
    """All of its fragments wait for the neighbour's address."""
    stack.run("neighbor", "flush")
    with stack.kernel.udp() as peer, stack.bound() as app:
        app.sendto(data(DATAGRAM_MAX), peer.getsockname())
        assert peer.recv(1 << 16) == data(DATAGRAM_MAX)


def test_ip_7_mtu_discover_decides_what_is_too_long(stack: Stack) -> None:
    with stack.kernel.udp() as peer, stack.socket() as app:
        app.connect(peer.getsockname())
        assert app.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1500
        for mode in (DO, PROBE):
            app.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)
            with pytest.raises(OSError) as failure:
                app.send(bytes(1473))
            assert failure.value.errno == errno.EMSGSIZE
            app.send(bytes(1472))
            assert len(peer.recv(4096)) == 1472
        for mode in (DONT, WANT):
            app.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)
            app.send(bytes(1473))
            assert len(peer.recv(4096)) == 1473
            with pytest.raises(OSError) as failure:
                app.send(bytes(DATAGRAM_MAX + 1))
            assert failure.value.errno == errno.EMSGSIZE


def test_tracepath_gets_answers(stack: Stack) -> None:
    """DF, the MTU's full length, to a closed port; and beyond the MTU, where the kernel itself says no."""
    with stack.kernel.udp() as probe:
        probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
        probe.connect((STACK, 44444))
        probe.send(bytes(1472))
        with pytest.raises(ConnectionRefusedError):
            probe.recv(1)


def test_tracepath(stack: Stack) -> None:
    require_program("tracepath")
    output = stack.execute("tracepath", "-n", STACK).stdout
    assert "reached" in output
    assert "pmtu 1500" in output


def test_fragments_meet_a_kill_of_ip_and_those_behind_it_arrive(stack: Stack) -> None:
    before = stack.incarnations()["ip"]
    with stack.kernel.udp() as peer, stack.bound() as app:
        echoed = []
        for number in range(60):
            if number == 20:
                stack.run("sabotage", "ip", "kill")
                wait_for("a new ip", lambda: stack.incarnations()["ip"] > before)
            app.settimeout(0.5 if number in (20, 21) else PATIENCE_S)  # the kill may cost these
            payload = struct.pack("!I", number) + data(20000)
            peer.sendto(payload, app.getsockname())
            try:
                while (got := app.recv(1 << 16)) != payload:
                    assert got[4:] == payload[4:]  # never a mixture; a repeated one may come
            except TimeoutError:
                continue
            echoed.append(number)
    assert len(echoed) >= 58
    assert echoed[-10:] == list(range(50, 60))


def test_teardrop_and_ping_of_death_are_counted_and_nothing_else_happens(stack: Stack) -> None:
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

    mac = bytes.fromhex(stack.mac.replace(":", ""))
    before, incarnation = stack.counters("ip"), stack.incarnations()["ip"]

    def fragment(number: int, offset: int, size: int, flags: str = "MF") -> bytes:
        header = IP(src=KERNEL, dst=STACK, proto=1, id=number, frag=offset, flags=flags)
        return bytes(Ether(src=stack.kernel.mac(), dst=mac) / header / Raw(bytes(size)))

    hostile = [fragment(1, 0, 36 // 8 * 8), fragment(1, 3, 4, ""),  # teardrop
               fragment(2, 8189, 1480, ""), fragment(3, 0, 0), fragment(4, 1, 13)]
    with stack.kernel.packet() as cable:
        for frame in hostile:
            cable.send(frame)
        cable.send(bytes(Ether(src=stack.kernel.mac(), dst=mac) / IP(src=KERNEL, dst=STACK) / ICMP(id=1, seq=1)))
    expected = {"fragment_spoilt": 1, "fragment_beyond": 1, "fragment_malformed": 2}
    wait_for("all counted", lambda: expected == {
        name: stack.counters("ip")[name] - before[name] for name in expected})
    assert stack.incarnations()["ip"] == incarnation
    assert received(ping(stack)) == 1


# -- IP options --------------------------------------------------------------------------------------------------------


def test_rfc1122_3_2_2_6_record_route_comes_back_with_our_address(stack: Stack) -> None:
    output = ping(stack, "-R")
    hops = output.split("RR:")[1].split("\n\n")[0].split()
    assert hops == [KERNEL, STACK, KERNEL]


def test_rfc1122_3_2_2_6_a_timestamp_comes_back_with_ours(stack: Stack) -> None:
    assert "not-standard" not in ping(stack, "-T", "tsonly")
    times = ping(stack, "-T", "tsandaddr").split("TS:")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in times] == [KERNEL, STACK, KERNEL]


def test_rfc7126_4_3_a_source_routed_packet_is_dropped(stack: Stack) -> None:
    before = stack.counters("ip")["source_routed"]
    with stack.kernel.udp() as peer, stack.bound() as app:
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes((131, 7, 4)) + socket.inet_aton(STACK) + b"\0")
        peer.sendto(b"by a way of my own", app.getsockname())
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"")
        peer.sendto(b"by yours", app.getsockname())
        assert app.recv(100) == b"by yours"
    assert stack.counters("ip")["source_routed"] == before + 1


def test_a_datagram_with_harmless_options_is_delivered(stack: Stack) -> None:
    with stack.kernel.udp() as peer, stack.bound() as app:
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x94\x04\0\0")  # router alert
        peer.sendto(data(5000), app.getsockname())
        assert app.recv(1 << 16) == data(5000)


# -- broadcasts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.0.0.255", "255.255.255.255"])
@pytest.mark.parametrize("size", [10, 3000])
def test_broadcasts_both_ways(stack: Stack, address: str, size: int) -> None:
    with stack.kernel.udp(address="0.0.0.0") as peer, stack.bound(address="0.0.0.0") as app:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0")
        peer.sendto(data(size), (address, app.getsockname()[1]))
        assert app.recv(1 << 16) == data(size)
        with pytest.raises(PermissionError):
            app.sendto(b"without leave", (address, peer.getsockname()[1]))
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        app.sendto(data(size, 2), (address, peer.getsockname()[1]))
        while (got := peer.recv(1 << 16)) != data(size, 2):
            assert got == data(size)  # the kernel hears itself


# -- addresses and routes by order -------------------------------------------------------------------------------------


def kill_ip(stack: Stack) -> None:
    before = stack.incarnations()["ip"]
    stack.run("sabotage", "ip", "kill")
    wait_for("a new ip", lambda: stack.incarnations()["ip"] > before)


def test_an_address_more_is_answered_for_and_outlives_a_kill(new_stack) -> None:
    stack = new_stack().up()
    stack.execute("ip", "address", "add", "10.0.5.1/24", "dev", "tap0")
    stack.run("address", "add", "10.0.5.2/24")
    kill_ip(stack)
    assert stack.run("address", "list").stdout.split() == [f"{STACK}/24", "10.0.5.2/24"]
    with stack.bound(address="10.0.5.2") as app, stack.kernel.udp(address="10.0.5.1") as peer:
        app.sendto(b"from the new one", peer.getsockname())
        assert peer.recvfrom(100) == (b"from the new one", app.getsockname())
        peer.sendto(b"back", app.getsockname())
        assert app.recv(100) == b"back"
        stack.run("address", "del", "10.0.5.2/24")
        stack.run("address", "add", "10.0.5.2/24")  # the socket is still there
        peer.sendto(b"once more", app.getsockname())
        assert app.recv(100) == b"once more"
    assert "0 received" in stack.execute("ping", "-c", 1, "-W", 1, "10.0.5.3", status=1).stdout


def test_a_route_by_order_and_back(new_stack) -> None:
    stack = new_stack().up()
    stack.run("route", "del", "default")
    with stack.bound() as app, pytest.raises(OSError) as failure:
        app.sendto(b"nowhere", (FAR, 7))
    assert failure.value.errno == errno.ENETUNREACH
    stack.execute("ip", "address", "add", f"{FAR}/32", "dev", "lo")
    stack.run("route", "add", FAR_NETWORK, "via", KERNEL, "metric", "7", "mtu", "1200")
    kill_ip(stack)
    assert f"{FAR_NETWORK} via {KERNEL} src {STACK} metric 7 mtu 1200" in stack.run("route", "list").stdout
    with stack.kernel.udp(address=FAR) as peer, stack.socket() as app:
        app.connect(peer.getsockname())
        assert app.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1200
        app.send(data(1400))
        assert peer.recv(4096) == data(1400)


@pytest.mark.parametrize(("words", "status"), [
    (["route", "add"], 2), (["route", "add", "10.9.0.0"], 1), (["route", "add", "10.9.0.1/16"], 2),
    (["route", "add", "default", "via"], 2), (["route", "add", "10.9.0.0/16", "via", "10.44.0.1"], 1),
    (["route", "add", "10.9.0.0/16", "metric", "many"], 2), (["route", "sideways"], 2),
    (["route", "del", "10.9.0.0/16"], 1), (["route", "del", "10.0.0.0/24"], 1), (["address", "add", "10.0.5.2"], 2),
    (["address", "add", f"{STACK}/16"], 1), (["address", "del", "10.0.5.2/24"], 1), (["address", "frob", "x"], 2),
])  # fmt: skip
def test_errors_are_one_clear_line(stack: Stack, words: list[str], status: int) -> None:
    if words == ["route", "add", "10.9.0.0"]:
        words = [*words, "via", "10.0.0.255"]
    failed = stack.run(*words, status=status)
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1


# -- path MTU through a router -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(home, tap) -> Iterator[Stack]:
    """A stack whose gateway, the kernel's end, leads to a second network namespace over a link of a smaller MTU.

    `routed.link_mtu(octets)` changes that.
    """
    require_program("unshare")
    require_program("nsenter")
    stack = Stack(home, unique_name())
    try:
        stack.up()
        second = stack.start("unshare", "-n", "sh", "-c", "echo ready; exec sleep 600")
        assert second.stdout.readline() == "ready\n"
        forwards = stack.execute("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", status=None)
        if forwards.returncode:
            unavailable(f"the sandbox's kernel will not route: {forwards.stderr.strip()}")
        there = ["nsenter", "-t", second.pid, "-n"]
        for command in (
            ["ip", "link", "add", "r0", "mtu", FAR_MTU, "type", "veth", "peer", "name", "r1", "netns", second.pid],
            ["ip", "address", "add", f"{ROUTER}/24", "dev", "r0"], ["ip", "link", "set", "r0", "up"],
            [*there, "ip", "link", "set", "r1", "mtu", FAR_MTU, "up"],
            [*there, "ip", "address", "add", f"{FAR}/24", "dev", "r1"],
            [*there, "ip", "route", "add", "default", "via", ROUTER],
        ):
            stack.execute(*command)
        server = stack.start(*there, sys.executable, "-c", ECHO)
        assert server.stdout.readline() == "ready\n"

        def link_mtu(octets: int) -> None:
            stack.execute("ip", "link", "set", "r0", "mtu", octets)
            stack.execute(*there, "ip", "link", "set", "r1", "mtu", octets)

        stack.link_mtu = link_mtu
        yield stack
    finally:
        end_all([stack])


def test_rfc1191_a_path_mtu_is_learnt_told_to_sockets_and_kept_over_a_kill(routed: Stack) -> None:
    with routed.socket() as app:
        app.connect((FAR, 7))
        app.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, DO)
        assert app.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1500
        app.send(data(1472))
        with pytest.raises(OSError) as failure:
            app.recv(4096)
        assert failure.value.errno == errno.EMSGSIZE
        for moment in ("learnt", "after a kill"):  # the error may be here before the routes are at the socket service
            wait_for(f"the path MTU, {moment}", lambda: app.getsockopt(socket.IPPROTO_IP, IP_MTU) == FAR_MTU)
            with pytest.raises(OSError) as failure:
                app.send(bytes(FAR_MTU - 27))
            assert failure.value.errno == errno.EMSGSIZE
            app.send(data(FAR_MTU - 28))
            assert app.recv(4096) == data(FAR_MTU - 28)
            assert f"{FAR}/32 via {KERNEL} src {STACK} mtu {FAR_MTU}  (path MTU" in routed.run("route").stdout
            kill_ip(routed)


def test_rfc1191_without_df_datagrams_are_fragmented(routed: Stack) -> None:
    """The first is lost where the MTU is not known yet; a sender that goes on does not hang."""
    with routed.socket(timeout_s=0.3) as app:
        app.bind(("0.0.0.0", 0))
        for number in range(round(PATIENCE_S / 0.3)):
            payload = struct.pack("!I", number) + data(1468)
            app.sendto(payload, (FAR, 7))
            try:
                while app.recv(4096) != payload:  # a late answer to one before
                    pass
            except TimeoutError:
                continue
            break
        else:
            raise AssertionError("no datagram ever arrived")
        app.sendto(data(DATAGRAM_MAX), (FAR, 7))
        app.settimeout(PATIENCE_S)
        assert app.recv(1 << 16) == data(DATAGRAM_MAX)


def test_a_link_below_552_is_left_to_the_router(routed: Stack) -> None:
    """A link of less than that: we stop at 552 and leave the rest of the fragmenting to the router."""
    def answered(size: int, within_s: float = 2) -> bool:
        output = routed.run("ping", "-c", 1, "-W", within_s, "-s", size, FAR, status=None).stdout
        return received(output) == 1

    routed.link_mtu(300)
    try:
        wait_for("an answer, once the router has told us", lambda: answered(400))
        assert " mtu 552 " in routed.run("route").stdout
        assert answered(3000, PATIENCE_S)
    finally:
        routed.link_mtu(FAR_MTU)


def too_big(app, to: tuple[str, int], mtu: int) -> bytes:
    """An ICMP error about a datagram that `app` may have sent: fragmentation needed, by a next hop of this MTU."""
    from scapy.layers.inet import ICMP, IP, UDP

    quoted = IP(src=STACK, dst=to[0], flags="DF", len=1500) / UDP(sport=app.getsockname()[1], dport=to[1], len=1480)
    return bytes(ICMP(type=3, code=4, nexthopmtu=mtu) / quoted)


def test_rfc8201_4_an_mtu_is_accepted_only_for_destinations_in_use(new_stack) -> None:
    stack = new_stack().up()
    far = ("198.51.100.7", 7)
    with stack.socket() as app, stack.kernel.socket(kind=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as router:
        app.connect(far)
        app.send(b"so that it is a destination of ours")

        def tells(to: tuple[str, int], mtu: int, layer: str, name: str, outcome: int) -> None:
            before = stack.counters(layer)[name]
            router.sendto(too_big(app, to, mtu), (STACK, 0))
            wait_for(name, lambda: stack.counters(layer)[name] == before + 1)
            wait_for(f"an MTU of {outcome}", lambda: app.getsockopt(socket.IPPROTO_IP, IP_MTU) == outcome)

        tells((far[0], 8), 1000, "udp", "error_no_socket", 1500)  # a port that it does not talk with
        tells(("198.51.100.8", 7), 1000, "udp", "error_no_socket", 1500)
        tells(far, 1000, "ip", "path_mtu_lowered", 1000)
        tells(far, 68, "ip", "path_mtu_lowered", 552)
