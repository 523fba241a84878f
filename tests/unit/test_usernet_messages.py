"""Ancillary data, the error queue, options, shutdown and duplicates: the kernel's own sockets are the oracle.

Each function is run with a socket of the kernel's on its loopback interface and with one of the stack's.
"""

from __future__ import annotations

import errno
import os
import select
import socket as std
import threading
import time
from struct import Struct, pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usernet_service import ADDRESS, Service

import usernet
from usernet.pipe.messages import CREDIT, DATAGRAM_HEADER, DATAGRAM_OVERHEAD, datagram_header
from usernet.sockets import cmsg

IP = std.IPPROTO_IP
SOL = std.SOL_SOCKET
INT = Struct("=i")
PKTINFO = Struct("=i4s4s")
EXTENDED_ERROR = Struct("=IBBBBIIH2x4s8x")
IP_PKTINFO, IP_RECVERR, IP_RECVTTL = usernet.IP_PKTINFO, usernet.IP_RECVERR, usernet.IP_RECVTTL
PATIENCE_S = 20


@pytest.fixture(scope="module")
def service():
    service = Service()
    yield service
    service.down()


@pytest.fixture(autouse=True)
def _which_stack(service, monkeypatch):
    monkeypatch.setenv("USERNET_DIR", str(service.run_dir))


def bound(module):
    endpoint = module.socket(std.AF_INET, std.SOCK_DGRAM)
    endpoint.bind((ADDRESS if module is usernet else "127.0.0.1", 0))
    endpoint.settimeout(PATIENCE_S)
    return endpoint


def outcome(what, module):
    endpoint = bound(module)
    try:
        return what(endpoint)
    except Exception as error:
        return type(error), error.args
    finally:
        endpoint.close()


def same(what):
    """The stack's outcome, which is the kernel's."""
    ours = outcome(what, usernet)
    assert ours == outcome(what, std)
    return ours


def to_itself(endpoint, data=b"datagram", ancillary=()):
    assert endpoint.sendmsg([data[:3], bytearray(data[3:])], ancillary, 0, endpoint.getsockname()) == len(data)


def everything_came(endpoint):
    """Wait until what was sent before has arrived: it goes the same way as what another socket sends to itself."""
    with type(endpoint)(std.AF_INET, std.SOCK_DGRAM) as last:
        last.bind((endpoint.getsockname()[0], 0))
        last.settimeout(PATIENCE_S)
        to_itself(last)
        assert last.recv(100) == b"datagram"


# -- recvmsg and sendmsg -----------------------------------------------------------------------------------------------


def test_a_message_in_parts_and_into_parts():
    def what(endpoint):
        to_itself(endpoint)
        buffers = [bytearray(3), bytearray(2), bytearray(9)]
        octets, ancillary, flags, sender = endpoint.recvmsg_into(buffers, 100)
        return octets, buffers, ancillary, flags, sender == endpoint.getsockname()

    assert same(what) == (8, [b"dat", b"ag", b"ram" + bytes(6)], [], 0, True)


def test_connected_sockets_need_no_address():
    def what(endpoint):
        endpoint.connect(endpoint.getsockname())
        return endpoint.sendmsg([b"x"]), endpoint.recvmsg(10)[:3]

    same(what)


@pytest.mark.parametrize("size", [0, 3, 8, 9])
def test_a_message_that_is_cut_says_so(size):
    def what(endpoint):
        to_itself(endpoint)
        return endpoint.recvmsg(size)[:3]

    same(what)


@pytest.mark.parametrize("sizes", [(0,), (3,), (3, 2), (3, 9)])
def test_with_msg_trunc_a_message_into_parts_tells_the_real_length(sizes):
    def what(endpoint):
        to_itself(endpoint)
        buffers = [bytearray(size) for size in sizes]
        return endpoint.recvmsg_into(buffers, 0, std.MSG_TRUNC)[:3], buffers

    assert same(what)[0][0] == len(b"datagram")


@pytest.mark.parametrize("room", [0, 8, 15, 16, 18, 20, 24, 40, 47, 48, 100])
def test_ancillary_data_that_does_not_fit_is_cut_as_by_the_kernel(room):
    def what(endpoint):
        for option in (IP_RECVTTL, std.IP_RECVTOS):
            endpoint.setsockopt(IP, option, 1)
        to_itself(endpoint, ancillary=[(IP, std.IP_TTL, INT.pack(9)), (IP, std.IP_TOS, INT.pack(0x20))])
        return endpoint.recvmsg(100, room)[:3]

    same(what)


@pytest.mark.parametrize("ancillary", [
    [(IP, std.IP_TTL, INT.pack(0))], [(IP, std.IP_TTL, INT.pack(256))], [(IP, std.IP_TTL, b"\x01")],
    [(IP, std.IP_TTL, INT.pack(255))], [(IP, std.IP_TOS, INT.pack(-1))], [(IP, std.IP_TOS, b"\x10")],
    [(IP, std.IP_TOS, b"")], [(IP, 99, INT.pack(1))], [(SOL, 99, INT.pack(1))], [(77, 1, b"")],
    [(IP, IP_PKTINFO, PKTINFO.pack(0, bytes(4), bytes(4)))], [(IP, IP_PKTINFO, b"short")],
    [(IP, IP_PKTINFO, PKTINFO.pack(0, bytes([192, 0, 2, 1]), bytes(4)))],
    [(IP, IP_PKTINFO, PKTINFO.pack(4711, bytes(4), bytes(4)))],
])
def test_ancillary_data_of_sendmsg(ancillary):
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVTTL, 1)
        endpoint.setsockopt(IP, std.IP_RECVTOS, 1)
        to_itself(endpoint, ancillary=ancillary)
        return endpoint.recvmsg(100, 100)[:3]

    same(what)


def test_packet_info_tells_the_address_that_was_asked_and_chooses_the_one_that_answers():
    def what(endpoint):
        with type(endpoint)(std.AF_INET, std.SOCK_DGRAM) as server:
            server.settimeout(PATIENCE_S)
            server.bind(("0.0.0.0", 0))
            server.setsockopt(IP, IP_PKTINFO, 1)
            endpoint.sendto(b"question", ("127.0.0.3", server.getsockname()[1]))
            _, [(level, kind, info)], flags, peer = server.recvmsg(100, 100)
            _, local, asked = PKTINFO.unpack(info)
            answer = [(IP, IP_PKTINFO, PKTINFO.pack(0, local, bytes(4)))]
            server.sendmsg([b"answer"], answer, 0, peer)
            return level, kind, local, asked, flags, endpoint.recvfrom(100)[1][0]

    assert same(what) == (IP, IP_PKTINFO, bytes([127, 0, 0, 3]), bytes([127, 0, 0, 3]), 0, "127.0.0.3")


def test_rfc1122_3_4_packet_info_tells_the_interface_and_both_addresses():
    ours, group = bytes([10, 0, 0, 2]), bytes([224, 0, 0, 9])
    record = datagram_header(1, bytes([10, 0, 0, 1]), 53, group, 64, 0, 0, 2)
    assert cmsg.told(cmsg.WANTED[IP_PKTINFO], record, ours) == [
        (IP, IP_PKTINFO, PKTINFO.pack(2, ours, group))]


@given(record=st.binary(min_size=DATAGRAM_HEADER.size, max_size=40), wanted=st.integers(0, 7),
       room=st.integers(0, 100))
def test_whatever_came_in_can_be_told(record, wanted, room):
    fitting, cut = cmsg.fit(cmsg.told(wanted, record, bytes(4)), room)
    assert sum(std.CMSG_SPACE(len(data)) for _, _, data in fitting[:-1]) <= room
    assert cut or len(fitting) == bin(wanted).count("1")


@given(header=st.binary(min_size=DATAGRAM_HEADER.size, max_size=DATAGRAM_HEADER.size),
       ttl=st.none() | st.integers(1, 255), tos=st.none() | st.integers(0, 255))
def test_steering_changes_ttl_and_tos_only(header, ttl, tos):
    before, after = DATAGRAM_HEADER.unpack(header), DATAGRAM_HEADER.unpack(cmsg.Steering(ttl, tos).header(header))
    assert (after[:2], after[5:]) == (before[:2], before[5:])
    assert after[3] == (before[3] if ttl is None else ttl)
    assert (after[4], after[2]) == ((before[4], before[2]) if tos is None else (tos, 1))


# -- the error queue ---------------------------------------------------------------------------------------------------


def errors_of(endpoint, count):
    """That many errors, as (errno, origin, type, code, info, data, family of the offender), payload, target, flags."""
    found = []
    while len(found) < count:
        assert select.select([endpoint], [], [], PATIENCE_S)[0]
        data, [(level, kind, error)], flags, target = endpoint.recvmsg(200, 200, std.MSG_ERRQUEUE)
        assert (level, kind) == (IP, IP_RECVERR)
        number, origin, icmp_type, code, _, info, more, family, offender = EXTENDED_ERROR.unpack(error)
        assert offender == (std.inet_aton(target[0]) if family else bytes(4))
        found.append((number, origin, icmp_type, code, info, more, family, data, target[1], flags))
    return found


def test_a_refusal_reaches_an_unconnected_socket_that_asks_for_errors():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        endpoint.sendto(b"anybody there?", (endpoint.getsockname()[0], 1))
        found = errors_of(endpoint, 1)
        # Reading the queue has settled the pending error, too.
        return found, endpoint.getsockopt(SOL, std.SO_ERROR), select.select([endpoint], [], [], 0)[0]

    ours = same(what)
    assert ours[0] == [(errno.ECONNREFUSED, 2, 3, 3, 0, 0, std.AF_INET, b"anybody there?", 1, std.MSG_ERRQUEUE)]
    assert ours[1:] == (0, [])


def test_a_refusal_is_raised_first_and_stays_in_the_queue():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        endpoint.connect((endpoint.getsockname()[0], 1))
        endpoint.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            endpoint.recv(10)
        return errors_of(endpoint, 1)

    same(what)


def test_errors_are_told_one_by_one_and_the_socket_fails_until_the_last_is_taken():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        for number in (b"1", b"2"):
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                try:
                    endpoint.sendto(number, (endpoint.getsockname()[0], 1))
                    break
                except ConnectionRefusedError:
                    continue
        everything_came(endpoint)
        first = errors_of(endpoint, 1)
        failing = endpoint.getsockopt(SOL, std.SO_ERROR)
        return first, failing, errors_of(endpoint, 1), endpoint.getsockopt(SOL, std.SO_ERROR)

    assert same(what)[1] == errno.ECONNREFUSED


def test_a_datagram_beyond_the_limit_is_told_with_the_limit():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        endpoint.setsockopt(IP, usernet.IP_MTU_DISCOVER, 2)  # IP_PMTUDISC_DO
        with pytest.raises(OSError, match="too long"):
            endpoint.sendto(bytes(65508), ("127.0.0.1", 9))
        return endpoint.recvmsg(100, 100, std.MSG_ERRQUEUE)

    _, [(_, _, error)], _, target = same(what)
    assert EXTENDED_ERROR.unpack(error)[:6] == (errno.EMSGSIZE, 1, 0, 0, 0, 65535)
    assert target == ("127.0.0.1", 0)


def test_without_the_option_nothing_is_queued_and_switching_it_off_empties_the_queue():
    def what(endpoint):
        endpoint.connect((endpoint.getsockname()[0], 1))
        results = []
        for option in (0, 1):
            endpoint.setsockopt(IP, IP_RECVERR, option)
            endpoint.settimeout(PATIENCE_S)
            endpoint.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                endpoint.recv(10)
            endpoint.setsockopt(IP, IP_RECVERR, 0)
            endpoint.settimeout(None)
            results.append(outcome_of(endpoint.recvmsg, 10, 100, std.MSG_ERRQUEUE))
        return results

    assert same(what) == [(BlockingIOError, errno.EAGAIN)] * 2


def test_waiting_for_an_error_with_a_timeout():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        endpoint.settimeout(0.02)
        with pytest.raises(TimeoutError):
            endpoint.recvmsg(10, 100, std.MSG_ERRQUEUE)
        endpoint.settimeout(PATIENCE_S)
        endpoint.sendto(b"x", (endpoint.getsockname()[0], 1))
        return endpoint.recvmsg(10, 100, std.MSG_ERRQUEUE)[0]

    assert same(what) == b"x"


def outcome_of(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return type(error), error.errno


def test_plain_recv_takes_from_the_error_queue_as_well():
    def what(endpoint):
        endpoint.setsockopt(IP, IP_RECVERR, 1)
        endpoint.sendto(b"lost", (endpoint.getsockname()[0], 1))
        assert select.select([endpoint], [], [], PATIENCE_S)[0]
        data, target = endpoint.recvfrom(3, std.MSG_ERRQUEUE)
        endpoint.settimeout(None)
        return data, target[1], outcome_of(endpoint.recv, 10, std.MSG_ERRQUEUE)

    assert same(what) == (b"los", 1, (BlockingIOError, errno.EAGAIN))


# -- datagrams in pieces -----------------------------------------------------------------------------------------------

CORK = (17, usernet.UDP_CORK)


def pieces(*sent):
    """(data, flags) or a value for UDP_CORK, in turn; then what comes of it, or the errno."""
    def what(endpoint):
        name, outcomes = endpoint.getsockname(), []
        for each in sent:
            if isinstance(each, int):
                endpoint.setsockopt(*CORK, each)
            else:
                outcomes.append(outcome_of(endpoint.sendto, *each, name))
        everything_came(endpoint)
        endpoint.setblocking(False)
        while True:
            try:
                data, sender = endpoint.recvfrom(1 << 16)
                outcomes.append((len(data), data[:10], sender == name))
            except BlockingIOError:
                return outcomes, endpoint.getsockopt(*CORK)

    return what


@pytest.mark.parametrize("sent", [
    [(b"one ", std.MSG_MORE), (b"two ", std.MSG_MORE), (b"three", 0), (b"next", 0)],
    [(b"", std.MSG_MORE), (b"end", 0)], [(b"begun", std.MSG_MORE)], [(b"begun", std.MSG_MORE), (b"", 0)],
    [1, (b"a", 0), (b"b", std.MSG_MORE), (b"c", 0), 0, (b"d", 0)], [1, (b"held", 0)], [1, 0], [1, (b"", 0), 0],
    [(b"a", std.MSG_MORE), 1, 0], [(bytes(65000), std.MSG_MORE), (bytes(507), 0)],
    [(bytes(65000), std.MSG_MORE), (bytes(508), 0), (b"afresh", 0)],
], ids=range(11))
def test_udp_7_a_datagram_in_pieces(sent):
    same(pieces(*sent))


def test_udp_7_the_first_piece_says_where_to_and_how():
    def what(endpoint):
        with type(endpoint)(std.AF_INET, std.SOCK_DGRAM) as other:
            endpoint.setsockopt(IP, IP_RECVTTL, 1)
            other.sendmsg([b"first "], [(IP, std.IP_TTL, INT.pack(9))], std.MSG_MORE, endpoint.getsockname())
            other.sendto(b"second", (endpoint.getsockname()[0], 1))
            return endpoint.recvmsg(100, 100)[:2]

    assert same(what) == (b"first second", [(IP, std.IP_TTL, INT.pack(9))])


def test_a_piece_without_a_destination():
    def what(endpoint):
        to_port_0 = outcome_of(endpoint.sendto, b"x", std.MSG_MORE, ("127.0.0.1", 0))
        return outcome_of(endpoint.send, b"x", std.MSG_MORE), to_port_0

    same(what)


# -- options -----------------------------------------------------------------------------------------------------------

OPTIONS = [
    lambda s: s.getsockopt(SOL, std.SO_TYPE),
    lambda s: s.getsockopt(SOL, std.SO_DOMAIN),
    lambda s: s.getsockopt(SOL, std.SO_PROTOCOL),
    lambda s: s.getsockopt(SOL, std.SO_REUSEPORT),
    lambda s: (s.setsockopt(SOL, std.SO_REUSEPORT, 1), s.getsockopt(SOL, std.SO_REUSEPORT)),
    lambda s: (s.setsockopt(SOL, std.SO_SNDBUF, 20000), s.getsockopt(SOL, std.SO_SNDBUF)),
    lambda s: s.getsockopt(SOL, std.SO_ERROR),
    lambda s: s.getsockopt(SOL, std.SO_RCVTIMEO, 16),
    lambda s: (s.setsockopt(SOL, std.SO_RCVTIMEO, pack("@ll", 3, 300000)), s.getsockopt(SOL, std.SO_RCVTIMEO, 16)),
    lambda s: (s.setsockopt(SOL, std.SO_SNDTIMEO, pack("@ll", 70, 0)), s.getsockopt(SOL, std.SO_SNDTIMEO)),
    lambda s: (s.setsockopt(SOL, std.SO_SNDTIMEO, pack("@ll", 1, 0)), s.setsockopt(SOL, std.SO_SNDTIMEO, bytes(16)),
               s.getsockopt(SOL, std.SO_SNDTIMEO, 16)),
    lambda s: s.setsockopt(SOL, std.SO_RCVTIMEO, 5),
    lambda s: s.setsockopt(SOL, std.SO_RCVTIMEO, b"short"),
    lambda s: s.setsockopt(SOL, std.SO_RCVTIMEO, pack("@ll", 0, 1_000_000)),
    lambda s: s.setsockopt(SOL, std.SO_RCVTIMEO, pack("@ll", 0, -1)),
    lambda s: (s.setsockopt(SOL, std.SO_BINDTODEVICE, b""), s.getsockopt(SOL, std.SO_BINDTODEVICE, 16)),
    lambda s: s.getsockopt(IP, std.IP_TTL),
    lambda s: (s.setsockopt(IP, std.IP_TTL, -1), s.getsockopt(IP, std.IP_TTL)),
    lambda s: s.setsockopt(IP, std.IP_TTL, 0),
    lambda s: (s.setsockopt(IP, std.IP_TOS, 0x10), s.getsockopt(IP, std.IP_TOS)),
    lambda s: s.getsockopt(IP, usernet.IP_MTU),
    lambda s: s.getsockopt(IP, usernet.IP_MTU_DISCOVER),
    lambda s: s.getsockopt(IP, IP_RECVERR),
    lambda s: (s.setsockopt(IP, IP_RECVERR, 1), s.getsockopt(IP, IP_RECVERR)),
    *[lambda s, o=option: (s.getsockopt(IP, o), s.setsockopt(IP, o, 5), s.getsockopt(IP, o, 4), s.setsockopt(IP, o, 0),
                           s.getsockopt(IP, o)) for option in (IP_PKTINFO, IP_RECVTTL, std.IP_RECVTOS)],
    lambda s: (s.setsockopt(IP, IP_PKTINFO, b"\x01"), s.getsockopt(IP, IP_PKTINFO)),
    lambda s: s.setsockopt(IP, IP_PKTINFO, b""),
    lambda s: s.setsockopt(SOL, std.SO_BROADCAST, None),
    lambda s: (s.setsockopt(SOL, std.SO_BROADCAST, True), s.getsockopt(SOL, std.SO_BROADCAST),
               s.setsockopt(SOL, std.SO_BROADCAST, False), s.getsockopt(SOL, std.SO_BROADCAST)),
    lambda s: (s.setsockopt(SOL, std.SO_REUSEADDR, True), s.setsockopt(SOL, std.SO_REUSEPORT, True),
               s.getsockopt(SOL, std.SO_REUSEADDR, 4), s.getsockopt(SOL, std.SO_REUSEPORT, 4)),
    lambda s: (s.setsockopt(IP, IP_RECVTTL, True), s.getsockopt(IP, IP_RECVTTL)),
    lambda s: s.setsockopt(SOL, std.SO_BROADCAST, 1.5),
    lambda s: s.setsockopt(SOL, std.SO_BROADCAST, "1"),
    lambda s: s.setsockopt(IP, std.IP_TOS, std.IPPROTO_UDP),
    lambda s: s.setsockopt(SOL, std.SO_REUSEADDR, 1 << 31),
]


@pytest.mark.parametrize("what", OPTIONS, ids=range(len(OPTIONS)))
def test_options_as_the_kernels(what):
    same(what)


def test_options_that_are_refused():
    with bound(usernet) as endpoint:
        for option in (std.SO_PRIORITY, std.SO_MARK):
            with pytest.raises(OSError, match="not available") as refused:
                endpoint.setsockopt(SOL, option, 1)
            assert refused.value.errno == errno.ENOPROTOOPT
        with pytest.raises(OSError, match="to which a socket cannot be bound") as refused:
            endpoint.setsockopt(SOL, std.SO_BINDTODEVICE, b"eth0\0")
        assert refused.value.errno == errno.ENODEV


def test_receive_timeout_of_a_blocking_socket():
    def what(endpoint):
        endpoint.settimeout(None)
        endpoint.setsockopt(SOL, std.SO_RCVTIMEO, pack("@ll", 0, 50_000))
        started = time.monotonic()
        try:
            endpoint.recv(10)
        except BlockingIOError as error:
            return error.errno, 0.04 < time.monotonic() - started < 3

    assert same(what) == (errno.EAGAIN, True)


def test_sockets_that_share_a_port_share_the_flows():
    def what(endpoint):
        module = type(endpoint)
        with module(std.AF_INET, std.SOCK_DGRAM) as one, module(std.AF_INET, std.SOCK_DGRAM) as other:
            address = (endpoint.getsockname()[0], 0)
            for each in (one, other):
                each.setsockopt(SOL, std.SO_REUSEPORT, 1)
                each.setblocking(False)
                each.bind(address)
                address = each.getsockname()
            for _ in range(40):
                with module(std.AF_INET, std.SOCK_DGRAM) as client:
                    client.sendto(b"x", address)
            everything_came(endpoint)
            counts = [len(drained(each)) for each in (one, other)]
            return sum(counts), min(counts) > 0

    assert same(what) == (40, True)


def drained(endpoint):
    got = []
    while True:
        try:
            got.append(endpoint.recv(100))
        except BlockingIOError:
            return got


# -- shutdown ----------------------------------------------------------------------------------------------------------


def ended(how):
    def what(endpoint):
        endpoint.connect(endpoint.getsockname())
        endpoint.send(b"queued")
        assert select.select([endpoint], [], [], PATIENCE_S)[0]
        endpoint.shutdown(how)
        results = [select.select([endpoint], [], [], 0)[0] == [endpoint], endpoint.recv(10)]
        endpoint.settimeout(None)
        if how != std.SHUT_WR:
            results += [endpoint.recv(10), endpoint.recvfrom(10), endpoint.recvmsg(10),
                        endpoint.recv_into(bytearray(5)), outcome_of(endpoint.recv, 10, std.MSG_DONTWAIT)]
        return [*results, outcome_of(endpoint.send, b"x"), outcome_of(endpoint.sendmsg, [b"x"])]

    return what


@pytest.mark.parametrize("how", [std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR])
def test_shutdown(how):
    same(ended(how))


def test_shutdown_without_a_peer_fails_and_works():
    def what(endpoint):
        results = [outcome_of(endpoint.shutdown, std.SHUT_RDWR)]
        endpoint.settimeout(None)
        return [*results, endpoint.recv(10), outcome_of(endpoint.sendto, b"x", endpoint.getsockname())]

    assert same(what)[0] == (OSError, errno.ENOTCONN)


def test_shutdown_with_nonsense():
    same(lambda endpoint: outcome_of(endpoint.shutdown, 7))


@pytest.mark.parametrize("leads", [True, False])
def test_shutdown_wakes_blocked_calls(leads):
    with bound(usernet) as endpoint, bound(usernet) as other:
        endpoint.connect(other.getsockname())
        endpoint.settimeout(30)
        got = []
        leader = threading.Thread(target=outcome_of, args=(other.recv, 10))
        if not leads:
            leader.start()
            time.sleep(0.05)
        reader = threading.Thread(target=lambda: got.append(endpoint.recv(10)))
        reader.start()
        time.sleep(0.05)
        endpoint.shutdown(std.SHUT_RD)
        reader.join(10)
        assert got == [b""]
        other.sendto(b"x", other.getsockname())
        if not leads:
            leader.join(10)


# -- duplicates and files ----------------------------------------------------------------------------------------------


def test_duplicates_share_name_queue_options_and_end():
    def what(endpoint):
        copy = endpoint.dup()
        copy.settimeout(PATIENCE_S)
        copy.connect(endpoint.getsockname())
        copy.setsockopt(IP, std.IP_TTL, 9)
        results = [endpoint.getpeername() == copy.getsockname(), endpoint.getsockopt(IP, std.IP_TTL)]
        endpoint.send(b"to both")
        results.append(copy.recv(10))
        endpoint.close()
        copy.send(b"still open")
        results.append(copy.recv(10))
        copy.close()
        return [*results, copy.fileno()]

    assert same(what) == [True, 9, b"to both", b"still open", -1]


def test_a_socket_is_closed_with_its_last_duplicate():
    endpoint = bound(usernet)
    name = endpoint.getsockname()
    copies = [endpoint.dup() for _ in range(3)]
    for copy in [endpoint, *copies[:-1]]:
        copy.close()
        with usernet.socket(std.AF_INET, std.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
            other.bind(name)
    copies[-1].close()
    with usernet.socket(std.AF_INET, std.SOCK_DGRAM) as other:
        other.bind(name)


def test_each_duplicate_has_a_descriptor_of_its_own():
    def what(endpoint):
        with endpoint.dup() as copy:
            descriptors = {endpoint.fileno(), copy.fileno()}
            to_itself(endpoint)
            deadline = time.monotonic() + PATIENCE_S
            while (ready := len(select.select([endpoint, copy], [], [], 0.05)[0])) < 2:
                assert time.monotonic() < deadline
            endpoint.recv(10)
            return len(descriptors), [ready, len(select.select([endpoint, copy], [], [], 0)[0])]

    assert same(what) == (2, [2, 0])


def test_files_keep_a_socket_open():
    def what(endpoint):
        endpoint.connect(endpoint.getsockname())
        endpoint.settimeout(None)
        with endpoint.makefile("rwb", buffering=0) as file:
            file.write(b"line\n")
            endpoint.close()
            return file.readinto(bytearray(20)), endpoint.fileno() > 0

    assert same(what) == (5, True)


def test_sendfile_and_get_inheritable_behave_as_on_linux():
    def what(endpoint):
        with open(os.devnull, "rb") as file:
            return endpoint.sendfile(file)

    same(what)
    same(lambda endpoint: endpoint.get_inheritable())


# -- many at a time ----------------------------------------------------------------------------------------------------


def test_many_there_and_back():
    with bound(usernet) as one, bound(usernet) as other:
        datagrams = [(b"%d" % number, one.getsockname()) for number in range(200)]
        assert other.sendmany(datagrams) == 200
        got = []
        while len(got) < 200:
            some = one.recvmany(64)
            assert 0 < len(some) <= 64
            got += some
        assert got == [(data, (ADDRESS, other.getsockname()[1])) for data, _ in datagrams]


def test_many_to_the_peer_in_few_frames(monkeypatch):
    with bound(usernet) as endpoint:
        endpoint.connect(endpoint.getsockname())
        frames = []
        send = endpoint._connection.send

        def counted(kind, records, timeout, request=None):
            if kind != CREDIT:  # for what has arrived meanwhile
                frames.append(len(records))
            return send(kind, records, timeout, request)

        monkeypatch.setattr(endpoint._connection, "send", counted)
        # Each is longer than the one before, so that none can be joined to it.
        assert endpoint.sendmany((bytes(1000 + number), None) for number in range(130)) == 130
        assert frames == [64, 64, 2]
        assert endpoint.sendmany([(bytes(60000 + number), None) for number in range(3)]) == 3
        assert frames[3:] == [2, 1]


def test_many_stop_at_the_first_that_cannot_be_sent():
    with bound(usernet) as endpoint:
        name = endpoint.getsockname()
        assert endpoint.sendmany([(b"1", name), (b"2", name), (b"3", ("192.0.2.1", 9)), (b"4", name)]) == 2
        assert [data for data, _ in [*endpoint.recvmany(1), *endpoint.recvmany(1)]] == [b"1", b"2"]
        with pytest.raises(OSError, match="unreachable"):
            endpoint.sendmany([(b"3", ("192.0.2.1", 9)), (b"4", name)])
        assert endpoint.sendmany([]) == 0
        with pytest.raises(TypeError):
            endpoint.sendmany([("text", name)])


def test_taking_many_waits_for_one_and_gives_the_credit_back():
    with bound(usernet) as endpoint:
        endpoint.settimeout(0.02)
        with pytest.raises(TimeoutError):
            endpoint.recvmany(10)
        with pytest.raises(ValueError, match="positive"):
            endpoint.recvmany(0)
        endpoint.settimeout(PATIENCE_S)
        for _ in range(20):
            endpoint.sendmany([(bytes(1000), endpoint.getsockname())] * 100)
            got = 0
            while got < 100:
                got += len(endpoint.recvmany(100, 10))
        usernet.Stack().list_sockets()
        (mine,) = [each for each in usernet.Stack().list_sockets() if each["local"] == list(endpoint.getsockname())]
        assert mine["drops"] == 0
        assert mine["queued"] < endpoint._box.credit_due + 1000 + DATAGRAM_OVERHEAD


def test_the_interface_in_pktinfo_is_the_loopback_for_what_comes_from_this_host():
    with (usernet.socket(std.AF_INET, std.SOCK_DGRAM) as first, usernet.socket(std.AF_INET, std.SOCK_DGRAM) as second):
        first.settimeout(20)
        first.setsockopt(IP, IP_PKTINFO, 1)
        first.bind(("", 0))
        for host in (ADDRESS, "127.0.0.1"):
            name = host, first.getsockname()[1]
            second.sendto(b"x", name)
            _, ((_, _, data),), _, _ = first.recvmsg(10, 100)
            index = int.from_bytes(data[:4], "little")
            assert (index, usernet.if_indextoname(index)) == (usernet.if_nametoindex("lo"), "lo")
            second.sendmsg([b"y"], [(IP, IP_PKTINFO, data)], 0, name)
            assert first.recv(10) == b"y"
