"""Each forbidden thing is tried by a process that is held to a list, and fails; what it needs goes on to work."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from supervisor import lockdown

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
USERS = [pytest.param(0, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")),
         pytest.param(NOBODY if os.geteuid() == 0 else os.geteuid())]

CHILD = """
import ctypes, errno, fcntl, gc, mmap, os, select, signal, socket, sys, time
import zmq
from supervisor import lockdown
place, neighbor = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
inherited = os.open(place + "/inherited", os.O_RDONLY)
connected = socket.socket(socket.AF_UNIX)
connected.connect(place + "/root/neighbor.sock")
memory = ctypes.create_string_buffer(64)
lock = lockdown.Lock(kind={kind!r}, root=place + "/root", clients={clients}, threads={threads},
                     uid=lockdown.uid_of(os.getpid(), 3) if lockdown.has_users() else os.geteuid())
lock = lockdown.enter(lock, os.getppid())
assert not lock.missing, lock.missing
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
try:
{attempt}
except OSError as error:
    os.write(1, errno.errorcode[error.errno].encode())
else:
    os.write(1, b"done")
os._exit(0)
"""


@pytest.fixture(params=USERS)
def user(request):
    return request.param


@pytest.fixture
def place(user):
    """A folder of the user's: root/ with one socket that listens, beside it a file and a socket out of reach."""
    folder = Path(tempfile.mkdtemp(prefix="lock-"))
    (folder / "root").mkdir()
    (folder / "inherited").write_text("open")
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o600)
    listeners = []
    for name in ("root/neighbor.sock", "elsewhere.sock"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / name))
        listener.listen()
        (folder / name).chmod(0o666)
        listeners.append(listener)
    (folder / "root").chmod(0o711)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)
    yield folder
    for listener in listeners:
        listener.close()
    shutil.rmtree(folder)


@pytest.fixture
def neighbor(user):
    """A process of the same user's."""
    process = subprocess.Popen(["sleep", "60"], user=user if os.geteuid() == 0 else None)
    yield process
    assert process.poll() is None, "the neighbour was signalled"
    process.kill()
    process.wait()


@pytest.fixture
def held(user, place, neighbor):
    """Start a process that does something when it is held to a list."""
    def start(code, kind="layer", clients=False, threads=False):
        text = CHILD.format(kind=kind, clients=clients, threads=threads,
                            attempt=textwrap.indent(textwrap.dedent(code), "    "))
        drop = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
        return subprocess.Popen([sys.executable, "-c", text, str(place), str(neighbor.pid)], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **drop)

    return start


@pytest.fixture
def attempt(held):
    """Try something in such a process: "done", the errno's name, or "killed"."""
    def run(*arguments, **keywords):
        with held(*arguments, **keywords) as process:
            output, errors = process.communicate(timeout=30)
        assert not errors, errors
        assert process.returncode in (0, -signal.SIGSYS)
        return "killed" if process.returncode else output

    return run


@pytest.mark.parametrize("code", [
    'open("/etc/passwd")',
    'open(place + "/secret")',
    'open("/proc/%d/mem" % neighbor, "r+b")',
    'open("/proc/self/fd/%d" % inherited)',
    'open("new", "w")',
    'os.listdir("/")',
    'open("/dev/net/tun", "r+b", buffering=0)',
    'socket.socket(socket.AF_UNIX).connect(place + "/elsewhere.sock")',
    'socket.socket(socket.AF_UNIX).connect("/../elsewhere.sock")',
    'socket.socket(socket.AF_UNIX).connect("\\0nobody")',
    'fcntl.ioctl(inherited, 0x400454CA, bytes(40))',  # TUNSETIFF
])
def test_refused(attempt, code):
    assert attempt(code) in ("EACCES", "ENOENT", "EPERM", "ECONNREFUSED")


KILLED = [
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "socket.socketpair()",
    "os.kill(neighbor, signal.SIGKILL)",
    "os.kill(neighbor, 0)",
    "call('ptrace', 16, neighbor, 0, 0)",
    "call('process_vm_readv', neighbor, memory, 1, memory, 1, 0)",
    "os.pidfd_open(neighbor)",
    "os.execv('/bin/true', ['true'])",
    "os.fork()",
    "os.unlink('/neighbor.sock')",
    "os.rename('/neighbor.sock', '/other.sock')",
    "os.chmod('/neighbor.sock', 0o777)",
    "os.chroot('/')",
    "os.setuid(0)",
    "call('unshare', 0x10000000)",
    "call('setns', inherited, 0)",
    "call('prctl', 4, 1, 0, 0, 0)",  # PR_SET_DUMPABLE
    "os.memfd_create('x')",
    "os.ftruncate(inherited, 0)",
    "os.sched_setaffinity(neighbor, {0})",
    "os.setpriority(os.PRIO_PROCESS, neighbor, 19)",
    "socket.socket(socket.AF_UNIX).bind('/new.sock')",
    "socket.recv_fds(connected, 1, 1)",
    "socket.send_fds(connected, [b'x'], [inherited])",
    "fcntl.fcntl(inherited, fcntl.F_SETOWN, neighbor)",
    "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
]
# what a kind of process may do beside the others; docs/security.md
PERMITTED = {"sockets": {"os.pidfd_open(neighbor)", "os.unlink('/neighbor.sock')"}}
PERMITTED["switch"] = PERMITTED["sockets"]

# Forks a child for each attempt, which locks itself down: "done", the errno's name, or "killed" by SIGSYS of each.
EACH_IN_A_CHILD = """
import ctypes, errno, fcntl, json, mmap, os, signal, socket, sys
from supervisor import landlock, lockdown
place, neighbor = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
inherited = os.open(place + "/inherited", os.O_RDONLY)
connected = socket.socket(socket.AF_UNIX)
connected.connect(place + "/root/neighbor.sock")
memory = ctypes.create_string_buffer(64)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
told = {{}}
for attempt in {attempts!r}:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        folders = {{os.open(place + "/root", os.O_PATH): landlock.READ_DIR}} if {kind!r} == "switch" else {{}}
        lock = lockdown.enter(lockdown.Lock(
            kind={kind!r}, root=place + "/root", clients={kind!r} in ("sockets", "switch"), threads={threads},
            folders=folders, uid=lockdown.uid_of(os.getpid(), 3) if lockdown.has_users() else os.geteuid()), 0)
        try:
            assert not lock.missing, lock.missing
            exec(attempt)
            os.write(theirs, b"done")
        except OSError as error:
            os.write(theirs, errno.errorcode[error.errno].encode())
        os._exit(0)
    os.close(theirs)
    said = os.read(ours, 100).decode()
    os.close(ours)
    _, status = os.waitpid(pid, 0)
    told[attempt] = "killed" if status == signal.SIGSYS or status == signal.SIGSYS | 128 else said
print(json.dumps(told))
"""


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("kind", ["layer", "link", "sockets", "switch"])
def test_no_kind_of_process_may_do_what_it_does_not_need(user, place, neighbor, kind, threads):
    text = EACH_IN_A_CHILD.format(attempts=KILLED, kind=kind, threads=threads)
    drop = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run([sys.executable, "-c", text, str(place), str(neighbor.pid)], cwd=ROOT, text=True,
                          capture_output=True, timeout=60, check=True, **drop)
    told = json.loads(done.stdout)
    assert {code for code, outcome in told.items() if outcome != "killed"} == PERMITTED.get(kind, set())
    assert len(told) == len(KILLED)


@pytest.mark.parametrize("code", KILLED)
def test_killed(attempt, code):
    assert attempt(code) == "killed"


@pytest.mark.parametrize("code", [
    "socket.socket(socket.AF_UNIX).connect('/neighbor.sock')",
    "connected.send(b'x'); connected.setblocking(False)",
    "select.epoll().register(connected, select.EPOLLIN)",
    "mmap.mmap(-1, 1 << 20).close()",
    "os.getrandom(16); [bytes(1 << n) for n in range(20)]",
    "time.sleep(0.001); os.sched_yield()",
    "gc.collect()",
])
def test_goes_on_to_work(attempt, code):
    assert attempt(code) == "done"


def test_sockets_removes_what_is_in_its_root_and_sees_ends(attempt, place):
    assert attempt("os.unlink('/neighbor.sock')", "sockets", clients=True) == "done"
    assert not (place / "root/neighbor.sock").exists()


def test_sockets_sees_the_end_of_an_application(attempt):
    assert attempt("os.pidfd_open(os.getpid())", "sockets", clients=True) == "done"
    assert attempt("call('pidfd_send_signal', os.pidfd_open(neighbor), 9, 0, 0)", "sockets", clients=True) == "killed"


def test_sockets_reaches_an_inbox_that_others_may_not_write(attempt, place):
    (place / "root/neighbor.sock").chmod(0o755)  # as a program of the owner's makes it
    assert attempt("socket.socket(socket.AF_UNIX).connect('/neighbor.sock')", "sockets", clients=True) == "done"


def test_libzmq_has_its_threads(attempt):
    code = """
        with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
            push.connect("ipc:///neighbor.sock")
            push.connect("ipc:///nobody.sock")
            push.send(bytes(100_000), zmq.NOBLOCK)
            pull.poll(20)
            push.linger = 0
        """
    assert attempt(code, threads=True) == "done"
    assert attempt(code, threads=False) == "killed"


def test_no_process_of_its_user_can_trace_it(held):
    with held("""
            os.write(1, b"%d\\n" % os.getuid())
            os.read(connected.fileno(), 1)
            """) as process:
        uid = int(process.stdout.readline())
        tried = subprocess.run([sys.executable, "-c", f"open('/proc/{process.pid}/mem', 'rb')"], capture_output=True,
                               text=True, user=uid if os.geteuid() == 0 else None)
        assert "PermissionError" in tried.stderr
        process.kill()


def test_the_kernel_says_what_a_process_may(held, user):
    with held("""
            os.write(1, b"%d\\n" % (lock.landlock > 0))
            os.read(connected.fileno(), 1)
            """) as process:
        assert process.stdout.readline() == "1\n"
        found = lockdown.of_process(process.pid)
        process.kill()
    assert found.pop("uid") == (user or lockdown.uid_of(process.pid, 3))
    assert found == {"capabilities": 0, "new_privileges": False, "seccomp": True}


def test_the_report_names_restrictions_that_the_kernel_lacks():
    child = """
import os
from supervisor import lockdown, seccomp
seccomp.MACHINES.clear()
lock = lockdown.enter(lockdown.Lock(kind="layer", root="/nowhere", uid=os.geteuid()), os.getppid())
os.write(1, "\\n".join(lock.missing).encode())
"""
    told = subprocess.run([sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "own root directory: No such file" in told
    assert "seccomp: no table of system calls for" in told
    assert len(told.splitlines()) == 2
