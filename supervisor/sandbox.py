"""Namespaces and the TAP: the kernel's side of the cable, through the few system calls that it takes.

The sandbox is a user namespace (which gives the right to the next) and a network namespace, both held by the keeper and
gone with it. user_namespaces(7), network_namespaces(7), netdevice(7), Linux tuntap.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

from bus.config import CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
VNET_HEADER_OCTETS = 10  # struct virtio_net_hdr
# What TUNSETOFFLOAD may be asked for, best first; UDP segmentation since Linux 6.2, which wants both of its flags.
TUN_F_CSUM, TUN_F_TSO4, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x20, 0x40
OFFLOADS = (
    (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_USO4 | TUN_F_USO6, (CHECKSUM, TCP_SEGMENTATION, UDP_SEGMENTATION)),
    (TUN_F_CSUM | TUN_F_TSO4, (CHECKSUM, TCP_SEGMENTATION)),
    (TUN_F_CSUM, (CHECKSUM,)),
)
SIOCSIFFLAGS, SIOCGIFFLAGS = 0x8914, 0x8913
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8916, 0x891C, 0x8922
IFF_UP, IFF_RUNNING = 0x1, 0x40
INTERFACE_NAME_MAX = 15

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """What could not be set up; the text says why and what would help."""


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Sandbox:
    """Made in two steps, because who maps the users of a new namespace stands outside of it."""

    @staticmethod
    def enter() -> None:
        """Move this (single-threaded) process into a user and a network namespace of its own."""
        try:
            _call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        except OSError as error:
            raise SandboxError(f"no user namespace to be had ({error.strerror}); as root, allow them by "
                               "`sysctl user.max_user_namespaces=10000` (and kernel.unprivileged_userns_clone=1, "
                               "kernel.apparmor_restrict_unprivileged_userns=0 where they exist)") from error

    @staticmethod
    def map_users(pid: int) -> None:
        """From outside: make the owner root within. Real root keeps all its users, so that daemons can drop theirs."""
        if os.geteuid() == 0:
            try:
                Path(f"/proc/{pid}/uid_map").write_text("0 0 4294967295")
                Path(f"/proc/{pid}/gid_map").write_text("0 0 4294967295")
                return
            except OSError:
                pass  # in a container whose own map is shorter: fall through to the single user
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/uid_map").write_text(f"0 {os.geteuid()} 1")
        Path(f"/proc/{pid}/gid_map").write_text(f"0 {os.getegid()} 1")


def join(pid: int, known: int = -1) -> None:
    """Move this (single-threaded) process into the namespaces of process `pid`; OSError where that is not allowed.

    `known`: a pidfd of it, if there is one.
    """
    pidfd = os.dup(known) if known >= 0 else os.pidfd_open(pid)
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            _call("setns", pidfd, CLONE_NEWUSER)
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            _call("setns", pidfd, CLONE_NEWNET)
    finally:
        os.close(pidfd)


def open_tap(name: str, offload: bool = False) -> tuple[int, tuple[str, ...]]:
    """A descriptor of the TAP `name`, made if need be; the interface lives while somebody holds the descriptor.

    With it, what the kernel takes off our hands (bus.config); nothing without `offload`. Where it is anything, each
    frame has a struct virtio_net_hdr before it, both ways.
    """
    if not 0 < len(name) <= INTERFACE_NAME_MAX:
        raise SandboxError(f"'{name}' is no interface name: 1 to {INTERFACE_NAME_MAX} characters")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SandboxError(f"cannot open /dev/net/tun ({error.strerror}); as root: `modprobe tun`, and "
                           "`chmod 666 /dev/net/tun` for ordinary users; in a container: "
                           "--device /dev/net/tun") from error
    try:
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        reason = {errno.EPERM: "it needs CAP_NET_ADMIN in this network namespace: run it as root, or without --host",
                  errno.EBUSY: "another program uses it: choose another name with --tap"}
        raise SandboxError(f"cannot make TAP {name}: {reason.get(error.errno or 0, error.strerror)}") from error
    return descriptor, _ask_offload(descriptor) if offload else ()


def _ask_offload(descriptor: int) -> tuple[str, ...]:
    fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_OCTETS))
    for flags, offload in OFFLOADS:
        try:
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return offload
    raise SandboxError("the kernel offers a TAP with IFF_VNET_HDR and no offload; start with --no-offload")


def configure(name: str, address: ipaddress.IPv4Interface | None, mtu_octets: int | None = None) -> None:
    """Give interface `name` of this network namespace an address (of the kernel's end) and an MTU, and bring it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        def request(code: int, tail: bytes) -> bytes:
            return fcntl.ioctl(control, code, struct.pack("16s24s", name.encode(), tail))

        try:
            if mtu_octets is not None:
                request(SIOCSIFMTU, struct.pack("i", mtu_octets))
            if address is not None:
                request(SIOCSIFADDR, struct.pack("HH4s", socket.AF_INET, 0, address.ip.packed))
                request(SIOCSIFNETMASK, struct.pack("HH4s", socket.AF_INET, 0, address.netmask.packed))
            (flags,) = struct.unpack_from("H", request(SIOCGIFFLAGS, b""), 16)
            request(SIOCSIFFLAGS, struct.pack("H", flags | IFF_UP | IFF_RUNNING))
        except OSError as error:
            raise SandboxError(f"cannot configure interface {name}: {error.strerror}") from error


def quiet_ipv6(name: str) -> None:
    """Keep the kernel from speaking IPv6 on the cable, where it has the switch: nobody answers."""
    try:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    except OSError:
        pass
