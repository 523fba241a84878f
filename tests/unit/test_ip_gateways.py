"""Several default gateways: which one is used, when it fails and when it is back; and redirects."""

from __future__ import annotations

import pytest
from records import ERROR, OUT, transmit
from test_ip_routes import FAR, GATEWAY, MAC, ME, Layer, octets

from bus import messages, topology
from layers.ip.counters import Counters
from layers.ip.gateways import RETRY_S
from layers.ip.neighbors import ASK_AGAIN_AFTER_S
from layers.ip.redirects import AGE_LIMIT_S, REDIRECTS_MAX
from layers.ip.routing import GATEWAYS_KEY, REDIRECTS_BURST, REDIRECTS_KEY

SECOND, THIRD = "10.0.0.3", "10.0.0.4"
DEFAULT = "0.0.0.0/0"
PATHS_GO_TO = topology.routed(topology.ALWAYS)


class Host(Layer):
    """Default routes by GATEWAY, SECOND, THIRD, in this order. It answers no requests by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.accepts("route_add", destination=DEFAULT, gateway=SECOND, metric=10)
        self.accepts("route_add", destination=DEFAULT, gateway=THIRD, metric=20)

    def send(self, payload: bytes = b"segment.", to: str = FAR) -> list:
        head = transmit(bytes(4), to)
        return self.hear(self.core.receive(topology.UDP, messages.TRANSMIT, [head + payload], self.now))

    def arp(self, kind: int, record: bytes) -> list:
        return self.hear(self.core.receive(topology.ARP, kind, [record], self.now))

    def counted(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: count for name, count in Counters.read(self.counters).items() if count}

    def lives(self, gateway: str) -> list:
        return self.arp(messages.NEIGHBOR, octets(gateway) + MAC[:-1] + octets(gateway)[-1:])

    def fails(self, gateway: str) -> list:
        return self.arp(messages.UNREACHABLE, octets(gateway))



@pytest.fixture
def host() -> Host:
    return Host()


def asks(gateway: str) -> tuple:
    return topology.ARP, messages.RESOLVE, octets(gateway)


def through(sends: list) -> list[tuple[int, bytes]]:
    """(last octet of the gateway, payload) of the packets that go to link."""
    return [(record[OUT - 1], record[OUT + 20 :]) for consumer, kind, record in sends if kind == messages.PACKET_OUT]


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
    assert (consumer, kind) == (topology.UDP, messages.ICMP_ERROR)
    assert record[ERROR:].endswith(b"one")
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
    assert [send for send in sends if send[1] == messages.RESOLVE] == [asks(SECOND), asks(GATEWAY)]
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
        return {layer: [route.gateway[-1] for route in routes.routes if not route.prefix]
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
    assert kind == messages.ICMP_ERROR
    assert asks(GATEWAY) in host.send(to="10.9.0.9")


def test_a_neighbour_that_is_no_gateway_changes_no_route(host):
    host.send(to="10.0.0.77")
    host.told.clear()
    ((_, kind, _),) = host.fails("10.0.0.77")
    assert (kind, host.told) == (messages.ICMP_ERROR, {})
    assert "gateway_failed" not in host.counted()


@pytest.mark.parametrize("stored", [b"", b"x", bytes(7), b"\xff" * 400])
def test_stored_nonsense_does_no_harm(host, stored):
    host.state[GATEWAYS_KEY] = stored
    host.crash()
    host.lives(GATEWAY)
    assert through(host.send()) == [(1, b"segment.")]


def test_packets_from_an_address_of_ours_keep_it_on_the_other_way(host):
    host.lives(SECOND)
    host.send()
    ((_, _, record),) = host.fails(GATEWAY)[-1:]
    assert record[OUT + 12 : OUT + 16] == octets(ME)


# -- redirects ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sender(host) -> Host:
    """It sends to FAR through GATEWAY; it knows all gateways."""
    for gateway in (GATEWAY, SECOND, THIRD):
        host.lives(gateway)
    assert through(host.send()) == [(1, b"segment.")]
    return host


def redirect(host: Host, to: str = THIRD, by: str = GATEWAY, destination: str = FAR) -> None:
    record = octets(destination) + octets(to) + octets(by)
    assert host.hear(host.core.receive(topology.ICMP, messages.REDIRECT, [record], host.now)) == []


def hop(host: Host, to: str = FAR) -> int:
    ((last, _),) = through(host.send(to=to))
    return last


def test_rfc1122_3_2_2_2_a_redirect_is_followed_for_its_destination_only_and_kept_over_a_crash(sender):
    sender.told.clear()
    redirect(sender)
    assert (hop(sender), hop(sender, "198.51.100.8")) == (4, 1)
    assert {layer: [route.gateway[-1] for route in told.routes if route.prefix == 32]
            for layer, told in sender.told.items()} == {layer: [4] for layer in PATHS_GO_TO}
    sender.crash()
    assert (hop(sender), hop(sender, "198.51.100.8")) == (4, 1)


def test_a_redirect_ages(sender):
    redirect(sender)
    sender.now += AGE_LIMIT_S / 2
    redirect(sender, SECOND, THIRD)  # the gateway of now sends us on
    assert hop(sender) == 3
    sender.passes(AGE_LIMIT_S - 1)
    assert hop(sender) == 3
    sender.passes(1)
    assert hop(sender) == 1
    assert (sender.state[REDIRECTS_KEY], sender.counted()["redirect_expired"]) == (messages.encode([]), 1)


@pytest.mark.parametrize("forged", [
    {"by": SECOND}, {"by": FAR}, {"to": GATEWAY}, {"to": "198.51.100.9"}, {"to": ME}, {"to": "10.0.0.255"},
    {"to": "10.0.0.0"}, {"to": "0.0.0.0"}, {"to": "224.0.0.2"}, {"to": "127.0.0.1"}, {"destination": "198.51.100.9"},
    {"destination": ME}, {"destination": "10.0.0.77"}, {"destination": "10.0.0.77", "by": "0.0.0.0"},
])  # fmt: skip
def test_rfc1122_3_2_2_2_a_redirect_that_no_gateway_of_ours_may_send_is_discarded(sender, forged):
    """Redirects that are not from the present gateway, to a host on no own network, or about an unused destination."""
    redirect(sender, **forged)
    assert hop(sender) == 1
    assert sender.counted()["redirect_refused"] == 1
    assert REDIRECTS_KEY not in sender.state


def test_a_redirect_to_a_gateway_that_does_not_answer_is_forgotten(sender):
    redirect(sender, "10.0.0.5")
    assert sender.send(b"one") == [asks("10.0.0.5")]
    assert through(sender.fails("10.0.0.5")) == [(1, b"one")]
    sender.crash()
    assert hop(sender) == 1
    sender.fails(SECOND)
    redirect(sender, SECOND)
    assert hop(sender) == 1


def test_a_change_of_routes_ends_all_redirects(sender):
    redirect(sender)
    sender.accepts("route_add", destination="10.9.0.0/16", gateway=GATEWAY)
    assert hop(sender) == 1


def test_redirects_are_bounded_in_number_and_in_time(sender):
    far = [f"198.51.{100 + n // 200}.{1 + n % 200}" for n in range(REDIRECTS_MAX + REDIRECTS_BURST + 1)]
    for destination in far:
        sender.send(to=destination)
    for destination in far[: REDIRECTS_BURST + 1]:
        redirect(sender, destination=destination)
    assert sender.counted()["redirect_limited"] == 1
    for destination in far[REDIRECTS_BURST:]:
        sender.now += 1
        redirect(sender, destination=destination)
    lines = [line for line in sender.routes() if line[5] == "redirect"]
    assert len(lines) == REDIRECTS_MAX
    assert hop(sender, far[0]) == 1  # the oldest gave way
    assert hop(sender, far[-1]) == 4


@pytest.mark.parametrize("stored", [b"", b"[[1]]", b"\xff", b"{}"])
def test_invalid_stored_redirects_are_counted_and_deleted(host, stored):
    host.state[REDIRECTS_KEY] = stored
    host.crash()
    assert host.counted()["state_unreadable"] == 1
    assert REDIRECTS_KEY not in host.state


@pytest.mark.parametrize("record", [b"", bytes(11), bytes(13)])
def test_redirects_that_do_not_parse_are_counted(sender, record):
    assert sender.core.receive(topology.ICMP, messages.REDIRECT, [record], sender.now) == []
    assert sender.counted()["bad_announcement"] == 1


def test_rfc1122_3_3_1_4_negative_advice_of_a_transport_has_the_gateway_verified(host):
    host.lives(GATEWAY)
    host.lives(SECOND)
    host.send(b"one")
    advice = [octets(FAR)] * 3
    assert host.hear(host.core.receive(topology.TCP, messages.NEGATIVE_ADVICE, advice, host.now)) == [asks(GATEWAY)]
    host.fails(GATEWAY)
    assert through(host.send(b"two")) == [(3, b"two")]
    assert host.counted()["advised"] == 1
    host.core.receive(topology.TCP, messages.NEGATIVE_ADVICE, [b"ill"], host.now)
    assert host.counted()["bad_announcement"] == 1
