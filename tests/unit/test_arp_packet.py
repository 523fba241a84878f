"""ARP packets as scapy understands them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from packets import arp

MACS = st.binary(min_size=6, max_size=6)
ADDRESSES = st.binary(min_size=4, max_size=4)


def dotted(address: bytes) -> str:
    return ".".join(map(str, address))


def fields(octets: bytes) -> tuple:
    """What scapy reads: addressing, operation, sender, target. Scapy would keep surplus octets as a payload."""
    parsed = ARP(octets)
    assert not parsed.payload
    return (
        (parsed.hwtype, parsed.ptype, parsed.hwlen, parsed.plen),
        parsed.op,
        (bytes.fromhex(parsed.hwsrc.replace(":", "")), parsed.psrc),
        (bytes.fromhex(parsed.hwdst.replace(":", "")), parsed.pdst),
    )


@given(MACS, ADDRESSES, ADDRESSES)
def test_rfc826_request(mac, source, target):
    assert fields(arp.request(mac, source, target)) == (
        (1, 0x0800, 6, 4), 1, (mac, dotted(source)), (bytes(6), dotted(target)))


@given(MACS, ADDRESSES, MACS, ADDRESSES)
def test_rfc826_reply(mac, source, target_mac, target):
    assert fields(arp.reply(mac, source, target_mac, target)) == (
        (1, 0x0800, 6, 4), 2, (mac, dotted(source)), (target_mac, dotted(target)))


@given(MACS, ADDRESSES)
def test_rfc5227_2_3_announcement_is_a_request_for_oneself(mac, address):
    assert fields(arp.announcement(mac, address)) == (
        (1, 0x0800, 6, 4), 1, (mac, dotted(address)), (bytes(6), dotted(address)))


def test_only_a_station_can_have_a_mac():
    assert arp.is_station(bytes.fromhex("020000000001"))
    assert not arp.is_station(bytes.fromhex("ffffffffffff"))
    assert not arp.is_station(bytes.fromhex("01005e000001"))
    assert not arp.is_station(bytes(6))
