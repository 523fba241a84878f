"""A stack in a sandbox of its own, with its load. Whatever happens, nothing is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.control import Client, NotRunning
from tests.faults import extra, schedule
from tests.faults.flows import COUNT, Book, Switchboard
from tests.faults.load import FRESH_NETWORK

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("link", "arp", "ip", "icmp", "udp", "tcp", "sockets")
FLOWS = ("ping", "kernel-to-app", "app-to-kernel", "fresh", "churn", "large-in", "large-out", "group-in", "group-out",
         "query", "narrow", "paths")
WINDOW = 200  # for tests: datagrams of each steady flow that may be under way
UNDER_WAY_S = 5.0
STEADY_FLOWS = FLOWS[:3]
ROLES = ("echo", "kernel", "client", "churn", "router", "far", "member")
INSIDE = ("kernel", "router", "far")  # on the kernel's end of the cable
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x00020000, 1 << 14, 1 << 18, 2  # unshare(2), mount(2), umount(2)
_libc = ctypes.CDLL(None, use_errno=True)
ADDRESS, PREFIX = "10.0.0.2", 16


class Lab:
    """`with Lab() as lab:` boots a stack. `checkout`: the code that it runs, where not this one."""

    def __init__(self, checkout: Path = ROOT, options: tuple[str, ...] = ()) -> None:
        self.checkout = checkout
        self._options = options
        self.folder = Path(tempfile.mkdtemp(prefix="uf-"))
        self.name = f"f{secrets.token_hex(3)}"
        self.run_dir = self.folder / "usernet" / self.name
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder), "PYTHONPATH": str(checkout),
                            "XDG_STATE_HOME": str(self.folder / "state"), "USERNET_NAME": self.name,
                            "PYTHONUNBUFFERED": "1"}
        self.environment.pop("USERNET_DIR", None)
        self.processes: list[subprocess.Popen] = []
        self._client: Client | None = None

    def __enter__(self) -> Lab:
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.launcher("down", check=False, timeout=120)
        shutil.rmtree(self.folder, ignore_errors=True)

    def launcher(self, *arguments: str, check: bool = True, timeout: float = 30) -> str:
        """Run launcher.py; returns what it printed."""
        verb, *rest = arguments
        done = subprocess.run([sys.executable, str(self.checkout / "launcher.py"), verb, "--name", self.name, *rest],
                              env=self.environment, cwd=self.checkout, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"launcher.py {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    @contextlib.contextmanager
    def without_space(self) -> Iterator[None]:
        """While no file can be made where the stack makes files: not possible here, see SmallLab."""
        yield

    def up(self) -> None:
        """Boot it, and let all of FRESH_NETWORK be the kernel's end's."""
        self.launcher("up", "--detach", "--address", f"{ADDRESS}/{PREFIX}", *self._options)
        self.launcher("exec", "--", "ip", "route", "add", "local", FRESH_NETWORK, "dev", "lo")
        self.launcher("route", "add", extra.FAR_NETWORK, "via", extra.KERNEL_END)

    def lead_far(self, pid: int) -> None:
        """Have the kernel's end route to the network namespace of that process, over a link of a smaller MTU."""
        there = f"nsenter -t {pid} -n ip"
        self.launcher("exec", "--", "sh", "-ec", f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            ip link add far0 mtu {extra.FAR_MTU} type veth peer name far1 netns {pid}
            ip address add {extra.ROUTER}/30 dev far0
            ip link set far0 up
            ip route add {extra.FAR_NETWORK} via {extra.FAR}
            {there} link set lo up
            {there} link set far1 mtu {extra.FAR_MTU} up
            {there} address add {extra.FAR}/30 dev far1
            {there} route add local {extra.FRESH_FAR_NETWORK} dev lo
            {there} route add default via {extra.ROUTER}""")

    def down(self) -> None:
        """Stop it in order."""
        if self._client:
            self._client.close()
            self._client = None
        self.launcher("down")

    def ask(self, op: str, **fields: object) -> Any:
        """One request to the keeper, over one connection that is kept."""
        if self._client is None:
            self._client = Client(self.run_dir)
        try:
            return self._client.request(op, **fields)
        except NotRunning:
            self._client = None
            raise

    def status(self) -> dict:
        """As `status --json`, without what psutil adds."""
        return self.ask("status")

    def start(self, module: str, *arguments: str, inside: bool = False, apart: bool = False,
              pipe: bool = False, name: str = "") -> subprocess.Popen:
        """Run `python -m MODULE` as an application, or on the kernel's end, or in a network namespace made there.

        `name`: as an application of the stack with this name.
        """
        command = [*(("unshare", "-n") if apart else ()), sys.executable, "-m", module, *arguments]
        if inside:
            command = [sys.executable, str(self.checkout / "launcher.py"), "exec", "--name", self.name, "--", *command]
        environment = {**self.environment, "USERNET_NAME": name or self.name}
        process = subprocess.Popen(command, env=environment, cwd=self.checkout, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if pipe else None)
        self.processes.append(process)
        return process


class SmallLab(Lab):
    """A lab whose run and state directories are small file systems, which it can fill; for root.

    It enters a mount namespace of its own with its first mount, together with all that it starts.
    """

    def __enter__(self) -> SmallLab:
        self._small = [self.folder / "usernet", self.folder / "state"]
        if _libc.unshare(CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for folder in self._small:
            folder.mkdir(mode=0o700)
            if _libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"mode=0700,size=1m,nr_inodes=100") != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for folder in self._small:
            _libc.umount2(bytes(folder), MNT_DETACH)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def without_space(self) -> Iterator[None]:
        """ENOSPC: neither an octet nor a name is free."""
        made = [folder / f"filler-{number}" for folder in self._small for number in range(200)]
        try:
            for path in made:
                with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
                    while file.write(bytes(1 << 12)):
                        pass
            for folder in self._small:
                if not os.statvfs(folder).f_ffree == os.statvfs(folder).f_bfree == 0:
                    raise RuntimeError(f"{folder} is not full")
            yield
        finally:
            for path in made:
                path.unlink(missing_ok=True)


class Load:
    """The load of datagrams: the processes of a lab, their books and their switchboard."""

    flows: tuple[str, ...] = FLOWS
    applications: tuple[str, ...] = ("echo", "client", "churn", "member")  # of the stack
    moments = schedule.MOMENTS
    timeouts_at_end = 0

    def __init__(self, lab: Lab, window: int = 0) -> None:
        """`window`: the most datagrams of each steady flow that may be under way; 0: any number (`Book.room`)."""
        self.lab = lab
        self.processes: dict[str, subprocess.Popen] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="load-", dir=lab.folder))
        self.board = Switchboard(self.folder)
        self.board.cells[Switchboard.WINDOW] = window
        self.start()
        if not self.wait_answering(time.monotonic() + 0.1):
            raise TimeoutError("the load is not answered")

    def start(self) -> None:
        """Start the processes, one after the other."""
        lab = self.lab
        for role in ROLES:
            self.processes[role] = lab.start("tests.faults.load", role, str(self.folder), ADDRESS,
                                             inside=role in INSIDE, apart=role == "far")
            self.board.wait_ready()  # the echo server runs before the first client
            if role == "far":
                lab.lead_far(int(_written(self.folder / extra.NAMESPACE)))
        _written(self.folder / extra.MEMBER_READY)
        self.books = {name: Book(self.folder, name) for name in (*FLOWS, "echo", "cable")}
        self.steady = [self.books[name] for name in STEADY_FLOWS]

    def timeouts(self) -> int:
        """Retransmission timeouts of the peer, if it has such."""
        return 0

    def wait_answering(self, then: float, timeout_s: float = 10.0) -> bool:
        """Until each steady flow has an answer to something sent after `then`; False where that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not all(book.answers_what_is_sent_after(then) for book in self.steady):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def stop(self) -> None:
        """End it; the books stay."""
        self.timeouts_at_end = self.timeouts()
        self.board.cells[Switchboard.PAUSE] = 1
        deadline = time.monotonic() + UNDER_WAY_S
        while any(book.cells[COUNT] and not book.answered[book.cells[COUNT] - 1] for book in self.steady):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        time.sleep(0.3)  # what else is under way arrives
        self.board.cells[Switchboard.STOP] = 1
        for role, process in self.processes.items():
            if process.wait(timeout=40):
                raise RuntimeError(f"load process {role} ended with status {process.returncode}")


def _written(path: Path, timeout_s: float = 15.0) -> str:
    """What a load process wrote there, once it has."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the load did not get to {path.name}")
        time.sleep(0.01)
    return path.read_text()


class Follower:
    """The keeper's events as they come."""

    def __init__(self, lab: Lab) -> None:
        self.events: list[dict] = []
        self._arrived = threading.Condition()
        self._client = Client(lab.run_dir)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            for event in self._client.stream("events", follow=True):
                event["received"] = time.monotonic()
                with self._arrived:
                    self.events.append(event)
                    self._arrived.notify_all()
        except (OSError, ValueError):
            pass  # the lab closed

    def wait(self, start: int, met, timeout_s: float):
        """`met(events from number start)` once it is something true; None where that takes longer than `timeout_s`."""
        with self._arrived:
            self._arrived.wait_for(lambda: met(self.events[start:]), timeout_s)
            return met(self.events[start:])
