"""The keeper's part in a virtual wire: the port of this stack, and the supervision of the switch.

The switch belongs to the wire, not to the stack whose keeper started it. It runs in a session of its own and ends by
itself after the last stack. Every keeper on the wire watches it like a layer, and kills it if it hangs. When it dies,
all keepers try to get the flock on the wire's lock file. The one that gets it passes it on to the next switch; the
others find that switch.

The directory of the wire is one that `usernet.pipe.run_dir.check` has examined, and is used by its descriptor: its name
may be gone, or be another user's by now. A flock(2) on it keeps systemd-tmpfiles(8) away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from setproctitle import setproctitle

from bus.runtime.peers import listener_pid
from bus.wire import SWITCH_COUNTERS, SWITCH_LOCK, SWITCH_SOCKET, port_name
from supervisor import landlock, lockdown
from supervisor.layer_process import sample
from supervisor.policy import Watch
from supervisor.resources import LISTEN_BACKLOG
from switch import process as switch
from usernet.pipe.run_dir import check

PORT_NUMBER_BITS = 48
START_PAUSE_S = 1.0  # minimum time between two switches that this stack starts, because one may fail at once
WITHOUT_SWITCH_S = 2.0  # after which `status` tells it


class Wire:
    """One stack's port on the wire in `directory`. `report` is called when its switch starts and ends.

    `show` links the switch's inbox into link's root directory whenever there is a new one.
    """

    def __init__(self, directory: Path, selector: selectors.BaseSelector, report: Callable[[str], None],
                 pipes: str, show: Callable[[Path], None], locked: bool = True) -> None:
        self._name = directory.name
        self._directory = directory
        self._selector = selector
        self._report = report
        self._show = show
        self._locked = locked
        self._pipes = pipes
        # the affinity of the process that started the stack, because the switch is not part of the stack
        self._cores = os.sched_getaffinity(0)
        self._switch = 0  # its pid; 0: unknown
        self._switch_fd = -1
        self._found = 0.0  # time when it was found
        self._files: list[tuple[int, int] | None] = []  # its files at that time
        self._watch = Watch()
        self._next_start = 0.0
        self._without_since = time.monotonic()  # the switch
        self.listener, self.inbox, self._folder = open_port(self._directory)
        self._here = Path(f"/proc/self/fd/{self._folder}")  # the directory, whatever has its name
        self._lock_folder()

    def tend(self, now: float) -> None:
        """To be called often: start a switch if there is none, and kill one that hangs."""
        if self._switch:
            self._look_after(now)
            return
        if now >= self._next_start and (lock_fd := self._try_lock()) is not None:
            self._next_start = now + START_PAUSE_S
            try:
                self._start_switch(lock_fd)
            finally:
                os.close(lock_fd)
        self._find_switch()

    def _look_after(self, now: float) -> None:
        told = switch.read_beat(self._here)
        if not told:
            return  # it has not finished its first turn yet
        beat = max(told, self._found)
        if self._watch.suspicious(now, beat):
            found = sample(self._switch)
            if found is not None and self._watch.hung(now, found):
                self._report(f"switch [{self._switch}] of '{self._name}' hung: no life sign for "
                             f"{(now - beat) * 1000:.0f} ms (state {found.state})")
                self._found = now  # gives it time to die
                try:
                    signal.pidfd_send_signal(self._switch_fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # another keeper killed it

    def mend(self) -> bool:
        """Notice that files of the wire were removed. True: the port has a new socket, and link must be restarted.

        A switch that other stacks cannot find is killed, and the next one is found by all. OSError: no new socket.
        """
        if self._switch and self._present_files() != self._files:
            self._report(f"files of the switch [{self._switch}] of '{self._name}' were removed: it is replaced")
            self._files = self._present_files()  # reported once
            with contextlib.suppress(ProcessLookupError):  # another keeper killed it
                signal.pidfd_send_signal(self._switch_fd, signal.SIGKILL)
        self._lock_folder()
        if os.path.lexists(self.inbox):
            return False
        again = open_port(self._directory, self.inbox.name)
        os.dup2(again.listener.fileno(), self.listener.fileno(), inheritable=False)
        os.dup2(again.folder, self._folder, inheritable=False)
        again.listener.close()
        os.close(again.folder)
        self._lock_folder()
        return True

    def _lock_folder(self) -> None:
        """Keep systemd-tmpfiles away, which cleans up no directory with a lock on it; next time, if it is at work."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _present_files(self) -> list[tuple[int, int] | None]:
        """What identifies the files of the switch; None: missing. Empty: another directory has the wire's name."""
        if self._is_replaced():
            return []
        found: list[tuple[int, int] | None] = []
        for name in (SWITCH_SOCKET, SWITCH_LOCK, SWITCH_COUNTERS):
            try:
                status = os.stat(self._here / name)
                found.append((status.st_dev, status.st_ino))
            except OSError:
                found.append(None)
        return found

    def _is_replaced(self) -> bool:
        """True if another directory has the wire's name."""
        try:
            return not os.path.samestat(os.stat(self._directory), os.fstat(self._folder))
        except OSError:
            return False

    def show_switch(self) -> None:
        """Let link reach the switch in a new root directory."""
        with contextlib.suppress(FileNotFoundError):  # there is none at the moment
            self._show(self._here / SWITCH_SOCKET)

    def leave(self) -> None:
        """Release the port; the switch ends with its last port."""
        self.inbox.unlink(missing_ok=True)

    def status(self) -> dict[str, Any]:
        """The switch's part of `status`."""
        return {"pid": self._switch or None, "counters": switch.read_counters(self._here)}

    def trouble(self, now: float) -> str:
        """Why no frame passes; empty: there is a switch, or will be in a moment."""
        if self._switch or now - self._without_since < WITHOUT_SWITCH_S:
            return ""
        return f"wire '{self._name}' has no switch: this stack reaches no other"

    def _try_lock(self) -> int | None:
        if self._is_replaced():
            return None  # whoever moved the directory finds nothing new in it
        try:
            descriptor = os.open(SWITCH_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                                 dir_fd=self._folder)
        except OSError:
            return None  # the directory was removed, or something else is in the way: `trouble` tells it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(self._directory / SWITCH_LOCK)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # a switch runs, or one is removing the lock at its end: look again at the next tick
        os.close(descriptor)
        return None

    def _find_switch(self) -> None:
        pid = listener_pid(self._here / SWITCH_SOCKET, os.geteuid())
        try:
            self._switch_fd = os.pidfd_open(pid)  # no process has pid 0
        except OSError:
            return  # not listening yet
        try:
            self._show(self._here / SWITCH_SOCKET)
        except FileNotFoundError:
            os.close(self._switch_fd)
            return  # it has ended meanwhile
        self._switch = pid
        self._files = self._present_files()
        self._found = time.monotonic()
        self._watch = Watch()
        self._selector.register(self._switch_fd, selectors.EVENT_READ, self._switch_ended)
        self._report(f"switch [{pid}] of '{self._name}' is there")

    def _switch_ended(self) -> None:
        self._selector.unregister(self._switch_fd)
        os.close(self._switch_fd)
        self._report(f"switch [{self._switch}] of '{self._name}' ended")
        self._switch, self._without_since = 0, time.monotonic()
        self.tend(time.monotonic())

    def _start_switch(self, lock_fd: int) -> None:
        """Fork it twice, so that it is not a child of this process and outlives this stack."""
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    self._be_switch(lock_fd)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def _lock(self, place: switch.Place) -> lockdown.Lock:
        """The switch's lock: it needs only the wire's directory, which it removes with the last port."""
        folders = {place.folder: landlock.READ_DIR | landlock.REMOVE_FILE} | {
            parent: landlock.REMOVE_DIR for parent, _ in place.above}
        return lockdown.Lock(kind="switch", root=str(self._directory), folders=folders, uid=os.geteuid(), clients=True,
                             threads=self._pipes == "zmq")

    def _be_switch(self, lock_fd: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.closerange(3, lock_fd)
            os.closerange(lock_fd + 1, os.sysconf("SC_OPEN_MAX"))
            os.sched_setaffinity(0, self._cores)
            setproctitle(f"usernet wire {self._name}")
            place, directory = switch.Place(self._directory), self._directory
            if self._locked:
                applied = lockdown.enter(self._lock(place), 0)  # before libzmq has a thread
                directory = Path(applied.root or directory)
            switch.Process(place, directory, self._pipes).run()
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)


class Port(NamedTuple):
    """A port on a wire: the socket that listens, its path, and a descriptor of the directory, which was checked."""

    listener: socket.socket
    path: Path
    folder: int


def open_port(folder: Path, name: str = "") -> Port:
    """A socket that listens in the wire's directory; without a name it is a new port.

    The socket gets its name after it listens, so a refused connection means that its process has ended. The last switch
    may remove the directory, or the temporary name, at any moment; then this is repeated. FileNotFoundError: what is
    above the directory of all stacks is missing. Untrusted: a directory on the way is another user's.
    """
    path = folder / (name or port_name(random.SystemRandom().getrandbits(PORT_NUMBER_BITS)))
    while True:
        folder.parent.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as undo, contextlib.suppress(FileNotFoundError):
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            for part in (folder.parent, folder):
                part.mkdir(mode=0o700, exist_ok=True)
            opened = _open_checked(folder)
            undo.callback(os.close, opened)
            listener.bind(str(path.with_suffix(".new")))
            listener.listen(LISTEN_BACKLOG)
            path.with_suffix(".new").rename(path)
            if os.path.samestat(os.stat(folder), os.fstat(opened)):
                undo.pop_all()
                return Port(listener, path, opened)


def _open_checked(folder: Path) -> int:
    """A descriptor of the directory of a wire, which only this user can change, nor what is above it."""
    os.close(check(folder.parent))
    checked = check(folder)
    try:
        return os.open(f"/proc/self/fd/{checked}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(checked)
