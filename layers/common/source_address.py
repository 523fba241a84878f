"""Source address selection: which own address a packet comes from (RFC 1122 section 3.3.4.3).

The order is that of Linux: the application's choice for this packet, the socket's local address, for a multicast the
socket's multicast interface, the route. ip determines the source of each route when routes or addresses change
(`of_route`), so that a packet costs one look-up. For IPv6, RFC 6724 section 5 orders several addresses by the
destination; that belongs into `of_link` and concerns no other module.
"""

from __future__ import annotations

from bus.messages import Route
from layers.common.routes import RouteTable
from packets.addresses import ANY, LIMITED_BROADCAST, LOOPBACK, is_multicast


def named(routes: RouteTable, destination: bytes, chosen: bytes, bound: bytes, multicast_interface: bytes) -> bytes:
    """The source that application and socket determine for a packet; ANY: none. It may no longer be an own address.

    `chosen`: by the application, for this packet (RFC 1122 section 4.1.3.5). `bound`: the socket's local address. ANY
    and an address of zeros determine nothing.
    """
    if any(chosen):
        return chosen
    if any(bound) and not routes.is_group(bound):  # the address of a group is never a source
        return bound
    return multicast_interface if is_multicast(destination) else ANY  # RFC 1112 section 6.1


def of_packet(routes: RouteTable, destination: bytes, chosen: bytes, bound: bytes,
              multicast_interface: bytes) -> bytes | None:
    """The source of a packet; None: no route, or `named` is not an own address (Linux: ENETUNREACH)."""
    source = named(routes, destination, chosen, bound, multicast_interface)
    if source:
        return source if routes.is_local(source) else None
    return of_destination(routes, destination)


def of_destination(routes: RouteTable, destination: bytes) -> bytes | None:
    """The default source for a destination; None: no route.

    To an own address it is that address, as on Linux. Limited broadcasts and multicasts stay on the attached network:
    they need no route, and without one use the first own address.
    """
    if routes.is_local(destination):
        return destination if routes.is_own(destination) else LOOPBACK[len(destination)]
    route = routes.lookup(destination)
    if route is not None:
        return route.source
    if destination == LIMITED_BROADCAST or is_multicast(destination):
        return _first(routes, len(destination)) or None
    return None


def of_route(route: Route, links: RouteTable) -> bytes:
    """The source of packets on a chosen route; ANY: it cannot be used now.

    `links`: the networks of the own addresses.
    """
    if route.gateway and links.lookup(route.gateway) is None:
        return ANY
    if route.source:  # the user has set it
        return route.source if links.is_own(route.source) else ANY
    return of_link(route.gateway or route.network, links)


def of_link(next_hop: bytes, links: RouteTable) -> bytes:
    """RFC 1122 section 3.3.4.3: an own address in the network of the next hop, else the first; ANY: there is none."""
    link = links.lookup(next_hop)
    return link.source if link is not None else _first(links, len(next_hop))


def _first(routes: RouteTable, width: int) -> bytes:
    return next((address for address, _ in routes.announced.addresses if len(address) == width), ANY)
