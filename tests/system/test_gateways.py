"""Two Linux machines as gateways, on one network with the stack: which of them serves, and what they redirect to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from .conftest import end_all, require_program, unique_name
from .peers import KERNEL, TAP, Stack, wait_for

FIRST, SECOND = KERNEL, "10.0.0.3"
FAR = "10.99.0.2"  # each gateway has it, and says its own name there
NAMES = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.99.0.2", 7))
print("ready", flush=True)
while True:
    server.sendto(sys.argv[1].encode(), server.recvfrom(1 << 16)[1])
"""


class Gateways(Stack):
    """The kernel's end of the cable is a bridge; behind it are two machines, network namespaces of their own."""

    def up(self, *flags: object) -> Gateways:
        super().up(*flags)
        self.machines = {}
        for command in (["address", "flush", "dev", TAP], ["link", "add", "br0", "type", "bridge"],
                        ["link", "set", TAP, "master", "br0"], ["link", "set", "br0", "up"]):
            self.execute("ip", *command)
        for address in (FIRST, SECOND):
            self._add(address)
        self.run("route", "add", "default", "via", SECOND, "metric", 10)
        return self

    def _add(self, address: str) -> None:
        machine = self.start("unshare", "-n", "sh", "-c", "echo ready; exec sleep 600")
        assert machine.stdout.readline() == "ready\n"
        self.machines[address] = machine.pid
        port = self.port(address)
        self.execute("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine.pid)
        self.execute("ip", "link", "set", port, "master", "br0", "up")
        for command in (["link", "set", "lo", "up"], ["link", "set", "eth0", "up"],
                        ["address", "add", f"{address}/24", "dev", "eth0"],
                        ["address", "add", f"{FAR}/32", "dev", "lo"]):
            self.on(address, "ip", *command)
        self.serve(address)

    def serve(self, address: str) -> None:
        """Answer each datagram with its name."""
        there = ["nsenter", "-t", self.machines[address], "-n"]
        server = self.start(*there, sys.executable, "-c", NAMES, address)
        assert server.stdout.readline() == "ready\n"

    def port(self, address: str) -> str:
        """Its end on the bridge."""
        return f"port{address.rpartition('.')[2]}"

    def on(self, address: str, *command: object) -> str:
        """Run a command on one of the machines; what it printed."""
        return self.execute("nsenter", "-t", self.machines[address], "-n", *command).stdout


@pytest.fixture
def gateways(home, tap) -> Iterator[Callable[..., Gateways]]:
    """Boots one."""
    for program in ("unshare", "nsenter"):
        require_program(program)
    made: list[Gateways] = []

    def boot(*flags: object) -> Gateways:
        made.append(Gateways(home, unique_name()))
        return made[-1].up(*flags)

    yield boot
    end_all(list(made))


def test_rfc1122_3_3_1_5_another_default_gateway_serves_while_the_first_is_silent(gateways) -> None:
    stack = gateways()
    with stack.socket() as app:
        app.connect((FAR, 7))
        app.send(b"who are you?")
        assert app.recv(64).decode() == FIRST
        stack.execute("ip", "link", "set", stack.port(FIRST), "down")
        stack.run("neighbor", "flush")  # otherwise it would take half a minute until ip asks
        for _ in range(3):
            app.send(b"who are you?")  # a connected socket would be told of an error
            assert app.recv(64).decode() == SECOND
        assert f"default via {FIRST} src 10.0.0.2 mtu 1500  (its gateway does not answer)" in stack.run(
            "route", "list").stdout
        stack.run("sabotage", "ip", "kill")
        app.send(b"who are you?")
        assert app.recv(64).decode() == SECOND
        stack.execute("ip", "link", "set", stack.port(FIRST), "up")
        stack.on(FIRST, "ping", "-c", 1, "-W", 10, "10.0.0.2")
        wait_for("the first gateway to serve again", lambda: app.send(b"who?") and app.recv(64).decode() == FIRST)


def redirecting(stack: Gateways) -> None:
    """The first gateway forwards packets for FAR through the second, and sends the sender a redirect."""
    stack.on(FIRST, "ip", "address", "del", f"{FAR}/32", "dev", "lo")
    stack.on(FIRST, "ip", "route", "add", FAR, "via", SECOND)
    stack.on(FIRST, "sh", "-c", "cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 1 > conf/all/send_redirects")


@pytest.mark.parametrize("flags", [[], ["--accept-redirects"]], ids=["ignored", "followed"])
def test_rfc1122_3_2_2_2_redirects_of_a_linux_router(gateways, flags) -> None:
    stack = gateways(*flags)
    redirecting(stack)
    line = f"{FAR}/32 via {SECOND} src 10.0.0.2 mtu 1500  (redirected, for "
    with stack.socket() as app:
        app.connect((FAR, 7))

        def told() -> int:
            """How many redirects came so far, one more datagram being sent."""
            app.send(b"who?")
            assert app.recv(64).decode() == SECOND
            counted = stack.counters("icmp")
            return counted["redirect"] + counted["redirects_to_ip"]

        wait_for("a redirect", told)
        if not flags:
            assert line not in stack.run("route", "list").stdout
            return
        wait_for("the new route", lambda: line in stack.run("route", "list").stdout)
        stack.run("restart", "ip")
        stack.execute("ip", "link", "set", stack.port(FIRST), "down")
        app.send(b"who?")
        assert app.recv(64).decode() == SECOND
        assert line in stack.run("route", "list").stdout
