"""The keeper's part in a virtual wire: this stack's port, and that there is a switch.

The switch belongs to the wire, not to the stack whose keeper happened to start it: it is in a session of its own and
ends by itself, after the last stack. Every keeper on the wire watches it, as it watches its layers, and kills it where
it hangs. When it dies they all try for the flock on the wire's lock file; who gets it hands it on to the next switch,
the others find that one.
"""

from __future__ import annotations

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
from typing import NoReturn

from setproctitle import setproctitle

from bus.runtime.peers import listener_pid
from bus.wire import SWITCH_LOCK, SWITCH_SOCKET, port_name
from supervisor import landlock, lockdown
from supervisor.layer_process import sample, used_s
from supervisor.policy import Watch
from supervisor.resources import LISTEN_BACKLOG
from switch import process as switch

PORT_NUMBER_BITS = 48
START_PAUSE_S = 1.0  # the least time between two switches that this stack starts: one may fail at once


class Wire:
    """One stack's hold on the wire in `directory`. `report` is told when its switch comes and goes.

    `show` lets link reach the switch's inbox, whenever that is a new one.
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
        self._cores = os.sched_getaffinity(0)  # as the stack was started with; the switch is not this stack's
        self._switch = 0  # its pid; 0: none is known
        self._switch_fd = -1
        self._found = 0.0  # when it was
        self._watch = Watch()
        self._next_start = 0.0
        self.listener, self.inbox = open_port(self._directory)

    def tend(self, now: float) -> None:
        """To be called often: see that there is a switch, and that it lives."""
        if self._switch:
            self._look_after(now)
            return
        if now >= self._next_start and (lock_fd := self._try_lock()) is not None:
            self._next_start = now + START_PAUSE_S
            self._start_switch(lock_fd)
            os.close(lock_fd)
        self._find_switch()

    def _look_after(self, now: float) -> None:
        told = switch.read_beat(self._directory)
        if not told:
            return  # it has not turned its loop yet
        beat = max(told, self._found)
        used = used_s(self._switch)
        if self._watch.suspicious(now, beat, used):
            found = sample(self._switch)
            if found is not None and self._watch.hung(now, found, used):
                self._report(f"switch [{self._switch}] of '{self._name}' hung: no sign of life for "
                             f"{(now - beat) * 1000:.0f} ms (state {found.state})")
                self._found = now  # time to be dead in
                try:
                    signal.pidfd_send_signal(self._switch_fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # another keeper did it

    def leave(self) -> None:
        """Give the port back; the switch goes when this process does, if it was the last."""
        self.inbox.unlink(missing_ok=True)

    def status(self) -> dict:
        """For `status`."""
        return {"pid": self._switch or None, "counters": switch.read_counters(self._directory)}

    def _try_lock(self) -> int | None:
        try:
            descriptor = os.open(self._directory / SWITCH_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # somebody removed the wire under our feet: nobody will join it any more
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(self._directory / SWITCH_LOCK)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # there is a switch, or one is just removing the lock at its end: look again at the next tick
        os.close(descriptor)
        return None

    def _find_switch(self) -> None:
        pid = listener_pid(self._directory / SWITCH_SOCKET, os.geteuid())
        try:
            self._switch_fd = os.pidfd_open(pid)  # no process has pid 0
        except OSError:
            return  # not listening yet
        try:
            self._show(self._directory / SWITCH_SOCKET)
        except FileNotFoundError:
            os.close(self._switch_fd)
            return  # it left meanwhile
        self._switch = pid
        self._found = time.monotonic()
        self._watch = Watch()
        self._selector.register(self._switch_fd, selectors.EVENT_READ, self._switch_ended)
        self._report(f"switch [{pid}] of '{self._name}' is there")

    def _switch_ended(self) -> None:
        self._selector.unregister(self._switch_fd)
        os.close(self._switch_fd)
        self._report(f"switch [{self._switch}] of '{self._name}' ended")
        self._switch = 0
        self.tend(time.monotonic())

    def _start_switch(self, lock_fd: int) -> None:
        """Fork it twice, so that it is nobody's child and outlives this stack."""
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    self._be_switch(lock_fd)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def _lock(self) -> lockdown.Lock:
        """Of the file system it needs the wire's directory, which it removes with the last port."""
        folders = {str(self._directory): landlock.READ_DIR | landlock.REMOVE_FILE,
                   str(self._directory.parent.parent): landlock.REMOVE_DIR}
        return lockdown.Lock(kind="switch", root=None, folders=folders, uid=os.geteuid(), clients=True,
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
            process = switch.Process(self._directory, self._pipes)
            if self._locked:
                lockdown.enter(self._lock(), 0)
            process.run()
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)


def open_port(folder: Path) -> tuple[socket.socket, Path]:
    """A socket that listens in the wire's directory, and its path there.

    It gets its name only once it listens: whoever finds it and is refused knows that its process is gone. The switch
    that leaves last may remove the directory, or a name not yet given, at any moment here: then once more.
    """
    number = random.SystemRandom().getrandbits(PORT_NUMBER_BITS)
    path = folder / port_name(number)
    while True:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for part in (folder.parent.parent, folder.parent, folder):
                part.mkdir(mode=0o700, parents=part is folder.parent.parent, exist_ok=True)
            listener.bind(str(path.with_suffix(".new")))
            listener.listen(LISTEN_BACKLOG)
            path.with_suffix(".new").rename(path)
            return listener, path
        except FileNotFoundError:
            listener.close()
