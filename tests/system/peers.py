"""A stack under test, and its peer: the Linux kernel on the other end of the cable.

`Stack` runs the real launcher in directories of its own. What a test asks only in passing (who runs, what happened, a
command on the kernel's end) it asks the keeper and nsenter(1) directly, because each start of the launcher takes 0.1 s
of a processor; what the launcher itself makes of these is in test_launcher.py. `KernelEnd` hands out sockets of the
kernel's end: a helper there makes them and passes their descriptors over, so that a test holds a socket of the stack in
one hand and one of Linux in the other. This file is also the helper: `peers.py DESCRIPTOR`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
STACK, KERNEL, NOBODY = "10.0.0.2", "10.0.0.1", "10.0.0.77"
TAP = "tap0"
ETH_P_ALL = 3
LAYERS = ["link", "arp", "ip", "icmp", "udp", "tcp", "sockets"]
PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine; the suite shares its cores


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """The first true value of `condition`; AssertionError where there is none in time.

    To ask costs the keeper, too: what takes long is asked for less often.
    """
    begun = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begun
        assert waited_s < timeout_s, f"{what}: not within {timeout_s} s"
        select.select([], [], [], min(0.005 + waited_s / 10, 0.05))
    return value


def copy_product(to: Path) -> Path:
    """A checkout of what a stack is made of, to be edited, or for another user; returns `to`."""
    to.mkdir()
    shutil.copy(ROOT / "launcher.py", to)
    for package in ROOT.glob("*/__init__.py"):
        name = package.parent.name
        shutil.copytree(ROOT / name, to / name)
    return to


def poisoned_by(checkout: Path, text: bytes) -> None:
    """Change tcp there: it dies of a segment that contains `text`, on the short path of header prediction and on the
    other."""
    for module, line in (("arrival.py", "    flags, payload = segment.flags, segment.payload\n"),
                         ("prediction.py", "        payload = record[start:]\n")):
        path = checkout / "layers" / "tcp" / module
        code, indent = path.read_text(), line[: len(line) - len(line.lstrip())]
        assert code.count(line) == 1
        path.write_text(code.replace(line, f"{line}{indent}if {text!r} in bytes(payload):\n"
                                           f"{indent}    raise RuntimeError('poisoned')\n"))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def titled(prefix: str) -> dict[int, str]:
    """The processes whose title begins so."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            if title.startswith(prefix) and alive(int(entry.name)):
                found[int(entry.name)] = title
    return found


class Stack:
    """One stack, booted by the launcher. `checkout`: whose launcher; `home`: for its run and state directories."""

    # Where every stack keeps what passes its TAP, if anywhere, and how many octets of a frame (tests/system/expert.py).
    captures: tuple[Path, int] | None = None
    booted: ClassVar[list[Stack]] = []  # those that are not yet ended: a failed test tells what happened in each

    def __init__(self, home: Path, name: str, checkout: Path = ROOT) -> None:
        self.home, self.name, self.checkout = home, name, checkout
        self.run_dir = home / "usernet" / name
        self.env = {key: value for key, value in os.environ.items()
                    if key == "USERNET_PIPES" or not key.startswith("USERNET_")}
        self.env |= {"XDG_RUNTIME_DIR": str(home), "XDG_STATE_HOME": str(home / "state"), "USERNET_NAME": name,
                     "PYTHONPATH": str(ROOT)}
        self._kernel: KernelEnd | None = None
        self._children: list[subprocess.Popen] = []

    # -- the launcher ----------------------------------------------------------------------------------------------

    def command(self, *arguments: object) -> list[str]:
        """The launcher's command line."""
        return [sys.executable, str(self.checkout / "launcher.py"), *map(str, arguments)]

    def run(self, *arguments: object, status: int | None = 0, **options) -> subprocess.CompletedProcess:
        """Run the launcher to its end and check its exit status (None: any)."""
        return self._to_its_end(self.command(*arguments), status, options)

    def _to_its_end(self, command: list[str], status: int | None, options: dict) -> subprocess.CompletedProcess:
        options = {"env": self.env, "cwd": self.home, "text": True, "capture_output": True, "timeout": 60} | options
        done = subprocess.run(command, **options)
        if status is not None:
            assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def popen(self, *arguments: object, **options) -> subprocess.Popen:
        """Start the launcher; ended with the stack."""
        return self.spawn(self.command(*arguments), **options)

    def spawn(self, command: list[str], **options) -> subprocess.Popen:
        """Start any program, with the environment of an application of this stack; ended with the stack."""
        options = {"env": self.env, "cwd": self.home, "text": True, "stdout": subprocess.PIPE,
                   "stderr": subprocess.STDOUT} | options
        child = subprocess.Popen(command, **options)
        self._children.append(child)
        return child

    def application(self, code: str, **options) -> subprocess.Popen:
        """Start a Python program as an application of this stack."""
        return self.spawn([sys.executable, "-c", code], **options)

    def up(self, *flags: object) -> Stack:
        """Boot it."""
        self.run("up", "--detach", *flags)
        if self not in self.booted:  # it may be booted again after `down`
            self.booted.append(self)
        if self.captures is not None and "--wire" not in flags:
            self._capture(*self.captures)
        return self

    def _capture(self, directory: Path, snaplen: int) -> None:
        dump = self.start("tcpdump", "-i", TAP, "-U", "-B", "65536", "-s", snaplen,
                          "-w", directory / f"{self.name}-{len(list(directory.iterdir()))}.pcap", "tcp")
        said = ""
        while "listening on" not in said:
            line = dump.stdout.readline()
            assert line, said
            said += line

    def _there(self, command: tuple[object, ...]) -> list[str]:
        """The command line that runs a command on the kernel's end of the cable: what `launcher.py exec` does."""
        keeper = self.keeper
        user = [] if os.stat(f"/proc/{keeper}/ns/user") == os.stat("/proc/self/ns/user") else [
            "--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(keeper), *user, "--net", "--", *map(str, command)]

    def execute(self, *command: object, status: int | None = 0, **options) -> subprocess.CompletedProcess:
        """Run a command on the kernel's end of the cable to its end, and check its exit status (None: any)."""
        return self._to_its_end(self._there(command), status, options)

    def start(self, *command: object, **options) -> subprocess.Popen:
        """Start a command on the kernel's end of the cable; ended with the stack."""
        return self.spawn(self._there(command), **options)

    def status(self) -> dict:
        """What `status --json` prints."""
        return json.loads(self.run("status", "--json").stdout)

    def _client(self):
        from supervisor.control import Client  # here, as the helper does without

        return Client(self.run_dir)

    @property
    def keeper(self) -> int:
        """The keeper's process."""
        with self._client() as client:
            return client.keeper

    @property
    def mac(self) -> str:
        """The stack's MAC address."""
        with self._client() as client:
            return client.request("status")["mac"]

    def events(self) -> list[dict]:
        """What happened, as `events --json` prints it."""
        with self._client() as client:
            return list(client.stream("events", follow=False))

    def ask(self) -> dict[str, dict]:
        """The layers' status, also while one is away, when `status` fails."""
        with self._client() as client:
            return client.request("status")["layers"]

    def counters(self, layer: str) -> dict[str, int]:
        """A layer's counters."""
        found = self.ask()[layer]
        return found["counters"] | found["bus"]

    def pids(self) -> dict[str, int]:
        """The layers' processes."""
        return {name: layer["pid"] for name, layer in self.ask().items()}

    def incarnations(self) -> dict[str, int]:
        """How often each layer was started."""
        return {name: layer["incarnation"] for name, layer in self.ask().items()}

    def pinged(self, count: int, *options: object) -> int:
        """How many of the first `count` requests of the kernel's ping(8) are answered.

        Without -w it waits for the last answer for two round trips only, whatever -W says, once there was one.
        """
        output = self.execute("ping", "-c", count, "-w", 30, *options, STACK).stdout
        return sum(int(number) <= count for number in set(re.findall(r"icmp_seq=(\d+)", output)))

    def serves(self, **incarnations: int) -> bool:
        """Whether all layers serve, and these have been started so often."""
        layers = self.ask()
        return (all(layer["state"] == "up" for layer in layers.values())
                and all(layers[name]["incarnation"] == number for name, number in incarnations.items()))

    def processes(self) -> dict[int, str]:
        """Every process of it, by the titles."""
        return titled(f"usernet {self.name}: ")

    # -- both ends -------------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> KernelEnd:
        """The kernel's end of the cable."""
        if self._kernel is None:
            self._kernel = KernelEnd(self)
        return self._kernel

    def socket(self, kind: int = socket.SOCK_DGRAM, proto: int = 0, timeout_s: float | None = PATIENCE_S):
        """A socket of the stack, as an application in this process has it."""
        import usernet

        made = usernet.Stack(self.name, self.run_dir).socket(socket.AF_INET, kind, proto)
        made.settimeout(timeout_s)
        return made

    def bound(self, port: int = 0, address: str = STACK):
        """A bound UDP socket of the stack."""
        made = self.socket()
        made.bind((address, port))
        return made

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Take it down; AssertionError where it leaves anything behind. Kills what is left in any case."""
        if self in self.booted:
            self.booted.remove(self)
        try:
            self._end_children()
            if (self.run_dir / "control.sock").exists():
                self._down()
            self.check_gone()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _down(self) -> None:
        from cli import stack  # here, as the helper does without

        stack.stop(self.run_dir)

    def _end_children(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
        for child in self._children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()

    def check_gone(self, within_s: float = PATIENCE_S) -> None:
        """No process, no file."""
        wait_for(f"the end of the processes of {self.name}", lambda: not self.processes(), within_s)
        wait_for(f"the removal of {self.run_dir}", lambda: not self.run_dir.exists(), within_s)


class KernelEnd:
    """Sockets of the kernel on its end of the cable."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._helper = stack.start(sys.executable, __file__, theirs.fileno(), pass_fds=[theirs.fileno()])

    def close(self) -> None:
        """Let the helper go."""
        self._line.close()

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """Any socket."""
        self._line.send(json.dumps([family, kind, proto]).encode())
        _, descriptors, _, _ = socket.recv_fds(self._line, 16, 1)
        assert descriptors, "the helper on the kernel's end has gone"
        self._line.recv(16)
        made = socket.socket(fileno=descriptors[0])
        made.settimeout(PATIENCE_S)
        return made

    def udp(self, port: int = 0, address: str = KERNEL) -> socket.socket:
        """A bound UDP socket."""
        made = self.socket()
        made.bind((address, port))
        return made

    def packet(self, protocol: int = ETH_P_ALL, interface: str = TAP) -> socket.socket:
        """A packet socket: whole frames, to and from the stack."""
        made = self.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made.bind((interface, protocol))
        return made

    def mac(self, interface: str = TAP) -> bytes:
        """The MAC address of the kernel's end."""
        with self.packet() as cable:
            return cable.getsockname()[4]

    def neighbor(self, address: str = STACK) -> str:
        """The kernel's neighbour entry, as ip-neighbour(8) prints it."""
        return self._stack.execute("ip", "neigh", "show", address).stdout.strip()


def frames(cable: socket.socket, timeout_s: float = PATIENCE_S) -> Iterator[bytes]:
    """The frames that the stack sends from now on; ends when none has come for `timeout_s`."""
    cable.settimeout(timeout_s)
    while True:
        try:
            frame, origin = cable.recvfrom(1 << 17)
        except TimeoutError:
            return
        if origin[2] != socket.PACKET_OUTGOING:  # a packet socket sees what its own machine sends, too
            yield frame


def next_frame(cable: socket.socket, wanted: Callable[[bytes], bool], timeout_s: float = PATIENCE_S) -> bytes:
    """The first frame from the stack for which `wanted` holds."""
    deadline = time.monotonic() + timeout_s
    for frame in frames(cable, timeout_s):
        if wanted(frame):
            return frame
        assert time.monotonic() < deadline, "other frames, but not the one that was waited for"
    raise AssertionError("no such frame")


def received(ping_output: str) -> int:
    """How many replies ping(8) counted."""
    found = re.search(r"(\d+) received", ping_output)
    assert found, ping_output
    return int(found[1])


def _help(line: socket.socket) -> None:
    """The helper's life: make the sockets that are asked for, until the test hangs up."""
    while request := line.recv(64):
        with socket.socket(*json.loads(request)) as made:
            socket.send_fds(line, [b"!"], [made.fileno()])
        line.send(b"closed")  # only now is the test's the only one: once it closes that, the port is free


if __name__ == "__main__":
    _help(socket.socket(fileno=int(sys.argv[1])))
