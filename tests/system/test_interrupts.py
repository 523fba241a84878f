"""Ctrl-C at any moment: no traceback, and the status of an interrupted program."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from .peers import PATIENCE_S, ROOT, Stack

# Ctrl-C while the Python that runs the launcher starts up or imports: a module of the standard library that interrupts.
INTERRUPTS = "import os, sys\nif {condition}:\n    os.kill(os.getpid(), 2)\n"
INTERRUPTED = 130  # as a shell tells it of a program that SIGINT ended

BASE = os.path.realpath(sys.executable)  # the Python that the environment was made with
LAUNCHER = str(ROOT / "launcher.py")
STARTS, START_S = 20, 0.3  # so many of each verb are interrupted, at random moments within this time


def _default() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(module: str, condition: str, command: list[str], home: Path, path: str = os.defpath) -> tuple[int, str]:
    """The outcome of the command if this module of Python's, which it imports first, is one that interrupts."""
    own = Path(tempfile.mkdtemp(dir=home))
    (own / f"{module}.py").write_text(INTERRUPTS.format(condition=condition))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
                          env={"PYTHONPATH": str(own), "TMPDIR": str(home), "PATH": path}, preexec_fn=_default)
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["pathlib", "argparse"], ids=["first import", "later import"])
def test_ctrl_c_while_the_launcher_imports_ends_without_a_traceback(home, module) -> None:
    assert interrupted(module, "True", [sys.executable, LAUNCHER, "list"], home) == (INTERRUPTED, "")


def test_ctrl_c_while_the_second_python_starts_up_is_not_lost(home) -> None:
    """The launcher was called by a Python that lacks what is in .venv."""
    if not (ROOT / ".venv").exists() or subprocess.run(
            [BASE, "-c", "import msgspec, setproctitle"], capture_output=True, check=False).returncode == 0:
        pytest.skip("needs .venv, and a Python that lacks what is in it")
    command = [BASE, LAUNCHER, "list"]
    assert interrupted("sitecustomize", "sys.prefix != sys.base_prefix", command, home) == (INTERRUPTED, "")


def test_ctrl_c_while_python_starts_up_is_not_lost(home) -> None:
    """In Python's own `site`, before the launcher's first line."""
    assert interrupted("sitecustomize", "True", [LAUNCHER, "list"], home) == (INTERRUPTED, "")


def test_ctrl_c_while_python_starts_up_where_env_cannot_block_it(home) -> None:
    """As before coreutils 8.31: it is ignored until Python has started up, and there is no traceback."""
    programs = Path(tempfile.mkdtemp(dir=home))
    (programs / "env").write_text('#!/bin/sh\necho "env: unrecognized option: $1" >&2\nexit 1\n')
    (programs / "env").chmod(0o755)
    path = f"{programs}:{os.defpath}"
    assert interrupted("sitecustomize", "True", [LAUNCHER, "list"], home, path) == (0, "")


IN_A_DESTRUCTOR = """
import os, signal, sys
from cli import list, main

class Closes:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def run(given):
    Closes()
    for _ in range(5000):
        os.stat(".")
        signal.sigtimedwait([signal.SIGUSR1], 0.001)

list.run = run
sys.exit(main.main(["list"]))
"""


def test_ctrl_c_in_a_destructor_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=PATIENCE_S, preexec_fn=_default)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "")


@pytest.mark.parametrize("verb", ["list", "status", "ping -i 0.05 10.0.0.2", "events -f", "top --once", "--help"])
def test_starts_that_are_interrupted_at_random_moments(stack: Stack, verb: str) -> None:
    """As at a terminal: the whole process group is interrupted."""
    moments = random.Random(verb)
    for _ in range(STARTS):
        started = subprocess.Popen([LAUNCHER, *verb.split()], env=stack.env, cwd=stack.home, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0, preexec_fn=_default)
        time.sleep(moments.uniform(0, START_S))  # no condition: it may be at any point
        os.killpg(started.pid, signal.SIGINT)
        _, told = started.communicate(timeout=PATIENCE_S)
        # sh dies of the signal; ping and a verb that was through by then have their own status
        assert started.returncode in (INTERRUPTED, -signal.SIGINT, 0, 1)
        assert not re.search(r"Traceback|Fatal|Error|Exception", told), told
