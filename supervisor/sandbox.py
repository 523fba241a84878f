"""Namespaces and the TAP, set up by direct system calls.

The sandbox is a user namespace, which gives the right to create the next, and a network namespace. The keeper holds
both, and they end with it. user_namespaces(7), network_namespaces(7), netdevice(7), Linux tuntap.rst.
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
from packets import vnet

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# Requests of TUNSETOFFLOAD, best first. UDP segmentation exists since Linux 6.2 and needs both of its flags.
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
    """Something could not be set up; the text gives the reason and a remedy."""


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Sandbox:
    """Created in two steps, because a process outside a new namespace must map its users."""

    @staticmethod
    def enter() -> None:
        """Move this single-threaded process into a new user and network namespace. SandboxError: not permitted."""
        try:
            _call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        except OSError as error:
            raise SandboxError(f"cannot create a user namespace ({error.strerror}); as root, allow them by "
                               "`sysctl user.max_user_namespaces=10000` (and kernel.unprivileged_userns_clone=1, "
                               "kernel.apparmor_restrict_unprivileged_userns=0 where they exist)") from error

    @staticmethod
    def map_users(pid: int) -> None:
        """From outside: map the owner to root.

        If root owns the stack, all users are mapped, so that daemons can change theirs.
        """
        if os.geteuid() == 0:
            try:
                Path(f"/proc/{pid}/uid_map").write_text("0 0 4294967295")
                Path(f"/proc/{pid}/gid_map").write_text("0 0 4294967295")
                return
            except OSError:
                pass  # in a container with a shorter map: continue with the single user
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/uid_map").write_text(f"0 {os.geteuid()} 1")
        Path(f"/proc/{pid}/gid_map").write_text(f"0 {os.getegid()} 1")


def join(pid: int, known: int = -1) -> None:
    """Move this single-threaded process into the namespaces of process `pid`. OSError: not permitted.

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
    """A descriptor of the TAP `name`, which is created if necessary and exists while a process holds the descriptor.

    Also returns the offload features that the kernel granted (bus.config), none without `offload`. If there are any, a
    struct virtio_net_hdr precedes each frame in both directions. SandboxError: not available.
    """
    if not 0 < len(name) <= INTERFACE_NAME_MAX:
        raise SandboxError(f"'{name}' is not a valid interface name: expected 1 to {INTERFACE_NAME_MAX} characters")
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
        raise SandboxError(f"cannot create TAP {name}: {reason.get(error.errno or 0, error.strerror)}") from error
    return descriptor, _ask_offload(descriptor) if offload else ()


def _ask_offload(descriptor: int) -> tuple[str, ...]:
    fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", vnet.HEADER_OCTETS))
    for flags, offload in OFFLOADS:
        try:
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return offload
    raise SandboxError("the kernel offers a TAP with IFF_VNET_HDR and no offload; start with --no-offload")


def configure(name: str, address: ipaddress.IPv4Interface | None, mtu_octets: int | None = None) -> None:
    """Set the address (of the kernel's end) and MTU of interface `name` in this network namespace, and bring it up."""
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
    """Disable IPv6 of the kernel on the TAP if the kernel supports it, because the stack does not answer it."""
    try:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    except OSError:
        pass
