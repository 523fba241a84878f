"""As many connections as tcp can have. Those of Linux's ports would need hours and two addresses, so their slots are
written into tcp's memory, as a former process would have left them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bus.durable import layout
from layers.tcp.connection import Ends
from tests.unit.tcp.host import pair

from .conftest import require_root
from .peers import Stack, wait_for

CONNECTIONS = 65_000  # of 65,535 slots
PORTS = 60_000
PATIENCE_S = 60.0
MEMORY_OCTETS = 120 << 20  # of 256 MiB that the process of a layer may use


def slots_of(count: int) -> bytes:
    """The slots of so many idle connections, all of one stack to one peer."""
    world, stack, _, handle, _ = pair()
    world.run(3)
    conn = stack.conn(handle)
    ends = conn.ends
    for number in range(count):
        conn.ends = Ends(ends.local, 1024 + number % PORTS, ends.peer, ends.peer_port + number // PORTS)
        conn.handle, conn.slot, conn.stored = handle + 1 + number, 0, None
        assert stack.durable.born(conn)
        stack.durable.store(conn)
    return bytes(stack.memory.slots)


def memory_of(stack: Stack, layer: str) -> int:
    """The durable memory that the keeper holds for a layer."""
    folder = f"/proc/{stack.keeper}/fd"
    name = next(name for name in os.listdir(folder) if f"usernet-{layer} (" in os.readlink(f"{folder}/{name}"))
    return os.open(f"{folder}/{name}", os.O_RDWR)


def data_octets(pid: int) -> int:
    """What counts against RLIMIT_DATA."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(status["VmData"].split()[0])


def test_tcp_restarts_with_65000_connections_and_tells_a_new_socket_service_of_them(new_stack) -> None:
    """Neither is taken for a hang."""
    require_root()
    stack = new_stack().up()
    memory = memory_of(stack, "tcp")
    os.pwrite(memory, slots_of(CONNECTIONS), layout.TOTAL_OCTETS)
    os.close(memory)
    for layer in ("tcp", "sockets"):
        before = stack.ask()[layer]
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(layer, lambda: stack.serves(**{layer: before["incarnation"] + 1}), PATIENCE_S)  # noqa: B023
        wait_for("all connections", lambda: stack.counters("tcp")["resumed"] >= CONNECTIONS, PATIENCE_S)
        with stack.bound() as app:
            app.sendto(b"to itself", app.getsockname())
            assert app.recv(100) == b"to itself"
        assert data_octets(stack.pids()["tcp"]) < MEMORY_OCTETS
    assert not [event["detail"] for event in stack.events() if "it hung" in event.get("detail", "")]
    assert (stack.incarnations()["tcp"], stack.incarnations()["sockets"]) == (2, 2), stack.events()
