"""The launcher's verbs, and what they leave behind: nothing."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from .conftest import require_program, require_root, unavailable, unique_name
from .peers import KERNEL, LAYERS, PATIENCE_S, STACK, TAP, Stack, alive, copy_product, received, wait_for

OTHER_USER = 65534
ATTEMPTS = 10  # the other workers of the suite may have the processors
TUN_DEVICE = (10, 200)  # Linux devices.txt: /dev/net/tun


def pings(stack: Stack) -> bool:
    """Whether the kernel's end gets an answer from the stack."""
    return received(stack.execute("ping", "-c", 1, "-W", 10, STACK, status=None).stdout) == 1


def printed_events(stack: Stack) -> list[dict]:
    """What `events --json` prints."""
    return [json.loads(line) for line in stack.run("events", "--json").stdout.splitlines()]


def one_line(done: subprocess.CompletedProcess) -> str:
    """An error is one line on standard error, and no traceback."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("launcher.py: ")
    return line


# -- up and down ------------------------------------------------------------------------------------------------------


def test_up_detached_answers_once_it_returns_and_down_leaves_nothing(new_stack) -> None:
    stack = new_stack()
    output = stack.run("up", "--detach").stdout
    assert re.fullmatch(rf"stack '{stack.name}' is up in \d+\.\d+ s: .*\n", output)
    assert pings(stack)
    pids = [*stack.processes()]
    assert len(pids) >= len(LAYERS) + 2  # the keeper and its cleanup process
    stack.run("down")
    assert not [pid for pid in pids if alive(pid)]
    assert not stack.run_dir.exists()
    one_line(stack.run("status", status=2))


def test_processes_say_what_they_are(new_stack) -> None:
    stack = new_stack().up()
    status = stack.status()
    titles = stack.processes()
    assert titles[status["keeper"]] == f"usernet {stack.name}: keeper"
    for name, pid in stack.pids().items():
        assert titles[pid] == f"usernet {stack.name}: {name}"
        assert psutil.Process(pid).ppid() == status["keeper"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_up_in_the_foreground_shows_events_until_it_is_stopped(new_stack, end: signal.Signals) -> None:
    stack = new_stack()
    shown = stack.popen("up")
    for line in shown.stdout:
        if " up after " in line:
            break
    stack.run("restart", "udp")
    for line in shown.stdout:
        if "udp[" in line and "serves" in line:
            break
    shown.send_signal(end)
    rest, _ = shown.communicate(timeout=PATIENCE_S)
    assert shown.returncode == 0
    assert "Traceback" not in rest
    stack.check_gone()


def test_up_that_is_interrupted_while_it_boots_leaves_nothing(new_stack) -> None:
    stack = new_stack()
    booting = stack.popen("up")
    wait_for("the keeper", lambda: "keeper" in "".join(stack.processes().values()))
    booting.send_signal(signal.SIGINT)
    output, _ = booting.communicate(timeout=PATIENCE_S)
    assert booting.returncode == 0
    assert "Traceback" not in output
    stack.check_gone()


def test_up_twice_finds_the_stack_that_runs(new_stack) -> None:
    stack = new_stack().up()
    keeper = stack.keeper
    assert "is running already" in stack.run("up", "--detach").stdout
    assert stack.keeper == keeper


def test_stacks_side_by_side_do_not_know_of_each_other(new_stack) -> None:
    stacks = [new_stack().up() for _ in range(3)]
    apps = [stack.bound(5055) for stack in stacks]  # the same address and port in each
    with contextlib.ExitStack() as closing:
        for number, (stack, app) in enumerate(zip(stacks, apps, strict=True)):
            closing.enter_context(app)
            with stack.kernel.udp() as peer:
                peer.sendto(b"for %d" % number, (STACK, 5055))
                peer.sendto(b"end", (STACK, 5055))
                assert [app.recv(100), app.recv(100)] == [b"for %d" % number, b"end"]
    stacks[0].run("down")
    assert pings(stacks[1])
    assert pings(stacks[2])


def test_sigkill_of_the_keeper_ends_everything_within_a_second_and_up_works_again(new_stack) -> None:
    stack, took_s = new_stack(), []
    while not took_s or (took_s[-1] > 1.0 and len(took_s) < ATTEMPTS):
        stack.up()
        with stack.bound(), stack.bound():
            begun = time.monotonic()
            os.kill(stack.keeper, signal.SIGKILL)
            stack.check_gone()
            took_s.append(time.monotonic() - begun)
    assert min(took_s) <= 1.0, took_s
    one_line(stack.run("status", status=2))
    stack.up()
    assert pings(stack)


def test_files_of_a_dead_stack_are_no_obstacle(new_stack) -> None:
    """Socket files that belong to no stack do not prevent a boot: even the cleanup process may have been killed."""
    stack = new_stack()
    stack.run_dir.mkdir(mode=0o700, parents=True)
    (stack.run_dir / "sockets").mkdir()
    (stack.run_dir / "lock").write_bytes(b"usernet run directory\n")
    for name in ("control", "link", "sockets", "sockets/app-deadbeef123"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(stack.run_dir / f"{name}.sock"))
    one_line(stack.run("status", status=2))
    stack.up()
    assert pings(stack)


def test_sigkill_of_the_launcher_does_not_stop_the_traffic(new_stack) -> None:
    stack = new_stack()
    shown = stack.popen("up")
    for line in shown.stdout:
        if " up after " in line:
            break
    before = stack.pids()
    shown.kill()
    shown.wait()
    assert pings(stack)
    assert stack.pids() == before
    again = stack.popen("up")
    assert "is running already" in again.stdout.readline()
    again.send_signal(signal.SIGINT)
    assert again.wait(PATIENCE_S) == 0
    stack.check_gone()


# -- options ----------------------------------------------------------------------------------------------------------


def test_mtu_and_mac_are_kept_over_restarts(new_stack) -> None:
    mac = "02:12:34:56:78:9a"
    stack = new_stack().up("--mac", mac.upper(), "--mtu", 900)
    for restart in (False, True):
        if restart:
            stack.run("restart", "all")
        status = stack.status()
        assert (status["mac"], status["mtu"]) == (mac, 900)
        stack.execute("ip", "neigh", "flush", "dev", TAP)
        assert received(stack.execute("ping", "-c", 1, "-W", 10, "-s", 900 - 28, "-M", "do", STACK).stdout) == 1
        assert mac in stack.kernel.neighbor()
        with stack.bound() as app:
            app.setsockopt(socket.IPPROTO_IP, 10, 2)  # ip(7): IP_MTU_DISCOVER, IP_PMTUDISC_DO
            app.sendto(bytes(900 - 28), (KERNEL, 9))
            with pytest.raises(OSError, match="Message too long"):
                app.sendto(bytes(900 - 27), (KERNEL, 9))
    link = json.loads(stack.execute("ip", "-json", "link", "show", TAP).stdout)[0]
    assert link["mtu"] == 900


def test_rfc1122_3_2_1_7_the_default_ttl_applies_to_all_sockets(new_stack) -> None:
    stack = new_stack()
    config = stack.home / "ttl.toml"
    config.write_text("ttl = 7\n")
    stack.up("--config", config)
    for restart in (False, True):
        if restart:
            stack.run("restart", "all")
        assert " ttl=7 " in stack.execute("ping", "-c", 1, "-W", 10, STACK).stdout
        with stack.kernel.udp() as peer, stack.bound() as app:
            peer.setsockopt(socket.IPPROTO_IP, 12, 1)  # ip(7): IP_RECVTTL
            assert app.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 7
            for chosen, heard in ((None, 7), (9, 9), (-1, 7)):
                if chosen is not None:
                    app.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, chosen)
                app.sendto(b"how old am I?", peer.getsockname())
                _, ancillary, _, _ = peer.recvmsg(64, 64)
                assert ancillary == [(socket.IPPROTO_IP, socket.IP_TTL, heard.to_bytes(4, sys.byteorder))]
    assert one_line(new_stack().run("up", "--detach", "--ttl", 256, status=2)).endswith("--ttl 256: 1 to 255")


def test_address_gateway_and_tap_of_ones_own(new_stack) -> None:
    stack = new_stack().up("--address", "192.168.77.9/29", "--gateway", "192.168.77.14", "--tap", "cable0")
    status = stack.status()
    assert (status["address"], status["tap"]) == ("192.168.77.9/29", "cable0")
    shown = json.loads(stack.execute("ip", "-json", "-4", "address", "show", "dev", "cable0").stdout)
    assert shown[0]["addr_info"][0]["local"] == "192.168.77.14"
    assert received(stack.execute("ping", "-c", 1, "-W", 10, "192.168.77.9").stdout) == 1


def test_a_config_file_and_over_it_the_command_line(new_stack) -> None:
    stack = new_stack()
    config = stack.home / f"{stack.name}.toml"
    config.write_text('address = "10.9.8.7/16"\nmtu = 1280\n')
    stack.up("--config", config, "--mtu", 1000)
    status = stack.status()
    assert (status["address"], status["mtu"]) == ("10.9.8.7/16", 1000)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--address", "10.0.0"], "--address"),
    (["--address", "10.0.0.255/24"], "broadcast"),
    (["--address", "10.0.0.2/33"], "--address"),
    (["--gateway", "10.0.1.1"], "--gateway"),
    (["--mac", "01:00:00:00:00:02"], "--mac"),
    (["--mac", "zz"], "--mac"),
    (["--mtu", "20"], "--mtu"),
    (["--mtu", "70000"], "--mtu"),
    (["--cores", "4096"], "--cores"),
    (["--cores", "sideways"], "--cores"),
    (["--wire", "a/b"], "--wire"),
    (["--wire", "w", "--host"], "--host"),
    (["--config", "/nowhere.toml"], "/nowhere.toml"),
    (["--name", "../else"], "name"),
    (["--name", "x" * 33], "name"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_an_option_that_cannot_be_is_one_line_and_status_2(home, arguments: list[str], said: str) -> None:
    stack = Stack(home, unique_name())
    assert said in one_line(stack.run("up", "--detach", *arguments, status=2))
    assert not stack.run_dir.exists()


@pytest.mark.parametrize("arguments", [
    ["down"], ["status"], ["status", "--json"], ["restart", "all"], ["events"], ["exec", "--", "true"],
    ["sabotage", "udp", "kill"], ["ping", "-c", "1", KERNEL],
], ids=" ".join)
def test_a_verb_without_a_stack_says_how_to_start_one(home, arguments: list[str]) -> None:
    line = one_line(Stack(home, unique_name()).run(*arguments, status=2))
    assert "launcher.py up --detach" in line


@pytest.mark.parametrize("arguments", [["fly"], ["up", "--fast"], ["restart"], [], ["up", "--mtu", "x"]], ids=" ".join)
def test_an_invalid_command_line_has_status_2(home, arguments: list[str]) -> None:
    line = one_line(Stack(home, unique_name()).run(*arguments, status=2))
    assert "argument" in line


def test_a_run_directory_too_long_for_sockets_is_refused_with_what_to_do(home) -> None:
    deep = home / ("d" * 90)
    failed = Stack(deep, unique_name()).run("up", "--detach", status=None, cwd=home)
    assert failed.returncode in (1, 2)
    assert "USERNET_DIR" in one_line(failed)


def test_usernet_dir_is_the_run_directory(new_stack, home) -> None:
    stack = new_stack()
    stack.run_dir = home / f"d-{stack.name}"
    stack.env["USERNET_DIR"] = str(stack.run_dir)
    stack.up()
    assert stack.status()["run_dir"] == str(stack.run_dir)
    assert stack.run_dir.stat().st_mode & 0o777 == 0o700
    assert pings(stack)


# -- status, restart, exec --------------------------------------------------------------------------------------------


def test_status_as_json_has_what_the_design_says(new_stack) -> None:
    stack = new_stack().up()
    assert pings(stack)
    status = stack.status()
    assert status["name"] == stack.name
    assert status["address"] == f"{STACK}/24"
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", status["mac"])
    assert (status["mtu"], status["tap"], status["state"]) == (1500, TAP, "up")
    assert status["run_dir"] == str(stack.run_dir)
    assert list(status["layers"]) == LAYERS
    for layer in status["layers"].values():
        assert set(layer) >= {"pid", "state", "incarnation", "restarts", "uptime_s", "rss_bytes", "cpu_s", "counters"}
        assert (layer["state"], layer["incarnation"], layer["restarts"]) == ("up", 1, 0)
        assert alive(layer["pid"])
        assert layer["uptime_s"] > 0
        assert layer["rss_bytes"] > 1 << 20
        assert layer["cpu_s"] >= 0
        assert all(isinstance(value, int) for value in layer["counters"].values())
    assert status["layers"]["icmp"]["counters"]["echo_replies_sent"] == 1


def test_status_as_a_table(new_stack) -> None:
    stack = new_stack().up()
    lines = stack.run("status").stdout.splitlines()
    assert lines[0].startswith(f"stack {stack.name}: up, {STACK}/24, {TAP}")
    for name, pid in stack.pids().items():
        row, *_ = [line.split() for line in lines if line.startswith(f"{name} ")]
        assert row[1:3] == [str(pid), "up"]


def test_restart_of_one_layer_leaves_the_others_alone(new_stack) -> None:
    stack = new_stack().up()
    before = stack.pids()
    stack.run("restart", "ip", "arp")
    after = stack.status()
    assert {name for name, layer in after["layers"].items() if layer["pid"] != before[name]} == {"ip", "arp"}
    assert {name: layer["incarnation"] for name, layer in after["layers"].items()} == {
        name: 2 if name in ("ip", "arp") else 1 for name in LAYERS}
    assert after["layers"]["ip"]["restarts"] == 1
    assert pings(stack)


def test_restart_of_all_layers_and_of_an_unknown_layer(new_stack) -> None:
    stack = new_stack().up()
    stack.run("restart", "all")
    assert set(stack.incarnations().values()) == {2}
    assert stack.status()["state"] == "up"
    assert pings(stack)
    line = one_line(stack.run("restart", "tpc", status=2))
    assert "tpc" in line
    assert "udp" in line
    assert set(stack.incarnations().values()) == {2}


def test_exec_passes_status_input_and_output_through(new_stack) -> None:
    stack = new_stack().up()
    assert stack.run("exec", "--", "sh", "-c", "exit 7", status=7).stdout == ""
    done = stack.run("exec", "--", "sh", "-c", "cat; echo problem >&2", input="through\n")
    assert (done.stdout, done.stderr) == ("through\n", "problem\n")
    assert stack.run("exec", "--", "sh", "-c", "kill -9 $$", status=-9).returncode == -9
    one_line(stack.run("exec", "--", "no-such-command", status=127))
    assert f"inet {KERNEL}/24" in stack.run("exec", "--", "ip", "address", "show", "dev", TAP).stdout


def test_events_tell_what_happened_in_order(new_stack) -> None:
    stack = new_stack().up()
    followed = stack.popen("events", "--follow", "--json")
    assert json.loads(followed.stdout.readline())["event"] == "serves"
    stack.run("sabotage", "udp", "kill")
    wait_for("udp to serve again", lambda: stack.serves(udp=2))
    told = [event for event in printed_events(stack) if event.get("layer") == "udp"]
    assert [event["event"] for event in told] == ["serves", "sabotage", "died", "serves"]
    assert "SIGKILL" in told[2]["detail"]
    assert told[3]["gap_ms"] > 0
    stack.run("down")
    seen = [json.loads(line) for line in followed.stdout]
    assert [event["event"] for event in seen if event.get("layer") == "udp"] == ["serves", "sabotage", "died", "serves"]
    assert followed.wait(PATIENCE_S) == 0


def test_sabotage_of_what_there_is_not_is_one_line(new_stack) -> None:
    stack = new_stack().up()
    assert "udp" in one_line(stack.run("sabotage", "tpc", "kill", status=None))
    assert "loop" in one_line(stack.run("sabotage", "udp", "sing", status=None))
    assert set(stack.incarnations().values()) == {1}


# -- other ways to run it ---------------------------------------------------------------------------------------------


def test_host_uses_the_network_namespace_that_it_is_started_in(new_stack, tap) -> None:
    """In one that the test makes, of course: the machine's own is left alone."""
    require_root()
    require_program("ip")
    namespace = f"un-{unique_name()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        stack = new_stack()
        stack.command = lambda *arguments: ["ip", "netns", "exec", namespace, *Stack.command(stack, *arguments)]

        def inside(*command: str) -> str:
            return subprocess.run(["ip", "netns", "exec", namespace, *command], check=True, capture_output=True,
                                  text=True).stdout

        stack.up("--host", "--tap", "tapx")
        assert f"inet {KERNEL}/24" in inside("ip", "address", "show", "dev", "tapx")
        assert received(inside("ping", "-c", "1", "-W", "10", STACK)) == 1
        assert received(stack.run("exec", "ping", "-c", 1, "-W", 10, STACK).stdout) == 1
        busy = Stack(stack.home, unique_name())
        busy.command = stack.command
        assert "--tap" in one_line(busy.run("up", "--detach", "--host", "--tap", "tapx", status=1))
        wait_for("the end of the second try", lambda: not busy.processes())
        stack.run("down")
        assert "tapx" not in inside("ip", "link")
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)


def closed_to_others(path: Path) -> Path | None:
    """The uppermost directory on the way to `path` that others may not pass."""
    for folder in [*reversed(path.parents), path]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def test_an_ordinary_user_needs_no_privilege(tap) -> None:
    """In a mount namespace of its own, with a /dev/net/tun that everybody may open, as most distributions have it."""
    require_root()
    setpriv, unshare = require_program("setpriv"), require_program("unshare")
    folder = Path(tempfile.mkdtemp(prefix="un", dir="/tmp"))  # not below tmp_path, which is closed to others
    stage = folder / "stage"
    home = folder / "home"
    stage.mkdir()
    home.mkdir()
    folder.chmod(0o755)
    os.chown(home, OTHER_USER, OTHER_USER)
    home.chmod(0o700)
    script = ["set -e", f"mount -t tmpfs -o mode=755,dev tmpfs {stage}",
              f"mknod {stage}/tun c {TUN_DEVICE[0]} {TUN_DEVICE[1]}", f"chmod 666 {stage}/tun",
              f"mount --bind {stage}/tun /dev/net/tun"]
    # The interpreter may lie in a home that is closed to others: show only it there.
    needed = [(path, closed) for path in {Path(sys.prefix), Path(sys.base_prefix)}
              if (closed := closed_to_others(path))]
    for number, (path, _) in enumerate(needed):
        script += [f"mkdir {stage}/{number}", f"mount --bind {path} {stage}/{number}"]
    script += [f"mount -t tmpfs -o mode=755 tmpfs {closed}" for closed in {closed for _, closed in needed}]
    for number, (path, _) in enumerate(needed):
        script += [f"mkdir -p {path}", f"mount --bind {stage}/{number} {path}"]
    script += [f'exec {setpriv} --reuid {OTHER_USER} --regid {OTHER_USER} --clear-groups "$@"']
    checkout = copy_product(folder / "checkout")
    subprocess.run(["chmod", "-R", "a+rX", str(checkout)], check=True)
    stack = Stack(home, unique_name(), checkout)
    stack.env |= {"HOME": str(home), "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    stack.command = lambda *arguments: [unshare, "--mount", "--propagation", "private", "sh", "-c", "\n".join(script),
                                        "sh", *Stack.command(stack, *arguments)]
    try:
        tried = stack.run("up", "--detach", status=None)
        if tried.returncode and re.search("mknod|mount", tried.stderr):
            unavailable(f"no mount namespace with a device: {tried.stderr}")
        assert tried.returncode == 0, tried.stderr
        owners = {psutil.Process(pid).uids().real for pid in stack.processes()}
        assert owners == {OTHER_USER}
        assert "root" not in stack.run("exec", "cat", "/proc/self/status").stdout
        assert received(stack.run("ping", "-c", 1, "-W", 10, KERNEL).stdout) == 1
        assert f"inet {KERNEL}/24" in stack.run("exec", "ip", "address", "show", "dev", TAP).stdout
        stack.run("down")
        stack.check_gone()
    finally:
        try:
            stack.end()
        finally:
            shutil.rmtree(folder)


def test_events_contain_the_date_and_the_caller_of_each_request(new_stack) -> None:
    stack = new_stack().up()
    stack.run("restart", "udp")
    stack.run("sabotage", "icmp", "raise")
    wait_for("icmp", lambda: stack.serves(icmp=2))
    asked = [(event["event"], event["layer"], event["detail"]) for event in printed_events(stack)
             if event["event"] in ("restart", "sabotage")]
    assert [(event, layer) for event, layer, _ in asked] == [("restart", "udp"), ("sabotage", "icmp")]
    assert re.fullmatch(r"asked for by process \d+ \(.+\)", asked[0][2])
    assert re.fullmatch(r"raise, ordered by process \d+ \(.+\)", asked[1][2])
    first = stack.run("events").stdout.splitlines()[0]
    at = datetime.datetime.strptime(first[:23], "%Y-%m-%d %H:%M:%S.%f")
    assert abs((datetime.datetime.now() - at).total_seconds()) < 3600


@pytest.mark.parametrize("arguments", [
    ["status"], ["events"], ["restart", "udp"], ["down"], ["up", "--detach"], ["list"], ["route", "list"],
    ["capture", "udp"], ["impair", "list"], ["sabotage", "udp", "kill"],
], ids=" ".join)
def test_a_keeper_that_is_stopped_is_told_of_by_every_verb(new_stack, arguments: list[str]) -> None:
    stack = new_stack().up()
    keeper = stack.keeper
    os.kill(keeper, signal.SIGSTOP)
    try:
        done = stack.run(*arguments, status=None)
        assert f"the keeper [{keeper}] is stopped" in done.stdout + done.stderr
        assert done.returncode == (0 if arguments == ["list"] else 1)
    finally:
        os.kill(keeper, signal.SIGCONT)
    if arguments == ["down"]:
        stack.check_gone()  # it heard of it
