"""`launcher.py demo`: shows the stack at work, in ten seconds."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cli import stack, status
from cli.main import FAILED, OK, command
from cli.tools.ping import line
from supervisor import boot, sandbox
from supervisor.control import NotRunning, Refused
from supervisor.errors import BootError
from supervisor.options import Options
from supervisor.snapshots import ROOT
from usernet.ping import ping
from usernet.stack import Stack

TEXT = "show the stack at work, in ten seconds"
ECHO_PORT, HTTP_PORT = "5055", "8080"
DOWNLOAD_OCTETS = 30_000_000
STREAM_S = 3.0
KILL_AFTER_S = 1.2
PEER_TIMEOUT_S = 20.0
FOLDER_LENGTH_MAX = 40  # of the path of the temporary directory: unix(7) allows 107 octets for the path of a socket
VICTIM = "udp"


class DemoFailed(Exception):
    """A step of the demo did not work as expected."""


class Stage:
    """The output of the demo: colours on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._act = 0

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours else text

    def act(self, title: str) -> None:
        """Print the heading of a new part."""
        self._act += 1
        print(f"\n{self._paint('1;36', f'{self._act}. {title}')}", flush=True)

    def say(self, text: str) -> None:
        """Print an observation."""
        print("   " + text.replace("\n", "\n   "), flush=True)

    def good(self, text: str) -> None:
        """Print that a step worked."""
        print("   " + self._paint("32", "✓ ") + text, flush=True)

    def bad(self, text: str) -> None:
        """Print that a step failed."""
        print(self._paint("31", "✗ ") + text, flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments."""


def run(given: argparse.Namespace) -> int:
    """Run the demo. Returns 0 only if all steps worked."""
    stage = Stage()
    for variable in ("USERNET_DIR", "USERNET_NAME"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory(prefix="usernet-", dir=_short_folder()) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            try:
                _on_a_tap(stage)
            except sandbox.SandboxError as error:
                stage.say(f"no TAP available: {error}")
                stage.say("so the demo shows two stacks on a virtual wire instead, which needs no kernel feature")
                _on_a_wire(stage)
        except (DemoFailed, BootError, Refused, NotRunning, OSError) as error:
            stage.bad(str(error))
            return FAILED
    print(f"\nAll steps worked. To start a stack yourself: `{command()} up`, then README.md, 'A first program'.")
    return OK


def _short_folder() -> str | None:
    """A directory with room for the paths of sockets if the path of the temporary directory is too long; None: use that
    one."""
    return "/tmp" if len(tempfile.gettempdir()) > FOLDER_LENGTH_MAX and os.access("/tmp", os.W_OK) else None


@contextmanager
def _booted(stage: Stage, options: Options) -> Iterator[dict]:
    """Boot a stack, print how it boots, and take it down at the end in any case."""
    folder = stack.run_dir(options.name)
    started = time.monotonic()
    boot.start_keeper(options, folder)
    elapsed_s = time.monotonic() - started
    try:
        view = status.collect(options.name)
        stage.good(f"stack '{options.name}' is up in {elapsed_s:.2f} s at {view['address']}"
                   + (f", the kernel at {view['kernel_end']}" if view["kernel_end"] else f", on wire {view['wire']}"))
        layers = "  ".join(f"{name} {layer['pid']}" for name, layer in view["layers"].items())
        stage.say(f"each layer is a process: {layers}  (kept by {view['keeper']})")
        yield view
    finally:
        stack.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _on_a_tap(stage: Stage) -> None:
    stage.act("Boot: a TCP/IP stack made of processes, in its own network namespace")
    with _booted(stage, Options(name="demo")) as view, ExitStack() as peers:
        address = view["address"].partition("/")[0]

        def peer(*role: str, inside: bool = False) -> subprocess.Popen:
            process = _peer(role, view["keeper"] if inside else None)
            peers.callback(_end, process)
            return process

        stage.act("The Linux kernel pings the stack: link -> ip -> icmp -> ip -> link, four process borders per ping")
        replies = _lines(peer("kernel-ping", address, "5", inside=True))
        for reply in replies:
            stage.say(reply)
        _expect(stage, len(replies) == 5, f"{len(replies)} of 5 pings answered")

        stage.act("UDP: a kernel program, and another application on the stack, talk to an application on the stack")
        echo = peer("echo", "0.0.0.0", ECHO_PORT)
        _wait_for_line(echo)
        for title, library, target in (("kernel program", "kernel", address), ("application, loopback", "usernet",
                                                                               "127.0.0.1")):
            said = _lines(peer("talk", library, target, ECHO_PORT, "hello", "is anybody there?",
                               inside=library == "kernel"))
            for exchange in said:
                stage.say(f"{title}: {exchange}")
            _expect(stage, len(said) == 2, f"{title}: {len(said)} of 2 answered")

        stage.act(f"kill -9 of a layer ({VICTIM}) in the middle of 200 messages a second")
        _kill_under_traffic(stage, view, peer("stream", address, ECHO_PORT, str(STREAM_S), inside=True))

        stage.act("TCP: Python's own http.server on the stack, and kill -9 of tcp in the middle of a download")
        _kill_under_download(stage, view, peers)

        stage.act(f"What is running now: `{command()} status`")
        after = status.collect("demo")
        stage.say(status.table(after))
        _expect(stage, after["state"] == "up", f"the stack is {after['state']}")


def _kill_under_traffic(stage: Stage, view: dict, traffic: subprocess.Popen) -> None:
    _wait_for_line(traffic)
    time.sleep(KILL_AFTER_S)  # the conversation runs for a while before and after the kill
    folder = stack.run_dir(view["name"])
    old = stack.query(folder, "sabotage", layer=VICTIM, fault="kill")["pid"]
    stage.say(f"killed {VICTIM} [{old}]")
    sent, answered, gap_ms = _lines(traffic)[-1].split()
    new = _restarted(folder, VICTIM)
    stage.say(f"{VICTIM} is process {new['pid']} now; the application kept its socket and noticed nothing")
    _expect(stage, sent == answered and new["restarts"] == 1,
            f"{answered} of {sent} messages answered, the longest pause {gap_ms} ms")


def _restarted(run_dir: Path, layer: str) -> dict:
    """The status of a layer, once it has been started again, or after a while."""
    until = time.monotonic() + PEER_TIMEOUT_S
    while True:
        found: dict = stack.query(run_dir, "status")["layers"][layer]
        if (found["restarts"] and found["state"] == "up") or time.monotonic() > until:
            return found
        time.sleep(0.01)


def _kill_under_download(stage: Stage, view: dict, peers: ExitStack) -> None:
    """A program that knows nothing of usernet serves a file, the kernel's end fetches it, and tcp dies half way."""
    folder, run_dir = Path(peers.enter_context(tempfile.TemporaryDirectory())), stack.run_dir(view["name"])
    address = view["address"].partition("/")[0]
    wanted, got = os.urandom(DOWNLOAD_OCTETS), folder / "got"
    (folder / "file").write_bytes(wanted)
    server = _application(["-m", "http.server", HTTP_PORT, "--bind", address, "--directory", str(folder)])
    peers.callback(_end, server)
    _wait_for_line(server)
    url = f"http://{address}:{HTTP_PORT}/file"
    fetch = ["curl", "-s", "-o", str(got), url] if shutil.which("curl") else [
        sys.executable, "-c", "import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])", url, str(got)]
    fetching = subprocess.Popen(fetch, preexec_fn=lambda: sandbox.join(view["keeper"]))
    peers.callback(_end, fetching)
    while (got.stat().st_size if got.exists() else 0) < DOWNLOAD_OCTETS // 2 and fetching.poll() is None:
        time.sleep(0.005)
    killed = stack.query(run_dir, "sabotage", layer="tcp", fault="kill")["pid"]
    stage.say(f"killed tcp [{killed}] after {got.stat().st_size / 1e6:.0f} of {DOWNLOAD_OCTETS / 1e6:.0f} MB")
    try:
        ended = fetching.wait(PEER_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise DemoFailed("the download did not end") from error
    new = _restarted(run_dir, "tcp")
    stage.say(f"tcp is process {new['pid']} now; server and client kept their connection")
    _expect(stage, ended == 0 and got.read_bytes() == wanted and new["restarts"] == 1,
            f"{Path(fetch[0]).name} has all {DOWNLOAD_OCTETS / 1e6:.0f} MB, each octet as it was sent")


def _on_a_wire(stage: Stage) -> None:
    stage.act("Boot: two TCP/IP stacks made of processes, on one virtual wire")
    with _booted(stage, Options(name="left", wire="demo", address="10.0.0.1/24")), \
            _booted(stage, Options(name="right", wire="demo", address="10.0.0.2/24")), ExitStack() as peers:
        stage.act("'left' pings 'right' through its own socket service")
        answered = 0
        with Stack("left") as left:
            for result in ping(left, "10.0.0.2", 5, 0.1):
                stage.say(line(result))
                answered += result.round_trip_s is not None
        _expect(stage, answered == 5, f"{answered} of 5 pings answered")

        stage.act(f"kill -9 of 'right's {VICTIM} layer in the middle of a UDP conversation")
        os.environ["USERNET_NAME"] = "right"
        echo = _peer(("echo", "0.0.0.0", ECHO_PORT), None)
        peers.callback(_end, echo)
        _wait_for_line(echo)
        os.environ["USERNET_NAME"] = "left"
        said = []
        for words in (("before",), ("after",)):
            talker = _peer(("talk", "usernet", "10.0.0.2", ECHO_PORT, *words), None)
            peers.callback(_end, talker)
            said += _lines(talker)
            stage.say(said[-1] if said else "no answer")
            if words == ("before",):
                killed = stack.query(stack.run_dir("right"), "sabotage", layer=VICTIM, fault="kill")
                stage.say(f"killed {VICTIM} [{killed['pid']}]")
        _expect(stage, len(said) == 2, f"{len(said)} of 2 messages answered")

        stage.act(f"What is running now: `{command()} status`")
        after = status.collect("right")
        stage.say(status.table(after))


def _application(command: list[str]) -> subprocess.Popen:
    """Start a Python program whose sockets are the stack's, without any change to it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "USERNET_NAME": "demo", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", "usernet", *command], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, cwd=Path.cwd(), env=environment)


def _peer(role: tuple[str, ...], sandbox_of: int | None) -> subprocess.Popen:
    """Start one of the demo's programs, in a sandbox if one is given."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if "USERNET_NAME" not in os.environ:
        environment["USERNET_NAME"] = "demo"
    return subprocess.Popen(
        [sys.executable, "-m", "cli.demo_peers", *role], stdout=subprocess.PIPE, text=True, env=environment,
        cwd=Path.cwd(), preexec_fn=(lambda: sandbox.join(sandbox_of)) if sandbox_of else None)


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _wait_for_line(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise DemoFailed("a program of the demo did not start")


def _lines(process: subprocess.Popen) -> list[str]:
    """All lines that a program prints until it ends."""
    try:
        output, _ = process.communicate(timeout=PEER_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise DemoFailed("a program of the demo did not end") from error
    if process.returncode != 0:
        raise DemoFailed(f"a program of the demo failed: {' '.join(map(str, process.args[2:]))}")  # type: ignore[index]
    return output.splitlines()


def _expect(stage: Stage, seen: bool, text: str) -> None:
    if not seen:
        raise DemoFailed(text)
    stage.good(text)
