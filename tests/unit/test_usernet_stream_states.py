"""What a program sees of a connection's states and ends: the same with the kernel's sockets and with a stack's."""
# ruff: noqa: F811

from __future__ import annotations

import asyncio
import errno
import itertools
import select
import socket as std
import struct
import threading
from contextlib import suppress

import pytest
from test_usernet_streams import PATIENCE_S, events, module, outcome, pair, service, shared, until  # noqa: F401

from usernet.client.readiness import ENDED, FAILED, HUNG_UP, READABLE, URGENT, WRITABLE
from usernet.client.streams import StreamDescription
from usernet.pipe.streams import STREAM_HEADER

IN, OUT, ERR, HUP, RDHUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP, select.POLLRDHUP
INFO = struct.Struct("=8B24I4Q6I4Q2I2Q4I")  # struct tcp_info up to tcpi_snd_wnd


def seen(endpoint, wanted):
    """Wait until poll shows this; what it shows."""
    until(lambda: events(endpoint, 0, IN | OUT | RDHUP) == [wanted])


def info(endpoint):
    return INFO.unpack(endpoint.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, INFO.size))


def test_a_reset_is_an_error_until_a_call_has_reported_it(pair):
    first, second = pair
    first.sendall(b"unread")
    until(lambda: second.recv(6, std.MSG_PEEK) == b"unread")
    second.close()
    seen(first, IN | OUT | ERR | HUP | RDHUP)
    assert first.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNRESET
    seen(first, IN | OUT | HUP | RDHUP)
    assert outcome(first.send, b"x") == ("BrokenPipeError", errno.EPIPE)
    assert first.recv(1) == b""


def test_sending_to_a_closed_connection_is_an_error(pair):
    first, second = pair
    second.close()
    seen(first, IN | OUT | RDHUP)
    first.send(b"x")
    seen(first, IN | OUT | ERR | HUP | RDHUP)
    assert outcome(first.send, b"x") == ("BrokenPipeError", errno.EPIPE)
    seen(first, IN | OUT | HUP | RDHUP)


def test_both_directions_shut_by_the_own_end_hang_up(pair):
    first, second = pair
    first.shutdown(std.SHUT_RDWR)
    seen(first, IN | OUT | HUP | RDHUP)
    seen(second, IN | OUT | RDHUP)


def test_a_connection_that_both_ends_have_closed_is_none_any_more(pair):
    first, second = pair
    first.shutdown(std.SHUT_WR)
    assert second.recv(1) == b""
    second.shutdown(std.SHUT_WR)
    assert first.recv(1) == b""
    until(lambda: outcome(first.shutdown, std.SHUT_WR) == outcome(second.shutdown, std.SHUT_RDWR)
          == ("OSError", errno.ENOTCONN))
    assert outcome(first.getpeername) == ("OSError", errno.ENOTCONN)


def test_after_a_refusal_there_is_no_connection(module):
    with module.socket() as bound, module.socket() as blocking, module.socket() as endpoint:
        bound.bind(("127.0.0.1", 0))
        assert blocking.connect_ex(bound.getsockname()) == errno.ECONNREFUSED
        assert outcome(blocking.recv, 1) == ("OSError", errno.ENOTCONN)
        assert outcome(blocking.send, b"x") == ("BrokenPipeError", errno.EPIPE)
        endpoint.setblocking(False)
        assert endpoint.connect_ex(bound.getsockname()) == errno.EINPROGRESS
        seen(endpoint, IN | OUT | ERR | HUP | RDHUP)
        assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNREFUSED
        assert endpoint.connect_ex(bound.getsockname()) == errno.ECONNABORTED  # which SO_ERROR has told


@pytest.fixture(params=["unbound", "bound", "chosen"])
def refused(module, request):
    """(a socket whose connection was refused, the address and the port that it was bound to)."""
    with module.socket() as endpoint, module.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        named = "0.0.0.0", 0
        if request.param != "unbound":
            with module.socket() as other:
                other.bind(("127.0.0.1", 0))
                named = "127.0.0.1", other.getsockname()[1] if request.param == "chosen" else 0
            endpoint.bind(named)
        assert endpoint.connect_ex(closed.getsockname()) == errno.ECONNREFUSED  # before a timeout, with which Python's
        endpoint.settimeout(PATIENCE_S)  # standard module does not connect again to get the result
        yield endpoint, *named


def test_a_socket_whose_connection_was_refused_has_no_peer_and_the_name_that_it_was_bound_to(refused):
    endpoint, address, port = refused
    assert endpoint.getsockname()[0] == address
    assert port in (0, endpoint.getsockname()[1])
    assert outcome(endpoint.getpeername) == ("OSError", errno.ENOTCONN)
    assert outcome(endpoint.accept) == ("OSError", errno.EINVAL)
    endpoint.setsockopt(std.IPPROTO_IP, std.IP_TTL, 9)
    endpoint.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
    assert info(endpoint)[0] == 7  # TCP_CLOSE
    assert outcome(endpoint.shutdown, std.SHUT_WR) == outcome(endpoint.recv, 1) == ("OSError", errno.ENOTCONN)
    assert outcome(endpoint.shutdown, std.SHUT_RD) == ("OSError", errno.ENOTCONN)
    assert endpoint.recv(1) == b""
    assert outcome(endpoint.send, b"x") == ("BrokenPipeError", errno.EPIPE)


def test_a_socket_whose_connection_was_refused_can_listen(module, refused):
    endpoint, address, port = refused
    endpoint.listen(3)
    assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN) == 1
    assert endpoint.getsockname()[0] == address
    assert port in (0, endpoint.getsockname()[1])
    assert events(endpoint, 0, IN | OUT | RDHUP) == []
    with module.create_connection(("127.0.0.1", endpoint.getsockname()[1]), PATIENCE_S) as other:
        accepted, peer = endpoint.accept()
        with accepted:
            assert peer == other.getsockname()
            assert outcome(endpoint.connect, peer) == ("OSError", errno.EISCONN)


def test_a_socket_whose_connection_was_refused_can_be_bound_unless_its_port_was_chosen(module, refused):
    endpoint, _, port = refused
    if port:
        assert outcome(endpoint.bind, ("127.0.0.1", 0)) == ("OSError", errno.EINVAL)
        return
    endpoint.bind(("127.0.0.3", 0))
    assert endpoint.getsockname()[0] == "127.0.0.3"
    with module.create_server(("127.0.0.1", 0)) as server:
        endpoint.connect(server.getsockname())
    assert endpoint.getsockname()[0] == "127.0.0.3"


def test_a_socket_whose_connection_was_refused_can_connect_elsewhere(module, refused):
    endpoint, _, port = refused
    with module.create_server(("127.0.0.1", 0)) as server:
        endpoint.connect(server.getsockname())
        assert endpoint.getpeername() == server.getsockname()
        assert port in (0, endpoint.getsockname()[1])
        for call in endpoint.listen, lambda: endpoint.bind(("127.0.0.1", 0)):
            assert outcome(call) == ("OSError", errno.EINVAL)


def test_a_refusal_that_no_connect_has_reported_leaves_the_socket_as_it_is(module):
    with module.socket() as bound, module.socket() as endpoint:
        bound.bind(("127.0.0.1", 0))
        endpoint.setblocking(False)
        assert endpoint.connect_ex(bound.getsockname()) == errno.EINPROGRESS
        seen(endpoint, IN | OUT | ERR | HUP | RDHUP)
        assert outcome(endpoint.listen) == ("OSError", errno.EINVAL)
        assert endpoint.connect_ex(bound.getsockname()) == errno.ECONNREFUSED
        endpoint.listen()


def test_after_a_reset_the_socket_is_still_one_of_a_connection(module):
    with module.create_server(("127.0.0.1", 0)) as server, module.socket() as first:
        first.connect(server.getsockname())
        second, _ = server.accept()
        second.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
        second.close()
        seen(first, IN | OUT | ERR | HUP | RDHUP)
        assert outcome(first.recv, 1) == ("ConnectionResetError", errno.ECONNRESET)
        assert outcome(first.listen) == ("OSError", errno.EINVAL)
        assert outcome(first.connect, server.getsockname()) == ("OSError", errno.EISCONN)


def test_the_smallest_window_clamp(module):
    with module.socket() as endpoint:
        for value, read in ((0, 0), (1, 1152), (5000, 5000)):
            endpoint.setsockopt(std.IPPROTO_TCP, std.TCP_WINDOW_CLAMP, value)
            assert endpoint.getsockopt(std.IPPROTO_TCP, std.TCP_WINDOW_CLAMP) == read


def test_tcp_info_of_a_listener_says_how_many_wait(module):
    with module.create_server(("127.0.0.1", 0), backlog=3) as server:
        assert (info(server)[0], info(server)[12:14]) == (10, (0, 3))
        with module.create_connection(server.getsockname()):
            until(lambda: info(server)[12:14] == (1, 3))


def test_tcp_info_counts_segments_and_octets(pair):
    first, second = pair
    first.sendall(b"x" * 5000)
    assert len(second.recv(5000, std.MSG_WAITALL)) == 5000
    until(lambda: info(first)[12] == 0)  # tcpi_unacked
    one, other = info(first), info(second)
    assert one[0] == other[0] == 1  # TCP_ESTABLISHED
    assert 5000 <= one[34] <= 5001  # tcpi_bytes_acked; Linux counts the SYN
    assert (one[48], one[49], other[35]) == (5000, 0, 5000)  # tcpi_bytes_sent, _bytes_retrans, _bytes_received
    assert one[36] >= 1  # tcpi_segs_out
    assert one[37] >= 1  # tcpi_segs_in
    assert (one[40], one[41]) == (0, 1)  # tcpi_data_segs_in, _data_segs_out
    assert (other[40], other[41]) == (1, 0)
    assert one[46] >= 1  # tcpi_delivered


# -- the program's buffers ---------------------------------------------------------------------------------------------


def failing(call, buffer, *arguments):
    """The errno of a call that fails; its handler can resize the buffer, which is the program's again."""
    try:
        call(buffer, *arguments)
    except OSError as error:
        del buffer[-1:]
        return error.errno
    raise AssertionError(f"{call} does not fail")


@pytest.mark.parametrize("kind", [std.SOCK_STREAM, std.SOCK_DGRAM])
def test_a_call_that_receives_nothing_gives_the_buffer_back(module, pair, kind):
    first = pair[0]
    with module.socket(module.AF_INET, kind) as datagrams:
        endpoint = first if kind == std.SOCK_STREAM else datagrams
        endpoint.setblocking(False)
        for call in endpoint.recv_into, endpoint.recvfrom_into:
            assert failing(call, bytearray(10)) == errno.EAGAIN
            assert failing(call, bytearray(10), 5) == errno.EAGAIN
        assert failing(lambda buffer: endpoint.recvmsg_into([bytearray(5), buffer]), bytearray(10)) == errno.EAGAIN
        buffer = bytearray(3)
        assert outcome(endpoint.recv_into, buffer, 4) == ("ValueError", None)
        buffer.clear()


def test_a_call_that_sends_nothing_gives_the_buffer_back(pair):
    first, second = pair
    first.setblocking(False)
    buffer = bytearray(1 << 16)

    def full():
        """Room may come once more, when the peer has acknowledged the first octets; an answer comes behind it."""
        with suppress(BlockingIOError):
            while True:
                first.send(buffer)
        info(first)
        return outcome(first.send, buffer) == ("BlockingIOError", errno.EAGAIN)

    until(full)
    for call in first.send, first.sendall, lambda buffer: first.sendmsg([buffer]):
        assert failing(call, buffer) == errno.EAGAIN
    second.close()  # with octets that were not read: a reset
    until(lambda: events(first, 0, ERR) != [])
    assert failing(first.send, buffer) == errno.ECONNRESET
    for call in first.send, first.sendall, lambda buffer: first.sendmsg([buffer]):
        assert failing(call, buffer) == errno.EPIPE
    assert failing(first.sendto, buffer, ("127.0.0.1", 9)) == errno.EPIPE


def test_asyncio_loses_a_connection_that_is_reset_while_octets_wait(pair):
    """Its transport empties its buffer in the handler of the error."""
    first, second = pair

    async def main():
        class Told(asyncio.Protocol):
            def connection_lost(self, reason):
                lost.set_result(type(reason))

        lost = asyncio.get_running_loop().create_future()
        transport, _ = await asyncio.get_running_loop().create_connection(Told, sock=first)
        transport.pause_reading()  # so that writing finds the reset
        transport.write(bytearray(32 << 20))
        second.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("@ii", 1, 0))
        second.close()
        return await lost

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) in (ConnectionResetError, BrokenPipeError)


def test_what_a_descriptor_shows_in_one_step_is_what_the_methods_say_one_by_one():
    values = {"have": (0, 2, 3), "written": (0, 20, 21, 30), "acked": (0, 30), "end": (None, 3), "ended": (False, True),
              "error": (0, errno.EPIPE), "urgent": (0, 2), "shut_for_writing": (False, True), "unsent_low": (0, 20),
              "low_water": (1, 3), "established": (False, True), "moved": (False, True)}
    stream = StreamDescription(threading.RLock(), 1, 0)
    stream.limit = 30
    shown = set()
    for chosen in itertools.product(*values.values()):
        for name, value in zip(values, chosen, strict=True):
            setattr(stream, name, value)
        hung_up = stream.hung_up()
        one_by_one = {READABLE: stream.ready(), WRITABLE: stream.writable() or hung_up, ENDED: stream.at_end,
                      HUNG_UP: hung_up, URGENT: stream.urgent_waits(), FAILED: stream.failed()}
        assert stream.events() == sum(event for event, holds in one_by_one.items() if holds), chosen
        shown.add(stream.events())
        for octets in (1, 3):
            come = not stream.moved and (stream.unread >= octets or stream.at_end_or_over)
            assert stream.lacks(octets) == (not come and not stream.error), chosen
    assert shown >= {0, READABLE, WRITABLE, READABLE | WRITABLE, READABLE | WRITABLE | HUNG_UP | ENDED, URGENT}


@pytest.mark.parametrize("taken", [1, 3, 4, 5, 8, 100])
@pytest.mark.parametrize("arrived", [1, 4, 9])
def test_octets_are_taken_in_any_portions(arrived, taken):
    stream, octets = StreamDescription(threading.RLock(), 1, 0), bytes(range(36))
    got = b""
    for offset in range(0, len(octets), arrived):
        stream.take_stream(STREAM_HEADER.pack(1, 0, offset) + octets[offset : offset + arrived])
        if offset % 2:
            continue  # so that several records wait at times
        peeked = stream.take(taken, peek=True)
        assert stream.take(taken, peek=False) == peeked == octets[len(got) :][: min(taken, offset + arrived - len(got))]
        got += peeked
        assert (stream.read, stream.unread) == (len(got), offset + arrived - len(got))
    while stream.unread:
        got += stream.take(taken, peek=False)
    assert got == octets
    assert stream.take(taken, peek=False) == b""
