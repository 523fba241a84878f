"""Urgent data, low-water marks and questions by ioctl: the same calls with the kernel's sockets and with a stack's."""
# ruff: noqa: F811

from __future__ import annotations

import array
import errno
import fcntl
import select
import socket as std
import struct
import sys

import pytest
from test_usernet_streams import PATIENCE_S, events, module, outcome, pair, service, shared, until  # noqa: F401

import usernet
from usernet.sockets.ioctl import SIOCATMARK, SIOCINQ, SIOCOUTQ, SIOCOUTQNSD

OOB, PEEK, WAITALL, DONTWAIT = std.MSG_OOB, std.MSG_PEEK, std.MSG_WAITALL, std.MSG_DONTWAIT
TCP_INQ, TCP_FASTOPEN_CONNECT = 36, 30  # linux/tcp.h
SOL_RAW, SOL_UDP, UDP_CORK, UDP_SEGMENT = 255, 17, 1, 103  # linux/udp.h
IN, PRI = select.POLLIN, select.POLLPRI


@pytest.fixture(autouse=True)
def waiting(request):
    """Sockets that block: with a timeout Python's own first wait until the stream itself can be read."""
    if "pair" in request.fixturenames:
        for endpoint in request.getfixturevalue("pair"):
            endpoint.settimeout(None)
            endpoint.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("@ll", PATIENCE_S, 0))


def asked(endpoint, request):
    """The answer of an ioctl."""
    answer = array.array("i", [-1])
    assert (fcntl if isinstance(endpoint, std.socket) else usernet).ioctl(endpoint, request, answer) == 0
    return answer[0]


def urgent(endpoint):
    """Wait until an urgent octet has come."""
    assert events(endpoint, wanted=PRI)[0] & PRI


def marked(pair, before=b"before", octet=b"!", after=b""):
    """(sender, receiver): an urgent octet waits between others."""
    sender, receiver = pair
    sender.sendall(before)
    sender.send(octet, OOB)
    if after:
        sender.sendall(after)
        until(lambda: after in receiver.recv(100, PEEK) or asked(receiver, SIOCINQ) >= 0)
    urgent(receiver)
    return sender, receiver


def test_the_urgent_octet_is_read_beside_the_stream(pair):
    sender, receiver = marked(pair)
    assert receiver.recv(1, OOB | PEEK) == b"!"
    assert receiver.recv(100, OOB) == b"!"
    assert outcome(receiver.recv, 1, OOB) == ("OSError", errno.EINVAL)
    assert events(receiver, 0, PRI) == []
    sender.sendall(b"after")
    assert receiver.recv(100) == b"before"  # up to the mark
    assert asked(receiver, SIOCATMARK) == 1
    assert receiver.recv(100) == b"after"
    assert asked(receiver, SIOCATMARK) == 0


def test_a_call_ends_at_the_mark_even_if_it_waits_for_all(pair):
    _, receiver = marked(pair, after=b"after")
    assert receiver.recv(11, WAITALL) == b"before"
    assert receiver.recv(5, WAITALL) == b"after"
    assert outcome(receiver.recv, 1, OOB) == ("OSError", errno.EINVAL)  # the mark was passed


def test_peeking_ends_at_the_mark(pair):
    _, receiver = marked(pair, after=b"after")
    assert receiver.recv(100, PEEK) == b"before"
    assert receiver.recv(100) == b"before"
    until(lambda: receiver.recv(100, PEEK) == b"after")
    assert asked(receiver, SIOCATMARK) == 1
    assert receiver.recv(1, OOB) == b"!"


def test_in_line(pair):
    sender, receiver = pair
    receiver.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
    assert receiver.getsockopt(std.SOL_SOCKET, std.SO_OOBINLINE) == 1
    marked(pair)
    assert outcome(receiver.recv, 1, OOB) == ("OSError", errno.EINVAL)
    assert asked(receiver, SIOCINQ) == 7
    assert receiver.recv(100) == b"before"
    assert asked(receiver, SIOCATMARK) == 1
    assert events(receiver, 0, PRI) == [PRI]
    sender.sendall(b"after")
    until(lambda: receiver.recv(100, PEEK) == b"!after")
    assert receiver.recv(100) == b"!after"
    assert asked(receiver, SIOCATMARK) == 0
    assert events(receiver, 0, PRI) == []


def test_a_later_mark_takes_the_place_of_the_first(pair):
    sender, receiver = marked(pair, b"a", b"1", b"b")
    assert receiver.recv(10) == b"a"
    sender.send(b"2", OOB)
    until(lambda: outcome(receiver.recv, 1, OOB | PEEK) == b"2")
    assert receiver.recv(10) == b"b"  # the first was dropped, because it was the next octet
    assert receiver.recv(1, OOB) == b"2"
    sender.sendall(b"c")
    assert receiver.recv(10) == b"c"


def test_an_earlier_urgent_octet_becomes_a_usual_one(pair):
    sender, receiver = marked(pair, b"a", b"1", b"b")
    sender.send(b"2", OOB)
    until(lambda: outcome(receiver.recv, 1, OOB | PEEK) == b"2")
    assert receiver.recv(10) == b"a1b"


def test_nothing_urgent(pair):
    sender, receiver = pair
    assert outcome(receiver.recv, 1, OOB) == ("OSError", errno.EINVAL)
    sender.sendall(b"x")
    assert receiver.recv(1) == b"x"
    assert asked(receiver, SIOCATMARK) == 0


def test_only_an_urgent_octet(pair):
    sender, receiver = marked(pair, b"", b"!")
    assert asked(receiver, SIOCINQ) == 0
    assert asked(receiver, SIOCATMARK) == 1
    assert receiver.recv(1, OOB) == b"!"
    sender.shutdown(std.SHUT_WR)
    assert receiver.recv(10) == b""


def test_an_urgent_octet_and_the_end(pair):
    sender, receiver = marked(pair, b"a", b"!")
    sender.close()
    assert receiver.recv(10) == b"a"
    assert receiver.recv(10) == b""


def test_a_call_that_found_nothing_does_not_find_it_again_and_again(pair):
    _, receiver = marked(pair, b"", b"!")
    assert outcome(receiver.recv, 1, DONTWAIT)[1] == errno.EAGAIN
    assert events(receiver, 0, IN | PRI) == []


def test_ancillary_flags_name_what_is_urgent(pair):
    _, receiver = marked(pair)
    assert receiver.recvmsg(10, 0, OOB)[2] & OOB
    assert receiver.recvmsg(10)[2] & OOB == 0


def test_options_are_inherited_from_the_listener(module):
    with module.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        server.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 7)
        server.setsockopt(std.IPPROTO_TCP, TCP_INQ, 1)
        with module.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            with accepted:
                assert accepted.getsockopt(std.SOL_SOCKET, std.SO_OOBINLINE) == 1
                assert accepted.getsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT) == 7
                assert accepted.getsockopt(std.IPPROTO_TCP, TCP_INQ) == 1


def test_a_low_water_mark(pair):
    sender, receiver = pair
    assert receiver.getsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT) == 1
    receiver.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 10)
    sender.sendall(b"12345")
    until(lambda: asked(receiver, SIOCINQ) == 5)
    assert events(receiver, 0, IN) == []
    assert receiver.recv(3) == b"123"  # as much as was asked for
    receiver.setblocking(False)
    assert receiver.recv(100) == b"45"  # what is there, where the call does not wait
    receiver.settimeout(None)
    sender.sendall(b"12345")
    until(lambda: asked(receiver, SIOCINQ) == 5)
    sender.sendall(b"67890abc")
    until(lambda: asked(receiver, SIOCINQ) == 13)
    assert events(receiver, wanted=IN) == [IN]
    assert receiver.recv(100) == b"1234567890abc"
    sender.sendall(b"end")
    sender.shutdown(std.SHUT_WR)
    assert events(receiver, wanted=IN)[0] & IN
    assert receiver.recv(100) == b"end"


def test_a_low_water_mark_above_the_buffer_makes_the_buffer_larger(pair):
    sender, receiver = pair
    receiver.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 200_000)
    receiver.settimeout(None)
    sender.settimeout(None)
    sender.sendall(b"x" * 200_000)
    assert events(receiver, wanted=IN) == [IN]
    assert len(receiver.recv(1 << 20)) >= 200_000


def test_low_water_values(module):
    with module.socket() as stream, module.socket(module.AF_INET, module.SOCK_DGRAM) as datagrams:
        for endpoint in (stream, datagrams):
            for value in (0, 1, 5):
                endpoint.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, value)
                assert endpoint.getsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT) == (value or 1)


def waiting_octets(received):
    """What the ancillary data of recvmsg say; (level, type, octets of the structure) are checked."""
    (level, kind, data), = received[1]
    assert (level, kind, len(data)) == (std.IPPROTO_TCP, TCP_INQ, 4)
    return int.from_bytes(data, sys.byteorder)


def test_recvmsg_says_how_many_octets_wait(pair):
    sender, receiver = pair
    assert receiver.getsockopt(std.IPPROTO_TCP, TCP_INQ) == 0
    receiver.setsockopt(std.IPPROTO_TCP, TCP_INQ, 1)
    assert receiver.getsockopt(std.IPPROTO_TCP, TCP_INQ) == 1
    sender.sendall(b"0123456789")
    until(lambda: asked(receiver, SIOCINQ) == 10)
    assert waiting_octets(receiver.recvmsg(4, 100, PEEK)) == 10
    assert waiting_octets(receiver.recvmsg(4, 100)) == 6
    assert waiting_octets(receiver.recvmsg_into([bytearray(2), bytearray(1)], 100)[:2]) == 3
    receiver.setsockopt(std.IPPROTO_TCP, TCP_INQ, 0)
    assert receiver.recvmsg(1, 100) == (b"7", [], 0, None)


def test_the_end_is_one_of_the_octets_that_wait(pair):
    sender, receiver = pair
    receiver.setsockopt(std.IPPROTO_TCP, TCP_INQ, 1)
    sender.sendall(b"abc")
    sender.shutdown(std.SHUT_WR)
    until(lambda: waiting_octets(receiver.recvmsg(1, 100, PEEK)) == 4)
    assert waiting_octets(receiver.recvmsg(2, 100)) == 2
    assert waiting_octets(receiver.recvmsg(2, 100)) == 1
    ended = receiver.recvmsg(2, 100)
    assert (ended[0], waiting_octets(ended)) == (b"", 1)


def test_octets_beyond_the_urgent_mark_wait_too(pair):
    _, receiver = marked(pair, b"abc", b"d", b"ef")
    receiver.setsockopt(std.IPPROTO_TCP, TCP_INQ, 1)
    until(lambda: waiting_octets(receiver.recvmsg(1, 100, PEEK)) == 6)
    assert waiting_octets(receiver.recvmsg(10, 100)) == 3
    assert waiting_octets(receiver.recvmsg(1, 100, OOB)) == 3
    assert waiting_octets(receiver.recvmsg(1, 100)) == 1


def test_a_small_control_buffer_cuts_the_number(pair):
    sender, receiver = pair
    receiver.setsockopt(std.IPPROTO_TCP, TCP_INQ, 1)
    sender.sendall(b"abcde")
    until(lambda: asked(receiver, SIOCINQ) == 5)
    number = (4).to_bytes(4, sys.byteorder)
    cut = receiver.recvmsg(1, 18)
    assert cut == (b"a", [(std.IPPROTO_TCP, TCP_INQ, number[:2])], std.MSG_CTRUNC, None)
    assert receiver.recvmsg(1) == (b"b", [], std.MSG_CTRUNC, None)


@pytest.mark.parametrize("value", [2, -1, b"\1", b"", b"\1\0\0\0", b"\1\0\0\0\0"])
@pytest.mark.parametrize("option", [(std.IPPROTO_TCP, TCP_INQ), (std.IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
                                    (std.SOL_SOCKET, std.SO_OOBINLINE), (std.SOL_SOCKET, std.SO_RCVLOWAT)])
def test_values_that_are_no_int_or_none_of_the_options(module, option, value):
    with module.socket() as endpoint:
        wrong = len(value) < 4 if isinstance(value, bytes) else option[0] == std.IPPROTO_TCP
        assert outcome(endpoint.setsockopt, *option, value) == (("OSError", errno.EINVAL) if wrong else None)


@pytest.mark.parametrize(("kind", "level", "name"), [
    (std.SOCK_DGRAM, std.IPPROTO_TCP, TCP_INQ), (std.SOCK_DGRAM, std.IPPROTO_TCP, std.TCP_NODELAY),
    (std.SOCK_DGRAM, SOL_RAW, 1), (std.SOCK_STREAM, SOL_UDP, UDP_SEGMENT), (std.SOCK_STREAM, SOL_UDP, UDP_CORK)])
def test_options_of_another_protocol(module, kind, level, name):
    with module.socket(module.AF_INET, kind) as endpoint:
        assert outcome(endpoint.setsockopt, level, name, 1) == ("OSError", errno.ENOPROTOOPT)
        assert outcome(endpoint.getsockopt, level, name) == ("OSError", errno.EOPNOTSUPP)


def test_a_call_for_no_octets_waits_until_there_are_some(pair):
    sender, receiver = pair
    for call in receiver.recvmsg, receiver.recvfrom:
        assert outcome(call, 0, *[0] * (call == receiver.recvmsg), DONTWAIT)[1] == errno.EAGAIN
    sender.sendall(b"abc")
    assert receiver.recvmsg(0, 0) == (b"", [], 0, None)
    assert receiver.recvfrom(0) == (b"", None)
    assert receiver.recv(100) == b"abc"


def test_queues_in_octets(pair):
    sender, receiver = pair
    assert asked(receiver, SIOCINQ) == 0
    sender.sendall(b"x" * 1000)
    until(lambda: asked(receiver, SIOCINQ) == 1000)
    until(lambda: asked(sender, SIOCOUTQ) == 0)
    sender.setblocking(False)
    sent = 1000

    def full():
        nonlocal sent
        while events(sender, 0.5, select.POLLOUT):
            sent += sender.send(b"x" * 65536)
        return asked(receiver, SIOCINQ) + asked(sender, SIOCOUTQ) == sent and asked(sender, SIOCOUTQNSD) > 0

    until(full)
    assert 0 < asked(sender, SIOCOUTQNSD) <= asked(sender, SIOCOUTQ)
    receiver.recv(700)
    assert asked(receiver, SIOCINQ) <= sent - 700


def test_questions_to_a_listener(module):
    with module.create_server(("127.0.0.1", 0)) as server:
        for request in (SIOCINQ, SIOCOUTQ, SIOCOUTQNSD):
            assert outcome(asked, server, request) == ("OSError", errno.EINVAL)
        assert asked(server, SIOCATMARK) == 0


@pytest.mark.parametrize("service", [None], indirect=True)
def test_answers_go_where_the_standard_function_puts_them(service):
    with usernet.socket() as endpoint:
        assert usernet.ioctl(endpoint.fileno(), SIOCINQ, bytes(4)) == bytes(4)
        assert outcome(usernet.ioctl, endpoint, SIOCINQ, 0) == ("OSError", errno.EFAULT)
    with std.socket() as kernels:
        assert usernet.ioctl(kernels, SIOCATMARK, bytes(4)) == bytes(4)
