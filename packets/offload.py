"""What a medium's other end may be spared: sums over payloads, and the cutting of what was given in one piece.

A *partial* checksum is the sum of the pseudo header alone, in the checksum's place; whoever needs the packet as a wire
carries it adds up the rest (`complete`). A *super-packet* is many UDP datagrams of one flow behind one header:
each has as many octets of payload as was said, the last perhaps fewer; its length field and its partial checksum are
those of the whole. Linux has both inside itself and gives them to a TAP's other end, and takes them from it.

Here is how a packet without offload is made of one with it. Nothing here raises, whatever the octets.
"""

from __future__ import annotations

from struct import Struct

from packets.checksum import checksum, verifies

UDP = 17  # RFC 768
UDP_HEADER_OCTETS = 8
UDP_CHECKSUM_AT = 6  # in the UDP header

_IP_HEADER_OCTETS = 20
_IP_CHECKSUM_AT = 10
_LENGTH_AND_ID = Struct("!HH")
_LENGTH_AND_SUM = Struct("!HH")


def complete(segment: bytes, at: int = UDP_CHECKSUM_AT) -> bytes:
    """A segment with its partial checksum, at octet `at`, made whole. Unchanged where there is no such octet."""
    if len(segment) < at + 2:
        return segment
    # RFC 768: a sum of zero is sent as all ones, which is the same number
    return segment[:at] + (checksum(segment) or 0xFFFF).to_bytes(2, "big") + segment[at + 2 :]


def settled(packet: bytes) -> bytes:
    """An IPv4 packet whose UDP checksum, if it has one, is right or partial: with the right one."""
    header_octets = (packet[0] & 15) * 4 if packet else 0
    segment = packet[header_octets:]
    if header_octets < _IP_HEADER_OCTETS or len(segment) < UDP_HEADER_OCTETS or packet[9] != UDP:
        return packet
    given = segment[UDP_CHECKSUM_AT] << 8 | segment[UDP_CHECKSUM_AT + 1]
    pseudo = int.from_bytes(packet[12:20], "big") + UDP + len(segment)
    if not given or (given - pseudo) % 65535 or verifies(segment, pseudo):  # RFC 768: zero, the sender made none
        return packet
    return packet[:header_octets] + complete(segment)


def segments(whole: bytes, size: int) -> list[bytes]:
    """The UDP segments of a super-packet's segment; their checksums are partial, as its own is."""
    if len(whole) < UDP_HEADER_OCTETS or not size:
        return []
    ports, payload = whole[:4], whole[UDP_HEADER_OCTETS:]
    length, total = _LENGTH_AND_SUM.unpack_from(whole, 4)
    pack, pseudo = _LENGTH_AND_SUM.pack, total - length
    cut = []
    for start in range(0, len(payload), size):
        part = payload[start : start + size]
        octets = len(part) + UDP_HEADER_OCTETS
        cut.append(ports + pack(octets, (pseudo + octets) % 65535 or 65535) + part)
    return cut


def packets(whole: bytes, size: int) -> list[bytes]:
    """The packets of a super-packet, as a wire would carry them. Identification numbers follow its own."""
    header_octets = (whole[0] & 15) * 4 if whole else 0
    header = whole[:header_octets]
    if header_octets < _IP_HEADER_OCTETS or len(header) < header_octets:
        return []
    identification = header[4] << 8 | header[5]
    cut = []
    for number, segment in enumerate(segments(whole[header_octets:], size)):
        fresh = header[:2] + _LENGTH_AND_ID.pack(header_octets + len(segment), (identification + number) & 0xFFFF)
        fresh += header[6:_IP_CHECKSUM_AT] + b"\0\0" + header[_IP_CHECKSUM_AT + 2 :]
        total = checksum(fresh).to_bytes(2, "big")
        cut.append(fresh[:_IP_CHECKSUM_AT] + total + fresh[_IP_CHECKSUM_AT + 2 :] + complete(segment))
    return cut
