"""The route table: which way a destination is, and which addresses are our own.

Built whole from the `records.Routes` that ip announces and never changed afterwards: a new announcement makes a new
table. Addresses are 32-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterable

from bus.config import StackConfig
from bus.messages import Route, Routes

ANY = 0
LOOPBACK = 0x7F000001  # RFC 1122 section 3.2.1.3 (g): 127/8 never leaves the host
LOOPBACK_BROADCAST = 0x7FFFFFFF  # Linux: the loopback interface is 127.0.0.1/8
BROADCAST = 0xFFFFFFFF
ALL_ONES = 0xFFFFFFFF
BROADCAST_PREFIX_MAX = 30  # RFC 3021: a /31 has no broadcast address, nor has a single host
CACHE_ENTRIES_MAX = 4096  # destinations whose route is remembered; then it starts afresh


def mask(prefix: int) -> int:
    """The netmask of a prefix length."""
    return ALL_ONES << (32 - prefix) & ALL_ONES


def is_multicast(address: int) -> bool:
    """RFC 1112 section 4: class D, 224.0.0.0/4."""
    return address >> 28 == 0xE


def configured(config: StackConfig) -> Routes:
    """The addresses and routes that a stack starts with."""
    network = config.address & mask(config.prefix)
    routes = [Route(network, config.prefix, ANY, config.address, config.mtu)]
    if config.gateway:
        routes.append(Route(ANY, 0, config.gateway, config.address, config.mtu))
    return Routes([(config.address, config.prefix)], routes)


class RouteTable:
    """Longest prefix, then lowest metric, then first announced. ValueError for announcements that make no sense."""

    def __init__(self, announced: Routes) -> None:
        self._check(announced)
        self.announced = announced
        self._own = frozenset(address for address, _ in announced.addresses)
        self._broadcast = frozenset(_broadcasts(announced.addresses))
        networks: dict[int, dict[int, Route]] = {}
        for route in sorted(announced.routes, key=lambda route: route.metric):
            networks.setdefault(route.prefix, {}).setdefault(route.network, route)
        self._networks = [(mask(prefix), networks[prefix]) for prefix in sorted(networks, reverse=True)]
        self._cache: dict[int, Route | None] = {}

    @staticmethod
    def _check(announced: Routes) -> None:
        for address, prefix in announced.addresses:
            if not (0 < address < ALL_ONES and 0 <= prefix <= 32):
                raise ValueError(f"not an address: {address:#x}/{prefix}")
        for route in announced.routes:
            if not (0 <= route.prefix <= 32 and 0 <= route.network <= ALL_ONES):
                raise ValueError(f"not a network: {route}")
            if route.network & ~mask(route.prefix):
                raise ValueError(f"network has host bits set: {route}")
            if not (0 <= route.gateway <= ALL_ONES and 0 <= route.source <= ALL_ONES):
                raise ValueError(f"not an address: {route}")

    def lookup(self, destination: int) -> Route | None:
        """The route to `destination`; None: the network is unreachable. Own addresses and 127/8 need no route."""
        try:
            return self._cache[destination]
        except KeyError:
            pass
        route = self._search(destination)
        if len(self._cache) >= CACHE_ENTRIES_MAX:
            self._cache.clear()
        self._cache[destination] = route
        return route

    def _search(self, destination: int) -> Route | None:
        if not destination >> 24:  # RFC 1122 section 3.2.1.3 (a), (b): never a destination; Linux since 5.3 takes 0/8
            return None
        for netmask, networks in self._networks:
            route = networks.get(destination & netmask)
            if route is not None:
                return route
        return None

    def is_own(self, address: int) -> bool:
        """True for one of our addresses."""
        return address in self._own

    def is_local(self, address: int) -> bool:
        """True where a packet to `address` does not leave the host."""
        return address in self._own or address >> 24 == 127

    def is_broadcast(self, address: int) -> bool:
        """True for 255.255.255.255 and the directed broadcast addresses of own networks (RFC 1122 section 3.2.1.3)."""
        return address in self._broadcast

    def is_group(self, address: int) -> bool:
        """True for the addresses of multicast groups and for those of `is_broadcast`."""
        return is_multicast(address) or self.is_broadcast(address)

    def leaks(self, source: int, destination: int) -> bool:
        """True where a packet would carry an address of 127/8 out of the host (RFC 1122 section 3.2.1.3 (g)).

        Linux's __mkroute_output: EINVAL.
        """
        return source >> 24 == 127 and not self.is_local(destination)

    def source_for(self, destination: int) -> int | None:
        """The source address of a packet whose sender did not choose one; None: no way there.

        RFC 1122 section 3.3.4.3; to oneself the source is the destination, as on Linux. Limited broadcasts and
        multicasts concern the attached network: they need no route, and take the first own address without one.
        """
        if self.is_local(destination):
            return destination if destination in self._own else LOOPBACK
        route = self.lookup(destination)
        if route is not None:
            return route.source
        if self.announced.addresses and (destination == BROADCAST or is_multicast(destination)):
            return self.announced.addresses[0][0]
        return None


def _broadcasts(addresses: Iterable[tuple[int, int]]) -> Iterable[int]:
    yield BROADCAST
    yield LOOPBACK_BROADCAST
    for address, prefix in addresses:
        if prefix <= BROADCAST_PREFIX_MAX:
            yield address | ALL_ONES & ~mask(prefix)
