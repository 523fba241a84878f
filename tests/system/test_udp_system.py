"""Datagrams between programs of the Linux kernel and applications of the stack, and what becomes of those that fail."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

import usernet
from usernet.pipe import messages
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION, pack_frame, unpack_frame

from .conftest import require_root
from .peers import KERNEL, NOBODY, PATIENCE_S, ROOT, STACK, Stack, alive, next_frame, wait_for

MTU_PAYLOAD = 1472
WINDOW = 16  # datagrams under way at a time: no queue on the way drops so few
OTHER_USER = 65534


def payloads() -> list[bytes]:
    """One of every size that fits the MTU."""
    rng = random.Random(1)
    return [rng.randbytes(size) for size in range(MTU_PAYLOAD + 1)]


def exchange(send, receive, items: list[bytes]) -> None:
    """Every item, in order, a window at a time."""
    for start in range(0, len(items), WINDOW):
        window = items[start : start + WINDOW]
        for item in window:
            send(item)
        assert [receive() for _ in window] == window


# -- every size, both ways --------------------------------------------------------------------------------------------


def test_every_size_from_the_kernel_to_an_application(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.connect((STACK, app.getsockname()[1]))
        exchange(peer.send, lambda: app.recv(2048), payloads())


def test_every_size_from_an_application_to_the_kernel(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        app.connect(peer.getsockname())
        exchange(app.send, lambda: peer.recv(2048), payloads())


def test_addresses_are_seen_alike_from_both_ends(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"question", app.getsockname())
        data, sender = app.recvfrom(100)
        assert (data, sender) == (b"question", peer.getsockname())
        assert app.sendto(b"answer", sender) == 6
        assert peer.recvfrom(100) == (b"answer", app.getsockname())


def test_rfc768_a_checksum_of_zero_was_not_computed_and_is_accepted(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        peer.sendto(b"unchecked", app.getsockname())
        assert app.recv(100) == b"unchecked"


def test_a_wrong_checksum_is_counted_and_not_delivered(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.packet() as cable, stack.kernel.udp() as peer:
        from scapy.layers.inet import IP, UDP
        from scapy.layers.l2 import Ether

        before = stack.counters("udp")["bad_checksum"]
        mac = stack.mac
        cable.send(bytes(Ether(src=stack.kernel.mac(), dst=mac) / IP(src=KERNEL, dst=STACK)
                         / UDP(sport=5, dport=app.getsockname()[1], chksum=0x1234) / b"wrong"))
        peer.sendto(b"right", app.getsockname())
        assert app.recv(100) == b"right"
        assert stack.counters("udp")["bad_checksum"] == before + 1


# -- errors -----------------------------------------------------------------------------------------------------------


def raises(number: int):
    """pytest.raises for an OSError with this errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_a_closed_port_of_the_kernel_refuses_a_connected_application_once(stack: Stack) -> None:
    with stack.kernel.udp() as peer:
        closed = peer.getsockname()
    with stack.socket() as app:
        app.connect(closed)
        app.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            app.recv(100)
        app.setblocking(False)
        with pytest.raises(BlockingIOError):
            app.recv(100)


def test_rfc1122_4_1_3_3_an_unconnected_application_is_not_told(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as other:
        with stack.kernel.udp() as peer:
            closed = peer.getsockname()
        before = stack.counters("icmp")["errors_to_transports"]
        app.sendto(b"anybody there?", closed)
        wait_for("the error", lambda: stack.counters("icmp")["errors_to_transports"] > before)
        other.sendto(b"still here", app.getsockname())
        assert app.recv(100) == b"still here"
        app.sendto(b"as am I", other.getsockname())
        assert other.recv(100) == b"as am I"


def test_a_neighbour_that_does_not_answer_is_no_route_to_host(stack: Stack) -> None:
    with stack.socket() as app:
        app.connect((NOBODY, 9))
        app.send(b"anybody there?")
        with raises(errno.EHOSTUNREACH):
            app.recv(100)


def test_a_datagram_larger_than_the_mtu_is_refused_if_it_must_not_be_fragmented(stack: Stack) -> None:
    with stack.bound() as app, raises(errno.EMSGSIZE):
        app.setsockopt(socket.IPPROTO_IP, 10, 2)  # ip(7): IP_MTU_DISCOVER, IP_PMTUDISC_DO
        app.sendto(bytes(MTU_PAYLOAD + 1), (KERNEL, 9))


def test_a_broadcast_needs_leave(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.packet() as cable:
        for address in ("10.0.0.255", "255.255.255.255"):
            with raises(errno.EACCES):
                app.sendto(b"to all", (address, 9))
            with raises(errno.EACCES):
                app.connect((address, 9))
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in ("10.0.0.255", "255.255.255.255"):
            app.sendto(b"to all at " + address.encode(), (address, 9))
            frame = next_frame(cable, lambda frame, address=address: b"to all at " + address.encode() in frame)
            assert frame[:6] == b"\xff" * 6


def test_rfc1122_4_1_3_5_the_specific_destination_is_an_address_of_the_receivers(new_stack) -> None:
    """Of a broadcast or multicast, too; either end sends to the other, and Linux's end is the oracle."""
    stack, group, second = new_stack().up(), "239.1.2.9", "10.0.0.3"
    stack.run("address", "add", f"{second}/24")
    pktinfo = struct.Struct("=i4s4s")  # ip(7): interface, specific destination, destination in the header

    def asked(receiver: socket.socket, sender: socket.socket, own: str, *destinations: str) -> list[tuple[str, str]]:
        """(specific destination, destination) of a datagram to each of these."""
        receiver.setsockopt(socket.IPPROTO_IP, usernet.IP_PKTINFO, 1)
        membership = socket.inet_aton(group) + socket.inet_aton(own)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        told = []
        for destination in destinations:
            sender.sendto(b"whom?", (destination, receiver.getsockname()[1]))
            _, [(_, _, info)], _, _ = receiver.recvmsg(100, 100)
            interface, *addresses = pktinfo.unpack(info)
            assert interface > 0
            told.append(tuple(map(socket.inet_ntoa, addresses)))
        return told

    to_all = "10.0.0.255", group
    with stack.bound(address="0.0.0.0") as app, stack.kernel.udp(address="0.0.0.0") as peer:
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(KERNEL))
        for _ in range(2):  # the second time from memory
            assert asked(app, peer, STACK, STACK, second, *to_all) == [
                (STACK, STACK), (second, second), *((STACK, each) for each in to_all)]
            app.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, socket.inet_aton(group) + bytes(4))
        assert asked(peer, app, KERNEL, KERNEL, *to_all) == [
            (KERNEL, KERNEL), *((KERNEL, each) for each in to_all)]


def test_without_a_gateway_another_network_is_unreachable(home, new_stack) -> None:
    """On a wire there is no gateway."""
    lonely = new_stack().up("--wire", f"w-{os.getpid()}")
    with lonely.socket() as app, raises(errno.ENETUNREACH):
        app.sendto(b"far away", ("192.0.2.1", 9))


def test_other_networks_are_reached_by_the_gateway(stack: Stack) -> None:
    with stack.socket() as app, stack.kernel.packet() as cable:
        app.sendto(b"far away", ("192.0.2.1", 9))
        frame = next_frame(cable, lambda frame: b"far away" in frame)
        assert frame[:6] == stack.kernel.mac()


def test_a_port_is_taken_once(stack: Stack) -> None:
    with stack.bound() as app:
        port = app.getsockname()[1]
        with raises(errno.EADDRINUSE):
            stack.bound(port)
        with raises(errno.EADDRNOTAVAIL):
            stack.bound(port, "10.0.0.9")
    stack.bound(port).close()


# -- between applications ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [STACK, "127.0.0.1"])
def test_two_applications_of_one_stack(stack: Stack, address: str) -> None:
    code = f"""
import usernet as socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(({address!r}, 0))
print(s.getsockname()[1], flush=True)
for _ in range(100):
    data, peer = s.recvfrom(2000)
    s.sendto(data[::-1], peer)
"""
    other = stack.application(code)
    port = int(other.stdout.readline())
    with stack.socket() as app:
        app.connect((address, port))
        for number in range(100):
            data = b"%d." % number * 40
            app.send(data)
            assert app.recv(2000) == data[::-1]
    assert other.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("end", ["", "sys.exit()"])
def test_an_application_that_ends_at_once_has_sent_all(stack: Stack, end: str) -> None:
    with stack.kernel.udp() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        stack.execute("ping", "-c", "1", STACK)  # neighbours know each other: only so many packets wait for that
        code = f"""
import sys, usernet
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
for number in range(100):
    s.sendto(number.to_bytes(1200, "big"), {peer.getsockname()!r})
{end}"""
        for _ in range(3):
            assert stack.application(code).wait(PATIENCE_S) == 0
            assert [int.from_bytes(peer.recv(1500), "big") for _ in range(100)] == list(range(100))


# -- receiving --------------------------------------------------------------------------------------------------------


def test_timeouts(stack: Stack) -> None:
    with stack.bound() as app:
        app.settimeout(0.05)
        with pytest.raises(TimeoutError):
            app.recv(10)
        app.setblocking(False)
        with pytest.raises(BlockingIOError):
            app.recv(10)
        app.setblocking(True)
        assert app.gettimeout() is None
        with pytest.raises(BlockingIOError):
            app.recv(10, socket.MSG_DONTWAIT)


def test_peek_and_truncation(stack: Stack) -> None:
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"0123456789", app.getsockname())
        assert app.recv(4, socket.MSG_PEEK) == b"0123"
        assert app.recvfrom(100, socket.MSG_PEEK) == (b"0123456789", peer.getsockname())
        buffer = bytearray(4)
        assert app.recv_into(buffer, 0, socket.MSG_PEEK | socket.MSG_TRUNC) == 10
        assert app.recv(4) == b"0123"
        peer.sendto(b"the next", app.getsockname())
        assert app.recv(100) == b"the next"  # what was cut is gone, not kept for later


def test_a_full_receive_buffer_drops_the_newest_and_counts(stack: Stack) -> None:
    sent = 400
    with stack.bound() as app, stack.kernel.udp() as peer, stack.bound() as marker:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
        before = stack.counters("sockets")["buffer_full"]
        for number in range(sent):
            peer.sendto(b"%6d" % number + bytes(994), app.getsockname())
            if number % WINDOW == 0:  # so that nothing is dropped on the way
                peer.sendto(b"pace", marker.getsockname())
                marker.recv(10)
        peer.sendto(b"done", marker.getsockname())
        assert marker.recv(10) == b"done"
        app.setblocking(False)
        got = []
        while True:
            try:
                got.append(int(app.recv(2000)[:6]))
            except BlockingIOError:
                break
        dropped = stack.counters("sockets")["buffer_full"] - before
        assert dropped + len(got) == sent
        assert got == list(range(len(got)))
        assert 20 <= len(got) <= 60  # 40000 octets (Linux doubles), of which a datagram costs more than its 1000
        app.settimeout(PATIENCE_S)
        peer.sendto(b"room again", app.getsockname())
        assert app.recv(100) == b"room again"


def test_one_socket_in_many_threads(stack: Stack) -> None:
    """Eight threads send and receive on one socket, and eight on their own: all datagrams arrive, none twice."""
    threads, each = 8, 100
    with stack.kernel.udp() as peer:
        def serve() -> None:
            for _ in range(2 * threads * each):
                data, sender = peer.recvfrom(100)
                peer.sendto(data, sender)

        echo = threading.Thread(target=serve, daemon=True)
        echo.start()
        with stack.bound() as shared:
            def talk(number: int, app, alone: bool) -> list[bytes]:
                got = []
                for index in range(each):
                    data = b"%d %d" % (number, index)
                    app.sendto(data, peer.getsockname())
                    got.append(app.recv(100))
                    if alone:
                        assert got[-1] == data
                return got

            def talk_alone(number: int) -> list[bytes]:
                with stack.bound() as own:
                    return talk(number, own, True)

            with ThreadPoolExecutor(2 * threads) as pool:
                on_shared = [pool.submit(talk, number, shared, False) for number in range(threads)]
                on_own = [pool.submit(talk_alone, threads + number) for number in range(threads)]
                everything = [data for future in on_shared + on_own for data in future.result()]
        assert len(everything) == len(set(everything)) == 2 * threads * each
        echo.join(PATIENCE_S)


# -- processes --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_its_parents_sockets_and_its_own(stack: Stack) -> None:
    code = """
import os
import usernet as socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.0.0.2", 0))
s.settimeout(20)
parent = s.getsockname()
child = os.fork()
if child == 0:
    s.sendto(b"by the parent's socket", parent)
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.settimeout(20)
    own.sendto(b"from the child", parent)
    os._exit(0 if own.recv(100) == b"from the parent" else 1)
assert s.recvfrom(100) == (b"by the parent's socket", parent)
data, peer = s.recvfrom(100)
s.sendto(b"from the parent", peer)
print(data.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    output, _ = stack.application(code).communicate(timeout=PATIENCE_S)
    assert output == "from the child 0\n"


def test_the_port_of_a_killed_application_is_free_within_a_second(stack: Stack) -> None:
    app = stack.application("""
import usernet as socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.0.0.2", 0))
print(s.getsockname()[1], flush=True)
s.recv(1)
""")
    port = int(app.stdout.readline())

    def is_free() -> bool:
        try:
            stack.bound(port).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    assert not is_free()
    app.send_signal(signal.SIGKILL)
    app.wait()
    wait_for("the free port", is_free, 1.0)


def test_another_user_is_refused(stack: Stack) -> None:
    """By the run directory's mode already; and, were that open, by the service and the keeper themselves."""
    require_root()
    code = f"""
import os, sys, zmq, socket, msgspec.json
from usernet.pipe import frame, messages
os.setgroups([]); os.setgid({OTHER_USER}); os.setuid({OTHER_USER})
import pathlib
run_dir = pathlib.Path({str(stack.run_dir)!r})
if sys.argv[1] == "shut":
    try:
        (run_dir / "sockets.sock").stat()
    except PermissionError:
        sys.exit(0)
    sys.exit(1)
control = socket.socket(socket.AF_UNIX)
control.settimeout(20)
control.connect(str(run_dir / "control.sock"))
try:
    control.send(b'{{"op": "status"}}\\n')
    assert control.recv(100) == b""
except (ConnectionResetError, BrokenPipeError):
    pass
context = zmq.Context()
service = context.socket(zmq.PUSH)
service.connect(f"ipc://{{run_dir / 'sockets.sock'}}")
hello = frame.pack_frame(messages.HELLO, 0, 1, 0,
    [msgspec.json.encode({{"version": 2, "inbox": messages.inbox_name(5), "done": 0}})])
for _ in range(50):
    service.send(hello)
context.destroy(linger=300)
"""
    def attempt(how: str) -> None:
        done = subprocess.run([sys.executable, "-c", code, how], env=stack.env, cwd=ROOT, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    attempt("shut")
    before = stack.counters("sockets")
    targets = (stack.run_dir / "control.sock", stack.run_dir / "sockets.sock")
    modes = {path: path.stat().st_mode for path in (stack.home, stack.run_dir.parent, stack.run_dir, *targets)}
    try:
        for path in modes:
            path.chmod(0o777)
        attempt("open")
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    wait_for("the refusal", lambda: stack.counters("sockets")["bus_refused"] > before["bus_refused"])
    after = stack.counters("sockets")
    assert after["bus_frames_in"] - after["bus_foreign"] == before["bus_frames_in"] - before["bus_foreign"]
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"unharmed", app.getsockname())
        assert app.recv(100) == b"unharmed"


def test_nonsense_from_an_application_harms_no_other_process(stack: Stack) -> None:
    """Frames of any octets, requests that are none, records that are too long, sent by a raw ZeroMQ client."""
    rng = random.Random(7)
    incarnations = stack.incarnations()
    name = messages.inbox_name(rng.randrange(1, 1 << 64))
    fields = b'{"version": 2, "inbox": "%s", "done": 0}' % name.encode()
    hello = pack_frame(messages.HELLO, 0, 1, 0, [fields])
    context = zmq.Context()
    inbox, service = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    inbox.bind(f"ipc://{stack.run_dir / 'sockets' / name}")
    service.connect(f"ipc://{stack.run_dir / 'sockets.sock'}")
    service.send(hello)
    client = unpack_frame(inbox.recv())[2]  # nonsense under another id would not be looked into

    def frame(kind: int, sequence: int, *records: bytes, sender: int = client) -> bytes:
        return pack_frame(kind, sender, 1, sequence, records)

    nonsense = [hello, frame(messages.HELLO, 0, fields), frame(messages.RESUME, 0, b'{"first": 1, "done": 0}')]
    bodies = [b"", b"{", b"null", b"[" * 5000, b'{"id": 1}', b'{"id": -1, "op": "bind"}', b'{"id": 1, "op": "bind"}',
              b'{"id": 1, "op": "nothing"}', b'{"id": 1, "op": "socket", "type": "stream"}', b"\xff" * 100,
              b'{"id": 3, "op": "bind", "handle": 1, "address": "10.0.0.2", "port": 70000}',
              b'{"id": 4, "op": "close", "handle": 99999}', b'{"id": 5, "op": "list", "after": 1e99}',
              b'{"id": 6, "op": "socket", "type": "dgram", "x": "' + b"y" * 200_000 + b'"}']
    nonsense += [frame(messages.REQUEST, number, body) for number, body in enumerate(bodies, 1)]
    nonsense += [frame(kind, len(bodies) + kind % 7, rng.randbytes(rng.randrange(64))) for kind in range(256)]
    nonsense += [frame(messages.REQUEST, number, b"{}", sender=sender) for number in (0, 1, 1 << 63)
                 for sender in (0, 1, 5, 7, 99, (1 << 64) - 1)]
    nonsense += [rng.randbytes(rng.randrange(200)) for _ in range(300)]
    nonsense += [bytes(octet ^ (rng.random() < 0.05) * rng.randrange(256) for octet in rng.choice(nonsense[:20])[:500])
                 for _ in range(300)]
    nonsense += [b"", b"\0" * 40, bytes([VERSION]), bytes(MAX_FRAME_OCTETS + 1)]  # the last: hung up
    for target in ("sockets", "udp", "icmp", "ip", "arp", "link"):
        pusher = context.socket(zmq.PUSH)
        pusher.setsockopt(zmq.SNDTIMEO, 10000)
        pusher.connect(f"ipc://{stack.run_dir / target}.sock")
        for message in nonsense:
            pusher.send(message)
    try:
        with stack.bound() as app, stack.kernel.udp() as peer:
            for number in range(50):
                peer.sendto(b"%d" % number, app.getsockname())
                assert app.recv(100) == b"%d" % number
        wait_for("the nonsense to be worked off", lambda: stack.counters("sockets")["bus_malformed"] > 0)
        assert stack.incarnations() == incarnations
    finally:
        context.destroy(linger=0)


def test_nonsense_on_the_control_socket_does_no_harm(stack: Stack) -> None:
    rng = random.Random(8)
    keeper = stack.keeper
    lines = [b"", b"[]", b"{}", b"null", b'{"op": 5}', b'{"op": []}', b'{"op": "restart"}', b'{"op": "down"',
             b'{"op": "restart", "layers": [[]]}', b'{"op": "restart", "layers": "udp"}', b'{"op": "sabotage"}',
             b'{"op": "sabotage", "layer": [], "fault": {}}', b"\xff\xfe", b"[" * 5000, rng.randbytes(300)]
    for line in lines:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(PATIENCE_S)
            caller.connect(str(stack.run_dir / "control.sock"))
            caller.sendall(line + b"\n" + b'{"op": "status"}\n')
            answers = caller.makefile("rb")
            while b'"keeper"' not in (answer := answers.readline()):
                assert b'"error"' in answer, (line, answer)
    with socket.socket(socket.AF_UNIX) as caller:  # a line without end: the connection is closed
        caller.settimeout(PATIENCE_S)
        caller.connect(str(stack.run_dir / "control.sock"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            caller.sendall(b"x" * (1 << 22))
    assert alive(keeper)
    assert stack.keeper == keeper


def test_the_sockets_of_a_stack_are_listed(stack: Stack) -> None:
    with stack.bound() as app:
        port = app.getsockname()[1]
        listed = usernet.Stack(stack.name, stack.run_dir).list_sockets()
        (mine,) = [entry for entry in listed if entry["local"] == [STACK, port]]
        assert (mine["pid"], mine["type"]) == (os.getpid(), "dgram")
