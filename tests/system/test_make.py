"""`make`, as far as it can be asked without installing anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import require_program
from .peers import PATIENCE_S, ROOT

AGAIN = "rm -rf .venv"


def installed(checkout: Path) -> Path:
    """What `make demo` leaves in a checkout, as far as it looks at that later."""
    checkout.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True)
    (packages,) = (checkout / ".venv" / "lib").glob("python*/site-packages")
    (packages / "usernet.pth").write_text(f"{checkout}\n")
    (checkout / ".venv" / ".runtime").touch()
    return checkout


def would_do(checkout: Path) -> str:
    done = subprocess.run([require_program("make"), "-n", "demo"], cwd=checkout, capture_output=True, text=True,
                          check=True, timeout=PATIENCE_S)
    return done.stdout


@pytest.mark.parametrize("how", ["moved", "copied", "without its library", "without Python"])
def test_an_environment_that_no_longer_works_is_made_again(tmp_path, how) -> None:
    first, second = installed(tmp_path / "first"), tmp_path / "second"
    assert AGAIN not in would_do(first)
    if how == "moved":
        first.rename(second)
    else:
        shutil.copytree(first, second, symlinks=True)
    if how == "without its library":
        next(second.glob(".venv/lib/python*/site-packages/usernet.pth")).unlink()
    if how == "without Python":
        for python in second.glob(".venv/bin/python*"):
            python.unlink()
    assert AGAIN in would_do(second)


def test_an_environment_that_is_a_link_stays(tmp_path) -> None:
    first, second = installed(tmp_path / "first"), tmp_path / "second"
    shutil.copytree(first, second, ignore=shutil.ignore_patterns(".venv"))
    (second / ".venv").symlink_to(first / ".venv")
    assert AGAIN not in would_do(second)
