"""What must not end the keeper, nor any layer that has no part in it: odd requests, messages, files, and shortages.

Descriptors that run out are in test_descriptors.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import end_all, require_root, unique_name
from .peers import LAYERS, PATIENCE_S, Stack, alive, copy_product, titled, wait_for
from .test_descriptors import callers

NESTED = 990
ORDINARY_USER = 65534
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
BOOT_KILLS, BOOT_STEP_S = 12, 0.04  # a boot takes half a second
POISON = b"\xee poison \xee"
LARGE_FILE_OCTETS = 20 << 20


@pytest.fixture(scope="module")
def enduring(home: Path, tap: None) -> Iterator[Stack]:
    """A stack with --reload in a checkout to be edited. udp dies of POISON, and there is no state directory."""
    checkout = copy_product(home / "checkout-enduring")
    core = checkout / "layers" / "udp" / "core.py"
    text, line = core.read_text(), "            if len(record) < shortest:\n"
    assert text.count(line) == 1
    core.write_text(text.replace(line, f"            if {POISON!r} in record:\n"
                                       f"                raise RuntimeError('poisoned')\n{line}"))
    stack = Stack(home, unique_name(), checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    (home / "no-state").write_text("a file where a directory should be")
    stack.env["XDG_STATE_HOME"] = str(home / "no-state")
    try:
        yield stack.up("--reload")
    finally:
        end_all([stack])


@pytest.fixture(autouse=True)
def the_same_keeper(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test with the shared stack its keeper is the same, every layer serves, and an echo comes back."""
    if "enduring" not in request.fixturenames:
        yield
        return
    stack = request.getfixturevalue("enduring")
    keeper = keeper_of(stack)
    yield
    assert keeper_of(stack) == keeper
    wait_for("all layers", stack.serves)
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        assert app.recv(100) == b"to itself"


def keeper_of(stack: Stack) -> int:
    """Its pid, also while a layer is away."""
    return json.loads(stack.run("status", "--json", status=None).stdout)["keeper"]


def events(stack: Stack, name: str) -> list[str]:
    return [event.get("detail", "") for event in stack.events() if event["event"] == name]


@contextlib.contextmanager
def line_of(pid: int) -> Iterator[socket.socket]:
    """The end of the control line that a layer's process has."""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=getfd(pidfd, int(name))) as found:
                    if found.type == socket.SOCK_SEQPACKET:
                        yield found
                        return
    finally:
        os.close(pidfd)
    raise AssertionError(f"{pid} has no control line")


def getfd(pidfd: int, number: int) -> int:
    """pidfd_getfd(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
    assert found >= 0, os.strerror(ctypes.get_errno())
    return found


def ask(stack: Stack, octets: bytes) -> bytes:
    """What the keeper says to a request of these octets, until it hangs up or a line is complete."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(PATIENCE_S)
        caller.connect(str(stack.run_dir / "control.sock"))
        caller.sendall(octets)
        answer = b""
        while not answer.endswith(b"\n") and (more := caller.recv(1 << 16)):
            answer += more
        return answer


@pytest.mark.parametrize("nested", [
    b"[" * NESTED, b'{"op": ' + b"[" * NESTED + b"]" * NESTED + b"}",
    b'{"op": "status", "x": ' + b'{"a": ' * NESTED + b"1" + b"}" * NESTED + b"}",
    b'{"op": "manage", "layer": "arp", "request": ' + b"[" * NESTED + b"]" * NESTED + b"}",
    b"\xff\xfe", b"[]", b"null", b'{"op": 7}', b'{"op": "restart", "layers": 5}', b'{"op": "capture", "pipes": {}}'])
def test_a_deeply_nested_or_invalid_request_is_answered(enduring, nested):
    answer = json.loads(ask(enduring, nested + b"\n"))
    assert "error" in answer or "ok" in answer


def test_990_connections_and_then_a_death(enduring):
    with contextlib.ExitStack() as closing:
        for caller in callers(enduring, "control", 990):
            closing.enter_context(caller)
        pid = titled_pid(enduring, "udp")
        os.kill(pid, signal.SIGKILL)
        wait_for("another udp", lambda: titled_pid(enduring, "udp") not in (0, pid))


def titled_pid(stack: Stack, what: str) -> int:
    """A process of the stack by its title: the newest. It needs no answer of the keeper's."""
    return max((pid for pid, title in stack.processes().items() if title.endswith(f": {what}")), default=0)


def test_a_poison_record_while_the_state_directory_cannot_be_written(enduring):
    with enduring.kernel.udp() as peer, enduring.bound() as app:
        peer.sendto(POISON, app.getsockname())
        (told,) = wait_for("the event", lambda: events(enduring, "poison"))
        assert "not in a file (Not a directory" in told
        peer.sendto(b"and the next", app.getsockname())
        assert app.recv(100) == b"and the next"


def test_a_layer_cannot_shrink_its_memory(enduring):
    """With the descriptor itself: what its system calls would refuse is in test_rights.py."""
    require_root()
    pid = enduring.pids()["icmp"]
    pidfd = os.pidfd_open(pid)
    try:
        numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")
                   if os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:usernet-icmp")]
        assert numbers
        for memory in [getfd(pidfd, number) for number in numbers]:
            for length in (0, 1 << 40):
                with pytest.raises(PermissionError):
                    os.ftruncate(memory, length)
            os.close(memory)
    finally:
        os.close(pidfd)


ODD = {
    "empty": b"", "no JSON": b"\0" * 1000, "half": b'{"event": "ready"', "no UTF-8": b'{"event": "\xff\xfe"}',
    "nested": b'{"event": "answer", "answer": ' + b'{"a":' * 20000 + b"1" + b"}" * 20000 + b"}",
    "no object": b"[]", "no such event": b'{"event": "no such"}', "a number": b'{"event": 5}',
    "a wrong field": b'{"event": "poison", "record": 5}',
    "no base64": b'{"event": "poison", "record": "!", "kind": -1}',
    "a wrong counter": b'{"event": "loaded", "counters": {"x": 7}}',
    "an odd lock": b'{"event": "loaded", "lock": {"missing": 5}}',
    "an odd notice": b'{"event": "notices", "notices": [{"event": 1}]}',
    "an answer to nothing": b'{"event": "answer", "id": 99999999, "answer": {}}',
    "ready again": b'{"event": "ready"}', "a huge number": b'{"event": "offence", "pid": 1' + b"0" * 400 + b"}",
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_message_on_a_layers_line(enduring, kind):
    require_root()

    def told() -> bool:
        pid = enduring.pids()["icmp"]
        if pid is None:
            return False
        try:
            with line_of(pid) as line:
                line.send(ODD[kind])
        except (OSError, AssertionError):
            return False  # it is being killed for the message before
        return True

    wait_for("icmp", told)
    enduring.run("status", status=None)  # the keeper has heard it, whatever it does to icmp now
    others = {name: number for name, number in enduring.incarnations().items() if name not in ("icmp", "udp")}
    assert others == {name: 1 for name in LAYERS if name not in ("icmp", "udp")}


@contextlib.contextmanager
def in_udp(stack: Stack) -> Iterator[Path]:
    """A place for a source file of udp's, which is removed in the end."""
    path = stack.checkout / "layers" / "udp" / "odd.py"
    try:
        yield path
    finally:
        path.unlink()


def refused(stack: Stack, said: str) -> None:
    """The restart for it was refused, and udp goes on."""
    wait_for("the refusal", lambda: any(said in detail for detail in events(stack, "refused")))


def test_a_fifo_among_the_source_files_with_reload(enduring):
    with in_udp(enduring) as path:
        os.mkfifo(path)
        refused(enduring, "odd.py is not a regular file")


def test_a_source_file_of_20_megabytes(enduring):
    with in_udp(enduring) as path:
        path.write_bytes(b"#" * LARGE_FILE_OCTETS)
        refused(enduring, f"odd.py has {LARGE_FILE_OCTETS} octets")


def test_a_source_file_of_20000_terms(enduring):
    with in_udp(enduring) as path:
        path.write_text("x = 1\ny = " + "+".join(["x"] * 20000) + "\n")
        done = enduring.run("restart", "udp", status=None)
        assert done.returncode == 0 or "does not compile" in done.stderr
    wait_for("udp with the code without it", enduring.serves)


def test_no_process_left_when_a_spare_is_due():
    """RLIMIT_NPROC, which does not hold for root."""
    require_root()
    home = Path(tempfile.mkdtemp(prefix="ue", dir="/tmp"))
    shutil.chown(home, ORDINARY_USER)
    stack = Stack(home, unique_name())
    stack.env |= {"XDG_STATE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    del stack.env["HOME"]
    who = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}

    def limit_processes(pid: int, most: str) -> None:
        code = ("import resource; hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]; "
                f"resource.prlimit({pid}, resource.RLIMIT_NPROC, ({most}, hard))")
        subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S, **who)

    def layers() -> dict:
        return json.loads(stack.run("status", "--json", status=None, **who).stdout)["layers"]

    try:
        stack.run("up", "--detach", "--wire", stack.name, **who)
        keeper = json.loads(stack.run("status", "--json", **who).stdout)["keeper"]
        wait_for("every spare", lambda: len(stack.processes()) >= 2 * len(LAYERS) + 2)
        limit_processes(keeper, "1")
        os.kill(layers()["udp"]["pid"], signal.SIGKILL)  # the spare serves, and another one is due
        said = wait_for("the event", lambda: [
            line for line in stack.run("events", "--json", **who).stdout.splitlines() if '"no process"' in line])
        assert "Resource temporarily unavailable" in said[0]
        assert layers()["udp"]["state"] == "up"
        os.kill(layers()["udp"]["pid"], signal.SIGKILL)  # now there is no spare: it is tried again and again
        wait_for("its end", lambda: layers()["udp"]["state"] == "paused")
        limit_processes(keeper, "hard")
        wait_for("udp", lambda: layers()["udp"]["state"] == "up")
        assert json.loads(stack.run("status", "--json", **who).stdout)["keeper"] == keeper
    finally:
        stack.run("down", status=None, **who)
        for pid in stack.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)  # the switch may be removing its files


def test_a_keeper_that_is_stopped_is_told_and_down_force_ends_it(new_stack):
    stack = new_stack().up()
    os.kill(stack.keeper, signal.SIGSTOP)
    told = stack.run("status", status=None)
    assert told.returncode != 0
    assert "is stopped and answers nothing" in told.stderr
    assert "down --force" in told.stderr
    stack.run("down", "--force")
    stack.check_gone()


def cleanup_of(stack: Stack) -> int:
    return wait_for("the cleanup process", lambda: titled_pid(stack, "cleanup"))


def test_a_cleanup_process_that_is_killed_is_replaced_and_does_its_work(new_stack):
    stack = new_stack().up()
    former = cleanup_of(stack)
    os.kill(former, signal.SIGKILL)
    wait_for("another one", lambda: titled_pid(stack, "cleanup") not in (0, former))
    assert "replaced" in wait_for("the event", lambda: events(stack, "cleanup"))[0]
    os.kill(stack.keeper, signal.SIGKILL)
    stack.check_gone()


def test_a_cleanup_process_that_wakes_late_leaves_a_newer_stack_alone(new_stack):
    stack = new_stack().up()
    keeper, late = stack.keeper, cleanup_of(stack)
    os.kill(late, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    wait_for("the end of the layers", lambda: set(stack.processes()) == {late})
    stack.up()
    before = sorted(path.name for path in stack.run_dir.iterdir())
    os.kill(late, signal.SIGCONT)
    wait_for("its end", lambda: not alive(late))
    assert sorted(path.name for path in stack.run_dir.iterdir()) == before
    assert stack.serves()
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        assert app.recv(100) == b"to itself"


@pytest.mark.parametrize("moment", range(BOOT_KILLS))
def test_a_boot_that_is_killed_leaves_nothing(new_stack, moment):
    """The command and the keeper, at one of several moments; the cleanup process is not the boot."""
    stack = new_stack()
    boot = subprocess.Popen(stack.command("up", "--detach"), env=stack.env, cwd=stack.home,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        boot.wait(moment * BOOT_STEP_S)
    found = [*psutil.Process(boot.pid).children(), psutil.Process(boot.pid)] if boot.poll() is None else []
    for process in found:  # the keeper is the command's child
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    boot.wait()

    def gone() -> bool:
        for pid, title in titled(f"usernet {stack.name}: ").items():
            if title.endswith("keeper"):  # it was up already, or was being forked when the command was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return not stack.processes()

    wait_for("the end of all processes", gone)
    stack.check_gone()
