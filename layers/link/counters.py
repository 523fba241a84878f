"""What link counts."""

from bus.counters import CounterSet, Drop, In, Out


class Counters(CounterSet):
    """Frames in, frames out, frames dropped and why."""

    frames_in = In("Frames read from the device.")
    frames_out = Out("Frames handed to the device.")
    runt = Drop("Frames shorter than an Ethernet header.")
    oversize = Drop("Frames longer than the MTU allows.")
    other_host = Drop("Frames for another station's MAC address.")
    own_source = Drop("Frames that carry our own MAC as their source: our own, come back, or a forged one.")
    unknown_type = Drop("Frames of an EtherType that no layer here speaks.")
    bad_offload = Drop("Frames of which the TAP says, of checksum or segments, what no IPv4 packet can be.")
    bad_request = Drop("Records from above that are no frame to send: too short or over the MTU.")
    device_refused = Drop("Frames that the device did not take: its interface is down, or the wire's switch away.")
    wire_malformed = Drop("Messages on a wire that are no pack of Ethernet frames.")
