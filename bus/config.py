"""The configuration of a stack, which the keeper passes to every layer."""

from __future__ import annotations

import secrets

import msgspec

from bus import topology
from packets.ipv4 import TCP, TTL_DEFAULT, UDP

# User ids for layers if root starts the stack (supervisor.lockdown). systemd's UIDS-GIDS.md lists this range as unused.
STACK_USERS = range(0x75000000, 0x79000000)
# Kinds of offload, with the names that `status` shows.
CHECKSUM, UDP_SEGMENTATION, TCP_SEGMENTATION = "checksum", "udp-segmentation", "tcp-segmentation"
WIRE_OFFLOAD = (CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION)  # what a virtual wire can do
SEGMENTATION_OF = {UDP: UDP_SEGMENTATION, TCP: TCP_SEGMENTATION}  # by protocol


class StackConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One stack's settings. Addresses are octets in network order; their number says the family."""

    name: str
    run_dir: str  # directory with the sockets that this layer connects to
    owner: int = 0  # the user who owns the stack; the keeper and the applications run as this user
    # the users that may connect to this layer: the owner, and the users of the layers that send to it
    users: tuple[int, ...] = ()
    address: bytes
    prefix: int
    mac: bytes
    gateway: bytes = b""  # empty: none
    mtu: int = 1500
    ttl: int = TTL_DEFAULT  # of packets whose sender does not choose a TTL (RFC 1122 section 3.2.1.7)
    accept_redirects: bool = False  # accept redirects from gateways (RFC 1122 section 3.2.2.2)
    wire: str = ""  # name of the virtual wire; empty: a TAP
    # on a wire: path of link's socket; only a name if link's `run_dir` contains the switch's socket
    wire_inbox: str = ""
    tap: str = "tap0"
    dns: list[str] = []  # name servers, for applications
    offload: tuple[str, ...] = ()  # kinds of offload that the device supports
    record_crashes: bool = False  # keep the last calls of each core for a recording after a crash
    pipes: str = "direct"  # the kind of pipes (usernet.pipe.contract.IMPLEMENTATIONS)
    layers: tuple[str, ...] = topology.ALWAYS  # the booted layers
    sysctl: dict[str, int] = {}  # settings by Linux's names (bus.sysctl)
    epoch: float = 0.0  # difference between seconds since 1970 and CLOCK_MONOTONIC at the boot
    cookie: int = 0  # added to the layer ids in frames, so that other programs of this user cannot pose as a layer


def draw_cookie() -> int:
    """A random cookie: larger than all client ids, with the last octet free for a layer's id."""
    return (1 << 54) + (secrets.randbits(46) << 8)


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(StackConfig).decode
