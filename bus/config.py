"""What the launcher tells every layer when it forks it."""

from __future__ import annotations

import secrets

import msgspec

from bus import topology
from packets.ipv4 import TCP, TTL_DEFAULT, UDP

# Users that processes of stacks become where root starts them (supervisor.lockdown); given to nobody: systemd's
# UIDS-GIDS.md has these as unused.
STACK_USERS = range(0x75000000, 0x79000000)
# Kinds of offload, as `status` names them.
CHECKSUM, UDP_SEGMENTATION, TCP_SEGMENTATION = "checksum", "udp-segmentation", "tcp-segmentation"
SEGMENTATION_OF = {UDP: UDP_SEGMENTATION, TCP: TCP_SEGMENTATION}  # by protocol


class StackConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One stack's settings. Addresses are 32-bit integers; `gateway` 0: none."""

    name: str
    run_dir: str  # where this layer finds the sockets that it connects to
    owner: int = 0  # the user whose stack it is: the keeper's, and the applications'
    users: tuple[int, ...] = ()  # who may connect to this layer: the owner, and the layers that feed it
    address: int
    prefix: int
    mac: bytes
    gateway: int = 0
    mtu: int = 1500
    ttl: int = TTL_DEFAULT  # of packets whose sender does not choose one (RFC 1122 section 3.2.1.7)
    accept_redirects: bool = False  # follow what gateways redirect us to (RFC 1122 section 3.2.2.2)
    wire: str = ""  # name of the virtual wire; empty: a TAP
    wire_inbox: str = ""  # on a wire: link's socket there; a mere name where link has the switch's in its `run_dir`
    tap: str = "tap0"
    dns: list[str] = []  # name servers, for applications
    offload: tuple[str, ...] = ()  # what the TAP's other end takes off our hands: kinds of offload
    pipes: str = "direct"  # what joins the layers and serves the applications (usernet.pipe.contract.IMPLEMENTATIONS)
    layers: tuple[str, ...] = topology.ALWAYS  # those that are booted
    sysctl: dict[str, int] = {}  # settings by Linux's names (bus.sysctl)
    epoch: float = 0.0  # what CLOCK_MONOTONIC lacked, at the boot, to the seconds since 1970
    cookie: int = 0  # added to a layer's id in its frames: what others of this user send cannot pass for a layer's


def draw_cookie() -> int:
    """A new one: above all ids of clients, its last octet left for a layer's."""
    return (1 << 54) + (secrets.randbits(46) << 8)


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(StackConfig).decode
