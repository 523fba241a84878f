"""`record` and `replay`: every layer's core does the same again; changed code shows what it does differently."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime.keyed_random import KeyedRandom
from cli.replay import read
from layers.common.ports import SHARE_NOT, Claim, Ports

from .peers import PATIENCE_S, ROOT, STACK, Stack, copy_product, poisoned_by, wait_for

pytestmark = [pytest.mark.tcp, pytest.mark.provokes("window full")]

CHANGED = """
_receive = Core.receive
Core.receive = lambda self, *arguments: [*_receive(self, *arguments), (9, 9, b"something else")]
"""


@contextlib.contextmanager
def recording(stack: Stack, layer: str, path: Path) -> Iterator[None]:
    recorder = stack.popen("record", layer, "-w", path, stderr=subprocess.PIPE)
    assert "recording" in recorder.stderr.readline()
    yield
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(PATIENCE_S) == 0, recorder.stderr.read()


def traffic(stack: Stack) -> None:
    assert stack.pinged(5, "-i", 0.05) == 5
    with stack.bound() as app, stack.kernel.udp() as peer:
        for size in (0, 5, 1400, 4000):
            peer.sendto(bytes(size), app.getsockname())
            data, sender = app.recvfrom(5000)
            app.sendto(data, sender)
            assert len(peer.recv(5000)) == size
    with stack.kernel.udp() as peer:
        peer.connect((STACK, 9))
        peer.send(b"nobody there")
        with contextlib.suppress(ConnectionRefusedError):
            peer.recv(10)


@pytest.fixture
def recorded(stack: Stack, tmp_path: Path) -> Path:
    """A recording of icmp."""
    path = tmp_path / "icmp.rec"
    with recording(stack, "icmp", path):
        traffic(stack)
    return path


@contextlib.contextmanager
def connected(stack: Stack) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(a socket of the stack, one of the kernel), connected by the kernel."""
    with stack.socket(socket.SOCK_STREAM) as server, stack.kernel.socket(kind=socket.SOCK_STREAM) as far:
        server.bind((STACK, 0))
        server.listen()
        far.settimeout(PATIENCE_S)
        far.connect(server.getsockname())
        near, _ = server.accept()
        with near:
            near.settimeout(PATIENCE_S)
            yield near, far


def send(sender: socket.socket, receiver: socket.socket, octets: int) -> None:
    """Octets of one direction, compared."""
    data, received = random.Random(octets).randbytes(octets), bytearray()
    thread = threading.Thread(target=sender.sendall, args=(data,), daemon=True)
    thread.start()
    while len(received) < octets:
        received += receiver.recv(1 << 16)
    thread.join(PATIENCE_S)
    assert received == data


@pytest.mark.parametrize("layer", ["link", "arp", "ip", "icmp", "udp", "tcp", "sockets"])
def test_a_layers_core_does_the_same_again(stack, tmp_path, layer):
    path = tmp_path / f"{layer}.rec"
    with recording(stack, layer, path):
        traffic(stack)
        with connected(stack) as (near, far):
            send(near, far, 100_000)
            send(far, near, 100_000)
        stack.run("neighbor", "list")
    done = stack.run("replay", path)
    assert f"run 1: {layer}, incarnation " in done.stdout
    assert "all results as recorded" in done.stdout
    calls = int(done.stdout.split(" calls:")[0].split()[-1])
    assert calls >= 3


def test_the_numbers_of_a_recorded_layer_cannot_be_guessed_from_others(stack, tmp_path):
    """They are those of the keyed generator, and its key is only in the recording, which is its owner's alone."""
    path = tmp_path / "udp.rec"
    path.touch(0o644)
    with recording(stack, "udp", path), contextlib.ExitStack() as apps:
        ports = [apps.enter_context(stack.bound()).getsockname()[1] for _ in range(20)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (run,) = read(path)
    drawn = Ports(KeyedRandom(run.start.seed))
    for holder, port in enumerate(ports):
        assert drawn.choose(holder, b"") == port
        drawn.hold(holder, Claim(b"", port, SHARE_NOT))
    assert "all results as recorded" in stack.run("replay", path).stdout


def test_tcp_does_the_same_again_from_the_middle_of_transfers(stack, tmp_path):
    """Octets are in the memory of the application, unread, unsent and unacknowledged when the recording begins."""
    path = tmp_path / "tcp.rec"
    with connected(stack) as (near, far):
        send(near, far, 1 << 20)
        send(far, near, 1 << 20)  # now its octets are in the memory that it shares with tcp
        near.sendall(bytes(200_000))
        far.sendall(bytes(200_000))
        with recording(stack, "tcp", path):
            for end in (far, near):
                left = 200_000
                while left:
                    left -= len(end.recv(min(left, 1 << 16)))
            send(near, far, 300_000)
            send(far, near, 300_000)
            before = stack.ask()["tcp"]
            os.kill(before["pid"], signal.SIGKILL)
            wait_for("tcp", lambda: stack.serves(tcp=before["incarnation"] + 1))
            send(near, far, 300_000)
    done = stack.run("replay", path)
    assert done.stdout.count("all results as recorded") == 2, done.stdout


def test_another_initial_window_makes_a_difference_in_a_recording_of_tcp_which_becomes_a_test(stack, tmp_path):
    path = tmp_path / "tcp.rec"
    with recording(stack, "tcp", path), connected(stack) as (near, far):
        send(near, far, 100_000)
    other = copy_product(tmp_path / "other")
    congestion = other / "layers/tcp/congestion.py"
    text = congestion.read_text()
    assert text.count("INITIAL_SEGMENTS = 10") == 1
    congestion.write_text(text.replace("INITIAL_SEGMENTS = 10", "INITIAL_SEGMENTS = 2"))
    done = stack.run("replay", path, "--diff", other, status=1)
    assert "to ip: TRANSMIT" in done.stdout
    assert "(Pdb) 42" in stack.run("replay", path, "--break-at", 2, input="p call.number + 40\nc\n").stdout

    test = tmp_path / "test_tcp_again.py"
    stack.run("replay", path, "--as-test", test)
    for checkout, status in ((ROOT, 0), (other, 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test]
        ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(checkout)}, text=True,
                             capture_output=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr


def test_each_process_is_a_run(new_stack, tmp_path):
    stack, path = new_stack().up(), tmp_path / "udp.rec"
    with recording(stack, "udp", path):
        traffic(stack)
        os.kill(stack.pids()["udp"], signal.SIGKILL)
        wait_for("udp", lambda: stack.serves(udp=3))
        traffic(stack)
    done = stack.run("replay", path)
    assert "run 1: udp, incarnation 2" in done.stdout
    assert "run 2: udp, incarnation 3" in done.stdout
    assert done.stdout.count("all results as recorded") == 2


def test_changed_code_shows_what_it_does_differently_and_becomes_a_test(stack, tmp_path):
    path = tmp_path / "icmp.rec"
    with recording(stack, "icmp", path):
        traffic(stack)
    other = copy_product(tmp_path / "other")
    core = other / "layers/icmp/core.py"
    core.write_text(core.read_text() + CHANGED)
    done = stack.run("replay", path, "--diff", other, status=1)
    assert "with another result" in done.stdout
    assert "only now: to 9: REPORT_ERROR 736f6d657468696e6720656c7365" in done.stdout

    test = tmp_path / "test_icmp_again.py"
    stack.run("replay", path, "--as-test", test)
    for checkout, status in ((ROOT, 0), (other, 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test]
        ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(checkout)}, text=True,
                             capture_output=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr


def test_in_the_debugger(stack, tmp_path):
    path = tmp_path / "icmp.rec"
    with recording(stack, "icmp", path):
        traffic(stack)
    done = stack.run("replay", path, "--break-at", 2, input="p call.number + 40\nc\n")
    assert "call 2: " in done.stdout
    assert "(Pdb) 42" in done.stdout


def test_the_last_calls_of_a_long_recording(stack, tmp_path):
    path = tmp_path / "link.rec"
    recorder = stack.popen("record", "link", "--ring", "1MB", "-w", path, stderr=subprocess.PIPE)
    assert "recording" in recorder.stderr.readline()
    for _ in range(2):  # 7 MB in all: a recorder that has to wait finds everything in its ring of 8 MiB
        stack.execute("ping", "-q", "-c", 600, "-i", 0, "-f", "-s", 1400, STACK)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(PATIENCE_S) == 0, recorder.stderr.read()
    assert 400_000 < path.stat().st_size < 1_200_000
    done = stack.run("replay", path).stdout
    assert "from a checkpoint: all results as recorded" in done
    assert "at least 1MB" in stack.run("record", "link", "--ring", "3", status=2).stderr


def test_the_last_calls_of_a_long_recording_of_tcp(stack, tmp_path):
    path = tmp_path / "tcp.rec"
    recorder = stack.popen("record", "tcp", "--ring", "1MB", "-w", path, stderr=subprocess.PIPE)
    assert "recording" in recorder.stderr.readline()
    with connected(stack) as (near, far):
        for _ in range(40):
            send(near, far, 40_000)
            send(far, near, 40_000)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(PATIENCE_S) == 0, recorder.stderr.read()
    assert 400_000 < path.stat().st_size < 1_500_000
    done = stack.run("replay", path).stdout
    assert "from a checkpoint: all results as recorded" in done


@pytest.fixture
def crashing(new_stack, home, tmp_path) -> Stack:
    """A stack that records crashes, and whose udp dies of b"poison"."""
    checkout = copy_product(tmp_path / "crashing")
    core = checkout / "layers/udp/core.py"
    text, line = core.read_text(), "            if len(record) < shortest:\n"
    assert text.count(line) == 1
    core.write_text(text.replace(line, f"            if b'poison' in record:\n"
                                       f"                raise RuntimeError('poisoned')\n{line}"))
    stack = new_stack(checkout=checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    stack.env["XDG_STATE_HOME"] = str(tmp_path / "state")
    return stack.up("--record-crashes")


def test_a_crash_leaves_a_recording_whose_replay_shows_the_crash(crashing, tmp_path):
    stack = crashing
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(b"harmless", app.getsockname())
        assert app.recv(100) == b"harmless"
        peer.sendto(b"poison", app.getsockname())
        wait_for("poison", lambda: [event for event in stack.events() if event["event"] == "poison"])
        peer.sendto(b"harmless", app.getsockname())
        assert app.recv(100) == b"harmless"
    recorded = [event["detail"].split(": ")[1] for event in stack.events() if event["event"] == "recorded"]
    assert len(recorded) == 2  # it was set aside after the second death
    for path in recorded:
        assert Path(path).stat().st_mode & 0o777 == 0o600
        done = stack.run("replay", path, status=1)
        assert "the core raised in call " in done.stdout
        assert ": receive 1 PACKET from ip" in done.stdout
        assert "RuntimeError: poisoned" in done.stderr
        assert "all results as recorded" in stack.run("replay", path, "--diff", ROOT).stdout
    debugged = stack.run("replay", recorded[0], "--pdb", status=1, input="p record[-6:]\nq\n").stdout
    assert "b'poison'" in debugged
    test = tmp_path / "test_crash.py"
    stack.run("replay", recorded[0], "--as-test", test)
    for checkout, status in ((ROOT, 0), (stack.checkout, 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test]
        ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(checkout)}, text=True,
                             capture_output=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr


@pytest.mark.provokes("retransmission")
def test_a_crash_of_tcp_leaves_a_recording(new_stack, tmp_path):
    checkout = copy_product(tmp_path / "crashing")
    poisoned_by(checkout, b"poison")
    stack = new_stack(checkout=checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    stack.env["XDG_STATE_HOME"] = str(tmp_path / "state")
    stack.up("--record-crashes")
    with connected(stack) as (near, far):
        send(far, near, 3000)
        far.sendall(b"poison")
        wait_for("the segment to be set aside",
                 lambda: [event for event in stack.events() if event["event"] == "poison"])
    recorded = [event["detail"].split(": ")[1] for event in stack.events() if event["event"] == "recorded"]
    assert len(recorded) == 2  # it was set aside after the second death
    for path in recorded:
        done = stack.run("replay", path, status=1)
        assert "the core raised in call " in done.stdout
        assert "RuntimeError: poisoned" in done.stderr
        assert "all results as recorded" in stack.run("replay", path, "--diff", ROOT).stdout
        debugged = stack.run("replay", path, "--pdb", status=1, input="p bytes(payload)\np engine\nq\n").stdout
        assert "(Pdb) b'poison'" in debugged
        assert "(Pdb) <layers.tcp.engine.Engine object" in debugged
    test = tmp_path / "test_crash_of_tcp.py"
    stack.run("replay", recorded[0], "--as-test", test)
    for code, status in ((ROOT, 0), (checkout, 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test]
        ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(code)}, text=True,
                             capture_output=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr


def test_planned_restarts_and_kills_from_outside_leave_no_recording(new_stack, tmp_path):
    stack = new_stack()
    stack.env["XDG_STATE_HOME"] = str(tmp_path / "state")
    stack.up("--record-crashes")
    os.kill(stack.pids()["udp"], signal.SIGKILL)
    wait_for("udp", lambda: stack.serves(udp=2))
    stack.run("restart", "udp", "tcp")
    os.kill(stack.pids()["tcp"], signal.SIGKILL)
    wait_for("tcp", lambda: stack.serves(tcp=3))
    stack.run("sabotage", "ip", "raise")  # outside of its core
    wait_for("ip", lambda: stack.serves(ip=2))
    (event,) = [event for event in stack.events() if event["event"] == "recorded"]
    assert event["layer"] == "ip"
    assert "all results as recorded" in stack.run("replay", event["detail"].split(": ")[1]).stdout


def test_bad_arguments_of_record(stack, tmp_path):
    assert "no layer 'xx'" in stack.run("record", "xx", status=2).stderr
    refused = stack.run("record", "ip", "--seconds", "-1", status=2).stderr
    assert refused == "launcher.py: record: argument --seconds: '-1': must be a number of seconds, above 0\n"
    before = stack.incarnations()["ip"]
    for path, reason in (("/nowhere/ip.rec", "No such file or directory"), (tmp_path, "Is a directory"),
                         ("/proc/version", "Permission denied")):
        refused = stack.run("record", "ip", "-w", path, status=1).stderr
        assert refused in {f"launcher.py: {text}: {path}\n" for text in (reason, "Input/output error")}
    assert stack.incarnations()["ip"] == before  # it was not restarted in vain
    said = stack.run("record", "ip", "-w", "/dev/full", status=1).stderr.splitlines()
    assert said[-1] == "launcher.py: No space left on device: /dev/full"
    assert stack.incarnations()["ip"] == before


def refused(stack: Stack, *arguments: object) -> str:
    """The one line with which `replay` refuses its arguments."""
    done = stack.run("replay", *arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith("launcher.py: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_files_that_are_no_recording(stack, recorded, tmp_path):
    whole = recorded.read_bytes()
    start = 24 + int.from_bytes(whole[20:24], "little")  # the length of the first entry, and the entry
    for name, octets, reason in (
            ("other", b"something", "not a recording"),
            ("old", b"usernet recording 1\n" + whole[20:], "a recording of another version"),
            ("none", None, "No such file or directory"),
            ("empty", whole[:20], "the recording is empty"), ("begun", whole[:30], "the recording is empty"),
            ("spoilt", whole[:20] + (9).to_bytes(4, "little") + bytes(9), "the recording is damaged: "),
            ("headless", whole[:20] + whole[start:], "the recording is damaged: ")):
        path = tmp_path / f"{name}.rec"
        if octets is not None:
            path.write_bytes(octets)
        assert f"replay: {path}: {reason}" in refused(stack, path)
    assert f"{tmp_path}: Is a directory" in refused(stack, tmp_path)


def test_calls_that_there_are_not_and_code_that_is_none(stack, recorded, tmp_path):
    assert "argument --break-at: '0': must be a whole number, 1 or more" in refused(stack, recorded, "--break-at", 0)
    assert "--break-at 99999: the calls have the numbers 1 to " in refused(stack, recorded, "--break-at", 99999)
    whole = recorded.read_bytes()
    (tmp_path / "begun.rec").write_bytes(whole[: 24 + int.from_bytes(whole[20:24], "little")])
    assert "--break-at 1: there are no calls" in refused(stack, tmp_path / "begun.rec", "--break-at", 1)
    (tmp_path / "half/layers").mkdir(parents=True)
    for directory in ("/nowhere", tmp_path, recorded, tmp_path / "half"):
        assert f"--diff {directory}: not a checkout of usernet" in refused(stack, recorded, "--diff", directory)


def test_a_test_replaces_only_a_test_that_replay_made(stack, recorded, tmp_path):
    for name in ("again.py", "test_again", "test_again.txt"):
        assert f"--as-test {tmp_path / name}: must be a path like" in refused(stack, recorded, "--as-test",
                                                                            tmp_path / name)
    test = tmp_path / "test_again.py"
    assert "cannot be combined" in refused(stack, recorded, "--as-test", test, "--break-at", 1)
    assert "No such file or directory" in stack.run("replay", recorded, "--as-test", "/nowhere/test_again.py",
                                                    status=1).stderr
    assert not test.exists()
    for _ in range(2):
        stack.run("replay", recorded, "--as-test", test)
    assert test.with_suffix(".rec").read_bytes() == recorded.read_bytes()
    test.unlink()
    assert f"{test.with_suffix('.rec')} exists" in refused(stack, recorded, "--as-test", test)
    test.write_text("def test_of_somebody(): ...\n")
    assert f"--as-test {test}: exists, and replay did not make it" in refused(stack, recorded, "--as-test", test)
    assert test.read_text() == "def test_of_somebody(): ...\n"


def test_leaving_the_debugger_is_not_taken_for_a_crash(stack, recorded):
    for script in ("q\n", ""):
        done = stack.run("replay", recorded, "--break-at", 2, input=script, status=1)
        assert "the debugger was left in call 2: " in done.stdout
        assert done.stderr == ""
