"""Limits of the process that starts a stack (getrlimit(2)): what is too small is told in one line."""

from __future__ import annotations

import re
import resource

import pytest

from supervisor.limits import DESCRIPTORS_MIN

from .conftest import unique_name
from .peers import STACK, Stack, received


def one_line(done) -> str:
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(("limit", "value", "said"), [
    (resource.RLIMIT_NOFILE, 256, r"`ulimit -Hn` is 256; a stack needs \d+"),
    (resource.RLIMIT_NPROC, 5, "`ulimit -u` is 5; a stack needs 64"),
    (resource.RLIMIT_AS, 500_000 << 10, r"`ulimit -v` is 500000; a stack needs \d+"),
    (resource.RLIMIT_DATA, 100_000 << 10, r"`ulimit -d` is 100000; a stack needs \d+"),
    (resource.RLIMIT_FSIZE, 100 << 10, r"`ulimit -f` is 100; a stack needs \d+"),
], ids=["-n", "-u", "-v", "-d", "-f"])
def test_a_limit_that_is_too_small_is_told_in_one_line_and_nothing_is_left(home, limit, value, said) -> None:
    stack = Stack(home, unique_name())
    line = one_line(stack.run("up", "--detach", status=1,
                              preexec_fn=lambda: resource.setrlimit(limit, (value, value))))
    assert re.search(said, line), line
    stack.check_gone()


def test_libzmq_needs_more_descriptors_than_plain_sockets(new_stack) -> None:
    stack, limit = new_stack(), DESCRIPTORS_MIN["direct"]
    options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))}
    line = one_line(stack.run("up", "--detach", "--pipes", "zmq", status=1, **options))
    assert f"a stack needs {DESCRIPTORS_MIN['zmq']} (with --pipes direct {limit})" in line
    stack.run("up", "--detach", "--pipes", "direct", **options)
    assert received(stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout) == 1
