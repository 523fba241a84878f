"""Defaults of a stack by their names on Linux (tcp(7)): the values of a new stream socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Setting(NamedTuple):
    """The field of `bus.streams.StreamState` whose default it is, and its minimum and maximum."""

    field: str
    lowest: int
    highest: int


SETTINGS = {
    "net.ipv4.tcp_timestamps": Setting("timestamps", 0, 1),
    "net.ipv4.tcp_window_scaling": Setting("window_scaling", 0, 1),
    "net.ipv4.tcp_sack": Setting("sack", 0, 1),
    "net.ipv4.tcp_ecn": Setting("ecn", 0, 5),  # see `layers.tcp.ecn`
    "net.ipv4.tcp_keepalive_time": Setting("keepidle", 1, 32767),
    "net.ipv4.tcp_keepalive_intvl": Setting("keepintvl", 1, 32767),
    "net.ipv4.tcp_keepalive_probes": Setting("keepcnt", 1, 127),
    "net.ipv4.tcp_syn_retries": Setting("syncnt", 1, 127),
    "net.ipv4.tcp_fin_timeout": Setting("linger2", 1, 120),
}


def parsed(given: Iterable[str]) -> dict[str, int]:
    """{name: value} from texts `NAME=VALUE`. ValueError: unknown name or invalid value."""
    values: dict[str, int] = {}
    for each in given:
        name, _, text = each.partition("=")
        setting = SETTINGS.get(name.strip())
        if setting is None:
            raise ValueError(f"{each}: unknown setting; the settings are {', '.join(SETTINGS)}")
        value = int(text) if text.strip().isascii() and text.strip().isdigit() else -1
        if not setting.lowest <= value <= setting.highest:
            raise ValueError(f"{each}: {setting.lowest} to {setting.highest}")
        values[name.strip()] = value
    return values


def stream_defaults(values: Mapping[str, int]) -> dict[str, int | bool]:
    """The fields of a new stream socket that these settings determine."""
    return {setting.field: bool(value) if setting.highest == 1 else value
            for setting, value in ((SETTINGS[name], value) for name, value in values.items())}
