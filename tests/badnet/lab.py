"""A subject and a Linux, and a bad cable between them, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path as File

from tests.interop.worlds import finish
from tests.system.conftest import unique_name
from tests.system.peers import ROOT, Stack

from .impairment import Path

SUBJECTS = ("linux", "usernet")
WAYS = ("up", "down")  # to the far end, which is a Linux, and from it
NEAR, FAR, PORT = "10.0.0.2", "10.0.0.1", 7000
TRANSFER = File(__file__).with_name("transfer.py")
# linux/if_tun.h: TUNSETIFF with IFF_TAP | IFF_NO_PI; no offload, so that a frame on the cable is one of an Ethernet.
MAKE_TAP = """
import fcntl, os, socket, struct, subprocess, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
for command in "link set lo up", f"address add {sys.argv[1]}/24 dev tap0", "link set tap0 up":
    subprocess.run(["ip", *command.split()], check=True)
with open("/proc/sys/net/ipv4/tcp_mtu_probing", "w") as file:
    file.write("1")
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"!"], [tap])
"""


class Lab:
    """`transfer` measures between both ends of one cable."""

    def __init__(self, subject: str, path: Path, seed: int = 1) -> None:
        self._ending = contextlib.ExitStack()
        try:
            self._build(subject, path, seed)
        except BaseException:
            self.close()
            raise

    def _build(self, subject: str, path: Path, seed: int) -> None:
        self._far, far_tap = self._namespace(FAR)
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subject == "linux":
            self._near, near_tap = self._namespace(NEAR)
            end = f"tap:{near_tap}"
        else:
            near_tap = None
            home = File(tempfile.mkdtemp(prefix="ub", dir="/tmp"))
            self._ending.callback(shutil.rmtree, home, ignore_errors=True)
            stack = Stack(home, unique_name())
            self._ending.callback(stack.end)
            stack.up("--wire", stack.name)
            self._near = ["unshare", "-n"]
            self._environment = stack.env
            end = f"wire:{home / 'usernet' / '.wires' / stack.name}"
        self._over = ["-m", "usernet"] if subject == "usernet" else []
        taps = [tap for tap in (near_tap, far_tap) if tap is not None]
        self._start([sys.executable, "-m", "tests.badnet.cable", end, f"tap:{far_tap}", json.dumps(asdict(path)),
                     str(seed)], pass_fds=taps)
        self._start([*self._far, sys.executable, str(TRANSFER), "server", FAR, str(PORT)])

    def transfer(self, way: str, seconds: float, flows: int = 1) -> list[float]:
        """Mbit/s of payload of each flow, to the Linux (`up`) or from it (`down`)."""
        client = subprocess.Popen(
            [*self._near, sys.executable, *self._over, str(TRANSFER), "client", FAR, str(PORT), way, str(seconds),
             str(flows)], env=self._environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True)
        return json.loads(finish(client, seconds + 90).splitlines()[-1])

    def close(self) -> None:
        """End everything."""
        self._ending.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _namespace(self, address: str) -> tuple[list[str], int]:
        """How a command is run there, and the descriptor of its TAP."""
        holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
        self._ending.callback(_end, holder)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            time.sleep(0.01)
        enter = ["nsenter", "-t", str(holder.pid), "-n"]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run([*enter, sys.executable, "-c", MAKE_TAP, address, str(theirs.fileno())], check=True,
                           pass_fds=[theirs.fileno()])
            _, (tap,), *_ = socket.recv_fds(ours, 1, 1)
        self._ending.callback(os.close, tap)
        return enter, tap

    def _start(self, command: list[str], pass_fds: Iterator[int] | list[int] = ()) -> None:
        started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, pass_fds=pass_fds,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ending.callback(_end, started)
        assert started.stdout.readline() == "ready\n", command


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()
