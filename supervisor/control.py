"""The control socket between command line and keeper: JSON, one object per line, over a Unix stream socket.

A request is {"op": NAME, ...}; the answer is {"ok": ...} or {"error": TEXT}. `events` with `follow` continues with one
event per line. The keeper accepts only connections of the user who owns the stack.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from usernet.pipe.contract import STARVED
from usernet.pipe.run_dir import Untrusted, check, peer

SOCKET_NAME = "control.sock"
LISTEN_BACKLOG = 4096  # the usual net.core.somaxconn: callers of a keeper that is stopped wait here, ended ones too
CROWDED_S, CROWDED_PAUSE_S = 2.0, 0.01  # so long a caller tries again while the backlog is full
CLAIM_S = 3.0  # to wait for the end of a keeper that has the name
LINE_MAX_OCTETS = 1 << 16
ANSWER_TIMEOUT_S = 30.0
CHECK_S, STOPPED_CHECKS = 0.25, 3  # a keeper that is found stopped in this many checks in a row does not answer
DESCRIPTORS_MAX = 16  # in one answer
OUTPUT_MAX_OCTETS = 1 << 23  # a caller with more unread output is disconnected


def printable(text: str) -> str:
    """Text from outside with control characters escaped, so that a terminal does not interpret them; line breaks
    remain."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class NotRunning(Exception):
    """No keeper answers in that run directory."""


class Refused(Exception):
    """The keeper answered with an error, which is the text."""


class Client:
    """One connection to a keeper."""

    def __init__(self, run_dir: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._input = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._readable = select.poll()  # not select(2), which supports descriptors only up to 1023
        self._readable.register(self._socket, select.POLLIN)
        try:
            try:
                self._connect_in(run_dir)
            except (FileNotFoundError, ConnectionRefusedError, Untrusted) as error:
                try:
                    self._reach(abstract_name(run_dir))  # the directory, or its contents, were removed
                except OSError:
                    raise error from None
            self.keeper, uid = peer(self._socket)  # the pid from the kernel, not from the answer
            if uid != os.geteuid():
                raise Untrusted(errno.EPERM, f"the process that answers in {run_dir} belongs to another user (uid "
                                f"{uid})")
        except Untrusted:
            self._socket.close()
            raise
        except OSError as error:
            self._socket.close()
            if error.errno in STARVED or isinstance(error, TimeoutError):
                raise
            raise NotRunning(f"no stack is running in {run_dir}") from error

    def _connect_in(self, run_dir: Path) -> None:
        directory = check(run_dir)
        try:
            self._reach(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        finally:
            os.close(directory)

    def _reach(self, name: str) -> None:
        """Connect. TimeoutError: too many callers wait already, which unix(7) tells at once by EAGAIN."""
        deadline = time.monotonic() + CROWDED_S
        while True:
            try:
                return self._socket.connect(name)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the keeper accepts no callers, and too many wait already; "
                                       "is it stopped?") from None
            time.sleep(CROWDED_PAUSE_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def keeper_pidfd(self) -> int:
        """A pidfd of the keeper. NotRunning: the keeper has ended."""
        try:
            pidfd = os.pidfd_open(self.keeper)
        except ProcessLookupError as error:
            raise NotRunning("the keeper went away") from error
        hung_up = select.poll()
        hung_up.register(self._socket, 0)
        if hung_up.poll(0):
            os.close(pidfd)
            raise NotRunning("the keeper went away")
        return pidfd  # the keeper's end of this connection still exists, so the pid was the keeper's

    def fileno(self) -> int:
        """Readable when the keeper sends something or has ended."""
        return self._socket.fileno()

    def request(self, op: str, **fields: object) -> Any:
        """Send a request and return the value of "ok".

        Refused: the keeper's error. NotRunning. TimeoutError: no answer.
        """
        self._ask(op, fields)
        return self._answer(self._line(self._timeout_s))

    def _ask(self, op: str, fields: dict[str, object]) -> None:
        try:
            self._socket.sendall(msgspec.json.encode({"op": op, **fields}) + b"\n")
        except BrokenPipeError:
            pass  # the keeper has closed the connection, perhaps after sending the reason

    def _line(self, timeout_s: float) -> bytes:
        """The next line; empty at the end. TimeoutError: no line in time, or the keeper is stopped."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._input:
            self._await(deadline, timeout_s)
            try:
                octets = self._socket.recv(LINE_MAX_OCTETS)
            except ConnectionResetError:  # everything before was read
                octets = b""
            if not octets:
                return b""
            self._input += octets
        line, _, self._input = self._input.partition(b"\n")
        return line

    def _await(self, deadline: float, timeout_s: float) -> None:
        """Wait until the keeper sends something. TimeoutError."""
        stopped = 0
        while not self._readable.poll(CHECK_S * 1000):
            stopped = stopped + 1 if is_stopped(self.keeper) else 0
            if stopped >= STOPPED_CHECKS:
                raise TimeoutError(errno.ETIMEDOUT, f"the keeper [{self.keeper}] is stopped and answers nothing: "
                                   f"`kill -CONT {self.keeper}` lets it go on, `down --force` ends the stack")
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"the keeper [{self.keeper}] did not answer within "
                                   f"{timeout_s:.0f} s; `down --force` ends the stack")

    def request_descriptors(self, op: str, **fields: object) -> tuple[Any, list[int]]:
        """The same for a request whose answer contains descriptors, which the caller must close."""
        self._ask(op, fields)
        line, descriptors = b"", list[int]()
        deadline = time.monotonic() + self._timeout_s
        while not line.endswith(b"\n"):
            self._await(deadline, self._timeout_s)
            octets, more, _, _ = socket.recv_fds(self._socket, LINE_MAX_OCTETS, DESCRIPTORS_MAX)
            descriptors += more
            line += octets
            if not octets:
                break
        return self._answer(line), descriptors

    @staticmethod
    def _answer(line: bytes) -> Any:
        if not line:
            raise NotRunning("the keeper went away")
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["ok"]

    def stream(self, op: str, **fields: object) -> Iterator[Any]:
        """Send a request and yield every line until the keeper closes the connection."""
        self._ask(op, fields)
        while line := self._line(float("inf")):
            answer = msgspec.json.decode(line)
            if isinstance(answer, dict) and "error" in answer:
                raise Refused(answer["error"])
            yield answer


def is_stopped(pid: int) -> bool:
    """True if a process is stopped by a signal or a tracer (proc(5), stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False


class Caller:
    """The keeper's end of one connection of the command line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.output = bytearray()  # not sent yet
        self.last = False
        self._input = b""

    def fileno(self) -> int:
        """Readable when the caller sends a request."""
        return self.connection.fileno()

    def requests(self) -> list[dict[str, Any]] | None:
        """The received requests; None: the caller closed the connection, or sent something that is not a request."""
        try:
            octets = self.connection.recv(LINE_MAX_OCTETS)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not octets or len(self._input) > LINE_MAX_OCTETS:
            return None
        *lines, self._input = (self._input + octets).split(b"\n")
        found = []
        for line in lines:
            try:
                request = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, RecursionError):
                self.refuse("a request is one JSON object on one line, not nested deep")
                continue
            found.append(request)
        return found

    def answer(self, ok: object) -> bool:
        """Send an answer; False: the caller has ended."""
        return self.send({"ok": ok})

    def answer_with(self, descriptors: Sequence[int], ok: object) -> bool:
        """Send an answer with copies of descriptors."""
        if not self.flush() or self.output:
            return False
        line = msgspec.json.encode({"ok": ok}) + b"\n"
        try:
            self.output += line[socket.send_fds(self.connection, [line], list(descriptors)) :]
        except OSError:
            return False
        return self.flush()

    def refuse(self, text: str) -> bool:
        """Send an error."""
        return self.send({"error": text})

    def send(self, message: object) -> bool:
        """Send one line, or queue it until `flush`. False: the caller has ended or does not read."""
        self.output += msgspec.json.encode(message) + b"\n"
        return self.flush()

    def flush(self) -> bool:
        """Send queued output as far as there is room."""
        try:
            while self.output:
                del self.output[: self.connection.send(self.output)]
        except BlockingIOError:
            return len(self.output) < OUTPUT_MAX_OCTETS
        except OSError:
            return False
        if self.last:
            self.connection.shutdown(socket.SHUT_WR)
        return True

    def finish(self) -> None:
        """Close the connection after all output has been sent."""
        self.last = True
        self.flush()


def abstract_name(run_dir: Path | str) -> str:
    """The name of the keeper's abstract socket (unix(7)), which cannot be removed and ends with the keeper.

    Only one keeper can have it, so it is also a lock. It contains the mount namespace, because file systems differ
    between those.
    """
    return f"\0usernet:{os.geteuid()}:{os.stat('/proc/self/ns/mnt').st_ino}:{os.path.abspath(run_dir)}"


def claim(run_dir: Path) -> socket.socket | None:
    """The abstract listening socket of a new keeper. BlockingIOError: another keeper has it.

    None: a process of another user has taken the name. To be called in the network namespace of the callers.
    """
    front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + CLAIM_S
    while True:
        try:
            front.bind(abstract_name(run_dir))
            front.listen(LISTEN_BACKLOG)
            front.setblocking(False)
            return front
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(abstract_name(run_dir))
                if peer(probe)[1] == os.geteuid():
                    raise BlockingIOError(errno.EAGAIN, f"a keeper has {run_dir}")
                break
            except ConnectionRefusedError:
                pass  # it is just starting or ending, or a process that does not listen
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    front.close()
    return None


def claimed() -> Iterator[Path]:
    """The run directories of this user's keepers, whether these directories still exist or not (proc(5),
    /proc/net/unix)."""
    prefix = f"@{abstract_name('/')[1:-1]}"
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        name = line.rpartition(" ")[2]
        if name.startswith(prefix):
            yield Path(name.removeprefix(prefix))


def listen(run_dir: Path) -> socket.socket:
    """The listening socket of a keeper.

    It gets its name after it listens, so connecting to that name is never refused.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unfinished = run_dir / f"{SOCKET_NAME}.new"
    listener.bind(str(unfinished))
    listener.listen(LISTEN_BACKLOG)
    unfinished.rename(run_dir / SOCKET_NAME)
    listener.setblocking(False)
    return listener


def accept(listener: socket.socket) -> Caller | None:
    """The next caller; None: it is another user's process, or has ended. OSError of STARVED: it has to wait."""
    try:
        connection, _ = listener.accept()
    except OSError as error:
        if error.errno in STARVED:
            raise
        return None
    if peer(connection)[1] != os.geteuid():
        connection.close()
        return None
    return Caller(connection)
