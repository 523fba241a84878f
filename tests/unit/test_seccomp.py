"""The filter's instructions, run here as the kernel runs them; test_lockdown has the kernel run them."""

import errno
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path

import pytest

from supervisor import seccomp

HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
           "aarch64": Path("/usr/include/asm-generic/unistd.h")}


def run(octets: bytes, audit: int, number: int, *arguments: int) -> int:
    """What a filter returns for a call (linux/bpf_common.h)."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator = at = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("=HBBI", octets, 8 * at)
        at += 1
        match code:
            case 0x06:
                return k
            case 0x20:
                accumulator = int.from_bytes(data[k : k + 4], "little")
            case 0x54:
                accumulator &= k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case _:
                raise AssertionError(code)


@pytest.fixture(params=seccomp.MACHINES)
def machine(request):
    return seccomp.MACHINES[request.param]


def verdict(machine, kind, threads, call, *arguments):
    program = seccomp.program(machine, seccomp.rules(kind, threads))
    return run(program, machine.audit, seccomp.NUMBERS[call][machine.column], *arguments)


REFUSED = seccomp.ERRNO | errno.EACCES


@pytest.mark.parametrize(("kind", "call", "arguments", "expected"), [
    ("layer", "read", (), seccomp.ALLOW),
    ("layer", "futex", (), seccomp.ALLOW),
    ("layer", "socket", (socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), seccomp.ALLOW),
    ("layer", "socket", (socket.AF_UNIX, socket.SOCK_DGRAM), seccomp.KILL),
    ("layer", "socket", (socket.AF_INET, socket.SOCK_STREAM), seccomp.KILL),
    ("layer", "socket", (socket.AF_NETLINK, socket.SOCK_STREAM), seccomp.KILL),
    ("layer", "mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_WRITE), seccomp.ALLOW),
    ("layer", "mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC), seccomp.KILL),
    ("layer", "mprotect", (0, 4096, mmap.PROT_EXEC), seccomp.KILL),
    ("layer", "fcntl", (3, fcntl.F_SETFL), seccomp.ALLOW),
    ("layer", "fcntl", (3, fcntl.F_SETOWN), seccomp.KILL),
    ("layer", "ioctl", (3, seccomp.FIONBIO), seccomp.ALLOW),
    ("layer", "ioctl", (3, 0x400454CA), REFUSED),  # TUNSETIFF
    ("layer", "openat", (), REFUSED),
    ("layer", "newfstatat", (3, 0, 0, seccomp.AT_EMPTY_PATH), seccomp.ALLOW),
    ("layer", "newfstatat", (3, 0, 0, 0), REFUSED),
    ("sockets", "newfstatat", (3, 0, 0, 0), seccomp.ALLOW),
    ("layer", "pidfd_open", (), seccomp.KILL),
    ("sockets", "pidfd_open", (), seccomp.ALLOW),
    ("layer", "unlinkat", (), seccomp.KILL),
    ("layer", "readv", (), seccomp.KILL),
    ("link", "readv", (), seccomp.ALLOW),
    ("layer", "prctl", (seccomp.PR_SET_NAME,), seccomp.KILL),
    ("layer", "clone3", (), seccomp.ERRNO | errno.ENOSYS),
    ("layer", "clone", (seccomp.CLONE_THREAD,), seccomp.KILL),
    ("layer", "prlimit64", (0, 7, 0), seccomp.ALLOW),  # RLIMIT_NOFILE
    ("layer", "prlimit64", (0, 7, 0x7FFF0010), seccomp.KILL),
    ("layer", "prlimit64", (77, 7, 0), seccomp.KILL),
    ("layer", "sched_setscheduler", (0, 3), seccomp.ALLOW),  # SCHED_BATCH
    ("layer", "sched_setscheduler", (77, 3), seccomp.KILL),
    ("layer", "sched_setscheduler", (0, 0), seccomp.KILL),
])
def test_verdicts(machine, kind, call, arguments, expected):
    assert verdict(machine, kind, False, call, *arguments) == expected


def test_libzmq_may_have_threads_and_nothing_else_of_clone(machine):
    assert verdict(machine, "layer", True, "clone", seccomp.CLONE_THREAD | 0x100) == seccomp.ALLOW
    assert verdict(machine, "layer", True, "clone", 0x100) == seccomp.KILL
    assert verdict(machine, "layer", True, "sched_setscheduler", 77, 0) == seccomp.ALLOW
    assert verdict(machine, "layer", True, "sched_setscheduler", 77, 3) == seccomp.ALLOW  # SCHED_BATCH
    assert verdict(machine, "layer", True, "sched_setscheduler", 0, 1) == seccomp.KILL  # SCHED_FIFO


def test_whatever_is_not_named_kills(machine):
    allowed = {seccomp.NUMBERS[call][machine.column] for call in seccomp.rules("sockets", True)}
    refused = {seccomp.NUMBERS[call][machine.column] for call in seccomp.REFUSED}
    program = seccomp.program(machine, seccomp.rules("sockets", True))
    for number in range(600):
        if number not in allowed | refused:
            assert run(program, machine.audit, number) == seccomp.KILL


def test_other_architectures_numbers_kill(machine):
    program = seccomp.program(machine, seccomp.rules("layer", False))
    read = seccomp.NUMBERS["read"][machine.column]
    assert run(program, 0x40000003, 3) == seccomp.KILL  # read(2) of i386
    assert run(program, machine.audit, seccomp.X32 | read) == seccomp.KILL


@pytest.mark.parametrize("name", HEADERS)
def test_numbers_are_the_kernels(name):
    if not HEADERS[name].exists() and not os.environ.get("CI"):
        pytest.skip(f"no {HEADERS[name]} here")
    known = {}
    for line in HEADERS[name].read_text().splitlines():
        match line.split():
            case ["#define", symbol, number] if number.isdigit():
                known[symbol.removeprefix("__NR_").removeprefix("__NR3264_")] = int(number)
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))  # as asm-generic has it
    column = seccomp.MACHINES[name].column
    for call, numbers in seccomp.NUMBERS.items():
        assert known.get(call) == numbers[column], call
