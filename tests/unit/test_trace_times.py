"""cli.trace: when the way of a packet is shown."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether

from bus import messages
from bus.runtime import ring
from cli.pipes import DEVICE, Pipe
from cli.trace import Tracer
from cli.watching import Seen

MS = 1_000_000
UP, DOWN = Pipe(DEVICE, "link"), Pipe("link", DEVICE)


def shown_at(*steps: tuple[int, Pipe, int], different: bool = False) -> list[float]:
    """The seconds after which packets are shown that were seen at these (milliseconds, pipe, direction).

    They are the same, or each is another.
    """
    tracer, found = Tracer(lambda packet: True, with_vnet=False), []
    waiting = list(steps)
    for ms in range(0, 10_000, 100):
        while waiting and waiting[0][0] <= ms:
            at, pipe, direction = waiting.pop(0)
            ip = IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(seq=1)
            frame = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / (b"%d" % (different * at)))
            counter = "runt" if direction == ring.DROPPED else ""
            tracer.see(Seen(at * MS, pipe, "link", 1, direction, messages.ETHERNET, counter, [frame]))
        found += [ms / 1000 for _ in tracer.over(ms * MS)]
    return found


def test_one_that_has_left_is_shown_after_half_a_second():
    assert shown_at((0, DOWN, ring.OUT)) == [0.6]


def test_one_that_was_dropped_is_shown_after_half_a_second_though_link_might_have_held_it():
    assert shown_at((0, UP, ring.IN), (1000, UP, ring.DROPPED)) == [1.6]


def test_one_that_a_layer_holds_is_shown_after_six_seconds():
    assert shown_at((0, UP, ring.IN)) == [6.1]


def test_each_of_several_that_are_the_same_is_shown_once():
    assert shown_at((0, UP, ring.IN), (1, UP, ring.DROPPED), (2, UP, ring.IN), (3, UP, ring.DROPPED)) == [0.6, 0.6]


def test_a_frame_that_is_no_packet_keeps_none_waiting():
    arp = bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP())
    tracer = Tracer(lambda packet: True, with_vnet=False)
    tracer.see(Seen(0, UP, "link", 1, ring.IN, messages.ETHERNET, "", [arp]))
    assert list(tracer.over(20_000 * MS)) == []


def test_one_that_does_not_match_keeps_none_waiting():
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    other, mine = (bytes(ether / IP(src=source, dst="10.0.0.2") / ICMP() / source.encode())
                   for source in ("10.0.0.8", "10.0.0.9"))
    tracer = Tracer(lambda packet: packet[15] == 9, with_vnet=False)
    tracer.see(Seen(0, UP, "link", 1, ring.IN, messages.ETHERNET, "", [other]))
    tracer.see(Seen(1, DOWN, "link", 1, ring.OUT, messages.ETHERNET, "", [mine]))
    assert [" 10.0.0.9 " in journey.line for journey in tracer.over(1000 * MS)] == [True]


def test_each_waits_for_those_before():
    assert shown_at((0, UP, ring.IN), (1, DOWN, ring.OUT), different=True) == [6.1, 6.1]
