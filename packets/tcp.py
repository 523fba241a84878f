"""TCP segments in octets (RFC 9293 section 3.1), and their options.

     0                   1                   2                   3
    +-------------------------------+-------------------------------+
    |          source port          |       destination port        |
    +-------------------------------+-------------------------------+
    |                        sequence number                        |
    +---------------------------------------------------------------+
    |                     acknowledgment number                     |
    +-------+-------+---------------+-------------------------------+
    | offset|  res. |     flags     |            window             |
    +-------+-------+---------------+-------------------------------+
    |           checksum            |        urgent pointer         |
    +-------------------------------+-------------------------------+
    |                           options                             |

`parse` never raises, whatever the octets; what `Segment.pack` makes `parse` reads back the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

PROTOCOL = 6  # RFC 9293 section 3.1, IANA protocol numbers
HEADER = Struct("!HHIIBBHHH")
HEADER_OCTETS = HEADER.size
CHECKSUM_AT = 16
OPTIONS_OCTETS_MAX = 40
HEADER_OCTETS_MAX = HEADER_OCTETS + OPTIONS_OCTETS_MAX

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, AE = 1, 2, 4, 8, 16, 32, 64, 128, 256  # AE: RFC 9768
FLAG_LETTERS = "FSRP.UEWe"  # as tcpdump writes them

MSS_DEFAULT = 536  # RFC 9293 section 3.7.1 (MUST-15): the MSS of a peer that sends no option
WINDOW_SCALE_MAX = 14  # RFC 7323 section 2.3

_END, _NO_OPERATION, _MSS, _WINDOW_SCALE, _SACK_PERMITTED, _SACK, _TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
_FAST_OPEN = 34  # RFC 7413 section 4.1.1
_MSS_OPTION = Struct("!BBH")
_SCALE_OPTION = Struct("!BBBB")  # after one no-operation, as is usual
_TIMESTAMPS_OPTION = Struct("!BBBBII")  # RFC 7323 appendix A: after two no-operations
TIMESTAMPS_ALONE = bytes((_NO_OPERATION, _NO_OPERATION, _TIMESTAMPS, 10))  # the first octets of the usual options
_USUAL_SYN = Struct("!2sH4sII3sB")  # the options of a SYN as Linux sends them
_USUAL_SYN_KINDS = (bytes((_MSS, 4)), bytes((_SACK_PERMITTED, 2, _TIMESTAMPS, 10)),
                    bytes((_NO_OPERATION, _WINDOW_SCALE, 3)))
_STAMPS = Struct("!II")
MSS_ALONE = bytes((_MSS, 4))  # the first octets of an MSS option
_SACK_PERMITTED_OPTION = bytes((_NO_OPERATION, _NO_OPERATION, _SACK_PERMITTED, 2))
TIMESTAMPS_OCTETS = _TIMESTAMPS_OPTION.size
SACK_BLOCKS_MAX = 4


QUOTED = Struct("!2s2sI")  # what an ICMP error quotes at least (RFC 792): source port, port, sequence number


class Options(NamedTuple):
    """The decoded options of a header; None and empty: absent."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamps: tuple[int, int] | None = None  # value, echo reply (RFC 7323 section 3.2)
    sack: tuple[tuple[int, int], ...] = ()  # (first octet of a block, octet after its last) (RFC 2018 section 3)
    cookie: bytes | None = None  # of Fast Open, 4 to 16 octets; empty: a request (RFC 7413 section 4.1.1)

    def pack(self) -> bytes:
        """The octets, padded to whole words. At most 40 if `sack` has no more blocks than fit."""
        parts = []
        if self.mss is not None:
            parts.append(_MSS_OPTION.pack(_MSS, 4, self.mss))
        if self.sack_permitted:
            parts.append(_SACK_PERMITTED_OPTION)
        if self.timestamps is not None:
            parts.append(_TIMESTAMPS_OPTION.pack(_NO_OPERATION, _NO_OPERATION, _TIMESTAMPS, 10, *self.timestamps))
        if self.window_scale is not None:
            parts.append(_SCALE_OPTION.pack(_NO_OPERATION, _WINDOW_SCALE, 3, self.window_scale))
        if self.sack:
            parts.append(bytes((_NO_OPERATION, _NO_OPERATION, _SACK, 2 + 8 * len(self.sack))))
            parts += [_STAMPS.pack(left, right) for left, right in self.sack]
        if self.cookie is not None:
            parts.append(bytes((_NO_OPERATION,)) * (-(2 + len(self.cookie)) % 4))
            parts.append(bytes((_FAST_OPEN, 2 + len(self.cookie))) + self.cookie)
        return b"".join(parts)


NO_OPTIONS = Options()
of_type = tuple.__new__  # a named tuple of a tuple, in half the time that a call of its class takes


class Segment(NamedTuple):
    """A segment; sequence numbers and window as in the header."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int
    urgent: int = 0
    options: Options = NO_OPTIONS
    payload: bytes | memoryview = b""
    packed: bytes | None = None  # the encoded options; if given, `options` is ignored

    @property
    def length(self) -> int:
        """SEG.LEN: octets of sequence space, including SYN and FIN (RFC 9293 section 3.4)."""
        return len(self.payload) + (self.flags & SYN > 0) + (self.flags & FIN)

    def pack(self) -> bytes:
        """The octets, with checksum 0."""
        source, destination, sequence, acknowledgment, flags, window, urgent, unpacked, payload, options = self
        if options is None:
            options = unpacked.pack()
        header = HEADER.pack(source, destination, sequence, acknowledgment,
                             HEADER_OCTETS + len(options) << 2 | flags >> 8, flags & 255, window, 0, urgent)
        return b"".join((header, options, payload))

    def __str__(self) -> str:
        letters = "".join(letter for bit, letter in enumerate(FLAG_LETTERS) if self.flags >> bit & 1)
        text = f"{self.source_port}>{self.destination_port} {letters or '-'} {self.sequence}({len(self.payload)})"
        return text + (f" ack {self.acknowledgment}" if self.flags & ACK else "") + f" win {self.window}"


def header_octets(segment: bytes | memoryview) -> int:
    """The header length of a segment of at least HEADER_OCTETS by its data offset field."""
    return segment[12] >> 4 << 2


def parse(octets: bytes | memoryview) -> Segment | None:
    """Decode a segment; the checksum is not verified.

    None: shorter than its header length, or an impossible header length.
    """
    if len(octets) < HEADER_OCTETS:
        return None
    source, destination, sequence, acknowledgment, offset, flags, window, _, urgent = HEADER.unpack_from(octets)
    if offset & 1:
        flags |= AE
    start = offset >> 4 << 2
    if start == HEADER_OCTETS:
        options = NO_OPTIONS
    elif start < HEADER_OCTETS or start > len(octets):
        return None
    elif start == 32 and octets[20:24] == TIMESTAMPS_ALONE:  # the usual options of all but the first segments
        options = of_type(Options, (None, None, False, _STAMPS.unpack_from(octets, 24), (), None))
    else:
        options = parse_options(bytes(octets[HEADER_OCTETS:start]))
    return of_type(Segment, (source, destination, sequence, acknowledgment, flags, window, urgent, options,
                              octets[start:], None))


def parse_options(octets: bytes) -> Options:
    """Decode the options of a header; a malformed option ends the decoding (RFC 9293 section 3.2, MUST-7)."""
    if len(octets) == _USUAL_SYN.size:
        first, mss, second, value, echo, third, scale = _USUAL_SYN.unpack(octets)
        if (first, second, third) == _USUAL_SYN_KINDS:
            return Options(mss, min(scale, WINDOW_SCALE_MAX), True, (value, echo))
    mss = scale = timestamps = cookie = None
    permitted = False
    sack: Sequence[tuple[int, int]] = ()
    at, end = 0, len(octets)
    while at < end:
        kind = octets[at]
        if kind == _END:
            break
        if kind == _NO_OPERATION:
            at += 1
            continue
        length = octets[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            break
        body = octets[at + 2 : at + length]
        if kind == _MSS and length == 4:
            mss = body[0] << 8 | body[1]
        elif kind == _WINDOW_SCALE and length == 3:
            scale = min(body[0], WINDOW_SCALE_MAX)  # RFC 7323 section 2.3: larger values are treated as 14
        elif kind == _SACK_PERMITTED and length == 2:
            permitted = True
        elif kind == _TIMESTAMPS and length == 10:
            timestamps = _STAMPS.unpack(body)
        elif kind == _SACK and length > 2 and not (length - 2) % 8:
            sack = tuple(_STAMPS.iter_unpack(body))
        elif kind == _FAST_OPEN and (length == 2 or (6 <= length <= 18 and not length % 2)):
            cookie = body
        at += length
    return Options(mss, scale, permitted, timestamps, tuple(sack), cookie)


def timestamps_alone(value: int, echo: int) -> bytes:
    """The options of a segment with only timestamps, encoded."""
    return _TIMESTAMPS_OPTION.pack(_NO_OPERATION, _NO_OPERATION, _TIMESTAMPS, 10, value, echo)


def mss_alone(mss: int) -> bytes:
    """The options of a SYN with only an MSS, encoded."""
    return _MSS_OPTION.pack(_MSS, 4, mss)


def pseudo_sum(source: bytes, destination: bytes, octets: int) -> int:
    """The sum of the pseudo header, for `checksum`; addresses of 4 or 16 octets (RFC 9293, RFC 8200)."""
    return int.from_bytes(source, "big") + int.from_bytes(destination, "big") + PROTOCOL + octets
