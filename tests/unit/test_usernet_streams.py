"""Stream sockets of the application's library: the same function with the kernel's sockets and with a stack's."""

from __future__ import annotations

import errno
import gc
import io
import os
import select
import socket as std
import threading
import time

import pytest
from usernet_service import Service

import usernet
from usernet.client.streams import StreamDescription
from usernet.pipe.streams import ACCEPT, ACCEPT_RECORD, READ, READ_RECORD, RESUME

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


@pytest.fixture(params=["kernel", "stack"])
def module(request, service):
    return std if request.param == "kernel" else usernet


@pytest.fixture
def pair(module):
    """(connected, accepted), both with a timeout."""
    with module.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        first = module.create_connection(server.getsockname(), timeout=PATIENCE_S)
        second, _ = server.accept()
    second.settimeout(PATIENCE_S)
    with first, second:
        yield first, second


def outcome(call, *arguments):
    """What a call gives: its result, or its exception and errno."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error).__name__, getattr(error, "errno", None)


def events(endpoint, timeout=PATIENCE_S, wanted=select.POLLIN | select.POLLOUT):
    poll = select.poll()
    poll.register(endpoint.fileno(), wanted)
    return [found for _, found in poll.poll(timeout * 1000)]


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# -- connections ------------------------------------------------------------------------------------------------------


def test_names(module):
    with module.create_server(("127.0.0.1", 0)) as server, module.create_connection(server.getsockname()) as first:
        second, peer = server.accept()
        with second:
            assert first.getpeername() == server.getsockname() == second.getsockname()
            assert second.getpeername() == peer == first.getsockname()
            assert first.type == second.type == module.SOCK_STREAM
            assert outcome(server.getpeername) == ("OSError", errno.ENOTCONN)


def test_refused(module):
    with module.socket() as endpoint, module.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            endpoint.connect(bound.getsockname())
        assert endpoint.connect_ex(bound.getsockname()) == errno.ECONNREFUSED
        assert endpoint.getsockopt(module.SOL_SOCKET, module.SO_ERROR) == 0
        bound.listen()
        endpoint.connect(bound.getsockname())  # the same socket again
        assert endpoint.getpeername() == bound.getsockname()


def test_a_connect_that_does_not_wait(module):
    with module.create_server(("127.0.0.1", 0)) as server, module.socket() as endpoint:
        endpoint.setblocking(False)
        assert endpoint.connect_ex(server.getsockname()) == errno.EINPROGRESS
        assert events(endpoint, wanted=select.POLLOUT) == [select.POLLOUT]
        assert endpoint.getsockopt(module.SOL_SOCKET, module.SO_ERROR) == 0
        assert endpoint.connect_ex(server.getsockname()) in (0, errno.EISCONN)
        assert endpoint.connect_ex(server.getsockname()) == errno.EISCONN


def test_a_connect_that_does_not_wait_and_is_only_asked_again(module):
    with module.socket() as server, module.socket() as endpoint:
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint.setblocking(False)
        said = [endpoint.connect_ex(server.getsockname())]
        deadline = time.monotonic() + PATIENCE_S
        while said[-1] in (errno.EINPROGRESS, errno.EALREADY):
            assert time.monotonic() < deadline
            said.append(endpoint.connect_ex(server.getsockname()))
        assert (said[0], said[-1]) == (errno.EINPROGRESS, 0)
        assert endpoint.connect_ex(server.getsockname()) == errno.EISCONN


def test_a_connect_that_does_not_wait_is_refused(module):
    with module.socket() as endpoint, module.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint.setblocking(False)
        with pytest.raises(BlockingIOError):
            endpoint.connect(bound.getsockname())
        assert events(endpoint, wanted=select.POLLOUT)[0] & select.POLLOUT
        assert endpoint.getsockopt(module.SOL_SOCKET, module.SO_ERROR) == errno.ECONNREFUSED
        assert endpoint.getsockopt(module.SOL_SOCKET, module.SO_ERROR) == 0


def test_calls_before_there_is_a_connection(module):
    with module.socket() as endpoint:
        assert outcome(endpoint.recv, 1) == ("OSError", errno.ENOTCONN)
        assert outcome(endpoint.send, b"x") == ("BrokenPipeError", errno.EPIPE)
        assert outcome(endpoint.shutdown, module.SHUT_RD) == ("OSError", errno.ENOTCONN)
        assert outcome(endpoint.accept) == ("OSError", errno.EINVAL)
        assert outcome(endpoint.getpeername) == ("OSError", errno.ENOTCONN)
        assert endpoint.getsockname() == ("0.0.0.0", 0)


def test_calls_of_a_listener(module):
    with module.create_server(("127.0.0.1", 0)) as server:
        assert outcome(server.recv, 1) == ("OSError", errno.ENOTCONN)
        assert outcome(server.send, b"x") == ("BrokenPipeError", errno.EPIPE)
        assert outcome(server.connect, ("127.0.0.1", 1)) == ("OSError", errno.EISCONN)
        assert outcome(server.bind, ("127.0.0.1", 0)) == ("OSError", errno.EINVAL)
        assert server.getsockopt(module.SOL_SOCKET, module.SO_ACCEPTCONN) == 1
        server.settimeout(0.01)
        assert outcome(server.accept)[0] == "TimeoutError"
        server.setblocking(False)
        assert outcome(server.accept) == ("BlockingIOError", errno.EAGAIN)
        assert events(server, 0) == []
        with module.create_connection(server.getsockname()):
            assert events(server) == [select.POLLIN]
            accepted, _ = server.accept()
            with accepted:
                assert accepted.gettimeout() is None
            assert events(server, 0) == []


def test_a_connection_does_not_listen(pair):
    for end in pair:
        assert outcome(end.listen) == ("OSError", errno.EINVAL)
    first, second = pair
    first.sendall(b"still one")
    assert second.recv(9, std.MSG_WAITALL) == b"still one"


def test_an_address_in_use(module):
    with module.create_server(("127.0.0.1", 0)) as server, module.socket() as other:
        assert outcome(other.bind, server.getsockname()) == ("OSError", errno.EADDRINUSE)


def test_shutdown_of_a_listener_wakes_accept(module):
    with module.create_server(("127.0.0.1", 0)) as server:
        said = []
        thread = threading.Thread(target=lambda: said.append(outcome(server.accept)))
        thread.start()
        time.sleep(0.05)  # either order is right
        server.shutdown(module.SHUT_RD)
        thread.join(PATIENCE_S)
        assert said == [("OSError", errno.EINVAL)]


# -- octets -----------------------------------------------------------------------------------------------------------


def test_octets_there_and_back(pair):
    first, second = pair
    first.sendall(b"hello ")
    first.sendall(memoryview(b"world"))
    assert second.recv(5, std.MSG_WAITALL) == b"hello"
    until(lambda: len(second.recv(100, std.MSG_PEEK)) == 6)
    assert second.recv(3, std.MSG_PEEK) == b" wo"
    assert second.recvfrom(2) == (b" w", None)
    buffer = bytearray(10)
    assert second.recv_into(buffer, 2) == 2
    assert buffer[:2] == b"or"
    assert second.recvmsg(1) == (b"l", [], 0, None)
    assert second.recvmsg_into([buffer, bytearray(2)])[0] == 1
    assert second.sendmsg([b"a", b"b"]) == 2
    assert first.recv(2, std.MSG_WAITALL) == b"ab"
    first.settimeout(None)
    assert outcome(first.recv, 1, std.MSG_DONTWAIT) == ("BlockingIOError", errno.EAGAIN)
    assert first.recv(0) == b""


def test_much_both_ways_at_once(pair):
    data = os.urandom(3 << 20)
    received = {}

    def run(endpoint, name):
        sender = threading.Thread(target=lambda: (endpoint.sendall(data), endpoint.shutdown(std.SHUT_WR)))
        sender.start()
        received[name] = b"".join(iter(lambda: endpoint.recv(1 << 16), b""))
        sender.join()

    threads = [threading.Thread(target=run, args=(endpoint, name)) for name, endpoint in enumerate(pair)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert received == {0: data, 1: data}


def test_arguments_are_judged_before_anything_is_sent_or_taken(pair):
    first, second = pair
    for data, *flags in ((1.5,), (1.5, "x"), (b"x", None), (b"x", 0.0), (b"x", "x")):
        for call in (first.send, first.sendall):
            assert outcome(call, data, *flags)[0] == "TypeError"
    for size, *flags in ((1.5,), (None,), (1, None), (1, 0.0), (0, None)):
        assert outcome(first.recv, size, *flags)[0] == "TypeError"
    for call, *arguments in ((first.send, b"x", 1 << 31), (first.sendall, b"x", 1 << 31), (first.recv, 1, 1 << 31),
                             (first.recv, 1 << 63)):
        assert outcome(call, *arguments)[0] == "OverflowError"
    assert outcome(first.recv, -1)[0] == "ValueError"
    assert first.recv(0) == b""
    first.sendall(b"")
    for data in (b"1", bytearray(b"2"), memoryview(b"33")[:1]):
        assert first.send(data, False) == 1
    first.sendall(b"4")
    first.shutdown(std.SHUT_WR)
    assert second.recv(4, std.MSG_WAITALL) == b"1234"
    assert second.recv(True) == b""


def test_a_full_buffer(pair):
    first, second = pair
    first.setblocking(False)
    sent = 0

    def full():
        """Room may come once more, when the peer has acknowledged the first octets."""
        nonlocal sent
        while isinstance(more := outcome(first.send, bytes(65536)), int):
            sent += more
            assert sent < 64 << 20
        assert more == ("BlockingIOError", errno.EAGAIN)
        return events(first, 0, select.POLLOUT) == []

    until(full)
    second.settimeout(PATIENCE_S)
    left = sent
    while left > 0:
        left -= len(second.recv(1 << 20))
    assert events(first, wanted=select.POLLOUT) == [select.POLLOUT]
    first.settimeout(0.05)
    with pytest.raises(TimeoutError):
        first.sendall(bytes(64 << 20))


def test_half_close(pair):
    first, second = pair
    first.sendall(b"last")
    first.shutdown(std.SHUT_WR)
    assert outcome(first.send, b"x") == ("BrokenPipeError", errno.EPIPE)
    assert second.recv(10, std.MSG_WAITALL) == b"last"
    assert second.recv(10) == b""
    assert second.recv(10) == b""
    second.sendall(b"still")
    assert first.recv(5, std.MSG_WAITALL) == b"still"


def test_poll_reports_the_end_of_a_stream(pair):
    first, second = pair
    wanted = select.POLLIN | select.POLLOUT | select.POLLRDHUP
    assert events(second, 0, wanted) == [select.POLLOUT]
    first.shutdown(std.SHUT_WR)
    assert events(second, wanted=select.POLLIN) == [select.POLLIN]
    assert events(second, 0, wanted) == [wanted]
    second.shutdown(std.SHUT_WR)
    until(lambda: events(second, 0, wanted) == [wanted | select.POLLHUP])
    until(lambda: events(first, 0, wanted) == [wanted | select.POLLHUP])


def test_a_reset(pair):
    first, second = pair
    first.sendall(b"before")
    until(lambda: second.recv(10, std.MSG_PEEK) == b"before")
    first.setsockopt(std.SOL_SOCKET, std.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
    first.close()
    until(lambda: events(second, 0)[0] & select.POLLHUP)
    assert second.recv(10) == b"before"
    assert outcome(second.recv, 10) == ("ConnectionResetError", errno.ECONNRESET)
    assert second.recv(10) == b""
    assert outcome(second.send, b"x") == ("BrokenPipeError", errno.EPIPE)


def test_a_close_with_octets_unread_resets(pair):
    first, second = pair
    second.sendall(b"unread")
    until(lambda: first.recv(10, std.MSG_PEEK) == b"unread")
    first.close()
    assert outcome(second.recv, 10) == ("ConnectionResetError", errno.ECONNRESET)


def test_a_close_delivers_everything(pair):
    first, second = pair
    data = os.urandom(1 << 18)
    thread = threading.Thread(target=lambda: (first.sendall(data), first.close()))
    thread.start()
    assert b"".join(iter(lambda: second.recv(1 << 16), b"")) == data
    thread.join()


def test_lingering(pair):
    first, second = pair
    first.setsockopt(std.SOL_SOCKET, std.SO_LINGER, (1).to_bytes(4, "little") + (5).to_bytes(4, "little"))
    assert first.getsockopt(std.SOL_SOCKET, std.SO_LINGER, 8) == bytes((1, 0, 0, 0, 5, 0, 0, 0))
    first.sendall(b"x" * 1000)
    began = time.monotonic()
    first.close()
    assert time.monotonic() - began < 4, "the peer's stack acknowledged it"
    assert second.recv(2000, std.MSG_WAITALL) == b"x" * 1000


def test_makefile_and_sendfile(pair, tmp_path):
    first, second = pair
    path = tmp_path / "file"
    path.write_bytes(os.urandom(200000))
    with path.open("rb") as file:
        thread = threading.Thread(target=lambda: (first.sendfile(file), first.shutdown(std.SHUT_WR)))
        thread.start()
        with second.makefile("rb") as stream:
            assert stream.read() == path.read_bytes()
        thread.join()
    with second.makefile("w") as text:
        text.write("line\n")
    with first.makefile("r") as text:
        assert text.readline() == "line\n"
    assert isinstance(first.makefile("rb"), io.BufferedReader)


def test_dup_is_the_same_stream(pair):
    first, second = pair
    copy = first.dup()
    first.close()
    copy.sendall(b"x")
    assert second.recv(1) == b"x"
    copy.close()
    assert second.recv(1) == b""


def test_options(module):
    values = {}
    with module.socket() as endpoint:
        for level, name, value in (
            (std.IPPROTO_TCP, std.TCP_NODELAY, 1), (std.IPPROTO_TCP, std.TCP_CORK, 1),
            (std.SOL_SOCKET, std.SO_KEEPALIVE, 1), (std.IPPROTO_TCP, std.TCP_KEEPIDLE, 10),
            (std.IPPROTO_TCP, std.TCP_KEEPINTVL, 3), (std.IPPROTO_TCP, std.TCP_KEEPCNT, 4),
            (std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 5000), (std.IPPROTO_TCP, std.TCP_SYNCNT, 3),
            (std.SOL_SOCKET, std.SO_REUSEADDR, 1), (std.IPPROTO_IP, std.IP_TTL, 33),
        ):
            endpoint.setsockopt(level, name, value)
            values[level, name] = int(bool(endpoint.getsockopt(level, name))) if value == 1 else endpoint.getsockopt(
                level, name)
            assert values[level, name] == value
        assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_TYPE) == std.SOCK_STREAM
        assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_PROTOCOL) == std.IPPROTO_TCP
        assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN) == 0
        assert outcome(endpoint.setsockopt, std.IPPROTO_TCP, std.TCP_KEEPCNT, 0) == ("OSError", errno.EINVAL)
        assert outcome(endpoint.setsockopt, std.IPPROTO_TCP, 200, 1) == ("OSError", errno.ENOPROTOOPT)
        assert endpoint.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 1) == b"\x07", "CLOSE"


# -- of the library alone ---------------------------------------------------------------------------------------------


@pytest.fixture
def own_pair(service):
    with usernet.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        first = usernet.create_connection(server.getsockname(), timeout=PATIENCE_S)
        second, _ = server.accept()
    second.settimeout(PATIENCE_S)
    with first, second:
        yield first, second


def test_tcp_info_of_a_connection(own_pair):
    first, _ = own_pair
    assert first.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 1) == b"\x01", "ESTABLISHED"


def test_connections_that_were_not_accepted_are_reset(service):
    server = usernet.create_server(("127.0.0.1", 0))
    with usernet.create_connection(server.getsockname(), timeout=PATIENCE_S) as first:
        server.close()
        assert outcome(first.recv, 1) == ("ConnectionResetError", errno.ECONNRESET)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_is_dropped_is_closed(service):
    with usernet.create_server(("127.0.0.1", 0)) as server:
        client = usernet.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.settimeout(PATIENCE_S)
        del client
        gc.collect()
        assert accepted.recv(1) == b""
        accepted.close()


def test_the_end_of_a_process_delivers_what_was_sent(service):
    with usernet.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        address = server.getsockname()
        pid = os.fork()
        if not pid:
            client = usernet.create_connection(address)
            client.sendall(bytes(100_000))
            if os.environ.get("USERNET_PIPES") == "zmq":  # libzmq's thread would not get round to it
                usernet.Stack().close()
            os._exit(0)
        os.waitpid(pid, 0)
        accepted, _ = server.accept()
        accepted.settimeout(PATIENCE_S)
        with accepted:
            assert len(b"".join(iter(lambda: accepted.recv(1 << 16), b""))) == 100_000


def test_streams_are_asked_for_again_after_records_of_the_service_were_lost(service):
    with usernet.create_server(("127.0.0.1", 0), backlog=3) as server:
        with usernet.create_connection(server.getsockname(), timeout=PATIENCE_S) as first:
            second, _ = server.accept()
            with second:
                second.send(b"unread")
                assert first.recv(2) == b"un"
                first.recv(4, std.MSG_PEEK | std.MSG_WAITALL)
                (asked,) = first._box.recovering()
                assert asked == (READ, READ_RECORD.pack(first._box.handle, RESUME, 2, 6))
        (granted,) = server._box.recovering()
        assert granted == (ACCEPT, ACCEPT_RECORD.pack(server._box.handle, RESUME, 1, 1 + 3 + 1))


def test_reset_behind_a_fin_leaves_the_end_of_the_stream(pair):
    first, second = pair
    first.shutdown(std.SHUT_WR)
    assert second.recv(1) == b""
    second.sendall(b"unread")
    until(lambda: first.recv(10, std.MSG_PEEK) == b"unread")
    first.close()
    assert events(second, wanted=select.POLLERR | select.POLLHUP)
    assert second.recv(1) == b""
    assert outcome(second.send, b"x") == ("BrokenPipeError", errno.EPIPE)


@pytest.mark.parametrize(("backlog", "accepts"), [(1, 1), (40, 6), (4096, 65)])
def test_while_connections_wait_tcp_is_told_of_several_accepted_ones_at_a_time(backlog, accepts):
    listener, waiting = (StreamDescription(threading.RLock(), handle, 0) for handle in (7, 8))
    listener.listening, listener.backlog = True, backlog
    listener.granting()
    listener.incoming.append(waiting)
    listener.numbered = 1
    for number in range(1, accepts + 1):
        listener.numbered = 1 + number  # one that waits, and those accepted
        assert listener.grant_due() == (number == accepts)
    listener.granting()
    assert listener.granted == accepts + backlog + 1
    listener.incoming.clear()
    assert listener.grant_due()
