"""The route table: the route to a destination, and the stack's own addresses.

A table is built from the `bus.messages.Routes` that ip announces and never changed; a new announcement makes a new
table. Addresses are octets of their family's width (packets.addresses); one table has the routes of all families.
`layers.common.source_address` selects source addresses.
"""

from __future__ import annotations

from collections.abc import Iterable

from bus.config import StackConfig
from bus.messages import Route, Routes
from packets.addresses import (
    ANY,
    LIMITED_BROADCAST,
    LOOPBACK_BROADCAST,
    UNSPECIFIED,
    WIDTHS,
    broadcast,
    is_destination,
    is_loopback,
    is_multicast,
    mask,
    network,
)

CACHE_ENTRIES_MAX = 4096  # destinations whose route is cached; then the cache is cleared


def configured(config: StackConfig) -> Routes:
    """The configured addresses and routes of a stack."""
    address, gateway = config.address, config.gateway
    routes = [Route(network(address, config.prefix), config.prefix, ANY, address, config.mtu)]
    if gateway:
        routes.append(Route(UNSPECIFIED[len(gateway)], 0, gateway, address, config.mtu))
    return Routes([(address, config.prefix)], routes)


def links_of(addresses: list[tuple[bytes, int]]) -> RouteTable:
    """The networks of the own addresses, and no other routes. ValueError as for RouteTable."""
    return RouteTable(Routes(addresses, connected(addresses, 0)))


def connected(addresses: Iterable[tuple[bytes, int]], mtu_octets: int) -> list[Route]:
    """The routes to the networks of the own addresses; if several addresses are in one network, the first is its
    source."""
    routes: dict[tuple[bytes, int], Route] = {}
    for address, prefix in addresses:
        place = network(address, prefix), prefix
        if prefix < len(address) * 8:
            routes.setdefault(place, Route(*place, ANY, address, mtu_octets))
    return list(routes.values())


class RouteTable:
    """The longest prefix wins, then the lowest metric, then the first announced.

    ValueError: an invalid announcement.
    """

    def __init__(self, announced: Routes) -> None:
        self._check(announced)
        self.announced = announced
        self.own = frozenset(address for address, _ in announced.addresses)
        self._broadcast = frozenset(_broadcasts(announced.addresses))
        # by width and prefix length; integers, to be masked quickly
        networks: dict[tuple[int, int], dict[int, Route]] = {}
        for route in sorted(announced.routes, key=lambda route: route.metric):
            width = len(route.network)
            number = int.from_bytes(route.network, "big")
            networks.setdefault((width, route.prefix), {}).setdefault(number, route)
        self._networks: dict[int, list[tuple[int, dict[int, Route]]]] = {width: [] for width in WIDTHS}
        for width, prefix in sorted(networks, reverse=True):
            self._networks[width].append((mask(width, prefix), networks[width, prefix]))
        self._cache: dict[bytes, Route | None] = {}

    @staticmethod
    def _check(announced: Routes) -> None:
        for address, prefix in announced.addresses:
            sensible = len(address) in WIDTHS and any(address) and address != LIMITED_BROADCAST
            if not (sensible and 0 <= prefix <= len(address) * 8):
                raise ValueError(f"not an address: {address.hex()}/{prefix}")
        for route in announced.routes:
            width = len(route.network)
            if width not in WIDTHS or not 0 <= route.prefix <= width * 8:
                raise ValueError(f"not a network: {route}")
            if network(route.network, route.prefix) != route.network:
                raise ValueError(f"network has host bits set: {route}")
            if len(route.gateway) not in (0, width) or len(route.source) not in (0, width):
                raise ValueError(f"not an address: {route}")

    def lookup(self, destination: bytes) -> Route | None:
        """The route to `destination`; None: network unreachable. Own and loopback addresses need no route."""
        try:
            return self._cache[destination]
        except KeyError:
            pass
        route = self._search(destination)
        if len(self._cache) >= CACHE_ENTRIES_MAX:
            self._cache.clear()
        self._cache[destination] = route
        return route

    def _search(self, destination: bytes) -> Route | None:
        if not is_destination(destination):
            return None
        number = int.from_bytes(destination, "big")
        for netmask, networks in self._networks.get(len(destination), ()):
            route = networks.get(number & netmask)
            if route is not None:
                return route
        return None

    def is_own(self, address: bytes) -> bool:
        """True for an own address."""
        return address in self.own

    def is_local(self, address: bytes) -> bool:
        """True if a packet to `address` does not leave the host."""
        return address in self.own or is_loopback(address)

    def is_broadcast(self, address: bytes) -> bool:
        """True for 255.255.255.255 and the directed broadcast addresses of own networks (RFC 1122 section 3.2.1.3)."""
        return address in self._broadcast

    def is_group(self, address: bytes) -> bool:
        """True for multicast groups and for the addresses of `is_broadcast`."""
        return is_multicast(address) or address in self._broadcast

    def leaks(self, source: bytes, destination: bytes) -> bool:
        """True if a packet would carry a loopback address out of the host (RFC 1122 section 3.2.1.3 (g)).

        Linux's __mkroute_output: EINVAL.
        """
        return is_loopback(source) and not self.is_local(destination)


def _broadcasts(addresses: Iterable[tuple[bytes, int]]) -> Iterable[bytes]:
    yield LIMITED_BROADCAST
    yield LOOPBACK_BROADCAST
    for address, prefix in addresses:
        directed = broadcast(address, prefix)
        if directed:
            yield directed
