"""Sockets that a process has inherited over fork are its parent's, too, as on Linux (docs/decisions/fork.md)."""

from __future__ import annotations

import errno
import http.server
import multiprocessing
import os
import select
import signal
import socket as std
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from usernet_service import ADDRESS, Service

import usernet
from usernet.client.connection import Connection
from usernet.pipe.streams import ACCEPT, ACCEPT_RECORD

PATIENCE_S = 20


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    running = Service()
    monkeypatch.setenv("USERNET_DIR", str(running.run_dir))
    yield running
    usernet.Stack().close()
    running.down()


@pytest.fixture(params=["direct", "zmq"])
def pipes(request, monkeypatch) -> None:
    """The kind of the library's pipes."""
    monkeypatch.setenv("USERNET_PIPES", request.param)


def udp() -> usernet.socket:
    endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind((ADDRESS, 0))
    endpoint.settimeout(PATIENCE_S)
    return endpoint


def child(work: Callable[[], object]) -> int:
    """The pid of a forked process that does `work`, and ends with 0 after that, with 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(60)
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"in the child: {error!r}\n".encode())
    finally:
        try:
            usernet.Stack().close()
        finally:
            os._exit(status)


def ended(*pids: int) -> None:
    """Wait for children, all of which must have been successful."""
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connections_to(service: Service) -> set[int]:
    """The inodes of this process's connections to the service."""
    found = set()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            with std.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family == std.AF_UNIX and copy.getpeername() == str(service.run_dir / "sockets.sock"):
                    found.add(os.fstat(copy.fileno()).st_ino)
        except OSError:
            continue
    return found


def test_a_child_does_not_keep_its_parents_connection(service, monkeypatch):
    """Otherwise the service could not tell when it has read everything from the parent. That of libzmq it keeps."""
    monkeypatch.setenv("USERNET_PIPES", "direct")
    with udp():
        ours = connections_to(service)
        assert len(ours) == 1

        def work() -> None:
            theirs = connections_to(service)
            assert len(theirs) == 1
            assert not ours & theirs

        ended(child(work))
        assert connections_to(service) == ours


# -- datagrams --------------------------------------------------------------------------------------------------------


def test_a_datagram_goes_to_the_process_that_reads(service):
    with udp() as shared, udp() as other:
        for reader in ("child", "parent"):
            def answer() -> None:
                data, peer = shared.recvfrom(100)
                shared.sendto(data + b" child", peer)

            pid = child(answer) if reader == "child" else child(lambda: None)
            if reader == "parent":
                ended(pid)
            other.sendto(b"to", shared.getsockname())
            if reader == "parent":
                data, peer = shared.recvfrom(100)
                shared.sendto(data + b" parent", peer)
            assert other.recvfrom(100) == (b"to " + reader.encode(), shared.getsockname())
            if reader == "child":
                ended(pid)


def test_each_of_many_datagrams_goes_to_one_of_the_processes(service):
    with udp() as shared, udp() as other:
        def work() -> None:
            while (data := shared.recv(100)) != b"end":
                shared.sendto(data, other.getsockname())

        pids = [child(work) for _ in range(3)]
        got = []
        for number in range(300):
            other.sendto(b"%d" % number, shared.getsockname())
            got.append(int(other.recv(100)))
        assert got == list(range(300))
        for _ in pids:
            other.sendto(b"end", shared.getsockname())
        ended(*pids)


def test_a_shared_socket_without_waiting(service):
    with udp() as shared, udp() as other:
        def work() -> None:
            shared.setblocking(False)
            with pytest.raises(BlockingIOError):
                shared.recv(10)
            other.sendto(b"a", shared.getsockname())
            other.sendto(b"b", shared.getsockname())
            assert select.select([shared], [], [], PATIENCE_S)[0]
            assert shared.recv(10) == b"a"
            assert select.select([shared], [], [], PATIENCE_S)[0]
            assert shared.recv(10) == b"b"
            with pytest.raises(BlockingIOError):
                shared.recv(10)
            shared.settimeout(0.05)
            with pytest.raises(TimeoutError):
                shared.recv(10)

        ended(child(work))


def test_the_parent_waits_while_it_forks_and_both_read_and_then_is_alone_again(service):
    with udp() as shared, udp() as other:
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(shared.recv(10)))
        thread.start()
        pid = child(lambda: time.sleep(0.1))
        other.sendto(b"x", shared.getsockname())
        thread.join(PATIENCE_S)
        assert got == [b"x"]
        ended(pid)
        for _ in range(2000):  # more than a receive buffer, so the accounts are right again
            other.sendto(bytes(1000), shared.getsockname())
            shared.recv(1000)
        assert not shared._box.shared


def test_the_socket_lives_as_long_as_one_of_its_processes(service):
    with udp() as other:
        shared = udp()
        name = shared.getsockname()
        ready, go = os.pipe()

        def work() -> None:
            os.read(ready, 1)
            other.sendto(b"x", name)
            assert shared.recv(10) == b"x"

        pid = child(work)
        shared.close()
        with pytest.raises(OSError, match="in use"):
            usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM).bind(name)
        os.write(go, b"x")
        ended(pid)
        with usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as again:
            again.bind(name)


def test_the_parent_ends_and_the_child_goes_on(service):
    with udp() as other:
        other_name = other.getsockname()

        def parent() -> None:
            shared = udp()

            def grandchild() -> None:
                shared.sendto(b"my parent has gone", other_name)
                while shared.recv(100) != b"end":
                    pass
                shared.sendto(b"done", other_name)

            child(grandchild)

        ended(child(parent))
        data, peer = other.recvfrom(100)
        assert data == b"my parent has gone"
        other.sendto(b"end", peer)
        assert other.recvfrom(100) == (b"done", peer)


def test_a_killed_child_leaves_the_socket_to_its_parent(service):
    with udp() as shared, udp() as other:
        pid = child(lambda: [shared.recv(10), signal.pause()])
        other.sendto(b"one", shared.getsockname())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        deadline = time.monotonic() + PATIENCE_S
        while shared._box.shared:
            usernet.Stack().list_sockets()
            assert time.monotonic() < deadline
        other.sendto(b"two", shared.getsockname())
        while (data := shared.recv(10)) == b"one":  # unless the child had it
            pass
        assert data == b"two"


@pytest.mark.parametrize("takes", [False, True])
def test_a_datagram_is_for_another_process_unless_the_one_that_got_it_has_read_it_before_its_end(service, takes):
    with udp() as shared, udp() as other:
        got, told = os.pipe()

        def get_one() -> None:
            shared.fileno()  # so it asks for a datagram
            os.write(told, b".")
            assert select.select([shared], [], [], PATIENCE_S)[0]
            assert not takes or shared.recv(10) == b"one"
            os.write(told, b".")
            signal.pause()

        pid = child(get_one)
        assert os.read(got, 1) == b"."
        other.sendto(b"one", shared.getsockname())
        assert os.read(got, 1) == b"."
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not takes:
            assert shared.recv(10) == b"one"
        other.sendto(b"two", shared.getsockname())
        assert shared.recv(10) == b"two"


def test_a_restart_of_the_service_while_a_socket_is_shared(service):
    with udp() as shared, udp() as other:
        def work() -> None:
            while (data := shared.recv(100)) != b"end":
                shared.sendto(data, other.getsockname())

        pids, answers = [child(work) for _ in range(2)], []
        other.settimeout(1)
        for number in range(20):
            if number % 5 == 4:
                service.restart()
            for attempt in range(10):
                other.sendto(b"%d %d" % (number, attempt), shared.getsockname())
                try:
                    while not answers or int(answers[-1].split()[0]) != number:
                        answers.append(other.recv(100))
                except TimeoutError:
                    continue  # it waited in the service for a reader
                break
            else:
                pytest.fail("no answer")
        with pytest.raises(TimeoutError):  # noqa: PT012
            while True:
                answers.append(other.recv(100))
        assert len(answers) == len(set(answers))
        for _ in range(4):
            other.sendto(b"end", shared.getsockname())
        ended(*pids)


def test_multiprocessing(pipes, service):
    with udp() as shared, udp() as other:
        process = multiprocessing.get_context("fork").Process(
            target=lambda: shared.sendto(b"from a process", other.getsockname()))
        process.start()
        assert other.recvfrom(100) == (b"from a process", shared.getsockname())
        process.join()
        assert process.exitcode == 0


class EchoDatagrams(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"%d %s" % (os.getpid(), self.rfile.read()))


def test_forking_udp_server(pipes, service, monkeypatch):
    monkeypatch.setattr(socketserver.socket, "socket", usernet.socket)
    server = socketserver.ForkingUDPServer((ADDRESS, 0), EchoDatagrams)
    with serving(server), udp() as client:
        pids = set()
        for number in range(20):
            client.sendto(b"%d" % number, server.server_address)
            pid, data = client.recv(100).split()
            assert int(data) == number
            pids.add(int(pid))
        assert len(pids) == 20
        assert os.getpid() not in pids


# -- streams ---------------------------------------------------------------------------------------------------------


class EchoLines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%d %s" % (os.getpid(), line))


def test_forking_tcp_server(pipes, service, monkeypatch):
    monkeypatch.setattr(socketserver.socket, "socket", usernet.socket)
    server = socketserver.ForkingTCPServer((ADDRESS, 0), EchoLines)
    with serving(server):
        for _ in range(5):
            with (usernet.create_connection(server.server_address, PATIENCE_S) as first,
                  usernet.create_connection(server.server_address, PATIENCE_S) as second):
                pids = []
                for client in (first, second):
                    client.sendall(b"one\ntwo\n")
                    client.shutdown(std.SHUT_WR)
                    with client.makefile("rb") as file:
                        lines = [line.split() for line in file]
                    assert [data for _, data in lines] == [b"one", b"two"]
                    pids.append(int(lines[0][0]))
                assert len({os.getpid(), *pids}) == 3


class ForkingHTTPServer(socketserver.ForkingMixIn, http.server.HTTPServer):
    pass


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = bytes(200_000)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_forking_http_server(pipes, service, monkeypatch):
    monkeypatch.setattr(socketserver.socket, "socket", usernet.socket)
    monkeypatch.setattr(std, "getfqdn", lambda host: host)
    server = ForkingHTTPServer((ADDRESS, 0), Page)
    with serving(server):
        for _ in range(5):
            with usernet.create_connection(server.server_address, PATIENCE_S) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.0 200")
                assert answer.endswith(bytes(200_000))


def test_prefork_all_connections_are_accepted_by_the_children(service):
    server = usernet.create_server((ADDRESS, 0))
    server.settimeout(PATIENCE_S)

    def work() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                if (data := connection.recv(100)) == b"end":
                    return
                connection.sendall(b"%d %s" % (os.getpid(), data))

    pids = [child(work) for _ in range(4)]
    by: dict[int, int] = dict.fromkeys(pids, 0)
    made, deadline = 0, time.monotonic() + PATIENCE_S
    while made < 100 or (not all(by.values()) and time.monotonic() < deadline):
        with usernet.create_connection(server.getsockname(), PATIENCE_S) as client:
            client.sendall(b"%d" % made)
            pid, data = client.recv(100).split()
            assert int(data) == made
            by[int(pid)] += 1
        made += 1
    assert sum(by.values()) == made
    assert all(by.values()), "each of the waiting processes in turn"
    held = [usernet.create_connection(server.getsockname(), PATIENCE_S) for _ in range(20)]  # wait for a process
    for client in held[:16]:
        client.sendall(b"again")
    for client in held[16:]:
        client.sendall(b"end")
    ended(*pids)
    for client in held:
        client.close()
    server.close()


def test_connections_that_came_before_the_fork_are_accepted_by_the_child(service):
    with usernet.create_server((ADDRESS, 0)) as server:
        server.settimeout(PATIENCE_S)
        clients = [usernet.create_connection(server.getsockname(), PATIENCE_S) for _ in range(3)]

        def work() -> None:
            for _ in clients:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"hello")

        pid = child(work)
        for client in clients:
            with client:
                client.settimeout(PATIENCE_S)
                assert client.recv(10) == b"hello"
        ended(pid)


@pytest.fixture
def giving_back(monkeypatch) -> list[Callable[[], None]]:
    """What happens in a fork after the parent has taken its connections out of its backlog, before the service has
    them."""
    calls: list[Callable[[], None]] = []
    request = Connection.request

    def delayed(self: Connection, op: str, **fields: object) -> dict[str, object]:
        if op == "giveback":
            for call in calls:
                call()
        return request(self, op, **fields)

    monkeypatch.setattr(Connection, "request", delayed)
    return calls


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("ended_first", [False, True])
def test_connections_that_came_before_the_fork_are_not_lost_if_the_child_ends_at_once(
        pipes, service, giving_back, ended_first):
    """The child ends before the service has what the parent gives back to it, or after that. In the meantime octets
    come for one connection, and the other is reset."""
    with usernet.create_server((ADDRESS, 0), backlog=1) as server:
        server.settimeout(PATIENCE_S)
        first, second = (usernet.create_connection(server.getsockname(), PATIENCE_S) for _ in range(2))
        listener = server._box
        assert select.select([server], [], [], PATIENCE_S)[0]
        until(lambda: len(listener.incoming) == 2)
        goes, go = os.pipe()

        def meanwhile() -> None:
            assert select.select([server], [], [], 0)[0] == []
            first.sendall(b"hello")
            second.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
            second.close()
            if ended_first:
                os.write(go, b".")
                until(lambda: not listener.shared)

        giving_back.append(meanwhile)
        pid = child(lambda: os.read(goes, 1))
        if not ended_first:
            os.write(go, b".")
        accepted = [server.accept()[0] for _ in range(2)]
        ended(pid)
        assert accepted[0].getpeername() == first.getsockname()
        assert accepted[0].recv(10) == b"hello"
        with pytest.raises(ConnectionResetError):
            accepted[1].recv(10)
        assert not select.select([server], [], [], 0)[0]
        until(lambda: not listener.shared)
        with usernet.create_connection(server.getsockname(), PATIENCE_S), server.accept()[0]:
            assert listener.granting()[0] == (ACCEPT, ACCEPT_RECORD.pack(listener.handle, 0, 3, 3 + 1 + 1))
        for each in (first, *accepted):
            each.close()
        os.close(goes)
        os.close(go)


def test_connections_that_are_given_back_in_a_fork_end_with_their_listener(service, giving_back):
    server = usernet.create_server((ADDRESS, 0))
    with usernet.create_connection(server.getsockname(), PATIENCE_S) as client:
        assert select.select([server], [], [], PATIENCE_S)[0]
        goes, go = os.pipe()
        giving_back += [server.close, lambda: os.write(go, b".")]
        ended(child(lambda: os.read(goes, 1)))
        os.close(goes)
        os.close(go)
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_a_listener_whose_processes_end_one_after_the_other(service):
    server = usernet.create_server((ADDRESS, 0))
    name = server.getsockname()
    server.settimeout(PATIENCE_S)

    def work() -> None:
        connection, _ = server.accept()
        connection.sendall(b"hello")
        connection.close()

    pids = [child(work) for _ in range(3)]
    server.close()
    for _ in pids:
        with usernet.create_connection(name, PATIENCE_S) as client:
            assert client.recv(10) == b"hello"
    ended(*pids)
    deadline = time.monotonic() + PATIENCE_S
    with pytest.raises(ConnectionRefusedError):  # noqa: PT012
        while time.monotonic() < deadline:  # until the service knows that the last one has ended
            usernet.create_connection(name, PATIENCE_S).close()


def test_a_connection_that_a_process_got_but_did_not_accept_goes_to_another_when_it_ends(service):
    with usernet.create_server((ADDRESS, 0)) as server:
        server.settimeout(PATIENCE_S)
        got, told = os.pipe()

        def wait_without_accepting() -> None:
            assert select.select([server], [], [], PATIENCE_S)[0]  # so it asks for a connection, and gets it
            os.write(told, b".")
            signal.pause()

        pid = child(wait_without_accepting)
        with usernet.create_connection(server.getsockname(), PATIENCE_S) as client:
            assert os.read(got, 1) == b"."
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
                assert client.recv(10) == b"hello"


def test_a_connection_that_a_process_has_accepted_ends_with_it(service):
    with usernet.create_server((ADDRESS, 0)) as server:
        server.settimeout(PATIENCE_S)
        got, told = os.pipe()
        holding: list[usernet.socket] = []

        def accept() -> None:
            holding.append(server.accept()[0])
            os.write(told, b".")
            signal.pause()

        pid = child(accept)
        with usernet.create_connection(server.getsockname(), PATIENCE_S) as client:
            assert os.read(got, 1) == b"."
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert client.recv(10) == b""


def pair() -> tuple[usernet.socket, usernet.socket]:
    with usernet.create_server((ADDRESS, 0)) as server:
        first = usernet.create_connection(server.getsockname(), PATIENCE_S)
        second, _ = server.accept()
        second.settimeout(PATIENCE_S)
        return first, second


def test_parent_and_child_use_a_connection_in_turn(service):
    first, second = pair()
    for number in range(3):
        first.sendall(b"to the parent %d;to the child %d;" % (number, number))
        with second.makefile("rb", buffering=0) as file:
            assert second.recv(16) == b"to the parent %d;" % number
            second.sendall(b"<parent>")

            def work(number: int = number) -> None:
                assert second.recv(15) == b"to the child %d;" % number
                second.sendall(b"<child>")

            ended(child(work))
            second.sendall(b"<parent>")
            assert first.recv(23, std.MSG_WAITALL) == b"<parent><child><parent>"
            assert file.fileno() >= 0
    first.close()
    assert second.recv(1) == b""
    second.close()


def test_a_connection_of_a_killed_child_goes_on_in_its_parent(service):
    first, second = pair()
    ready, done = os.pipe()

    def work() -> None:
        second.sendall(b"child")
        assert second.recv(3) == b"abc"
        os.write(done, b"x")
        signal.pause()

    first.sendall(b"abcdef")
    pid = child(work)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    second.sendall(b"parent")
    assert first.recv(11, std.MSG_WAITALL) == b"childparent"
    assert second.recv(3, std.MSG_WAITALL) == b"def"
    first.close()
    second.close()


def test_two_processes_that_wait_on_one_connection(service):
    """Only one of them can have it, and the other is told."""
    first, second = pair()
    failed: list[int | None] = []

    def read() -> None:
        try:
            second.recv(1)
        except OSError as error:
            failed.append(error.errno)

    thread = threading.Thread(target=read)
    thread.start()
    readers = second._connection.readers
    while readers.lead():  # until the thread waits
        readers.leave()
        time.sleep(0.001)
    pid = child(lambda: second.sendall(second.recv(10)))
    thread.join(PATIENCE_S)
    assert failed == [errno.EBUSY]
    first.sendall(b"x")
    assert first.recv(1) == b"x"
    ended(pid)
    second.sendall(b"y")
    assert first.recv(1) == b"y"
    first.close()
    second.close()


def test_the_end_of_a_stream_is_when_its_last_process_has_closed_it(service):
    first, second = pair()
    ready, go = os.pipe()

    def work() -> None:
        os.read(ready, 1)
        second.sendall(b"still")

    pid = child(work)
    second.close()
    first.settimeout(0.1)
    with pytest.raises(TimeoutError):
        first.recv(1)
    os.write(go, b"x")
    first.settimeout(PATIENCE_S)
    ended(pid)
    assert first.recv(10) == b"still"
    assert first.recv(10) == b""
    first.close()


# -- the protocol ----------------------------------------------------------------------------------------------------


def test_only_who_knows_the_id_of_the_connection_can_share_its_sockets(service):
    with udp() as mine:
        stranger = usernet.client.connection.Connection(service.run_dir, "test")
        try:
            for owner in (1 << 40, stranger.id, 1):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    stranger.request("share", owner=owner, handles=[mine._box.handle])
            for op in ("take", "close", "getsockname"):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    stranger.request(op, handle=mine._box.handle)
            assert stranger.request("share", owner=mine._connection.id, handles=[])["shared"] == []
            assert stranger.request("share", owner=mine._connection.id, handles=[mine._box.handle + 1])["shared"] == []
        finally:
            stranger.close()
