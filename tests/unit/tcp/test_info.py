"""struct tcp_info: what loss recovery knows stands where Linux has it (include/uapi/linux/tcp.h)."""

from __future__ import annotations

import struct

from layers.tcp.info import tcp_info
from tests.unit.tcp.host import pair
from tests.unit.tcp.test_streams import octets

STATE_AT, UNACKED_AT, RTT_AT, TOTAL_RETRANS_AT, MIN_RTT_AT = 1, 24, 68, 100, 148


def words(info: bytes, at: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"={count}I", info, at)


def test_what_is_sacked_lost_and_sent_again():
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
