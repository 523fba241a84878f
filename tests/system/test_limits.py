"""Starts that cannot succeed: one line that names the path or the limit, and nothing is left behind."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import require_root, unique_name
from .peers import Stack

OTHER_USER = 65534


def refused(stack: Stack, *flags: object, **options) -> str:
    done = stack.run("up", "--detach", *flags, status=1, **options)
    (line,) = done.stderr.splitlines()
    assert line.startswith("launcher.py: ")
    assert not stack.processes()
    return line


@pytest.fixture
def small(home: Path) -> Iterator[Path]:
    """A place for a file system of its own."""
    require_root()
    place = home / unique_name()
    place.mkdir()
    yield place
    subprocess.run(["umount", str(place)], check=True)


def mounted(home: Path, place: Path, options: str) -> Stack:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    stack = Stack(home, unique_name())
    stack.env["XDG_RUNTIME_DIR"] = str(place)
    return stack


@pytest.mark.parametrize(("limit", "value", "said"), [
    (resource.RLIMIT_NOFILE, 100, "`ulimit -n` is 100; a stack needs 256"),
    (resource.RLIMIT_NPROC, 20, "`ulimit -u` is 20; a stack needs 64"),
    (resource.RLIMIT_AS, 600_000 << 10, "`ulimit -v` is 600000; a stack needs "),
    (resource.RLIMIT_FSIZE, 1000 << 10, "`ulimit -f` is 1000; a stack needs "),
])
def test_a_limit_that_is_too_small_is_named(home, limit: int, value: int, said: str) -> None:
    stack = Stack(home, unique_name())
    assert said in refused(stack, preexec_fn=lambda: resource.setrlimit(limit, (value, value)))
    assert not stack.run_dir.exists()


def test_a_read_only_directory_is_named(home, small) -> None:
    stack = mounted(home, small, "ro")
    assert refused(stack).endswith(f"Read-only file system: {small}/usernet")


@pytest.mark.parametrize("inodes", [2, 3, 4, 8, 20])
def test_a_file_system_without_inodes_is_named_and_left_as_it_was(home, small, inodes: int) -> None:
    stack = mounted(home, small, f"nr_inodes={inodes}")
    line = refused(stack)
    assert "No space left on device (or no inode): " in line
    assert str(small) in line
    assert list(small.iterdir()) == []


def test_a_missing_directory_is_named_and_not_made(home) -> None:
    stack = Stack(home, unique_name())
    missing = home / "nobody" / "made" / "this"
    stack.env["XDG_RUNTIME_DIR"] = str(missing)
    assert refused(stack).endswith(f"No such file or directory: {missing}/usernet")
    assert not (home / "nobody").exists()


def test_another_users_runtime_directory_is_not_used_and_not_written_to(new_stack, home) -> None:
    """`sudo -E` keeps the variable of the user who became root."""
    require_root()
    stack = new_stack()
    theirs, ours = home / "theirs", home / "ours"
    for place in (theirs, ours):
        place.mkdir(mode=0o700)
    os.chown(theirs, OTHER_USER, OTHER_USER)
    stack.env |= {"XDG_RUNTIME_DIR": str(theirs), "TMPDIR": str(ours)}
    stack.run_dir = ours / f"usernet-{os.geteuid()}" / stack.name
    stack.up()
    assert stack.status()["run_dir"] == str(stack.run_dir)
    stack.run("down")
    assert list(theirs.iterdir()) == list(ours.iterdir()) == []
