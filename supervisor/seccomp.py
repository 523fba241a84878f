"""The allowed system calls for each kind of process, as a seccomp filter; any other call kills the process.

seccomp(2). The filter is classic BPF over struct seccomp_data (linux/seccomp.h): number (4 octets), architecture (4),
instruction pointer (8), six arguments (8 each). It checks the lower half of an argument; the kernel treats all checked
arguments as 32-bit integers. Numbers: asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64, riscv64).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import socket
import struct
import sys
from functools import cache
from typing import NamedTuple

SECCOMP_SET_MODE_FILTER = 1
# TSYNC: all threads. SPEC_ALLOW: before Linux 5.16 a filter would otherwise disable store bypass speculation.
FLAGS = 0x1 | 0x4  # SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_..., KILL: the whole process
X32 = 0x40000000  # numbers from here on are the x32 ABI's

CLONE_THREAD = 0x00010000
FIONBIO = 0x5421
AT_EMPTY_PATH = 0x1000
PR_SET_NAME = 15
SOCKET_TYPE_MASK = 0xF  # the bits above are SOCK_NONBLOCK and SOCK_CLOEXEC


class Machine(NamedTuple):
    """One architecture: its AUDIT_ARCH_... value, its column in NUMBERS, its number of seccomp(2)."""

    audit: int
    column: int
    seccomp: int


MACHINES = {"x86_64": Machine(0xC000003E, 0, 317), "aarch64": Machine(0xC00000B7, 1, 277),
            "riscv64": Machine(0xC00000F3, 1, 277)}

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "accept4": (288, 242), "access": (21, None), "brk": (12, 214), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "clone": (56, 220), "clone3": (435, 435),
    "close": (3, 57), "connect": (42, 203), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "epoll_wait": (232, None), "eventfd2": (290, 19),
    "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439), "fcntl": (72, 25),
    "fstat": (5, 80), "futex": (202, 98), "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getpeername": (52, 205), "getpid": (39, 172), "getppid": (110, 173),
    "getrandom": (318, 278), "getrusage": (98, 165), "getsockname": (51, 204), "getsockopt": (55, 209),
    "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174), "ioctl": (16, 29), "lseek": (8, 62),
    "lstat": (6, None), "madvise": (28, 233), "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216),
    "munmap": (11, 215), "newfstatat": (262, 79), "open": (2, None), "openat": (257, 56), "pidfd_open": (434, 434),
    "poll": (7, None), "ppoll": (271, 73), "prctl": (157, 167), "prlimit64": (302, 261), "read": (0, 63),
    "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65), "recvfrom": (45, 207),
    "restart_syscall": (219, 128), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "sched_setscheduler": (144, 119), "sched_yield": (24, 124), "sendto": (44, 206), "set_robust_list": (273, 99),
    "shutdown": (48, 210), "sigaltstack": (131, 132), "socket": (41, 198), "stat": (4, None), "statx": (332, 291),
    "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "unlink": (87, None), "unlinkat": (263, 35),
    "write": (1, 64), "writev": (20, 66),
}


class Only(NamedTuple):
    """A condition: argument `index` (from 0) has one of `values` in the bits of `mask`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


Rules = dict[str, tuple[Only, ...]]  # a call is allowed if all of its conditions hold

# The calls of an interpreter with all its code loaded, and of a loop over Unix sockets, a timer and given memory.
COMMON: Rules = dict.fromkeys((
    "accept4", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "connect", "epoll_create1",
    "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "exit", "exit_group", "fstat", "futex", "getegid",
    "geteuid", "getgid", "getpeername", "getpid", "getppid", "getrandom", "getrusage", "getsockname", "getsockopt",
    "gettid", "gettimeofday", "getuid", "lseek", "madvise", "mremap", "munmap", "poll", "ppoll", "read", "recvfrom",
    "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "sendto", "shutdown",
    "timerfd_create", "timerfd_settime", "write"), ())
COMMON |= {
    "socket": (Only(0, (socket.AF_UNIX,)), Only(1, (socket.SOCK_STREAM,), SOCKET_TYPE_MASK)),
    "fcntl": (Only(1, (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC)),),
    "ioctl": (Only(1, (FIONBIO,)),),
    "mmap": (Only(2, (0,), mmap.PROT_EXEC),),  # memory that was written is never executable
    "mprotect": (Only(2, (0,), mmap.PROT_EXEC),),
    "newfstatat": (Only(3, (AT_EMPTY_PATH,), AT_EMPTY_PATH),),  # as fstat(2)
    "prlimit64": (Only(0, (0,)), Only(2, (0,))),  # only its own, to read: the limit of descriptors
    "sched_setscheduler": (Only(0, (0,)), Only(1, (os.SCHED_BATCH,))),  # only its own
}
LINK: Rules = {"readv": (), "writev": ()}
# sockets removes inboxes of ended applications, and sees the end of an application on a pidfd.
SOCKETS: Rules = {"pidfd_open": (), "unlink": (), "unlinkat": (), "newfstatat": (), "stat": ()}
# The switch looks for ports in the wire's directory, and removes the directory (unlinkat) with the last one.
SWITCH: Rules = SOCKETS | {"openat": (), "getdents64": ()}
LIBZMQ: Rules = {  # its two threads
    "clone": (Only(0, (CLONE_THREAD,), CLONE_THREAD),), "set_robust_list": (), "rseq": (), "sched_getaffinity": (),
    "sched_getparam": (), "sched_getscheduler": (), "sched_setscheduler": (Only(1, (os.SCHED_OTHER, os.SCHED_BATCH)),),
    "prctl": (Only(0, (PR_SET_NAME,)),), "eventfd2": (), "sigaltstack": (),
}
# Calls that Python or the C library can do without: these fail with an error.
REFUSED = dict.fromkeys(("open", "openat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2",
                         "readlink", "readlinkat", "getcwd", "getdents64", "ioctl"), errno.EACCES) | {
    "clone3": errno.ENOSYS}  # a filter cannot see its flags; the C library falls back to clone(2)

KINDS: dict[str, Rules] = {"layer": {}, "link": LINK, "sockets": SOCKETS, "switch": SWITCH}


def rules(kind: str, threads: bool) -> Rules:
    """The rules for a process of `kind`; `threads`: with libzmq in it."""
    return COMMON | (LIBZMQ if threads else {}) | KINDS[kind]


# -- the program -----------------------------------------------------------------------------------------------------

_LOAD, _AND, _EQUAL, _GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # linux/bpf_common.h
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_LOWER_HALF = 0 if sys.byteorder == "little" else 4


def program(machine: Machine, allowed: Rules) -> bytes:
    """The instructions of the filter, 8 octets each."""
    def instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return _INSTRUCTION.pack(code, if_true, if_false, k)

    def condition(only: Only, beyond: int) -> list[bytes]:
        """Continue if the condition holds, else jump over the `beyond` instructions that follow."""
        values = len(only.values)
        tests = [instruction(_EQUAL, value & only.mask, values - 1 - place, beyond if place == values - 1 else 0)
                 for place, value in enumerate(only.values)]
        load = instruction(_LOAD, _ARGUMENTS_AT + 8 * only.argument + _LOWER_HALF)
        return [load, instruction(_AND, only.mask), *tests]

    code = [instruction(_LOAD, _ARCHITECTURE_AT), instruction(_EQUAL, machine.audit, 1, 0), instruction(_RETURN, KILL),
            instruction(_LOAD, _NUMBER_AT), instruction(_GREATER_EQUAL, X32, 0, 1), instruction(_RETURN, KILL)]
    for call, conditions in sorted(allowed.items(), key=lambda rule: len(rule[1])):
        number = NUMBERS[call][machine.column]
        if number is None:
            continue
        block = [instruction(_RETURN, ALLOW)]
        for only in conditions:
            block = condition(only, len(block)) + block
        code += [instruction(_EQUAL, number, 0, len(block)), *block]
        if conditions:
            code.append(instruction(_LOAD, _NUMBER_AT))  # the accumulator contained an argument
    for call, error in REFUSED.items():
        number = NUMBERS[call][machine.column]
        if number is not None:
            code += [instruction(_EQUAL, number, 0, 1), instruction(_RETURN, ERRNO | error)]
    return b"".join([*code, instruction(_RETURN, KILL)])


@cache
def own_program(kind: str, threads: bool) -> bytes:
    """The program for this machine. OSError (ENOSYS): its system call numbers are not known here."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    return program(machine, rules(kind, threads))


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(kind: str, threads: bool) -> None:
    """Restrict this process and all its threads to these calls.

    It must have no_new_privs. OSError: the kernel refuses.
    """
    octets = own_program(kind, threads)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    description = _Filter(len(octets) // _INSTRUCTION.size, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    machine = MACHINES[platform.machine()]
    if libc.syscall(machine.seccomp, SECCOMP_SET_MODE_FILTER, FLAGS, ctypes.byref(description)) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")

