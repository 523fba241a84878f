"""What a layer has the keeper show people: begins once, lasts, is over once."""

from __future__ import annotations

import msgspec
import pytest

from bus.messages import Notice, decode_notices, encode
from cli.status import table
from supervisor.resources import Resources

FIRST = Notice("conflict", "a claims b", (("address", "b"), ("mac", "a")))
SECOND = Notice("conflict", "c claims b", (("address", "b"), ("mac", "c")))


@pytest.fixture
def service(tmp_path):
    made = Resources("arp", tmp_path)
    yield made
    made.listener.close()


def told(*notices: Notice) -> list:
    """As they come off the control line."""
    return decode_notices(encode(list(notices)))


def test_a_notice_begins_once_however_often_it_is_told_and_keeps_its_time(service):
    assert service.notice(told(FIRST), 100.0) == ([FIRST], [])
    assert service.notice(told(FIRST), 200.0) == ([], [])
    assert service.standing_notices() == [
        {"event": "conflict", "detail": "a claims b", "since": 100.0, "address": "b", "mac": "a"}]


def test_a_notice_that_is_not_repeated_is_over(service):
    service.notice(told(FIRST, SECOND), 100.0)
    assert service.notice(told(SECOND), 200.0) == ([], [FIRST])
    assert service.notice(told(), 300.0) == ([], [SECOND])
    assert service.standing_notices() == []


def test_each_question_has_a_number_that_its_core_knows_it_by(service):
    for _ in range(2):
        service.ask({"op": "route_del", "order": 1}, lambda answer: None)
    asked = [msgspec.json.decode(question.text()) for question in service.questions.values()]
    assert [(each["id"], each["request"]) for each in asked] == [
        (1, {"op": "route_del", "order": 1}), (2, {"op": "route_del", "order": 2})]


def test_a_notice_that_comes_back_begins_anew(service):
    service.notice(told(FIRST), 100.0)
    service.notice(told(), 200.0)
    assert service.notice(told(FIRST), 300.0) == ([FIRST], [])
    assert service.standing_notices()[0]["since"] == 300.0


@pytest.mark.parametrize("octets", [b"", b"{}", b'[{"event": 1}]', b"[[]]", b"\xff"])
def test_notices_that_do_not_parse_are_the_layers_fault(octets):
    with pytest.raises(ValueError):
        decode_notices(octets)


def test_status_shows_them_under_the_table():
    status = {"name": "x", "state": "up", "address": "10.0.0.2/24", "wire": "w", "mac": "m", "mtu": 1500,
              "pipes": "zmq", "offload": [], "impairments": [], "cores": "0", "keeper": 1, "run_dir": "/x",
              "layers": {"arp": {
                  "pid": 1, "state": "up", "restarts": 0, "uptime_s": 1.0, "rss_bytes": 0, "cpu_s": 0.0,
                  "may": {}, "packets_in": 0, "packets_out": 0, "packets_dropped": 0, "notices": [
                      {"event": "conflict", "detail": "a claims b", "since": 0.0}]}}}
    last = table(status).splitlines()[-1]
    assert last.startswith("arp: conflict since 19")
    assert last.endswith(": a claims b")
