"""Processes that fill the socket service's memory together: it closes their connections before it runs out."""

from __future__ import annotations

import pytest

from supervisor.child import MEMORY_LIMIT_OCTETS

from .peers import wait_for
from .test_hostile_applications import is_served, most_octets, program

pytestmark = pytest.mark.long

# Processes, connections of each, and whether all that they send is more than the service may have: as many connections
# as it has room for, and as few as an application has.
CROWDS = [(50, 38, True), (200, 4, True), (200, 1, False)]

# Once all are connected, each process sends eight frames of the greatest length, which are none, and half of a ninth on
# each of its connections. Those that are not let in have the less to send.
CROWD = """
import os, socket, sys
from usernet.pipe import zmtp
from usernet.pipe.frame import MAX_FRAME_OCTETS

path, processes, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole = zmtp.message(bytes(MAX_FRAME_OCTETS))
(ready, tell), (go, start), (over, end) = os.pipe(), os.pipe(), os.pipe()
for _ in range(processes):
    if os.fork() == 0:
        os.close(end)
        callers = []
        for _ in range(each):
            caller = socket.socket(socket.AF_UNIX)
            try:
                caller.connect(path)  # waits for room in the backlog, which it would not with a time limit
                caller.settimeout(10)
                caller.sendall(zmtp.opening(b"PUSH"))
                callers.append(caller)
            except OSError:
                pass
        os.write(tell, b"x")
        os.read(go, 1)
        for caller in callers:
            try:
                caller.sendall(whole * 8 + whole[: MAX_FRAME_OCTETS - 10])
            except OSError:
                pass
        os.write(tell, b"x")
        os.read(over, 1)  # until the first process ends
        os._exit(0)
for _ in range(processes):
    os.read(ready, 1)
os.write(start, b"g" * processes)
for _ in range(processes):
    os.read(ready, 1)
print("sent", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("processes", "each", "is_much"), CROWDS)
@pytest.mark.parametrize("pipes", ["direct", "zmq"])
def test_processes_together_do_not_exhaust_the_socket_service(new_stack, pipes, processes, each, is_much):
    stack = new_stack().up("--pipes", pipes)
    pid = stack.pids()["sockets"]
    crowd = program(stack, CROWD, stack.run_dir / "sockets.sock", processes, each)
    assert crowd.stdout.readline() == "sent\n"
    if is_much:
        wait_for("connections to be closed", lambda: stack.counters("sockets")["bus_refused"] > 0)
    is_served(stack)
    assert stack.pids()["sockets"] == pid
    assert most_octets(pid) < MEMORY_LIMIT_OCTETS
