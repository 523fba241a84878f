"""Other processes that are killed, stopped, starved or poisoned, and how this is noticed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from supervisor.child import MEMORY_LIMIT_OCTETS
from tests.faults import schedule, verdict
from tests.faults.campaign import Campaign, Done, limited
from tests.faults.lab import ADDRESS, LAYERS, ROOT, STEADY_FLOWS, WINDOW, Follower, Lab, Load, SmallLab
from tests.faults.load import ECHO_PORT
from tests.faults.schedule import Fault, Incident
from tests.system.peers import titled, wait_for

POISON = b"POISONOUS RECORD"
SEND_POISON = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto({POISON!r}, ({ADDRESS!r}, {ECHO_PORT}))
"""
FLOOD = f"""
import socket
with (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
      socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker):
    asker.connect(({ADDRESS!r}, {ECHO_PORT}))
    asker.settimeout(10)
    for number in range(4000):
        sender.sendto(b"%d" % number, ({ADDRESS!r}, 6000))
        if number % 50 == 0:  # the stack has taken them: they fill no queue in front of it
            asker.send(b"?")
            asker.recv(1)
"""
SLEEPER = f"""
import usernet
endpoint = usernet.socket(usernet.AF_INET, usernet.SOCK_DGRAM)
endpoint.bind(({ADDRESS!r}, 6000))
print("bound", flush=True)
print(endpoint.recv(100).decode(), flush=True)
"""
SPIN_S = 5.0
ORDINARY_USER = 65534


def lost(load: Load, since: float) -> dict[str, int]:
    """Ends the load; what it lost in its steady flows since then. No application may have seen an error."""
    load.stop()
    errors = [text for book in load.books.values() for _, kind, text in book.oddities() if kind == "error"]
    assert errors == []
    return {name: verdict.lost(load.books[name], since, time.monotonic()) for name in STEADY_FLOWS}


def ended(process: psutil.Process) -> bool:
    """Whether it has; also if init has not reaped it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def still_there(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended a second later."""
    deadline = time.monotonic() + 1.0
    while alive := [process for process in processes if not ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return alive


def test_a_record_that_kills_is_set_aside_after_the_second_death(sandbox, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "docs"))
    core = checkout / "layers" / "udp" / "core.py"
    text = core.read_text()
    line = "            if len(record) < shortest:\n"
    assert text.count(line) == 1
    core.write_text(text.replace(line, f"            if {POISON!r} in record:\n"
                                       f"                raise RuntimeError('poisoned')\n{line}"))
    with Lab(checkout) as lab:
        load, follower = Load(lab, WINDOW), Follower(lab)
        started = time.monotonic()
        lab.launcher("exec", "--", sys.executable, "-c", SEND_POISON)
        assert follower.wait(0, lambda events: [e for e in events if e["event"] == "poison"], 5)
        assert load.wait_answering(time.monotonic())
        assert [event["layer"] for event in follower.events if event["event"] == "died"] == ["udp", "udp"]
        captures = list((lab.folder / "state").rglob("poison-udp-*.pcap"))
        assert len(captures) == 1
        assert POISON in captures[0].read_bytes()
        assert set(lost(load, started).values()) == {0}


def test_a_layer_that_is_killed_twice_over_the_same_record_does_not_blame_it(lab, load):
    incidents = [Incident("again", (Fault("kill", layer), Fault("kill", layer)), 0.0) for layer in LAYERS]
    for done in Campaign(lab, load).run(incidents):
        assert done.recovered
        assert [event for event in done.events if event["event"] == "poison"] == []


def test_the_launcher_may_be_killed(sandbox):
    with Lab() as lab:
        lab.launcher("down")
        command = [sys.executable, str(ROOT / "launcher.py"), "up", "--name", lab.name, "--address", f"{ADDRESS}/16"]
        launcher = subprocess.Popen(command, env=lab.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        lab.processes.append(launcher)
        assert "is up" in launcher.stdout.readline()
        load = Load(lab, WINDOW)
        started = time.monotonic()
        launcher.kill()
        launcher.wait()
        assert load.wait_answering(time.monotonic() + 0.3)
        assert "running already" in lab.launcher("up", "--detach")
        assert lab.status()["state"] == "up"
        assert set(lost(load, started).values()) == {0}


def test_the_keeper_may_be_killed(lab):
    status = lab.status()
    processes = [psutil.Process(layer["pid"]) for layer in status["layers"].values()]
    keeper = psutil.Process(status["keeper"])
    processes += keeper.children()
    keeper.kill()
    wait_for("the end of all", lambda: not still_there([keeper, *processes]))
    wait_for("the removal of the run directory", lambda: not lab.run_dir.exists())
    lab.up()
    Load(lab).stop()


def test_a_stopped_application_harms_only_itself(lab, load):
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER], env=lab.environment, cwd=ROOT, stdout=subprocess.PIPE,
                               text=True)
    lab.processes.append(sleeper)
    assert sleeper.stdout.readline() == "bound\n"
    sleeper.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    lab.launcher("exec", "--", sys.executable, "-c", FLOOD)
    assert set(lost(load, started).values()) == {0}
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.communicate(timeout=10)[0].strip() == "0"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_planned_restart_loses_nothing(lab, load, layer):
    started = time.monotonic()
    lab.launcher("restart", layer)
    assert load.wait_answering(time.monotonic())
    assert set(lost(load, started).values()) == {0}


def test_a_machine_under_full_load_is_no_hang(lab, load):
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        time.sleep(SPIN_S)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert {name: layer["restarts"] for name, layer in lab.status()["layers"].items()} == dict.fromkeys(LAYERS, 0)
    load.stop()


def test_a_stopped_layer_is_gone_before_its_successor_serves(lab, load):
    for layer in LAYERS:
        before = psutil.Process(lab.status()["layers"][layer]["pid"])
        (done,) = Campaign(lab, load).run([Incident("steady", (Fault("stop", layer),), 0.0)])
        assert done.recovered
        assert not before.is_running()


def test_memory_is_limited(lab, load):
    most, tries = 0, 0
    while most < MEMORY_LIMIT_OCTETS // 2 and tries < 3:  # it may be over before it was seen
        tries += 1
        victim = psutil.Process(lab.status()["layers"]["udp"]["pid"])
        lab.ask("sabotage", layer="udp", fault="memory")
        with contextlib.suppress(psutil.NoSuchProcess):
            while True:
                most = max(most, victim.memory_info().rss)
                time.sleep(0.005)
        assert load.wait_answering(time.monotonic())
    assert MEMORY_LIMIT_OCTETS // 2 <= most < MEMORY_LIMIT_OCTETS + 64_000_000


def child(lab: Lab, what: str) -> psutil.Process | None:
    """A process of the lab's stack, by its title."""
    found = titled(f"usernet {lab.name}: {what}")
    return psutil.Process(min(found)) if found else None


@pytest.mark.parametrize("later_s", [0.0, 0.02])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_killed_during_the_boot_is_replaced(sandbox, layer, later_s):
    """At once after its fork, or a little later."""
    lab = Lab()
    try:
        command = [sys.executable, str(ROOT / "launcher.py"), "up", "--detach", "--name", lab.name]
        boot = subprocess.Popen(command, env=lab.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        victim = wait_for("the layer", lambda: child(lab, layer))
        time.sleep(later_s)
        victim.kill()
        assert boot.wait(60) == 0, boot.stderr.read()
        boot.stderr.close()
        # the boot may have been faster than the kill, and the keeper may not have noticed that yet
        wait_for("another process", lambda: lab.status()["layers"][layer]["pid"] != victim.pid)
        wait_for("all layers", lambda: {each["state"] for each in lab.status()["layers"].values()} == {"up"})
        lab.down()
        assert not lab.run_dir.exists()
    finally:
        lab.__exit__()


@pytest.mark.parametrize("later_s", [0.1, 0.2, 0.25, 0.3])
@pytest.mark.parametrize("victim", ["link", "sockets", "cleanup", "keeper"])
def test_down_leaves_nothing_if_a_process_is_killed_in_the_middle_of_it(lab, victim, later_s):
    """Of the command the interpreter starts in the first 0.1 s."""
    process = child(lab, victim)
    family = [process, *psutil.Process(lab.status()["keeper"]).children(recursive=True)]
    command = [sys.executable, str(ROOT / "launcher.py"), "down", "--name", lab.name]
    down = subprocess.Popen(command, env=lab.environment, cwd=ROOT, stderr=subprocess.PIPE)
    time.sleep(later_s)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    down.communicate(timeout=60)
    wait_for("the end of all", lambda: not still_there(family))
    wait_for("the removal of the run directory", lambda: not lab.run_dir.exists())


def faults(lab: Lab, moment: str, kind: str = "kill") -> tuple[list[Done], Load, float]:
    """A fault of each layer at a moment: what `verdict.judge` takes."""
    load = Load(lab, WINDOW)
    done = Campaign(lab, load).run(schedule.every((kind,), moment))
    time.sleep(0.3)  # what is under way arrives
    load.stop()
    return done, load, time.monotonic()


def judged_at(lab: Lab, moment: str) -> None:
    """Every layer came back, and no application saw it."""
    verdicts = verdict.judge(*faults(lab, moment))
    assert [each.layers for each in verdicts if not each.recovered or each.errors] == []
    assert sum(each.lost_total == 0 for each in verdicts) >= len(LAYERS) - 1
    assert len(verdicts) == len(LAYERS)


@pytest.mark.parametrize("pipes", ["direct", "zmq"])
@pytest.mark.parametrize("moment", ["descriptors", "layers' descriptors"])
def test_each_layer_comes_back_without_a_free_descriptor(sandbox, moment, pipes):
    with Lab(options=("--pipes", pipes)) as lab:
        judged_at(lab, moment)


@pytest.mark.parametrize("pipes", ["direct", "zmq"])
@pytest.mark.parametrize("kind", ["stop", "sleep"])
def test_each_layer_that_hangs_is_noticed_while_the_keeper_has_no_free_descriptor(sandbox, kind, pipes):
    """What the kernel tells about a process is in a file."""
    with Lab(options=("--pipes", pipes)) as lab:
        done, _, _ = faults(lab, "descriptors", kind)
        assert [each.incident.faults[0].layer for each in done if not each.recovered] == []
        assert len(done) == len(LAYERS)


@pytest.mark.parametrize("limit", [resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC], ids=["descriptors", "processes"])
@pytest.mark.parametrize("pipes", ["direct", "zmq"])
def test_a_layer_without_a_spare_comes_back_while_the_keeper_is_limited(sandbox, pipes, limit):
    """Its process ended a moment ago, so there is no process in reserve: the keeper has descriptors in reserve, and a
    process that it forks then (root may always fork) may have as many descriptors and threads as ever.
    """
    with Lab(options=("--pipes", pipes)) as lab:
        follower = Follower(lab)

        def ends(layer: str, fault: str) -> None:
            former = lab.status()["layers"][layer]["incarnation"]
            lab.ask("sabotage", layer=layer, fault=fault)
            wait_for(f"{layer} to serve again", lambda: (now := lab.status()["layers"][layer])["state"] == "up"
                     and now["incarnation"] > former)

        for layer in LAYERS:
            ends(layer, "kill")
            with limited([lab.status()["keeper"]], limit):
                ends(layer, "raise")
        assert [event for event in follower.events if event["event"] == "trouble"] == []


def test_each_layer_comes_back_while_the_keeper_may_not_fork():
    """EAGAIN at RLIMIT_NPROC, which does not hold for root: the campaign of an ordinary user, on a wire."""
    home = Path(tempfile.mkdtemp(prefix="uf-", dir="/tmp"))
    command = [sys.executable, "-m", "tests.faults", "--load", "wire", "--moment", "processes", "--kind", "kill",
               "--seed", "1", "--faults", "60", "--seconds", "60", "--control", "1", "--json", str(home / "verdicts")]
    user = {}
    if os.geteuid() == 0:
        shutil.chown(home, ORDINARY_USER)
        user = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
    try:
        # its status also judges times
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False, **user,
                              env={"PATH": os.environ["PATH"], "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"})
        assert (home / "verdicts").exists(), done.stderr
        verdicts = json.loads((home / "verdicts").read_text())["verdicts"]
    finally:
        shutil.rmtree(home)
    assert len(verdicts) >= 3
    told = [{name: value for name, value in each.items() if value} for each in verdicts
            if not each["recovered"] or each["errors"] or any(each["lost"].values())]
    assert not told, f"{len(told)} of {len(verdicts)}: {told}"


def test_each_layer_comes_back_while_no_file_can_be_made(sandbox):
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with SmallLab() as lab:
        judged_at(lab, "space")


def test_nothing_is_left_behind(sandbox):
    with Lab() as lab:
        keeper = psutil.Process(lab.status()["keeper"])
        family = [keeper, *keeper.children(recursive=True)]
        lab.down()
        assert still_there(family) == []
        assert not lab.run_dir.exists()
        folder: Path = lab.folder
    assert not folder.exists()
