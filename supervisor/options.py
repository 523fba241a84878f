"""The options of `up`, and their checks."""

from __future__ import annotations

import ipaddress
import os
import random
import re
import tomllib
from pathlib import Path

import msgspec

from bus import sysctl, topology
from packets.ipv4 import TTL_DEFAULT
from usernet.pipe.contract import IMPLEMENTATIONS
from usernet.pipe.run_dir import DEFAULT_NAME, run_dir

MTU_MIN, MTU_MAX = 68, 65521  # octets. RFC 791: every host forwards 68; 65535 minus an Ethernet header
TTL_MAX = 255  # RFC 791 section 3.1: an octet
DEFAULT_ADDRESS = "10.0.0.2/24"
MODES = ("compact", "spread", "auto")
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
TAP_NAME_MAX = 15  # netdevice(7): IFNAMSIZ without the closing zero
# no '/', ':' or blank, and no '%', which the kernel takes for a template of a name
_TAP = re.compile(rf"(?!\.{{1,2}}$)[!-$&-.0-9;-~]{{1,{TAP_NAME_MAX}}}")
NOT_TAPS = ("all", "default", "lo")  # /proc/sys/net/ipv4/conf has the first two; the third is there already
_WIRE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class UsageError(Exception):
    """The command line or the configuration file is invalid; the text names the wrong value and what is allowed."""


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of `up`. A configuration file (TOML) has the same names."""

    name: str = ""  # empty: $USERNET_NAME, else "default"
    host: bool = False
    address: str = ""
    gateway: str = ""
    mac: str = ""
    mtu: int = 1500
    ttl: int = TTL_DEFAULT
    tap: str = "tap0"
    wire: str = ""
    dns: str = ""  # addresses of name servers, separated by commas
    cores: str = "auto"
    pipes: str = ""  # empty: $USERNET_PIPES, else zmq
    reload: bool = False
    no_offload: bool = False
    record_crashes: bool = False
    allow_raw: bool = False
    accept_redirects: bool = False
    unlocked: bool = False
    profile: str = ""  # name of a network (cli/profiles.toml)
    sysctl: list[str] = []  # each NAME=VALUE

    def interface(self) -> ipaddress.IPv4Interface:
        """The stack's own address and network."""
        try:
            interface = ipaddress.IPv4Interface(self.address or DEFAULT_ADDRESS)
        except ValueError as error:
            raise UsageError(f"--address {self.address}: {error}; expected an address like "
                             f"{DEFAULT_ADDRESS}") from error
        address = interface.ip
        # RFC 1122 section 3.2.1.3: hosts have no addresses in 0/8, 127/8, class D and class E.
        if address.packed[0] in (0, 127) or address.packed[0] >= 224:
            raise UsageError(f"--address {self.address}: a host cannot have this address")
        if _is_networks_own(address, interface.network):
            raise UsageError(f"--address {self.address}: this is the address of the network itself or its broadcast "
                             "address")
        return interface

    def kernel_end(self) -> ipaddress.IPv4Interface:
        """The address of the kernel's end of the TAP: the gateway, else the first host address that is not the
        stack's."""
        interface = self.interface()
        if self.gateway:
            return ipaddress.IPv4Interface((self._gateway(), interface.network.prefixlen))
        for host in interface.network.hosts():
            if host != interface.ip:
                return ipaddress.IPv4Interface((host, interface.network.prefixlen))
        raise UsageError(f"--address {interface}: the network has no room for the kernel's end of the TAP")

    def _gateway(self) -> ipaddress.IPv4Address:
        interface = self.interface()
        try:
            gateway = ipaddress.IPv4Address(self.gateway)
        except ValueError as error:
            raise UsageError(f"--gateway {self.gateway}: {error}") from error
        if gateway not in interface.network or gateway == interface.ip or _is_networks_own(gateway, interface.network):
            raise UsageError(f"--gateway {gateway}: must be another host of the stack's network, "
                             f"{interface.network}")
        return gateway

    def gateway_address(self) -> bytes:
        """The default gateway; empty: none. On a TAP the kernel's end is the default gateway."""
        if self.gateway:
            return self._gateway().packed
        return b"" if self.wire else self.kernel_end().ip.packed

    def mac_octets(self) -> bytes:
        """The given MAC address, or a random, locally administered one."""
        if not self.mac:
            drawn = random.SystemRandom().randbytes(6)
            return bytes([drawn[0] & 0xFC | 0x02]) + drawn[1:]
        if not MAC.fullmatch(self.mac.lower()):
            raise UsageError(f"--mac {self.mac}: expected an address like 02:00:00:00:00:02")
        octets = bytes.fromhex(self.mac.replace(":", ""))
        if octets[0] & 1 or not any(octets):
            raise UsageError(f"--mac {self.mac}: must not be a group address or zero")
        return octets

    def wire_dir(self) -> Path:
        """The directory in which stacks on the wire meet: beside the default stack's directory, whatever $USERNET_DIR
        is."""
        return run_dir(DEFAULT_NAME).parent / ".wires" / self.wire

    def name_servers(self) -> list[str]:
        """The name servers for applications."""
        try:
            return [str(ipaddress.IPv4Address(server.strip())) for server in self.dns.split(",")] if self.dns else []
        except ValueError as error:
            raise UsageError(f"--dns {self.dns}: {error}; expected addresses like 10.0.0.1,10.0.0.3") from error

    def settings(self) -> dict[str, int]:
        """The values that --sysctl sets, by their names on Linux."""
        try:
            return sysctl.parsed(self.sysctl)
        except ValueError as error:
            raise UsageError(f"--sysctl {error}") from error

    def layers(self) -> tuple[str, ...]:
        """The layers to boot."""
        return tuple(topology.LAYERS) if self.allow_raw else topology.ALWAYS

    def implementation(self) -> str:
        """The kind of pipes: zmq or direct."""
        return self.pipes or os.environ.get("USERNET_PIPES") or "zmq"

    def core_list(self) -> list[int] | None:
        """The cores of --cores LIST; None: the name of a mode."""
        if self.cores in MODES:
            return None
        try:
            wanted = sorted({int(part) for part in self.cores.split(",")})
        except ValueError as error:
            raise UsageError(f"--cores {self.cores}: {', '.join(MODES)}, or core numbers like 0,1") from error
        missing = set(wanted) - os.sched_getaffinity(0)
        if missing:
            raise UsageError(f"--cores {self.cores}: this machine has no core {min(missing)} here; "
                             f"there are {', '.join(map(str, sorted(os.sched_getaffinity(0))))}")
        return wanted

    def in_effect(self, option: str) -> object:
        """The value of an option after the defaults that depend on others; the MAC address only if one is given."""
        match option:
            case "address":
                return str(self.interface())
            case "gateway":
                return str(ipaddress.IPv4Address(packed)) if (packed := self.gateway_address()) else ""
            case "pipes":
                return self.implementation()
            case "dns":
                return ",".join(self.name_servers())
            case "mac":
                return self.mac.lower()
            case "cores":
                return self.core_list() or self.cores
            case "sysctl":
                return self.settings()
        return getattr(self, option)

    def check(self) -> None:
        """Check all options. UsageError: the first invalid one."""
        self.interface()
        self.gateway_address()
        self.mac_octets()
        self.core_list()
        self.name_servers()
        self.settings()
        if not MTU_MIN <= self.mtu <= MTU_MAX:
            raise UsageError(f"--mtu {self.mtu}: {MTU_MIN} to {MTU_MAX}")
        if not 1 <= self.ttl <= TTL_MAX:
            raise UsageError(f"--ttl {self.ttl}: 1 to {TTL_MAX}")
        if self.implementation() not in IMPLEMENTATIONS:
            told = f"--pipes {self.pipes}" if self.pipes else f"USERNET_PIPES={self.implementation()}"
            raise UsageError(f"{told}: {' or '.join(IMPLEMENTATIONS)}")
        if not _TAP.fullmatch(self.tap):
            raise UsageError(f"--tap {self.tap}: the name of an interface has 1 to {TAP_NAME_MAX} characters, no '/', "
                             "':', '%' or blank")
        if self.tap in NOT_TAPS:
            raise UsageError(f"--tap {self.tap}: a TAP can have any name but {', '.join(NOT_TAPS)}")
        if self.wire and not _WIRE.fullmatch(self.wire):
            raise UsageError(f"--wire {self.wire}: letters, digits, '.', '_' and '-', at most 32")
        if self.wire and self.host:
            raise UsageError("--wire and --host cannot be combined: a wire has no end in the kernel")


def _is_networks_own(address: ipaddress.IPv4Address, network: ipaddress.IPv4Network) -> bool:
    """True for the address of the network itself and its broadcast address; a /31 (RFC 3021) and a single host have
    neither."""
    return network.prefixlen < 31 and address in (network.network_address, network.broadcast_address)


def from_file(path: str) -> dict[str, object]:
    """The options that a configuration file sets.

    Keys are the option names, with - or _; values with commas may be lists.
    """
    try:
        values = {key.replace("-", "_"): value for key, value in tomllib.loads(Path(path).read_text()).items()}
        unknown = sorted(set(values) - set(Options.__struct_fields__))
        if unknown:
            known = ", ".join(field.replace("_", "-") for field in Options.__struct_fields__)
            raise UsageError(f"--config {path}: no option {unknown[0].replace('_', '-')!r}; the options are {known}")
        for key in ("dns", "cores"):
            if isinstance(values.get(key), list):
                values[key] = ",".join(map(str, values[key]))
        if type(values.get("cores")) is int:
            values["cores"] = str(values["cores"])
        msgspec.convert(values, Options)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    return values
