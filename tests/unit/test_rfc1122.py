"""What RFC 1122 demands of a host as a whole: all layers together, seen from the device and from an application.

What one layer does alone is in that layer's tests; docs/rfc1122.md says which test shows which requirement.
"""

from __future__ import annotations

import errno
from struct import pack

import pytest
from glue import Stack
from scapy.layers.inet import ICMP, IP, UDP, IPOption
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

ME, MY_MAC = "10.0.0.2", "02:00:5e:00:00:02"
PEER, PEER_MAC = "10.0.0.1", "02:00:5e:00:00:01"
SECOND = "192.168.7.5"  # in another network, where a test adds it
NEXT, NEXT_MAC = "10.0.0.3", "02:00:5e:00:00:03"  # a second gateway
FAR, EVERYBODY = "198.51.100.7", "ff:ff:ff:ff:ff:ff"
PORT, PEER_PORT = 5000, 9
SECURITY, STREAM_IDENTIFIER = 130, 136


@pytest.fixture
def stack() -> Stack:
    """A stack whose gateway is the peer, which it knows."""
    made = Stack(ME, MY_MAC, gateway=PEER)
    introduce(made)
    return made


def introduce(stack: Stack) -> None:
    question = Ether(src=PEER_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=ME)
    assert len(stack.hears(question)) == 1


def answers(stack: Stack, *packets) -> list:
    """The frames that answer these packets of the peer's."""
    return [Ether(frame) for frame in stack.hears(*(Ether(src=PEER_MAC, dst=MY_MAC) / packet for packet in packets))]


def echo(**fields):
    return IP(src=PEER, dst=ME, **fields) / ICMP(id=7, seq=3) / Raw(b"abcdefgh")


def connected(stack: Stack, peer: str = FAR, **state) -> bytes:
    """A UDP socket, number 1, has sent one datagram: its packet."""
    stack.declares(1, bind=True, port=PORT, peer=peer, peer_port=PEER_PORT, **state)
    return sent_by(stack)


def sent_by(stack: Stack) -> bytes:
    """Socket 1 sends a datagram, at once: its packet."""
    stack.sends(1, b"datagram")
    (frame,) = stack.sent()
    return frame[14:]


def frame_of(stack: Stack) -> bytes:
    """The same, its frame; requests of arp's aside."""
    stack.sends(1, b"datagram")
    (frame,) = [frame for frame in stack.sent() if ARP not in Ether(frame)]
    return frame


def silence(stack: Stack) -> None:
    """The first gateway answers no more, and while socket 1 sends the stack finds out."""
    connected(stack)
    for _ in range(40):
        stack.passes(1.0)
        stack.sends(1, b"datagram")
        stack.sent()
        stack.hears(Ether(src=NEXT_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=NEXT_MAC, psrc=NEXT, pdst="10.0.0.9"))
    assert stack.counted("ip")["gateway_failed"] == 1


def error(packet: bytes, icmp_type: int, code: int):
    """A router's ICMP error about a packet of ours."""
    return IP(src=PEER, dst=ME) / ICMP(type=icmp_type, code=code) / Raw(packet[:28])


# -- IP ----------------------------------------------------------------------------------------------------------------


def test_rfc1122_3_1_a_host_forwards_nothing_and_sends_no_redirect(stack):
    assert answers(stack, IP(src=PEER, dst=FAR) / UDP(sport=1, dport=2), IP(src=FAR, dst="10.0.0.9") / ICMP()) == []
    assert stack.dropped("ip") == {"other_destination": 2}


def test_rfc1122_3_1_a_host_with_several_addresses_forwards_nothing_either(stack):
    assert stack.ordered("ip", "address_add", address=f"{SECOND}/24") == {}
    assert answers(stack, IP(src=PEER, dst="192.168.7.9") / UDP(), IP(src="192.168.7.9", dst="10.0.0.9") / UDP()) == []
    assert stack.dropped("ip") == {"other_destination": 2}


@pytest.mark.parametrize("asked", [ME, SECOND])
def test_rfc1122_3_3_4_2_each_address_answers_for_itself(stack, asked):
    """An echo, a timestamp and an error: sections 3.2.2.6, 3.2.2.8."""
    stack.ordered("ip", "address_add", address=f"{SECOND}/24")
    stack.passes(10.0)
    stack.sent()
    for question, icmp_type in ((ICMP(type=8), 0), (ICMP(type=13), 14), (UDP(dport=4), 3)):
        (answer,) = answers(stack, IP(src=PEER, dst=asked) / question)
        assert (answer[IP].src, answer[IP].dst, answer[ICMP].type) == (asked, PEER, icmp_type)


def test_rfc1122_3_2_1_3_nothing_is_sent_to_this_network(stack):
    for address in ("0.0.0.1", "0.255.255.255"):
        assert stack.declares(1, bind=True, port=PORT, peer=address, peer_port=9).errno == errno.ENETUNREACH
        stack.declares(2, bind=True, port=PORT + 1)
        stack.sends(2, b"nowhere", address, 9)
    assert stack.sent() == []


@pytest.mark.parametrize("ttl", [0, 1, 255])
def test_rfc1122_3_2_1_7_no_packet_for_us_is_too_old(stack, ttl):
    (reply,) = answers(stack, echo(ttl=ttl))
    assert (reply[ICMP].type, reply[IP].ttl) == (0, 64)


def test_rfc1122_3_2_1_7_the_default_ttl_is_configurable():
    """Of replies and of errors; of sockets: system/test_launcher.py."""
    stack = Stack(ME, MY_MAC, gateway=PEER, ttl=9)
    introduce(stack)
    closed_port = IP(src=PEER, dst=ME) / UDP(sport=PEER_PORT, dport=PORT)
    timestamp = IP(src=PEER, dst=ME) / ICMP(type=13) / Raw(bytes(12))
    assert [(reply[ICMP].type, reply[IP].ttl) for reply in answers(stack, echo(), timestamp, closed_port)] == [
        (0, 9), (14, 9), (3, 9)]


def test_rfc1122_3_2_1_7_a_packet_with_a_ttl_of_0_never_leaves(stack):
    stack.declares(1, bind=True, port=PORT, multicast_ttl=0)
    stack.sends(1, b"not beyond this host", "224.0.0.251", PEER_PORT)
    assert stack.sent() == []
    assert stack.dropped("ip") == {"no_lifetime": 1}
    stack.declares(1, bind=True, port=PORT, multicast_ttl=1)
    stack.sends(1, b"on this network", "224.0.0.251", PEER_PORT)
    (frame,) = map(Ether, stack.sent())
    assert frame[IP].ttl == 1


@pytest.mark.parametrize("option", [
    pack("!BBHHH3s", SECURITY, 11, 0, 0, 0, b"abc"), pack("!BBH", STREAM_IDENTIFIER, 4, 77), b"\x5e\x06what",
    b"\xde\x02"], ids=["security", "stream identifier", "unknown", "unknown, without data"])
def test_rfc1122_3_2_1_8_options_that_are_not_understood_are_silently_ignored(stack, option):
    stack.declares(1, bind=True, port=PORT)
    padded = option + bytes(-len(option) % 4)
    datagram = IP(src=PEER, dst=ME, options=IPOption(padded)) / UDP(sport=PEER_PORT, dport=PORT) / Raw(b"all the same")
    assert answers(stack, datagram) == []
    assert stack.received() == [(1, PEER, PEER_PORT, b"all the same")]
    assert not stack.dropped("ip")


@pytest.mark.parametrize("option", [pack("!BBH", STREAM_IDENTIFIER, 4, 77), b"\x5e\x04ab"])
def test_rfc1122_3_2_1_8_no_other_option_comes_back_with_an_echo(stack, option):
    """Only those of section 3.2.2.6; the obsolete stream identifier least of all."""
    (reply,) = answers(stack, echo(options=IPOption(option)))
    assert (reply[ICMP].type, reply[IP].ihl) == (0, 5)


# -- ICMP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("icmp_type", [1, 2, 7, 15, 16, 17, 18, 37, 255])
def test_rfc1122_3_2_2_what_no_host_answers_meets_silence(stack, icmp_type):
    """Information and address mask requests among them: sections 3.2.2.7, 3.2.2.9."""
    assert answers(stack, IP(src=PEER, dst=ME) / ICMP(type=icmp_type) / Raw(bytes(8))) == []
    assert sum(stack.dropped("icmp").values()) == 1


@pytest.mark.parametrize("option", [
    b"\x07\x0b\x08\x0a\0\0\x01\0\0\0\0\0", b"\x44\x0c\x09\0time\0\0\0\0", b"\x44\x0c\x05\x03\x0a\0\0\x02\0\0\0\0",
    b"\x44\x08\x09\x10time", b"\x94\x04\0\0"], ids=["route", "time", "our time", "no room", "router alert"])
def test_rfc1122_3_2_2_options_are_quoted_as_they_came(stack, option):
    """A closed port, an unknown protocol, and a packet that never got whole."""
    for packet in (IP(proto=17) / UDP(sport=9, dport=4), IP(proto=132) / Raw(b"12345678"), IP(flags="MF") / UDP()):
        packet.src, packet.dst, packet.options = PEER, ME, IPOption(option)
        asked = Ether(src=PEER_MAC, dst=MY_MAC) / packet
        frames = stack.hears(asked)
        stack.passes(31.0)
        (error,) = (Ether(frame) for frame in frames + stack.sent() if ICMP in Ether(frame))
        assert bytes(error[ICMP].payload) == bytes(asked[IP])
        introduce(stack)


def test_rfc1122_3_2_2_a_malformed_option_is_quoted_as_it_came(stack):
    """Though another, before it, could have been filled in."""
    options = [IPOption(b"\x44\x0c\x09\0time\0\0\0\0"), IPOption(b"\x07\x07\x03\0\0\0\0")]
    packet = IP(src=PEER, dst=ME, options=options) / UDP()
    (error,) = answers(stack, packet)
    assert (error[ICMP].type, bytes(error[ICMP].payload)) == (12, bytes(packet))


@pytest.mark.parametrize("tos", [0, 0x1F, 0xFF])
def test_rfc1122_3_2_2_an_error_has_no_tos(stack, tos):
    (error,) = answers(stack, IP(src=PEER, dst=ME, tos=tos) / UDP(sport=9, dport=4))
    assert (error[ICMP].type, error[IP].tos) == (3, 0xC0)  # RFC 1812 section 4.3.2.5: the precedence is 6


@pytest.mark.parametrize(("icmp_type", "code", "number"), [
    (3, 0, errno.ENETUNREACH), (3, 1, errno.EHOSTUNREACH), (3, 2, errno.ENOPROTOOPT), (3, 3, errno.ECONNREFUSED),
    (3, 5, errno.EOPNOTSUPP), (11, 0, errno.EHOSTUNREACH), (11, 1, errno.EHOSTUNREACH), (12, 0, errno.EPROTO)])
def test_rfc1122_3_2_2_an_error_reaches_the_application_that_asks_for_errors(stack, icmp_type, code, number):
    packet = connected(stack, receive_errors=True)
    assert answers(stack, error(packet, icmp_type, code)) == []
    assert stack.errors() == [(1, number, PEER, icmp_type)]


@pytest.mark.parametrize("code", range(16))
def test_rfc1122_3_2_2_1_a_destination_unreachable_is_a_hint_and_no_more(stack, code):
    packet = connected(stack)
    answers(stack, error(packet, 3, code))
    assert sent_by(stack)[16:] == packet[16:]


def test_rfc6633_3_a_source_quench_changes_nothing(stack):
    packet = connected(stack, receive_errors=True)
    assert answers(stack, error(packet, 4, 0)) == []
    assert stack.errors() == []
    assert sent_by(stack)[16:] == packet[16:]


# -- routing -----------------------------------------------------------------------------------------------------------


def test_rfc1122_3_3_1_1_without_a_gateway_the_network_is_still_there():
    stack = Stack(ME, MY_MAC)
    introduce(stack)
    assert IP(connected(stack, PEER)).dst == PEER
    assert answers(stack, echo())[0][ICMP].type == 0


def test_rfc1122_3_3_1_4_the_gateway_is_not_verified_while_nothing_is_sent(stack):
    connected(stack)
    stack.passes(3600.0)
    assert stack.sent() == []


def test_rfc1122_3_3_1_4_the_gateway_is_not_verified_while_its_packets_arrive(stack):
    connected(stack)
    for _ in range(100):
        stack.passes(1.0)
        stack.hears(Ether(src=PEER_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst="10.0.0.9"))
        assert IP(sent_by(stack)).dst == FAR


def test_rfc1122_3_3_1_4_a_gateway_that_died_is_noticed_and_the_sender_told(stack):
    connected(stack)
    asked = []
    for _ in range(60):
        stack.passes(1.0)
        stack.sends(1, b"anybody?")
        asked += [frame.dst for frame in map(Ether, stack.sent()) if ARP in frame]
    assert asked[:2] == [PEER_MAC, PEER_MAC]  # the gateway itself first, section 2.3.2.1 (2)
    assert set(asked[2:]) == {EVERYBODY}
    assert stack.errors()[0] == (1, errno.EHOSTUNREACH, ME, 3)


def two_gateways(**settings) -> Stack:
    stack = Stack(ME, MY_MAC, gateway=PEER, **settings)
    introduce(stack)
    stack.hears(Ether(src=NEXT_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=NEXT_MAC, psrc=NEXT, pdst=ME))
    assert stack.ordered("ip", "route_add", destination="0.0.0.0/0", gateway=NEXT, metric=10) == {}
    return stack


def test_rfc1122_3_3_1_5_the_next_default_gateway_serves_while_the_first_is_silent():
    stack = two_gateways()
    connected(stack)
    used = []
    for _ in range(90):
        stack.passes(1.0)
        stack.hears(Ether(src=NEXT_MAC, dst=EVERYBODY) / ARP(op=1, hwsrc=NEXT_MAC, psrc=NEXT, pdst="10.0.0.9"))
        stack.sends(1, b"anybody?")
        used += [frame.dst for frame in map(Ether, stack.sent()) if IP in frame]
    switched = used.index(NEXT_MAC)
    assert switched < 40  # ip asks after 30 s, arp makes sure for another 5
    assert set(used[:switched]) == {PEER_MAC}
    assert set(used[switched:]) == {NEXT_MAC}
    assert len(used) == 90  # none was lost, and no error was reported
    assert stack.errors() == []


def test_rfc1122_3_3_1_5_a_gateway_that_is_back_serves_again():
    stack = two_gateways()
    silence(stack)
    assert Ether(frame_of(stack)).dst == NEXT_MAC
    for _ in range(62):
        stack.passes(1.0)
        stack.sends(1, b"datagram")
        for frame in map(Ether, stack.sent()):
            if ARP in frame:
                mac = PEER_MAC if frame.pdst == PEER else NEXT_MAC
                reply = ARP(op=2, hwsrc=mac, psrc=frame.pdst, hwdst=MY_MAC, pdst=ME)
                stack.hears(Ether(src=mac, dst=MY_MAC) / reply)
    assert Ether(frame_of(stack)).dst == PEER_MAC
    assert {name: stack.counted("ip")[name] for name in ("gateway_failed", "gateway_back")} == {
        "gateway_failed": 1, "gateway_back": 1}


def redirect(quoted: bytes, code: int = 1):
    """The gateway says that the second one is nearer."""
    return IP(src=PEER, dst=ME) / ICMP(type=5, code=code, gw=NEXT) / Raw(quoted[:28])


def test_rfc1122_3_2_2_2_redirects_are_ignored_unless_they_are_wanted():
    stack = two_gateways()
    answers(stack, redirect(connected(stack)))
    assert Ether(frame_of(stack)).dst == PEER_MAC
    assert stack.dropped("icmp") == {"redirect": 1}


@pytest.mark.parametrize("code", range(4))
def test_rfc1122_3_2_2_2_redirects_of_networks_and_of_hosts_are_followed_alike(code):
    stack = two_gateways(accept_redirects=True)
    answers(stack, redirect(connected(stack), code))
    assert Ether(frame_of(stack)).dst == NEXT_MAC
    assert stack.dropped("icmp") == {}
    for layer in ("icmp", "ip"):
        stack.crash(layer)
        assert Ether(frame_of(stack)).dst == NEXT_MAC


def test_rfc1122_3_2_2_2_redirects_that_quote_nothing_of_ours_are_discarded():
    stack = two_gateways(accept_redirects=True)
    sent = connected(stack)
    others, to_group = IP(sent), IP(sent)
    others.src, to_group.dst = "10.0.0.9", "224.0.0.251"
    answers(stack, redirect(sent, 4), redirect(b""), redirect(bytes(others)), redirect(bytes(to_group)))
    assert Ether(frame_of(stack)).dst == PEER_MAC
    assert stack.dropped("icmp") == {
        "error_unknown_code": 1, "error_bad_quote": 1, "error_not_ours": 1, "error_about_group": 1}


def test_rfc1122_3_3_1_4_a_dead_gateway_is_not_tried_while_nothing_is_sent():
    stack = two_gateways()
    silence(stack)
    stack.passes(20.0)
    stack.sent()
    stack.passes(3600.0)
    assert stack.sent() == []


# -- UDP ---------------------------------------------------------------------------------------------------------------


def test_rfc1122_4_1_3_4_every_datagram_has_a_checksum_that_is_right(stack):
    packet = connected(stack)
    right = IP(packet)
    del right[UDP].chksum
    assert bytes(right) == packet
    assert IP(packet)[UDP].chksum


def test_rfc1122_4_1_3_6_a_datagram_from_no_single_host_is_not_delivered(stack):
    stack.declares(1, bind=True, port=PORT)
    sources = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "10.0.0.255", ME]
    assert answers(stack, *(IP(src=source, dst=ME) / UDP(sport=9, dport=PORT) for source in sources)) == []
    assert stack.received() == []
    assert stack.dropped("ip") == {"bad_source": len(sources)}
