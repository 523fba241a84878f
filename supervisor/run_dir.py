"""The run directory as its keeper uses it. All accesses are by descriptor, and only files that a stack makes are
removed.

   lock            its flock(2) allows one keeper; its text marks the directory as a stack's
   control.sock    for the command line
   LAYER.sock      a layer's inbox; applications connect to sockets.sock
   LAYER/          that layer's root directory: the inboxes that it sends to, and for sockets those of applications

The mode of the directory (0700) keeps other users out. Files in it have open modes, so that layers, each of which may
be a user of its own, can reach the sockets in their root directories.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path

from bus import topology
from usernet.pipe.run_dir import INBOXES, PARENTS, Untrusted, check

LOCK, MARK = "lock", b"usernet run directory\n"
WAIT_S = 3.0  # for the cleanup process of an earlier stack to finish
CLOCK_TICK_NS = 100_000_000  # more than a tick of any kernel's clock, in which files get their times
ROOT_MODE, INBOXES_MODE, SOCKET_MODE = 0o711, 0o777, 0o666
_SOCKET = re.compile(r"([a-z0-9]+|app-[0-9a-f]{1,16})\.sock(\.new)?")


class Held:
    """A run directory that this process has locked, as long as `lock_fd` is open."""

    def __init__(self, path: Path, descriptor: int, lock_fd: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.lock_fd = lock_fd
        self._names: dict[str, list[str]] = {}  # {layer: the names of its socket}
        self._folders: list[str] = []  # the directory and the root directories
        self._mended_at: tuple[int, ...] = ()  # when these were changed last, at a check that found everything
        self._open_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
        fcntl.flock(self._open_fd, fcntl.LOCK_SH)  # systemd-tmpfiles does not clean up a directory with a lock on it
        self.here = Path(f"/proc/self/fd/{descriptor}")  # a short path that stays valid if the directory is renamed

    def is_gone(self) -> bool:
        """True if the directory was removed, or another one has its name."""
        try:
            return not os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return True

    def mend(self) -> set[str]:
        """Restore removed names of the layers' sockets, and the lock of the directory.

        Returns the layers whose socket or root directory no longer exists.
        """
        changed_at = self._changed_at()
        if changed_at and changed_at == self._mended_at:
            return set()
        self._mend_lock()
        lost = {layer for layer in self._names if not (self.here / layer).is_dir()}
        for layer, names in self._names.items():
            left = [name for name in names if os.path.lexists(self.here / name)]
            if not left:
                lost.add(layer)
                continue
            for name in set(names) - set(left):
                if (self.here / name).parent.is_dir():
                    os.link(self.here / left[0], self.here / name, follow_symlinks=False)
        self._mended_at = () if lost else changed_at
        return lost

    def _changed_at(self) -> tuple[int, ...]:
        """When names were last added to or removed from the directories, in nanoseconds; empty: they may change again
        within the same tick of the clock, or one of them is gone."""
        try:
            found = tuple(os.stat(folder).st_mtime_ns for folder in self._folders)
        except OSError:
            return ()
        return found if time.time_ns() - max(found, default=0) > CLOCK_TICK_NS else ()

    def _mend_lock(self) -> None:
        if not os.path.lexists(self.here / LOCK):
            os.close(self.lock_fd)
            self.lock_fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                                   dir_fd=self.descriptor)
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
            os.pwrite(self.lock_fd, MARK, 0)

    def make_roots(self, users: dict[str, int]) -> None:
        """Make a root directory for each layer when all inboxes exist; `users`: {layer: its user}."""
        self._folders = [str(self.here), *(str(self.here / layer) for layer in users)]
        for layer, user in users.items():
            folder = self.here / layer
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(INBOXES_MODE if layer == INBOXES else ROOT_MODE)
            if layer == INBOXES:
                os.chown(folder, user, -1)  # shows an application which user may connect to its inbox
            (self.here / f"{layer}.sock").chmod(SOCKET_MODE)
            self._names[layer] = [f"{layer}.sock"]
        for layer in users:
            for consumer in topology.outputs(layer, users):
                self.show(self.here / f"{consumer}.sock", layer)
                self._names[consumer].append(f"{layer}/{consumer}.sock")

    def show(self, inbox: Path, layer: str) -> None:
        """Link `inbox` into a layer's root directory, replacing an older one, if it is `near`.

        FileNotFoundError: no inbox.
        """
        name = self.here / layer / inbox.name
        name.unlink(missing_ok=True)
        if self.near(inbox.parent):
            os.link(inbox, name, follow_symlinks=False)

    def near(self, directory: Path) -> bool:
        """True if it is on the same file system, so that it can be linked."""
        return directory.stat().st_dev == os.fstat(self.descriptor).st_dev

    def sweep(self) -> None:
        """Remove the files of earlier stacks, except the lock."""
        _sweep(self.descriptor)
        for layer in {*topology.LAYERS, INBOXES}:
            with contextlib.suppress(OSError):
                folder = os.open(layer, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)
                try:
                    _sweep(folder)
                finally:
                    os.close(folder)
                os.rmdir(layer, dir_fd=self.descriptor)

    def remove(self) -> None:
        """Remove all files of the stack; foreign files stay."""
        self.sweep()
        with contextlib.suppress(OSError):
            os.unlink(LOCK, dir_fd=self.descriptor)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor)
            try:
                found = os.stat(self.path.name, dir_fd=above, follow_symlinks=False)
                if os.path.samestat(found, os.fstat(self.descriptor)):
                    os.rmdir(self.path.name, dir_fd=above)
                    leave_parent(self.path)
            finally:
                os.close(above)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self.descriptor, self.lock_fd, self._open_fd):
            os.close(descriptor)


def take(path: Path, wait_s: float | None = None) -> Held:
    """Create the directory if necessary and lock it.

    BlockingIOError: another keeper has it. Untrusted: not private. OSError.
    """
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    while True:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            held = _try(path)
        except FileNotFoundError:
            held = None  # another process removed it meanwhile: try again
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            held = None
        if held is not None:
            return held
        time.sleep(0.005)


def leave(path: Path) -> None:
    """Remove a run directory that could not be taken, if it is empty."""
    with contextlib.suppress(OSError):
        path.rmdir()
    leave_parent(path)


def leave_parent(path: Path) -> None:
    """Remove the directory of all stacks after the last of them, because `sudo -E` makes it in a user's directory."""
    if path.parent.name in PARENTS:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def clean_up(path: Path) -> None:
    """Remove the files of a killed keeper, unless another keeper has the directory.

    The lock may be held a little longer than the keeper lives: a fork of it has the descriptor until it has closed what
    it does not need, and ends with the keeper, but not in the same moment.
    """
    deadline = time.monotonic() + WAIT_S
    with contextlib.suppress(OSError):
        while True:
            try:
                held = _try(path, make=False)
            except BlockingIOError:
                held = None
            if held is not None:
                held.remove()
                return
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)


def _try(path: Path, make: bool = True) -> Held | None:
    directory = check(path, make)
    lock, locked = -1, False
    try:
        names = set(os.listdir(f"/proc/self/fd/{directory}"))
        if names - {LOCK} and _mark(directory) != MARK:
            raise Untrusted(errno.EPERM, f"{path} contains files that are not a stack's; choose another directory")
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(LOCK, dir_fd=directory)):
            locked = True
            os.pwrite(lock, MARK, 0)
            held = Held(path, directory, lock)
            directory = lock = -1
            return held
        return None
    except OSError:
        if locked:  # there is no room for what marks it as ours
            os.unlink(LOCK, dir_fd=directory)
        raise
    finally:
        for descriptor in (directory, lock):
            if descriptor >= 0:
                os.close(descriptor)


def _mark(directory: int) -> bytes:
    try:
        lock = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        return os.read(lock, len(MARK) + 1)
    finally:
        os.close(lock)


def _sweep(directory: int) -> None:
    """Remove the sockets whose names a stack uses."""
    for name in os.listdir(f"/proc/self/fd/{directory}"):
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if _SOCKET.fullmatch(name) and (stat.S_ISSOCK(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                os.unlink(name, dir_fd=directory)
