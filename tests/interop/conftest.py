"""Both worlds, each for all tests; the octets that are sent; and what a capture may not have.

Wireshark's experts judge what passes the cable of the stack in every test (tests/system/expert.py).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import expert
from tests.system.conftest import require_program, unavailable

from .expert import captured
from .worlds import ROOT, WORLDS, World

TRANSFER_S = 200  # for 100 MB and more one way: seconds, but minutes on a busy machine
TEST_S = 2 * TRANSFER_S + 60
HEADERS_OCTETS = 128  # of a frame are captured
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A transfer that does not end is reported by its test, not by pytest."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.fixture
def world(standing_world: World, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world in which nothing runs yet."""
    try:
        if standing_world.name == "usernet":
            begun = expert.Moment.now()
            with captured(standing_world, tmp_path / "headers", HEADERS_OCTETS):
                yield standing_world
            provokes = {kind for mark in request.node.iter_markers("provokes") for kind in mark.args}
            bulk = frozenset({"window full", *provokes})
            ran = expert.Ran(request.node.name, begun, expert.Moment.now(), bulk)
            unprovoked = expert.objections(require_program("tshark"), [tmp_path / "headers"], [ran])
            assert not unprovoked, "the experts object:\n" + "\n".join(unprovoked)
        else:
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
