"""Standard streams that are closed, full or cannot show a character, and programs that are not there: one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .peers import KERNEL, PATIENCE_S, ROOT, Stack

FULL = Path("/dev/full")  # full(4): no room on writing


def launched(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "launcher.py"), *arguments], text=True, check=False,
                          timeout=PATIENCE_S, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["--version"], ["completion"]], ids=" ".join)
def test_a_full_standard_output_is_named(arguments, unbuffered) -> None:
    with open(FULL, "w") as full:
        done = launched(*arguments, stdout=full, stderr=subprocess.PIPE, env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (1, "launcher.py: No space left on device: standard output\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_replaced(encoding) -> None:
    done = launched("host", "--help", capture_output=True, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert "TXT, ?" in done.stdout


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2)], ids=["input", "input and output", "all"])
def test_nc_with_closed_streams_ends_as_it_should(stack: Stack, closed) -> None:
    with stack.kernel.udp() as peer:
        done = stack.run("nc", "-u", "-w", 0.2, KERNEL, peer.getsockname()[1], capture_output=False,
                         stderr=subprocess.PIPE, preexec_fn=lambda: [os.close(number) for number in closed])
    assert done.stderr == ""


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (["nosuch.py"], 2, "usernet: can't open file 'nosuch.py': No such file or directory\n"),
    (["/tmp"], 2, "usernet: can't open file '/tmp/__main__.py': No such file or directory\n"),
    (["-m", "nosuch"], 1, "usernet: no module named 'nosuch'\n"),
    (["-m", "nosuch.too"], 1, "usernet: no module named 'nosuch.too'\n"),
])
def test_a_program_that_is_not_there_is_told_in_one_line(stack: Stack, arguments, status, said) -> None:
    done = subprocess.run([sys.executable, "-m", "usernet", *arguments], env=stack.env, cwd=ROOT, capture_output=True,
                          text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
