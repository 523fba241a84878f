"""A socket service for tests of the application's library: real cores on the real bus, in a process of its own.

The cores of sockets, udp, tcp and icmp are glued together in one process, with a loop in ip's place: what is sent to
the stack's own addresses comes back. The test holds the durable memory and the listening descriptor, as the keeper
does, so the process can be killed and started again.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path

import records

from bus import messages, topology
from bus.config import StackConfig
from bus.durable import layout
from bus.durable.key_value_log import KeyValueLog
from bus.messages import TRANSMIT_HEAD, TRANSMIT_PARTIAL
from bus.runtime.control import Control
from bus.runtime.event_loop import EventLoop
from bus.runtime.spawn import SpawnArguments
from layers.common import source_address
from layers.common.routes import RouteTable, configured
from layers.icmp.core import Core as Icmp
from layers.icmp.counters import Counters as IcmpCounters
from layers.sockets.core import Core as Sockets
from layers.tcp.core import Core as Tcp
from layers.tcp.counters import Counters as TcpCounters
from layers.udp.core import Core as Udp
from layers.udp.counters import Counters as UdpCounters

ADDRESS = "10.0.0.2"
REPOSITORY = Path(__file__).resolve().parents[2]
STACKS = "stacks"  # file in the run directory for Python's stacks, at SIGUSR1


def config(run_dir: str = "", dns: list[str] | None = None) -> StackConfig:
    return StackConfig(name="test", run_dir=run_dir, address=bytes((10, 0, 0, 2)), prefix=24, mac=bytes(6),
                       dns=dns or [], pipes=os.environ.get("USERNET_PIPES") or "zmq")


PART_SHIFT = 60  # of the number of a part in a key; sockets counts departures from 2**32 on


class Part(MutableMapping):
    """One core's share of a state that several use."""

    def __init__(self, whole: MutableMapping, number: int) -> None:
        self._whole, self._base = whole, number << PART_SHIFT

    def __getitem__(self, key: int) -> bytes:
        return self._whole[self._base + key]

    def __setitem__(self, key: int, value: bytes) -> None:
        self._whole[self._base + key] = value

    def __delitem__(self, key: int) -> None:
        del self._whole[self._base + key]

    def __iter__(self):
        return (key - self._base for key in self._whole if key >> PART_SHIFT == self._base >> PART_SHIFT)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Loop:
    """sockets, udp, tcp and icmp, with ip played by a mirror: a ClientCore."""

    def __init__(self, config: StackConfig, state: MutableMapping, counters, rng: random.Random) -> None:
        self.sockets = Sockets(config, Part(state, 1), counters, rng)
        self.udp = Udp(config, Part(state, 2), UdpCounters.new(), rng)
        self.icmp = Icmp(config, Part(state, 3), IcmpCounters.new(), rng)
        self.tcp = Tcp(config, Part(state, 4), TcpCounters.new(), rng)
        self.cores = {topology.SOCKETS: self.sockets, topology.UDP: self.udp, topology.ICMP: self.icmp,
                      topology.TCP: self.tcp}
        self.routes = RouteTable(configured(config))
        self.welcome = self.sockets.welcome

    @property
    def next_wake(self):
        return min((due for due in (self.tcp.next_wake, self.sockets.next_wake) if due is not None), default=None)

    def start(self, now):
        return self.settle([], [(number, send) for number, core in self.cores.items() for send in core.start(now)], now)

    def receive(self, sender, kind, records, now):
        sends = self.sockets.receive(sender, kind, records, now)
        return self.settle([], [(topology.SOCKETS, send) for send in sends], now)

    def wake(self, now):
        return self.settle([], [(number, send) for number in (topology.TCP, topology.SOCKETS)
                                for send in self.cores[number].wake(now)], now)

    def neighbor_started(self, sender, now):
        return []

    def client_joined(self, client, hello, now):
        return self.sockets.client_joined(client, hello, now)

    def client_left(self, client, now):
        return self.settle([], [(topology.SOCKETS, send) for send in self.sockets.client_left(client, now)], now)

    def frames_lost(self, sender, now):
        return self.settle([], [(topology.SOCKETS, send) for send in self.sockets.frames_lost(sender, now)], now)

    @property
    def contested(self):
        return self.sockets.contested

    def clients_checked(self, now):
        return self.settle([], [(topology.SOCKETS, send) for send in self.sockets.clients_checked(now)], now)

    def settle(self, to_clients, sends, now):
        """Carry records between the cores until only those for clients are left."""
        while sends:
            sender, (consumer, kind, record) = sends.pop(0)
            if consumer >= topology.CLIENT_ID_MIN:
                to_clients.append((consumer, kind, record))
            elif consumer in self.cores:
                # Fast clocks below, so that the limit on ICMP errors, so many a second, is not in the way.
                clock = now if consumer == topology.TCP else 1000 * now
                answers = self.cores[consumer].receive(sender, kind, [record], clock)
                sends += [(consumer, send) for send in answers]
            elif consumer == topology.IP:
                sends += self.mirror(sender, kind, record)
        return to_clients

    def mirror(self, sender, kind, record):
        if sender == topology.TCP and kind != messages.TRANSMIT:
            return []
        size, _, _, flags, protocol, ttl, tos, _, source, destination = TRANSMIT_HEAD.unpack_from(record)
        segment = record[TRANSMIT_HEAD.size :]
        if source == bytes(4):
            source = source_address.of_destination(self.routes, destination)
        packet = (bytes([0x45, tos]) + (20 + len(segment)).to_bytes(2, "big") + bytes([0, 1, 0, 0, ttl, protocol, 0, 0])
                  + source + destination + segment)
        if self.routes.is_local(destination):
            consumer = {17: topology.UDP, 6: topology.TCP}.get(protocol, topology.ICMP)
            record = records.up(packet, records.LOOPED | (records.PARTIAL if flags & TRANSMIT_PARTIAL else 0), size)
            return [(topology.IP, (consumer, messages.PACKET, record))]
        return [(topology.IP, (sender, messages.ICMP_ERROR, records.local_error(1, packet)))]


class Service:
    """The service's process, for a test to start, kill and start again."""

    def __init__(self, dns: list[str] | None = None, run_dir: Path | None = None) -> None:
        self.dns = dns or []
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="un-"))
        self.run_dir.mkdir(mode=0o700, exist_ok=True)
        self.memory_fd = layout.create("test")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (self.run_dir / "sockets").mkdir()
        self.listener.bind(str(self.run_dir / "sockets.sock"))
        self.listener.listen(64)
        self.incarnation = 0
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        self.incarnation += 1
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (self.memory_fd, self.listener.fileno(), theirs.fileno())
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.run_dir), ",".join(self.dns), str(self.incarnation),
             *map(str, descriptors)],
            pass_fds=descriptors, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        theirs.close()
        assert b"ready" in self.line.recv(4096)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.line.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def report(self) -> str:
        """What the process is doing, for the report of a failed test: Python's stacks and what its threads wait for."""
        if self.process.poll() is not None:
            return f"the service has ended: {self.process.returncode}"
        self.process.send_signal(signal.SIGUSR1)
        process = Path(f"/proc/{self.process.pid}")
        threads = [" ".join((task / name).read_text().strip() for name in ("comm", "wchan", "syscall"))
                   for task in (process / "task").iterdir()]
        state = (process / "stat").read_text().split()[2:15]
        sockets = subprocess.run(["ss", "-xpe"], capture_output=True, text=True, check=False).stdout
        ours = [line for line in sockets.splitlines() if f"pid={self.process.pid}," in line]
        deadline = time.monotonic() + 1
        while not (stacks := (self.run_dir / STACKS).read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)  # it is stopped, or inside of libzmq, if none come
        return "\n".join([*threads, f"stat {state}", f"{len(os.listdir(process / 'fd'))} descriptors", *ours[-40:],
                          stacks])

    def down(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.listener.close()
        os.close(self.memory_fd)
        shutil.rmtree(self.run_dir)


def main(run_dir: str, dns: str, *numbers: str) -> None:
    incarnation, memory_fd, listener_fd, line = map(int, numbers)
    stacks = open(f"{run_dir}/{STACKS}", "w")  # noqa: SIM115  (open as long as the process)
    faulthandler.register(signal.SIGUSR1, stacks)
    durable = layout.Memory(memory_fd)
    durable.words[layout.INCARNATION] = incarnation
    state = KeyValueLog(durable)
    settings = config(f"{run_dir}/sockets", dns.split(",") if dns else [])
    core = Loop(settings, state, durable.counters, random.Random(incarnation))
    control = Control(socket.socket(fileno=line))
    EventLoop(SpawnArguments("sockets", settings, memory_fd, listener_fd, control), core, durable).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
