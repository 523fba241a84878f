"""Both worlds, each for all tests; the octets that are sent; and what a capture may not have."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import require_program, unavailable

from .worlds import ROOT, WORLDS, World

MEGABYTES = int(os.environ.get("USERNET_INTEROP_MB", "100"))
SUBJECTS = ["kernel", *(["usernet"] if (ROOT / "usernet" / "sockets" / "streams.py").exists() else [])]


@pytest.fixture(scope="session", params=SUBJECTS)
def standing_world(request: pytest.FixtureRequest) -> Iterator[World]:
    if os.geteuid() != 0:
        unavailable("needs root: servers that give up their user, namespaces that are entered")
    made = WORLDS[request.param]()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def world(standing_world: World) -> Iterator[World]:
    """A world in which nothing runs yet."""
    try:
        yield standing_world
    finally:
        standing_world.stop()


class Files:
    """`sent`: what goes there; `received`: where it is to arrive. `directory`: what a server gives and takes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sent, self.received = directory / "data", directory / "received"

    def same(self, received: Path | None = None) -> bool:
        """Whether what arrived is what was sent, to the octet."""
        return _digest(received or self.received) == _digest(self.sent)


@pytest.fixture(scope="session")
def octets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("octets") / "data"
    rng = random.Random(1)
    with path.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(rng.randbytes(1_000_000))
    return path


@pytest.fixture
def files(world: World, octets: Path) -> Iterator[Files]:
    """A directory of the test's own that every user may write to, with the octets in it."""
    directory = world.home / "files"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "data").symlink_to(octets)
    for parent in octets.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        yield Files(directory)
    finally:
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        directory.rmdir()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Where a program is; skips, or fails under CI=true, where it is not."""
    return require_program


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
