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
from packets import ethernet, ipv4, udp, vnet
from packets.checksum import verifies


def _behind(start: int, part: slice) -> slice:
    return slice(start + part.start, start + part.stop)


# Offsets in a frame whose virtio_net_hdr is vnet.PARTIAL_UDP
_IP = vnet.HEADER_OCTETS + ethernet.HEADER_OCTETS
_UDP = _IP + ipv4.HEADER_OCTETS
_PAYLOAD = _UDP + udp.HEADER_OCTETS
_HEADER = slice(_IP, _UDP)
_VERSION_TO_LENGTH = _behind(_IP, ipv4.VERSION_TO_LENGTH)
_FRAGMENT_TO_PROTOCOL = _behind(_IP, ipv4.FRAGMENT_TO_PROTOCOL)
_FLOW = slice(_behind(_IP, ipv4.ADDRESSES).start, _UDP + udp.PORTS_OCTETS)  # addresses and ports
_LENGTH_AND_CHECKSUM = _behind(_UDP, udp.AFTER_PORTS)

_HEADERS_OCTETS = _PAYLOAD - _IP


class Joiner:
    """Joins received frames whose virtio_net_hdr is vnet.PARTIAL_UDP; `sends` is the output of the batch."""

    def __init__(self) -> None:
        # {flow: [what its frames have in common besides the flow, the frames]}. 0.6 us per frame.
        self._runs: dict[bytes, list[bytes]] = {}

    def add(self, frame: bytes, sends: list[Send]) -> None:
        """Keep a frame with those of its flow until `flush`."""
        flow = frame[_FLOW]
        common = frame[_VERSION_TO_LENGTH] + frame[_FRAGMENT_TO_PROTOCOL] + frame[_LENGTH_AND_CHECKSUM]
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
    most = (ipv4.LENGTH_MAX - _HEADERS_OCTETS) // (len(frames[0]) - _PAYLOAD)
    sends.extend([(topology.IP, messages.PACKET, _joined(frames[start : start + most]))
                  for start in range(0, len(frames), most)])


def _joinable(frame: bytes) -> bool:
    """True if a frame is a whole UDP packet without options, with at least one octet of payload and no padding."""
    octets = len(frame) - _IP
    if octets <= _HEADERS_OCTETS:
        return False
    version, _, total, _, fragment, _, protocol, *_ = ipv4.HEADER.unpack_from(frame, _IP)
    _, length, _ = udp.HEADER.unpack_from(frame, _UDP)
    return (
        version == ipv4.VERSION_4_NO_OPTIONS
        and protocol == udp.PROTOCOL
        and total == octets
        and length == octets - ipv4.HEADER_OCTETS
        and not fragment & ipv4.FRAGMENT_MASK
        and verifies(frame[_HEADER])
    )


def _joined(frames: list[bytes]) -> bytes:
    """A PACKET record for frames that differ only in identification and payload."""
    first = frames[0]
    payload = b"".join([frame[_PAYLOAD:] for frame in frames])
    length = len(payload) + udp.HEADER_OCTETS
    header = ipv4.with_length(first[_HEADER], ipv4.HEADER_OCTETS + length)
    ports, former, partial = udp.HEADER.unpack_from(first, _UDP)
    # The partial checksum is the sum of the pseudo header, in which only the length has changed (packets.offload).
    partial = (partial - former + length) % 65535 or 65535
    head = heads.head(FLAG_CHECKSUM_PARTIAL, len(first) - _PAYLOAD)
    return head + header + udp.HEADER.pack(ports, length, partial) + payload
