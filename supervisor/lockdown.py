"""Lockdown: a layer's process gives up every right that it does not need before it reads input from outside.

The steps, in this order: its root directory becomes the directory of the sockets that it may reach; if root started the
stack, it changes to a user of its own; then no_new_privs, no capabilities, a Landlock domain, no tracing by others, and
a list of allowed system calls (seccomp). An ordinary user may take each step if the kernel supports it; a step that
fails is reported. `of_process` reads from the kernel what is left. docs/security.md has the table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from pathlib import Path

import msgspec

from bus.config import STACK_USERS
from supervisor import landlock, seccomp
from supervisor.sandbox import CLONE_NEWUSER

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8  # linux/prctl.h
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
CAP_CHOWN, CAP_DAC_OVERRIDE = 0, 1
CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT, CAP_SYS_NICE = 5, 6, 7, 8, 18, 23
KEEPER_CAPABILITIES = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT,
                       CAP_SYS_NICE)
CAPABILITIES = 64  # an upper limit of their number
UIDS_A_STACK = 16
DESCRIPTORS_MAX = 4096  # of a process without clients: libzmq accepts a burst before it can be disconnected

_libc = ctypes.CDLL(None, use_errno=True)


class Lock(msgspec.Struct, kw_only=True):
    """The restrictions for a process; afterwards `missing` contains the reasons why some could not be applied."""

    kind: str  # selects the list of system calls (supervisor.seccomp)
    root: str | None  # the directory that becomes its root; empty: not possible; None: not wanted
    folders: dict[int, int] = {}  # {descriptor of a directory: Landlock rights below it}
    uid: int  # the user that it becomes
    clients: bool = False  # it removes files in its root directory, and may have many descriptors
    threads: bool = False  # with libzmq's threads
    missing: list[str] = []
    landlock: int = 0  # version of the interface; 0: none


def can_root() -> bool:
    """True if children of this process can change their root directory; a child tries it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _change_root("/")
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def uid_of(keeper_pid: int, number: int) -> int:
    """The user and group id of one layer of one stack that root started; no other process has it at the same time."""
    return STACK_USERS.start + keeper_pid * UIDS_A_STACK + number


def has_users() -> bool:
    """True if this process can change its children to other users: it is root, and its namespace has more than one
    user."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as ranges:
        return any(int(first) <= STACK_USERS.start and int(first) + int(count) >= STACK_USERS.stop
                   for first, _, count in map(str.split, ranges))


def reduce() -> None:
    """Reduce the keeper, which never executes a program, to the capabilities that it needs to start and end layers."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    header, held = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, held))
    _, permitted, *_ = struct.unpack("=6I", held.raw)
    kept = permitted & sum(1 << capability for capability in KEEPER_CAPABILITIES)
    _check(_libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def enter(lock: Lock, parent_pid: int) -> Lock:
    """Apply `lock` to this process, which must have one thread, for good. Returns the applied restrictions.

    The process ends with its parent, which must be `parent_pid`; 0: it does not.
    """
    lock = msgspec.structs.replace(lock, missing=[])
    for step in (_limit, _confine, _become, _renounce, _leave_files, _hide, _list_calls):
        try:
            step(lock)
        except OSError as error:
            lock.missing.append(f"{step.__doc__}: {error.strerror}")
        if step is _hide and parent_pid:
            _end_with(parent_pid)  # the kernel resets this when the user changes
    return lock


def _limit(lock: Lock) -> None:
    """limits"""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = most if lock.clients else min(most, DESCRIPTORS_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _confine(lock: Lock) -> None:
    """own root directory"""
    if lock.root is None:
        return
    if not lock.root:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    _change_root(lock.root)
    lock.root = "/"


def _change_root(path: str) -> None:
    try:
        os.chroot(path)
    except PermissionError:
        _own_user_namespace()
        os.chroot(path)
    os.chdir("/")


def _own_user_namespace() -> None:
    """Enter a user namespace with one user, this one, and every capability in it."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


def _become(lock: Lock) -> None:
    """own user"""
    for capability in range(CAPABILITIES):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # no further capability, or not permitted; without new privileges none can be gained anyway
    if lock.uid == os.geteuid():
        return
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(lock.uid, lock.uid, lock.uid)
    os.setresuid(lock.uid, lock.uid, lock.uid)


def _renounce(lock: Lock) -> None:
    """no capabilities"""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    # The inboxes of applications belong to root if root started the stack. To reach them, the process may ignore the
    # modes of files, all of which are in its root directory.
    kept = 1 << CAP_DAC_OVERRIDE if lock.clients and lock.uid in STACK_USERS and lock.root == "/" else 0
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def _leave_files(lock: Lock) -> None:
    """landlock"""
    own = {lock.root: landlock.REMOVE_FILE} if lock.clients and lock.root else {}
    lock.landlock = landlock.restrict(lock.folders or own)


def _hide(lock: Lock) -> None:
    """not traceable"""
    _prctl(PR_SET_DUMPABLE, 0)


def _end_with(parent_pid: int) -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def _list_calls(lock: Lock) -> None:
    """seccomp"""
    seccomp.install(lock.kind, lock.threads)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def of_process(pid: int) -> dict[str, object]:
    """The rights of a process as the kernel reports them (proc(5), /proc/PID/status). Empty: the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {"uid": int(fields["Uid"].split()[1]), "capabilities": int(fields["CapEff"], 16),
            "new_privileges": fields["NoNewPrivs"].strip() == "0", "seccomp": fields["Seccomp"].strip() == "2"}
