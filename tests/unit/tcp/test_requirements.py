"""Requirements of RFC 9293 (appendix B) that no other test shows; each carries its number."""

from __future__ import annotations

import errno
import random
import struct

from bus import messages, topology
from bus.config import StackConfig
from bus.messages import FLAG_GROUP, PACKET_HEAD, TRANSMIT_HEAD, decode_socket_reply, encode
from bus.streams import StreamState
from layers.tcp import icmp, info
from layers.tcp.core import Core
from layers.tcp.counters import Counters
from packets.tcp import ACK, CWR, ECE, SYN, Options, Segment, parse
from tests.unit.tcp.host import A, B, Host
from tests.unit.tcp.peer import Peer
from usernet.pipe.streams import STREAM_HEADER


def core() -> Core:
    config = StackConfig(name="t", run_dir="", address=B, prefix=24, mac=bytes(6))
    made = Core(config, {}, Counters.new(), random.Random(1))
    made.start(1000.0)
    return made


def declared(made: Core, **state: object) -> tuple[int, list]:
    sends = made.receive(topology.SOCKETS, messages.SOCKET_SET, [encode(StreamState(request=1, **state))], 1000.0)
    (reply,) = [record for _, kind, record in sends if kind == messages.SOCKET_REPLY]
    return decode_socket_reply(reply).errno, [record for _, kind, record in sends if kind == messages.TRANSMIT]


def packet(segment: Segment, flags: int = 2, destination: bytes = B) -> bytes:
    return PACKET_HEAD.pack(1, 4, flags, 20, 0, 6, 64, 0, A, destination) + bytes(20) + segment.pack()


def test_must_1_the_window_is_unsigned():
    peer = Peer()
    handle = peer.connects(window=65535)
    assert peer.host.conn(handle).snd_window == 65535


def test_must_3_a_segment_with_a_wrong_checksum_is_dropped():
    made = core()
    declared(made, handle=5, port=80, bind=True, listen=5)
    syn = Segment(1, 80, 7, 0, SYN, 100)
    assert made.receive(topology.IP, messages.PACKET, [packet(syn, flags=0)], 1000.0) == []
    assert made.counters[Counters.bad_checksum] == 1
    assert len(made.receive(topology.IP, messages.PACKET, [packet(syn)], 1000.0)) == 1


def test_must_5_7_options_are_accepted_in_any_segment_and_never_raise():
    peer = Peer()
    handle = peer.connects()
    assert peer.says(".", 1, 1, b"x", options=Options(mss=9, window_scale=3)) == [". 1(0) ack 2"]
    assert peer.host.conn(handle).mss == 1000


def test_must_14_15_65_67_the_mss_is_sent_in_syns_only_and_is_536_without_the_option():
    peer = Peer().listens()
    peer.says("S", 0)
    assert [segment.options.mss for segment in peer.heard] == [1460]
    peer.says(".", 1, 1)
    handle = peer.host.accepted_handles[-1][1]
    peer.heard.clear()
    peer.host.write(handle, b"m" * 5000)
    peer.hears()
    assert peer.host.conn(handle).mss == 536
    declared_mss = [segment.options.mss for segment in peer.heard]
    assert set(declared_mss) <= {None}


def test_must_12_an_application_hears_of_an_abort_and_can_abort():
    peer = Peer()
    handle = peer.connects()
    peer.host.close(handle, linger=0)
    assert peer.hears() == ["R. 1(0) ack 1"]


def test_must_17_nagle_can_be_turned_off():
    peer = Peer()
    handle = peer.connects(nodelay=True)
    assert peer.write(handle, b"a") == ["P. 1(1) ack 1"]
    assert peer.write(handle, b"b") == ["P. 2(1) ack 1"]


def test_must_25_28_keepalive_is_off_unless_asked_for_and_waits_two_hours():
    peer = Peer()
    handle = peer.connects()
    peer.passes(100_000)
    assert peer.hears() == []
    peer.host.set(handle, 9, keepalive=True)
    assert peer.host.conn(handle).options.keepidle == 7200


def test_must_30_to_33_62_urgent_data_has_a_mark_that_runs_ahead_and_is_sent_with_one():
    peer = Peer()
    handle = peer.connects()
    peer.says("U.", 1, 1, b"ab!", urgent=3)
    application = peer.host.applications[handle]
    assert (application.mark, bytes(application.received)) == (3, b"ab!")
    peer.says("U.", 4, 1, b"", urgent=1000)
    assert application.mark == 1003
    peer.host.write(handle, b"out!", flags=4)
    (sent,) = [segment for segment in peer.host.out() if segment.payload]
    assert (sent.flags & 32, sent.urgent) == (32, 4)


def test_must_34_shld_16_a_window_that_shrinks_keeps_back_what_is_beyond_and_loses_nothing():
    peer = Peer()
    handle = peer.connects(window=5000)
    peer.write(handle, b"s" * 5000)
    peer.hears()
    peer.says(".", 1, 1, window=1000)
    peer.passes(20)
    beyond = [line for line in peer.hears() if int(line.split()[1].split("(")[0]) > 1001]
    assert beyond == []
    assert peer.host.state_of(handle) == "ESTABLISHED"
    received = 1
    for _ in range(60):
        for line in peer.says(".", 1, received, window=9000) + peer.hears():
            start, length = map(int, line.split()[1].rstrip(")").split("("))
            if start <= received:
                received = max(received, start + length)
        peer.passes(0.5)
    assert received == 5001


def test_must_34_an_ack_is_inside_a_window_that_has_shrunk_or_was_probed():
    peer = Peer()
    handle = peer.connects(window=5000)
    peer.write(handle, b"s" * 5000)
    peer.hears()
    peer.says(".", 1, 1001, window=0)
    peer.passes(1)
    peer.hears()
    peer.says(".", 1, 1001, b"d" * 3000, window=0)
    assert peer.hears() == [". 1001(0) ack 3001"]  # at 5001, a peer would drop it together with its ACK
    peer.host.close(handle)  # with octets that nobody has read: a reset
    assert peer.hears() == ["R. 1001(0) ack 3001"]


def test_must_34_an_ack_that_answers_is_where_the_peer_expects_it_though_its_window_was_not_known_to_be_open():
    peer = Peer()
    handle = peer.connects(window=1000)
    peer.write(handle, b"s" * 2000)
    peer.says(".", 1, 1001, window=0)
    peer.says(".", 1, 1001, b"d" * 1000, window=0)
    peer.passes(1)
    assert ". 1001(1) ack 1001" in peer.hears()  # the probe; the peer has room now and takes it, its ACK is lost
    peer.says(".", 1, 1002, b"d" * 1000)  # again, and outside our window by now
    assert peer.hears() == [". 1002(0) ack 1001"]


def test_a_reset_before_any_window_is_known_is_at_the_number_after_the_syn():
    peer = Peer().listens()
    peer.says("S", 0, window=0, options=Options(mss=1000))
    peer.host.close(5)
    assert peer.hears()[-1] == "R. 1(0) ack 1"


def test_must_40_58_an_ack_is_delayed_by_less_than_half_a_second_and_every_second_segment_is_answered():
    peer = Peer()
    handle = peer.connects()
    peer.host.set(handle, 9, quickack=False)
    seq, at_once = 1, 0
    for _ in range(10):
        at_once += bool(peer.says(".", seq, 1, b"d" * 1000))
        seq += 1000
    assert at_once == 5
    peer.says(".", seq, 1, b"d")
    peer.heard.clear()
    peer.passes(0.039)
    assert peer.hears() == []
    peer.passes(0.002)
    assert peer.hears() == [f". 1(0) ack {seq + 1}"]


def test_shld_19_every_second_full_segment_of_a_turn_is_answered():
    peer = Peer()
    peer.connects()
    segments = [(".", 1 + 1000 * number, 1, b"d" * 1000) for number in range(10)]
    assert peer.says_together(*segments) == [f". 1(0) ack {ack}" for ack in range(2001, 10002, 2000)]


def test_shld_19_a_super_segment_is_answered_once():
    peer = Peer()
    peer.connects()
    assert peer.says_together((".", 1, 1, b"d" * 10_000), (".", 10_001, 1, b"d" * 10_000)) == [". 1(0) ack 20001"]


def test_shld_19_a_peer_whose_segments_have_become_smaller_is_answered_as_often():
    """Its path has a smaller MTU now; quick ACKs are off, which would hide it."""
    peer = Peer()
    peer.host.set(peer.connects(), 9, quickack=False)
    assert peer.says(".", 1, 1, b"d" * 1000) == []
    answers = [bool(peer.says(".", 1001 + 400 * number, 1, b"d" * 400)) for number in range(10)]
    assert answers[2:] in ([True, False] * 4, [False, True] * 4)


def test_shld_19_what_fills_a_gap_is_not_taken_for_one_segment():
    peer = Peer()
    peer.host.set(peer.connects(), 9, quickack=False)
    for number in 0, 2, 3, 4, 1:
        peer.says(".", 1 + 400 * number, 1, b"d" * 400)
    assert sum(bool(peer.says(".", 2001 + 400 * number, 1, b"d" * 400)) for number in range(10)) == 5


def test_rfc5681_4_2_short_writes_are_not_taken_for_full_segments():
    peer = Peer()
    peer.host.set(peer.connects(), 9, quickack=False)
    assert peer.says(".", 1, 1, b"d" * 1000) == []
    assert [peer.says("P.", 1001 + 100 * number, 1, b"d" * 100) for number in range(9)] == [[]] * 9


def test_rfc5681_4_2_each_segment_beyond_a_gap_is_answered_where_the_peer_counts_duplicates():
    peer = Peer()
    peer.connects()
    late = [(".", 1001 + 1000 * number, 1, b"d" * 1000) for number in range(4)]
    assert peer.says_together(*late) == [". 1(0) ack 1"] * 4
    assert peer.says(".", 1, 1, b"d" * 1000) == [". 1(0) ack 5001"]


def test_must_41_42_a_port_may_be_listened_at_by_address_and_others_go_on():
    peer = Peer()
    handle = peer.connects()
    assert peer.host.set(6, port=81, bind=True, listen=1) == 0
    assert peer.host.set(7, port=81, bind=True, listen=1) == errno.EADDRINUSE
    assert peer.host.set(8, port=82, local=B, bind=True, listen=1) == 0
    assert peer.host.set(9, port=82, bind=True, listen=1) == errno.EADDRINUSE
    assert peer.host.state_of(handle) == "ESTABLISHED"


def test_must_44_45_the_source_is_the_routes_or_what_the_socket_is_bound_to():
    error, (sent,) = declared(core(), handle=1, peer=A, peer_port=9, connect=1)
    assert (error, TRANSMIT_HEAD.unpack_from(sent)[8:]) == (0, (B, A))
    error, _ = declared(core(), handle=1, local=A, peer=bytes((1, 0, 0, 0)), peer_port=9, connect=1)
    assert error == errno.EADDRNOTAVAIL


def test_rfc1122_3_2_1_3_g_no_connection_leaves_the_host_from_127():
    error, sent = declared(core(), handle=1, local=bytes((127, 0, 0, 1)), peer=A, peer_port=9, connect=1)
    assert (error, sent) == (errno.EINVAL, [])


def test_must_46_57_63_there_is_no_connection_to_or_from_a_group():
    for group in map(bytes, ((224, 0, 0, 1), (255, 255, 255, 255), (10, 0, 0, 255))):
        assert declared(core(), handle=1, peer=group, peer_port=9, connect=1) == (errno.ENETUNREACH, [])
    made = core()
    declared(made, handle=5, port=80, bind=True, listen=5)
    syn = packet(Segment(1, 80, 7, 0, SYN, 100), FLAG_GROUP | 2)
    assert made.receive(topology.IP, messages.PACKET, [syn], 1000.0) == []
    assert made.counters[Counters.to_group] == 1


def test_must_48_49_shld_21_22_ttl_and_tos_are_the_applications_choice_also_later():
    made = core()
    _, (syn,) = declared(made, handle=1, peer=A, peer_port=9, connect=1, ttl=9, tos=0x10)
    assert TRANSMIT_HEAD.unpack_from(syn)[5:7] == (9, 0x10)
    segment = parse(syn[TRANSMIT_HEAD.size :])
    assert segment is not None
    assert segment.options.mss == 1460


def test_must_60_61_what_an_application_wrote_leaves_and_its_end_is_pushed():
    peer = Peer()
    handle = peer.connects()
    assert peer.write(handle, b"w" * 2500) == [". 1(1000) ack 1", ". 1001(1000) ack 1", "P. 2001(500) ack 1"]


def test_must_66_a_closed_window_still_takes_resets_urgent_marks_and_acks():
    peer = Peer()
    handle = peer.connects()
    conn = peer.host.conn(handle)
    seq = 1
    while conn.advertised > seq:
        size = min(1000, conn.advertised - seq)
        peer.says(".", seq, 1, b"f" * size)
        seq += size
    peer.host.write(handle, b"unacknowledged")
    assert peer.says("U.", seq, 15, b"z", urgent=5)
    assert conn.snd_una == 15
    assert peer.host.applications[handle].mark == seq + 5 - 1
    peer.says("R", seq)
    assert peer.host.applications[handle].error == errno.ECONNRESET


def test_rfc3168_ecn_is_agreed_on_marks_are_echoed_and_reduce_the_window_once():
    from layers.tcp.interfaces import Arrival

    peer = Peer().listens()
    assert peer.says("SEW", 0, options=Options(mss=1000)) == ["S.E 0(0) ack 1"]
    peer.says(".", 1, 1)
    handle = peer.host.accepted_handles[-1][1]
    marked = Segment(peer.port, 80, (0xFFFFFF00 + 1) & 0xFFFFFFFF, (peer.isn + 1) & 0xFFFFFFFF, 16, 65535, payload=b"m")
    peer.host.do(lambda host: host.engine.arrives(Arrival(A, B, marked, 3)))
    assert peer.hears()[-1] == ".E 1(0) ack 2"
    assert peer.says("W.", 2, 1, b"n") == [". 1(0) ack 3"]
    peer.write(handle, b"e" * 8000)
    peer.hears()
    before = peer.host.conn(handle).recovery.cwnd
    peer.says(".E", 3, 2001)
    peer.says(".E", 3, 3001)
    assert before // 2 <= peer.host.conn(handle).recovery.cwnd < before
    peer.hears()
    assert "PW. 8001(5) ack 3" in [line.replace("P.W", "PW.") for line in peer.write(handle, b"after")]


def test_rfc9768_3_1_2_a_syn_that_asks_for_accurate_ecn_gets_the_ecn_of_rfc_3168():
    made = core()
    declared(made, handle=5, port=80, bind=True, listen=5)
    syn = bytearray(Segment(9, 80, 7, 0, SYN | ECE | CWR, 1000, options=Options(mss=1000)).pack())
    syn[12] |= 1  # AE, the ninth flag
    record = PACKET_HEAD.pack(1, 4, 2, 20, 0, 6, 64, 0, A, B) + bytes(20) + bytes(syn)
    ((_, _, sent),) = made.receive(topology.IP, messages.PACKET, [record], 1000.0)
    answer = parse(sent[TRANSMIT_HEAD.size :])
    assert answer.flags == SYN | ACK | ECE
    assert sent[TRANSMIT_HEAD.size + 12] & 1 == 0


def test_a_syn_that_asks_for_ecn_is_sent_where_the_socket_wants_it():
    peer = Peer()
    peer.host.set(9, peer=A, peer_port=1, connect=1, ecn=1)
    assert peer.hears() == ["SEW 0(0)"]


def test_must_55_56_source_quench_and_time_exceeded_end_nothing():
    peer = Peer()
    handle = peer.connects(user_timeout=20_000)
    conn = peer.host.conn(handle)
    peer.write(handle, b"quoted")
    quoted = (peer.isn + 1) & 0xFFFFFFFF
    for icmp_type, code in ((4, 0), (3, 0), (3, 1), (3, 5), (11, 0), (12, 0)):
        peer.host.do(lambda host, kind=(icmp_type, code): icmp.error(host.engine, conn, *kind, 0, quoted, False))
        assert peer.host.state_of(handle) == "ESTABLISHED"
    peer.host.do(lambda host: icmp.error(host.engine, conn, 3, 1, 0, quoted, False))
    peer.passes(30)
    assert peer.host.applications[handle].error == errno.EHOSTUNREACH


def test_must_47_shld_20_soft_errors_are_reported_where_the_application_wants_them():
    for wanted in (True, False):
        made = core()
        _, (syn,) = declared(made, handle=1, peer=A, peer_port=9, connect=1, receive_errors=wanted)
        head = TRANSMIT_HEAD.size
        port, isn = int.from_bytes(syn[head : head + 2], "big"), int.from_bytes(syn[head + 4 : head + 8], "big")
        answer = Segment(9, port, 7, (isn + 1) & 0xFFFFFFFF, SYN | ACK, 1000)
        made.receive(topology.IP, messages.PACKET, [packet(answer)], 1000.0)
        text = STREAM_HEADER.pack(1, 0, 0) + b"in flight"
        made.receive(topology.SOCKETS, messages.STREAM, [text], 1000.0)
        unreachable = messages.ERROR_HEAD.pack(3, 1, 2, 4, 0, 49, 6, 20, A, B, A) + bytes(20) + struct.pack(
            "!HHI", port, 9, (isn + 1) & 0xFFFFFFFF)
        told = made.receive(topology.ICMP, messages.ICMP_ERROR, [unreachable], 1000.0)
        assert [kind for _, kind, _ in told if kind != messages.TRANSMIT] == [messages.SOCKET_ERROR] * wanted
        assert made.engine.lookup.by_handle[1].error_soft == errno.EHOSTUNREACH


def test_tcp_info_has_linuxs_layout():
    peer = Peer()
    handle = peer.connects()
    peer.write(handle, b"i" * 700)
    conn = peer.host.conn(handle)
    told = info.tcp_info(peer.host.engine, conn)
    assert len(told) == 232  # sizeof(struct tcp_info) of Linux 5.4, up to tcpi_snd_wnd
    assert told[0] == 1  # TCP_ESTABLISHED
    words = memoryview(told[8:104]).cast("I")
    assert (words[2], words[4], words[17]) == (1000, 1, words[17])  # tcpi_snd_mss, tcpi_unacked, tcpi_snd_ssthresh
    assert words[18] == 10  # tcpi_snd_cwnd
    assert int.from_bytes(told[-4:], "little") == 65535  # tcpi_snd_wnd


def test_a_segment_that_is_longer_than_a_super_segment_may_be_leaves_over_loopback():
    peer = Peer(Host(B, peer_mtu=65535))
    handle = peer.connects(Options(mss=65495), window=65535)
    peer.host.super_octets = lambda mss: 64_000
    peer.host.do(lambda host: host.calls.stream(handle, 0, 0, b"l" * 65520))
    assert [line.split()[1] for line in peer.hears()] == ["1(65495)", "65496(25)"]


def test_rfc7323_2_2_the_window_of_a_syn_is_not_scaled():
    peer = Peer().listens()
    peer.says("S", 0, window=500, options=Options(mss=1000, window_scale=7))
    assert peer.heard[-1].window == 65280
    peer.says(".", 1, 1, window=500)
    assert peer.host.conn(peer.host.accepted_handles[-1][1]).snd_window == 500 << 7


STAMPED = Options(mss=1000, timestamps=(100, 0))


def test_rfc7323_3_2_every_segment_has_timestamps_once_they_are_agreed_on():
    peer = Peer()
    handle = peer.connects(STAMPED)
    peer.says(".", 1, 1, b"x", options=Options(timestamps=(101, 0)))
    peer.host.write(handle, b"y" * 2500, end=True)
    peer._hear()
    assert len(peer.heard) >= 4
    assert all(segment.options.timestamps is not None for segment in peer.heard)


def test_rfc7323_4_3_what_is_echoed_is_of_the_segment_that_was_next():
    peer = Peer()
    peer.connects(STAMPED)
    peer.says(".", 3, 1, b"ahead", options=Options(timestamps=(300, 0)))
    assert peer.heard[-1].options.timestamps[1] == 100
    peer.says(".", 1, 1, b"ab", options=Options(timestamps=(400, 0)))
    assert peer.heard[-1].options.timestamps[1] == 400


def test_rfc7323_5_2_a_reset_is_not_judged_by_its_timestamp():
    peer = Peer()
    handle = peer.connects(STAMPED)
    peer.says("R", 1, options=Options(timestamps=(1, 0)))
    assert peer.host.applications[handle].error == errno.ECONNRESET
