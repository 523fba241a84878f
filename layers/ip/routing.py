"""Addresses and routes: the configured ones, and those that follow from them.

Owns addresses and routes (durable state) and, through `Paths`, `Redirects` and `Gateways`, path MTUs, redirects and
dead gateways. The other modules use what follows from them: `table`, `own` and the announcement.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from bus import messages
from bus.config import StackConfig
from bus.layer import CounterWords, State
from bus.messages import Route, Routes
from layers.common import source_address
from layers.common.rate_limit import TokenBucket
from layers.common.routes import RouteTable, connected, links_of
from layers.ip.counters import Counters as C
from layers.ip.gateways import Gateways
from layers.ip.path_mtu import Paths
from layers.ip.redirects import Redirects
from packets.addresses import ANY, UNSPECIFIED, is_host

ROUTES_KEY = 0  # in durable state
PATHS_KEY = 2
GATEWAYS_KEY = 5
REDIRECTS_KEY = 6
MTU_CHANGES_PER_SECOND = 10  # each change is announced to the layers above
MTU_CHANGES_BURST = 32
REDIRECTS_PER_SECOND, REDIRECTS_BURST = 10, 32  # also announced


class _Stored(Routes, frozen=True):
    """The configured routes, and the number of the request that set them."""

    order: int = 0


_decode = messages.decoder(_Stored)


def configured(config: StackConfig) -> Routes:
    """The configuration of a stack at its boot, as if the user had set it."""
    gateway = config.gateway
    routes = [Route(UNSPECIFIED[len(gateway)], 0, gateway, ANY, 0)] if gateway else []
    return Routes([(config.address, config.prefix)], routes)


def effective(chosen: Routes, mtu_octets: int, dead: Container[bytes] = ()) -> Routes:
    """The resulting routes: to directly connected networks, then the configured ones that can be used now.

    RFC 1122 section 3.3.1.5: a route through a `dead` gateway comes after others to the same destination.
    """
    usable = []
    links = links_of(chosen.addresses)
    for route in chosen.routes:
        source = source_address.of_route(route, links)
        if source:
            usable.append(replace(route, source=source, mtu=route.mtu or mtu_octets))
    served = {(route.network, route.prefix) for route in usable if route.gateway not in dead}
    usable = [route for route in usable if route.gateway not in dead or (route.network, route.prefix) not in served]
    return Routes(chosen.addresses, connected(chosen.addresses, mtu_octets) + usable)


def gateway_problem(gateway: bytes, chosen: Routes) -> str:
    """The reason why this cannot be the address of a gateway; empty: it can."""
    # RFC 1122 section 3.3.1.1: a gateway is on a connected network
    links = links_of(chosen.addresses)
    link = links.lookup(gateway)
    if link is None:
        return "is not in a network of this stack"
    if links.is_own(gateway):
        return "is an address of this stack"
    return "" if is_host(gateway, link.prefix) else "is not the address of a single host"


class Routing:
    """`table` and `own` are replaced at every change; `path_table` also contains path MTUs."""

    table: RouteTable
    own: frozenset[bytes]  # the own addresses
    announcement: bytes  # the ROUTES record for all neighbours

    def __init__(self, config: StackConfig, state: State, counters: CounterWords) -> None:
        self.mtu_octets = config.mtu
        self._config = config
        self._state = state
        self._counters = counters
        self.last_order = 0  # the number of the last request that changed something
        self._redirects_limit = TokenBucket(REDIRECTS_PER_SECOND, REDIRECTS_BURST)
        self._limit = TokenBucket(MTU_CHANGES_PER_SECOND, MTU_CHANGES_BURST)
        self.paths = Paths(state, PATHS_KEY)
        self.gateways = Gateways(state, GATEWAYS_KEY)
        self.redirects = Redirects(state, REDIRECTS_KEY)

    def start(self) -> None:
        """Restore the stored state."""
        for key, learnt in ((GATEWAYS_KEY, self.gateways), (PATHS_KEY, self.paths), (REDIRECTS_KEY, self.redirects)):
            try:
                learnt.load()
            except ValueError:
                self._forget(key)
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
        """Set the configured routes and store them. ValueError: not valid; then nothing has changed.

        `order`: the number of the request, stored by the same write.
        """
        self.redirects.forget()  # as on Linux: they refer to the former routes
        self._adopt(chosen)
        self.last_order = order
        self._state[ROUTES_KEY] = messages.encode(_Stored(chosen.addresses, chosen.routes, order))

    def _adopt(self, chosen: Routes) -> None:
        self.table = RouteTable(self._redirected(effective(chosen, self.mtu_octets, self.gateways)))
        self.chosen = chosen
        self.own = self.table.own
        self.gateways.keep({route.gateway for route in chosen.routes})
        self._announce()

    def _announce(self) -> None:
        routes = self.table.announced
        self.announcement = messages.encode(Routes(routes.addresses, [*self.path_routes(), *routes.routes]))

    def path_routes(self) -> list[Route]:
        """A host route for each destination whose path MTU is below that of its route."""
        routes = []
        for path in self.paths.all():
            route = self.table.lookup(path.destination)
            if route is not None and path.mtu < route.mtu:
                routes.append(replace(route, network=path.destination, prefix=len(path.destination) * 8, mtu=path.mtu))
        return routes

    # -- gateways --------------------------------------------------------------------------------------------------

    def _redirected(self, routes: Routes) -> Routes:
        """`routes`, preceded by one for each redirect."""
        if not self.redirects.all():
            return routes
        before, redirected = RouteTable(routes), []
        for redirect in self.redirects.all():
            route = before.lookup(redirect.destination)
            if route is not None:
                redirected.append(replace(route, network=redirect.destination, prefix=len(redirect.destination) * 8,
                                          gateway=redirect.gateway, metric=0))
        return Routes(routes.addresses, redirected + routes.routes)

    def redirect(self, destination: bytes, gateway: bytes, teller: bytes, now: float) -> None:
        """RFC 1122 section 3.2.2.2: accept it if it comes from the present gateway, and the new one is on a connected
        network."""
        route = self.table.lookup(destination)
        if (route is None or self.table.is_local(destination) or route.gateway != teller or gateway == teller
                or gateway in self.gateways or gateway_problem(gateway, self.chosen)):
            self._counters[C.redirect_refused] += 1
        elif not self._redirects_limit.allow(now):
            self._counters[C.redirect_limited] += 1
        else:
            self._counters[C.redirected] += 1
            self.redirects.learn(destination, gateway, now)
            self._adopt(self.chosen)

    def gateway_failed(self, address: bytes, now: float) -> bool:
        """A neighbour does not answer. True: it is a gateway, and others are used from now on."""
        redirects = self.redirects.forget(address)
        self._counters[C.redirect_expired] += redirects
        failed = any(route.gateway == address for route in self.chosen.routes) and self.gateways.failed(address, now)
        self._counters[C.gateway_failed] += failed
        if failed or redirects:
            self._adopt(self.chosen)
        return failed or bool(redirects)

    def gateway_lives(self, address: bytes) -> bool:
        """A packet of a neighbour arrived. True: it is a gateway that was dead before."""
        if not self.gateways.lives(address):
            return False
        self._counters[C.gateway_back] += 1
        self._adopt(self.chosen)
        return True

    # -- path MTUs -------------------------------------------------------------------------------------------------

    def mtu_to(self, destination: bytes, route: Route) -> tuple[int, bool]:
        """(path MTU, whether the path is capped: see `Path`)."""
        path = self.paths.get(destination)
        return (min(route.mtu, path.mtu), path.capped) if path is not None else (route.mtu, False)

    def router_told(self, destination: bytes, told: int, quoted_octets: int, now: float) -> bool:
        """RFC 1191 section 6.1: a router reported an MTU. True: something has changed."""
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

    @property
    def next_expiry(self) -> float | None:
        """The time at which `expire` has something to do."""
        due = [at for at in (self.paths.next_expiry, self.redirects.next_expiry) if at is not None]
        return min(due, default=None)

    def expire(self, now: float) -> bool:
        """Delete expired path MTUs and redirects; True: there were some."""
        paths, redirects = self.paths.expire(now), self.redirects.expire(now)
        self._counters[C.path_mtu_expired] += paths
        self._counters[C.redirect_expired] += redirects
        if paths or redirects:
            self._adopt(self.chosen)
        return bool(paths or redirects)
