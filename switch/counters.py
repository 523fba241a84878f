"""The counters of the switch of a wire."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Frames in, frames out, dropped frames by reason, and learnt and forgotten stations."""

    frames_in = In("Frames from the ports.")
    frames_out = Out("Frames sent to a port; a flooded frame counts once for each port.")
    flooded = Event("Frames sent to every other port: broadcast, multicast, or to a station not known.")
    learnt = Event("Stations seen for the first time, or again after they were forgotten.")
    moved = Event("Stations seen at another port than before. Many: two stacks have the same MAC address.")
    aged = Event("Stations forgotten because they sent no frame for too long.")
    evicted = Event("Stations forgotten because their port had too many.")
    joined = Event("Ports that appeared.")
    left = Event("Ports whose stack ended.")
    runt = Drop("Frames shorter than the minimum of Ethernet.")
    oversize = Drop("Frames longer than the longest packet.")
    bad_source = Drop("Frames whose source is a group address.")
    reserved = Drop("Frames to an address that no bridge forwards (IEEE 802.1D table 7-10).")
    same_port = Drop("Frames to a station at the port where they arrived.")
    bad_offload = Drop("Frames with an invalid virtio_net_hdr, for a port that takes plain frames.")
    port_full = Drop("Frames for a port whose stack is too slow or whose link layer is restarting.")
    malformed = Drop("Messages that do not contain Ethernet frames.")
    stranger = Drop("Messages of a sender without a port, or beyond the maximum number of ports.")
    refused = Drop("Connections closed: another user, too many, an invalid ZMTP handshake, a message that is too long.")
