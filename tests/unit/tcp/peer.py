"""A peer in literal segments: what it says is written out, numbers relative to the SYNs."""

from __future__ import annotations

from packets.tcp import ACK, FLAG_LETTERS, RST, SYN, Options, Segment, parse
from tests.unit.tcp.host import A, B, Host

PEER_PORT, PORT = 4242, 80
ISN = 0xFFFFFF00  # numbers wrap soon


class Peer:
    """At address A, towards a host at B that listens at PORT, or that connects."""

    def __init__(self, host: Host | None = None, now: float = 1000.0, **options: object) -> None:
        self.host = host or Host(B)
        self.now = now
        self.host.at(now)
        self.options = options
        self.port = PEER_PORT
        self.isn: int | None = None  # the host's
        self.host_port = PORT
        self.heard: list[Segment] = []

    # -- time

    def passes(self, seconds: float) -> None:
        """Let time pass; what is sent meanwhile is in `heard`, with the time it was sent in `times`."""
        end = self.now + seconds
        while (due := self.host.engine.timers.next_due) is not None and due <= end:
            self.now = max(self.now, due)
            self.host.at(self.now)
            self.host.expire()
            self._hear()
        self.now = end
        self.host.at(end)

    def _hear(self) -> list[Segment]:
        new = [parse(segment.pack()) or segment for segment in self.host.out()]
        for segment in new:
            if segment.flags & SYN:
                self.isn, self.host_port = segment.sequence, segment.source_port
        self.heard += new
        return new

    # -- segments

    def says(self, flags: str, seq: int, ack: int | None = None, text: bytes = b"", window: int = 65535,
             options: Options | None = None, urgent: int = 0, ecn: int = 0) -> list[str]:
        """A segment comes in; what goes out at once."""
        self.host.arrive(A, self._segment(flags, seq, ack, text, window, options, urgent), ecn)
        return [self.text(each) for each in self._hear()]

    def says_together(self, *segments: tuple[str, int, int, bytes]) -> list[str]:
        """Segments come in in one turn (flags, number, acknowledgment, text); what goes out at its end."""
        self.host.arrive_together(A, [self._segment(*each) for each in segments])
        return [self.text(each) for each in self._hear()]

    def _segment(self, flags: str, seq: int, ack: int | None = None, text: bytes = b"", window: int = 65535,
                 options: Options | None = None, urgent: int = 0) -> Segment:
        bits = sum(1 << FLAG_LETTERS.index(flag) for flag in flags)
        return Segment(self.port, self.host_port, (ISN + seq) & 0xFFFFFFFF,
                       ((self.isn or 0) + ack) & 0xFFFFFFFF if ack is not None else 0, bits, window, urgent,
                       options or Options(), text)

    def hears(self) -> list[str]:
        """What went out since the last look."""
        self._hear()
        heard, self.heard = self.heard, []
        return [self.text(each) for each in heard]

    def text(self, segment: Segment) -> str:
        """In short: flags sequence(length) ack."""
        flags = "".join(letter for bit, letter in enumerate(FLAG_LETTERS) if segment.flags >> bit & 1)
        seq = (segment.sequence - (self.isn or 0)) & 0xFFFFFFFF if not segment.flags & RST or self.isn else 0
        told = f"{flags} {seq}({len(segment.payload)})"
        if segment.flags & ACK:
            told += f" ack {(segment.acknowledgment - ISN) & 0xFFFFFFFF}"
        return told

    # -- connections

    def listens(self, handle: int = 5, **options: object) -> Peer:
        assert self.host.set(handle, port=PORT, bind=True, **{"listen": 4, **options}) == 0
        return self

    def connects(self, options: Options | None = None, window: int = 65535, **listening: object) -> int:
        """The peer's handshake; the handle of the connection. By default a plain SYN with an MSS of 1000."""
        self.listens(**listening)
        assert self.says("S", 0, window=window, options=options or Options(mss=1000)) == ["S. 0(0) ack 1"]
        assert self.says(".", 1, 1, window=window) == []
        self.heard.clear()
        return self.host.accepted_handles[-1][1]

    def write(self, handle: int, octets: bytes, **how: object) -> list[str]:
        self.host.write(handle, octets, **how)
        return self.hears()
