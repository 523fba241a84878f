"""Layers that die, hang, starve or are replaced, under traffic. The long form of these tests is `make faults`."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.control import Client

from .peers import LAYERS, PATIENCE_S, STACK, Stack, copy_product, received, wait_for

ECHOES = 400
WINDOW = 8  # under way at a time
LOST_MAX = 64  # docs/recovery.md
SILENCE_S = 2.0  # where some may be lost: a datagram that has not come back by then is
HUNG_MAX_MS = 500  # docs/recovery.md
PROBATION_S = 3.2  # a new version that dies earlier is rolled back: 3 s and a tick of the keeper's
ATTEMPTS = 3  # timed promises hold for a machine that has a core to spare; the other workers of the suite may have it


class EchoServer:
    """An application of the stack in a thread of this process. `errors`: what its calls raised."""

    def __init__(self, stack: Stack) -> None:
        self.socket = stack.bound()
        self.address = self.socket.getsockname()
        self.errors: list[OSError] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while (message := self.socket.recvfrom(2048))[0] != b"end":
                self.socket.sendto(*message)
        except OSError as error:
            self.errors.append(error)

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(self, *_: object) -> None:
        with self.socket:
            for _ in range(20):  # to itself, over the stack
                self.socket.sendto(b"end", self.address)
                self._thread.join(1)
                if not self._thread.is_alive():
                    break
        assert not self._thread.is_alive()


def echo(peer: socket.socket, count: int, half_way: Callable[[], object] | None = None,
         silence_s: float = PATIENCE_S) -> int:
    """Send `count` numbered datagrams, a window at a time; how many did not come back."""
    peer.settimeout(silence_s)
    missing: set[bytes] = set()
    for start in range(0, count, WINDOW):
        window = {b"number %d" % number for number in range(start, start + WINDOW)}
        for data in window:
            peer.send(data)
        if half_way and start == count // 2 // WINDOW * WINDOW:
            half_way()
        while window:
            try:
                data = peer.recv(100)
            except TimeoutError:
                missing |= window
                break
            window.discard(data)
            missing.discard(data)  # late, not lost
    return len(missing)


@pytest.mark.parametrize("layer", LAYERS)
def test_sigkill_of_a_layer_under_traffic(stack: Stack, layer: str) -> None:
    before = stack.ask()[layer]
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)
        lost = echo(peer, ECHOES, lambda: os.kill(before["pid"], signal.SIGKILL), SILENCE_S)
        assert server.errors == []
        assert lost <= LOST_MAX
        wait_for("the layer to serve", lambda: stack.serves(**{layer: before["incarnation"] + 1}))
        assert echo(peer, 80) == 0
        assert server.socket.getsockname() == server.address
    died = [event for event in stack.events() if event["event"] == "died" and event["pid"] == before["pid"]]
    assert "SIGKILL" in died[0]["detail"]


def test_a_second_sigkill_right_behind_the_first(stack: Stack) -> None:
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)

        def kill_two() -> None:
            for pid in (stack.pids()["udp"], stack.pids()["sockets"]):
                os.kill(pid, signal.SIGKILL)

        assert echo(peer, ECHOES, kill_two, SILENCE_S) <= LOST_MAX
        assert echo(peer, 80) == 0
        assert server.errors == []


@pytest.mark.parametrize(("layer", "fault"), [
    ("link", "stop"), ("arp", "loop"), ("ip", "loop"), ("icmp", "sleep"), ("udp", "stop"), ("sockets", "loop")])
def test_a_layer_that_hangs_is_replaced_in_time(new_stack, quiet, layer: str, fault: str) -> None:
    """What a loop waited for a processor, because the other workers of this suite had it, does not count."""
    stack = new_stack().up("--cores", "spread")
    gaps_ms = []
    for _ in range(ATTEMPTS):
        hung = stack.ask()[layer]
        with Client(stack.run_dir) as keeper:  # sooner than by the launcher, which ends when a part of it is over
            keeper.request("sabotage", layer=layer, fault=fault)
        starved_s = starved_until_death(hung["pid"])
        wait_for("the replacement", lambda hung=hung: stack.serves(**{layer: hung["incarnation"] + 1}))
        died, served = [event for event in stack.events() if event.get("layer") == layer][-2:]
        assert "hung" in died["detail"]
        gaps_ms.append(served["gap_ms"] - starved_s * 1000)
        if gaps_ms[-1] <= HUNG_MAX_MS:
            break
    assert min(gaps_ms) <= HUNG_MAX_MS, gaps_ms
    assert received(stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout) == 1


def starved_until_death(pid: int) -> float:
    """How long a process was kept waiting for a processor, from now to its end (proc(5), schedstat)."""
    waited_ns: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while True:  # often, because what it waits after the last look does not count
            waited_ns.append(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]))
            assert time.monotonic() < deadline, f"the end of the hung layer: not within {PATIENCE_S} s"
            select.select([], [], [], 0.005)
    return (waited_ns[-1] - waited_ns[0]) / 1e9 if waited_ns else 0.0


def test_an_exception_is_in_the_events_with_its_traceback(stack: Stack) -> None:
    before = stack.ask()["icmp"]
    stack.run("sabotage", "icmp", "raise")
    wait_for("icmp to serve again", lambda: stack.serves(icmp=before["incarnation"] + 1))
    (died,) = [event for event in stack.events() if event["event"] == "died" and event["pid"] == before["pid"]]
    assert "Traceback" in died["detail"]
    assert "Sabotaged" in died["detail"]


def test_a_busy_machine_is_not_taken_for_a_hung_layer(stack: Stack, quiet) -> None:
    before = stack.incarnations()
    burn = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)
        busy = [stack.spawn([sys.executable, "-c", burn]) for _ in range(2 * (os.cpu_count() or 1))]
        while any(child.poll() is None for child in busy):
            assert echo(peer, 40) == 0
        assert server.errors == []
    assert stack.incarnations() == before


def test_a_planned_restart_of_everything_under_traffic_loses_nothing(stack: Stack) -> None:
    before = stack.incarnations()
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)
        for layer in LAYERS:
            assert echo(peer, 160, lambda layer=layer: stack.popen("restart", layer)) == 0, layer
        wait_for("all restarts", lambda: stack.serves(**{name: before[name] + 1 for name in LAYERS}))
        assert echo(peer, 160, lambda: stack.popen("restart", "all")) == 0
        wait_for("the last restarts", lambda: stack.serves(**{name: before[name] + 2 for name in LAYERS}))
        assert echo(peer, 80) == 0
        assert server.errors == []


# -- new code ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(home: Path, new_stack) -> Path:
    """A copy of the product, to be edited."""
    return copy_product(home / f"checkout-{secrets.token_hex(4)}")


def append(path: Path, text: str) -> None:
    """Edit a source file as editors do: the whole file at once."""
    edited = path.with_suffix(".new")
    edited.write_text(path.read_text() + text)
    edited.replace(path)


def restart(stack: Stack, layer: str, status: int = 0) -> subprocess.CompletedProcess:
    """`launcher.py restart LAYER`."""
    return stack.run("restart", layer, status=status)


def test_a_restart_loads_the_code_as_it_is_on_disk(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up()
    log = stack.home / f"{stack.name}-loaded"
    append(checkout / "layers" / "udp" / "core.py",
           f"\nimport os\nwith open({str(log)!r}, 'a') as _log:\n    _log.write(f'{{os.getpid()}} ')\n")
    restart(stack, "ip")
    assert not log.exists()
    restart(stack, "udp")
    assert str(stack.pids()["udp"]) in log.read_text().split()
    wait_for("the end of its probation", lambda: stack.ask()["udp"]["uptime_s"] > PROBATION_S)
    os.kill(stack.pids()["udp"], signal.SIGKILL)  # a crash starts what served last, which is the new code
    wait_for("udp to serve again", lambda: stack.serves(udp=3))
    assert str(stack.pids()["udp"]) in log.read_text().split()


def test_a_restart_also_loads_modules_that_the_bus_shares_with_applications(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up()
    log = stack.home / f"{stack.name}-loaded"
    append(checkout / "usernet" / "pipe" / "frame.py",
           f"\nimport os\nwith open({str(log)!r}, 'a') as _log:\n    _log.write(f'{{os.getpid()}} ')\n")
    stack.run("restart", "all")
    assert set(stack.pids().values()) <= {int(pid) for pid in log.read_text().split()}


@pytest.mark.parametrize(("edit", "said"), [
    ("\nraise RuntimeError('a bad version')\n", "RuntimeError: a bad version"),
    ("\ndef broken(:\n", "does not compile"),
    ("\nimport no_such_module\n", "no_such_module"),
], ids=["raises", "syntax", "import"])
def test_a_bad_version_is_refused_and_the_former_goes_on(new_stack, checkout: Path, edit: str, said: str) -> None:
    stack = new_stack(checkout).up()
    before = stack.pids()
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)
        append(checkout / "layers" / "udp" / "core.py", edit)
        failed: list[subprocess.CompletedProcess] = []
        assert echo(peer, 80, lambda: failed.append(restart(stack, "udp", status=1))) == 0
        assert said in failed[0].stderr
        assert stack.pids() == before
        (refused,) = [event for event in stack.events() if event["event"] == "refused"]
        assert said in refused["detail"]
        assert server.errors == []


def test_a_version_that_dies_at_work_is_rolled_back(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up()
    with EchoServer(stack) as server, stack.kernel.udp() as peer:
        peer.connect(server.address)
        append(checkout / "layers" / "udp" / "core.py", """
def _die(*_):
    raise RuntimeError("a version that dies at work")

Core.receive = _die
""")
        restart(stack, "udp")
        assert echo(peer, 80) == 0
        assert echo(peer, 80) == 0
        assert server.errors == []
    told = [event for event in stack.events() if event.get("layer") == "udp"]
    assert "rolled back" in [event["event"] for event in told]
    assert any("a version that dies at work" in event.get("detail", "") for event in told)


def test_reload_restarts_the_layer_whose_code_changed(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up("--reload")
    append(checkout / "layers" / "icmp" / "core.py", "\n# changed\n")
    wait_for("the restart of icmp", lambda: stack.serves(icmp=2))
    append(checkout / "layers" / "icmp" / "core.py", "\nraise RuntimeError('half an edit')\n")
    wait_for("the refusal", lambda: [event for event in stack.events() if event["event"] == "refused"])
    assert received(stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout) == 1
    assert {name: number for name, number in stack.incarnations().items() if name != "icmp"} == {
        name: 1 for name in LAYERS if name != "icmp"}


def test_reload_takes_what_changes_while_code_is_loaded(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up("--reload")
    append(checkout / "layers" / "icmp" / "core.py", "\nimport time\ntime.sleep(2)\n")  # so that it takes so long
    wait_for("the first change", lambda: [event for event in stack.events() if event["event"] == "changed"])
    append(checkout / "layers" / "icmp" / "core.py", "\n# changed meanwhile\n")
    wait_for("both restarts", lambda: stack.serves(icmp=3))


def test_without_reload_nothing_is_restarted_by_an_edit(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up()
    append(checkout / "layers" / "icmp" / "core.py", "\nraise RuntimeError('half an edit')\n")
    os.kill(stack.pids()["icmp"], signal.SIGKILL)  # what is on disk does not matter to a crash
    wait_for("icmp to serve again", lambda: stack.serves(icmp=2))
    assert received(stack.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK).stdout) == 1
