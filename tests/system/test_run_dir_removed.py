"""A run directory that a cleaner of temporary files removes, wholly or in part, under a stack that runs."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor.control import Client, claimed

from .conftest import require_program, unique_name
from .peers import LAYERS, PATIENCE_S, Stack, copy_product, titled, wait_for


def remove(directory: Path) -> None:
    """As a cleaner of temporary files does, while the keeper may make some of it anew."""
    while directory.exists():
        with suppress(OSError):
            shutil.rmtree(directory)


def made(directory: Path) -> bool:
    """Make it; False: the keeper was faster."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def serves_an_application(stack: Stack) -> bool:
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        return app.recv(100) == b"to itself"


@pytest.mark.parametrize("removed", ["udp.sock", "sockets.sock", "ip/udp.sock", "lock"])
def test_a_name_that_was_removed_is_given_back_and_nothing_restarts(new_stack, removed: str) -> None:
    stack = new_stack().up()
    before = stack.incarnations()
    with stack.bound() as app:
        (stack.run_dir / removed).unlink()
        wait_for("the name", lambda: (stack.run_dir / removed).exists())
        app.sendto(b"still there", app.getsockname())
        assert app.recv(100) == b"still there"
        stack.run("restart", "udp")  # its neighbours find the new one
        app.sendto(b"and again", app.getsockname())
        assert app.recv(100) == b"and again"
    assert stack.incarnations() == before | {"udp": before["udp"] + 1}
    assert serves_an_application(stack)


def test_a_layer_that_has_no_name_left_gets_a_new_socket(new_stack) -> None:
    stack = new_stack().up()
    before = stack.incarnations()
    remove_every_name_of_udp(stack)
    wait_for("udp", lambda: stack.incarnations()["udp"] > before["udp"] and stack.serves())
    assert serves_an_application(stack)
    assert any(event["event"] == "run directory" for event in stack.events())


def remove_every_name_of_udp(stack: Stack) -> None:
    keeper = stack.keeper
    os.kill(keeper, signal.SIGSTOP)  # it would give one name back by another
    try:
        wait_for("its stop", lambda: Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        for name in ("udp.sock", "ip/udp.sock", "icmp/udp.sock", "sockets/udp.sock"):
            (stack.run_dir / name).unlink(missing_ok=True)
    finally:
        os.kill(keeper, signal.SIGCONT)


def test_a_layer_that_loads_new_code_meanwhile_gets_a_new_socket_after_that(new_stack, home: Path) -> None:
    """The process that loads it was forked with the former one."""
    checkout = copy_product(home / "loads")
    stack = new_stack(checkout).up()
    with (checkout / "layers" / "udp" / "core.py").open("a") as core:
        core.write("\nimport time\ntime.sleep(3)\n")
    restart = stack.popen("restart", "udp")
    wait_for("the successor", lambda: len(titled(f"usernet {stack.name}: udp")) > 2)
    remove_every_name_of_udp(stack)
    wait_for("the new socket", lambda: [event for event in stack.events() if event["event"] == "run directory"])
    wait_for("udp", lambda: stack.incarnations()["udp"] > 2 and stack.serves())
    assert restart.wait(PATIENCE_S) == 0
    assert serves_an_application(stack)


@pytest.mark.parametrize("gone", ["the directory", "the directory above it"])
def test_a_directory_that_was_removed_is_made_anew(new_stack, gone: str) -> None:
    stack = new_stack().up()
    before, keeper = stack.incarnations(), stack.keeper
    assert list(claimed()).count(stack.run_dir) == 1
    remove(stack.run_dir if gone == "the directory" else stack.run_dir.parent)
    assert stack.keeper == keeper  # found without any file
    wait_for("all layers", lambda: (stack.run_dir / "control.sock").exists()
             and all(number > before[name] for name, number in stack.incarnations().items()) and stack.serves())
    assert set(stack.incarnations()) >= set(LAYERS)
    assert serves_an_application(stack)
    assert "is running already" in stack.run("up", "--detach").stdout
    assert stack.status()["state"] == "up"
    stack.run("down")
    stack.check_gone()


def test_without_its_directory_a_stack_is_found_degraded_and_no_second_one_starts(new_stack, home: Path) -> None:
    stack = new_stack()
    stack.run_dir = home / f"d-{stack.name}"
    stack.env["USERNET_DIR"] = str(stack.run_dir)
    stack.up()
    keeper = stack.keeper
    remove(stack.run_dir)
    while not made(stack.run_dir):
        remove(stack.run_dir)
    (stack.run_dir / "letter").write_text("of somebody who took the name")  # so it cannot be made anew
    try:
        wait_for("the trouble", lambda: json.loads(stack.run("status", "--json", status=None).stdout)["trouble"])
        told = stack.run("status", status=3).stdout
        assert f"{stack.run_dir} was removed and cannot be made anew" in told
        assert "is running already" in stack.run("up", "--detach").stdout
        assert json.loads(stack.run("status", "--json", status=3).stdout)["keeper"] == keeper
    finally:
        stack.run("down")
        assert os.listdir(stack.run_dir) == ["letter"]
        shutil.rmtree(stack.run_dir)
    wait_for("its end", lambda: not stack.processes())


@pytest.mark.parametrize("removed", ["the directory", "switch.sock", "lock", "counters", "a port"])
def test_a_wire_that_was_removed_joins_its_stacks_again(new_stack, removed: str) -> None:
    wire, (first, second, third) = unique_name(), [new_stack() for _ in range(3)]
    directory = first.run_dir.parent / ".wires" / wire
    for stack in (first, second):
        stack.up("--wire", wire)
        wait_for("the switch", lambda: switch_of(stack))  # noqa: B023
    ports = sorted(directory.glob("port-*.sock"))
    if removed == "the directory":
        remove(directory)
    else:
        (ports[0] if removed == "a port" else directory / removed).unlink()
    wait_for("all files", lambda: all(path.exists() for path in (
        *ports, *(directory / name for name in ("switch.sock", "lock", "counters")))))
    wait_for("one switch", lambda: len({switch_of(stack) for stack in (first, second)}) == 1 and switch_of(first))
    wait_for("a ping", lambda: pings(first, second))
    third.up("--wire", wire)
    for stack in (second, third):
        wait_for("a ping", lambda: pings(first, stack))  # noqa: B023
    os.kill(first.pids()["link"], signal.SIGKILL)  # its successor has the present socket
    wait_for("a ping", lambda: pings(third, first))
    wait_for("all layers", lambda: all(shown(stack)["state"] == "up" for stack in (first, second, third)))


def test_a_directory_of_a_wire_in_whose_place_is_another_is_told_and_not_used(new_stack) -> None:
    wire, (first, second) = unique_name(), [new_stack() for _ in range(2)]
    directory = first.run_dir.parent / ".wires" / wire
    for stack in (first, second):
        stack.up("--wire", wire)
    foreign = directory.with_name(f"{wire}-f")
    foreign.mkdir()
    foreign.chmod(0o777)
    exchange(foreign, directory)
    foreign.rename(directory.with_name(f"{wire}-r"))
    for stack in (first, second):
        wait_for("the trouble", lambda: shown(stack)["trouble"])  # noqa: B023
        told = stack.run("status", status=3).stdout
        assert f"the directory of the wire was removed and cannot be made anew: {directory} is not a directory" in told
        assert "set XDG_RUNTIME_DIR to another" in told
        assert [each["state"] for each in json.loads(stack.run("list", "--json").stdout)
                if each["name"] == stack.name] == ["degraded"]
    wait_for("the end of the switch", lambda: switch_of(first) is None)
    assert os.listdir(directory) == []
    shutil.rmtree(directory.with_name(f"{wire}-r"))
    directory.rmdir()
    wait_for("a ping", lambda: pings(first, second))
    for stack in (first, second):
        wait_for("no trouble", lambda: (shown(stack)["state"], shown(stack)["trouble"]) == ("up", ""))  # noqa: B023


def test_a_stack_on_a_wire_whose_whole_runtime_directory_is_gone(new_stack, home: Path) -> None:
    runtime, stack = Path(tempfile.mkdtemp(dir=home)), new_stack()
    stack.env["XDG_RUNTIME_DIR"], stack.run_dir = str(runtime), runtime / "usernet" / stack.name
    stack.up("--wire", unique_name())
    wait_for("the switch", lambda: switch_of(stack))
    remove(runtime)
    for what in (stack.run_dir, "the directory of the wire"):
        wait_for("the trouble", lambda: f"{what} was removed and cannot be made anew" in (  # noqa: B023
            shown(stack)["trouble"]))
    runtime.mkdir(mode=0o700)
    wait_for("all", lambda: (shown(stack)["state"], shown(stack)["trouble"]) == ("up", "") and switch_of(stack))
    remove(runtime)
    wait_for("the trouble", lambda: shown(stack)["trouble"])
    stack.run("down")
    wait_for("its end", lambda: not stack.processes())


def test_a_wire_without_a_switch_is_told(new_stack) -> None:
    wire, stack = unique_name(), new_stack()
    stack.up("--wire", wire)
    switch = wait_for("the switch", lambda: switch_of(stack))
    lock = stack.run_dir.parent / ".wires" / wire / "lock"
    replacement = lock.with_name("replacement")
    replacement.mkdir()
    exchange(replacement, lock)  # so no keeper can have it
    replacement.unlink()
    told = f"wire '{wire}' has no switch: this stack reaches no other"
    wait_for("the trouble", lambda: shown(stack)["trouble"] == told)
    assert shown(stack)["state"] == "degraded"
    assert not [event for event in stack.events() if event["event"] == "trouble"]
    lock.rmdir()
    wait_for("another switch", lambda: switch_of(stack) not in (None, switch))
    wait_for("no trouble", lambda: shown(stack)["state"] == "up")


def exchange(one: Path, other: Path) -> None:
    """Exchange two names, so that there is no moment without: renameat2(2)."""
    at_cwd, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchanged):
        raise OSError(ctypes.get_errno(), "renameat2")


def shown(stack: Stack) -> dict:
    """What the keeper knows, also while a layer restarts."""
    with Client(stack.run_dir) as keeper:
        return keeper.request("status")


def switch_of(stack: Stack) -> int | None:
    return shown(stack)["switch"]["pid"]


def pings(stack: Stack, other: Stack) -> bool:
    address = shown(other)["address"].partition("/")[0]
    return stack.run("ping", "-c", 1, "-W", 1, address, status=None).returncode == 0


def test_three_at_once_start_one_stack(new_stack) -> None:
    stack = new_stack()
    starting = [stack.popen("up", "--detach", stderr=subprocess.STDOUT) for _ in range(3)]
    said = [each.communicate(timeout=3 * PATIENCE_S)[0] for each in starting]
    assert [each.returncode for each in starting] == [0, 0, 0], said
    assert sorted("is running already" in text for text in said) == [False, True, True]
    keeper = stack.keeper
    # a process that the keeper has just forked has its title until it sets its own
    wait_for("one keeper", lambda: [
        pid for pid, title in stack.processes().items() if title.endswith(": keeper")] == [keeper])


@pytest.mark.parametrize("of", ["the stack", "its wire", "its wire that was made anew"])
def test_a_cleaner_that_asks_for_a_lock_on_a_directory_does_not_get_one(new_stack, of: str) -> None:
    """systemd-tmpfiles asks so, flock(2) on the directory, before it looks for what is old in it."""
    stack, wire = new_stack(), unique_name()
    directory = stack.run_dir if of == "the stack" else stack.run_dir.parent / ".wires" / wire
    stack.up(*([] if of == "the stack" else ["--wire", wire]))
    if of == "its wire that was made anew":
        remove(directory)
        wait_for("the port", lambda: list(directory.glob("port-*.sock")))
    asked = ["flock", "--nonblock", "--exclusive", str(directory), "true"]
    # The keeper takes the lock just after it has made the port
    wait_for("the keeper's lock", lambda: subprocess.run(asked, check=False).returncode == 1)
    assert os.listdir(directory)


def test_systemd_tmpfiles_removes_nothing_of_a_stack_and_its_wire(new_stack, home: Path) -> None:
    """Its rule here: everything is old."""
    runtime, wire, stack = Path(tempfile.mkdtemp(dir=home)), unique_name(), new_stack()
    stack.env["XDG_RUNTIME_DIR"], stack.run_dir = str(runtime), runtime / "usernet" / stack.name
    stack.up("--wire", wire)
    wait_for("the switch", lambda: switch_of(stack))
    directory = stack.run_dir.parent / ".wires" / wire
    before = [sorted(each.rglob("*")) for each in (stack.run_dir, directory)]
    for left in (runtime / "usernet" / "crashed", directory.with_name("crashed")):
        left.mkdir()
        (left / "lock").touch()
    rules = home / "rules.conf"
    rules.write_text(f"d {runtime / 'usernet'} - - - 0\n")
    subprocess.run([require_program("systemd-tmpfiles"), "--clean", str(rules)], check=True)
    assert not list(runtime.glob("usernet/**/crashed/lock"))  # it was at work
    assert [sorted(each.rglob("*")) for each in (stack.run_dir, directory)] == before
    assert len(before[1]) == 4
    assert shown(stack)["state"] == "up"
