"""What `up` was asked for: what is refused, with which words, and what follows from what is not."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from supervisor.options import Options, UsageError, from_file

CORE = min(os.sched_getaffinity(0))


@pytest.mark.parametrize(("given", "text"), [
    ({"address": "10.0.0"}, "expected an address like 10.0.0.2/24"),
    ({"address": "10.0.0.2/33"}, "expected an address like 10.0.0.2/24"),
    ({"address": "::1/64"}, "expected an address like 10.0.0.2/24"),
    ({"address": "224.0.0.1/24"}, "a host cannot have this address"),
    ({"address": "127.0.0.1/8"}, "a host cannot have this address"),
    ({"address": "0.0.0.0/0"}, "a host cannot have this address"),
    ({"address": "0.1.2.3/8"}, "a host cannot have this address"),
    ({"address": "240.0.0.1/24"}, "a host cannot have this address"),
    ({"address": "255.255.255.255/32"}, "a host cannot have this address"),
    ({"address": "10.0.0.0/24"}, "the address of the network itself or its broadcast address"),
    ({"address": "10.0.0.255/24"}, "the address of the network itself or its broadcast address"),
    ({"address": "10.0.0.2/32"}, "no room for the kernel's end"),
    ({"gateway": "10.0.0"}, "--gateway 10.0.0: "),
    ({"gateway": "10.0.1.1"}, "another host of the stack's network, 10.0.0.0/24"),
    ({"gateway": "10.0.0.2"}, "another host of the stack's network"),
    ({"gateway": "10.0.0.0"}, "another host of the stack's network"),
    ({"gateway": "10.0.0.255", "wire": "lab"}, "another host of the stack's network"),
    ({"mac": "02:00:00:00:00"}, "expected an address like 02:00:00:00:00:02"),
    ({"mac": "02-00-00-00-00-02"}, "expected an address like 02:00:00:00:00:02"),
    ({"mac": "01:00:5e:00:00:01"}, "must not be a group address or zero"),
    ({"mac": "00:00:00:00:00:00"}, "must not be a group address or zero"),
    ({"cores": "fast"}, "compact, spread, auto, or core numbers like 0,1"),
    ({"cores": ""}, "compact, spread, auto, or core numbers like 0,1"),
    ({"cores": f"{CORE},99999"}, "no core 99999 here"),
    ({"cores": "-1"}, "no core -1 here"),
    ({"mtu": 67}, "--mtu 67: 68 to 65521"),
    ({"mtu": 65522}, "--mtu 65522: 68 to 65521"),
    ({"ttl": 0}, "--ttl 0: 1 to 255"),
    ({"ttl": 256}, "--ttl 256: 1 to 255"),
    ({"wire": "a b"}, "--wire a b: letters, digits"),
    ({"wire": "../etc"}, "letters, digits"),
    ({"wire": "w" * 33}, "at most 32"),
    ({"wire": "lab", "host": True}, "cannot be combined"),
    ({"tap": "all"}, "any name but all, default, lo"),
    ({"tap": "default"}, "any name but"),
    ({"tap": "lo"}, "any name but"),
    ({"tap": "tap%d"}, "no '/', ':', '%' or blank"),
    ({"tap": "a:b"}, "no '/', ':', '%' or blank"),
    ({"tap": "t" * 16}, "1 to 15 characters"),
])  # fmt: skip
def test_impossible_options_are_refused_with_the_reason(given, text):
    with pytest.raises(UsageError) as refusal:
        Options(**given).check()
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_variable_that_is_wrong_is_named_and_not_an_option(monkeypatch):
    monkeypatch.setenv("USERNET_PIPES", "pigeons")
    with pytest.raises(UsageError, match=r"^USERNET_PIPES=pigeons: zmq or direct"):
        Options().check()
    Options(pipes="direct").check()


@pytest.mark.parametrize(("given", "same"), [
    ({"address": ""}, {"address": "10.0.0.2/24"}),
    ({"gateway": ""}, {"gateway": "10.0.0.1"}),
    ({"mac": "02:00:00:00:00:0a"}, {"mac": "02:00:00:00:00:0A"}),
    ({"dns": "10.0.0.1,10.0.0.3"}, {"dns": "10.0.0.1, 10.0.0.3"}),
    ({"cores": str(CORE)}, {"cores": f"{CORE},{CORE}"}),
    ({"sysctl": ["net.ipv4.tcp_sack=0", "net.ipv4.tcp_ecn=1"]},
     {"sysctl": ["net.ipv4.tcp_ecn=1", "net.ipv4.tcp_sack=0"]}),
    ({"pipes": ""}, {"pipes": "zmq"}),
])  # fmt: skip
def test_the_same_option_in_other_words_has_the_same_effect(monkeypatch, given, same):
    monkeypatch.delenv("USERNET_PIPES", raising=False)
    (name,) = given
    assert Options(**given).in_effect(name) == Options(**same).in_effect(name)


@pytest.mark.parametrize("given", [
    {},
    {"tap": "tap-0.1"},
    {"address": "192.168.1.77/16", "gateway": "192.168.0.1", "mac": "02:00:00:00:00:0A", "mtu": 68, "cores": "compact"},
    {"address": "10.0.0.2/31"},
    {"address": "10.0.0.2/32", "wire": "lab"},
    {"wire": "w" * 32, "mtu": 65521},
    {"ttl": 1},
    {"ttl": 255},
    {"host": True, "cores": str(CORE)},
])  # fmt: skip
def test_possible_options_are_accepted(given):
    Options(**given).check()


@pytest.mark.parametrize(("given", "kernel_end", "gateway"), [
    ({}, "10.0.0.1/24", "10.0.0.1"),
    ({"address": "10.0.0.1/24"}, "10.0.0.2/24", "10.0.0.2"),
    ({"address": "10.0.0.9/24", "gateway": "10.0.0.7"}, "10.0.0.7/24", "10.0.0.7"),
    ({"address": "10.0.0.3/31"}, "10.0.0.2/31", "10.0.0.2"),  # RFC 3021: both addresses are hosts'
])  # fmt: skip
def test_the_kernels_end_is_the_gateway_else_the_first_other_host(given, kernel_end, gateway):
    options = Options(**given)
    assert str(options.kernel_end()) == kernel_end
    assert options.gateway_address() == ipaddress.IPv4Address(gateway).packed


def test_a_wire_has_no_gateway_unless_one_is_given():
    assert Options(wire="lab").gateway_address() == b""
    assert Options(wire="lab", gateway="10.0.0.9").gateway_address() == ipaddress.IPv4Address("10.0.0.9").packed


def test_a_mac_is_the_one_given_or_a_random_one_for_a_single_station_locally_administered():
    assert Options(mac="02:00:00:00:00:fF").mac_octets() == bytes.fromhex("0200000000ff")
    drawn = {Options().mac_octets() for _ in range(50)}
    assert len(drawn) == 50
    assert all(mac[0] & 3 == 2 and len(mac) == 6 for mac in drawn)


def test_cores_are_a_mode_or_a_list_without_repetitions():
    assert Options(cores="spread").core_list() is None
    assert Options(cores=f"{CORE},{CORE}").core_list() == [CORE]


# -- the config file ---------------------------------------------------------------------------------------------------


def test_a_config_file_has_the_names_of_the_options(tmp_path):
    path = tmp_path / "stack.toml"
    path.write_text('address = "10.1.0.2/16"\nmtu = 9000\nhost = true\n# a comment\n')
    assert from_file(str(path)) == {"address": "10.1.0.2/16", "mtu": 9000, "host": True}


def test_the_sample_of_the_documentation_is_accepted(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "commands.md").read_text()
    path = tmp_path / "stack.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    values = from_file(str(path))
    assert len(values) == 8
    Options(**values).check()


@pytest.mark.parametrize(("text", "cores"), [("0", "0"), ("[0, 1]", "0,1"), ('"auto"', "auto")])
def test_cores_in_a_config_file_are_a_number_a_list_or_a_mode(tmp_path, text, cores):
    path = tmp_path / "stack.toml"
    path.write_text(f"cores = {text}\n")
    assert from_file(str(path)) == {"cores": cores}


@pytest.mark.parametrize(("text", "reason"), [
    (b"mtu = ", "Invalid value"),
    (b'mtu = "1500"', "Expected `int`, got `str` - at `$.mtu`"),
    (b"mtu = true", "Expected `int`"),
    (b"mut = 1500", "no option 'mut'"),
    (b'[stack]\naddress = "10.0.0.2/24"', "no option 'stack'"),
    (b"\xff", "can't decode"),
])  # fmt: skip
def test_an_invalid_config_file_is_refused_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "stack.toml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as refusal:
        from_file(str(path))
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith(f"--config {path}: ")


def test_a_config_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        from_file(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="Is a directory"):
        from_file(str(tmp_path))
