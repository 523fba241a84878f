"""Fixtures of the system tests: stacks that the launcher boots, each in directories and namespaces of its own.

Tests run side by side in several workers; nothing is shared between them but the machine. Where no TAP can be had,
tests are skipped with the reason; under CI=true they fail instead.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgspec
import pytest

from supervisor.events import Event, describe

from . import expert
from .peers import ROOT, Stack


def unavailable(reason: str) -> None:
    """Skip; fail under CI=true, where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true: nothing may be missing)")
    pytest.skip(reason)


def require_program(name: str) -> str:
    """The path of a program that a test drives."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if not found:
        unavailable(f"no {name} here")
    assert found
    return found


def require_root() -> None:
    """For tests that change users, mounts or namespaces."""
    if os.geteuid() != 0:
        unavailable("needs root")


class SmallDisk:
    """A file system of 64 kB that only the commands on it see: each gets a mount namespace of its own."""

    _SCRIPT = 'mount -t tmpfs -o size=64k none "$1" || exit 99; "${@:3}"; status=$?; cp "$1"/* "$2"; exit $status'

    def __init__(self, directory: Path) -> None:
        self.path, self.afterwards = directory / "small", directory / "afterwards"
        self.path.mkdir()
        self.afterwards.mkdir()

    def running(self, command: list[str]) -> list[str]:
        """The command on the disk at `path`; the files that it leaves there come to `afterwards`."""
        return [require_program("unshare"), "--mount", "--propagation", "private", "bash", "-c", self._SCRIPT, "bash",
                str(self.path), str(self.afterwards), *command]


@pytest.fixture
def small_disk(tmp_path: Path) -> SmallDisk:
    """For tests of programs that write files."""
    require_root()
    return SmallDisk(tmp_path)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A short directory (socket paths are limited), which no stack may leave anything in."""
    made = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def tap() -> None:
    """Skips, or fails under CI=true, where no sandbox with a TAP can be had; the reason is the launcher's own."""
    made = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))
    trial = Stack(made, unique_name())
    try:
        tried = trial.run("up", "--detach", status=None)
        if tried.returncode != 0:
            # A launcher that says what else would do has found no TAP; any other failure is its own.
            assert "--wire" in tried.stderr, tried.stderr
            unavailable(f"no TAP: {tried.stderr.strip()}")
    finally:
        trial.end()
        shutil.rmtree(made, ignore_errors=True)


def unique_name() -> str:
    """A name that no other stack on this machine has."""
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture
def new_stack(home: Path, tap: None) -> Iterator[Callable[..., Stack]]:
    """Makes stacks, not yet booted; all are taken down after the test, and looked after."""
    made: list[Stack] = []

    def make(checkout: Path = ROOT) -> Stack:
        made.append(Stack(home, unique_name(), checkout))
        return made[-1]

    yield make
    end_all(made)


@pytest.fixture(scope="module")
def stack(home: Path, tap: None) -> Iterator[Stack]:
    """A booted stack that the module's tests share: they must leave it as they found it."""
    booted = Stack(home, unique_name())
    try:
        yield booted.up()
    finally:
        end_all([booted])


@pytest.fixture(scope="module", autouse=True)
def judged(request: pytest.FixtureRequest) -> Iterator[list[expert.Ran]]:
    """Captures the TAPs of a module of TCP, and has Wireshark's experts judge them at its end."""
    ran: list[expert.Ran] = []
    mark = request.node.get_closest_marker("tcp")
    if mark is None:
        yield ran
        return
    require_program("tcpdump")
    captures = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))
    captures.chmod(0o777)  # tcpdump gives up root
    Stack.captures = captures, mark.kwargs.get("snaplen", 0)
    try:
        yield ran
        unprovoked = expert.objections(require_program("tshark"), sorted(captures.iterdir()), ran)
        assert not unprovoked, "the experts object:\n" + "\n".join(unprovoked)
    finally:
        Stack.captures = None
        shutil.rmtree(captures, ignore_errors=True)


@pytest.fixture(autouse=True)
def noted(request: pytest.FixtureRequest, judged: list[expert.Ran]) -> Iterator[None]:
    """Notes for the experts when a test ran, and what it provokes."""
    begun = expert.Moment.now()
    yield
    ended = expert.Moment.now()
    provokes = {kind for mark in request.node.iter_markers("provokes") for kind in mark.args}
    judged.append(expert.Ran(request.node.name, begun, ended, frozenset(provokes)))


@pytest.fixture
def quiet() -> Iterator[None]:
    """For tests that measure time or take all processors: one of them at a time, in all workers."""
    with open(Path(tempfile.gettempdir()) / f"usernet-tests-quiet-{os.getuid()}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end_all(stacks: list[Stack]) -> None:
    """End every one, then say what went wrong with any."""
    problems = []
    for each in stacks:
        try:
            each.end()
        except Exception as problem:  # the others are to be ended all the same
            problems.append(f"{each.name}: {problem}")
    assert not problems, "\n".join(problems)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a TAP, so that `-m 'not tap'` leaves it out."""
    for item in items:
        if {"tap", "stack", "new_stack"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.tap)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure: what happened in the stacks that were there, which says more than the line that failed."""
    report = yield
    if report.failed:
        for stack in Stack.booted:
            if (stack.run_dir / "control.sock").exists():
                report.sections.append((f"the last events of {stack.name}", last_events(stack)))
    return report


def last_events(stack: Stack, count: int = 60) -> str:
    """So many lines of its log; whatever keeps it from telling, instead of them."""
    try:
        lines = [describe(msgspec.convert(event, Event)) for event in stack.events()]
    except Exception as problem:  # the failure itself is to be seen
        return repr(problem)
    return "\n".join(lines[-count:])
