"""`capture` as a person drives it: each file judged by Wireshark, layers killed, the stack ended, the disk full."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import require_program
from .peers import PATIENCE_S, STACK, TAP, Stack, received, wait_for
from .test_capture import PORTS_MEAN_NOTHING

NEW = "10.0.0.8"  # a second address of the kernel, which the stack has never heard of
WAY_UP = ["device:link", "link:ip", "ip:udp", "udp:sockets", "sockets:app"]
WAY_DOWN = ["app:sockets", "sockets:udp", "udp:ip", "ip:link", "link:device"]


@contextlib.contextmanager
def capturing(stack: Stack, *arguments: object, on: Callable[[list[str]], list[str]] = list,
              **options) -> Iterator[subprocess.Popen]:
    """`capture`, once it has begun; ended as by Ctrl-C. What it wrote to standard error stands in `.said`.

    `on` says in what the command runs.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    capture = stack.spawn(on(stack.command("capture", *arguments)), **options)
    first = capture.stderr.readline()
    assert "capturing on" in first, first + capture.stderr.read()
    try:
        yield capture
    finally:
        if capture.poll() is None:
            capture.send_signal(signal.SIGINT)
        out, said = capture.communicate(timeout=PATIENCE_S)
        capture.lines, capture.said = (out or "").splitlines(), said


def fields(path: Path, *names: str, condition: str = "") -> list[list[str]]:
    """Fields of each packet as tshark has them; it must find nothing wrong with the file."""
    command = [require_program("tshark"), "-r", str(path), "-o", "ip.check_checksum:TRUE", *PORTS_MEAN_NOTHING,
               "-T", "fields", "-Y", condition, *(part for name in names for part in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cut short" not in done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def echo_once(stack: Stack, payload: bytes = b"hello") -> int:
    """A datagram from the kernel to an application and back; the application's port."""
    with stack.bound() as app, stack.kernel.udp() as peer:
        peer.sendto(payload, app.getsockname())
        data, sender = app.recvfrom(4096)
        app.sendto(data, sender)
        assert peer.recv(4096) == payload
        return app.getsockname()[1]


def test_one_datagrams_way_through_every_layer_and_back(stack, tmp_path):
    path = tmp_path / "way.pcapng"
    echo_once(stack)  # neighbours know each other
    with capturing(stack, "-w", path) as capture:
        port = echo_once(stack)
    assert ", 0 lost" in capture.said
    rows = fields(path, "frame.interface_name", "frame.time_epoch", "data", "frame.comment",
                  condition=f"data && (udp.port == {port} || udp.port == 0)")
    assert [row[0] for row in rows] == WAY_UP + WAY_DOWN
    times = [float(row[1]) for row in rows]
    assert times == sorted(times)
    assert times[-1] - times[0] < PATIENCE_S
    assert {row[2] for row in rows} == {b"hello".hex()}
    assert rows[1][3] == "link 1: PACKET"


def test_a_line_a_packet(stack):
    with capturing(stack, "link:device", "--count", 1, "--filter", "icmp") as capture:
        assert received(stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout) == 1
        assert capture.wait(PATIENCE_S) == 0
    (line,) = capture.lines
    assert " link:device  IP 10.0.0.2 > 10.0.0.1: ICMP echo reply, id " in line
    assert "1 packets captured, 0 lost" in capture.said


def test_to_standard_output_for_wireshark(stack, tmp_path):
    path = tmp_path / "pipe.pcapng"
    with open(path, "wb") as out, capturing(stack, "device", "-w", "-", stdout=out):
        stack.execute("ping", "-c", 1, "-W", 10, STACK)
    assert [row[0] for row in fields(path, "icmp.type", condition="icmp")] == ["8", "0"]


def test_super_packets_are_shown_as_their_packets(stack, tmp_path):
    path = tmp_path / "super.pcapng"
    with capturing(stack, "-w", path), stack.bound() as app, stack.kernel.udp() as peer:
        import socket

        app.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT, udp(7)
        app.sendto(bytes(5000), peer.getsockname())
        assert sum(len(peer.recv(2000)) for _ in range(5)) == 5000
    rows = fields(path, "frame.interface_name", "udp.length", "udp.checksum.status",
                  condition="udp && data.len == 1000")
    for pipe in ("sockets:udp", "udp:ip", "ip:link", "link:device"):
        assert [row[1] for row in rows if row[0] == pipe] == ["1008"] * 5, pipe


def test_control_records_between_layers_are_shown(stack):
    stack.execute("ip", "address", "add", f"{NEW}/24", "dev", TAP)  # the kernel asks for us by its first address alone
    try:
        with capturing(stack, "ip:arp", "arp:ip", "--control") as capture:
            assert received(stack.run("ping", "-c", 1, "-W", 10, NEW).stdout) == 1
    finally:
        stack.execute("ip", "address", "del", f"{NEW}/24", "dev", TAP)
    assert any(f"ip:arp       RESOLVE {NEW}" in line for line in capture.lines)
    assert any(f"arp:ip       NEIGHBOR {NEW} is-at " in line for line in capture.lines)


def test_a_dropped_packet_says_which_counter_and_why(stack, tmp_path):
    path = tmp_path / "drops.pcapng"
    with capturing(stack, "-w", path), stack.kernel.packet() as cable:
        mac = bytes.fromhex(stack.mac.replace(":", ""))
        packet = bytes.fromhex("4500001c00010000401100000a0000010a000002") + bytes.fromhex("00090009000800aa")
        cable.send(mac + stack.kernel.mac() + b"\x08\0" + packet)  # its header's checksum is wrong
        wait_for("the drop", lambda: stack.counters("ip")["bad_header_checksum"])
    (row,) = fields(path, "frame.interface_name", "frame.comment", condition='frame.comment contains "dropped"')
    assert row[0] == "link:ip"
    assert row[1].startswith("dropped by ip 1: bad_header_checksum: ")
    assert len(row[1]) > len("dropped by ip 1: bad_header_checksum: ")


def test_a_layer_killed_while_captured_goes_on_being_seen(new_stack, tmp_path):
    stack, path = new_stack().up(), tmp_path / "killed.pcapng"
    echo_once(stack)
    with capturing(stack, "-w", path) as capture:
        for layer in ("ip", "udp", "link", "sockets"):
            os.kill(stack.pids()[layer], signal.SIGKILL)
            wait_for(f"a new {layer}", lambda layer=layer: stack.serves(**{layer: 2}))
            echo_once(stack)
    assert "lost" in capture.said
    comments = {row[0] for row in fields(path, "frame.comment", condition="udp && data")}
    for layer in ("ip", "udp", "link", "sockets"):
        assert any(comment.startswith(f"{layer} 2: ") for comment in comments), layer


def test_the_stack_goes_down_underneath(new_stack, tmp_path):
    stack, path = new_stack().up(), tmp_path / "down.pcapng"
    with capturing(stack, "-w", path) as capture:
        stack.execute("ping", "-c", 1, "-W", 10, STACK)
        stack.run("down")
        assert capture.wait(PATIENCE_S) == 0
    assert "the stack has ended; " in capture.said
    assert fields(path, "frame.number", condition="icmp")


def test_a_full_disk_leaves_a_whole_file(stack, small_disk):
    path = small_disk.path / "full.pcapng"
    with capturing(stack, "device", "-w", path, on=small_disk.running) as capture:
        stack.execute("ping", "-c", 100, "-i", 0.01, "-s", 1400, "-W", 10, STACK)
        assert capture.wait(PATIENCE_S) == 1
    assert capture.said == (f"launcher.py: {path}: No space left on device; the packets written so far are complete\n")
    assert not path.exists()  # nobody else has seen the disk
    assert len(fields(small_disk.afterwards / "full.pcapng", "frame.number")) > 10


def test_rotation_keeps_the_last_files(stack, tmp_path):
    with capturing(stack, "device", "-w", tmp_path / "part.pcapng", "--rotate", "10kB", "--files", 2):
        stack.execute("ping", "-c", 40, "-i", 0.01, "-s", 1000, "-W", 10, STACK)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 2
    assert parts[0].name > "part-00002"
    assert all(fields(part, "frame.number") for part in parts)


def test_rotation_by_time(stack, tmp_path):
    begun = time.monotonic()
    with capturing(stack, "device", "-w", tmp_path / "part.pcapng", "--rotate", "1s"):
        assert stack.pinged(60, "-i", 0.1) == 60
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"part-{number:05}.pcapng" for number in range(1, len(parts) + 1)]
    # The pings take 5.9 s; a part that `capture` begins late, because it waits for a processor, lasts longer
    assert 3 <= len(parts) <= time.monotonic() - begun + 1
    times = [float(at) for part in parts for (at,) in fields(part, "frame.time_epoch", condition="icmp")]
    assert len(times) >= 120  # a late answer makes ping(8) send another
    assert times == sorted(times)


def test_a_reader_that_stands_still_loses_packets_and_slows_nothing(new_stack, tmp_path):
    stack, path = new_stack().up(), tmp_path / "slow.pcapng"
    with capturing(stack, "-w", path) as capture:
        capture.send_signal(signal.SIGSTOP)
        try:
            assert stack.pinged(3000, "-i", 0, "-s", 1400, "-w", 55) == 3000  # 6 kB each for a ring of 8 MB
        finally:
            capture.send_signal(signal.SIGCONT)
    assert " lost" in capture.said
    lost = int(capture.said.split(" packets captured, ")[1].split(" lost")[0])
    assert lost > 0
    stats = subprocess.run([require_program("capinfos"), str(path)], capture_output=True, text=True, check=True).stdout
    assert "Number of packets" in stats


def unnamed(pid: int, folder: Path) -> list[str]:
    """The open files of a process that were in this folder and have no name."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{folder}/") and path.endswith(" (deleted)")]


def test_what_there_is_no_time_to_encode_waits_beside_the_file(stack, tmp_path):
    """On one processor of several `capture` does not know whether it is free, so it takes little of it."""
    path, processor = tmp_path / "late.pcapng", str(min(os.sched_getaffinity(0)))
    taskset = require_program("taskset")
    with capturing(stack, "-w", path, on=lambda command: [taskset, "-c", processor, *command]) as capture:
        capture.send_signal(signal.SIGSTOP)
        try:
            assert stack.pinged(4000, "-i", 0, "-w", 55) == 4000
        finally:
            capture.send_signal(signal.SIGCONT)
        wait_for("packets that wait", lambda: unnamed(capture.pid, tmp_path))
        assert os.listdir(tmp_path) == [path.name]
        assert stack.pinged(10, "-i", 0.01) == 10
    assert ", 0 lost" in capture.said
    captured = int(capture.said.splitlines()[-1].split(" packets captured, ")[0])
    assert len(fields(path, "frame.number")) == captured
    for pipe in ("icmp:ip", "ip:link", "link:device"):
        replies = fields(path, "frame.number", condition=f'frame.interface_name == "{pipe}" && icmp.type == 0')
        assert len(replies) >= 4010, pipe


def test_a_capture_that_was_killed_leaves_nothing_running(new_stack):
    stack = new_stack().up()
    for _ in range(10):  # more than there may be at a time
        with capturing(stack) as capture:
            capture.kill()
            capture.wait()
        wait_for("the ring's release", lambda: not any(memory_of(pid) for pid in stack.pids().values()))
    with capturing(stack, "--seconds", 0.1):
        pass


def memory_of(pid: int) -> bool:
    """Whether a process shares more than 4 MB that it writes: the ring of a capture, all of whose pages are there."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(rollup[rollup.index("Pss_Shmem:") + 1]) > 4096


def test_no_more_captures_at_a_time_than_there_are_rings(new_stack):
    stack = new_stack().up()
    with contextlib.ExitStack() as several:
        for _ in range(8):
            several.enter_context(capturing(stack, "device"))
        refused = stack.run("capture", "device", status=1)
        assert "8 captures at a time" in refused.stderr
    # Each ring is free when link has answered.
    wait_for("a ring", lambda: not stack.run("capture", "device", "--seconds", 0.1, status=None).returncode)


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["nowhere"], "no pipe 'nowhere'; the pipes are device:link"),
    (["--filter", "udp prt 3"], "syntax error"),
    (["--count", "0"], "--count: '0': must be a whole number, 1 or more"),
    (["--rotate", "10MB"], "--rotate needs -w FILE"),
    (["-w", "x", "--rotate", "many"], "expected a size or a time like 10MB"),
    (["-w", "/nowhere/x"], "No such file or directory")])
def test_bad_arguments_have_a_clear_error(stack, arguments, complaint):
    done = stack.run("capture", *arguments, status=None)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_stack(new_stack):
    done = new_stack().run("capture", status=2)
    assert "no stack is running" in done.stderr


def test_on_a_wire(home, tmp_path):
    from .conftest import end_all, unique_name

    both = [Stack(home, unique_name()), Stack(home, unique_name())]
    try:
        wire = unique_name()
        for stack, address in zip(both, ("10.0.0.2/24", "10.0.0.3/24"), strict=True):
            stack.up("--wire", wire, "--address", address)
        path = tmp_path / "wire.pcapng"
        with capturing(both[0], "device", "-w", path):
            assert received(both[1].run("ping", "-c", 1, "-W", 10, "10.0.0.2").stdout) == 1
        assert [row[0] for row in fields(path, "icmp.type", condition="icmp")] == ["8", "0"]
    finally:
        end_all(both)
