"""packets.filter says of a packet what libpcap says of it; cli.capture_filter is libpcap, or that."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP

from cli import capture_filter as captures
from packets import pcapng
from packets.filter import FilterError, compile_filter

addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1"])
ports = st.sampled_from([53, 54, 80, 5000])
tests = st.one_of(
    st.sampled_from(["udp", "tcp", "icmp", "igmp", "ip", "proto 17", "ip proto 6", "less 40", "greater 50",
                     "net 10.0.0.0/24", "src net 10.0.0.0/8"]),
    st.builds("{} {} {}".format, st.sampled_from(["", "src", "dst"]), st.just("host"), addresses),
    st.builds("{} {} port {}".format, st.sampled_from(["", "udp", "tcp"]), st.sampled_from(["", "src", "dst"]), ports),
    st.builds("{} portrange {}".format, st.sampled_from(["", "udp", "src"]), st.sampled_from(["53-80", "1-53"])))
expressions = st.recursive(tests, lambda inner: st.one_of(
    st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or", "&&", "||"]), inner),
    st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner),
    st.builds("not ({})".format, inner), st.builds("!({})".format, inner)), max_leaves=5)
packets = st.builds(
    lambda src, dst, upper, frag, size: bytes(IP(src=src, dst=dst, frag=frag) / upper / bytes(size)),
    addresses, addresses,
    st.one_of(st.builds(lambda s, d: UDP(sport=s, dport=d), ports, ports),
              st.builds(lambda s, d: TCP(sport=s, dport=d), ports, ports), st.builds(ICMP)),
    st.sampled_from([0, 0, 185]), st.integers(0, 30))
PACKET = bytes(IP(src="10.0.0.1", dst="10.0.1.1") / UDP(sport=53, dport=80))
WORDS = ["udp", "tcp", "icmp", "ip", "proto", "17", "less", "greater", "40", "host", "net", "src", "dst", "port",
         "portrange", "53", "53-80", "10.0.0.1", "10.0.0.0/24", "and", "or", "not", "(", ")"]


def libpcap():
    if captures._libpcap() is None:
        pytest.skip("no libpcap here")


@settings(max_examples=300)
@given(expressions, packets)
def test_same_verdict_as_libpcap(expression, packet):
    libpcap()
    theirs = captures.capture_filter(expression, pcapng.LINKTYPE_RAW)
    assert compile_filter(expression)(packet) == theirs(packet), expression


damaged = st.builds(  # the header length, the protocol and the offset of a fragment are three of the first octets
    lambda packet, at, octet, kept: (packet[:at] + bytes((octet,)) + packet[at + 1 :])[:kept],
    packets, st.sampled_from([0, 6, 9]) | st.integers(0, 30), st.integers(0, 255), st.integers(0, 60))


@given(expressions, st.binary(max_size=60) | damaged)
@example("port 53", bytes(IP() / UDP(sport=53))[:22])  # shorter than its ports
def test_no_octets_raise(expression, octets):
    assert compile_filter(expression)(octets) in (True, False)


@pytest.mark.parametrize("wrong", ["", "udp and", "prot udp", "host", "host 10.0.0.300", "net 10.0.0.1/24",
                                   "port 70000", "(udp", "udp)", "udp & tcp", "icmp port 3", "portrange 9-1",
                                   "udp host 10.0.0.1", "port x", "less", "host 10.0.0.0/24", "udp udp"])
def test_bad_expressions_have_a_clear_error(wrong):
    with pytest.raises(FilterError, match=r".+"):
        compile_filter(wrong)


@given(st.text(max_size=20) | st.lists(st.sampled_from([*WORDS, "9-1", "x", "&"]), max_size=6).map(" ".join))
def test_any_text_compiles_or_is_a_filter_error(text):
    try:
        test = compile_filter(text)
    except FilterError:
        return
    assert test(PACKET) in (True, False)


@given(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join))
@example("udp and not ( src host 10.0.0.1 )")
@example("not not tcp port 53 or udp")
def test_what_compiles_is_in_libpcap_s_language_and_has_the_same_verdict(text):
    libpcap()
    try:
        test = compile_filter(text)
    except FilterError:
        return
    assert test(PACKET) == captures.capture_filter(text, pcapng.LINKTYPE_RAW)(PACKET)


@pytest.mark.parametrize(("expression", "verdict"), [
    (" or ".join(["tcp"] * 5000 + ["udp"]), True), (" and ".join(["udp"] * 5000 + ["tcp"]), False),
    ("not " * 100 + "udp", True), ("not (" * 50 + "udp" + ")" * 50, True)])
def test_a_long_expression_is_a_test_like_any_other(expression, verdict):
    assert compile_filter(expression)(PACKET) is verdict


@pytest.mark.parametrize("expression", ["!" * 5000 + "udp", "(" * 5000 + "udp" + ")" * 5000, "not (" * 5000])
def test_what_is_nested_too_deep_has_a_clear_error(expression):
    with pytest.raises(FilterError, match="nested more than 100 deep"):
        compile_filter(expression)


def test_libpcap_compiles_for_each_link_type():
    libpcap()
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=53))
    frame = b"\xff" * 6 + bytes(6) + b"\x08\x00" + packet
    assert captures.capture_filter("udp dst port 53", pcapng.LINKTYPE_RAW)(packet)
    assert captures.capture_filter("ether broadcast and (udp[2:2] = 0 or ip[9] = 17)", pcapng.LINKTYPE_ETHERNET)(frame)
    assert not captures.capture_filter("ether broadcast", pcapng.LINKTYPE_RAW)(packet)
    with pytest.raises(FilterError, match="syntax error"):
        captures.capture_filter("udp prot 53", pcapng.LINKTYPE_RAW)


def test_without_libpcap_a_part_of_the_language_remains(monkeypatch):
    monkeypatch.setattr(captures, "_libpcap", lambda: None)
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=53))
    for link_type, octets in ((pcapng.LINKTYPE_RAW, packet),
                              (pcapng.LINKTYPE_ETHERNET, bytes(12) + b"\x08\x00" + packet)):
        assert captures.capture_filter("udp port 53", link_type)(octets)
        assert not captures.capture_filter("udp port 54", link_type)(octets)
    with pytest.raises(FilterError):
        captures.capture_filter("ether broadcast", pcapng.LINKTYPE_ETHERNET)
