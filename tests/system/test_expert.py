"""What the experts object to, and what they let pass: a capture that is made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from .conftest import require_program
from .expert import PROBES_A_SECOND, PROBES_MAX, Ran, objections
from .peers import KERNEL, STACK

TEST = "the test"


def frames(*segments: tuple) -> list[Ether]:
    """A connection that is open, then (sender, sequence number, flags, payload, fields of TCP)."""
    opening = ((KERNEL, 99, "S", b"", {}), (STACK, 499, "SA", b"", {"ack": 100}), (KERNEL, 100, "A", b"", {"ack": 500}))
    made = []
    for number, (source, seq, flags, payload, more) in enumerate((*opening, *segments)):
        destination, ports = (STACK, (5000, 80)) if source == KERNEL else (KERNEL, (80, 5000))
        fields = {"ack": 500 if source == KERNEL else 100, "window": 65535} | more
        frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src=source, dst=destination) / TCP(
            sport=ports[0], dport=ports[1], seq=seq, flags=flags, **fields) / payload
        frame.time = 1000 + number / 100
        made.append(frame)
    return made


TEXT = (KERNEL, 100, "PA", b"text", {})
ACK = (STACK, 500, "A", b"", {"ack": 104})


@pytest.mark.parametrize(("segments", "kind"), [
    pytest.param([TEXT, ACK], None, id="nothing"),
    pytest.param([TEXT, *[TEXT] * (PROBES_MAX + 2 * PROBES_A_SECOND + 1)], "retransmission", id="retransmission"),
    pytest.param([TEXT, TEXT], None, id="a probe"),
    pytest.param([TEXT, *[TEXT] * (PROBES_MAX + 2 * PROBES_A_SECOND)], None, id="a probe again and again"),
    pytest.param([(STACK, 500, "A", b"", {"window": 0})], "zero window", id="zero window"),
    pytest.param([(KERNEL, 100, "PA", b"text", {"chksum": 0x1234})], "checksum", id="checksum"),
    pytest.param([(KERNEL, 100, "PA", b"text", {"chksum": 0x1421})], None, id="partial checksum"),
    pytest.param([(KERNEL, 100, "PA", b"text", {"dataofs": 4})], "malformed", id="malformed"),
])
def test_the_experts_objections_are_found(tmp_path: Path, segments: list, kind: str | None) -> None:
    tshark = require_program("tshark")
    capture = tmp_path / "pcap"
    wrpcap(str(capture), frames(*segments))
    said = objections(tshark, [capture], [Ran(TEST, 999.0, 1001.0, frozenset())])
    assert [each.partition(": ")[0] for each in said] == ([TEST] if kind else [])
    assert kind is None or kind in said[0]
    if kind:
        assert not objections(tshark, [capture], [Ran(TEST, 999.0, 1001.0, frozenset({kind}))])
        assert objections(tshark, [capture], [Ran("another", 999.0, 999.5, frozenset({kind}))])[0].startswith("between")
