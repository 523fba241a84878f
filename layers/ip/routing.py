"""Which addresses are ours and which way is where: as chosen by the operator, and as it follows from that.

Owns addresses and routes (durable state) and, through `Paths` and `Gateways`, what was learnt of path MTUs and of
gateways that fail. Everybody else works on what follows from them: `table`, `own` and the announcement.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from msgspec.structs import replace

from bus import records as formats
from bus.config import StackConfig
from bus.core import CounterWords, State
from bus.ratelimit import TokenBucket
from bus.records import Route, Routes
from bus.routes import ANY, RouteTable, mask
from layers.ip.counters import Counters as C
from layers.ip.gateways import Gateways
from layers.ip.paths import Paths

ROUTES_KEY = 0  # in durable state
PATHS_KEY = 2
GATEWAYS_KEY = 5
MTU_CHANGES_PER_SECOND = 10  # each is announced to the layers above
MTU_CHANGES_BURST = 32


class _Stored(Routes, frozen=True):
    """What was chosen, and the number of the order that did it."""

    order: int = 0


_decode = formats.decoder(_Stored)


def configured(config: StackConfig) -> Routes:
    """What a stack starts with, as if an operator had chosen it."""
    routes = [Route(ANY, 0, config.gateway, ANY, 0)] if config.gateway else []
    return Routes([(config.address, config.prefix)], routes)


def connected(addresses: Iterable[tuple[int, int]], mtu_octets: int) -> list[Route]:
    """The routes to the networks that we are in; of several addresses in one, the first is its source."""
    routes: dict[tuple[int, int], Route] = {}
    for address, prefix in addresses:
        network = address & mask(prefix)
        if prefix < 32:
            routes.setdefault((network, prefix), Route(network, prefix, ANY, address, mtu_octets))
    return list(routes.values())


def source_of(route: Route, chosen: Routes) -> int:
    """The source of packets on a chosen route; 0 where it cannot be used now.

    RFC 1122 section 3.3.4.3: an address of ours in the network of the next hop, if the operator did not say which.
    """
    own = [address for address, _ in chosen.addresses]
    links = RouteTable(Routes(chosen.addresses, connected(chosen.addresses, 0)))
    link = links.lookup(route.gateway or route.network)
    if route.gateway and link is None:
        return 0
    if route.source:
        return route.source if route.source in own else 0
    return link.source if link is not None else own[0] if own else 0


def effective(chosen: Routes, mtu_octets: int, dead: Container[int] = ()) -> Routes:
    """The routes that follow: to the networks we are in, then the chosen ones, as far as they can be used now.

    RFC 1122 section 3.3.1.5: one through a `dead` gateway gives way to others to the same place.
    """
    usable = []
    for route in chosen.routes:
        source = source_of(route, chosen)
        if source:
            usable.append(replace(route, source=source, mtu=route.mtu or mtu_octets))
    served = {(route.network, route.prefix) for route in usable if route.gateway not in dead}
    usable = [route for route in usable if route.gateway not in dead or (route.network, route.prefix) not in served]
    return Routes(chosen.addresses, connected(chosen.addresses, mtu_octets) + usable)


class Routing:
    """`table` and `own` are replaced whole at every change, `path_table` tells of path MTUs too."""

    table: RouteTable
    own: frozenset[bytes]  # addresses, 4 octets each
    announcement: bytes  # JSON Routes: what all neighbours are told

    def __init__(self, config: StackConfig, state: State, counters: CounterWords) -> None:
        self.mtu_octets = config.mtu
        self._config = config
        self._state = state
        self._counters = counters
        self.last_order = 0  # that changed anything
        self._limit = TokenBucket(MTU_CHANGES_PER_SECOND, MTU_CHANGES_BURST)
        self.paths = Paths(state, PATHS_KEY)
        self.gateways = Gateways(state, GATEWAYS_KEY)

    def start(self) -> None:
        """Read back what is stored."""
        self.gateways.load()
        try:
            self.paths.load()
        except ValueError:
            self._forget(PATHS_KEY)
        try:
            stored = _decode(self._state[ROUTES_KEY])
            self._adopt(Routes(stored.addresses, stored.routes))
            self.last_order = stored.order
        except ValueError:
            self._forget(ROUTES_KEY)
            self._adopt(configured(self._config))
        except KeyError:
            self._adopt(configured(self._config))

    def _forget(self, key: int) -> None:
        self._counters[C.state_unreadable] += 1
        del self._state[key]

    def choose(self, chosen: Routes, order: int = 0) -> None:
        """Have it so from now on, and after a restart. ValueError for what makes no sense; nothing has changed then.

        `order`: the number of the order that wants it so, stored by the same write.
        """
        self._adopt(chosen)
        self.last_order = order
        self._state[ROUTES_KEY] = formats.encode(_Stored(chosen.addresses, chosen.routes, order))

    def _adopt(self, chosen: Routes) -> None:
        self.table = RouteTable(effective(chosen, self.mtu_octets, self.gateways))
        self.chosen = chosen
        self.own = frozenset(address.to_bytes(4, "big") for address, _ in chosen.addresses)
        self.gateways.keep({route.gateway for route in chosen.routes})
        self._announce()

    def _announce(self) -> None:
        routes = self.table.announced
        self.announcement = formats.encode(Routes(routes.addresses, [*self.path_routes(), *routes.routes]))

    def path_routes(self) -> list[Route]:
        """A route for each destination whose path MTU is below that of its route."""
        routes = []
        for path in self.paths.all():
            route = self.table.lookup(path.destination)
            if route is not None and path.mtu < route.mtu:
                routes.append(replace(route, network=path.destination, prefix=32, mtu=path.mtu))
        return routes

    # -- gateways --------------------------------------------------------------------------------------------------

    def gateway_failed(self, address: int, now: float) -> bool:
        """A neighbour does not answer. True where it is a gateway, which others may replace from now on."""
        if all(route.gateway != address for route in self.chosen.routes) or not self.gateways.failed(address, now):
            return False
        self._counters[C.gateway_failed] += 1
        self._adopt(self.chosen)
        return True

    def gateway_lives(self, address: int) -> bool:
        """A neighbour was heard of. True where it is a gateway that did not answer before."""
        if not self.gateways.lives(address):
            return False
        self._counters[C.gateway_back] += 1
        self._adopt(self.chosen)
        return True

    # -- path MTUs -------------------------------------------------------------------------------------------------

    def mtu_to(self, destination: int, route: Route) -> tuple[int, bool]:
        """(path MTU, whether the path is capped: see `Path`)."""
        path = self.paths.get(destination)
        return (min(route.mtu, path.mtu), path.capped) if path is not None else (route.mtu, False)

    def router_told(self, destination: int, told: int, quoted_octets: int, now: float) -> bool:
        """RFC 1191 section 6.1; True where this was news."""
        route = self.table.lookup(destination)
        if route is None or self.table.is_local(destination):
            self._counters[C.path_mtu_refused] += 1
        elif not self._limit.ready(now):
            self._counters[C.path_mtu_limited] += 1
        elif not self.paths.lower(destination, told, quoted_octets, self.mtu_to(destination, route)[0], now):
            self._counters[C.path_mtu_refused] += 1
        else:
            self._limit.take()
            self._counters[C.path_mtu_lowered] += 1
            self._announce()
            return True
        return False

    def expire(self, now: float) -> bool:
        """Forget path MTUs that are too old; True where there were any."""
        expired = self.paths.expire(now)
        self._counters[C.path_mtu_expired] += expired
        if expired:
            self._announce()
        return bool(expired)
