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

from bus import topology
from bus.config import STACK_USERS
from bus.wire import SWITCH_COUNTERS
from supervisor.lockdown import CAP_DAC_OVERRIDE, KEEPER_CAPABILITIES, of_process

from .conftest import end_all, require_root, unique_name
from .peers import ROOT, STACK, Stack, copy_product, titled, wait_for

ORDINARY_USER = 65534
# Runs when the layer's process has its word to go. What is refused or raises is the end of it, and its last words are
# told: of each attempt the errno.
INTRUDER = """

import ctypes, errno, fcntl, os, signal, socket  # noqa: E401, E402
_libc = ctypes.CDLL(None, use_errno=True)


def _intrude(self, now):
    names = dict(neighbor={neighbor}, keeper={keeper}, secret={secret!r}, run_dir={run_dir!r}, _libc=_libc,
                 fcntl=fcntl, os=os, signal=signal, socket=socket)
    told = []
    for attempt in {attempts!r}:
        try:
            exec(attempt, names)
            told.append("IT GOT IN: " + attempt)
        except OSError as error:
            told.append("refused: " + errno.errorcode[error.errno])
    raise RuntimeError(", ".join(told))


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
    "enter the keeper's namespaces": ("_libc.setns(os.pidfd_open(keeper), 0x40000000)", KILLED),
    "take the TAP": ("fcntl.ioctl(os.open('/dev/net/tun', os.O_RDWR), 0x400454CA, bytes(40))", "refused"),
    "run a program": ("os.execv('/bin/sh', ['sh', '-c', 'true'])", KILLED),
    "fork": ("os.fork()", KILLED),
    "reach the keeper's socket": ("socket.socket(socket.AF_UNIX).connect(f'{run_dir}/control.sock')", "refused"),
    "reach a layer that is none of its own": ("socket.socket(socket.AF_UNIX).connect('/link.sock')", "refused"),
    "shrink its memory": ("[os.ftruncate(number, 0) for number in range(32)]", KILLED),
    "make written memory code": ("__import__('mmap').mmap(-1, 4096, prot=7)", KILLED),
}


REFUSED = [name for name, (_, expected) in ATTEMPTS.items() if expected == "refused"]
# tests/unit/test_lockdown.py has each call for each kind of process
AT_LEAST = (REFUSED, ["open AF_INET"], ["signal a neighbour"], ["enter the keeper's namespaces"], ["run a program"])
TRIES = [("udp", [name]) for name in ATTEMPTS] + [
    (layer, names) for layer in topology.LAYERS if layer != "udp" for names in AT_LEAST]
STRANGER = {"link": "udp", "arp": "udp", "ip": "control"}  # a layer that is no neighbour of this one; of others link


@pytest.fixture(scope="module")
def intruded(home, tap):
    """A stack whose checkout can be edited, and a file of its owner's."""
    checkout = copy_product(home / "checkout-rights")
    stack = Stack(home, unique_name(), checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    (home / "secret").write_text("the owner's")
    (home / "secret").chmod(0o600)
    try:
        yield stack.up("--allow-raw")
    finally:
        end_all([stack])


@pytest.mark.parametrize(("layer", "names"), [
    pytest.param(layer, names, id=f"{layer}-{names[0] if len(names) == 1 else 'all that is refused'}")
    for layer, names in TRIES])
def test_an_intruder_in_a_layer_gets_nowhere(intruded, home, layer, names):
    before, others = len(intruded.events()), {k: v for k, v in intruded.pids().items() if k != layer}
    source = intruded.checkout / "layers" / layer / "core.py"
    clean = source.read_text()
    attempts = [ATTEMPTS[name][0].replace("/link.sock", f"/{STRANGER.get(layer, 'link')}.sock") for name in names]
    source.write_text(clean + INTRUDER.format(
        neighbor=intruded.pids()["arp" if layer == "ip" else "ip"], keeper=intruded.keeper,
        secret=str(home / "secret"), run_dir=str(intruded.run_dir), attempts=attempts))
    try:
        intruded.run("restart", layer, status=None)
    finally:
        source.write_text(clean)
    expected = KILLED if ATTEMPTS[names[0]][1] == KILLED else "refused"

    def told() -> list[str]:
        details = [event.get("detail", "") for event in intruded.events()[before:] if event.get("layer") == layer]
        assert not any("IT GOT IN" in detail for detail in details), details
        return [detail for detail in details if detail.count(expected) >= len(names)]

    wait_for(f"what became of {names}", told)
    wait_for("the layer as it was", intruded.serves)
    assert {k: v for k, v in intruded.pids().items() if k != layer} == others


# Each switch of a wire takes the next attempt, whose number and outcome are in the file of the counters: those that are
# killed leave no outcome. After all of them the switch serves.
INTRUDER_IN_SWITCH = """

import ctypes, errno, fcntl, signal  # noqa: E401, E402
_libc = ctypes.CDLL(None, use_errno=True)
_run = Process.run


def _intrude(self):
    # its own namespaces are the keeper's; its parent is a process that may have ended
    names = dict(neighbor={neighbor}, keeper=os.getpid(), secret={secret!r}, run_dir={run_dir!r}, _libc=_libc,
                 fcntl=fcntl, os=os, signal=signal, socket=socket)
    words, attempts = self._counters, {attempts!r}
    while words[{first}] < len(attempts):
        place = words[{first}]
        words[{first}] = place + 1
        try:
            exec(attempts[place], names)
            words[{first} + 1 + place] = 1
        except OSError as error:
            words[{first} + 1 + place] = 1000 + error.errno
    _run(self)


Process.run = _intrude
"""
FIRST_WORD = 300  # of the counters, beyond those of the switch


def test_an_intruder_in_the_switch_of_a_wire_gets_nowhere(home):
    require_root()
    checkout = copy_product(home / "checkout-switch")
    stack = Stack(home, unique_name(), checkout)
    stack.env["PYTHONPATH"] = str(checkout)
    secret, victim = home / "secret-of-the-owner", subprocess.Popen(["sleep", "600"])
    secret.write_text("the owner's")
    attempts = ATTEMPTS | {
        "remove a file": ("os.unlink(secret)", "refused"),
        "reach a layer": (f"socket.socket(socket.AF_UNIX).connect({str(stack.run_dir / 'link.sock')!r})", "refused"),
        "look outside": ("os.listdir('/..' + run_dir)", "refused")}
    with (checkout / "switch" / "process.py").open("a") as source:
        source.write(INTRUDER_IN_SWITCH.format(
            neighbor=victim.pid, secret=str(secret), run_dir=str(stack.run_dir), first=FIRST_WORD,
            attempts=[attempt for attempt, _ in attempts.values()]))
    try:
        stack.up("--wire", stack.name)
        counters = stack.run_dir.parent / ".wires" / stack.name / SWITCH_COUNTERS

        def words() -> list[int]:
            octets = counters.read_bytes() if counters.exists() else b""
            return list(memoryview(octets).cast("Q")[FIRST_WORD:]) if octets else [0]

        # The outcome of the last one, a refusal, is stored just after its number
        wait_for("all attempts", lambda: (found := words())[0] == len(attempts) and found[len(attempts)], timeout_s=100)
        switch = wait_for("a switch that serves", lambda: stack.status()["switch"]["pid"])
        assert os.readlink(f"/proc/{switch}/root") == str(counters.parent)
        for (name, (_, expected)), outcome in zip(attempts.items(), words()[1:], strict=False):
            assert outcome == 0 if expected == KILLED else outcome > 1000, (name, outcome)
        assert victim.poll() is None
        assert secret.read_text() == "the owner's"
    finally:
        end_all([stack])
        victim.kill()
        victim.wait()


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
        switch = wait_for("the switch", lambda: json.loads(launch("status", "--json"))["switch"]["pid"])
        assert os.readlink(f"/proc/{switch}/root") == str(home / "usernet" / ".wires" / name)
        assert of_process(switch) == {"uid": ORDINARY_USER, "capabilities": 0, "new_privileges": False, "seccomp": True}
        for layer in json.loads(launch("status", "--json"))["layers"].values():
            assert layer["may"] | {"calls": 0} == {
                "uid": ORDINARY_USER, "capabilities": 0, "new_privileges": False, "seccomp": True, "calls": 0,
                "root": True, "landlock": layer["may"]["landlock"], "missing": []}
    finally:
        launch("down")
        wait_for("the end of the switch", lambda: not titled(f"usernet wire {name}"))
        shutil.rmtree(home)


def test_the_keeper_has_what_it_needs_to_start_and_end_layers(intruded):
    found = of_process(intruded.keeper)
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
