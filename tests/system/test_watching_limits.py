"""Watching when it goes wrong: another user of the machine, a stack that goes down underneath, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from supervisor.control import SOCKET_NAME, abstract_name

from .conftest import require_root
from .peers import PATIENCE_S, STACK
from .test_replay import traffic

OTHER_USER = 65533


def as_other_user(call: Callable[[], str]) -> str:
    """The result of a function in a process of another user, or the name of its exception."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.write(into, call().encode())
        except BaseException as error:
            os.write(into, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said


def test_another_user_at_the_control_socket_and_at_the_page(stack):
    require_root()
    abstract = abstract_name(stack.run_dir)

    def asked(name: str) -> str:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(PATIENCE_S)
            line.connect(name)
            with contextlib.suppress(BrokenPipeError):
                line.sendall(json.dumps({"op": "capture", "layers": {"link": {"taken": [0]}}}).encode() + b"\n")
            return "answered " + line.recv(1000).decode()

    assert asked(abstract).startswith("answered {")  # its own user may
    assert as_other_user(lambda: asked(str(stack.run_dir / SOCKET_NAME))) == "PermissionError"
    assert as_other_user(lambda: asked(abstract)) in ("answered ", "ConnectionResetError")

    page = stack.popen("web", "--port", "0", stderr=subprocess.PIPE)
    url = page.stdout.readline().split()[1]
    path, _, token = url.partition("?")

    def loaded(what: str) -> str:
        try:
            with urllib.request.urlopen(what, timeout=PATIENCE_S) as answer:
                return str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)

    assert loaded(f"{path}state?{token}") == "200"
    assert as_other_user(lambda: loaded(f"{path}state")) == "403"
    assert as_other_user(lambda: loaded(f"{path}state?token=guessed")) == "403"
    command = as_other_user(lambda: Path(f"/proc/{page.pid}/environ").read_text())
    assert command == "PermissionError"  # nor does it see the token there
    assert token.encode() not in Path(f"/proc/{page.pid}/cmdline").read_bytes()
    page.terminate()
    assert page.wait(PATIENCE_S) == 0


def test_the_stack_goes_down_under_a_recording_and_under_the_other_watchers(new_stack, tmp_path):
    stack = new_stack().up()
    recorder = stack.popen("record", "udp", "-w", tmp_path / "udp.rec", stderr=subprocess.PIPE)
    assert "recording udp" in recorder.stderr.readline()
    counters = stack.popen("counters", "ip", "--watch", "0.2", stderr=subprocess.PIPE)
    tracer = stack.popen("trace", "icmp", stderr=subprocess.PIPE)
    counters.stdout.readline()
    tracer.stderr.readline()
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    stack.run("down")
    for watcher, status, message in ((recorder, 0, "the stack has ended; "), (counters, 2, "; start one with: "),
                                     (tracer, 0, "the stack has ended")):
        _, said = watcher.communicate(timeout=PATIENCE_S)
        assert watcher.returncode == status, said
        (line,) = said.splitlines()
        assert message in line
    assert "all results as recorded" in stack.run("replay", tmp_path / "udp.rec").stdout
    for words in (["why"], ["log"], ["impair", "device", "--loss", "1%"], ["record", "ip"], ["trace", "icmp"],
                  ["counters"], ["capture"]):
        done = stack.run(*words, status=2)
        assert "no stack is running" in done.stderr


def test_a_disk_that_fills_up_while_something_is_recorded(stack, small_disk):
    path = small_disk.path / "link.rec"
    recorder = stack.spawn(small_disk.running(stack.command("record", "link", "-w", path)), stderr=subprocess.PIPE)
    assert "recording link" in recorder.stderr.readline()
    stack.execute("ping", "-c", 100, "-i", 0.01, "-s", 1400, "-W", 10, STACK)
    _, said = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode == 1
    assert said.endswith(f"launcher.py: No space left on device: {path}\n")
    assert not path.exists()  # nobody else has seen the disk
    assert "all results as recorded" in stack.run("replay", small_disk.afterwards / "link.rec").stdout  # what there is
    traffic(stack)  # and the stack has not noticed
