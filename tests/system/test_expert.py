"""What the experts object to, and what they let pass: a capture that is made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from .conftest import require_program
from .expert import Moment, Ran, objections
from .peers import KERNEL, STACK

TEST = "the test"
MANY = 10


def frames(*segments: tuple) -> list[Ether]:
    """A connection that is open, then (ms later, sender, sequence number, flags, payload, fields of TCP)."""
    opening = ((0, KERNEL, 99, "S", b"", {}), (1, STACK, 499, "SA", b"", {"ack": 100}),
               (1, KERNEL, 100, "A", b"", {"ack": 500}))
    made, ms = [], 0
    for later_ms, source, seq, flags, payload, more in (*opening, *segments):
        destination, ports = (STACK, (5000, 80)) if source == KERNEL else (KERNEL, (80, 5000))
        fields = {"sport": ports[0], "dport": ports[1], "seq": seq, "flags": flags, "window": 65535,
                  "ack": 500 if source == KERNEL else 100} | more
        frame = (Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src=source, dst=destination)
                 / TCP(**fields) / payload)
        ms += later_ms
        frame.time = 1000 + ms / 1000
        made.append(frame)
    return made


def from_kernel(later_ms: float, seq: int = 100, octets: int = 1400) -> tuple:
    return later_ms, KERNEL, seq, "A", b"t" * octets, {}


def from_stack(later_ms: float, seq: int = 500, octets: int = 1400) -> tuple:
    return later_ms, STACK, seq, "A", b"t" * octets, {}


def stack_acknowledges(ack: int, *sack: int) -> tuple:
    return 1, STACK, 500, "A", b"", {"ack": ack, "options": [("SAck", sack)] if sack else []}


def kernel_acknowledges(ack: int) -> tuple:
    return 1, KERNEL, 100, "A", b"", {"ack": ack}


def objected(directory: Path, segments: list, starved_s: float = 0.0, provokes: frozenset[str] = frozenset()
             ) -> list[str]:
    capture = directory / "pcap"
    wrpcap(str(capture), frames(*segments))
    ran = Ran(TEST, Moment(999.0, 5.0), Moment(1100.0, 5.0 + starved_s), provokes)
    return objections(require_program("tshark"), [capture], [ran])


@pytest.mark.parametrize(("segments", "kind"), [
    pytest.param([from_kernel(10), stack_acknowledges(1500)], None, id="nothing"),
    pytest.param([(10, STACK, 500, "A", b"", {"window": 0})], "zero window", id="zero window"),
    pytest.param([(10, KERNEL, 100, "PA", b"text", {"chksum": 0x1234})], "checksum", id="checksum"),
    pytest.param([(10, KERNEL, 100, "PA", b"text", {"chksum": 0x1421})], None, id="partial checksum"),
    pytest.param([(10, KERNEL, 100, "PA", b"text", {"dataofs": 4})], "malformed", id="malformed"),
    pytest.param([from_kernel(10), from_kernel(1)], "retransmission", id="retransmission"),
    pytest.param([from_kernel(10, 1500), from_kernel(1)], "out of order", id="out of order"),
])
def test_the_experts_objections_are_found(tmp_path: Path, segments: list, kind: str | None) -> None:
    said = objected(tmp_path, segments)
    assert [each.partition(": ")[0] for each in said] == ([TEST] if kind else [])
    assert kind is None or kind in said[0]
    if kind:
        assert not objected(tmp_path, segments, provokes=frozenset({kind}))
        elsewhere = Ran("another", Moment(999.0, 0.0), Moment(999.5, 0.0), frozenset({kind}))
        assert objections(require_program("tshark"), [tmp_path / "pcap"], [elsewhere])[0].startswith("between")


@pytest.mark.parametrize(("segments", "reason"), [
    pytest.param([from_kernel(10), from_kernel(1)], "too early", id="after 1 ms"),
    pytest.param([from_kernel(10), from_kernel(1, 1500), from_kernel(50)], "too early", id="not the last, before RTO"),
    pytest.param([from_kernel(10), stack_acknowledges(1500), from_kernel(9)], "after it was acknowledged",
                 id="acknowledged"),
    pytest.param([from_kernel(10), from_kernel(1, 1500), stack_acknowledges(100, 1500, 2900), from_kernel(50)],
                 "it was lost", id="lost"),
    pytest.param([from_kernel(10), from_kernel(0, 1500), stack_acknowledges(100, 1500, 2900), from_kernel(9, 1500)],
                 "after it was acknowledged", id="acknowledged selectively"),
    pytest.param([from_stack(10, 1900), from_stack(1)], "out of order", id="out of order"),
])
def test_no_busy_machine_explains_it(tmp_path: Path, segments: list, reason: str) -> None:
    said = objected(tmp_path, segments, starved_s=100.0)
    assert len(said) == 1, said
    assert reason in said[0]


@pytest.mark.parametrize(("again", "each_s"), [
    pytest.param([from_kernel(10), from_kernel(0, 1500), *[from_kernel(12, 1500)] * MANY], 0.012,
                 id="the kernel's probes"),
    pytest.param([from_stack(10), from_stack(0, 1900), *[from_stack(12, 1900)] * MANY], 0.012,
                 id="the stack's probes"),
    pytest.param([from_stack(10), *[from_stack(0.5)] * MANY], 0.0015, id="the stack's, passed on late"),
    pytest.param([from_stack(10), kernel_acknowledges(1900), *[from_stack(12)] * MANY], 0.012,
                 id="the stack, which has the ACK late"),
    pytest.param([from_stack(10), from_stack(0, 1900), *[from_stack(250)] * MANY], 0.25, id="time-outs"),
])
def test_only_a_process_that_waited_for_a_processor_explains_it(tmp_path: Path, again: list, each_s: float) -> None:
    waited_s = each_s * MANY
    assert objected(tmp_path, again, starved_s=0.01), "and a few ms are not enough"
    assert not objected(tmp_path, again, starved_s=max(2 * waited_s, 0.5))


def test_two_short_segments_in_flight_are_probed_for_before_their_delayed_ack(tmp_path: Path) -> None:
    """RFC 8985 section 7.2 waits longer only for the ACK of a single one."""
    pairs = [each for number in range(20) for each in (
        from_kernel(10, 100 + 20 * number, 10), from_kernel(0, 110 + 20 * number, 10),
        from_kernel(12, 110 + 20 * number, 10), stack_acknowledges(120 + 20 * number))]
    assert objected(tmp_path, pairs) == []


def test_text_of_a_syn_that_was_not_taken_is_sent_again(tmp_path: Path) -> None:
    """RFC 7413 section 4.2.2."""
    refused = [(10, STACK, 899, "S", b"t" * 8, {"sport": 81, "ack": 0}),
               (1, KERNEL, 99, "SA", b"", {"dport": 81, "ack": 900}),
               (1, STACK, 900, "PA", b"t" * 8, {"sport": 81, "ack": 100})]
    assert objected(tmp_path, refused) == []
