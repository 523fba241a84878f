"""Name resolution by name servers that are reached through the stack: the functions of the standard module.

dnspython (the extra `usernet[dns]`) implements the protocol; its messages go over UDP sockets of the stack. The name
servers are those of the stack (`launcher.py up --dns`). The resolver, files and cache of the host are not used.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket as _std
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from usernet.addresses import LOCALHOST, exact, numeric
from usernet.client.exchange import Exchange
from usernet.client.stack import Stack

if TYPE_CHECKING:
    import dns.resolver

PORT = 53  # RFC 1035 section 4.2
PAYLOAD_OCTETS = 1232  # fits without fragments (DNS flag day 2020): there is no fallback to TCP
LIFETIME_S = 10.0  # for all tries together, as two rounds of resolv.conf(5)'s default timeout
NAMES_CACHED = 1024
_UNKNOWN = "Name or service not known"
_TEXTS = {
    _std.EAI_NONAME: _UNKNOWN, _std.EAI_BADFLAGS: "Bad value for ai_flags", _std.EAI_FAMILY: "ai_family not supported",
    _std.EAI_SOCKTYPE: "ai_socktype not supported", _std.EAI_SERVICE: "Servname not supported for ai_socktype",
    _std.EAI_ADDRFAMILY: "Address family for hostname not supported",
}  # fmt: skip
_FLAGS = 0x043F | 0x03C0  # netdb.h: AI_PASSIVE to AI_ADDRCONFIG, AI_NUMERICSERV, and those of international names
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)([0-9]+)", re.ASCII)


class _Type(NamedTuple):
    """A row of glibc's table gaih_inet_typeproto."""

    kind: _std.SocketKind
    protocol: int
    name: str
    any_protocol: bool = False
    default: bool = False


_TYPES = (
    _Type(_std.SOCK_STREAM, _std.IPPROTO_TCP, "tcp", default=True),
    _Type(_std.SOCK_DGRAM, _std.IPPROTO_UDP, "udp", default=True),
    _Type(6, 33, "dccp"),  # type: ignore[arg-type]
    _Type(_std.SOCK_DGRAM, 136, "udplite"),
    _Type(_std.SOCK_STREAM, _std.IPPROTO_SCTP, "sctp"),
    _Type(_std.SOCK_SEQPACKET, _std.IPPROTO_SCTP, "sctp"),
    _Type(_std.SOCK_RAW, 0, "raw", any_protocol=True, default=True),
)

Entry = tuple[_std.AddressFamily, _std.SocketKind, int, str, tuple[str, int]]


def addresses(name: str, stack: Stack | None = None) -> tuple[str, list[bytes]]:
    """(canonical name, addresses) of a name that is not numeric. gaierror: there are none."""
    answer = _ask(name, "A", stack)
    return str(answer.canonical_name).rstrip("."), [_std.inet_aton(record.address) for record in answer]


def lookup(
    name: str, kind: str | None = None, stack: Stack | None = None, servers: list[str] | None = None
) -> list[tuple[str, str, str]]:
    """(owner, type, value) of the records in the answer; `kind`: A, or PTR for an address.

    `servers`: instead of the stack's.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        asked, kind = name, kind or "A"
    else:
        asked, kind = (name, kind) if kind else (address.reverse_pointer, "PTR")
    if kind == "A" and _is_localhost(asked):  # RFC 6761 section 6.3: no server is asked for these two
        return [(asked, "A", LOCALHOST)]
    if kind == "PTR" and name == LOCALHOST:
        return [(asked, "PTR", "localhost")]
    answer = _ask(asked, kind, stack, servers)
    return [(str(records.name).rstrip("."), _type_name(records.rdtype), str(record))
            for records in answer.response.answer for record in records]


def _is_localhost(name: str) -> bool:
    return name.lower().rstrip(".").rpartition(".")[2] == "localhost"


def is_type(kind: str) -> bool:
    """True if this is a type of record, or dnspython is not installed."""
    try:
        import dns.rdatatype
    except ImportError:
        return True
    try:
        dns.rdatatype.from_text(kind)
    except dns.rdatatype.UnknownRdatatype:
        return False
    return True


def _type_name(kind: int) -> str:
    import dns.rdatatype

    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind))


def _ask(name: str, kind: str, stack: Stack | None, servers: list[str] | None = None) -> dns.resolver.Answer:
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise _std.gaierror(
            _std.EAI_NONAME, f"{_UNKNOWN}: names other than numbers and localhost need dnspython, which is not "
            "installed: pip install 'usernet[dns]'"
        ) from None
    try:
        return _resolver(stack or Stack(), servers).resolve(name, kind)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN) from None
    except (dns.resolver.NoNameservers, dns.resolver.LifetimeTimeout) as error:
        asked = ", ".join(servers or (stack or Stack()).name_servers)
        what = "no answer from" if isinstance(error, dns.resolver.LifetimeTimeout) else "an error or refusal from"
        raise _std.gaierror(_std.EAI_AGAIN, f"Temporary failure in name resolution: {what} {asked}") from None
    except (dns.exception.DNSException, UnicodeError):  # not a valid name or type
        raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN) from None


def _resolver(stack: Stack, servers: list[str] | None) -> dns.resolver.Resolver:
    servers = servers or stack.name_servers
    if not servers:
        raise _std.gaierror(
            _std.EAI_NONAME, f"{_UNKNOWN}: the stack {stack.name!r} has no name server; give it one with: "
            "launcher.py up --dns ADDRESS"
        )
    return _made(stack.name, str(stack.run_dir), tuple(servers), os.getpid())


@lru_cache(maxsize=16)
def _made(name: str, run_dir: str, servers: tuple[str, ...], pid: int) -> dns.resolver.Resolver:
    """One resolver with its cache for each stack; a new one after a fork."""
    import dns.resolver

    stack = Stack(name, run_dir)
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [_server(stack, address) for address in servers]
    resolver.lifetime = LIFETIME_S
    resolver.use_edns(0, 0, PAYLOAD_OCTETS)
    resolver.cache = dns.resolver.LRUCache(NAMES_CACHED)
    return resolver


def _server(stack: Stack, address: str) -> Any:
    """A name server for dnspython, which is queried by a socket of the stack."""
    import dns.exception
    import dns.message
    import dns.nameserver

    class Server(dns.nameserver.AddressAndPortNameserver):
        def kind(self) -> str:
            return "usernet"

        def is_always_max_size(self) -> bool:
            return True  # use a truncated answer, because there is no other

        def query(self, request: Any, timeout: float, *_: object, **__: object) -> Any:
            deadline = monotonic() + timeout
            with Exchange(stack, self.address, self.port) as exchange:
                exchange.send(request.to_wire(), timeout)
                while (left := deadline - monotonic()) > 0:
                    try:
                        response = dns.message.from_wire(exchange.receive(left), ignore_trailing=True)
                    except TimeoutError:
                        break
                    except dns.exception.DNSException:
                        continue  # a forged answer
                    if request.is_response(response):
                        return response
            raise dns.exception.Timeout(timeout=timeout)

    return Server(address, PORT)


# -- the standard module's functions -----------------------------------------------------------------------------------


def gethostbyname(hostname: str | bytes) -> str:
    """The first address of a host."""
    return gethostbyname_ex(hostname)[2][0]


def gethostbyname_ex(hostname: str | bytes) -> tuple[str, list[str], list[str]]:
    """(canonical name, other names, addresses) of a host."""
    octets = numeric(hostname)
    name = hostname if isinstance(hostname, str) else hostname.decode("ascii")
    if octets is not None:
        return name, [], [_std.inet_ntoa(octets)]
    if _is_ipv6(name):
        raise _error(_std.EAI_ADDRFAMILY)
    canonical, found = addresses(name)
    return canonical, [] if canonical == name else [name], [_std.inet_ntoa(octets) for octets in found]


def gethostbyaddr(ip_address: str) -> tuple[str, list[str], list[str]]:
    """(name, other names, addresses) of an address."""
    address = gethostbyname(ip_address)
    try:
        return _name_of(address), [], [address]
    except _std.gaierror as error:
        raise _std.herror(1, f"Unknown host: {error.strerror}") from None


def getfqdn(name: str = "") -> str:
    """The first name of a host that contains a dot, or its name; without an argument, that of this machine."""
    name = name.strip()
    if not name or name in ("0.0.0.0", "::"):
        name = _std.gethostname()
    try:
        canonical, others, _ = gethostbyaddr(name)
    except OSError:
        return name
    return next((each for each in (canonical, *others) if "." in each), canonical)


def _name_of(address: str) -> str:
    if address == LOCALHOST:
        return "localhost"
    answer = _ask(ipaddress.IPv4Address(address).reverse_pointer, "PTR", None)
    return str(answer[0].target).rstrip(".")


def getnameinfo(sockaddr: tuple[str, int], flags: int) -> tuple[str, str]:
    """(host, service) of an address; the address itself if it has no name, unless NI_NAMEREQD."""
    if not isinstance(sockaddr, tuple):
        raise TypeError("getnameinfo() argument 1 must be a tuple")
    host, port = sockaddr[:2]
    octets = numeric(host)
    if octets is None:
        raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN)
    if port < 0:
        raise _error(_std.EAI_SERVICE)
    port &= 0xFFFF  # as glibc does with what is longer
    host = _std.inet_ntoa(octets)
    if not flags & _std.NI_NUMERICHOST:
        try:
            host = _name_of(host)
        except _std.gaierror:
            if flags & _std.NI_NAMEREQD:
                raise
    if flags & _std.NI_NUMERICSERV:
        return host, str(port)
    try:
        return host, _std.getservbyport(port, "udp" if flags & _std.NI_DGRAM else "tcp")
    except OSError:
        return host, str(port)


def getaddrinfo(
    host: str | bytes | None, port: str | bytes | int | None, family: int = 0, type: int = 0, proto: int = 0,
    flags: int = 0,
) -> list[Entry]:
    """As the standard function on Linux (glibc, getaddrinfo.c), for IPv4."""
    name, service = _name(host), _service_text(port)
    if name is None and service is None:
        raise _error(_std.EAI_NONAME)
    if flags & ~_FLAGS or (flags & _std.AI_CANONNAME and name is None):
        raise _error(_std.EAI_BADFLAGS)
    if family not in (_std.AF_UNSPEC, _std.AF_INET):
        raise _error(_std.EAI_FAMILY)
    number = _service_number(service) if service else None
    if service and flags & _std.AI_NUMERICSERV and not _NUMBER.fullmatch(service):
        raise _error(_std.EAI_NONAME)
    kinds = _kinds(type, proto, service, number)
    canonical, found = _hosts(name, flags)
    entries: list[Entry] = []
    for octets in found:
        for kind, protocol, at in kinds:
            entries.append((_std.AF_INET, kind, protocol, "" if entries else canonical, (_std.inet_ntoa(octets), at)))
    return entries


def _error(number: int) -> _std.gaierror:
    return _std.gaierror(number, _TEXTS[number])


def _name(host: object) -> str | None:
    if host is None:
        return None
    if isinstance(host, str):
        name = host.encode("idna").decode("ascii")
    elif isinstance(host, (bytes, bytearray)):
        name = bytes(host).decode("utf-8", "surrogateescape")
    else:
        raise TypeError("getaddrinfo() argument 1 must be string or None")
    name = name.split("\0")[0]  # a C string ends there
    return None if name == "*" else name


def _service_text(port: object) -> str | None:
    if isinstance(port, int):
        if not -(1 << 63) <= port < 1 << 63:
            raise OverflowError("Python int too large to convert to C long")
        return str(int(port))
    if isinstance(port, (bytes, bytearray)):
        port = bytes(port).decode("utf-8", "surrogateescape")
    elif port is not None and not isinstance(port, str):
        raise OSError("Int or String expected")
    port = port.split("\0")[0] if port is not None else None
    return None if port == "*" else port


def _service_number(text: str) -> int:
    """As strtoul(3) assigned to a C int; -1 for a name."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return -1
    value = min(int(found[2]), (1 << 64) - 1) * (-1 if found[1] == "-" else 1)
    value = (value + (1 << 31)) % (1 << 32) - (1 << 31)
    return max(value, -1)


def _kinds(kind: int, protocol: int, service: str | None, number: int | None) -> list[tuple[_std.SocketKind, int, int]]:
    """(type, protocol, port) of the requested sockets."""
    if kind or protocol:
        chosen = next((row for row in _TYPES if kind in (0, row.kind) and (
            protocol in (0, row.protocol) or row.any_protocol)), None)
        if chosen is None:
            raise _error(_std.EAI_SOCKTYPE if kind else _std.EAI_SERVICE)
        rows = [chosen]
        if service and chosen.any_protocol:
            raise _error(_std.EAI_SERVICE)
    else:
        rows = [row for row in _TYPES if row.default]
    if number is not None and number < 0:
        assert service is not None
        named = [(row, _port_of(service, row)) for row in rows if not row.any_protocol]
        ports = [(row, port) for row, port in named if port is not None]
        if not ports:
            raise _error(_std.EAI_SERVICE)
    else:
        ports = [(row, (number or 0) & 0xFFFF) for row in rows]
    return [(row.kind, protocol if row.any_protocol else row.protocol, port) for row, port in ports]


def _port_of(service: str, row: _Type) -> int | None:
    try:
        return _std.getservbyname(service, row.name)
    except OSError:
        return None


def _hosts(name: str | None, flags: int) -> tuple[str, list[bytes]]:
    """(canonical name, if requested; addresses)."""
    if name is None:
        return "", [_std.inet_aton("0.0.0.0" if flags & _std.AI_PASSIVE else LOCALHOST)]
    octets = exact(name)
    if octets is not None:
        canonical, found = name, [octets]
    elif _is_ipv6(name):
        raise _error(_std.EAI_ADDRFAMILY)
    elif not name or flags & _std.AI_NUMERICHOST:
        raise _error(_std.EAI_NONAME)
    else:
        octets = numeric(name) if name != "<broadcast>" else None
        canonical, found = (name, [octets]) if octets is not None else addresses(name)
    return canonical if flags & _std.AI_CANONNAME else "", found


def _is_ipv6(name: str) -> bool:
    try:
        _std.inet_pton(_std.AF_INET6, name.split("%")[0])
    except OSError:
        return False
    return True
