"""The application's library against a real service: real pipes, real cores, real processes.

Where the standard module can do the same thing on the loopback interface, it is the oracle.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import resource
import select
import signal
import socket as std
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

import usernet
from bus.durable.layout import CLIENTS_MAX
from usernet import udp
from usernet.client.connection import Connection
from usernet.ping import ping
from usernet.pipe.contract import WAITING_MAX
from usernet.pipe.frame import pack_frame
from usernet.pipe.messages import (
    CREDIT,
    CREDIT_RECORD,
    CREDIT_TOTAL,
    DATAGRAM,
    DATAGRAM_OVERHEAD,
    datagram_header,
)
from usernet.sockets.options import _asked_hz, jiffies_per_second

PATIENCE_S = 20


@pytest.fixture(scope="module")
def shared():
    service = Service()
    yield service
    service.down()


@pytest.fixture
def service(shared, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(shared.run_dir))
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture
def pair(service):
    """Two sockets, the first bound; both with a timeout, so that a fault fails instead of hanging."""
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as first, \
            usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as second:
        first.bind((ADDRESS, 0))
        for endpoint in (first, second):
            endpoint.settimeout(20)
        yield first, second


# -- as the standard module ------------------------------------------------------------------------------------------


def bound(module, address):
    endpoint = module.socket(module.AF_INET, module.SOCK_DGRAM)
    endpoint.bind((address, 0))
    return endpoint


def timed_out(endpoint):
    endpoint.settimeout(0.01)
    endpoint.recvfrom(10)


def non_blocking(endpoint):
    endpoint.setblocking(False)
    endpoint.recv(10)


def peeked(endpoint):
    endpoint.settimeout(20)
    endpoint.sendto(b"datagram", endpoint.getsockname())
    return [endpoint.recv(4, std.MSG_PEEK), endpoint.recvfrom(100)[0]]


def into(endpoint):
    endpoint.settimeout(20)
    results = []
    for call, arguments in [("recv_into", (4,)), ("recvfrom_into", (0, std.MSG_TRUNC)), ("recv_into", (0,))]:
        endpoint.sendto(bytearray(b"datagram"), 0, endpoint.getsockname())
        buffer = bytearray(5)
        result = getattr(endpoint, call)(buffer, *arguments)
        results.append((result[0] if isinstance(result, tuple) else result, bytes(buffer)))
    return results


def connected(endpoint):
    endpoint.connect(endpoint.getsockname())
    endpoint.settimeout(20)
    endpoint.sendall(b"")
    return [endpoint.recv(10), endpoint.getpeername() == endpoint.getsockname(), endpoint.connect_ex(("127.0.0.1", 70))]


def refused(endpoint):
    """A closed port's error comes once, by the next call."""
    with_port = endpoint.getsockname()
    endpoint.connect((with_port[0], 1))
    endpoint.settimeout(20)
    endpoint.send(b"x")
    endpoint.recv(10)


def refused_by_option(endpoint):
    endpoint.connect((endpoint.getsockname()[0], 1))
    endpoint.send(b"x")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        number = endpoint.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
        if number:
            return number, endpoint.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
    return None


def timeouts(endpoint):
    results = [endpoint.gettimeout(), endpoint.getblocking()]
    endpoint.settimeout(0)
    results += [endpoint.timeout, endpoint.getblocking()]
    endpoint.setblocking(True)
    return [*results, endpoint.gettimeout()]


def closed(endpoint, call, *arguments):
    endpoint.close()
    return getattr(endpoint, call)(*arguments)


SAME = [
    timed_out, non_blocking, peeked, into, connected, refused, refused_by_option, timeouts,
    lambda s: s.bind((s.getsockname()[0], 0)),
    lambda s: s.bind("10.0.0.2"),
    lambda s: s.bind(("10.0.0.2",)),
    lambda s: s.bind(("10.0.0.2", "http")),
    lambda s: s.bind(("10.0.0.2", 65536)),
    lambda s: s.bind((5, 5)),
    lambda s: s.connect(("10.0.0.2", -1)),
    lambda s: s.connect(None),
    lambda s: s.send(b"to nobody"),
    lambda s: s.send("text"),
    lambda s: s.sendto("text", s.getsockname()),
    lambda s: s.sendto(b"x"),
    lambda s: s.sendto(b"x", 0, s.getsockname(), 1),
    lambda s: s.sendto(b"x", ["10.0.0.2", 5]),
    lambda s: s.sendto(b"x", ("10.0.0.2", 70000)),
    lambda s: s.sendto(b"x", (s.getsockname()[0], 0)),
    lambda s: s.sendto(bytes(65508), s.getsockname()),
    lambda s: s.sendto(b"x", ("255.255.255.255", 9)),
    lambda s: s.sendto(b"x", ("<broadcast>", 9)),
    lambda s: s.sendto(b"x", std.MSG_OOB, s.getsockname()),
    lambda s: s.recv(-1),
    lambda s: s.recvfrom(-1),
    lambda s: s.recv_into(bytearray(3), 4),
    lambda s: s.recv_into(bytearray(3), -1),
    lambda s: s.recv(10, std.MSG_DONTWAIT),
    lambda s: s.recv(10, std.MSG_ERRQUEUE),
    lambda s: s.getpeername(),
    lambda s: s.listen(),
    lambda s: s.shutdown(std.SHUT_RD),
    lambda s: s.settimeout(-1),
    *[lambda s, value=value: (s.settimeout(value), s.gettimeout())
      for value in (float("nan"), float("inf"), -float("inf"), 1e10, 9e9, "1", b"1", True, 2, None, object)],
    lambda s: closed(s, "settimeout", 1),
    lambda s: type(s)(std.AF_INET, 99),
    lambda s: type(s)(std.AF_INET, 11),
    lambda s: s.setsockopt(std.SOL_SOCKET, 9999, 1),
    lambda s: s.setsockopt(std.IPPROTO_IP, std.IP_TTL, 1 << 31),
    lambda s: s.setsockopt(std.IPPROTO_IP, std.IP_TTL, 300),
    lambda s: (s.setsockopt(std.IPPROTO_IP, std.IP_TTL, 9), s.getsockopt(std.IPPROTO_IP, std.IP_TTL)),
    lambda s: s.getsockopt(std.SOL_SOCKET, std.SO_TYPE, 4),
    lambda s: s.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF),
    lambda s: s.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF, -1),
    lambda s: (s.family, s.type, s.proto),
    lambda s: closed(s, "send", b"x"),
    lambda s: closed(s, "sendto", b"x", ("10.0.0.2", 5)),
    lambda s: closed(s, "recv", 10),
    lambda s: closed(s, "getsockname"),
    lambda s: closed(s, "bind", ("10.0.0.2", 5)),
    lambda s: closed(s, "close"),
    lambda s: closed(s, "fileno"),
    lambda s: closed(s, "setsockopt", std.SOL_SOCKET, std.SO_REUSEADDR, 1),
]


def outcome(what, endpoint):
    try:
        return what(endpoint)
    except OverflowError:
        return OverflowError  # its words differ from one release of Python to the next
    except Exception as error:
        return type(error), error.args
    finally:
        endpoint.close()


@pytest.mark.parametrize("what", SAME, ids=range(len(SAME)))
def test_same_as_the_standard_module(service, what):
    assert outcome(what, bound(usernet, ADDRESS)) == outcome(what, bound(std, "127.0.0.1"))


@pytest.mark.parametrize(
    "arguments",
    [
        (std.AF_INET, std.SOCK_DGRAM, 99), (99, std.SOCK_DGRAM), (std.AF_INET, std.SOCK_SEQPACKET),
        (std.AF_INET, std.SOCK_DGRAM, 6),
    ],
)
def test_unsupported_sockets_are_refused(service, arguments):
    with pytest.raises(OSError, match="not supported") as failure:
        usernet.socket(*arguments)
    with pytest.raises(OSError, match="not supported") as kernel:
        std.socket(*arguments)
    assert failure.value.errno == kernel.value.errno


def test_names_of_the_standard_module():
    assert (usernet.AF_INET, usernet.SO_BROADCAST, usernet.timeout) == (std.AF_INET, std.SO_BROADCAST, TimeoutError)
    assert usernet.inet_aton("10.0.0.2") == b"\n\0\0\2"
    assert usernet.SocketType is usernet.socket
    assert {"socket", "AF_INET", "udp"} <= set(dir(usernet))
    assert usernet.socketpair is std.socketpair
    with pytest.raises(AttributeError):
        usernet.no_such_thing  # noqa: B018


@pytest.mark.parametrize("name", ["10.0.0.2", "10.2", "0x7f.1", "", "<broadcast>", "localhost"])
def test_numeric_names_resolve_as_in_the_standard_module(name):
    assert usernet.gethostbyname(name) == std.gethostbyname(name)
    assert usernet.getaddrinfo("10.0.0.2", 53)[0][4] == ("10.0.0.2", 53)


# -- datagrams -------------------------------------------------------------------------------------------------------


def test_there_and_back(pair):
    first, second = pair
    assert second.sendto(memoryview(b"hello"), first.getsockname()) == 5
    data, peer = first.recvfrom(2048)
    assert (data, peer[1]) == (b"hello", second.getsockname()[1])
    first.sendto(b"back", 0, peer)
    assert second.recv(2) == b"ba"


def test_an_unbound_socket_waits(service):
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(0.02)
        with pytest.raises(TimeoutError, match="timed out"):
            endpoint.recvfrom(10)
        assert endpoint.getsockname() == ("0.0.0.0", 0)


def test_disconnect_both_ways(pair):
    first, second = pair
    for undo in (second.disconnect, lambda: second.connect(("0.0.0.0", 0))):
        second.connect(first.getsockname())
        assert second.getsockname()[0] == ADDRESS
        undo()
        with pytest.raises(OSError, match="not connected"):
            second.getpeername()
        assert second.getsockname()[0] == "0.0.0.0"


def test_more_than_a_packet_can_hold_is_too_long(pair):
    first, second = pair
    second.sendto(bytes(65507), first.getsockname())
    with pytest.raises(OSError, match="too long") as failure:
        second.sendto(bytes(65508), first.getsockname())
    assert failure.value.errno == errno.EMSGSIZE
    assert len(first.recv(1 << 16)) == 65507


def test_the_unspecified_address_is_this_host_by_the_bound_address_or_loopback(pair):
    first, _ = pair
    first.sendto(b"hello", ("0.0.0.0", first.getsockname()[1]))
    assert first.recvfrom(10) == (b"hello", first.getsockname())
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as anywhere:
        anywhere.bind(("", 0))
        anywhere.settimeout(20)
        anywhere.sendto(b"hello", ("0.0.0.0", anywhere.getsockname()[1]))
        assert anywhere.recvfrom(10) == (b"hello", ("127.0.0.1", anywhere.getsockname()[1]))


def test_a_slow_reader_loses_what_does_not_fit_and_nothing_after(pair):
    first, second = pair
    first.setsockopt(usernet.SOL_SOCKET, usernet.SO_RCVBUF, 4096)
    capacity = first.getsockopt(usernet.SOL_SOCKET, usernet.SO_RCVBUF) // (DATAGRAM_OVERHEAD + 100)
    for number in range(3 * capacity):
        second.sendto(number.to_bytes(4, "big") + bytes(96), first.getsockname())
    got = [int.from_bytes(first.recv(100)[:4], "big") for _ in range(capacity)]
    assert got == list(range(capacity))
    first.settimeout(0.05)
    with pytest.raises(TimeoutError):
        first.recv(100)
    first.settimeout(20)
    for number in range(3 * capacity):  # the credit comes back for as long as one likes
        second.sendto(b"%d" % number, first.getsockname())
        assert first.recv(100) == b"%d" % number


def test_the_books_are_set_right_when_credit_was_lost(pair, monkeypatch):
    first, second = pair
    connection = first._connection
    monkeypatch.setattr(connection, "credit", lambda box: setattr(box, "consumed", 0))  # as if lost on the way
    received = 0
    first.settimeout(0.05)
    for _ in range(2000):
        second.sendto(bytes(1000), first.getsockname())
        try:
            first.recv(2000)
            received += 1
        except TimeoutError:
            pass
    with suppress(TimeoutError):  # what was late
        while True:
            first.recv(2000)
            received += 1
    assert received > 1900


def test_ping(service):
    results = list(ping(None, ADDRESS, count=3, interval_s=0, size=10, timeout_s=PATIENCE_S))
    assert [(result.sequence, result.octets, result.source, result.error) for result in results] == [
        (number, 18, ADDRESS, "") for number in (1, 2, 3)
    ]
    assert all(0 < result.round_trip_s < PATIENCE_S for result in results)


def test_ping_into_the_void(service):
    (result,) = ping(None, "10.0.0.77", count=1)
    assert result.error == os.strerror(errno.EHOSTUNREACH)
    with pytest.raises(OSError, match="unreachable"):
        list(ping(None, "192.0.2.1", count=1))


def test_ping_sockets_send_echo_requests_only(service):
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM, usernet.IPPROTO_ICMP) as endpoint:
        for message in (b"", bytes(8)):
            with pytest.raises(OSError, match="Invalid argument"):
                endpoint.sendto(message, (ADDRESS, 0))


def test_udp_in_the_shape_of_rust(service):
    with udp.bind(f"{ADDRESS}:5055") as one, udp.bind(f"{ADDRESS}:4055") as other:
        assert (one.local_addr(), other.send_to(b"hello", one.local_addr())) == (f"{ADDRESS}:5055", 5)
        assert one.recv_from() == (b"hello", f"{ADDRESS}:4055")
        one.connect(other.local_addr())
        assert (one.peer_addr(), one.send(b"back"), other.recv(2)) == (other.local_addr(), 4, b"ba")
        one.set_read_timeout(0.01)
        with pytest.raises(TimeoutError):
            one.recv()
        with pytest.raises(ValueError, match="0 duration"):
            one.set_read_timeout(0)
        with pytest.raises(OSError, match="in use"):
            udp.bind(f"{ADDRESS}:5055")
    for text in ("10.0.0.2", "10.0.0.2:", ":5", "10.0.0.2:65536", "10.0.0.2:²"):
        with pytest.raises(ValueError, match="invalid socket address"):
            udp.bind(text)


def test_sockets_cannot_be_inheritable(pair):
    first, _ = pair
    with pytest.raises(io.UnsupportedOperation):
        first.set_inheritable(True)
    assert repr(first).startswith("<usernet.socket handle=")


def test_a_dropped_socket_is_closed_with_a_warning(service):
    endpoint = bound(usernet, ADDRESS)
    port = endpoint.getsockname()[1]
    with pytest.warns(ResourceWarning, match="unclosed <usernet.socket"):  # noqa: PT031
        del endpoint
        gc.collect()
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as other:
        other.bind((ADDRESS, port))


def test_list_sockets(pair):
    first, _ = pair
    (mine,) = [entry for entry in usernet.Stack().list_sockets() if entry["local"] == list(first.getsockname())]
    assert mine["pid"] == os.getpid()
    assert (usernet.Stack().address, usernet.Stack().mtu) == (ADDRESS, 1500)


# -- threads ---------------------------------------------------------------------------------------------------------


def test_each_thread_gets_its_own(service):
    """Every thread echoes to itself; the leading thread hands the others their datagrams."""
    failures = []

    def echo():
        try:
            with bound(usernet, ADDRESS) as endpoint:
                endpoint.settimeout(10)
                name = endpoint.getsockname()
                for number in range(200):
                    endpoint.sendto(b"%d %d" % (name[1], number), name)
                    assert endpoint.recv(100) == b"%d %d" % (name[1], number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=echo) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def test_threads_share_one_socket(pair):
    first, second = pair
    got, lock = [], threading.Lock()

    def take():
        for _ in range(50):
            data = first.recv(100)
            with lock:
                got.append(int(data))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        second.sendto(b"%d" % number, first.getsockname())
    for thread in threads:
        thread.join(30)
    assert sorted(got) == list(range(200))


def test_a_leader_that_times_out_leaves_the_reading_to_another(pair):
    first, second = pair
    got = []
    follower = threading.Thread(target=lambda: got.append(first.recv(10)))

    second.settimeout(0.3)
    leader = threading.Thread(target=outcome, args=(lambda endpoint: endpoint.recv(10), second))
    leader.start()
    follower.start()
    leader.join(10)
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as third:
        third.sendto(b"hello", first.getsockname())
    follower.join(10)
    assert got == [b"hello"]


def test_control_c_ends_a_blocked_call(service):
    code = (
        "import usernet, sys\n"
        "s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)\n"
        "print('ready', flush=True)\n"
        "try: s.recv(10)\n"
        "except KeyboardInterrupt: print('interrupted', s.getsockname())\n"
    )
    process = run_python(code)
    assert process.stdout.readline() == "ready\n"
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "S":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "interrupted ('0.0.0.0', 0)\n"


# -- the service restarts ----------------------------------------------------------------------------------------------


def test_nothing_is_lost_when_the_service_is_killed(service, pair):
    first, second = pair
    sent, got = [], []
    for round_ in range(3):
        for number in range(30):
            sent.append(b"%d %d" % (round_, number))
            second.sendto(sent[-1], first.getsockname())
            if number == 10:
                service.kill()
                starting = threading.Thread(target=service.start)
                starting.start()
        first.settimeout(20)
        while not got or got[-1] != sent[-1]:
            got.append(first.recv(100))
        starting.join()
    assert list(dict.fromkeys(got)) == sent  # at least once, in order


def test_datagrams_sent_without_waiting_during_a_restart_leave_after_it(service, pair):
    first, second = pair
    address = first.getsockname()
    second.connect(address)
    second.setblocking(False)
    service.kill()
    kept = 0
    with suppress(BlockingIOError):
        while kept < 10 * WAITING_MAX:
            second.send(b"%d" % kept)
            kept += 1
    service.start()
    # libzmq learns of what was read in halves of its limit: half may count as waiting that does not.
    least = WAITING_MAX // 2 if os.environ.get("USERNET_PIPES") == "zmq" else WAITING_MAX
    assert least <= kept < 10 * WAITING_MAX
    first.settimeout(20)
    assert [first.recv(100) for _ in range(kept)] == [b"%d" % number for number in range(kept)]


def test_unread_datagrams_outlive_the_service(service, pair, monkeypatch):
    """The dead service's connection and its successor's are read in turns; what the dead one sent still counts."""
    first, second = pair
    monkeypatch.setattr("usernet.client.connection.LOOK_INTERVAL_S", 1e9)
    second.connect(first.getsockname())
    for number in range(300):
        second.send(b"%d" % number)
    observer = Connection(service.run_dir, "test")
    deadline = time.monotonic() + PATIENCE_S
    while sum(entry["queued"] > 300 * DATAGRAM_OVERHEAD for entry in observer.request("list")["sockets"]) != 1:
        assert time.monotonic() < deadline
    observer.close()
    service.restart()
    got = [first.recv(100) for _ in range(300)]
    assert got == [b"%d" % number for number in range(300)]
    assert first._connection._incoming.lost == 0


def test_sockets_names_and_options_outlive_the_service(service, pair):
    first, second = pair
    second.connect(first.getsockname())
    first.setsockopt(usernet.IPPROTO_IP, usernet.IP_TTL, 9)
    service.restart()
    assert first.getsockopt(usernet.IPPROTO_IP, usernet.IP_TTL) == 9
    second.send(b"hello")
    assert first.recvfrom(10) == (b"hello", second.getsockname())


def test_the_owner_of_a_socket_is_known_after_a_restart(service):
    stack = usernet.Stack()
    service.restart()
    with stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        (mine,) = [each for each in stack.list_sockets() if each["handle"] == endpoint._box.handle]
        assert mine["pid"] == os.getpid()


def test_a_request_to_a_dead_service_is_answered_when_it_is_back(service):
    stack = usernet.Stack()
    service.kill()
    starting = threading.Timer(0.1, service.start)
    starting.start()
    with stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.bind((ADDRESS, 0))
        assert endpoint.getsockname()[1]
    starting.join()


def test_a_blocked_reader_does_not_notice_a_restart(service, pair):
    first, second = pair
    got = []
    reader = threading.Thread(target=lambda: got.append(first.recv(10)))
    reader.start()
    service.restart()
    second.sendto(b"hello", first.getsockname())
    reader.join(10)
    assert got == [b"hello"]


def test_queued_datagrams_are_counted_again_after_a_restart(service, pair):
    first, second = pair
    for _ in range(5):
        second.sendto(bytes(100), first.getsockname())
    first.recv(100)
    usernet.Stack().list_sockets()  # the answer comes behind the datagrams
    service.restart()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        (mine,) = [entry for entry in usernet.Stack().list_sockets() if entry["local"] == list(first.getsockname())]
        if mine["queued"] == 4 * (100 + DATAGRAM_OVERHEAD):
            break
        assert time.monotonic() < deadline, mine


def test_a_full_pipe_blocks_as_the_timeout_says(service, pair):
    first, second = pair
    second.sendto(b"x", first.getsockname())
    service.process.send_signal(signal.SIGSTOP)
    try:
        second.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            for _ in range(100_000):
                second.sendto(bytes(1400), first.getsockname())
        second.settimeout(0.05)
        with pytest.raises(TimeoutError, match="timed out"):  # noqa: PT012
            for _ in range(1000):
                second.sendto(bytes(1400), first.getsockname())
    finally:
        service.process.send_signal(signal.SIGCONT)
    second.settimeout(20)
    second.sendto(b"y", first.getsockname())


def test_the_thread_that_serves_descriptors_outlasts_a_full_pipe(service, pair, monkeypatch):
    """It owes the service an answer, gets it through at the end, and serves on."""
    monkeypatch.setattr(usernet.client.connection, "CONNECT_TIMEOUT_S", 0.05)
    first, second = pair
    second.sendto(b"first", first.getsockname())  # afterwards the destination is known
    assert first.recv(10) == b"first"
    first.fileno()
    connection = first._connection
    (thread,) = [each for each in threading.enumerate() if each.name == f"usernet {connection.name}"]
    waits = threading.Event()
    original = connection.readers._read

    def owing(timeout):  # as if a record had come, of the reader's own thread, that is to be answered
        connection.readers._read = original
        waits.set()
        connection._answer([(CREDIT, CREDIT_RECORD.pack(first._box.handle, CREDIT_TOTAL))])
        return True

    service.process.send_signal(signal.SIGSTOP)
    try:
        second.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            for _ in range(100_000):
                second.sendto(bytes(1400), first.getsockname())
        connection.readers._read = owing
        connection.wake_reader()
        assert waits.wait(5)
        thread.join(0.3)
        assert thread.is_alive()
    finally:
        service.process.send_signal(signal.SIGCONT)
    poll = select.poll()
    poll.register(first.fileno(), select.POLLIN)
    assert poll.poll(5000)


# -- processes -------------------------------------------------------------------------------------------------------


def run_python(code: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


FORK = """
import os, sys, usernet
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
s.bind(("10.0.0.2", 0))
s.settimeout(20)
name = s.getsockname()
pid = os.fork()
if pid == 0:
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as own:
        own.sendto(b"from the child", ("10.0.0.2", int(os.environ.get("PORT", name[1]))))
    s.close()
    sys.exit()
print(s.recv(100).decode(), os.waitpid(pid, 0)[1])
s.sendto(b"mine still", s.getsockname())
print(s.recv(100).decode())
s.close()
"""


def test_fork(service):
    output = run_python(FORK).communicate(timeout=30)[0].splitlines()
    assert output == ["from the child 0", "mine still"]


def test_packets_right_behind_the_answer_to_socket_are_not_lost(service, monkeypatch):
    """A raw socket hears from its first moment on, and the thread that reads need not be the one that asked."""
    connection = usernet.Stack().connection
    answered = connection._replied

    def replied(record: bytes) -> None:
        answered(record)
        handle = json.loads(record).get("handle")
        if handle:
            incoming = connection._incoming
            datagram = datagram_header(handle, bytes(4), 0, bytes(4), 64, 0) + b"early"
            connection._take(pack_frame(DATAGRAM, connection.id, incoming.incarnation, incoming.done + 1, [datagram]))
            incoming.done -= 1  # the service never sent it

    monkeypatch.setattr(connection, "_replied", replied)
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(20)
        assert endpoint.recv(10) == b"early"


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError", "s.fileno()",
                                 "threading.Thread(target=s.recv, args=(1,), daemon=True).start()"])
def test_the_end_of_the_interpreter_loses_nothing(pair, end):
    first, _ = pair
    first.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1 << 20)
    code = f"""import sys, threading, usernet
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
for number in range(100):
    s.sendto(number.to_bytes(1200, "big"), {first.getsockname()!r})
{end}"""
    run_python(code).wait(30)
    assert [int.from_bytes(first.recv(1200), "big") for _ in range(100)] == list(range(100))


def test_a_datagram_sent_last_thing_still_leaves(pair):
    first, _ = pair
    code = f"""import usernet
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
s.sendto(b"farewell", {first.getsockname()!r})
s.close()"""
    assert run_python(code).wait(30) == 0
    assert first.recv(100) == b"farewell"


def test_a_process_that_is_killed_loses_its_sockets(service):
    process = run_python("""import usernet
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
s.bind(("10.0.0.2", 5999))
print("bound", flush=True)
input()""")
    assert process.stdout.readline() == "bound\n"
    process.kill()
    process.wait()
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                endpoint.bind((ADDRESS, 5999))
                break
            except OSError:
                assert time.monotonic() < deadline


def test_no_stack_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(tmp_path))
    with pytest.raises(ConnectionRefusedError, match=r"no usernet stack 'default' .*launcher.py up --detach"):
        usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)


def test_a_stack_that_does_not_answer_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("usernet.client.connection.CONNECT_TIMEOUT_S", 0.1)
    with std.socket(std.AF_UNIX) as listener:
        (tmp_path / "sockets").mkdir()
        listener.bind(str(tmp_path / "sockets.sock"))
        listener.listen()
        with pytest.raises(TimeoutError, match="did not answer"):
            usernet.Stack(run_dir=tmp_path)
    assert not list(tmp_path.rglob("app-*"))


def test_a_stack_taken_down_fails(monkeypatch):
    monkeypatch.setattr("usernet.client.connection.ALIVE_INTERVAL_S", 0.05)
    service = Service()
    stack = usernet.Stack(run_dir=service.run_dir)
    endpoint = stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind((ADDRESS, 0))
    service.down()
    with pytest.raises(OSError, match="down") as failure:  # noqa: PT012
        for _ in range(200):
            endpoint.sendto(b"x", endpoint.getsockname())
    assert failure.value.errno == errno.ENETDOWN
    with pytest.raises(ConnectionRefusedError):
        stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM)


def test_closing_a_stack_ends_its_blocked_calls(service):
    stack = usernet.Stack()
    endpoint = stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    errors = []

    def read():
        try:
            endpoint.recv(10)
        except OSError as error:
            errors.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + PATIENCE_S
    while not endpoint._box.waiters:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    stack.close()
    reader.join(PATIENCE_S)
    assert errors == [errno.ENETDOWN]


# -- goodbye -----------------------------------------------------------------------------------------------------------


def gone(service, condition):
    """Whether `condition` comes true, asked by another connection, which stays."""
    observer = Connection(service.run_dir, "test")
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not condition(observer.request("list")["sockets"]):
            if time.monotonic() > deadline:
                return False
        return True
    finally:
        observer.close()


def test_a_connection_that_says_goodbye_is_forgotten_at_once(service, monkeypatch):
    stack = usernet.Stack()
    endpoint = stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind((ADDRESS, 5998))
    inbox = stack.connection.inbox_path
    assert inbox.exists()
    monkeypatch.setattr(Connection.close, "__defaults__", (PATIENCE_S,))  # the service may wait for a processor
    stack.close()
    assert endpoint.fileno() == -1
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as other:
        other.bind((ADDRESS, 5998))  # its process, this one, lives
    assert not inbox.exists()


def test_many_that_come_and_go_leave_no_client_behind(service):
    """More than there are places for clients, from a process that lives on."""
    for _ in range(CLIENTS_MAX + 20):
        Connection(service.run_dir, "test").close()
    Connection(service.run_dir, "test").close()
    assert len(list(service.run_dir.glob("app-*"))) <= 1


def test_a_goodbye_that_the_service_did_not_hear_is_noticed_when_it_is_back(service):
    leaving = Connection(service.run_dir, "test")
    box = leaving.open_socket("dgram")
    leaving.request("bind", handle=box.handle, address=ADDRESS, port=5997)
    service.kill()
    leaving.close()
    service.start()
    assert gone(service, lambda sockets: [ADDRESS, 5997] not in [each["local"] for each in sockets])


def test_a_port_is_free_again_as_soon_as_the_stack_is_closed(service):
    code = """import usernet
from usernet.client.connection import Connection
Connection.close.__defaults__ = (20,)  # the service may wait for a processor
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
s.bind(("10.0.0.2", 5996))
usernet.Stack().close()
s = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
s.bind(("10.0.0.2", 5996))
s.close()"""
    process = run_python(code)
    assert process.wait(30) == 0


def test_credit_is_batched(pair, monkeypatch):
    first, second = pair
    kinds = []
    connection = first._connection
    send = connection.send
    monkeypatch.setattr(connection, "send", lambda kind, *rest: (kinds.append(kind), send(kind, *rest))[1])
    for _ in range(200):
        second.sendto(bytes(64), first.getsockname())
        first.recv(100)
    assert kinds.count(CREDIT) == 0


ARGUMENTS = [
    lambda s: s.recv(0), lambda s: s.recv_into(bytearray()), lambda s: s.recv(1.5), lambda s: s.recv(1 << 63),
    lambda s: s.recv(1, 1 << 40), lambda s: s.recv("1"), lambda s: s.recv(-1), lambda s: s.recvfrom(1.5),
    lambda s: s.recvfrom(-1), lambda s: s.recv_into(bytearray(4), 5), lambda s: s.recv_into(bytearray(4), -1),
    lambda s: s.recv_into(bytearray(4), 1.5), lambda s: s.recv_into(b"1234"), lambda s: s.recv_into("x"),
    lambda s: s.recv_into(bytearray(4), 1, 1 << 40), lambda s: s.recvfrom_into(bytearray(4), 9),
    lambda s: s.recvmsg(-1), lambda s: s.recvmsg(1, -1), lambda s: s.recvmsg(1.5), lambda s: s.recvmsg(1, 0, 1 << 40),
    lambda s: s.recvmsg_into([bytearray(1)], -1), lambda s: s.recvmsg_into([b"x"]), lambda s: s.recvmsg_into(5),
    lambda s: s.send(b"x", 1 << 40), lambda s: s.send("x"), lambda s: s.send(b"x", 1.5), lambda s: s.send(5),
    lambda s: s.sendmsg([b"x"], [(0, 0, b""), object()]), lambda s: s.sendmsg([b"x", 5]), lambda s: s.sendmsg(5),
    lambda s: s.sendmsg([b"x"], [(0, 0)]), lambda s: s.sendmsg([b"x"], [(0.5, 0, b"")]),
    lambda s: s.recv(bufsize=3), lambda s: s.recvfrom(bufsize=3), lambda s: s.send(data=b"x"),
    lambda s: s.recv_into(memoryview(bytearray(6))[::2]), lambda s: s.recvmsg_into([memoryview(bytearray(6))[::2]]),
    lambda s: s.send(memoryview(bytes(6))[::2]), lambda s: s.sendall(memoryview(bytes(6))[::2]),
    lambda s: s.sendmsg([memoryview(bytes(6))[::2]]), lambda s: s.sendmsg([b"a"] * 2000),
    lambda s: s.recvmsg_into([bytearray(1)] * 2000), lambda s: s.sendmsg([b"x"], [(1, 1, bytes(4))]),
    *[lambda s, v=v: s.sendmsg([b"x"], v) for v in (0, None, 0.0, 5)],
    *[lambda s, v=v: s.sendmsg([b"x"], [], v) for v in (-1, 1.5, None, 1 << 31)],
    lambda s: s.sendmsg([b"x"], [], 0, ("127.0.0.1",)), lambda s: s.sendmsg([b"x"], [], 0, 5),
    lambda s: s.sendmsg([b"x"], [], 0, ("127.0.0.1", 70000)),
    *[call for v in (1.5, 1 << 31, -(1 << 63), "1", None) for call in (
        lambda s, v=v: s.recvmsg(4, v), lambda s, v=v: s.recvmsg_into([bytearray(4)], v),
        lambda s, v=v: s.recvmsg_into([bytearray(4)], 0, v), lambda s, v=v: s.listen(v), lambda s, v=v: s.shutdown(v),
        lambda s, v=v: s.setsockopt(v, 2, 1), lambda s, v=v: s.setsockopt(1, v, 1),
        lambda s, v=v: s.setsockopt(1, 2, v), lambda s, v=v: s.setsockopt(1, 2, None, v),
        lambda s, v=v: s.getsockopt(v, 2), lambda s, v=v: s.getsockopt(1, v), lambda s, v=v: s.getsockopt(1, 2, v),
        lambda s, v=v: s.sendmsg([b"x"], [(v, 0, b"")]),
        lambda s, v=v: s.sendmsg([b"x"], [(0, v, b"")]), lambda s, v=v: s.sendto(b"x", v, s.getsockname()))],
    lambda s: s.setsockopt(1, 2, None, 0), lambda s: s.setsockopt(1, 2, None, -1), lambda s: s.setsockopt(1, 2, 1, 4),
    lambda s: s.setsockopt(1, True + 1, True), lambda s: s.getsockopt(True, 3), lambda s: s.getsockopt(0, 2, 3),
]


@pytest.mark.parametrize("call", ARGUMENTS, ids=range(len(ARGUMENTS)))
@pytest.mark.parametrize("kind", [std.SOCK_DGRAM, std.SOCK_STREAM])
def test_arguments_are_judged_before_anything_is_taken(service, kind, call):
    said = []
    for module in (std, usernet):
        with module.socket(std.AF_INET, kind) as receiver, module.socket(std.AF_INET, kind) as sender:
            receiver.bind(("127.0.0.1", 0))
            if kind == std.SOCK_STREAM:
                receiver.listen()
            sender.connect(receiver.getsockname())
            peer = receiver.accept()[0] if kind == std.SOCK_STREAM else receiver
            with peer:
                peer.settimeout(20)
                if kind == std.SOCK_DGRAM:
                    receiver.connect(sender.getsockname())
                sender.send(b"waits")
                assert peer.recv(5, std.MSG_PEEK) == b"waits"
                try:
                    outcome = call(peer)
                except (TypeError, ValueError, OverflowError, BufferError, OSError) as error:
                    outcome = type(error).__name__, getattr(error, "errno", None)
                waits = peer.recv(9, std.MSG_PEEK)
                if not isinstance(outcome, int):  # nothing was sent; a mark shows it
                    peer.settimeout(20)
                    with suppress(OSError):  # it was shut down
                        peer.send(b"mark")
                        sender.settimeout(20)
                        assert sender.recv(9) == b"mark"
                said.append((outcome, waits))
    assert said[0] == said[1]


def test_long_times(pair):
    first, second = pair
    for seconds in (1e9, 3e9):
        first.settimeout(seconds)
        second.sendto(b"x", first.getsockname())
        assert first.recv(1) == b"x"
    first.settimeout(None)
    for value in (3_000_000, 1 << 62):
        for endpoint in (first, kernels := std.socket(std.AF_INET, std.SOCK_DGRAM)):
            endpoint.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("@ll", value, 0))
        assert first.getsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, 16) == kernels.getsockopt(
            std.SOL_SOCKET, std.SO_RCVTIMEO, 16)
        kernels.close()
        second.sendto(b"x", first.getsockname())
        assert first.recv(1) == b"x"


TIMES = [(0, 0), (0, 1), (0, 3_999), (0, 4_000), (0, 4_001), (0, 9_999), (3, 300_000), (3, 333_333), (70, 996_001),
         (70, 999_999), (-1, 5), (1 << 33, 1), (1 << 44, 1)]


@pytest.mark.parametrize("option", [std.SO_RCVTIMEO, std.SO_SNDTIMEO, 66, 67], ids=["rcv", "snd", "rcv new", "snd new"])
def test_timeouts_are_told_in_whole_jiffies_of_the_kernel(pair, option):
    first, _ = pair
    limit = ((1 << 63) - 1) // jiffies_per_second()  # seconds, from which on Linux waits for ever
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as kernels:
        for seconds, microseconds in [*TIMES, (limit - 1, 1), (limit, 1), (1 << 62, 1)]:
            for endpoint in (first, kernels):
                endpoint.setsockopt(std.SOL_SOCKET, option, struct.pack("@ll", seconds, microseconds))
            for octets in (16, 8, 20):
                assert first.getsockopt(std.SOL_SOCKET, option, octets) == kernels.getsockopt(
                    std.SOL_SOCKET, option, octets), (seconds, microseconds)
        for value in (struct.pack("@ll", 1, 1_000_000), struct.pack("@ll", -1, -1), b"short", 5):
            errors = []
            for endpoint in (first, kernels):
                with pytest.raises(OSError) as refused:
                    endpoint.setsockopt(std.SOL_SOCKET, option, value)
                errors.append(refused.value.errno)
            assert errors[0] == errors[1]
    first.setsockopt(std.SOL_SOCKET, option, bytes(16))


def linger(on: int, seconds: int) -> bytes:
    return struct.pack("@ii", on, seconds)


@pytest.mark.parametrize("kind", [std.SOCK_STREAM, std.SOCK_DGRAM], ids=["stream", "dgram"])
def test_the_time_of_linger_is_kept_while_it_is_off(service, kind):
    with usernet.socket(std.AF_INET, kind) as ours, std.socket(std.AF_INET, kind) as kernels:
        for value in (linger(0, 7), linger(1, 5), linger(0, 9), linger(3, 0), linger(-1, (1 << 31) - 1), linger(0, 0)):
            for each in (ours, kernels):
                each.setsockopt(std.SOL_SOCKET, std.SO_LINGER, value)
            assert ours.getsockopt(std.SOL_SOCKET, std.SO_LINGER, 8) == kernels.getsockopt(
                std.SOL_SOCKET, std.SO_LINGER, 8), value


def test_a_negative_time_of_linger_is_for_ever_and_does_not_reset(service):
    with usernet.create_server((ADDRESS, 0)) as server:
        first = usernet.create_connection(server.getsockname())
        first.setsockopt(std.SOL_SOCKET, std.SO_LINGER, linger(1, -1))
        second, _ = server.accept()
        with second:
            first.sendall(b"still")
            first.close()
            assert second.recv(10) == b"still"
            assert second.recv(10) == b""


def test_tcp_defer_accept_is_told_as_the_time_of_retransmissions(service):
    with usernet.socket(std.AF_INET, std.SOCK_STREAM) as ours, std.socket(std.AF_INET, std.SOCK_STREAM) as kernels:
        for seconds in (-1, 0, 1, 2, 3, 4, 30, 31, 32, 60, 127, 128, 255, 1000, 40_000, (1 << 31) - 1):
            for each in (ours, kernels):
                each.setsockopt(std.IPPROTO_TCP, std.TCP_DEFER_ACCEPT, seconds)
            assert ours.getsockopt(std.IPPROTO_TCP, std.TCP_DEFER_ACCEPT) == kernels.getsockopt(
                std.IPPROTO_TCP, std.TCP_DEFER_ACCEPT), seconds


def test_an_accepted_connection_has_the_timeouts_of_its_listener(service):
    told = []
    for module, address in ((usernet, ADDRESS), (std, "127.0.0.1")):
        with module.socket(std.AF_INET, std.SOCK_STREAM) as server:
            server.bind((address, 0))
            for option, seconds in ((std.SO_RCVTIMEO, 2), (std.SO_SNDTIMEO, 3)):
                server.setsockopt(std.SOL_SOCKET, option, struct.pack("@ll", seconds, 0))
            server.setsockopt(std.SOL_SOCKET, std.SO_LINGER, linger(0, 4))
            server.listen()
            with module.create_connection(server.getsockname()), server.accept()[0] as accepted:
                told.append([accepted.getsockopt(std.SOL_SOCKET, option, 16)
                             for option in (std.SO_RCVTIMEO, std.SO_SNDTIMEO, std.SO_LINGER)])
    assert told[0] == told[1]


def test_a_timeout_without_a_descriptor_for_the_question_about_jiffies(pair):
    first, _ = pair
    _asked_hz.cache_clear()
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, former[1]))
    try:
        first.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("@ll", 1, 0))
        assert first.getsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, 16) == struct.pack("@ll", 1, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    first.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, bytes(16))


def test_the_largest_datagram_is_had_by_the_first_call_that_does_not_wait(pair):
    first, second = pair
    for octets in (65490, 65500, 65507):
        second.sendto(bytes(octets), first.getsockname())
        usernet.Stack().list_sockets()  # answered behind the datagram, so that is in the pipe
        second.sendto(bytes(octets), first.getsockname())
        time.sleep(0.5)  # for the second: nothing but the call below may look
        first.setblocking(False)
        assert [len(first.recv(65507)) for _ in range(2)] == [octets, octets]


def test_a_refusal_is_told_by_the_next_send(service):
    with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as endpoint:
        endpoint.connect((ADDRESS, 1))
        endpoint.send(b"x")
        observer = Connection(service.run_dir, "test")
        for _ in range(2):  # answered behind the error, which nothing on this connection may look for
            observer.request("list", after=0)
        observer.close()
        time.sleep(0.1)  # for libzmq's thread, with its pipes
        with pytest.raises(ConnectionRefusedError):
            endpoint.send(b"x")


def test_options_that_datagrams_take_without_effect(pair):
    first, _ = pair
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as kernels:
        for endpoint in (first, kernels):
            endpoint.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
            endpoint.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 3))
            assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE) == 1
            assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_LINGER, 8) == struct.pack("ii", 1, 3)
            assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN) == 0


def test_interfaces():
    assert usernet.if_nameindex() == [(1, "lo"), (2, "link")]
    assert usernet.if_nametoindex("lo") == 1
    assert usernet.if_indextoname(2) == "link"
    for call, argument in ((usernet.if_nametoindex, "none"), (usernet.if_indextoname, 99)):
        with pytest.raises(OSError):
            call(argument)
    with pytest.raises(OverflowError):
        usernet.if_indextoname(-1)


def test_dup_of_a_descriptor(pair):
    first, second = pair
    number = usernet.dup(first.fileno())
    with usernet.socket(fileno=number) as copy:
        assert copy.getsockname() == first.getsockname()
        copy.settimeout(20)
        second.sendto(b"x", first.getsockname())
        assert copy.recv(1) == b"x"
