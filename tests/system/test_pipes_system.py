"""Both kinds of pipes on a real stack, and the library by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import usernet
from usernet.pipe.contract import IMPLEMENTATIONS

from .conftest import unavailable
from .peers import ROOT, STACK, Stack, wait_for

ENDS = 200  # programs that end in the line after `sendto`

ECHO = f"""
import usernet
assert "site-packages" in usernet.__file__, usernet.__file__
with usernet.socket(type=usernet.SOCK_DGRAM) as here, usernet.socket(type=usernet.SOCK_DGRAM) as there:
    here.bind(({STACK!r}, 0)), there.bind(({STACK!r}, 0))
    here.settimeout(10), there.settimeout(10)
    here.sendto(b"through the stack", there.getsockname())
    there.sendto(*there.recvfrom(100))
    print(here.recv(100))
"""

PARTING = """
import os, usernet
for number in range({ends}):
    if os.fork() == 0:
        usernet.socket(type=usernet.SOCK_DGRAM).sendto(b"%d" % number, {address})
        os._exit(0)
    if number % 20 == 19:
        for _ in range(20):
            os.wait()
"""


@pytest.mark.parametrize("library", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("pipes", sorted(IMPLEMENTATIONS))
def test_a_stack_of_either_kind_serves_a_library_of_either_kind(new_stack, pipes: str, library: str) -> None:
    stack = new_stack().up("--pipes", pipes)
    assert stack.status()["pipes"] == pipes
    assert f"pipes {pipes}," in stack.run("status").stdout
    program = ECHO.replace('assert "site-packages" in usernet.__file__, usernet.__file__', "")
    done = subprocess.run([sys.executable, "-c", program], env={**stack.env, "USERNET_PIPES": library},
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("b'through the stack'\n", "")


def test_datagrams_arrive_even_if_the_program_ends_in_the_line_after_sendto(stack: Stack) -> None:
    """Why the library's pipes are direct where nothing else is asked for: through libzmq's thread most are lost."""
    with usernet.Stack(stack.name, stack.run_dir) as here, here.socket(type=usernet.SOCK_DGRAM) as receiver:
        receiver.bind((STACK, 0))
        receiver.settimeout(10)
        program = PARTING.format(ends=ENDS, address=receiver.getsockname())
        subprocess.run([sys.executable, "-c", program], env={**stack.env, "USERNET_PIPES": ""}, timeout=100, check=True)
        assert sorted(int(receiver.recv(10)) for _ in range(ENDS)) == list(range(ENDS))


def test_an_unknown_kind_is_named_with_the_known_ones(stack: Stack) -> None:
    refused = stack.run("up", "--pipes", "carrier-pigeon", status=None)
    assert "--pipes carrier-pigeon: zmq or direct" in refused.stderr
    done = subprocess.run([sys.executable, "-c", "import usernet; usernet.socket(type=usernet.SOCK_DGRAM)"],
                          capture_output=True, text=True, env={**stack.env, "USERNET_PIPES": "tin-cans"}, timeout=60,
                          check=False)
    assert "USERNET_PIPES=tin-cans: zmq or direct" in done.stderr


@pytest.mark.timeout(600)
def test_the_librarys_wheel_is_one_package_and_works_without_the_tree(stack: Stack, tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # a build leaves things behind in the one that it is made from
    shutil.copytree(ROOT / "usernet", tree / "usernet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = tmp_path / "env" / "bin" / "python"
    def run(*command: object) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if "Temporary failure in name resolution" in done.stderr or "No matching distribution" in done.stderr:
            unavailable(f"no package index: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tree)
    (wheel,) = tmp_path.glob("usernet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0].partition("-")[0] for name in archive.namelist()} == {"usernet"}
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
    done = subprocess.run([python, "-c", ECHO], env={**environment, "USERNET_DIR": str(stack.run_dir)},
                          cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("b'through the stack'\n", "")


@pytest.mark.parametrize("pipes", IMPLEMENTATIONS)
def test_all_threads_of_a_layer_are_batch_on_the_core_of_the_stack(new_stack, pipes):
    """docs/decisions/placement.md; also where root starts the stack, so that layers are users of their own."""
    core = min(os.sched_getaffinity(0))
    stack = new_stack().up("--cores", str(core), "--pipes", pipes)

    def threads() -> set[tuple[int, frozenset[int]]]:
        return {(os.sched_getscheduler(int(thread)), frozenset(os.sched_getaffinity(int(thread))))
                for pid in stack.pids().values() for thread in os.listdir(f"/proc/{pid}/task")}

    assert threads() == {(os.SCHED_BATCH, frozenset({core}))}
    os.kill(stack.pids()["udp"], signal.SIGKILL)
    wait_for("udp", lambda: stack.serves(udp=2))
    assert threads() == {(os.SCHED_BATCH, frozenset({core}))}
