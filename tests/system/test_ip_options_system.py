"""IP options that applications send and are told of, beside the kernel's own sockets: what one does, the other does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .conftest import end_all, unique_name
from .peers import KERNEL, STACK, Stack, wait_for

IP, IP_OPTIONS, IP_RECVOPTS, IP_RETOPTS = socket.IPPROTO_IP, 4, 6, 7  # ip(7)
UDP_SEGMENT = 17, 103  # udp(7)
ROUTE = bytes((7, 15, 4)) + bytes(12)  # RFC 791: record route, with room for three
STAMP = bytes((68, 20, 5, 1)) + bytes(16)  # RFC 791: timestamps with addresses, room for two
ROUTER_ALERT = b"\x94\x04\0\0"
UNKNOWN = b"\x5e\x04ab"
PROTOCOL = 253  # RFC 3692: for experiments


@pytest.fixture(scope="module")
def stack(home, tap) -> Iterator[Stack]:
    """A booted stack that has raw sockets."""
    booted = Stack(home, unique_name())
    try:
        yield booted.up("--allow-raw")
    finally:
        end_all([booted])


@pytest.fixture(params=["from the stack", "from the kernel"])
def pair(stack: Stack, request) -> Iterator[tuple]:
    """(sender, receiver that asks for options, sender's address, receiver's)."""
    with stack.kernel.udp() as peer, stack.bound() as app:
        sender, receiver = (app, peer) if request.param == "from the stack" else (peer, app)
        for option in (IP_RECVOPTS, IP_RETOPTS):
            receiver.setsockopt(IP, option, 1)
            assert receiver.getsockopt(IP, option) == 1
        yield sender, receiver


def told(receiver, payload: bytes) -> dict[int, bytes]:
    """The ancillary data of the next datagram, which is `payload`."""
    data, ancillary, flags, _ = receiver.recvmsg(1 << 16, 256)
    assert (data, flags) == (payload, 0)
    assert all(level == IP for level, _, _ in ancillary)
    return {kind: value for _, kind, value in ancillary}


def addresses(sender) -> bytes:
    """The hosts in a recorded route: both ends."""
    ends = [sender.getsockname()[0], KERNEL if sender.getsockname()[0] == STACK else STACK]
    return b"".join(map(socket.inet_aton, ends))


def test_rfc1122_4_1_3_2_options_go_with_all_datagrams_of_a_socket(pair) -> None:
    sender, receiver = pair
    to = receiver.getsockname()
    recorded = bytes((7, 15, 12)) + addresses(sender) + bytes(4) + b"\0"
    for options, received, returned in ((ROUTE, recorded, recorded), (ROUTER_ALERT, ROUTER_ALERT, b""),
                                        (b"\1\1\1", b"\1\1\1\0", b""),
                                        (ROUTE + ROUTER_ALERT, recorded[:15] + ROUTER_ALERT + b"\0", recorded)):
        sender.setsockopt(IP, IP_OPTIONS, options)
        padded = options + bytes(-len(options) % 4)
        assert sender.getsockopt(IP, IP_OPTIONS, 40) == padded
        assert sender.getsockopt(IP, IP_OPTIONS, 2) == padded[:2]
        for payload in (b"one", b"two"):
            sender.sendto(payload, to)
            assert told(receiver, payload) == {IP_RECVOPTS: received, IP_RETOPTS: returned}
    sender.setsockopt(IP, IP_OPTIONS, b"")
    sender.sendto(b"none", to)
    assert told(receiver, b"none") == {}


def test_rfc1122_4_1_4_options_of_one_datagram(pair) -> None:
    sender, receiver = pair
    to = receiver.getsockname()
    sender.setsockopt(IP, IP_OPTIONS, b"\1" * 8)
    sender.sendmsg([b"its own"], [(IP, IP_RETOPTS, ROUTER_ALERT)], 0, to)
    assert told(receiver, b"its own") == {IP_RECVOPTS: ROUTER_ALERT, IP_RETOPTS: b""}
    sender.sendmsg([b"none"], [(IP, IP_RETOPTS, b"")], 0, to)
    assert told(receiver, b"none") == {}
    sender.sendto(b"the socket's", to)
    assert told(receiver, b"the socket's") == {IP_RECVOPTS: b"\1" * 8, IP_RETOPTS: b""}


def test_rfc791_3_1_both_ends_stamp_the_time(pair) -> None:
    sender, receiver = pair
    sender.setsockopt(IP, IP_OPTIONS, STAMP)
    sender.sendto(b"when?", receiver.getsockname())
    stamped = told(receiver, b"when?")[IP_RECVOPTS]
    assert stamped[:4] == bytes((68, 20, 21, 1))
    assert stamped[4:8] + stamped[12:16] == addresses(sender)
    sent, received = (int.from_bytes(stamped[at : at + 4], "big") for at in (8, 16))
    assert 0 <= (received - sent + 1000) % 86_400_000 <= 21_000  # one machine, and ours may be a little off


def test_options_take_their_room_from_the_datagram(pair) -> None:
    sender, receiver = pair
    to = receiver.getsockname()
    sender.setsockopt(IP, IP_OPTIONS, b"\1" * 8)
    with pytest.raises(OSError, match="Message too long"):
        sender.sendto(bytes(65500), to)
    assert sender.sendto(bytes(65499), to) == 65499
    assert told(receiver, bytes(65499))[IP_RECVOPTS] == b"\1" * 8
    sender.sendmsg([bytes(65507)], [(IP, IP_RETOPTS, b"")], 0, to)
    assert told(receiver, bytes(65507)) == {}


def test_each_datagram_of_one_call_has_the_options(pair) -> None:
    sender, receiver = pair
    to = receiver.getsockname()
    sender.setsockopt(*UDP_SEGMENT, 100)
    sender.setsockopt(IP, IP_OPTIONS, ROUTER_ALERT)
    sender.sendto(bytes(250), to)
    sender.sendmsg([bytes(250)], [(IP, IP_RETOPTS, b"\1" * 4)], 0, to)
    for options in (ROUTER_ALERT, b"\1" * 4):
        for octets in (100, 100, 50):
            assert told(receiver, bytes(octets))[IP_RECVOPTS] == options


@pytest.mark.parametrize("options", [
    b"", b"\1", b"\1" * 40, b"\1" * 41, b"\0\7\xff\xff", ROUTE, ROUTE * 2, ROUTE * 3, STAMP, b"\7", b"\7\2", b"\7\3\4",
    bytes((7, 7, 3)) + bytes(4), bytes((7, 7, 5)) + bytes(4), bytes((7, 7, 8)) + bytes(4), b"\x44\x03\x05",
    bytes((68, 8, 9, 0xF0)) + bytes(4), bytes((68, 8, 6, 0)) + bytes(4), b"\x94\x03\0", b"\x94\x04\0\1", b"\x5e\x01",
    b"\x5e\x09ab", b"\x86\x06\0\0\0\0", b"\x83\x07\x08\x7f\0\0\1", 0, 1, 5,
])  # fmt: skip
def test_ip_7_what_linux_refuses_is_refused(stack: Stack, options) -> None:
    """Of what any user may ask: what needs CAP_NET_RAW, which the kernel's end has here, is in the unit tests."""
    outcomes = []
    with stack.kernel.udp() as peer, stack.bound() as app:
        for made in (peer, app):
            try:
                made.setsockopt(IP, IP_OPTIONS, options)
                outcome = made.getsockopt(IP, IP_OPTIONS, 60), made.getsockopt(IP, IP_OPTIONS)
            except OSError as error:
                outcome = error.errno
            outcomes.append(outcome)
            if isinstance(options, bytes):
                try:
                    outcomes.append(made.sendmsg([b"x"], [(IP, IP_RETOPTS, options)], 0, (KERNEL, 9)))
                except OSError as error:
                    outcomes.append(error.errno)
    assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]


@pytest.mark.parametrize("options", [UNKNOWN, b"\x88\x04\0\7", b"\x83\x07\x04\x7f\0\0\1"])
def test_options_that_need_cap_net_raw_on_linux_are_refused(stack: Stack, options: bytes) -> None:
    with stack.bound() as app:
        for attempt in (lambda: app.setsockopt(IP, IP_OPTIONS, options),
                        lambda: app.sendmsg([b"x"], [(IP, IP_RETOPTS, options)], 0, (KERNEL, 9))):
            with pytest.raises(PermissionError if options[0] == 0x83 else OSError):
                attempt()


def test_options_outlive_their_layers(stack: Stack) -> None:
    with stack.kernel.udp() as peer, stack.bound() as app:
        peer.setsockopt(IP, IP_RECVOPTS, 1)
        app.setsockopt(IP, IP_RECVOPTS, 1)
        app.setsockopt(IP, IP_OPTIONS, ROUTER_ALERT)
        for layer in ("udp", "sockets", "ip"):
            before = stack.incarnations()[layer]
            stack.run("sabotage", layer, "kill")
            wait_for(f"a new {layer}", lambda layer=layer, before=before: stack.incarnations()[layer] > before)
            app.sendto(b"out", peer.getsockname())
            assert told(peer, b"out") == {IP_RECVOPTS: ROUTER_ALERT}
            peer.setsockopt(IP, IP_OPTIONS, b"\1" * 4)
            peer.sendto(b"in", app.getsockname())
            assert told(app, b"in") == {IP_RECVOPTS: b"\1" * 4}


def test_raw_sockets_send_any_options_and_are_told_them(stack: Stack) -> None:
    raw = socket.SOCK_RAW
    with stack.kernel.socket(socket.AF_INET, raw, PROTOCOL) as peer, stack.socket(raw, PROTOCOL) as app:
        for sender, receiver, to in ((app, peer, KERNEL), (peer, app, STACK)):
            for option in (IP_RECVOPTS, IP_RETOPTS):
                receiver.setsockopt(IP, option, 1)
            sender.setsockopt(IP, IP_OPTIONS, UNKNOWN)
            sender.sendto(b"raw", (to, 0))
            sender.sendmsg([b"raw"], [(IP, IP_RETOPTS, b"\1" * 4)], 0, (to, 0))
            for options in (UNKNOWN, b"\1" * 4):
                packet, ancillary, _, _ = receiver.recvmsg(100, 256)
                assert packet[20:] == options + b"raw"
                assert ancillary == [(IP, IP_RECVOPTS, options), (IP, IP_RETOPTS, b"")]


def test_a_ping_socket_records_the_route(stack: Stack) -> None:
    with stack.socket(proto=socket.IPPROTO_ICMP) as app:
        app.setsockopt(IP, IP_RECVOPTS, 1)
        app.setsockopt(IP, IP_OPTIONS, bytes((7, 19, 4)) + bytes(16))
        app.sendto(b"\x08\0" + bytes(6) + b"which way?", (KERNEL, 0))
        _, ancillary, _, _ = app.recvmsg(100, 256)
        ours, theirs = socket.inet_aton(STACK), socket.inet_aton(KERNEL)
        assert ancillary == [(IP, IP_RECVOPTS, bytes((7, 19, 20)) + ours + theirs + theirs + ours + b"\0")]
