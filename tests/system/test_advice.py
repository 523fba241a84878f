"""Advice of the command line can be typed as it stands, however the command was called."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import unique_name
from .peers import PATIENCE_S, ROOT, Stack


def wrapper(home: Path) -> Path:
    """`usernet` as make writes it, in an environment of its own beside a checkout."""
    text = re.search(r"@printf '(.+?)'", (ROOT / "Makefile").read_text())
    assert text
    made = home / "checkout" / ".venv" / "bin"
    made.mkdir(parents=True, exist_ok=True)
    (made.parent.parent / "launcher.py").unlink(missing_ok=True)
    (made.parent.parent / "launcher.py").symlink_to(ROOT / "launcher.py")
    (made / "usernet").write_text(text[1].replace("$$", "$").replace("\\n", "\n"))
    (made / "usernet").chmod(0o755)
    return made


@pytest.mark.parametrize("verb", [["status"], ["ping", "10.0.0.1"]], ids=" ".join)
@pytest.mark.parametrize(("called", "path", "cwd", "advice"), [
    (".venv/bin/usernet", False, "checkout", "usernet: | .venv/bin/usernet up --detach"),
    ("usernet", True, "/", "usernet: | usernet up --detach"),
    ("./launcher.py", False, ROOT, "launcher.py: | ./launcher.py up --detach"),
], ids=["relative", "on the PATH", "in the checkout"])
def test_the_command_that_starts_a_stack_can_be_typed(home, verb, called, path, cwd, advice) -> None:
    stack, bin_directory = Stack(home, unique_name()), wrapper(home)
    if path:
        stack.env["PATH"] = f"{bin_directory}{os.pathsep}{stack.env['PATH']}"
    done = subprocess.run(["sh", "-c", '"$@"', "sh", called, *verb], cwd=home / cwd, env=stack.env, text=True,
                          capture_output=True, check=False, timeout=PATIENCE_S)
    begin, end = advice.split("|")
    assert done.returncode == 2
    assert done.stderr.startswith(begin)
    assert end in done.stderr
