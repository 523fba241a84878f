"""Applications over a whole stack, with programs of the kernel as their peers: descriptors, errors, names, tools."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import pytest

import usernet
from usernet.pipe.messages import DATAGRAM_OVERHEAD

from .peers import KERNEL, STACK, Stack, wait_for

pytestmark = pytest.mark.tcp

TTL, TOS = 9, 0x28
BROADCAST = "10.0.0.255"
FAR, FAR_ROUTER = "10.9.9.9", "10.9.9.1"
EXTENDED_ERROR = Struct("=IBBBBIIHH4s8x")  # struct sock_extended_err, struct sockaddr_in
PATIENCE_S = 20

NAME_SERVER = f"""
import socket, dns.message, dns.rcode, dns.rrset
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{KERNEL}", 53))
print("serving", flush=True)
while True:
    data, peer = server.recvfrom(2048)
    query = dns.message.from_wire(data)
    answer = dns.message.make_response(query)
    name = query.question[0].name.to_text()
    if name == "www.example.org.":
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "example.org."))
    if name.endswith("example.org."):
        answer.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", "192.0.2.7"))
    elif name == "7.2.0.192.in-addr.arpa.":
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "PTR", "example.org."))
    else:
        answer.set_rcode(dns.rcode.NXDOMAIN)
    server.sendto(answer.to_wire(), peer)
"""


@pytest.fixture
def named(new_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack with a name server on the kernel's end."""
    pytest.importorskip("dns")
    stack = new_stack().up("--dns", KERNEL)
    server = stack.start(sys.executable, "-c", NAME_SERVER)
    assert server.stdout.readline() == "serving\n"
    return stack


# -- sockets -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, usernet
held = usernet.socket(usernet.AF_INET, getattr(usernet, sys.argv[1]))
held.bind(("10.0.0.2", 5099))
if sys.argv[1] == "SOCK_STREAM":
    held.listen()
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["SOCK_DGRAM", "SOCK_STREAM"])
def test_the_port_of_a_program_that_was_killed_is_free_at_once(stack: Stack, kind: str) -> None:
    for _ in range(5):
        holder = stack.spawn([sys.executable, "-c", HOLDER, kind], stdin=subprocess.PIPE)
        assert holder.stdout.readline() == "bound\n"
        with stack.socket(getattr(socket, kind)) as other:
            with pytest.raises(OSError, match="in use"):
                other.bind((STACK, 5099))
            holder.kill()
            holder.wait()
            other.bind((STACK, 5099))


def test_ancillary_data_crosses_the_cable(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        for endpoint in (app, peer):
            endpoint.setsockopt(socket.IPPROTO_IP, usernet.IP_RECVTTL, 1)
            endpoint.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        app.setsockopt(socket.IPPROTO_IP, usernet.IP_PKTINFO, 1)
        number = Struct("=i").pack
        steering = [(socket.IPPROTO_IP, socket.IP_TTL, number(TTL)), (socket.IPPROTO_IP, socket.IP_TOS, number(TOS))]
        told = [(socket.IPPROTO_IP, socket.IP_TTL, number(TTL)), (socket.IPPROTO_IP, socket.IP_TOS, bytes([TOS]))]
        app.sendmsg([b"out of ", b"the stack"], steering, 0, peer.getsockname())
        assert peer.recvmsg(100, 100) == (b"out of the stack", told, 0, app.getsockname())
        peer.sendmsg([b"into it"], steering, 0, app.getsockname())
        data, controls, flags, sender = app.recvmsg(100, 100)
        assert (data, controls[1:], flags, sender) == (b"into it", told, 0, peer.getsockname())
        assert controls[0][2][4:] == 2 * socket.inet_aton(STACK)


def test_a_closed_port_of_the_kernel_comes_out_of_the_error_queue(stack: Stack) -> None:
    with stack.kernel.udp() as peer:
        closed = peer.getsockname()
    with stack.socket() as app:
        app.setsockopt(socket.IPPROTO_IP, usernet.IP_RECVERR, 1)
        app.sendto(b"anybody there?", closed)
        assert select.select([app], [], [], PATIENCE_S)[0] == [app]
        data, [(_, _, error)], flags, target = app.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        number, origin, kind, code, *_, router = EXTENDED_ERROR.unpack(error)
        assert (data, flags, target) == (b"anybody there?", socket.MSG_ERRQUEUE, closed)
        assert (number, origin, kind, code, router) == (111, 2, 3, 3, socket.inet_aton(KERNEL))


def test_asyncio_talks_with_the_kernel_and_outlives_a_layer(stack: Stack) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
            self.transport.sendto(data + b"!", peer)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, sock=stack.bound())
        with stack.kernel.udp() as peer:
            peer.setblocking(False)
            for number in range(300):
                if number in (100, 200):
                    os.kill(stack.pids()[("udp", "sockets")[number // 200]], signal.SIGKILL)
                await loop.sock_sendto(peer, b"%d" % number, transport.get_extra_info("sockname"))
                answer = await asyncio.wait_for(loop.sock_recv(peer, 100), PATIENCE_S)
                assert answer == b"%d!" % number
        transport.close()

    asyncio.run(main())


def test_many_datagrams_at_a_time_cross_the_cable(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        app.connect(peer.getsockname())
        items = [b"%d" % number for number in range(50)]
        for _ in range(10):
            assert app.sendmany((item, None) for item in items) == len(items)
            assert [peer.recv(100) for _ in items] == items
            for item in items:
                peer.sendto(item, app.getsockname())
            got: list[bytes] = []
            while len(got) < len(items):
                got += [data for data, _ in app.recvmany(len(items))]
            assert got == items


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_are_asked_for_through_the_stack(named: Stack) -> None:
    program = named.application("import usernet; print(usernet.gethostbyname_ex('www.example.org'))")
    assert program.communicate(timeout=PATIENCE_S)[0] == "('example.org', ['www.example.org'], ['192.0.2.7'])\n"
    assert named.counters("sockets")["sent"] > 0
    assert named.run("host", "www.example.org").stdout.splitlines() == [
        "www.example.org is an alias for example.org.", "example.org has address 192.0.2.7"]
    pointer = "7.2.0.192.in-addr.arpa domain name pointer example.org.\n"
    assert named.run("host", "192.0.2.7", KERNEL).stdout == pointer
    asked = named.run("ping", "-c", 1, "-W", 0.1, "example.org", status=1).stdout
    assert asked.startswith(f"PING example.org (192.0.2.7) from {STACK}: ")
    unknown = named.run("host", "no-such-name.example", status=1)
    assert unknown.stderr == "launcher.py: host: no-such-name.example: Name or service not known\n"


def test_an_unmodified_program_runs_over_the_stack(named: Stack) -> None:
    """One that asks for a name and talks with the kernel, neither of which it could from outside of the sandbox."""
    code = f"import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('{KERNEL}', int(PORT)))\n" \
        "s.send(socket.gethostbyname('example.org').encode()); print(s.getsockname()[0])"
    program = named.home / "program.py"
    with named.kernel.udp() as peer:
        program.write_text(code.replace("PORT", str(peer.getsockname()[1])))
        done = subprocess.run([sys.executable, "-m", "usernet", "--name", named.name, str(program)], env=named.env,
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.stdout, done.stderr) == (f"{STACK}\n", "")
        assert peer.recv(100) == b"192.0.2.7"


SERVERS = {
    "socketserver": """
import socketserver
class Shouting(socketserver.BaseRequestHandler):
    def handle(self):
        data, endpoint = self.request
        endpoint.sendto(data.upper(), self.client_address)
with socketserver.ThreadingUDPServer(("10.0.0.2", 0), Shouting) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
""",
    "asyncio": """
import asyncio
class Shouting(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
        print(transport.get_extra_info("sockname")[1], flush=True)
    def datagram_received(self, data, peer):
        self.transport.sendto(data.upper(), peer)
async def main():
    await asyncio.get_running_loop().create_datagram_endpoint(Shouting, local_addr=("10.0.0.2", 0))
    await asyncio.Event().wait()
asyncio.run(main())
""",
}


@pytest.mark.parametrize("server", SERVERS)
def test_an_unmodified_server_answers_the_kernel_and_outlives_layers(stack: Stack, server: str) -> None:
    program = stack.home / f"{server}_program.py"
    program.write_text(SERVERS[server])
    child = stack.spawn([sys.executable, "-m", "usernet", "--name", stack.name, str(program)])
    port = int(child.stdout.readline())
    with stack.kernel.udp() as peer:
        peer.settimeout(1)

        def answered(text: str) -> bool:
            """Whether what comes next, perhaps to what was said before, is the answer to this."""
            try:
                peer.sendto(text.encode(), (STACK, port))
                return peer.recv(100) == text.upper().encode()
            except TimeoutError:  # a kill may cost a datagram
                return False

        wait_for("an answer", lambda: answered("hello"))
        for layer in ("udp", "sockets"):
            stack.run("sabotage", layer, "kill")
            text = f"after the end of {layer}"
            wait_for(f"an answer {text}", lambda text=text: answered(text))
    child.kill()
    child.wait()
    wait_for("the end of its socket", lambda: not json.loads(stack.run("ss", "--json").stdout))


@pytest.mark.parametrize("servers", ["10.0.0", "10.0.0.1,nonsense", "fe80::1"])
def test_name_servers_are_addresses(stack: Stack, servers: str) -> None:
    refused = stack.run("up", "--name", "never", "--dns", servers, status=2)
    assert f"--dns {servers}:" in refused.stderr
    assert refused.stderr.count("\n") == 1


# -- tools -------------------------------------------------------------------------------------------------------------


def test_ss_shows_the_owner_of_each_socket(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        app.connect(peer.getsockname())
        (mine,) = [each for each in json.loads(stack.run("ss", "--json").stdout) if each["pid"] == os.getpid()]
        assert (mine["local"], mine["peer"]) == (list(app.getsockname()), list(peer.getsockname()))
        assert (mine["type"], mine["queued"], mine["drops"]) == ("dgram", 0, 0)
        assert mine["process"]
        (line,) = [line for line in stack.run("ss", "-uanp").stdout.splitlines() if f"[{os.getpid()}]" in line]
        assert mine not in json.loads(stack.run("ss", "--json", "-l").stdout)
        assert json.loads(stack.run("ss", "--json", "-w").stdout) == []
        ends = ["{}:{}".format(*app.getsockname()), "{}:{}".format(*peer.getsockname())]
        assert line.split()[:6] == ["udp", "ESTAB", "0", "0", *ends]
    usernet.Stack(stack.name, stack.run_dir).close()
    assert json.loads(stack.run("ss", "--json").stdout) == []


def test_ss_shows_what_is_queued_as_it_is_now(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        app.fileno()  # a thread reads, and so answers while we look on
        for data in (b"read", b"unread"):
            peer.sendto(data, app.getsockname())
        assert app.recv(100) == b"read"

        def queued() -> int:  # ss waits a moment for the answers of applications, and shows the old where it was late
            (mine,) = [each for each in json.loads(stack.run("ss", "--json").stdout) if each["pid"] == os.getpid()]
            return mine["queued"]

        wait_for("what is left", lambda: queued() == DATAGRAM_OVERHEAD + len(b"unread"))


def test_ss_lists_tcp(stack: Stack) -> None:
    with stack.socket(socket.SOCK_STREAM) as listener:
        listener.bind((STACK, 0))
        listener.listen(7)
        with stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM) as kernel:
            kernel.connect(listener.getsockname())
            ours, _ = listener.accept()
            kernel.send(b"unread")
            with ours:
                wait_for("what was sent", lambda: len(ours.recv(100, socket.MSG_PEEK)) == 6)
                listed = json.loads(stack.run("ss", "-t", "-i", "--json").stdout)
                waiting, established = sorted(listed, key=lambda each: each["state"], reverse=True)
                assert (waiting["state"], waiting["recv_q"], waiting["send_q"]) == ("LISTEN", 0, 7)
                assert (established["state"], established["pid"]) == ("ESTAB", os.getpid())
                assert established["info"]["bytes_received"] == 6
                assert established["info"]["rtt"] > 0
                head, _, line, details = stack.run("ss", "-ti").stdout.splitlines()
                assert head.split()[:4] == ["type", "state", "recv-q", "send-q"]
                assert f"[{os.getpid()}]" in line
                assert "cubic" in details
                assert "cwnd:10" in details
                assert json.loads(stack.run("ss", "-u", "--json").stdout) == []
                assert ours.recv(100) == b"unread"  # else its end resets the connection
            assert kernel.recv(100) == b""  # so that ours is the end that closed first
    wait_for("TIME-WAIT", lambda: "TIME-WAIT" in stack.run("ss", "-t").stdout)
    (left,) = json.loads(stack.run("ss", "-t", "--json").stdout)
    assert left["timer"]["name"] == "timewait"
    assert 0 < left["timer"]["due_ms"] <= 60_000
    assert left["pid"] == 0


def test_nc_talks_with_the_kernel(stack: Stack) -> None:
    with stack.kernel.udp() as peer:
        nc = stack.popen("nc", "-u", KERNEL, peer.getsockname()[1], stdin=subprocess.PIPE)
        nc.stdin.write("hello\n")
        nc.stdin.flush()
        data, sender = peer.recvfrom(100)
        assert (data, sender[0]) == (b"hello\n", STACK)
        peer.sendto(b"world\n", sender)
        assert nc.stdout.readline() == "world\n"
        nc.send_signal(signal.SIGINT)
        assert nc.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("where", [("7777",), ("-p", "7777"), (STACK, "7777"), ("-s", STACK, "7777")], ids=" ".join)
def test_nc_listens(stack: Stack, where: tuple) -> None:
    nc = stack.popen("nc", "-u", "-w", "5", "-l", *where, stdin=subprocess.PIPE)
    wait_for("the listener", lambda: ":7777" in stack.run("ss").stdout)
    with stack.kernel.udp() as peer:
        peer.sendto(b"hello\n", (STACK, 7777))
        assert nc.stdout.readline() == "hello\n"
        nc.stdin.write("world\n")
        nc.stdin.flush()
        assert peer.recvfrom(100) == (b"world\n", (STACK, 7777))
        nc.stdin.close()
        assert nc.wait(PATIENCE_S) == 0  # after five seconds of silence


@pytest.mark.parametrize("method", [(), ("-I",)], ids=["udp", "icmp"])
def test_traceroute_finds_the_way(stack: Stack, method: tuple) -> None:
    stack.execute("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward && ip tuntap add dev tap9 mode tap && "
                  f"ip addr add {FAR_ROUTER}/24 dev tap9 && ip link set tap9 up && "
                  "echo 20 > /proc/sys/net/ipv4/neigh/tap9/mcast_solicit")  # so that it does not soon say: nobody
    try:
        near = stack.run("traceroute", "-n", *method, "-w", "10", KERNEL).stdout.splitlines()
        assert near[0] == f"traceroute to {KERNEL} from {STACK}, 30 hops max"
        assert len(near) == 2
        assert near[1].split()[:2] == ["1", KERNEL]
        far = stack.run("traceroute", *method, "-q", "1", "-m", "2", "-w", "5", FAR, status=1).stdout.splitlines()
        assert far[1].split()[:2] == ["1", KERNEL]
        assert far[2].split() == ["2", "*"]
    finally:
        stack.execute("ip", "link", "delete", "tap9")


def test_tools_say_what_is_wrong_with_their_use(stack: Stack) -> None:
    for arguments, text in [
        (("nc", KERNEL), "usage: nc [-u] ADDRESS PORT"),
        (("nc", "-u", KERNEL, "65536"), "port 65536: must be 0 to 65535"), (("nc", "-u", KERNEL,
            "x"), "x is not a port"),
        (("ss", "--name", "nobody"), "up --detach --name nobody"),
        (("host", "-t", "XX", "a.example"), "host: -t XX is not a type"),
        (("traceroute", "-p", "65500", KERNEL), "a port for each of 90 probes"),
    ]:
        refused = stack.run(*arguments, status=2)
        assert text in refused.stderr
        assert (refused.stdout, refused.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(("arguments", "text"), [
    (("traceroute", "-m", "0"), "'0': must be a whole number, 1 to 255"),
    (("ping", "-t", "0"), "'0': must be a whole number, 1 to 255"),
    (("ping", "-c", "-1"), "'-1': must be a whole number, 0 or more"),
    (("ping", "-i", "inf"), "'inf': must be a number of seconds, 0 or more"),
    (("ping", "-i", "nan"), "'nan': must be a number of seconds, 0 or more"),
    (("ping", "-W", "nan"), "'nan': must be a number of seconds, above 0"),
    (("ping", "-w", "0"), "'0': must be a number of seconds, above 0"),
    (("nc", "-w", "0"), "'0': must be a number of seconds, above 0"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_numbers_that_cannot_be_are_refused_with_what_is_allowed(stack: Stack, arguments, text) -> None:
    refused = stack.run(*arguments, KERNEL, status=2)
    assert refused.stderr.rstrip().endswith(text)
    assert "Traceback" not in refused.stderr


def test_nc_over_tcp_listens_and_connects_and_ends_with_the_other_end(stack: Stack) -> None:
    listening = stack.popen("nc", "-l", "-v", "-N", "7011", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    assert "listening on" in listening.stderr.readline()
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM) as peer:
        peer.settimeout(20)
        peer.connect((STACK, 7011))
        peer.sendall(b"from the kernel\n")
        listening.stdin.write("from the stack\n")
        listening.stdin.close()
        with peer.makefile() as lines:
            assert lines.read() == "from the stack\n"  # and the end of it: half-closed
        peer.shutdown(socket.SHUT_WR)
        assert listening.stdout.read() == "from the kernel\n"
        assert listening.wait(PATIENCE_S) == 0
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((KERNEL, 7012))
        server.listen()
        client = stack.popen("nc", KERNEL, "7012", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        connection, _ = server.accept()
        with connection:
            client.stdin.write("hi\n")
            client.stdin.flush()
            assert connection.recv(100) == b"hi\n"
            connection.sendall(b"bye\n")
        assert client.stdout.read() == "bye\n"
        assert client.wait(PATIENCE_S) == 0


def test_tools_name_the_host_that_they_could_not_reach(stack: Stack) -> None:
    for arguments, text in [
        (("ping", "no.example"), "ping: no.example: Name or service not known"),
        (("traceroute", "no.example"), "traceroute: no.example: Name or service not known"),
        (("nc", "-u", "no.example", "7"), "nc: no.example: Name or service not known"),
        (("host", "no.example"), "host: no.example: Name or service not known"),
        (("nc", "-u", "-s", KERNEL, KERNEL, "7"), f"nc: {KERNEL} port 0: Cannot assign requested address"),
        (("nc", "-u", BROADCAST, "7"), f"nc: {BROADCAST} port 7: Permission denied: a broadcast address needs -b"),
        (("ping", BROADCAST), f"ping: {BROADCAST}: Permission denied: a broadcast address needs -b"),
        (("nc", "-u", "-l", KERNEL, "7"), f"nc: {KERNEL} port 7: Cannot assign requested address"),
    ]:
        failed = stack.run(*arguments, status=1)
        assert failed.stderr.startswith(f"launcher.py: {text}")
        assert failed.stderr.count("\n") == 1


def test_nc_broadcasts_where_it_is_told_to(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("to all\n")
    with stack.kernel.udp(address="") as peer, open(tmp_path / "said") as said:
        stack.run("nc", "-u", "-b", "-w", 0.1, BROADCAST, peer.getsockname()[1], stdin=said)
        assert peer.recvfrom(100)[0] == b"to all\n"


def test_nc_reports_a_closed_port(stack: Stack) -> None:
    with stack.kernel.udp() as peer:
        port = peer.getsockname()[1]
    failed = stack.run("nc", "-u", "-w", 5, KERNEL, port, input="hello\n", status=1)
    assert failed.stderr == f"launcher.py: nc: {KERNEL} port {port}: Connection refused\n"


@pytest.mark.parametrize(("name", "said"), [
    ("localhost", "localhost has address 127.0.0.1"),
    ("printer.localhost", "printer.localhost has address 127.0.0.1"),
    ("127.0.0.1", "1.0.0.127.in-addr.arpa domain name pointer localhost"),
])
def test_rfc6761_6_3_host_asks_no_server_for_localhost(stack: Stack, name: str, said: str) -> None:
    assert stack.run("host", name).stdout.splitlines() == [said]
