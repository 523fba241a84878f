"""`up`: boot a stack."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cli import stack
from cli.main import OK, USAGE
from supervisor import boot
from supervisor.control import Client, NotRunning, Refused, abstract_name, printable
from supervisor.errors import BootError, Busy
from supervisor.events import Event, describe
from supervisor.options import DEFAULT_ADDRESS, Options, from_file
from usernet.pipe.run_dir import run_dir, stack_name

TEXT = "boot a stack, in a sandbox of its own; in the foreground, show its events"

BUSY_S, BUSY_PAUSE_S = 15.0, 0.02  # so long `up` waits for another `up` or `down` of the same stack

_FLAGS: dict[str, dict[str, Any]] = {  # arguments, by the name of their field in Options
    "host": {"action": "store_true", "help": "use this network namespace instead of a sandbox (needs CAP_NET_ADMIN)"},
    "address": {"metavar": "A/P", "help": f"the stack's address (default {DEFAULT_ADDRESS}; on a wire the first "
                "free address of that network)"},
    "gateway": {"metavar": "G", "help": "the default gateway and kernel's end (default: the first other host of the "
                "network)"},
    "mac": {"metavar": "M", "help": "the stack's MAC address (default: random)"},
    "mtu": {"type": int, "metavar": "N", "help": "MTU in octets (default 1500)"},
    "ttl": {"type": int, "metavar": "N", "help": "default time to live of sent packets (default 64)"},
    "tap": {"metavar": "DEV", "help": "name of the TAP interface (default tap0)"},
    "wire": {"metavar": "W", "help": "join this virtual wire instead of a TAP; needs no kernel feature"},
    "dns": {"metavar": "A[,B]", "help": "name servers for the applications, separated by commas"},
    "profile": {"metavar": "NAME", "help": "impair the link like this network: 3g, wifi, satellite, ... (see "
                "impair --help)"},
    "cores": {"metavar": "MODE", "help": "compact, spread, auto (default), or a list like 0,1"},
    "pipes": {"metavar": "KIND", "help": "pipes between the processes: zmq (libzmq, by pyzmq; default), or "
              "direct (plain Unix sockets that speak the same protocol)"},
    "reload": {"action": "store_true", "help": "restart layers whose code changes on disk"},
    "allow_raw": {"action": "store_true", "help": "let applications open raw sockets: read and forge packets of any "
                  "protocol"},
    "accept_redirects": {"action": "store_true", "help": "accept redirects of a gateway to another gateway"},
    "no_offload": {"action": "store_true", "help": "no checksum and segmentation offload on the TAP or wire"},
    "record_crashes": {"action": "store_true", "help": "record the last calls of each layer; a crash leaves a "
                       "recording for replay"},
    "sysctl": {"action": "append", "metavar": "NAME=VALUE", "help": "set a default of TCP by its name on Linux, such "
               "as net.ipv4.tcp_sack=0; can be repeated"},
    "unlocked": {"action": "store_true", "help": "for debugging: layers keep all rights of the user"},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("-d", "--detach", action="store_true", help="return when the stack answers")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")
    for name, flag in _FLAGS.items():
        if name in Options.__struct_fields__:
            parser.add_argument(f"--{name.replace('_', '-')}", default=None, **flag)
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="in the foreground: events as "
                        "text (default), or one JSON object per line")
    parser.add_argument("--config", metavar="F", help="TOML file with the same options; options of the command line "
                        "take precedence "
                        "(docs/commands.md)")


def options_of(given: argparse.Namespace) -> tuple[Options, set[str]]:
    """The options from the configuration file and the command line, which takes precedence; and the names of the given
    ones."""
    values = from_file(given.config) if given.config else {}
    for field in Options.__struct_fields__:
        value = getattr(given, field, None)
        if value is not None and value is not False:
            values[field] = value
    options = Options(**values)  # type: ignore[arg-type]
    options.check()
    return options, set(values) - {"name"}


def run(given: argparse.Namespace) -> int:
    """Boot the stack, or find the running one; follow its events unless --detach is given."""
    options, asked = options_of(given)
    folder = run_dir(options.name or None)
    options.name = stack_name(options.name)
    if options.profile:
        from cli.impair import network

        network(options.profile)  # checked before anything is booted
    if given.detach:
        return _join_or_boot(given, options, asked, folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _join_or_boot(given, options, asked, folder)
        if status == OK:
            _follow(given, folder)
        return status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop(given, folder)
        return OK


def _stop(given: argparse.Namespace, folder: Path) -> None:
    _say(given, "stopping")
    with contextlib.suppress(NotRunning):  # the stack has ended already
        stack.stop(folder)


def _stop_apart(given: argparse.Namespace, folder: Path, failures: list[Exception]) -> None:
    """As `_stop`, in a thread of its own: why it failed is for the main thread to report."""
    try:
        _stop(given, folder)
    except Exception as error:
        failures.append(error)


def _join_or_boot(given: argparse.Namespace, options: Options, asked: set[str], folder: Path) -> int:
    """On a wire with an address that is free there, unless one is given."""
    if not options.wire or "address" in asked:
        return _find_or_boot(given, options, asked, folder)
    with _alone_on(options.wire_dir()):
        options.address = _free_address(options.wire)
        return _find_or_boot(given, options, asked, folder)


@contextlib.contextmanager
def _alone_on(wire: Path) -> Iterator[None]:
    """No other `up` of this user chooses an address on this wire meanwhile, until BUSY_S are over."""
    deadline = time.monotonic() + BUSY_S
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind(abstract_name(wire))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                    time.sleep(BUSY_PAUSE_S)
                    continue  # any other error is of the path, and the boot reports it
            break
        yield


def _find_or_boot(given: argparse.Namespace, options: Options, asked: set[str], folder: Path) -> int:
    started = time.monotonic()
    while (status := _running(folder)) is None or status["state"] == "starting":
        try:
            if status is None:
                boot.start_keeper(options, folder)
                return _booted(given, options, folder, started)
        except Busy:
            if time.monotonic() > started + BUSY_S:
                raise
        time.sleep(BUSY_PAUSE_S)  # another `up` boots it, or a `down` is under way
    differ = _differences(options, asked, status)
    if differ:
        stack.warn(f"stack '{status['name']}' is running already, {', '.join(differ)}; stop it first, or use another "
                   "--name")
        return USAGE
    _say(given, f"stack '{status['name']}' is running already: {where(status)} (keeper {status['keeper']})")
    return OK


def _differences(options: Options, asked: set[str], status: dict[str, Any]) -> list[str]:
    """What the running stack has instead of what is asked for, in the words of the command line."""
    running = msgspec.convert(status["options"], Options)
    running.address, running.mac, running.pipes = status["address"], status["mac"], status["pipes"]
    found = []
    for name in sorted(asked):
        has = running.in_effect(name)
        if has != options.in_effect(name):
            value = {"cores": running.cores, "sysctl": " ".join(running.sysctl)}.get(name, has)
            text = f"--{name.replace('_', '-')}" + ("" if isinstance(value, bool) or not value else f" {value}")
            found.append(f"with {text}" if value else f"without {text}")
    return found


def _running(folder: Path) -> dict[str, Any] | None:
    try:
        return stack.query(folder, "status")
    except NotRunning:
        return None


def _booted(given: argparse.Namespace, options: Options, folder: Path, started: float) -> int:
    status = stack.query(folder, "status")
    if options.profile:
        from cli import impair

        impair.impair_device(folder, status["layers"], options.profile)
    _say(given, f"stack '{status['name']}' is up in {time.monotonic() - started:.2f} s: {where(status)}")
    return OK


def where(status: dict[str, Any]) -> str:
    """Text for the stack's addresses and its link."""
    addresses = ", ".join(addresses_of(status))
    if status["wire"]:
        return f"{addresses} on wire '{status['wire']}'"
    return f"{addresses} on {status['tap']}, the kernel's end is {status['kernel_end']}"


def addresses_of(status: dict[str, Any]) -> list[str]:
    """The present addresses of the stack; the address at boot if ip does not answer."""
    try:
        answer = stack.query(Path(status["run_dir"]), "manage", layer="ip", request={"op": "address_list"})
        return answer["addresses"] or ["no address"]
    except (Refused, NotRunning, OSError):
        return [status["address"]]


def _free_address(wire: str) -> str:
    """The first address of the default network that no stack of this user on the wire has, or was booted with.

    BootError: a stack does not answer, so its address is not known.
    """
    taken = set()
    for folder in stack.all_folders():
        try:
            status = stack.query(folder, "status")
        except NotRunning:
            continue
        except (Refused, OSError) as error:
            raise BootError(f"no free address on wire '{wire}' can be chosen, because a stack does not answer: give "
                            f"one (--address 10.0.0.9/24). {getattr(error, 'strerror', None) or error}") from error
        if status["wire"] == wire:
            taken |= {ipaddress.ip_interface(address).ip for address in [status["address"], *addresses_of(status)]
                      if "/" in address}
    default = ipaddress.IPv4Interface(DEFAULT_ADDRESS)
    free: Iterator[ipaddress.IPv4Address] = (host for host in default.network.hosts() if host >= default.ip)
    return f"{next((host for host in free if host not in taken), default.ip)}/{default.network.prefixlen}"


def _follow(given: argparse.Namespace, folder: Path) -> None:
    """Print events until the stack has ended; the first SIGINT or SIGTERM stops it."""
    failures: list[Exception] = []
    stopping = threading.Thread(target=_stop_apart, args=(given, folder, failures))

    def on_signal(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopping.start()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    _say(given, "Ctrl-C stops it; `up` in another terminal shows its events too")
    with Client(folder) as client:
        for line in client.stream("events", follow=True):
            as_json = given.log_format == "json"
            text = msgspec.json.encode(line).decode() if as_json else describe(msgspec.convert(line, Event))
            print(printable(text), flush=True)
    if stopping.ident is None:
        _say(given, "the stack has ended")
    else:
        stopping.join()
    if failures:
        raise failures[0]


def _say(given: argparse.Namespace, text: str) -> None:
    """Print a line for the user, unless the output is JSON."""
    if given.log_format == "json":
        stack.warn(text)
    else:
        stack.say(given, text)
