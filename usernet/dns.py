"""Names, resolved by name servers that are reached through the stack: the standard module's functions for them.

dnspython (the extra `usernet[dns]`) knows the protocol; its messages go over UDP sockets of the stack. Which servers:
those that the stack was started with (`launcher.py up --dns`). The host's own resolver, files and cache are not asked.
"""

from __future__ import annotations

import ipaddress
import os
import socket as _std
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from usernet.addresses import LOCALHOST, numeric
from usernet.client.stack import Stack

if TYPE_CHECKING:
    import dns.resolver

PORT = 53  # RFC 1035 section 4.2
PAYLOAD_OCTETS = 1232  # what fits without fragments (DNS flag day 2020): there is no TCP to fall back to
LIFETIME_S = 10.0  # all tries together, as two rounds of resolv.conf(5)'s default timeout
NAMES_CACHED = 1024
_UNKNOWN = "Name or service not known"
_TYPES = ((_std.SOCK_DGRAM, _std.IPPROTO_UDP), (_std.SOCK_STREAM, _std.IPPROTO_TCP))

Entry = tuple[_std.AddressFamily, _std.SocketKind, int, str, tuple[str, int]]


def addresses(name: str, stack: Stack | None = None) -> tuple[str, list[bytes]]:
    """(canonical name, addresses) of a name that is not numeric; gaierror where there are none."""
    answer = _ask(name, "A", stack)
    return str(answer.canonical_name).rstrip("."), [_std.inet_aton(record.address) for record in answer]


def lookup(
    name: str, kind: str | None = None, stack: Stack | None = None, servers: list[str] | None = None
) -> list[tuple[str, str, str]]:
    """(owner, type, value) of the records that answer; `kind`: A, or PTR for an address. `servers`: others to ask."""
    try:
        address = ipaddress.IPv4Address(name)
    except ValueError:
        asked, kind = name, kind or "A"
    else:
        asked, kind = (name, kind) if kind else (address.reverse_pointer, "PTR")
    answer = _ask(asked, kind, stack, servers)
    return [(str(records.name).rstrip("."), _type_name(records.rdtype), str(record))
            for records in answer.response.answer for record in records]


def is_type(kind: str) -> bool:
    """Whether there are records of this type; True where dnspython is not there to say."""
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
            _std.EAI_NONAME, f"{_UNKNOWN}: names other than numbers and localhost take dnspython, which is not "
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
    except (dns.exception.DNSException, UnicodeError):  # no name, or no type, at all
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
    """One resolver, with its cache, for each stack; a fork starts afresh."""
    import dns.resolver

    stack = Stack(name, run_dir)
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [_server(stack, address) for address in servers]
    resolver.lifetime = LIFETIME_S
    resolver.use_edns(0, 0, PAYLOAD_OCTETS)
    resolver.cache = dns.resolver.LRUCache(NAMES_CACHED)
    return resolver


def _server(stack: Stack, address: str) -> Any:
    """A name server of dnspython's, which is asked over a socket of the stack."""
    import dns.exception
    import dns.message
    import dns.nameserver

    class Server(dns.nameserver.AddressAndPortNameserver):
        def kind(self) -> str:
            return "usernet"

        def is_always_max_size(self) -> bool:
            return True  # what was truncated is as much as there is to be had

        def query(self, request: Any, timeout: float, *_: object, **__: object) -> Any:
            deadline = monotonic() + timeout
            with stack.socket(_std.AF_INET, _std.SOCK_DGRAM) as endpoint:
                endpoint.connect((self.address, self.port))
                endpoint.settimeout(timeout)
                endpoint.send(request.to_wire())
                while (left := deadline - monotonic()) > 0:
                    endpoint.settimeout(left)
                    try:
                        response = dns.message.from_wire(endpoint.recv(65535), ignore_trailing=True)
                    except TimeoutError:
                        break
                    except dns.exception.DNSException:
                        continue  # somebody guesses
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
    """The first name of a host that has a dot in it, or what there is; of nobody, this machine's."""
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
    """(host, service) of an address; the address itself where it has no name, unless NI_NAMEREQD."""
    if not isinstance(sockaddr, tuple):
        raise TypeError("getnameinfo() argument 1 must be a tuple")
    host, port = sockaddr[:2]
    octets = numeric(host)
    if octets is None:
        raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN)
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
    """As the standard one, for what a stack has: IPv4. Streams where they are asked for, though there is no TCP yet."""
    if family not in (_std.AF_UNSPEC, _std.AF_INET):
        raise _std.gaierror(_std.EAI_FAMILY, "ai_family not supported")
    kinds = [pair for pair in _TYPES if type in (0, pair[0]) and proto in (0, pair[1])]
    if not kinds:
        raise _std.gaierror(_std.EAI_SOCKTYPE, "ai_socktype not supported")
    if not type and not proto:
        kinds = kinds[:1]
    canonical, found = _hosts(host, flags)
    entries: list[Entry] = []
    for octets in found:
        for kind, protocol in kinds:
            address = _std.inet_ntoa(octets), _port(port, protocol, flags)
            entries.append((_std.AF_INET, kind, protocol, "" if entries else canonical, address))
    return entries


def _hosts(host: str | bytes | None, flags: int) -> tuple[str, list[bytes]]:
    """(canonical name, where it was asked for; addresses)."""
    if host is None:
        return "", [_std.inet_aton("0.0.0.0" if flags & _std.AI_PASSIVE else LOCALHOST)]
    name = host if isinstance(host, str) else bytes(host).decode("ascii")
    octets = numeric(name)
    if octets is not None:
        canonical, found = name, [octets]
    elif flags & _std.AI_NUMERICHOST:
        raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN)
    else:
        canonical, found = addresses(name)
    return canonical if flags & _std.AI_CANONNAME else "", found


def _port(port: str | bytes | int | None, protocol: int, flags: int) -> int:
    if port is None or isinstance(port, int):
        return port or 0
    text = port if isinstance(port, str) else port.decode("ascii")
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        if flags & _std.AI_NUMERICSERV:
            raise _std.gaierror(_std.EAI_NONAME, _UNKNOWN)
        return _std.getservbyname(text, "udp" if protocol == _std.IPPROTO_UDP else "tcp")
    except _std.gaierror:
        raise
    except OSError:
        raise _std.gaierror(_std.EAI_SERVICE, "Servname not supported for ai_socktype") from None
