"""Ctrl-C at any moment: no traceback, and the status of an interrupted program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .peers import PATIENCE_S, ROOT

# Ctrl-C while the Python that runs the launcher starts up or imports: a module of the standard library that interrupts.
INTERRUPTS = "import os, sys\nif {condition}:\n    os.kill(os.getpid(), 2)\n"


BASE = os.path.realpath(sys.executable)  # the Python that the environment was made with


@pytest.mark.parametrize(("module", "python", "condition"), [
    ("pathlib", sys.executable, "True"),  # the first that launcher.py imports
    ("argparse", sys.executable, "True"),
    ("sitecustomize", BASE, "sys.prefix != sys.base_prefix"),  # before the launcher's first line, in .venv
], ids=["first import", "later import", "second Python"])
def test_ctrl_c_while_python_imports_ends_without_a_traceback(home, module, python, condition) -> None:
    own = Path(tempfile.mkdtemp(dir=home))
    (own / f"{module}.py").write_text(INTERRUPTS.format(condition=condition))
    if python == BASE and (not (ROOT / ".venv").exists() or subprocess.run(
            [python, "-c", "import msgspec, setproctitle"], capture_output=True, check=False).returncode == 0):
        pytest.skip("needs .venv, and a Python that lacks what is in it")
    done = subprocess.run([python, str(ROOT / "launcher.py"), "list"], capture_output=True, text=True, check=False,
                          timeout=PATIENCE_S, env={"PYTHONPATH": str(own), "TMPDIR": str(home)},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.returncode, done.stderr) == (0 if module == "sitecustomize" else -signal.SIGINT, "")
