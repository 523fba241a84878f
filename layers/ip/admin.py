"""The requests of `launcher.py route` and `launcher.py address`: see `bus.layer.ManagedCore`.

A request makes a new `Routes` from the configured one, or is refused with a sentence for the user. The number of the
request is stored together with its result: if it is repeated because ip died before it could answer, it is known to be
done.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from typing import Annotated

import msgspec

from bus.messages import Route, Routes
from layers.common import source_address
from layers.common.routes import connected, links_of
from layers.ip.routing import Routing, gateway_problem
from packets.addresses import ANY, is_host, is_unicast

# Together with the maximum number of path MTUs and redirects, as many as an announcement can hold (MAX_FRAME_OCTETS).
ADDRESSES_MAX = 64
ROUTES_MAX = 4096
LIST_PAGE = 256  # routes per answer: a message to the keeper must fit into a packet of the control channel
MTU_MIN = 68  # RFC 791 section 3.2: every network can carry packets of this size
METRIC_MAX = (1 << 32) - 1


class Refused(Exception):
    """The request is refused; the text gives the reason."""


class Order(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True, kw_only=True):
    """Any request. `order`: its number, 0 for none."""

    order: int = 0


class RouteList(Order, frozen=True, tag="route_list"):
    """A page of all routes, including those that follow from addresses and path MTUs; the first `after` are skipped."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class RouteAdd(Order, frozen=True, tag="route_add"):
    """Addresses are text; empty: not given. An MTU of 0: that of the interface."""

    destination: str
    gateway: str = ""
    source: str = ""
    metric: Annotated[int, msgspec.Meta(ge=0, le=METRIC_MAX)] = 0
    mtu: Annotated[int, msgspec.Meta(ge=0)] = 0


class RouteDelete(Order, frozen=True, tag="route_del"):
    """The route to `destination`; if there are several, the one with the lowest metric."""

    destination: str
    gateway: str = ""
    metric: int | None = None


class AddressList(Order, frozen=True, tag="address_list"):
    """List all addresses."""


class AddressAdd(Order, frozen=True, tag="address_add"):
    """An address with its prefix length, which also makes its network directly connected."""

    address: str


class AddressDelete(Order, frozen=True, tag="address_del"):
    """Delete an address. Sockets bound to it, and routes that need it, stay and work again when it is back."""

    address: str


_Any = RouteList | RouteAdd | RouteDelete | AddressList | AddressAdd | AddressDelete


def execute(request: dict[str, object], routing: Routing, now: float) -> dict[str, object]:
    """The answer to a request; if `routing.chosen` is another object afterwards, something has changed."""
    try:
        order = msgspec.convert(request, _Any)  # type: ignore[arg-type,var-annotated]
        if isinstance(order, RouteList):
            found = _routes(routing, now)[order.after :]
            return {"routes": [_line(routing, *each) for each in found[:LIST_PAGE]], "more": len(found) > LIST_PAGE}
        if isinstance(order, AddressList):
            return {"addresses": [f"{ip_address(address)}/{prefix}" for address, prefix in routing.chosen.addresses]}
        if order.order and order.order == routing.last_order:
            return {}
        chosen = _CHANGES[type(order)](order, routing)
        if chosen != routing.chosen:
            routing.choose(chosen, order.order)
    except msgspec.ValidationError as error:
        return {"error": f"ip: invalid request: {error}"}
    except (Refused, ValueError) as error:
        return {"error": str(error)}
    return {}


_Found = tuple[Route, bytes, str, float | None]  # with its source, kind, and the seconds until it expires


def _routes(routing: Routing, now: float) -> list[_Found]:
    found: list[_Found] = [(route, route.source, "connected", None)
                           for route in connected(routing.chosen.addresses, routing.mtu_octets)]
    table = links_of(routing.chosen.addresses)
    for route in routing.chosen.routes:
        source = source_address.of_route(route, table)
        kind = "unusable" if not source else "dead" if route.gateway in routing.gateways else "chosen"
        found.append((route, source or route.source, kind, None))
    return found + _learnt(routing, now)


def _learnt(routing: Routing, now: float) -> list[_Found]:
    """The routes with what redirects and path MTUs change, with the seconds that these are still valid."""
    found: list[_Found] = []
    for redirect in routing.redirects.all():
        route = routing.table.lookup(redirect.destination)
        if route is not None:
            found.append((route, route.source, "redirect", redirect.expires - now))
    for route in routing.path_routes():
        path = routing.paths.get(route.network)
        assert path is not None
        found.append((route, route.source, "path", path.expires - now))
    return found


def _line(routing: Routing, route: Route, source: bytes, kind: str, left_s: float | None) -> dict[str, object]:
    line: dict[str, object] = {
        "destination": f"{ip_address(route.network)}/{route.prefix}",
        "gateway": str(ip_address(route.gateway)) if route.gateway else "",
        "source": str(ip_address(source)) if source else "",
        "metric": route.metric,
        "mtu": route.mtu or routing.mtu_octets,
        "kind": kind,
    }
    return line if left_s is None else line | {"expires_s": max(0, round(left_s))}


def _add_route(order: RouteAdd, routing: Routing) -> Routes:
    chosen = routing.chosen
    destination = IPv4Network(order.destination)
    gateway, source = _address(order.gateway), _address(order.source)
    if order.mtu and not MTU_MIN <= order.mtu <= routing.mtu_octets:
        raise Refused(f"mtu {order.mtu}: {MTU_MIN} to the interface's {routing.mtu_octets}")
    if source and source not in _own(chosen):
        raise Refused(f"src {order.source} is not an address of this stack")
    problem = gateway_problem(gateway, chosen) if gateway else ""
    if problem:
        raise Refused(f"gateway {order.gateway} {problem}")
    route = Route(destination.network_address.packed, destination.prefixlen, gateway, source, order.mtu, order.metric)
    if not source_address.of_route(route, links_of(chosen.addresses)):
        raise Refused("a stack without an address can have no route")
    if route in chosen.routes:
        return chosen
    rivals = [*connected(chosen.addresses, 0), *chosen.routes]
    if any((rival.network, rival.prefix, rival.metric) == (route.network, route.prefix, route.metric)
           for rival in rivals):
        raise Refused(f"there is a route to {destination} with metric {order.metric} already")
    if len(chosen.routes) >= ROUTES_MAX:
        raise Refused(f"{ROUTES_MAX} routes is the maximum")
    return Routes(chosen.addresses, [*chosen.routes, route])


def _delete_route(order: RouteDelete, routing: Routing) -> Routes:
    chosen = routing.chosen
    destination = IPv4Network(order.destination)
    gateway = _address(order.gateway)
    place = destination.network_address.packed, destination.prefixlen
    found = [route for route in chosen.routes if (route.network, route.prefix) == place
             and gateway in (ANY, route.gateway) and order.metric in (None, route.metric)]
    if found:
        doomed = min(found, key=lambda route: route.metric)
        return Routes(chosen.addresses, [route for route in chosen.routes if route != doomed])
    for link in connected(chosen.addresses, 0):
        if (link.network, link.prefix) == place:
            address = f"{ip_address(link.source)}/{link.prefix}"
            raise Refused(f"the route to {destination} goes with the address {address}: address del {address}")
    raise Refused(f"there is no route to {destination}")


def _add_address(order: AddressAdd, routing: Routing) -> Routes:
    chosen = routing.chosen
    interface = IPv4Interface(order.address)
    address, prefix = interface.ip.packed, interface.network.prefixlen
    if (address, prefix) in chosen.addresses:
        return chosen
    if address in _own(chosen):
        raise Refused(f"{interface.ip} is an address of this stack already, with another prefix length")
    # RFC 1122 section 3.2.1.3: hosts have no addresses in 0/8, 127/8, class D and E, nor the first or last of a network
    if not is_unicast(address):
        raise Refused(f"{interface.ip}: a host cannot have this address")
    if not is_host(address, prefix):
        raise Refused(f"{interface.ip} is the address of the network itself or its broadcast address")
    if len(chosen.addresses) >= ADDRESSES_MAX:
        raise Refused(f"{ADDRESSES_MAX} addresses is the maximum")
    return Routes([*chosen.addresses, (address, prefix)], chosen.routes)


def _delete_address(order: AddressDelete, routing: Routing) -> Routes:
    chosen = routing.chosen
    interface = IPv4Interface(order.address)
    doomed = interface.ip.packed, interface.network.prefixlen
    if doomed not in chosen.addresses:
        raise Refused(f"{interface} is not an address of this stack")
    return Routes([kept for kept in chosen.addresses if kept != doomed], chosen.routes)


_CHANGES: dict[type[Order], Callable[..., Routes]] = {
    RouteAdd: _add_route,
    RouteDelete: _delete_route,
    AddressAdd: _add_address,
    AddressDelete: _delete_address,
}


def _address(text: str) -> bytes:
    return IPv4Address(text).packed if text else ANY


def _own(chosen: Routes) -> set[bytes]:
    return {address for address, _ in chosen.addresses}
