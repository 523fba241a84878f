"""Whose TCP is judged: the kernel's, in the network namespace that this process is in, or that of a stack."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Protocol

from bus.sysctl import SETTINGS

from .cases import ROOT, Case, Segment
from .station import Cable, Tap, WirePort

NETWORK = IPv4Network("10.0.0.0/16")
ADDRESS = NETWORK[2]
MTU, MTU_MAX = 1500, 65535 - 14  # the longest of a TAP, whose frames have 65535 octets at most
Setting = tuple[tuple[str, int], ...]  # what a subject has to be set to before a case, and others of the same may run


class Subject(Protocol):
    """One TCP with its sockets."""

    name: str
    address: IPv4Address

    def setting(self, case: Case) -> Setting: ...

    def configure(self, setting: Setting) -> Cable | None:
        """Take that setting on; returns the cable where there is a new one."""

    def socket(self, case: Case) -> socket.socket:
        """A stream socket for that case."""

    def delay_acknowledgments(self, connection: socket.socket) -> None:
        """FreeBSD's delayed ACK from the first octet on, which others have only later in a connection."""

    def close(self) -> None: ...


def _mtu(case: Case) -> int:
    """The MTU that the SYN's MSS speaks of, or the longest that the medium has."""
    segments = [step.what for step in case.steps if step.kind == "out" and isinstance(step.what, Segment)]
    return min(max([MTU, *(s.options["mss"][0] + 40 for s in segments if "mss" in s.options)]), MTU_MAX)


LINUX_SETTINGS = {  # FreeBSD's name: (sysctls, FreeBSD's value to theirs)
    "net.inet.tcp.rfc1323": (("tcp_timestamps", "tcp_window_scaling"), int),
    "net.inet.tcp.sack.enable": (("tcp_sack",), int),
    "net.inet.tcp.ecn.enable": (("tcp_ecn",), int),
    "net.inet.tcp.keepcnt": (("tcp_keepalive_probes",), int),
    "net.inet.tcp.keepidle": (("tcp_keepalive_time",), lambda ms: ms // 1000),
    "net.inet.tcp.keepintvl": (("tcp_keepalive_intvl",), lambda ms: ms // 1000),
    "kern.ipc.maxsockbuf": (("tcp_rmem",), lambda octets: min(octets, 1 << 30)),
}
LINUX_DEFAULTS = {"tcp_timestamps": 1, "tcp_window_scaling": 1, "tcp_sack": 1, "tcp_ecn": 2, "tcp_keepalive_probes": 9,
             "tcp_keepalive_time": 7200, "tcp_keepalive_intvl": 75, "tcp_rmem": 1 << 21, "mtu": MTU,
             "tcp_syn_linear_timeouts": 0, "tcp_invalid_ratelimit": 0, "tcp_no_metrics_save": 1}


class Linux:
    """The kernel's TCP. The process must be alone in its network namespace: `unshare -rn`."""

    name = "linux"
    address = ADDRESS
    def __init__(self) -> None:
        # linux/if_tun.h: TUNSETIFF, IFF_TAP | IFF_NO_PI
        self._tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x0002 | 0x1000))
        for command in ("link set lo up", f"address add {ADDRESS}/{NETWORK.prefixlen} dev tap0", "link set tap0 up"):
            subprocess.run(["ip", *command.split()], check=True)
        self._current: dict[str, int] = {}
        self._plugged = False

    def setting(self, case: Case) -> Setting:
        wanted = LINUX_DEFAULTS | {"mtu": _mtu(case)}
        for knob, value in case.knobs.items():
            names, translate = LINUX_SETTINGS.get(knob, ((), int))
            wanted |= dict.fromkeys(names, translate(value))
        return tuple(wanted.items())

    def configure(self, setting: Setting) -> Cable | None:
        for name, value in setting:
            if self._current.get(name) != value:
                self._set(name, value)
        if self._plugged:
            return None
        self._plugged = True
        return Tap(self._tap)

    def change(self, knob: str, value: int) -> None:
        """A setting in the middle of a case."""
        names, translate = LINUX_SETTINGS.get(knob, ((), int))
        for name in names:
            self._set(name, translate(value))

    def _set(self, name: str, value: int) -> None:
        if name == "mtu":
            subprocess.run(["ip", "link", "set", "tap0", "mtu", str(value)], check=True)
        else:
            written = f"4096 {min(value, 131072)} {value}" if name == "tcp_rmem" else str(value)
            Path(f"/proc/sys/net/ipv4/{name}").write_text(written)
        self._current[name] = value

    def socket(self, case: Case) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        longest = case.knobs.get("kern.ipc.maxsockbuf", 1 << 21)
        if longest < 1 << 21:  # which is what the window's scale is chosen by
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, longest)
        return made

    def delay_acknowledgments(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def close(self) -> None:
        pass  # the namespace ends with the process


def _sysctls(knobs: Mapping[str, int]) -> dict[str, int]:
    """The stack's settings for FreeBSD's, as far as it has them."""
    wanted: dict[str, int] = {}
    for knob, value in knobs.items():
        names, translate = LINUX_SETTINGS.get(knob, ((), int))
        wanted |= {f"net.ipv4.{name}": translate(value) for name in names if f"net.ipv4.{name}" in SETTINGS}
    return wanted


class Usernet:
    """A stack's TCP, on a virtual wire where the judge is the only other station. One stack for each setting."""

    name = "usernet"
    address = ADDRESS

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="uc", dir="/tmp"))
        self._name = f"cases-{secrets.token_hex(4)}"
        self._up = False

    def setting(self, case: Case) -> Setting:
        return (("mtu", _mtu(case)), *_sysctls(case.knobs).items())

    def configure(self, setting: Setting) -> Cable | None:
        self._down()
        (_, mtu), *sysctls = self._setting = setting
        self._launch("up", "--detach", "--wire", self._name, "--address", f"{ADDRESS}/{NETWORK.prefixlen}",
                     "--mtu", str(mtu), *(f"--sysctl={name}={value}" for name, value in sysctls))
        self._up = True
        self._stack = self._attach()
        return WirePort(self._home / "usernet" / ".wires" / self._name)

    def change(self, knob: str, value: int) -> None:
        """A setting in the middle of a case: the sockets that come then are of a stack that has it."""
        self.configure(tuple((dict(self._setting) | _sysctls({knob: value})).items())).close()

    def socket(self, case: Case) -> socket.socket:
        return self._stack.socket(socket.AF_INET, socket.SOCK_STREAM)

    def delay_acknowledgments(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def status(self) -> dict:
        """What the launcher's `status --json` says."""
        return json.loads(self._launch("status", "--json"))

    def close(self) -> None:
        self._down()
        shutil.rmtree(self._home, ignore_errors=True)

    def _down(self) -> None:
        if self._up:
            self._up = False
            self._launch("down")

    def _attach(self):
        import usernet

        return usernet.Stack(self._name, self._home / "usernet" / self._name)

    def _launch(self, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("USERNET_")}
        environment |= {"XDG_RUNTIME_DIR": str(self._home), "USERNET_NAME": self._name}
        done = subprocess.run([sys.executable, str(ROOT / "launcher.py"), *arguments], env=environment, timeout=60,
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"launcher.py {' '.join(arguments)}: {done.stderr}")
        return done.stdout


SUBJECTS = {subject.name: subject for subject in (Linux, Usernet)}
