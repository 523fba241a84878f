"""What other stacks fell over (their reports are named), with a peer in literal segments and a moved clock."""

from __future__ import annotations

import errno
import itertools

import pytest

from layers.tcp import info, isn
from layers.tcp.counters import Counters
from packets.tcp import ACK, RST, SYN, Options, Segment
from tests.unit.tcp.host import A, B, Host, World, pair
from tests.unit.tcp.peer import ISN, PEER_PORT, Peer

STAMPS = Options(mss=1000, timestamps=(100, 0))


def test_rfc6528_isns_grow_with_time_and_over_a_restart_and_differ_by_ends():
    secret = bytes(32)
    first = isn.initial(secret, b"ends", 1000.0)
    assert (isn.initial(secret, b"ends", 1001.0) - first) & 0xFFFFFFFF == 250_000
    assert isn.initial(secret, b"other", 1000.0) != first
    peer = Peer()
    peer.connects()
    before = peer.isn
    heir = Peer(peer.host.successor(3), 1002.0)
    heir.port = PEER_PORT
    assert heir.host.engine.secret == peer.host.engine.secret
    assert isn.initial(heir.host.engine.secret, b"x", 1002.0) - isn.initial(peer.host.engine.secret, b"x", 1000.0)
    assert before is not None


def test_rfc1337_a_reset_does_not_end_time_wait_and_a_fin_again_is_acknowledged():
    peer = Peer()
    handle = peer.connects()
    assert peer.write(handle, b"", end=True) == ["F. 1(0) ack 1"]
    assert peer.says("F.", 1, 2) == [". 2(0) ack 2"]
    assert peer.host.state_of(handle) == "TIME-WAIT"
    assert peer.says("R", 2) == []
    assert peer.host.state_of(handle) == "TIME-WAIT"
    peer.passes(50)
    assert peer.says("F.", 1, 2) == [". 2(0) ack 2"]
    peer.passes(59)
    assert peer.host.state_of(handle) == "TIME-WAIT"
    peer.passes(2)
    assert peer.host.state_of(handle) == "CLOSED"


def test_rfc6191_a_syn_with_a_later_timestamp_takes_the_place_of_time_wait():
    peer = Peer()
    handle = peer.connects(STAMPS)
    peer.write(handle, b"", end=True)
    peer.says("F.", 1, 2, options=Options(timestamps=(101, 0)))
    assert peer.host.state_of(handle) == "TIME-WAIT"
    old = peer.isn
    assert peer.says("S", 5, options=Options(mss=1000, timestamps=(100, 0))) == [". 2(0) ack 2"], "an older one"
    assert peer.says("S", 1_000_000, options=Options(mss=1000, timestamps=(200, 0)))[0].startswith("S.")
    assert 0 < (peer.isn - old) & 0xFFFFFFFF < 1 << 31


def test_rfc9293_3_8_1_octets_are_sent_again_in_every_state_that_has_any_utcp_24():
    for closes_first in (False, True):
        peer = Peer()
        handle = peer.connects()
        if closes_first:
            peer.says("F.", 1, 1)
            assert peer.host.state_of(handle) == "CLOSE-WAIT"
        peer.write(handle, b"octets", end=closes_first)
        peer.hears()
        peer.passes(1.5)
        again = [line for line in peer.hears() if line.split()[1].startswith("1(6)")]
        assert again, closes_first


def test_simultaneous_close_sends_its_fin_again_mirage_489():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"", end=True)
    assert peer.says("F.", 1, 1) == [". 2(0) ack 2"]
    assert peer.host.state_of(handle) == "CLOSING"
    peer.hears()
    peer.passes(1.5)
    assert "F. 1(0) ack 2" in peer.hears()
    assert peer.says(".", 2, 2) == []
    assert peer.host.state_of(handle) == "TIME-WAIT"


def test_rfc9293_3_8_6_1_a_probe_has_one_octet_and_backs_off_and_never_gives_up_while_it_is_answered_gvisor_10243():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"x" * 3000)
    peer.hears()
    peer.says(".", 1, 3001, window=0)
    peer.write(handle, b"y" * 10)
    assert peer.hears() == []
    at = []
    for _ in range(30):
        peer.passes(0.1)
        while not peer.heard:
            peer.passes(0.1)
        assert peer.hears() in ([". 3001(1) ack 1"], ["P. 3001(1) ack 1"])
        at.append(peer.now)
        peer.says(".", 1, 3001, window=0)
        peer.heard.clear()
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert waits[3] > 1.8 * waits[2] > 3 * waits[1]
    assert max(waits) <= 121
    assert peer.host.state_of(handle) == "ESTABLISHED"
    assert peer.says(".", 1, 3001, window=100) == [". 3001(1) ack 1", "P. 3002(9) ack 1"]


def test_rfc9293_3_8_6_2_2_a_reader_of_single_octets_makes_no_silly_windows():
    peer = Peer()
    handle = peer.connects()
    seq = 1
    while peer.host.conn(handle).advertised - seq >= 1000:
        peer.says(".", seq, 1, b"x" * 1000)
        seq += 1000
    left = peer.host.conn(handle).advertised - seq
    peer.hears()
    for _ in range(900):
        peer.host.take(handle, 1)
    assert peer.hears() == []
    peer.says(".", seq, 1, b"x" * left)
    peer.hears()
    peer.host.take(handle, 3000)
    assert peer.hears(), "a window that was closed opens at once (smoltcp 199, 935)"


def test_rfc9293_3_7_4_nagle_in_minshalls_variant():
    peer = Peer()
    handle = peer.connects()
    assert peer.write(handle, b"a" * 10) == ["P. 1(10) ack 1"]
    assert peer.write(handle, b"b" * 10) == [], "one small segment is under way"
    assert peer.write(handle, b"c" * 990) == ["P. 11(1000) ack 1"]
    assert peer.says(".", 1, 1011) == []
    assert peer.write(handle, b"d" * 10) == ["P. 1011(10) ack 1"], "only full ones are under way"
    peer.host.set(handle, 9, nodelay=True)
    assert peer.write(handle, b"e" * 10) == ["P. 1021(10) ack 1"]


def test_a_cork_holds_a_part_segment_back_for_a_fifth_of_a_second():
    peer = Peer()
    handle = peer.connects()
    peer.host.set(handle, 9, cork=True)
    assert peer.write(handle, b"a" * 1500) == [". 1(1000) ack 1"]
    peer.says(".", 1, 1001)
    peer.heard.clear()
    peer.passes(0.19)
    assert peer.hears() == []
    peer.passes(0.02)
    assert peer.hears() == ["P. 1001(500) ack 1"]
    peer.says(".", 1, 1501)
    assert peer.write(handle, b"b" * 5) == []
    peer.host.set(handle, 10, cork=False)
    assert peer.hears() == ["P. 1501(5) ack 1"]


def test_rfc5961_3_2_only_the_exact_reset_counts():
    peer = Peer()
    handle = peer.connects()
    assert peer.says("R", 2) == [". 1(0) ack 1"]
    assert peer.says("R", 70_000) == []
    assert peer.says("S", 2) == [". 1(0) ack 1"]
    assert peer.host.state_of(handle) == "ESTABLISHED"
    assert peer.says("R", 1) == []
    assert peer.host.applications[handle].error == errno.ECONNRESET


def test_rfc5961_7_challenges_are_limited_and_answers_to_text_are_not_smoltcp_1162():
    peer = Peer()
    peer.connects()
    challenges = sum(bool(peer.says("R", 100)) for _ in range(300))
    assert challenges == 100
    old = sum(bool(peer.says(".", (1 << 32) - 5000, 1, b"old")) for _ in range(50))
    assert old == 50
    probes = sum(bool(peer.says(".", 0, 1)) for _ in range(50))
    assert probes == 1, "two ends that disagree must not answer each other for ever"


def test_rfc7323_5_3_an_old_segment_is_dropped_and_after_24_days_it_is_not_old():
    peer = Peer()
    handle = peer.connects(STAMPS)
    assert peer.says(".", 1, 1, b"new", options=Options(timestamps=(200, 0))) == [". 1(0) ack 4"]
    assert peer.says(".", 4, 1, b"old", options=Options(timestamps=(150, 0))) == [". 1(0) ack 4"]
    assert bytes(peer.host.applications[handle].received) == b"new"
    peer.passes(25 * 86400)
    peer.says(".", 4, 1, b"much later", options=Options(timestamps=(150, 0)))
    assert bytes(peer.host.applications[handle].received) == b"newmuch later"


def test_a_segment_without_timestamps_is_tolerated_as_on_linux():
    peer = Peer()
    handle = peer.connects(STAMPS)
    peer.says(".", 1, 1, b"plain")
    assert bytes(peer.host.applications[handle].received) == b"plain"


def test_options_take_their_room_from_the_text_also_of_super_segments():
    peer = Peer(Host(B, super_octets=64_000))
    handle = peer.connects(Options(mss=1000, timestamps=(100, 0), sack_permitted=True))
    peer.host.write(handle, b"z" * 50_000)
    for _, _, segment, size, _ in peer.host.sent:
        if len(segment.payload) > 988:
            assert size == 988
            assert len(segment.payload) % 988 == 0


def test_rfc2018_8_a_peer_that_reneges_gets_its_octets_again():
    peer = Peer()
    handle = peer.connects(Options(mss=1000, sack_permitted=True))
    peer.write(handle, b"w" * 5000)
    peer.says(".", 1, 1, options=Options(sack=(((peer.isn + 1001) & 0xFFFFFFFF, (peer.isn + 5001) & 0xFFFFFFFF),)))
    peer.hears()
    sent = set()
    una = 1
    for _ in range(40):
        peer.passes(2)
        for line in peer.hears():
            start, length = line.split()[1].rstrip(")").split("(")
            if int(length):
                sent.add(int(start))
                if int(start) == una:  # it has kept nothing that it reported
                    una += int(length)
                    peer.says(".", 1, una)
        if una == 5001:
            break
    assert una == 5001, sorted(sent)


def test_holes_are_bounded_and_single_octets_cost_no_more_than_their_ring():
    peer = Peer()
    handle = peer.connects()
    for at in range(3, 20_000, 2):
        peer.says(".", at, 1, b"h")
    conn = peer.host.conn(handle)
    assert len(conn.out_of_order) <= 64
    assert conn.receive_ring.size == 65536


def test_every_other_segment_of_a_large_window_is_kept_when_the_rest_is_lost():
    """That is what slow start loses when it overflows a queue. What is not kept must be sent again."""
    peer, size, segments = Peer(), 1000, 400
    handle = peer.connects(Options(mss=size, window_scale=7), receive_buffer=1 << 21)
    octets = bytes(range(250)) * (size * segments // 250)

    def says(number: int) -> None:
        peer.says(".", 1 + number * size, 1, octets[number * size : (number + 1) * size])

    for number in (0, 1, *range(3, segments, 2)):  # the first two bring an ACK with the whole window
        says(number)
    assert len(peer.host.conn(handle).out_of_order) == segments // 2 - 1
    for number in range(2, segments, 2):
        says(number)
    assert peer.host.applications[handle].received == octets


def test_rounded_windows_never_promise_more_than_the_ring_holds():
    peer = Peer()
    handle = peer.connects(Options(mss=1460, window_scale=7))
    conn = peer.host.conn(handle)
    assert conn.own_scale == 7
    seq = 1
    while conn.advertised - seq > 1500:
        peer.says(".", seq, 1, b"r" * 57)  # each of these ACKs has its window rounded
        seq += 57
        assert conn.advertised - conn.read <= 65536
    assert len(peer.host.applications[handle].received) == seq - 1


def test_rfc4987_a_flood_of_syns_is_answered_by_cookies_and_a_cookie_opens_a_connection():
    peer = Peer().listens()
    for port in range(1000, 1300):
        peer.port = port
        assert peer.says("S", 0, options=Options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(7, 0)))
    assert len(peer.host.engine.lookup.connections) == 128
    cookies = peer.host.counters[Counters.cookies_sent]
    assert cookies == 300 - 128
    peer.port = 1299  # the last had a cookie
    syn_ack = peer.heard[-1]
    stamps = Options(timestamps=(8, syn_ack.options.timestamps[0]))
    assert peer.says(".", 1, 1, options=stamps) == []
    handle = peer.host.accepted_handles[-1][1]
    conn = peer.host.conn(handle)
    assert (conn.peer_scale, conn.sack_ok, conn.mss) == (7, True, 1460)
    peer.says("P.", 1, 1, b"text", options=Options(timestamps=(9, syn_ack.options.timestamps[0])))
    assert bytes(peer.host.applications[handle].received) == b"text"
    peer.port = 1298
    assert peer.says(".", 1, 12345)[0].startswith("R"), "no cookie of ours"


def test_the_last_ack_waits_while_the_accept_queue_is_full_as_on_linux():
    peer = Peer().listens(listen=0)
    for port in (1, 2):
        peer.port = 1000 + port
        assert peer.says("S", 0, options=Options(mss=1000)) == ["S. 0(0) ack 1"]
    isns = {segment.destination_port: segment.sequence for segment in peer.heard}
    for port in (1, 2):
        peer.port, peer.isn = 1000 + port, isns[1000 + port]
        peer.says(".", 1, 1)
    assert len(peer.host.accepted_handles) == 1
    peer.port = 1003
    assert peer.says("S", 0, options=Options(mss=1000)) == [], "nor is a SYN taken"
    peer.hears()
    peer.passes(1.5)
    assert any(line.startswith("S.") for line in peer.hears()), "the SYN-ACK comes again"
    peer.host.do(lambda host: host.calls.accept(5, 1, 2))
    peer.port, peer.isn = 1002, isns[1002]
    peer.says(".", 1, 1)
    assert len(peer.host.accepted_handles) == 2


def test_keepalive_probes_an_idle_connection_and_ends_a_dead_one():
    peer = Peer()
    handle = peer.connects(keepalive=True, keepidle=10, keepintvl=2, keepcnt=3)
    peer.passes(9)
    assert peer.hears() == []
    peer.passes(1.5)
    assert peer.hears() == [". 0(0) ack 1"]
    assert peer.says(".", 1, 1) == []
    peer.passes(10.5)
    assert peer.hears() == [". 0(0) ack 1"]
    peer.passes(10)
    assert peer.host.applications[handle].error == errno.ETIMEDOUT
    assert peer.hears()[-1].startswith("R")


def test_rfc5482_the_user_timeout_ends_a_connection_with_unacknowledged_octets():
    peer = Peer()
    handle = peer.connects(user_timeout=5000)
    peer.passes(100)
    peer.write(handle, b"lost")
    peer.passes(4.5)
    assert peer.host.applications[handle].error is None
    peer.passes(10)
    assert peer.host.applications[handle].error == errno.ETIMEDOUT


def test_a_connection_is_given_up_after_a_quarter_of_an_hour_and_a_syn_after_two_minutes():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"lost")
    peer.passes(800)
    assert peer.host.applications[handle].error is None
    peer.passes(400)
    assert peer.host.applications[handle].error == errno.ETIMEDOUT
    peer.host.set(9, peer=A, peer_port=1, connect=1)
    peer.passes(100)
    assert peer.host.applications[9].error is None
    peer.passes(60)
    assert peer.host.applications[9].error == errno.ETIMEDOUT


def test_rfc9293_3_8_3_ip_is_told_after_three_retransmissions_and_applications_can_see_it():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"lost")
    while peer.host.conn(handle).backoffs < 3:
        assert peer.host.advised == []
        peer.passes(0.1)
    assert peer.host.advised == [A]
    told = info.tcp_info(peer.host.engine, peer.host.conn(handle))
    assert (told[2], told[4]) == (3, 3)  # tcpi_retransmits, tcpi_backoff
    while peer.host.conn(handle).backoffs < 5:
        peer.passes(0.1)
    assert peer.host.advised == [A, A, A]


def test_rfc9293_3_8_3_a_syn_is_sent_for_three_minutes_where_tcp_syncnt_says_so():
    peer = Peer()
    peer.host.set(9, peer=A, peer_port=1, connect=1, syncnt=7)
    peer.passes(200)
    assert peer.host.applications[9].error is None
    peer.passes(60)
    assert peer.host.applications[9].error == errno.ETIMEDOUT


def test_rfc4821_a_black_hole_is_found():
    peer = Peer()
    handle = peer.connects(Options(mss=1460))
    peer.write(handle, b"b" * 3000)
    peer.hears()
    sizes = []
    for _ in range(40):
        peer.passes(0.5)
        for line in peer.hears():
            size = int(line.split("(")[1].split(")")[0])
            sizes.append(size)
    assert min(size for size in sizes if size) <= 1024


def sending(world: World, host: Host, handle: int, seconds: float) -> None:
    """The application sends all the time, as far as there is room."""
    application, end = host.applications[handle], world.now + seconds
    while world.now < end:
        if application.limit - len(application.written) >= 1 << 14:
            host.write(handle, bytes(1 << 14))
        world.run(0.1)


def interrupted(outage_s: float) -> tuple[World, Host, int]:
    """Full segments have arrived, then the link loses everything for so long."""
    world, a, _, left, _ = pair()
    sending(world, a, left, 0.5)
    world.fate = lambda source, segment: []
    sending(world, a, left, outage_s)
    world.fate = None
    return world, a, left


def sent_larger_than(octets: int, world: World, since: float) -> list[Segment]:
    return [segment for when, source, segment in world.log
            if source == A and when >= since and len(segment.payload) > octets]


def test_rfc4821_some_timeouts_after_full_segments_have_arrived_are_no_black_hole():
    _, a, left = interrupted(1.3)
    assert a.conn(left).backoffs >= 2
    assert (a.conn(left).mss, a.counters[Counters.mtu_lowered]) == (1460, 0)


def test_rfc4821_after_an_outage_the_former_size_is_tried_again():
    world, a, left = interrupted(8)
    assert a.conn(left).mss <= 1024
    sending(world, a, left, 30)
    assert a.conn(left).mss == 1460
    sending(world, a, left, 1)
    assert sent_larger_than(1447, world, world.now - 1)


def test_rfc4821_a_successor_tries_the_former_size_again():
    world, a, left = interrupted(8)
    assert a.conn(left).mss <= 1024
    world.hosts[A] = a = a.successor(9)
    sending(world, a, left, 30)
    assert a.conn(left).mss == 1460


def test_rfc4821_a_path_that_no_longer_carries_the_former_size_loses_one_segment_in_ten_minutes():
    world, a, left = interrupted(8)
    begun, least = world.now, a.conn(left).mss
    world.fate = lambda source, segment: [0.01] if len(segment.payload) <= 1100 else []
    sending(world, a, left, 20)
    assert a.conn(left).mss == least
    assert len(sent_larger_than(1100, world, begun)) == 1
    assert a.conn(left).snd_una > 1 << 19


def test_rfc5927_an_error_counts_only_if_what_it_quotes_is_in_flight():
    from layers.tcp import icmp

    peer = Peer()
    handle = peer.connects(Options(mss=1460))
    conn = peer.host.conn(handle)
    peer.write(handle, b"m" * 1400)
    quoted = (peer.isn + 1) & 0xFFFFFFFF
    assert not peer.host.do(lambda host: icmp.error(host.engine, conn, 3, 4, 600, quoted + 99_999, False))
    assert conn.mss == 1460
    assert peer.host.do(lambda host: icmp.error(host.engine, conn, 3, 4, 600, quoted, False))
    assert conn.mss == 560
    assert all(int(line.split("(")[1].split(")")[0]) <= 560 for line in peer.hears())
    assert peer.host.do(lambda host: icmp.error(host.engine, conn, 3, 3, 0, quoted, False))
    assert peer.host.state_of(handle) == "ESTABLISHED", "a hard error is soft once established"


def test_a_retransmission_has_the_same_octets():
    peer = Peer()
    handle = peer.connects()
    peer.host.write(handle, bytes(range(250)) * 8)
    first = {segment.sequence: segment.payload for segment in peer.host.out()}
    peer.host.write(handle, b"more")
    peer.passes(30)
    for segment in peer.heard:
        if segment.sequence in first and segment.payload:
            assert first[segment.sequence].startswith(segment.payload[: len(first[segment.sequence])])


@pytest.mark.parametrize("reuse", [False, True])
def test_a_port_with_a_connection_in_time_wait_needs_so_reuseaddr(reuse):
    peer = Peer()
    handle = peer.connects(reuse_address=reuse)
    peer.write(handle, b"", end=True)
    peer.says("F.", 1, 2)
    assert peer.host.state_of(handle) == "TIME-WAIT"
    peer.host.close(handle)
    peer.host.close(5)
    expected = 0 if reuse else errno.EADDRINUSE
    assert peer.host.set(6, port=80, bind=True, listen=1, reuse_address=reuse) == expected


def test_a_segment_without_a_connection_is_reset_by_its_own_numbers():
    host = Host(B)
    host.arrive(A, Segment(1, 2, ISN, 77, ACK, 0, payload=b"x"))
    host.arrive(A, Segment(1, 2, ISN, 0, SYN, 0))
    host.arrive(A, Segment(1, 2, ISN, 0, RST, 0))
    resets = host.out()
    assert [(reset.flags, reset.sequence, reset.acknowledgment) for reset in resets] == [
        (RST, 77, 0), (RST | ACK, 0, ISN + 1)]


def test_a_process_that_ends_after_sendall_has_its_octets_delivered_then_fin():
    peer = Peer()
    handle = peer.connects()
    peer.host.write(handle, b"e" * 5000)
    peer.host.close(handle)
    peer.hears()
    una, received = 1, 0
    for _ in range(20):
        for line in peer.hears() or []:
            start, length = map(int, line.split()[1].rstrip(")").split("("))
            una = max(una, start + length)
        peer.says(".", 1, una)
        peer.passes(0.3)
        received = una - 1
    assert received == 5000


def test_a_syn_with_fin_opens_nothing():
    peer = Peer().listens()
    assert peer.says("SF", 0, text=b"text") == []
    assert peer.host.counters[Counters.listen_bad] == 1
    assert peer.says("S", 27) == ["S. 0(0) ack 28"]


def test_rfc2018_4_the_block_that_grew_last_is_reported_first():
    peer = Peer()
    peer.connects(Options(mss=1000, sack_permitted=True))

    def blocks() -> list[tuple[int, int]]:
        return [((left - ISN) & 0xFFFFFFFF, (right - ISN) & 0xFFFFFFFF) for left, right in peer.heard[-1].options.sack]

    peer.says(".", 1001, 1, b"a" * 1000)
    assert blocks() == [(1001, 2001)]
    peer.says(".", 4001, 1, b"b" * 1000)
    assert blocks() == [(4001, 5001), (1001, 2001)]
    peer.says(".", 2001, 1, b"c" * 1000)
    assert blocks() == [(1001, 3001), (4001, 5001)]
    peer.says(".", 4001, 1, b"b" * 1000)
    assert blocks() == [(4001, 5001), (4001, 5001), (1001, 3001)], "what came twice is reported before (RFC 2883)"
    peer.says(".", 1, 1, b"d" * 1000)
    assert blocks() == [(4001, 5001)]


def test_rfc5961_5_2_what_acknowledges_the_future_or_the_distant_past_is_dropped():
    peer = Peer()
    handle = peer.connects()
    assert peer.says(".", 1, 2, b"future") == [". 1(0) ack 1"]
    assert peer.says(".", 1, (1 << 32) - 200_000, b"past") == [". 1(0) ack 1"]
    assert bytes(peer.host.applications[handle].received) == b""


def test_rfc6191_without_timestamps_the_sequence_number_decides():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"", end=True)
    peer.says("F.", 1, 2)
    assert peer.says("S", 1, options=Options(mss=1000)) == [". 2(0) ack 2"]
    assert peer.says("S", 2, options=Options(mss=1000)) == ["S. 0(0) ack 3"]


def test_there_are_not_more_connections_in_time_wait_than_memory_is_for(monkeypatch):
    monkeypatch.setattr("layers.tcp.engine.TIME_WAIT_MAX", 3)
    peer = Peer().listens(listen=20)
    for port in range(1001, 1007):
        peer.port, peer.isn = port, None
        peer.says("S", 0, options=Options(mss=1000))
        peer.says(".", 1, 1)
        handle = peer.host.accepted_handles[-1][1]
        peer.write(handle, b"", end=True)
        peer.says("F.", 1, 2)
    assert [conn.ends.peer_port for conn in peer.host.engine.lookup.connections.values()] == [1004, 1005, 1006]
    assert peer.host.counters[Counters.time_wait_ended] == 3
