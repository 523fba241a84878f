"""The verbs of the command line. Each returns an exit status."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from cli.query import query
from supervisor import boot, sandbox
from supervisor.control import Client, NotRunning, Refused, printable
from supervisor.events import Event, describe
from supervisor.options import Options, UsageError
from usernet.pipe.run_dir import run_dir, stack_name

OK, FAILED, USAGE = 0, 1, 2
KEEPER_END_TIMEOUT_S = 10.0


def up(options: Options, detach: bool, log_format: str = "text") -> int:
    """Boot, or find the stack that is running; follow its events unless `detach`, as lines of text or of JSON."""
    folder = run_dir(options.name or None)
    options.name = stack_name(options.name)
    if options.profile:
        from cli.impair import network

        network(options.profile)  # before anything is booted
    if detach:
        print(_find_or_boot(options, folder), flush=True)
        return OK
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _say(_find_or_boot(options, folder), log_format)
        _follow(folder, log_format)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _say("stopping", log_format)
        with contextlib.suppress(NotRunning):  # it ended before it could say so
            _stop(folder)
    return OK


def _find_or_boot(options: Options, folder: Path) -> str:
    started = time.monotonic()
    try:
        status = query(folder, "status")
        return f"stack '{status['name']}' is running already ({status['address']}, keeper {status['keeper']})"
    except NotRunning:
        pass
    boot.start_keeper(options, folder)
    status = query(folder, "status")
    if options.profile:
        from cli import impair

        impair.impair_device(options.name, status["layers"], options.profile)
    return f"stack '{status['name']}' is up in {time.monotonic() - started:.2f} s: {_where(status)}"


def _where(status: dict[str, Any]) -> str:
    if status["wire"]:
        return f"{status['address']} on wire '{status['wire']}'"
    return f"{status['address']} on {status['tap']}, the kernel's end is {status['kernel_end']}"


def _say(text: str, log_format: str) -> None:
    """For a person: not among lines of JSON."""
    print(text, file=sys.stderr if log_format == "json" else sys.stdout, flush=True)


def _follow(folder: Path, log_format: str) -> None:
    _say("Ctrl-C stops it; `launcher.py up` in another terminal shows its events too", log_format)
    with Client(folder) as client:
        for line in client.stream("events", follow=True):
            as_json = log_format == "json"
            text = msgspec.json.encode(line).decode() if as_json else describe(msgspec.convert(line, Event))
            print(printable(text), flush=True)
    _say("the stack has ended", log_format)


def _stop(folder: Path) -> None:
    """Stop in order, and wait for the keeper's own end: the interface goes with the last of its descriptors."""
    with Client(folder) as client:
        keeper = client.keeper_pidfd()
        try:
            for forced in client.request("down").get("forced", ()):
                print(f"killed {forced}", file=sys.stderr)
            select.select([keeper], [], [], KEEPER_END_TIMEOUT_S)
        finally:
            os.close(keeper)


def down(name: str | None) -> int:
    """Stop in order; nothing is left once this returns."""
    _stop(run_dir(name))
    return OK


def restart(name: str | None, layers: list[str]) -> int:
    """Planned restarts from the code as it is on disk."""
    folder = run_dir(name)
    known = list(query(folder, "status")["layers"])
    wanted = known if layers == ["all"] else layers
    unknown = [layer for layer in wanted if layer not in known]
    if unknown:
        raise UsageError(f"restart: no layer '{unknown[0]}'; there are {', '.join(known)}, or all")
    query(folder, "restart", layers=wanted)
    return OK


def sabotage(name: str | None, layer: str, fault: str) -> int:
    """Make a layer commit a fault on itself."""
    answer = query(run_dir(name), "sabotage", layer=layer, fault=fault)
    print(f"{layer} [{answer['pid']}]: {fault}")
    return OK


def manage(name: str | None, layer: str, **request: object) -> Any:
    """Ask or change something in one layer's core; its answer. Refused, with the core's words, where it will not."""
    return query(run_dir(name), "manage", layer=layer, request=request)


def events(name: str | None, follow: bool, as_json: bool) -> int:
    """What happened so far, and with `follow` what happens next."""
    try:
        with Client(run_dir(name)) as client:
            for line in client.stream("events", follow=follow):
                text = msgspec.json.encode(line).decode() if as_json else describe(msgspec.convert(line, Event))
                print(printable(text), flush=True)
    except KeyboardInterrupt:
        pass
    return OK


def execute(name: str | None, command: list[str]) -> int:
    """Run a command on the kernel's end of the cable; its status is ours."""
    with Client(run_dir(name)) as client:
        status, keeper, pidfd = client.request("status"), client.keeper, client.keeper_pidfd()
    if status["wire"]:
        raise UsageError(f"exec: stack '{status['name']}' is on wire '{status['wire']}': there is no kernel's end")
    try:
        sandbox.join(keeper, pidfd)
    except OSError as error:
        raise boot.BootError(f"cannot enter the sandbox of stack '{status['name']}': {error.strerror}") from error
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"launcher.py: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127  # what a shell says of a command that is not there


__all__ = ["NotRunning", "Refused", "down", "events", "execute", "restart", "sabotage", "up"]
