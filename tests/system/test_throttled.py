"""A layer that gets little processor time and has much to do at once is slow, and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from .peers import NOBODY, Stack, wait_for

pytestmark = pytest.mark.long

CONNECTIONS = 4000
BUSY = "import os\nos.sched_setaffinity(0, {%d})\nwhile True: pass"
CONNECTS = """import sys, usernet
made = []
for port in range(1, %d + 1):
    made.append(usernet.socket(usernet.AF_INET, usernet.SOCK_STREAM))
    made[-1].setblocking(False)
    made[-1].connect_ex(("%s", port))
print("asked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def throttled(pid: int) -> Iterator[None]:
    """The process has a core together with a busy one, of which it gets a few per cent."""
    core = min(os.sched_getaffinity(0))
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        os.sched_setaffinity(thread, {core})
        os.setpriority(os.PRIO_PROCESS, thread, 15)
    busy = subprocess.Popen([sys.executable, "-c", BUSY % core])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.timeout(300)
def test_thousands_of_timers_that_are_due_at_once_are_no_endless_loop(new_stack: Callable[..., Stack], quiet) -> None:
    """The peer does not exist, so each connection sends its SYN again and again."""
    stack = new_stack().up()
    stack.run("neighbor", "add", NOBODY, "02:00:00:00:00:77")
    application = stack.application(CONNECTS % (CONNECTIONS, NOBODY), stdin=subprocess.PIPE)
    assert application.stdout.readline() == "asked\n"
    pid, before = stack.pids()["tcp"], stack.counters("tcp")["timeouts"]
    with throttled(pid):
        wait_for("so many retransmissions", lambda: stack.counters("tcp")["timeouts"] >= before + 2 * CONNECTIONS, 100)
    assert [event for event in stack.events() if event["event"] in ("died", "hung")] == []
    assert stack.pids()["tcp"] == pid
    application.stdin.close()
