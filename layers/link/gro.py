"""Generic receive offload (the name in Linux): datagrams that arrived together are joined to super-packets.

Sixty datagrams of one flow, read from the TAP together, then cost the layers above as much as one. Frames are joined
only if this can be undone exactly: the same headers except for identification and checksum, the same length, no
options, no fragment, a valid header checksum. The order within a flow is kept, and no frame waits for one that has not
been read yet.

Owns nothing beyond one batch of frames.
"""

from __future__ import annotations

from bus import messages, topology
from bus.layer import Send
from bus.messages import FLAG_CHECKSUM_PARTIAL
from layers.link import heads
from packets import ethernet, vnet
from packets.checksum import checksum, verifies
from packets.udp import HEADER_OCTETS as UDP_HEADER_OCTETS
from packets.udp import PROTOCOL as UDP

# Offsets in a frame whose virtio_net_hdr is vnet.PARTIAL_UDP: RFC 791, RFC 768.
_IP = vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS
_TOTAL = slice(_IP + 2, _IP + 4)
_VERSION_TO_TOTAL = slice(_IP, _IP + 4)
_FRAGMENT = slice(_IP + 6, _IP + 8)
_FRAGMENT_TO_PROTOCOL = slice(_IP + 6, _IP + 10)
_ADDRESSES = slice(_IP + 12, _IP + 20)
_HEADER = slice(_IP, _IP + 20)
_FLOW = slice(_IP + 12, _IP + 24)  # addresses and ports
_PORTS = slice(_IP + 20, _IP + 24)
_LENGTH = slice(_IP + 24, _IP + 26)
_LENGTH_AND_CHECKSUM = slice(_IP + 24, _IP + 28)
_PAYLOAD = _IP + 28

_HEADERS_OCTETS = 20 + UDP_HEADER_OCTETS
_NO_OPTIONS = 0x45
_MORE_AND_OFFSET = 0x3FFF  # RFC 791: bits of the fragment field; the others are DF and a reserved bit
_TOTAL_MAX = 0xFFFF


class Joiner:
    """Joins received frames whose virtio_net_hdr is vnet.PARTIAL_UDP; `sends` is the output of the batch."""

    def __init__(self) -> None:
        # {flow: [what its frames have in common besides the flow, the frames]}. 0.6 us per frame.
        self._runs: dict[bytes, list[bytes]] = {}

    def add(self, frame: bytes, sends: list[Send]) -> None:
        """Keep a frame with those of its flow until `flush`."""
        flow = frame[_FLOW]
        common = frame[_VERSION_TO_TOTAL] + frame[_FRAGMENT_TO_PROTOCOL] + frame[_LENGTH_AND_CHECKSUM]
        run = self._runs.get(flow)
        if run is not None:
            if run[0] == common and len(run[1]) == len(frame) and verifies(frame[_HEADER]):
                run.append(frame)
                return
            _send_run(self._runs.pop(flow), sends)
        self._runs[flow] = [common, frame]

    def flush(self, sends: list[Send]) -> None:
        """Send all frames that were kept."""
        for run in self._runs.values():
            _send_run(run, sends)
        self._runs.clear()


def _send_run(run: list[bytes], sends: list[Send]) -> None:
    frames = run[1:]
    if len(frames) == 1 or not _joinable(frames[0]):
        sends.extend([(topology.IP, messages.PACKET, heads.PARTIAL[False] + frame[_IP:]) for frame in frames])
        return
    most = (_TOTAL_MAX - _HEADERS_OCTETS) // (len(frames[0]) - _PAYLOAD)
    sends.extend([(topology.IP, messages.PACKET, _joined(frames[start : start + most]))
                  for start in range(0, len(frames), most)])


def _joinable(frame: bytes) -> bool:
    """True if a frame is a whole UDP packet without options, with at least one octet of payload and no padding."""
    octets = len(frame) - _IP
    return (
        octets > _HEADERS_OCTETS
        and frame[_IP] == _NO_OPTIONS
        and frame[_IP + 9] == UDP
        and int.from_bytes(frame[_TOTAL], "big") == octets
        and int.from_bytes(frame[_LENGTH], "big") == octets - 20
        and not int.from_bytes(frame[_FRAGMENT], "big") & _MORE_AND_OFFSET
        and verifies(frame[_HEADER])
    )


def _joined(frames: list[bytes]) -> bytes:
    """A PACKET record for frames that differ only in identification and payload."""
    first = frames[0]
    size = len(first) - _PAYLOAD
    payload = b"".join([frame[_PAYLOAD:] for frame in frames])
    length = len(payload) + 8
    total = (length + 20).to_bytes(2, "big")
    header = first[_IP : _IP + 2] + total + first[_IP + 4 : _IP + 10] + b"\0\0" + first[_ADDRESSES]
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    # The partial checksum is the sum of the pseudo header, in which only the length has changed (packets.offload).
    partial = int.from_bytes(first[_IP + 26 : _IP + 28], "big") - size - 8 + length
    udp = first[_PORTS] + length.to_bytes(2, "big") + (partial % 65535 or 65535).to_bytes(2, "big")
    return heads.head(FLAG_CHECKSUM_PARTIAL, size) + header + udp + payload
