"""packets.pcapng, judged by tshark, capinfos and scapy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packets import pcapng

UDP = bytes.fromhex("45000020000100004011665b0a0000010a00000213880035000c0000") + b"test"
WHEN_NS = 1_700_000_000_123_456_789


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("CI") == "true":
        raise RuntimeError(f"{name} is missing")
    return found or pytest.skip(f"no {name} here")


def sample() -> bytes:
    return b"".join([
        pcapng.section("usernet test", comment="one section"),
        pcapng.interface("link:wire", pcapng.LINKTYPE_ETHERNET, "what leaves", "udp port 53"),
        pcapng.interface("link:ip", pcapng.LINKTYPE_RAW),
        pcapng.packets(0, WHEN_NS, [bytes(12) + b"\x08\x00" + UDP],
                       pcapng.packet_options(comment="link 3", direction=pcapng.OUTBOUND)),
        pcapng.packets(1, WHEN_NS + 1, [UDP], pcapng.packet_options(comment="dropped: bad_checksum", dropped=7)),
        pcapng.statistics(0, WHEN_NS + 5, start_ns=WHEN_NS, received=3, lost=2)])


def test_reader_gives_back_what_was_written():
    read = list(pcapng.read(sample()))
    assert read[:2] == [pcapng.Interface("link:wire", 1, "what leaves"), pcapng.Interface("link:ip", 101, "")]
    assert read[2].comment == "link 3"
    assert read[2].when_ns == WHEN_NS
    assert read[3] == pcapng.Packet(1, WHEN_NS + 1, UDP, len(UDP), "dropped: bad_checksum", 7)
    assert read[4] == pcapng.Statistics(0, 3, 2)


def test_tshark_reads_interfaces_times_comments_and_drops(tmp_path: Path):
    path = tmp_path / "sample.pcapng"
    path.write_bytes(sample())
    fields = ["frame.interface_name", "frame.time_epoch", "frame.comment", "ip.dst", "udp.dstport", "frame.len"]
    out = subprocess.run([tool("tshark"), "-r", path, "-T", "json", *(part for f in fields for part in ("-e", f))],
                         capture_output=True, check=True, text=True)
    first, second = (packet["_source"]["layers"] for packet in json.loads(out.stdout))
    assert first["frame.interface_name"] == ["link:wire"]
    assert second["frame.interface_name"] == ["link:ip"]
    assert first["frame.time_epoch"][0].startswith("1700000000.123456789")
    assert first["frame.comment"] == ["link 3"]
    assert second["frame.comment"] == ["dropped: bad_checksum"]
    assert first["ip.dst"] == ["10.0.0.2"]
    assert first["udp.dstport"] == ["53"]
    assert second["frame.len"] == [str(len(UDP))]


def test_capinfos_names_the_interfaces(tmp_path: Path):
    path = tmp_path / "sample.pcapng"
    path.write_bytes(sample())
    out = subprocess.run([tool("capinfos"), path], capture_output=True, check=True, text=True).stdout
    assert "Number of packets:   2" in out
    for text in ("Name = link:wire", "Name = link:ip", "Number of stat entries = 1", "nanoseconds (9)"):
        assert text in out


def test_scapy_reads_it(tmp_path: Path):
    from scapy.layers import inet  # noqa: F401  (registers the link types)
    from scapy.utils import rdpcap

    path = tmp_path / "sample.pcapng"
    path.write_bytes(sample())
    ethernet, ip = rdpcap(str(path))
    assert ethernet["UDP"].dport == 53
    assert ip["IP"].dst == "10.0.0.2"


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=70)), st.text(max_size=20))))
def test_any_packets_come_back(batches):
    octets = pcapng.section() + pcapng.interface("a", 101) + b"".join(
        pcapng.packets(0, when, packets, pcapng.packet_options(comment=text)) for when, packets, text in batches)
    assert [(p.when_ns, p.octets, p.comment) for p in pcapng.read(octets) if isinstance(p, pcapng.Packet)] == [
        (when, packet, text) for when, packets, text in batches for packet in packets]


def test_where_the_last_complete_block_ends():
    blocks = [pcapng.section(), pcapng.interface("a", 101), pcapng.packets(0, 1, [UDP])]
    ends = {0} | {len(b"".join(blocks[: count + 1])) for count in range(len(blocks))}
    octets = b"".join(blocks)
    for end in range(len(octets) + 1):
        assert pcapng.complete(octets, end) == max(each for each in ends if each <= end)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_foreign_octets_are_a_value_error_or_nothing(octets, cut):
    for attempt in (octets, sample()[:cut] + octets):
        try:
            list(pcapng.read(attempt))
        except ValueError:
            pass
