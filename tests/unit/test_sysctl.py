"""Settings of a stack by Linux's names: what is taken, what is refused, and what a stream socket has of them."""

from __future__ import annotations

import pytest
from msgspec.structs import fields

from bus.streams import StreamState
from bus.sysctl import SETTINGS, parsed, stream_defaults
from layers.sockets.entry import StreamOptions
from supervisor.options import Options, UsageError


def test_settings_are_fields_of_a_stream_socket_with_linux_defaults():
    asked, told = ({each.name: each.default for each in fields(kind)} for kind in (StreamOptions, StreamState))
    for name, setting in SETTINGS.items():
        assert asked[setting.field] == told[setting.field], name


def test_values_become_fields():
    given = ["net.ipv4.tcp_sack=0", "net.ipv4.tcp_timestamps = 1", "net.ipv4.tcp_ecn=1",
             "net.ipv4.tcp_keepalive_time=15"]
    assert stream_defaults(parsed(given)) == {"sack": False, "timestamps": True, "ecn": 1, "keepidle": 15}
    assert stream_defaults(parsed(["net.ipv4.tcp_ecn=2"])) == {"ecn": 2}
    assert parsed([]) == {}


@pytest.mark.parametrize(("given", "text"), [
    ("net.ipv4.tcp_sick=1", "unknown setting; the settings are net.ipv4.tcp_timestamps"),
    ("net.ipv4.tcp_sack", "0 to 1"),
    ("net.ipv4.tcp_sack=2", "0 to 1"),
    ("net.ipv4.tcp_sack=-1", "0 to 1"),
    ("net.ipv4.tcp_keepalive_probes=128", "1 to 127"),
    ("net.ipv4.tcp_keepalive_probes=many", "1 to 127"),
])
def test_a_refused_value_is_refused_with_the_reason(given: str, text: str):
    with pytest.raises(UsageError, match=f"--sysctl {given}: .*{text}"):
        Options(sysctl=[given]).check()
