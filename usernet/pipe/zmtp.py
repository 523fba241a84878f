"""ZMTP 3.0, the protocol that ZeroMQ sockets speak (rfc.zeromq.org/spec/23), as far as one-way pipes need it. Pure.

    greeting  64 octets: FF 00*8 7F, version 3.0, mechanism NULL, as-server 0, filler
    READY     a command frame with the property Socket-Type
    messages  each one frame: flags, length in one octet or (flag LONG) in eight, big-endian; the octets

Either end sends greeting and READY at once, for what they hold depends on nothing that the other end says; messages
once the other end's READY is there (libzmq takes them for a breach of protocol before).
"""

from __future__ import annotations

from struct import Struct

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
SHORT_MAX = 255
PART_OCTETS = 64  # of memory for each piece of an incomplete frame, beside its octets

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_SIGNATURE_OCTETS = len(_SIGNATURE)
_MECHANISM = b"NULL".ljust(20, b"\0")
_MAJOR = 3
_GREETING = _SIGNATURE + bytes((_MAJOR, 0)) + _MECHANISM + bytes(32)
_GREETING_OCTETS = len(_GREETING)
_READY = b"\x05READY"
_LONG_HEAD = Struct(">BQ")
_SHORT_HEADS = [bytes((0, length)) for length in range(SHORT_MAX + 1)]


def opening(socket_type: bytes) -> bytes:
    """The first octets of either end: greeting and READY. `socket_type` is PUSH or PULL."""
    name = b"Socket-Type"
    body = _READY + bytes((len(name),)) + name + len(socket_type).to_bytes(4, "big") + socket_type
    return _GREETING + bytes((COMMAND, len(body))) + body


def message(octets: bytes) -> bytes:
    """A message of one frame."""
    length = len(octets)
    return (_SHORT_HEADS[length] if length <= SHORT_MAX else _LONG_HEAD.pack(LONG, length)) + octets


class Reader:
    """Decodes the octets of one peer, which arrive in any pieces. Messages longer than `limit` octets are refused."""

    __slots__ = ("_greeted", "_have", "_limit", "_need", "error", "parts", "ready")

    def __init__(self, limit: int) -> None:
        self.ready = False  # the peer has sent READY: messages may be sent to it
        self.error = ""  # the reason why the octets are not valid; from then on nothing is accepted
        self._limit = limit
        self._greeted = False
        self.parts: list[bytes] = []  # octets of an incomplete frame, their number, and the number needed to continue
        self._have = self._need = 0

    @property
    def held(self) -> int:
        """Octets of memory for the incomplete frame."""
        return self._have + PART_OCTETS * len(self.parts) if self.parts else 0

    def feed(self, octets: bytes) -> list[bytes]:
        """The messages that are complete with these octets."""
        parts = self.parts
        if not parts and self._greeted and len(octets) > 1 and not octets[0] and octets[1] == len(octets) - 2:
            return [octets[2:]]  # one short message: the usual case at low load
        if parts:
            parts.append(octets)
            self._have += len(octets)
            if self._have < self._need:
                return []
            octets = b"".join(parts)
            parts.clear()
        messages: list[bytes] = []
        start = 0 if self._greeted else self._greeting(octets)
        if self._greeted and not self.error:
            start = self._messages(octets, start, messages)
        if start < len(octets):
            parts.append(octets[start:])
            self._have = len(octets) - start
        return messages

    def _greeting(self, octets: bytes) -> int:
        """The offset of the first frame; 0: the greeting is incomplete."""
        length = len(octets)
        self._need = length + 1
        if octets[:1] != b"\xff" or (length >= _SIGNATURE_OCTETS and not octets[_SIGNATURE_OCTETS - 1] & 1):
            self.error = "not a ZMTP greeting"
        elif length > _SIGNATURE_OCTETS and octets[_SIGNATURE_OCTETS] < _MAJOR:
            self.error = "a version before 3.0"
        elif length >= _GREETING_OCTETS and octets[12:32] != _MECHANISM:
            self.error = "a security mechanism other than NULL"
        elif length >= _GREETING_OCTETS:
            self._greeted = True
            return _GREETING_OCTETS
        return 0

    def _messages(self, octets: bytes, start: int, messages: list[bytes]) -> int:
        """Append the complete messages from `start` on; returns the offset of the rest."""
        end = len(octets)
        while end - start >= 2:
            flags = octets[start]
            if not flags & LONG:
                length = octets[start + 1]
                body = start + 2
            elif end - start < _LONG_HEAD.size:
                break
            else:
                _, length = _LONG_HEAD.unpack_from(octets, start)
                body = start + _LONG_HEAD.size
            if flags & ~(LONG | COMMAND):
                self.error = "a message of several parts" if flags & MORE else "a flag that ZMTP does not have"
                break
            if length > self._limit:
                self.error = "a frame that is too long"
                break
            following = body + length
            if following > end:
                self._need = following - start
                return start
            if not flags & COMMAND:
                messages.append(octets[body:following])
            elif octets.startswith(_READY, body):
                self.ready = True
            start = following
        self._need = end - start + 1
        return start
