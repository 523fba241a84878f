"""Descriptors: what select, poll, epoll and asyncio see of a usernet socket, beside the kernel's own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import selectors
import socket as std
import threading

import pytest
from usernet_service import ADDRESS, Service

import usernet

PATIENCE_S = 20


@pytest.fixture(scope="module")
def service():
    service = Service()
    yield service
    service.down()


@pytest.fixture
def pair(service, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))
    with bound() as first, bound() as second:
        yield first, second


def bound():
    endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
    endpoint.bind((ADDRESS, 0))
    endpoint.setblocking(False)
    return endpoint


def readable(*endpoints, timeout=0.0):
    return select.select(endpoints, [], [], timeout)[0]


def waited(endpoint):
    assert readable(endpoint, timeout=PATIENCE_S) == [endpoint]
    return endpoint


# -- levels ----------------------------------------------------------------------------------------------------------


def test_readable_as_long_as_something_is_queued(pair):
    first, second = pair
    assert readable(first) == []
    second.sendto(b"1", first.getsockname())
    second.sendto(b"2", first.getsockname())
    for expected in (b"1", b"2"):
        for _ in range(3):
            assert waited(first)
        assert first.recv(10, std.MSG_PEEK) == expected
        assert first.recv(10) == expected
    assert readable(first) == []
    with pytest.raises(BlockingIOError):
        first.recv(10)


def test_datagrams_queued_before_the_first_fileno_count(pair):
    first, second = pair
    second.sendto(b"early", first.getsockname())
    first.settimeout(PATIENCE_S)
    assert first.recv(10, std.MSG_PEEK) == b"early"
    assert readable(first) == [first]


@pytest.mark.parametrize("call", [
    lambda endpoint: endpoint.recv(10),
    lambda endpoint: endpoint.send(b"x"),
    lambda endpoint: os_error(endpoint.getsockopt(std.SOL_SOCKET, std.SO_ERROR)),
])
def test_readable_as_long_as_an_error_is_pending(pair, call):
    first, _ = pair
    first.connect((ADDRESS, 1))
    first.send(b"x")
    waited(first)
    with pytest.raises(ConnectionRefusedError):
        call(first)
    assert readable(first) == []


def os_error(number):
    raise OSError(number, os.strerror(number))


def test_taking_many_clears_it(pair):
    first, second = pair
    second.sendmany([(b"x", first.getsockname())] * 10)
    got = 0
    while got < 10:
        got += len(waited(first).recvmany(100))
    assert readable(first) == []


def test_always_writable(pair):
    first, _ = pair
    assert select.select([], [first], [], 0)[1] == [first]


def test_one_descriptor_for_life(pair):
    first, _ = pair
    descriptor = first.fileno()
    assert first.fileno() == descriptor
    assert not os.get_inheritable(descriptor)
    first.close()
    assert first.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_descriptor_that_was_read_from_by_mistake_recovers(pair):
    first, second = pair
    second.sendto(b"1", first.getsockname())
    os.read(waited(first).fileno(), 8)
    assert first.recv(10) == b"1"
    second.sendto(b"2", first.getsockname())
    assert waited(first).recv(10) == b"2"


@pytest.mark.parametrize("selector", [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector])
def test_ours_and_the_kernels_in_one_selector(pair, selector):
    first, second = pair
    ours, theirs = std.socketpair()
    with ours, theirs, selector() as watching:
        watching.register(first, selectors.EVENT_READ, "stack")
        watching.register(theirs, selectors.EVENT_READ, "kernel")
        watching.register(second, selectors.EVENT_READ | selectors.EVENT_WRITE, "both")

        def events():
            return {(key.data, mask) for key, mask in watching.select(PATIENCE_S)}

        assert events() == {("both", selectors.EVENT_WRITE)}
        second.sendto(b"x", first.getsockname())
        waited(first)
        ours.send(b"x")
        assert events() == {("both", selectors.EVENT_WRITE), ("stack", selectors.EVENT_READ),
                            ("kernel", selectors.EVENT_READ)}
        theirs.recv(10)
        first.recv(10)
        first.sendto(b"y", second.getsockname())
        waited(second)
        assert events() == {("both", selectors.EVENT_READ | selectors.EVENT_WRITE)}


def test_many_sockets_each_for_itself(pair):
    _, second = pair
    with contextlib.ExitStack() as stack:
        endpoints = [stack.enter_context(bound()) for _ in range(50)]
        assert readable(*endpoints) == []
        for endpoint in endpoints[::7]:
            second.sendto(b"x", endpoint.getsockname())
        for endpoint in endpoints[::7]:
            waited(endpoint)
        assert readable(*endpoints) == endpoints[::7]


# -- the thread behind it ----------------------------------------------------------------------------------------------


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("usernet ")]


def no_reader_threads():
    for thread in reader_threads():
        thread.join(PATIENCE_S)
    return reader_threads() == []


def test_blocking_use_has_no_thread_and_waiting_for_descriptors_one(service):
    usernet.Stack(run_dir=service.run_dir).close()  # the other tests' connection
    assert no_reader_threads()
    with usernet.Stack(run_dir=service.run_dir) as stack, \
            stack.socket(std.AF_INET, std.SOCK_DGRAM) as one, stack.socket(std.AF_INET, std.SOCK_DGRAM) as other:
        one.bind((ADDRESS, 0))
        other.sendto(b"x", one.getsockname())
        assert one.recv(10) == b"x"
        assert reader_threads() == []
        assert one.fileno() != other.fileno()
        assert len(reader_threads()) == 1
    assert no_reader_threads()


def test_a_blocked_leader_hands_over(pair):
    """A thread waits inside, another asks for a descriptor: both get theirs."""
    first, second = pair
    second.settimeout(PATIENCE_S)
    got = []
    blocked = threading.Thread(target=lambda: got.append(second.recv(10)))
    blocked.start()
    with bound() as third:
        third.sendto(b"for select", first.getsockname())
        assert waited(first).recv(10) == b"for select"
        third.sendto(b"for recv", second.getsockname())
        blocked.join(PATIENCE_S)
    assert got == [b"for recv"]


def test_blocking_calls_go_on_beside_it(pair):
    first, second = pair
    first.fileno()
    first.settimeout(PATIENCE_S)
    for number in range(200):
        second.sendto(b"%d" % number, first.getsockname())
        assert first.recv(10) == b"%d" % number
    first.settimeout(0.01)
    with pytest.raises(TimeoutError):
        first.recv(10)


def test_descriptors_outlive_the_service(service, pair):
    first, second = pair
    assert readable(first) == []
    service.restart()
    second.sendto(b"x", first.getsockname())
    assert waited(first).recv(10) == b"x"
    assert readable(first) == []


def test_a_stack_taken_down_is_told_by_the_descriptor(monkeypatch):
    monkeypatch.setattr("usernet.client.connection.ALIVE_INTERVAL_S", 0.05)
    service = Service()
    endpoint = usernet.Stack(run_dir=service.run_dir).socket(std.AF_INET, std.SOCK_DGRAM)
    endpoint.bind((ADDRESS, 0))
    endpoint.setblocking(False)
    endpoint.fileno()
    service.down()
    with pytest.raises(OSError, match="down") as failure:
        waited(endpoint).recv(10)
    assert failure.value.errno == errno.ENETDOWN
    endpoint.close()


def test_a_child_has_no_part_in_the_parents_descriptors(pair):
    first, second = pair
    descriptor = first.fileno()
    pid = os.fork()
    if not pid:
        try:
            os.fstat(descriptor)
        except OSError:
            os._exit(0 if first.fileno() >= 0 else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    second.sendto(b"x", first.getsockname())
    assert waited(first).recv(10) == b"x"


# -- asyncio -----------------------------------------------------------------------------------------------------------


def test_asyncio_socket_calls(pair):
    first, second = pair

    async def main():
        loop = asyncio.get_running_loop()
        for number in range(100):
            receiving = asyncio.ensure_future(loop.sock_recvfrom(first, 100))
            await loop.sock_sendto(second, b"%d" % number, first.getsockname())
            assert await receiving == (b"%d" % number, second.getsockname())
        await loop.sock_connect(second, first.getsockname())
        await loop.sock_sendto(first, b"back", second.getsockname())
        assert await loop.sock_recv(second, 2) == b"ba"
        buffer = bytearray(10)
        await loop.sock_sendto(second, b"into", first.getsockname())
        assert await loop.sock_recvfrom_into(first, buffer) == (4, second.getsockname())

    asyncio.run(asyncio.wait_for(main(), 60))


class Echo(asyncio.DatagramProtocol):
    def __init__(self):
        self.got, self.errors = asyncio.Queue(), asyncio.Queue()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.got.put_nowait((data, peer))
        if not data.startswith(b"echo"):
            self.transport.sendto(b"echo " + data, peer)

    def error_received(self, error):
        self.errors.put_nowait(error)


def test_asyncio_datagram_endpoints(pair):
    first, second = pair

    async def main():
        loop = asyncio.get_running_loop()
        server, echo = await loop.create_datagram_endpoint(Echo, sock=first)
        second.connect(first.getsockname())
        client, answers = await loop.create_datagram_endpoint(Echo, sock=second)
        assert server.get_extra_info("sockname") == client.get_extra_info("peername") == first.getsockname()
        for number in range(100):
            client.sendto(b"%d" % number)
        for number in range(100):
            assert await answers.got.get() == (b"echo %d" % number, server.get_extra_info("sockname"))
        assert echo.got.qsize() == 100
        server.close()
        await asyncio.sleep(0)
        client.sendto(b"anybody?")
        assert isinstance(await answers.errors.get(), ConnectionRefusedError)
        client.close()
        await asyncio.sleep(0)
        assert (first.fileno(), second.fileno()) == (-1, -1)

    asyncio.run(asyncio.wait_for(main(), 60), debug=True)


def test_a_loop_that_outruns_the_service_loses_nothing_of_what_was_accepted(service, pair):
    """While the service hangs its pipe fills; asyncio waits for room and goes on."""
    first, second = pair

    async def main():
        loop = asyncio.get_running_loop()
        first.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1 << 20)
        second.sendto(b"first", first.getsockname())
        assert await loop.sock_recv(first, 10) == b"first"
        os.kill(service.process.pid, 19)  # SIGSTOP
        loop.call_later(0.3, os.kill, service.process.pid, 18)  # SIGCONT
        for number in range(300):
            await loop.sock_sendto(second, b"%d" % number, first.getsockname())
        return [int(await loop.sock_recv(first, 10)) for _ in range(300)]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == list(range(300))
