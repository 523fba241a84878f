"""The layers together, from the device to the socket service and back."""

from __future__ import annotations

import errno

import pytest
from glue import GLUED, BadCable, Cable, Stack
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

ME, MY_MAC = "10.0.0.2", "02:00:5e:00:00:02"
PEER, PEER_MAC = "10.0.0.1", "02:00:5e:00:00:01"
FAR, EVERYBODY = "198.51.100.7", "ff:ff:ff:ff:ff:ff"


@pytest.fixture
def stack() -> Stack:
    return Stack(ME, MY_MAC, gateway=PEER)


@pytest.fixture
def cable() -> Cable:
    return Cable(Stack(ME, MY_MAC, seed=1), Stack(PEER, PEER_MAC, seed=2))


def introduce(stack: Stack) -> None:
    """The peer asks for our MAC, and is known from then on."""
    (reply,) = stack.hears(Ether(src=PEER_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=ME))
    assert Ether(reply)[ARP].hwsrc == MY_MAC


def from_peer(packet, destination: str = MY_MAC) -> Ether:
    return Ether(src=PEER_MAC, dst=destination) / packet


# -- one stack, a peer made by scapy ---------------------------------------------------------------------------------


def test_a_ping_is_answered_once_arp_has_found_its_sender(stack):
    ping = IP(src=PEER, dst=ME) / ICMP(id=7, seq=3) / Raw(b"abcdefgh")
    (question,) = map(Ether, stack.hears(from_peer(ping)))
    assert (question.dst, question[ARP].op, question[ARP].psrc, question[ARP].pdst) == (EVERYBODY, 1, ME, PEER)
    (answer,) = stack.hears(from_peer(ARP(op=2, hwsrc=PEER_MAC, psrc=PEER, hwdst=MY_MAC, pdst=ME)))
    reply = Ether(answer)
    assert (reply.src, reply.dst, reply[IP].src, reply[IP].dst) == (MY_MAC, PEER_MAC, ME, PEER)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq, reply[Raw].load) == (0, 7, 3, b"abcdefgh")
    (second,) = map(Ether, stack.hears(from_peer(ping)))
    assert second[ICMP].type == 0
    assert not any(stack.dropped(layer) for layer in GLUED)


def test_a_ping_from_beyond_the_gateway_is_answered_through_it(stack):
    introduce(stack)
    (reply,) = map(Ether, stack.hears(from_peer(IP(src=FAR, dst=ME) / ICMP())))
    assert (reply.dst, reply[IP].dst) == (PEER_MAC, FAR)


def test_a_datagram_to_a_socket_comes_up_and_its_answer_goes_back(stack):
    introduce(stack)
    assert stack.declares(1, bind=True, port=7).port == 7
    assert stack.hears(from_peer(IP(src=PEER, dst=ME) / UDP(sport=9, dport=7) / Raw(b"ping"))) == []
    assert stack.received() == [(1, PEER, 9, b"ping")]
    stack.sends(1, b"pong", PEER, 9)
    (frame,) = stack.sent()
    assert frame == bytes(Ether(src=MY_MAC, dst=PEER_MAC) / IP(src=ME, dst=PEER, id=0, flags="DF", ttl=64)
                          / UDP(sport=7, dport=9) / Raw(b"pong"))


def test_rfc1122_4_1_3_1_a_closed_port_is_answered_by_port_unreachable(stack):
    introduce(stack)
    datagram = IP(src=PEER, dst=ME) / UDP(sport=9, dport=4) / Raw(b"anyone?")
    (frame,) = map(Ether, stack.hears(from_peer(datagram)))
    assert (frame[ICMP].type, frame[ICMP].code, frame[IP].dst) == (3, 3, PEER)
    assert bytes(frame[ICMP].payload) == bytes(datagram)


@pytest.mark.parametrize("mac", [MY_MAC, EVERYBODY])
def test_rfc1122_3_2_2_no_error_answers_a_broadcast(stack, mac):
    introduce(stack)
    for destination in ("255.255.255.255", "10.0.0.255"):
        assert stack.hears(from_peer(IP(src=PEER, dst=destination) / UDP(sport=9, dport=4), mac),
                           from_peer(IP(src=PEER, dst=destination, proto=132) / Raw(b"x"), mac),
                           from_peer(IP(src=PEER, dst=destination) / ICMP(), mac)) == []
    assert stack.dropped("udp") == {"no_port_group": 2}


def test_rfc1122_3_2_2_1_an_unknown_protocol_is_answered_by_protocol_unreachable(stack):
    introduce(stack)
    (frame,) = map(Ether, stack.hears(from_peer(IP(src=PEER, dst=ME, proto=132) / Raw(b"12345678"))))
    assert (frame[ICMP].type, frame[ICMP].code) == (3, 2)


def test_rfc1122_2_3_2_1_an_unreachable_neighbour_is_told_to_the_connected_sender(stack):
    stack.declares(1, bind=True, peer="10.0.0.77", peer_port=9)
    stack.sends(1, b"hello?")
    assert len(stack.sent()) == 1
    stack.passes(1.5)
    assert stack.errors() == []
    stack.passes(2.0)
    assert stack.errors() == [(1, errno.EHOSTUNREACH, ME, 3)]
    assert all(Ether(frame)[ARP].pdst == "10.0.0.77" for frame in stack.sent())
    assert stack.dropped("ip") == {"neighbor_unreachable": 1}


def test_a_datagram_to_oneself_never_reaches_the_device(stack):
    stack.declares(1, bind=True, port=7)
    stack.sends(1, b"me", ME, 7)
    stack.sends(1, b"lo", "127.0.0.1", 7)
    assert stack.received() == [(1, ME, 7, b"me"), (1, "127.0.0.1", 7, b"lo")]
    assert stack.sent() == []


def test_a_closed_port_of_ones_own_refuses(stack):
    stack.declares(1, bind=True, peer=ME, peer_port=4)
    stack.sends(1, b"me")
    assert stack.errors() == [(1, errno.ECONNREFUSED, ME, 3)]


# -- two stacks ------------------------------------------------------------------------------------------------------


def echo(cable: Cable, payload: bytes, port: int = 7) -> bool:
    """One echo from a connected socket at one end to a server at the other."""
    one, other = cable.one, cable.other
    one.sends(1, payload)
    cable.run()
    for handle, source, from_port, got in other.received():
        other.sends(handle, got, source, from_port)
    cable.run()
    return (1, other.address, port, payload) in one.received()


def open_echo(cable: Cable) -> None:
    assert cable.other.declares(5, bind=True, port=7).errno == 0
    assert cable.one.declares(1, bind=True, peer=cable.other.address, peer_port=7).errno == 0


def test_two_stacks_exchange_datagrams_both_ways(cable):
    open_echo(cable)
    assert [echo(cable, b"x" * octets) for octets in (0, 1, 1472)] == [True] * 3
    for stack in (cable.one, cable.other):
        assert not any(stack.dropped(layer) for layer in GLUED)


def test_a_closed_port_at_the_other_stack_refuses_the_connected_sender(cable):
    cable.one.declares(1, bind=True, peer=PEER, peer_port=7)
    cable.one.sends(1, b"anyone?")
    cable.run()
    assert cable.one.errors() == [(1, errno.ECONNREFUSED, PEER, 3)]
    assert cable.other.dropped("udp") == {"no_port": 1}


def test_a_stack_pings_the_other(cable):
    reply = cable.one.declares(1, layer="icmp", bind=True, peer=PEER)
    cable.one.sends(1, bytes(Raw(ICMP(id=reply.port, seq=1) / Raw(b"data"))), layer="icmp")
    cable.run()
    ((handle, source, _, message),) = cable.one.received()
    assert (handle, source, ICMP(message).type, ICMP(message).seq) == (1, PEER, 0, 1)


@pytest.mark.parametrize("layer", GLUED)
@pytest.mark.parametrize("side", ["one", "other"])
def test_sockets_outlive_a_crash_of_any_layer(cable, layer, side):
    open_echo(cable)
    assert echo(cable, b"before")
    getattr(cable, side).crash(layer)
    assert echo(cable, b"after")
    assert not any(stack.dropped(name) for stack in (cable.one, cable.other) for name in GLUED)


def test_a_peer_that_comes_late_is_found(cable):
    cable.impair = lambda frames: []
    open_echo(cable)
    assert not echo(cable, b"1")
    cable.passes(5)
    assert cable.one.errors() == [(1, errno.EHOSTUNREACH, ME, 3)]
    cable.impair = list
    assert echo(cable, b"2")


def test_a_conversation_of_minutes_verifies_its_neighbours_and_loses_nothing(cable):
    open_echo(cable)
    for minute in range(5):
        assert echo(cable, b"%d" % minute)
        for _ in range(4):
            cable.passes(15)
            assert echo(cable, b"more")
    assert cable.one.counted("arp")["resolved"] >= 5
    assert not any(stack.dropped(layer) for stack in (cable.one, cable.other) for layer in GLUED)


# -- a hostile cable -------------------------------------------------------------------------------------------------


def accounted(stack: Stack, arrived: int) -> None:
    """What came in at each layer went up to the next or was counted as dropped."""
    link, arp, ip = (stack.counted(layer) for layer in ("link", "arp", "ip"))
    udp, icmp = stack.counted("udp"), stack.counted("icmp")
    assert link.get("frames_in", 0) == arrived
    assert arrived - sum(stack.dropped("link").values()) == arp.get("received", 0) + ip.get("packets_in", 0)
    sending = {"neighbor_queue_full", "neighbor_unreachable"}
    refused = sum(count for name, count in stack.dropped("ip").items() if name not in sending)
    assert ip.get("packets_in", 0) - refused == udp.get("packets_in", 0) + icmp.get("received", 0)
    datagrams = {"packet_truncated", "bad_length", "bad_checksum", "no_port"}
    refused = sum(count for name, count in stack.dropped("udp").items() if name in datagrams)
    assert udp.get("packets_in", 0) == udp.get("delivered", 0) + refused


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_stacks_on_a_hostile_cable_still_converse_and_account_for_everything(seed, share):
    cable = Cable(Stack(ME, MY_MAC, seed=1), Stack(PEER, PEER_MAC, seed=2), bad := BadCable(seed, share))
    open_echo(cable)
    cable.one.declares(2, bind=True, peer=PEER, peer_port=4)  # a closed port
    answered = refused = 0
    for number in range(120):
        answered += echo(cable, b"%d" % number + b"." * (number * 12 % 1400))
        cable.one.sends(2, b"anyone?")
        cable.passes(1)
        refused += sum(handle == 2 for handle, *_ in cable.one.errors())
    assert all(bad.did.values())
    assert answered > 120 * (1 - share) ** 3 / 2
    assert refused > 0
    for stack in (cable.one, cable.other):
        accounted(stack, cable.carried[stack.address])
    cable.impair = list
    cable.passes(10)
    assert echo(cable, b"and now?")
