"""Two ends of a cable: one is the kernel's, where foreign programs run; at the other is whose TCP is tried.

`StackWorld`: a stack in its sandbox; programs in Python run over it unmodified, by `python -m usernet`, where no other
network is. `KernelWorld`: the kernel again, in two network namespaces joined by a veth: what fails there is no fault
of the stack. Both give the same: `kernel` starts a program on the kernel's end, `subject` one in Python on the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import usernet
from tests.system.conftest import unique_name
from tests.system.peers import KERNEL, ROOT, STACK, Stack, wait_for

PROGRAMS = Path(__file__).with_name("programs")
READY_S = 30.0


class World:
    """Both ends, and a directory for what programs keep."""

    name: str
    device: str  # the cable's end in the kernel's namespace
    kernel_address, subject_address = KERNEL, STACK

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ui", dir="/tmp"))
        self.home.chmod(0o755)  # for servers that give up root
        self._running: list[subprocess.Popen] = []

    def kernel_command(self, *command: object) -> list[str]:
        """How `command` is run on the kernel's end."""
        raise NotImplementedError

    def subject_command(self, *command: object) -> list[str]:
        """How `python COMMAND` is run over the TCP that is tried."""
        raise NotImplementedError

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def kernel(self, *command: object, **options) -> subprocess.Popen:
        """Start a program on the kernel's end; ended with the world."""
        return self._start(self.kernel_command(*command), **options)

    def subject(self, program: str, *arguments: object, **options) -> subprocess.Popen:
        """Start one of `programs/` on the other end."""
        return self._start(self.subject_command(PROGRAMS / program, *arguments), **options)

    def on_kernel(self, *command: object, timeout_s: float = 60) -> str:
        """Run a program on the kernel's end; what it prints. AssertionError where it fails."""
        return finish(self.kernel(*command), timeout_s)

    def on_subject(self, program: str, *arguments: object, timeout_s: float = 60) -> str:
        """Run one of `programs/` on the other end."""
        return finish(self.subject(program, *arguments), timeout_s)

    def kernel_python(self, program: str, *arguments: object, **options) -> subprocess.Popen:
        """Start one of `programs/` on the kernel's end."""
        return self.kernel(sys.executable, PROGRAMS / program, *arguments, **options)

    def serve(self, start: Callable[..., subprocess.Popen], program: str, *arguments: object) -> subprocess.Popen:
        """Start one of `programs/` by `subject` or `kernel_python`, until it says that it is ready.

        Its errors go to a file: with a pipe that nobody reads it would wait for ever once that is full.
        """
        said = self.home / f"{program}.errors"
        with said.open("w") as errors:
            server = start(program, *arguments, stderr=errors)
        line = server.stdout.readline()
        assert line == "ready\n", line + said.read_text()
        return server

    def wait_for_port(self, port: int) -> None:
        """Until a program on the kernel's end listens there."""
        deadline = time.monotonic() + READY_S
        while f":{port} " not in self.on_kernel("ss", "-Htln"):
            assert time.monotonic() < deadline, f"no socket of the kernel listens on port {port}"
            time.sleep(0.05)

    def _start(self, command: list[str], **options) -> subprocess.Popen:
        options = {"env": self.environment, "cwd": self.home, "text": True, "stdin": subprocess.DEVNULL,
                   "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True} | options
        child = subprocess.Popen(command, **options)
        self._running.append(child)
        return child

    def stop(self) -> None:
        """End what runs."""
        for child in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout:
                child.stdout.close()
        self._running.clear()

    def end(self) -> None:
        """End everything."""
        World.stop(self)
        shutil.rmtree(self.home, ignore_errors=True)


class StackWorld(World):
    """A stack, and the kernel in its sandbox."""

    name, device = "usernet", "tap0"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self.stack = Stack(self.home, unique_name())
        self.stack.up(*flags)

    @property
    def environment(self) -> dict[str, str]:
        return self.stack.env

    def kernel_command(self, *command: object) -> list[str]:
        return self.stack.command("exec", "--", *command)

    def subject_command(self, *command: object) -> list[str]:
        return ["unshare", "-n" if os.geteuid() == 0 else "-rn", sys.executable, "-m", "usernet", *map(str, command)]

    def stop(self) -> None:
        """The stack frees what a killed program had once it has noticed its end, so that its port may be had again."""
        super().stop()
        wait_for("the end of the programs' sockets",
                 lambda: not usernet.Stack(self.stack.name, self.stack.run_dir).list_sockets())

    def end(self) -> None:
        self.stop()
        try:
            self.stack.end()
        finally:
            super().end()


class KernelWorld(World):
    """Two namespaces of the kernel, and a veth."""

    name, device = "kernel", "veth0"

    def __init__(self) -> None:
        super().__init__()
        self._holders = [subprocess.Popen(["unshare", "-n", "sleep", "infinity"]) for _ in range(2)]
        own = os.readlink("/proc/self/ns/net")
        for holder in self._holders:  # until it has left this namespace
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                time.sleep(0.01)
        near, far = self._holders
        self._inside(near, "ip link add veth0 type veth peer name veth1 netns", str(far.pid))
        for holder, device, address in ((near, "veth0", KERNEL), (far, "veth1", STACK)):
            self._inside(holder, f"ip address add {address}/24 dev {device}")
            self._inside(holder, f"ip link set {device} up")
            self._inside(holder, "ip link set lo up")

    def _inside(self, holder: subprocess.Popen, command: str, *more: str) -> None:
        subprocess.run([*self._enter(holder), *command.split(), *more], check=True)

    def _enter(self, holder: subprocess.Popen) -> list[str]:
        return ["nsenter", "-t", str(holder.pid), "-n"]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def kernel_command(self, *command: object) -> list[str]:
        return [*self._enter(self._holders[0]), *map(str, command)]

    def subject_command(self, *command: object) -> list[str]:
        return [*self._enter(self._holders[1]), sys.executable, *map(str, command)]

    def end(self) -> None:
        self.stop()
        for holder in self._holders:
            holder.kill()
            holder.wait()
        super().end()


WORLDS = {world.name: world for world in (KernelWorld, StackWorld)}


def finish(process: subprocess.Popen, timeout_s: float) -> str:
    """What the program printed until its end; AssertionError where it fails or does not end."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{process.args} does not end within {timeout_s} s:\n{output[-2000:]}") from None
    assert process.returncode == 0, f"{process.args}: status {process.returncode}\n{output[-2000:]}"
    return output
