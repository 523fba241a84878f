"""The virtual wire: real stacks of one user, joined by a switch that belongs to none of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import psutil
import pytest
import zmq

import usernet
from bus import messages
from supervisor.control import Client
from usernet.pipe.frame import pack_frame

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
MAC = "02:00:5e:00:00:{:02x}"


class Lab:
    """Some stacks in a runtime directory of their own. Stack number n has the address 10.0.0.n."""

    def __init__(self) -> None:
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="uw", dir="/tmp"))  # socket paths are short
        self.wire = f"w{random.randrange(1 << 32):08x}"
        self._keepers: dict[str, psutil.Process] = {}

    @property
    def wire_dir(self) -> Path:
        return self.runtime_dir / "usernet" / ".wires" / self.wire

    def launch(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        """`launcher.py ARGUMENTS`."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("USERNET_")}
        done = subprocess.run(
            [sys.executable, str(ROOT / "launcher.py"), *arguments], capture_output=True, text=True, timeout=30,
            env={**variables, "XDG_RUNTIME_DIR": str(self.runtime_dir), "PYTHONPATH": str(ROOT), **environment})
        assert not check or done.returncode == 0, f"launcher.py {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done

    def up(self, *numbers: int, wire: str = "", pipes: str = "", options: tuple[str, ...] = ()) -> None:
        for number in numbers:
            self.launch("up", "--detach", "--name", f"s{number}", "--wire", wire or self.wire,
                        "--address", f"10.0.0.{number}/24", "--mac", MAC.format(number),
                        *(("--pipes", pipes) if pipes else ()), *options)
            self._remember(f"s{number}", self.status(number)["keeper"])

    def _remember(self, name: str, pid: int) -> None:
        self._keepers[name] = psutil.Process(pid)

    def status(self, number: int) -> dict:
        """What the keeper knows: asked again and again, so not by a launcher's start each time."""
        with Client(self.runtime_dir / "usernet" / f"s{number}") as keeper:
            return keeper.request("status") | {"keeper": keeper.keeper}

    def link(self, number: int, counter: str) -> int:
        return self.status(number)["layers"]["link"]["counters"][counter]

    def ping(self, source: int, destination: int, count: int = 3, timeout_s: float = PATIENCE_S, check: bool = True):
        """All of `count` requests are answered."""
        done = self.launch("ping", f"10.0.0.{destination}", "-c", str(count), "-i", "0.01", "-W", str(timeout_s),
                           "--name", f"s{source}", check=check)
        assert not check or f"{count} received" in done.stdout, done.stdout
        return done

    def sabotage(self, number: int, layer: str, fault: str) -> None:
        with Client(self.runtime_dir / "usernet" / f"s{number}") as keeper:
            keeper.request("sabotage", layer=layer, fault=fault)

    def socket(self, number: int, kind: int = socket.SOCK_DGRAM):
        return usernet.Stack(f"s{number}", self.runtime_dir / "usernet" / f"s{number}").socket(socket.AF_INET, kind)

    def moved(self, source: int, destination: int, octets: bytes) -> bytes:
        """What arrives of a stream of these."""
        with self.socket(destination, socket.SOCK_STREAM) as listener, self.socket(source, socket.SOCK_STREAM) as out:
            listener.bind((f"10.0.0.{destination}", 5000))
            listener.listen()
            out.settimeout(PATIENCE_S)
            out.connect(listener.getsockname())
            near, _ = listener.accept()
            with near, ThreadPoolExecutor(1) as pool:
                near.settimeout(PATIENCE_S)
                received = pool.submit(_all_of, near)
                out.sendall(octets)
                out.shutdown(socket.SHUT_WR)
                return received.result()

    def down(self, *numbers: int) -> None:
        for number in numbers:
            self.launch("down", "--name", f"s{number}")

    def events(self, number: int) -> list[dict]:
        with Client(self.runtime_dir / "usernet" / f"s{number}") as keeper:
            return list(keeper.stream("events", follow=False))

    def kill_keeper(self, number: int) -> None:
        self._keepers[f"s{number}"].kill()

    def switches(self) -> list[int]:
        """The switches of this wire that run."""
        return [process.pid for process in psutil.process_iter() if alive(process)
                and f"usernet wire {self.wire}" in " ".join(cmdline(process))]

    def switch(self) -> int:
        """The one switch of this wire, once there is one."""
        eventually(lambda: len(self.switches()) == 1)
        return self.switches()[0]

    def clean_up(self) -> None:
        for name, keeper in self._keepers.items():
            self.launch("down", "--name", name, check=False)
            if alive(keeper):
                keeper.kill()
        for pid in self.switches():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


def _all_of(near) -> bytes:
    return b"".join(iter(lambda: near.recv(1 << 20), b""))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def eventually(condition, within_s: float = PATIENCE_S) -> None:
    """The condition holds within that time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)


@pytest.fixture
def lab():
    made = Lab()
    try:
        yield made
    finally:
        made.clean_up()


@contextmanager
def sender(path: Path):
    """A socket that sends to the one at `path`. What the receiver has not read when it is closed may be lost."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.connect(f"ipc://{path}")
        yield socket


def test_two_stacks_reach_each_other_and_leave_nothing(lab):
    lab.up(2, 3)
    lab.ping(2, 3)
    lab.ping(3, 2)
    switch = lab.switch()
    assert lab.status(2)["switch"]["pid"] == lab.status(3)["switch"]["pid"] == switch
    lab.down(2)
    assert lab.switches() == [switch]
    lab.down(3)
    eventually(lambda: not lab.switches() and not list(lab.runtime_dir.iterdir()))


def test_wire_directory_is_its_users_alone(lab):
    lab.up(2)
    lab.switch()
    for path in (lab.wire_dir, lab.wire_dir.parent):
        assert path.stat().st_mode & 0o777 == 0o700


def test_foreign_wire_directory_is_refused(lab):
    lab.wire_dir.mkdir(parents=True)
    lab.wire_dir.chmod(0o777)
    done = lab.launch("up", "--detach", "--wire", lab.wire, check=False)
    assert done.returncode == 1
    assert "not a directory of your own" in done.stderr


def test_a_wire_without_a_runtime_directory_is_refused_in_one_line(lab):
    missing = lab.runtime_dir / "missing"
    done = lab.launch("up", "--detach", "--wire", lab.wire, check=False, XDG_RUNTIME_DIR=str(missing),
                      USERNET_DIR=str(lab.runtime_dir / "elsewhere"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{missing}/usernet" in done.stderr
    assert not list(lab.runtime_dir.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's directory")
def test_a_wire_below_another_users_directory_is_refused(lab):
    above = lab.wire_dir.parent.parent
    above.mkdir()
    os.chown(above, 65534, -1)
    above.chmod(0o777)
    elsewhere = {"USERNET_DIR": str(lab.runtime_dir / "elsewhere")}
    done = lab.launch("up", "--detach", "--wire", lab.wire, check=False, **elsewhere)
    lab.launch("down", check=False, **elsewhere)
    assert done.returncode == 1
    assert f"{above} is not yours" in done.stderr
    assert "XDG_RUNTIME_DIR" in done.stderr
    assert not list(above.iterdir())


def test_stacks_meet_wherever_usernet_dir_points(lab):
    lab.up(2)
    elsewhere = {"USERNET_DIR": str(lab.runtime_dir / "elsewhere")}
    try:
        lab.launch("up", "--detach", "--wire", lab.wire, "--address", "10.0.0.3/24", **elsewhere)
        lab.ping(2, 3)
    finally:
        lab.launch("down", check=False, **elsewhere)


def test_stacks_on_different_wires_do_not_meet(lab):
    lab.up(2)
    lab.up(3, wire=f"{lab.wire}x")
    assert lab.ping(2, 3, count=1, timeout_s=0.3, check=False).returncode == 1


def test_unicast_is_not_seen_by_a_third_stack_once_it_is_learnt(lab):
    lab.up(2, 3, 4)
    lab.ping(2, 3)
    heard, overheard = lab.link(3, "frames_in"), lab.link(4, "other_host")
    lab.ping(2, 3, count=20)
    assert lab.link(3, "frames_in") >= heard + 20
    assert lab.link(4, "other_host") == overheard  # broadcasts (address probes, say) it does get


def test_killed_link_comes_back_on_the_wire(lab):
    lab.up(2, 3)
    lab.ping(2, 3)
    for number in (2, 3):
        incarnation = lab.status(number)["layers"]["link"]["incarnation"]
        lab.launch("sabotage", "link", "kill", "--name", f"s{number}")
        eventually(lambda: lab.status(number)["layers"]["link"]["incarnation"] == incarnation + 1)  # noqa: B023
        eventually(lambda: lab.status(number)["state"] == "up")  # noqa: B023
        lab.ping(2, 3)
        lab.ping(3, 2)


@pytest.mark.parametrize("pipes", ["zmq", "direct"])
def test_a_link_that_hangs_and_is_killed_loses_no_frame(lab, pipes):
    lab.up(2, 3, pipes=pipes)
    over = Event()
    with lab.socket(2) as receiver, lab.socket(3) as sender, ThreadPoolExecutor() as pool:
        receiver.bind(("10.0.0.2", 5000))
        receiver.settimeout(PATIENCE_S)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # what was kept comes at once

        def send() -> int:
            number = 0
            # So seldom that the queues hold what comes while a process that has to wait does not take any
            while not over.wait(0.005):
                sender.sendto(number.to_bytes(4, "big"), ("10.0.0.2", 5000))
                number += 1
            sender.sendto(b"end", ("10.0.0.2", 5000))
            return number

        def receive() -> list[int]:
            numbers = []
            while (octets := receiver.recv(4)) != b"end":
                numbers.append(int.from_bytes(octets, "big"))
            return numbers

        received, sent = pool.submit(receive), pool.submit(send)
        try:
            for fault in ("stop", "kill", "kill"):
                incarnation, before = lab.status(2)["layers"]["link"]["incarnation"], lab.link(2, "frames_in")
                eventually(lambda: lab.link(2, "frames_in") > before + 100)  # noqa: B023
                lab.sabotage(2, "link", fault)
                eventually(lambda: lab.status(2)["layers"]["link"]["incarnation"] > incarnation)  # noqa: B023
        finally:
            over.set()
        assert received.result() == list(range(sent.result()))


@pytest.mark.parametrize("pipes", ["zmq", "direct"])
def test_super_packets_cross_a_wire_as_they_are(lab, pipes):
    lab.up(2, 3, pipes=pipes)
    octets = random.Random(1).randbytes(1 << 23)
    for source, destination in ((2, 3), (3, 2)):
        before = lab.link(destination, "frames_in")
        assert lab.moved(source, destination, octets) == octets
        assert lab.link(destination, "frames_in") - before < len(octets) // 8192
    switch = lab.status(2)["switch"]["counters"]
    assert [name for name in ("bad_offload", "malformed", "refused", "stranger") if switch[name]] == []


@pytest.mark.parametrize("pipes", ["zmq", "direct"])
def test_a_stack_without_offload_gets_plain_frames(lab, pipes):
    lab.up(2, pipes=pipes)
    lab.up(3, pipes=pipes, options=("--no-offload",))
    assert (bool(lab.status(2)["offload"]), bool(lab.status(3)["offload"])) == (True, False)
    octets = random.Random(1).randbytes(1 << 22)
    for source, destination in ((2, 3), (3, 2)):
        before = lab.link(destination, "frames_in")
        assert lab.moved(source, destination, octets) == octets
        assert lab.link(destination, "frames_in") - before >= len(octets) // 1460
    for number in (2, 3):
        counters = lab.status(number)["layers"]
        assert counters["link"]["counters"]["oversize"] == counters["ip"]["counters"]["bad_header_checksum"] == 0


def test_killed_switch_is_started_again_exactly_once(lab):
    lab.up(2, 3, 4)
    for _ in range(5):
        former = lab.switch()
        time.sleep(1.1)  # a stack starts no two switches within a second
        os.kill(former, signal.SIGKILL)
        lab.ping(2, 3)
        lab.ping(3, 4)
        switch = lab.switch()
        assert switch != former
        eventually(lambda: {lab.status(n)["switch"]["pid"] for n in (2, 3, 4)} == {switch})  # noqa: B023
    lab.down(2, 3, 4)
    eventually(lambda: not lab.wire_dir.parent.parent.exists())


def test_switch_that_hangs_is_replaced(lab):
    lab.up(2, 3)
    former = lab.switch()
    lab.ping(2, 3)
    eventually(lambda: psutil.Process(former).create_time() < time.time() - 1.1)  # no two switches within a second
    os.kill(former, signal.SIGSTOP)
    eventually(lambda: lab.switches() not in ([], [former]))
    lab.ping(2, 3)
    assert lab.switch() != former
    details = [event["detail"] for event in lab.events(2) + lab.events(3) if event["event"] == "wire"]
    assert any(f"switch [{former}]" in detail and "hung" in detail for detail in details)


def test_wire_outlives_the_keeper_that_started_its_switch(lab):
    lab.up(2)
    switch = lab.switch()
    lab.up(3, 4)
    ports = set(lab.wire_dir.glob("port-*"))
    lab.kill_keeper(2)
    eventually(lambda: len(set(lab.wire_dir.glob("port-*"))) == len(ports) - 1)
    lab.ping(3, 4)
    assert lab.switches() == [switch]


def test_killed_keeper_of_the_last_stack_leaves_nothing(lab):
    lab.up(2)
    lab.switch()
    lab.kill_keeper(2)
    eventually(lambda: not lab.switches() and not lab.wire_dir.parent.parent.exists())


def test_wire_on_which_all_were_killed_at_once_is_usable_again(lab):
    lab.up(2)
    switch = lab.switch()
    os.kill(lab.status(2)["keeper"], signal.SIGSTOP)  # or it might replace the switch
    os.kill(switch, signal.SIGSTOP)  # so that it cannot clean up after the keeper
    lab.kill_keeper(2)
    os.kill(lab.switch(), signal.SIGKILL)
    eventually(lambda: not lab.switches())
    assert len(list(lab.wire_dir.glob("port-*.sock"))) == 1
    lab.up(3, 4)
    lab.ping(3, 4)
    assert len(list(lab.wire_dir.glob("port-*.sock"))) == 2


def test_any_octets_on_the_wire_are_counted_and_kill_no_process(lab):
    lab.up(2, 3)
    lab.ping(2, 3)
    switch, rng = lab.switch(), random.Random(1)
    port = next(lab.wire_dir.glob("port-*.sock"))
    number = int(port.stem.removeprefix("port-"), 16)
    garbage = [rng.randbytes(rng.randrange(200)) for _ in range(300)]
    garbage += [pack_frame(kind, number, 0, 0, [rng.randbytes(rng.randrange(100))]) for kind in range(256)]
    garbage += [
        pack_frame(messages.ETHERNET, number, 0, 0, []),
        pack_frame(messages.ETHERNET, 12345, 0, 0, [bytes(60)]),
        pack_frame(messages.ETHERNET, number, 0, 0, [bytes(65535)] * 3),
    ]
    for path in (lab.wire_dir / "switch.sock", port):
        with sender(path) as socket:
            for message in garbage:
                socket.send(message)
            lab.ping(2, 3)
    assert lab.switches() == [switch]
    statuses = [lab.status(n) for n in (2, 3)]
    assert [status["layers"]["link"]["restarts"] for status in statuses] == [0, 0], [lab.events(n) for n in (2, 3)]
    counters = statuses[0]["switch"]["counters"]
    assert counters["malformed"] > 500
    assert counters["stranger"] >= 1
    assert sum(status["layers"]["link"]["counters"]["wire_malformed"] for status in statuses) > 500


def test_a_connection_without_zmtp_is_counted_as_refused_by_the_switch(lab):
    lab.up(2, pipes="direct")  # libzmq takes it for a peer of ZMTP 1.0
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(lab.wire_dir / "switch.sock"))
        stranger.send(b"GET / HTTP/1.1\r\n\r\n")
        eventually(lambda: lab.status(2)["switch"]["counters"]["refused"] == 1)
    assert lab.status(2)["switch"]["counters"]["malformed"] == 0


def test_no_frame_waits_for_the_next_in_a_burst(lab):
    """What comes in one go has to be read to its end."""
    lab.up(2)
    port = next(lab.wire_dir.glob("port-*.sock"))
    frame = b"\xff" * 6 + bytes.fromhex("02005e000009") + b"\x88\xb5" + bytes(46)  # IEEE 802 local experimental
    with sender(port) as socket:
        for size in (1, 7, 64, 500):
            before = lab.link(2, "frames_in")
            for _ in range(size):
                socket.send(pack_frame(messages.ETHERNET, 1, 0, 0, [frame] * 3))
            eventually(lambda: lab.link(2, "frames_in") == before + 3 * size)  # noqa: B023
