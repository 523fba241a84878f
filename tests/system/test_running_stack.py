"""What the command line says of a stack that runs: as it is now, in words that can be typed again."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from .conftest import unique_name
from .peers import KERNEL, PATIENCE_S, STACK, Stack


def test_list_shows_the_addresses_that_the_stack_has_now(new_stack) -> None:
    stack = new_stack().up()
    for changes, expected in (([("add", "10.0.0.7/24")], "10.0.0.2/24, 10.0.0.7/24"),
                              ([("del", "10.0.0.2/24")], "10.0.0.7/24"), ([("del", "10.0.0.7/24")], "no address")):
        for change in changes:
            stack.run("address", *change)
        (told,) = [each for each in json.loads(stack.run("list", "--json").stdout) if each["name"] == stack.name]
        assert told["address"] == expected
        assert expected in stack.run("list").stdout
        assert expected in stack.run("status").stdout
        assert expected in stack.run("top", "--once").stdout


def test_stacks_that_join_a_wire_at_once_get_addresses_of_their_own(new_stack) -> None:
    wire, stacks = unique_name(), [new_stack() for _ in range(4)]
    joining = [stack.popen("up", "--detach", "--wire", wire) for stack in stacks]
    for each in joining:
        told, _ = each.communicate(timeout=3 * PATIENCE_S)
        assert each.returncode == 0, told
    assert {stack.status()["address"] for stack in stacks} == {f"10.0.0.{number}/24" for number in range(2, 6)}


def test_no_address_on_a_wire_is_chosen_while_a_stack_there_does_not_answer(new_stack) -> None:
    wire, (first, second) = unique_name(), [new_stack() for _ in range(2)]
    keeper = first.up("--wire", wire).keeper
    os.kill(keeper, signal.SIGSTOP)
    try:
        told = second.run("up", "--detach", "--wire", wire, status=1).stderr
        assert told.startswith(f"launcher.py: no free address on wire '{wire}' can be chosen, because a stack does not")
        assert f"the keeper [{keeper}] is stopped" in told
        assert told.count("\n") == 1
        second.run("up", "--detach", "--wire", wire, "--address", "10.0.0.9/24")
    finally:
        os.kill(keeper, signal.SIGCONT)


def test_callers_of_a_stopped_keeper_that_gave_up_do_not_hide_it(new_stack) -> None:
    stack = new_stack().up()
    keeper = stack.keeper
    os.kill(keeper, signal.SIGSTOP)
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            caller.connect(str(stack.run_dir / "control.sock"))
    assert f"the keeper [{keeper}] is stopped" in stack.run("status", status=1).stderr
    stack.run("down", "--force")
    stack.check_gone()


def test_status_fits_80_columns(new_stack) -> None:
    stack = new_stack().up()
    lines = [line for line in stack.run("status").stdout.splitlines() if str(stack.run_dir) not in line]
    assert max(map(len, lines)) <= 80
    assert lines[4].split() == ["layer", "pid", "state", "starts", "uptime", "memory", "cpu", "s", "in", "out", "drops"]
    rights = [line for line in lines if line.startswith(("rights of ", "    "))]
    assert "system calls" in rights[-1]


def test_options_of_a_running_stack_are_compared_by_their_effect(new_stack) -> None:
    stack = new_stack().up("--pipes", "direct")
    same = stack.run("up", "--detach", "--address", f"{STACK}/24", "--gateway", KERNEL, "--pipes", "direct",
                     "--mac", stack.mac.upper(), "--mtu", 1500)
    assert "is running already" in same.stdout
    told = stack.run("up", "--detach", "--address", "10.0.0.9/24", "--allow-raw", "--dns", KERNEL, "--mtu", 1400,
                     "--pipes", "zmq", status=2).stderr
    assert ("is running already, with --address 10.0.0.2/24, without --allow-raw, without --dns, with --mtu 1500, "
            "with --pipes direct; stop it first") in told


def test_a_stack_in_a_directory_of_ones_own(new_stack, home) -> None:
    stack = new_stack()
    stack.run_dir = home / f"d-{stack.name}"
    stack.env["USERNET_DIR"] = os.path.relpath(stack.run_dir, home)  # every command starts there
    stack.run("up", "--detach", "--profile", "wifi")
    assert "impaired" in stack.run("status").stdout
    stack.run("address", "add", "10.0.0.7/24")
    assert "10.0.0.7/24" in stack.run("up", "--detach").stdout
    assert stack.name in stack.run("list").stdout
    assert f"stack '{stack.name}' is down" in stack.run("down").stdout
    stack.check_gone()
    assert stack.name not in stack.run("list").stdout
    for verb in (["ping", KERNEL], ["status"]):
        assert stack.run(*verb, status=2).stderr.rstrip().endswith("up --detach")  # with the same variable


@pytest.mark.parametrize(("arguments", "said"), [
    (["ping", ""], "ping: '': expected an address or a name"),
    (["traceroute", ""], "traceroute: '': expected an address or a name"),
    (["nc", "", "80"], "nc: '': expected an address or a name"),
    (["host", ""], "host: '': expected an address or a name"),
    (["ping", "::1"], "ping: ::1: the stack has no IPv6"),
    (["traceroute", "fe80::1%eth0"], "traceroute: fe80::1%eth0: the stack has no IPv6"),
    (["nc", "::1", "80"], "nc: ::1: the stack has no IPv6"),
    (["nc", "-l", "::1", "80"], "nc: ::1: the stack has no IPv6"),
    (["host", "a.example", "::1"], "host: ::1: the stack has no IPv6"),
    (["ping", "-6", KERNEL], "ping: -6: the stack has no IPv6"),
    (["ss", "-6"], "ss: -6: the stack has no IPv6"),
    (["restart", "all", "link"], "restart all link: 'all' is every layer; expected it alone, or names of layers"),
    (["exec", ""], "exec: no command given; usage: exec COMMAND [ARGS...], for example: exec ping -c 1 10.0.0.2"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_is_named(stack: Stack, arguments, said) -> None:
    refused = stack.run(*arguments, status=2)
    assert (refused.stdout, refused.stderr) == ("", f"launcher.py: {said}\n")


def test_advice_is_of_options_that_the_tool_has(stack: Stack) -> None:
    assert stack.run("ping", "10.0.0.255", status=1).stderr.endswith("a broadcast address needs -b\n")
    assert stack.run("traceroute", "10.0.0.255", status=1).stderr.endswith("it is a broadcast address\n")
    stack.run("ping", "-4", "-c", 1, "-W", 10, KERNEL)
    assert "'-1': must be a whole number" in stack.run("ping", "-c", "-1", KERNEL, status=2).stderr


def test_a_name_that_no_tap_can_have_is_a_usage_error(home) -> None:
    stack = Stack(home, unique_name())
    assert "--wire" not in stack.run("up", "--detach", "--tap", "lo", status=2).stderr
