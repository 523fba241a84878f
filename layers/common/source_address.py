"""Source address selection: which of our addresses a packet comes from (RFC 1122 section 3.3.4.3).

In the order of Linux: what the application chose for this packet, what its socket is bound to, of a multicast the
socket's multicast interface, what the route says. ip settles the source of each route when routes or addresses change
(`of_route`), so that a packet costs one look-up. Where IPv6 has several addresses to choose from, RFC 6724 section 5
orders them by the destination: that belongs into `of_link`, and concerns no other module.
"""

from __future__ import annotations

from bus.messages import Route
from layers.common.routes import RouteTable
from packets.addresses import ANY, LIMITED_BROADCAST, LOOPBACK, is_multicast


def named(routes: RouteTable, destination: bytes, chosen: bytes, bound: bytes, multicast_interface: bytes) -> bytes:
    """What application and socket say of a packet's source; ANY: nothing. It need not be ours (any longer).

    `chosen`: by the application, for this packet (RFC 1122 section 4.1.3.5). `bound`: the socket's local address.
    Nothing is said by ANY, and by an address that is all zero.
    """
    if any(chosen):
        return chosen
    if any(bound) and not routes.is_group(bound):  # no packet comes from the address of a group
        return bound
    return multicast_interface if is_multicast(destination) else ANY  # RFC 1112 section 6.1


def of_packet(routes: RouteTable, destination: bytes, chosen: bytes, bound: bytes,
              multicast_interface: bytes) -> bytes | None:
    """The source of a packet; None: there is no way, or what was `named` is not ours (Linux: ENETUNREACH)."""
    source = named(routes, destination, chosen, bound, multicast_interface)
    if source:
        return source if routes.is_local(source) else None
    return of_destination(routes, destination)


def of_destination(routes: RouteTable, destination: bytes) -> bytes | None:
    """The source of a packet to there of which nothing is said; None: no way there.

    To oneself it is the destination, as on Linux. Limited broadcasts and multicasts concern the attached network: they
    need no route, and take the first own address without one.
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
    """The source of packets on a chosen route; ANY where it cannot be used now. `links`: the networks we are in."""
    if route.gateway and links.lookup(route.gateway) is None:
        return ANY
    if route.source:  # the operator said which
        return route.source if links.is_own(route.source) else ANY
    return of_link(route.gateway or route.network, links)


def of_link(next_hop: bytes, links: RouteTable) -> bytes:
    """RFC 1122 section 3.3.4.3: an address of ours in the next hop's network, else our first; ANY: we have none."""
    link = links.lookup(next_hop)
    return link.source if link is not None else _first(links, len(next_hop))


def _first(routes: RouteTable, width: int) -> bytes:
    return next((address for address, _ in routes.announced.addresses if len(address) == width), ANY)
