"""`impair`: simulate a bad network on a pipe or a flow, with the parameters of tc-netem(8), without root, while it
runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from bus.runtime.impair import Settings
from cli import netem
from cli.pipes import DEVICE, Pipe, chosen
from cli.query import query
from packets.filter import FilterError, compile_filter
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "loss, delay, duplication and so on, on a pipe or a flow, with the parameters of tc-netem"
_WORDS = {
    "loss": ("SHARE", "share of lost packets: 5%%, with correlation 5%% 25%%; in bursts: gemodel P [R [1-H [1-K]]]"),
    "delay": ("TIME", "20ms, with jitter 20ms 5ms, with correlation 20ms 5ms 25%%"),
    "jitter": ("TIME", "5ms, in addition to --delay"),
    "distribution": ("NAME", "of the jitter: uniform (default) or normal"),
    "duplicate": ("SHARE", "share of packets that are sent twice"),
    "reorder": ("SHARE", "share of packets that are sent at once, before those delayed by --delay"),
    "gap": ("N", "with --reorder: only every N-th packet"),
    "corrupt": ("SHARE", "share of packets in which one bit is flipped"),
    "rate": ("RATE", "10mbit, 64kbit, 1mbps (octets)"),
    "queue": ("N", "maximum number of delayed packets (default 1000)"),
    "drop_nth": ("N", "lose every N-th packet"),
    "seed": ("N", "seed of the random numbers, to repeat a run"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("target", nargs="?", metavar="PIPE|FLOW", help="a pipe as in capture (link:device is what the "
                        "stack sends, device both ways), or an expression like 'udp port 53': those packets, both ways "
                        "at the device")
    for word, (metavar, text) in _WORDS.items():
        parser.add_argument(f"--{word.replace('_', '-')}", dest=word, nargs="+", metavar=metavar, help=text)
    parser.add_argument("--profile", metavar="NAME", help=f"a named network: {', '.join(netem.profiles())}")
    parser.add_argument("--flow", metavar="EXPR", help="only these packets of the pipe")
    parser.add_argument("--list", action="store_true", help="list the impairments (default)")
    parser.add_argument("--clear", action="store_true", help="remove the impairment of the given pipe or flow, or all")


def run(given: argparse.Namespace) -> int:
    """Set, list or clear impairments. UsageError: arguments that contradict each other, or invalid values."""
    folder = run_dir(given.name)
    words = {word: values for word in _WORDS if (values := getattr(given, word)) is not None}
    wanted = bool(words or given.profile)
    if wanted and (given.clear or given.list):
        raise UsageError("impair: --list and --clear cannot be combined with an impairment")
    if wanted and not given.target:
        raise UsageError("impair: no pipe or flow given; expected a pipe (device for all packets in both directions) "
                         "or a flow ('udp port 53')")
    if given.profile and words:
        raise UsageError("impair: --profile cannot be combined with single values")
    layers = query(folder, "status")["layers"]
    pipes, flow = _target(given.target, given.flow, layers)
    if given.clear:
        cleared = query(folder, "clear", pipes=[pipe.name for pipe in pipes] if given.target else [], flow=flow)
        print("\n".join(f"cleared: {describe(one)}" for one in cleared) or "nothing was impaired")
        return 0
    if wanted:
        query(folder, "impair", impairments=asked(pipes, flow or "", _settings(given.profile, words, pipes)))
    show(query(folder, "impairments"))
    return 0


def _target(text: str | None, flow: str | None, layers: Iterable[str]) -> tuple[list[Pipe], str | None]:
    """The selected pipes, and the flow if there is one. UsageError: the text is neither a pipe nor a flow."""
    if text is None:
        return [], flow
    try:
        return chosen([text], list(layers)), _checked(flow)
    except UsageError as error:
        try:
            compile_filter(text)
        except FilterError as problem:
            raise UsageError(f"impair: {error}; and it is not a flow: {problem}") from problem
    if flow:
        raise UsageError("impair: two flows given; expected one")
    return chosen([DEVICE], list(layers)), text


def _checked(flow: str | None) -> str | None:
    try:
        if flow:
            compile_filter(flow)
        return flow
    except FilterError as error:
        raise UsageError(f"impair: --flow {error}") from error


def _settings(profile: str | None, words: dict[str, list[str]], pipes: list[Pipe]) -> dict[Pipe, Settings]:
    """The settings of each pipe."""
    try:
        if profile is None:
            both = netem.settings(words)
            return dict.fromkeys(pipes, both)
        up, down = network(profile)
    except ValueError as error:
        raise UsageError(f"impair: {error}") from error
    return {pipe: up if pipe.producer != DEVICE else down for pipe in pipes}


def network(name: str) -> tuple[Settings, Settings]:
    """The settings of a named network for sent and for received packets. UsageError: unknown name."""
    known = netem.profiles()
    if name not in known:
        raise UsageError(f"no network {name!r}; the networks are {', '.join(known)}")
    return known[name].settings()


def asked(pipes: Iterable[Pipe], flow: str, settings: dict[Pipe, Settings]) -> list[dict[str, Any]]:
    """The impairments of the keeper's request."""
    return [{"pipe": pipe.name, "layer": pipe.layer, "peer": pipe.peer, "sent": pipe.sent, "flow": flow,
             "settings": msgspec.to_builtins(settings[pipe])} for pipe in pipes]


def impair_device(folder: Path, layers: Iterable[str], profile: str) -> None:
    """Impair the device as `up --profile` asks, as if the network were beyond it."""
    up, down = network(profile)
    pipes = chosen([DEVICE], list(layers))
    settings = {pipe: down if pipe.producer == DEVICE else up for pipe in pipes}
    query(folder, "impair", impairments=asked(pipes, "", settings))


def describe(one: dict[str, Any]) -> str:
    """One impairment in tc's words."""
    flow = f" ({one['flow']})" if one.get("flow") else ""
    return f"{one['pipe']}{flow}: {netem.describe(msgspec.convert(one['settings'], Settings))}"


def show(impairments: list[dict[str, Any]]) -> None:
    """Print the impairments, one line each."""
    print("\n".join(map(describe, impairments)) or "nothing is impaired")
