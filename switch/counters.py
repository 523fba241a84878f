"""What the switch of a wire counts."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Frames in, frames out, frames dropped and why; what was learnt and forgotten."""

    frames_in = In("Frames from the ports.")
    frames_out = Out("Frames handed to a port; a flooded one counts once for each.")
    flooded = Event("Frames sent to every other port: broadcast, multicast, or to a station not known.")
    learnt = Event("Stations seen for the first time, or again after they were forgotten.")
    moved = Event("Stations seen at another port than before. Many: two stacks have the same MAC address.")
    aged = Event("Stations forgotten because they were silent for too long.")
    evicted = Event("Stations forgotten because their port had too many.")
    joined = Event("Ports that appeared.")
    left = Event("Ports whose stack ended.")
    runt = Drop("Frames shorter than an Ethernet carries.")
    oversize = Drop("Frames longer than any MTU here allows.")
    bad_source = Drop("Frames whose source is a group address.")
    reserved = Drop("Frames to an address that no bridge forwards (IEEE 802.1D table 7-10).")
    same_port = Drop("Frames to a station at the port that they came from.")
    port_full = Drop("Frames for a port whose stack does not keep up or whose link is away.")
    malformed = Drop("Messages that are no pack of Ethernet frames.")
    stranger = Drop("Messages of a sender without a port, or beyond the most ports that a switch has.")
