"""Several default gateways: which one serves, when it fails and when it is back."""

from __future__ import annotations

import pytest
from test_ip_routes import FAR, GATEWAY, MAC, ME, Layer, octets

from bus import table
from bus.records import ICMP_ERROR_HEADER, TRANSMIT_HEADER
from layers.ip.core import PATHS_GO_TO
from layers.ip.counters import Counters
from layers.ip.gateways import RETRY_S
from layers.ip.neighbors import ASK_AGAIN_AFTER_S

SECOND, THIRD = "10.0.0.3", "10.0.0.4"
DEFAULT = "0.0.0.0/0"


class Host(Layer):
    """Default routes by GATEWAY, SECOND, THIRD, in this order. It answers nobody's questions by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.accepts("route_add", destination=DEFAULT, gateway=SECOND, metric=10)
        self.accepts("route_add", destination=DEFAULT, gateway=THIRD, metric=20)

    def send(self, payload: bytes = b"segment.", to: str = FAR) -> list:
        header = TRANSMIT_HEADER.pack(bytes(4), octets(to), 17, 64, 0, 0)
        return self.hear(self.core.receive(table.UDP, table.TRANSMIT, [header + payload], self.now))

    def arp(self, kind: int, record: bytes) -> list:
        return self.hear(self.core.receive(table.ARP, kind, [record], self.now))

    def counted(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: count for name, count in Counters.read(self.counters).items() if count}

    def lives(self, gateway: str) -> list:
        return self.arp(table.NEIGHBOR, octets(gateway) + MAC[:-1] + octets(gateway)[-1:])

    def fails(self, gateway: str) -> list:
        return self.arp(table.UNREACHABLE, octets(gateway))



@pytest.fixture
def host() -> Host:
    return Host()


def asks(gateway: str) -> tuple:
    return table.ARP, table.RESOLVE, octets(gateway)


def through(sends: list) -> list[tuple[int, bytes]]:
    """(last octet of the gateway, payload) of the packets that go to link."""
    return [(record[5], record[26:]) for consumer, kind, record in sends if kind == table.PACKET_OUT]


def test_rfc1122_3_3_1_5_packets_that_waited_for_a_dead_gateway_leave_through_the_next(host):
    host.lives(SECOND)
    assert host.send(b"one") == [asks(GATEWAY)]
    assert host.send(b"two") == []
    assert through(host.fails(GATEWAY)) == [(3, b"one"), (3, b"two")]
    assert through(host.send(b"three")) == [(3, b"three")]
    assert host.counted()["rerouted"] == 2
    assert "neighbor_unreachable" not in host.counted()


def test_the_others_are_tried_one_after_the_other_and_then_the_sender_is_told(host):
    host.send(b"one")
    assert host.fails(GATEWAY) == [asks(SECOND)]
    assert host.fails(SECOND) == [asks(THIRD)]
    ((consumer, kind, record),) = host.fails(THIRD)
    assert (consumer, kind) == (table.UDP, table.ICMP_ERROR)
    assert record[ICMP_ERROR_HEADER.size :].endswith(b"one")
    assert (host.counted()["gateway_failed"], host.counted()["neighbor_unreachable"]) == (3, 1)


def test_where_all_are_dead_the_first_is_asked_again(host):
    host.send()
    for gateway in (GATEWAY, SECOND, THIRD):
        host.fails(gateway)
    assert host.send(b"two") == [asks(GATEWAY)]
    assert through(host.lives(GATEWAY)) == [(1, b"two")]


def test_a_dead_gateway_is_asked_for_again_while_something_is_sent_and_serves_once_it_answers(host):
    for gateway in (GATEWAY, SECOND):
        host.lives(gateway)
    host.fails(GATEWAY)
    assert through(host.send()) == [(3, b"segment.")]
    host.now += RETRY_S - 0.1
    assert asks(GATEWAY) not in host.send()
    host.now += ASK_AGAIN_AFTER_S
    sends = host.send()
    assert [send for send in sends if send[1] == table.RESOLVE] == [asks(SECOND), asks(GATEWAY)]
    assert through(sends) == [(3, b"segment.")]  # nothing waits for an answer
    assert asks(GATEWAY) not in host.send()
    host.lives(GATEWAY)
    assert through(host.send()) == [(1, b"segment.")]


def test_a_crash_does_not_forget_which_gateways_are_dead(host):
    for gateway in (GATEWAY, SECOND):
        host.lives(gateway)
    host.fails(GATEWAY)
    host.crash()
    assert through(host.send()) == [(3, b"segment.")]
    host.lives(GATEWAY)
    host.crash()
    assert through(host.send()) == [(1, b"segment.")]


def test_the_layers_above_are_told_which_way_is_taken(host):
    def gateways(told: dict) -> dict:
        return {layer: [route.gateway & 0xFF for route in routes.routes if not route.prefix]
                for layer, routes in told.items()}

    host.send()
    host.told.clear()
    host.fails(GATEWAY)
    assert gateways(host.told) == {layer: [3, 4] for layer in PATHS_GO_TO}
    host.told.clear()
    host.fails(GATEWAY)  # no news
    assert host.told == {}
    host.lives(GATEWAY)
    assert gateways(host.told) == {layer: [1, 3, 4] for layer in PATHS_GO_TO}


def test_a_dead_gateway_is_shown_as_such(host):
    host.send()
    host.fails(GATEWAY)
    assert [(line[1], line[5]) for line in host.routes() if line[0] == DEFAULT] == [
        (GATEWAY, "dead"), (SECOND, "chosen"), (THIRD, "chosen")]


def test_a_dead_gateway_whose_routes_are_deleted_is_a_neighbour_as_any_other(host):
    host.send()
    host.fails(GATEWAY)
    host.accepts("route_del", destination=DEFAULT, gateway=GATEWAY)
    host.accepts("route_add", destination=DEFAULT, gateway=GATEWAY)
    assert asks(GATEWAY) in host.send()


def test_a_dead_gateway_keeps_the_places_that_only_it_leads_to(host):
    host.accepts("route_add", destination="10.9.0.0/16", gateway=GATEWAY)
    host.lives(SECOND)
    host.send(b"there", to="10.9.0.9")
    ((_, kind, _),) = host.fails(GATEWAY)
    assert kind == table.ICMP_ERROR
    assert asks(GATEWAY) in host.send(to="10.9.0.9")


def test_a_neighbour_that_is_no_gateway_changes_no_route(host):
    host.send(to="10.0.0.77")
    host.told.clear()
    ((_, kind, _),) = host.fails("10.0.0.77")
    assert (kind, host.told) == (table.ICMP_ERROR, {})
    assert "gateway_failed" not in host.counted()


@pytest.mark.parametrize("stored", [b"", b"x", bytes(7), b"\xff" * 400])
def test_stored_nonsense_does_no_harm(host, stored):
    host.state[5] = stored
    host.crash()
    host.lives(GATEWAY)
    assert through(host.send()) == [(1, b"segment.")]


def test_packets_from_an_address_of_ours_keep_it_on_the_other_way(host):
    host.lives(SECOND)
    host.send()
    ((_, _, record),) = host.fails(GATEWAY)[-1:]
    assert record[6 + 12 : 6 + 16] == octets(ME)
