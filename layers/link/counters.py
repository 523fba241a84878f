"""The counters of link."""

from bus.counters import CounterSet, Drop, Event, In, Out


class Counters(CounterSet):
    """Frames in, frames out, and dropped frames by reason."""

    frames_in = In("Frames read from the device.")
    frames_out = Out("Frames written to the device.")
    runt = Drop("Frames shorter than an Ethernet header.")
    oversize = Drop("Frames longer than the MTU allows.")
    other_host = Drop("Frames to another station's MAC address.")
    own_source = Drop("Frames with the own MAC as source: own frames that came back, or forged ones.")
    unknown_type = Drop("Frames of an unknown EtherType.")
    bad_offload = Drop("Frames with an invalid virtio_net_hdr for an IPv4 packet.")
    bad_request = Drop("Records from above that are too short or longer than the MTU.")
    device_refused = Drop("Frames that the device refused: its interface is down, or the wire's switch is restarting.")
    wire_skipped = Event("Messages on a wire that were not the next one, as after a restart; the switch repeats them.")
    wire_malformed = Drop("Messages on a wire that do not contain Ethernet frames.")
