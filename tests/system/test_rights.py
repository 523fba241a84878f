"""Code put into a layer of a running stack tries what an intruder would try; and the users of a stack's processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bus.config import STACK_USERS
from supervisor.lockdown import CAP_DAC_OVERRIDE, KEEPER_CAPABILITIES, of_process

from .conftest import end_all, require_root, unique_name
from .peers import ROOT, STACK, Stack, copy_product, wait_for

ORDINARY_USER = 65534
# Runs when udp's process has its word to go. What is refused or raises is the end of it, and its last words are told.
INTRUDER = """

import ctypes, errno, fcntl, os, signal, socket  # noqa: E401, E402
_libc = ctypes.CDLL(None, use_errno=True)
_start = Core.start


def _intrude(self, now):
    neighbor, keeper, secret, run_dir = {neighbor}, {keeper}, {secret!r}, {run_dir!r}
    try:
        {attempt}
    except OSError as error:
        raise RuntimeError("refused: " + errno.errorcode[error.errno]) from None
    raise RuntimeError("IT GOT IN")


Core.start = _intrude
"""

KILLED = "killed by SIGSYS"
ATTEMPTS = {
    "read a file of the owner's": ("open(secret).read()", "refused"),
    "read the neighbour's memory": ("open(f'/proc/{neighbor}/mem', 'rb')", "refused"),
    "open its own descriptors again": ("[open(f'/proc/self/fd/{number}', 'rb') for number in range(32)]", "refused"),
    "leave its root directory": ("os.chroot('..')", KILLED),
    "open AF_INET": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", KILLED),
    "open AF_PACKET": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", KILLED),
    "signal a neighbour": ("os.kill(neighbor, signal.SIGKILL)", KILLED),
    "trace a neighbour": ("_libc.ptrace(16, neighbor, 0, 0)", KILLED),
    "enter the keeper's namespaces": ("os.pidfd_open(keeper)", KILLED),
    "take the TAP": ("fcntl.ioctl(os.open('/dev/net/tun', os.O_RDWR), 0x400454CA, bytes(40))", "refused"),
    "run a program": ("os.execv('/bin/sh', ['sh', '-c', 'true'])", KILLED),
    "fork": ("os.fork()", KILLED),
    "reach the keeper's socket": ("socket.socket(socket.AF_UNIX).connect(f'{run_dir}/control.sock')", "refused"),
    "reach a layer that is none of its own": ("socket.socket(socket.AF_UNIX).connect('/link.sock')", "refused"),
    "shrink its memory": ("[os.ftruncate(number, 0) for number in range(32)]", KILLED),
    "make written memory code": ("__import__('mmap').mmap(-1, 4096, prot=7)", KILLED),
}


@pytest.fixture(scope="module")
def intruded(home, tap):
    """A stack whose checkout can be edited, and a file of its owner's."""
    checkout = copy_product(home / "checkout-rights")
    stack = Stack(home, unique_name(), checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    (home / "secret").write_text("the owner's")
    (home / "secret").chmod(0o600)
    try:
        yield stack.up()
    finally:
        end_all([stack])


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_intruder_in_udp_gets_nowhere(intruded, home, name):
    attempt, expected = ATTEMPTS[name]
    before, others = len(intruded.events()), {k: v for k, v in intruded.pids().items() if k != "udp"}
    source = intruded.checkout / "layers" / "udp" / "core.py"
    clean = source.read_text()
    source.write_text(clean + INTRUDER.format(
        neighbor=intruded.pids()["ip"], keeper=intruded.status()["keeper"], secret=str(home / "secret"),
        run_dir=str(intruded.run_dir), attempt=attempt))
    try:
        intruded.run("restart", "udp", status=None)
    finally:
        source.write_text(clean)
    told = [event.get("detail", "") for event in intruded.events()[before:] if event.get("layer") == "udp"]
    assert any(expected in detail for detail in told), told
    assert not any("IT GOT IN" in detail for detail in told), told
    wait_for("the former udp", intruded.serves)
    assert {k: v for k, v in intruded.pids().items() if k != "udp"} == others


def check_rights(stack: Stack, owner: int) -> None:
    """No process in it is root, or may do more than its list."""
    layers = stack.status()["layers"]
    for name, layer in layers.items():
        rights = layer["may"]
        own_user = rights["uid"] in STACK_USERS if owner == 0 else rights["uid"] in (owner, 0)
        assert own_user, (name, rights)
        assert rights["missing"] == [], (name, rights)
        assert rights["root"], (name, rights)
        assert rights["seccomp"], (name, rights)
        assert rights["landlock"], (name, rights)
        assert not rights["new_privileges"], (name, rights)
        kept = 1 << CAP_DAC_OVERRIDE if owner == 0 and name == "sockets" else 0
        assert rights["capabilities"] == kept, (name, rights)
    if owner == 0:
        assert len({layer["may"]["uid"] for layer in layers.values()}) == len(layers)  # a user each


def test_a_stack_that_root_started_is_not_roots(intruded):
    require_root()
    check_rights(intruded, owner=0)


def test_so_on_a_wire(new_stack):
    require_root()
    stack = new_stack()
    stack.up("--wire", stack.name)
    check_rights(stack, owner=0)


def test_so_in_the_host_namespace(new_stack):
    """--host, in a network namespace that stands for the machine's."""
    require_root()
    stack = new_stack()
    command = ["unshare", "-n", "--", *stack.command("up", "--detach", "--host", "--address", f"{STACK}/24")]
    subprocess.run(command, env=stack.env, cwd=stack.home, check=True, capture_output=True, timeout=60)
    check_rights(stack, owner=0)


def test_so_for_an_ordinary_user():
    """Without any privilege, on a wire: in user namespaces of the layers' own."""
    require_root()
    home = Path(tempfile.mkdtemp(prefix="ur", dir="/tmp"))
    shutil.chown(home, ORDINARY_USER)
    name = unique_name()
    environment = {"XDG_RUNTIME_DIR": str(home), "XDG_STATE_HOME": str(home), "USERNET_NAME": name, "PATH": os.defpath,
                   "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def launch(*arguments: str) -> str:
        done = subprocess.run([sys.executable, str(ROOT / "launcher.py"), *arguments], env=environment, cwd=home,
                              user=ORDINARY_USER, group=ORDINARY_USER, extra_groups=[], capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    launch("up", "--detach", "--wire", name)
    try:
        layers = json.loads(launch("status", "--json"))["layers"]
        for layer in layers.values():
            assert layer["may"] | {"calls": 0} == {
                "uid": ORDINARY_USER, "capabilities": 0, "new_privileges": False, "seccomp": True, "calls": 0,
                "root": True, "landlock": layer["may"]["landlock"], "missing": []}
    finally:
        launch("down")
        shutil.rmtree(home)


def test_the_keeper_has_what_it_needs_to_start_and_end_layers(intruded):
    found = of_process(intruded.status()["keeper"])
    assert found["capabilities"] & ~sum(1 << kept for kept in KEEPER_CAPABILITIES) == 0
    assert not found["new_privileges"]


def test_the_keeper_inherits_no_descriptor_of_its_caller(new_stack):
    """A shell's flock, for one, is not held on."""
    stack = new_stack()
    with open(stack.home / "flock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stack.run("up", "--detach", pass_fds=[held.fileno()])
    with open(stack.home / "flock") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_unlocked_is_told(new_stack):
    stack = new_stack().up("--unlocked")
    assert "any system calls; it was started with --unlocked" in stack.run("status").stdout
