"""The demonstration, which is what a newcomer runs first, whatever the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .peers import ROOT

ENDS_WITHIN_S = 120  # it takes ten seconds on an idle machine
SURROUNDINGS = {
    "plain": {},
    "another stack's name": {"USERNET_NAME": "another"},
    "a long TMPDIR": {"TMPDIR": "{home}/" + "long" * 25},
    "ASCII": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_demonstration_works(home: Path, tap: None, surroundings: dict[str, str]) -> None:
    own = {name: value.format(home=home) for name, value in surroundings.items()}
    Path(own.get("TMPDIR", home)).mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, str(ROOT / "launcher.py"), "demo"], env={"PATH": "/usr/bin:/bin"} | own,
                          text=True, capture_output=True, errors="replace", check=False, timeout=ENDS_WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All steps worked" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
