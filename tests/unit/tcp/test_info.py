"""struct tcp_info: what loss recovery knows stands where Linux has it (include/uapi/linux/tcp.h)."""

from __future__ import annotations

import struct

from layers.tcp import listing
from layers.tcp.info import named, tcp_info
from tests.unit.tcp.host import pair
from tests.unit.tcp.test_streams import octets

STATE_AT, UNACKED_AT, RTT_AT, TOTAL_RETRANS_AT, MIN_RTT_AT = 1, 24, 68, 100, 148


def words(info: bytes, at: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"={count}I", info, at)


def test_tcp_info_shows_segments_sacked_lost_and_sent_again():
    lose = {10, 12}
    count = [0]

    def fate(source, segment):
        if segment.payload and source[-1] == 1:
            count[0] += 1
            if count[0] in lose:
                return []
        return [0.01]

    world, a, _, left, _ = pair(0.01, fate)
    conn = a.conn(left)
    assert words(tcp_info(a.engine, conn), UNACKED_AT, 5) == (0, 0, 0, 0, 0)
    a.write(left, octets(60_000))
    seen = []
    while conn.snd_una < conn.written:
        world.step(world.now + 1)
        info = tcp_info(a.engine, conn)
        unacked, sacked, lost, resent, _ = words(info, UNACKED_AT, 5)
        assert sacked + lost <= unacked
        seen.append((info[STATE_AT], sacked > 0, lost > 0, resent))
    assert {state for state, *_ in seen} == {0, 3}  # open, recovery
    assert max(resent for *_, resent in seen) == 2
    info = tcp_info(a.engine, conn)
    assert words(info, TOTAL_RETRANS_AT) == (2,)
    assert abs(words(info, MIN_RTT_AT)[0] - 20_000) < 100
    world.run(3)
    assert conn.recovery is None
    assert words(tcp_info(a.engine, conn), TOTAL_RETRANS_AT) == (2,)  # a quiet connection remembers
    assert words(tcp_info(a.engine, conn), RTT_AT) == words(info, RTT_AT)


def test_names_of_the_fields_stand_where_linux_has_them():
    values = (*range(1, 9), *range(100, 124), *range(200, 204), *range(300, 306), *range(400, 404), *range(500, 502),
              *range(600, 602), *range(700, 704))
    found = named(struct.pack("=8B24I4Q6I4Q2I2Q4I", *values))
    assert (found["state"], found["wscale"], found["rto"], found["rtt"], found["rttvar"], found["total_retrans"],
            found["bytes_received"], found["min_rtt"], found["bytes_sent"], found["snd_wnd"]) == (
                1, 7, 100, 115, 116, 123, 203, 303, 600, 703)
    assert named(bytes(232)) == {}


def test_the_list_of_connections_comes_in_pages(monkeypatch):
    world, a, b, left, right = pair(0.01)
    a.write(left, octets(3000))
    world.run(1)
    (ours,) = listing.page(a.engine, "", True)["connections"]
    assert (ours["handle"], ours["state"], ours["recv_q"], ours["send_q"]) == (left, "ESTABLISHED", 0, 0)
    assert ours["info"]["bytes_acked"] == 3000
    assert ours["info"]["congestion"] == "cubic"
    everything = listing.page(b.engine, "", False)
    assert {each["state"] for each in everything["connections"]} == {"LISTEN", "ESTABLISHED"}
    assert not everything["more"]
    theirs = next(each for each in everything["connections"] if each["handle"] == right)
    assert "info" not in theirs
    monkeypatch.setattr(listing, "PAGE", 1)
    first = listing.page(b.engine, "", False)
    assert first["more"]
    assert len(first["connections"]) == 1
    second = listing.page(b.engine, first["connections"][0]["key"], False)
    assert not second["more"]
    assert [*first["connections"], *second["connections"]] == everything["connections"]


def test_tcp_info_shows_the_counts_of_segments():
    world, a, b, left, right = pair(0.01, lambda source, segment, lost=[1]: (
        [] if segment.payload and source[-1] == 1 and lost and lost.pop() else [0.01]))
    count = 69 * 1448  # with a short segment at the end, that is probed for before its delayed ACK
    a.write(left, octets(count))
    assert world.run(5, lambda: len(b.applications[right].received) == count)
    world.run(0.1)
    sender, receiver = named(tcp_info(a.engine, a.conn(left))), named(tcp_info(b.engine, b.conn(right)))
    mss = sender["snd_mss"]
    segments = count // mss
    assert sender["bytes_retrans"] == mss
    assert sender["bytes_sent"] == count + mss
    assert sender["data_segs_out"] == segments + 1
    assert receiver["data_segs_in"] == segments
    assert receiver["rcv_ooopack"] > 0
    assert sender["delivered"] == segments
    assert sender["segs_in"] == receiver["segs_out"]
    assert sender["advmss"] == mss == 1448
    assert 10 * mss / 0.02 / 2 < sender["delivery_rate"] < count / 0.02
