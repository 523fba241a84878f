"""`up --log-format json`: nothing but one object a line on standard output; levels of the log for each layer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether

from .peers import KERNEL, PATIENCE_S, STACK, wait_for


def test_events_as_json_in_the_foreground(new_stack):
    stack = new_stack()
    up = stack.popen("up", "--log-format", "json", stderr=subprocess.PIPE)
    while "Ctrl-C stops it" not in (said := up.stderr.readline()):
        assert said
    os.kill(stack.pids()["udp"], signal.SIGKILL)
    wait_for("udp", lambda: stack.serves(udp=2))
    up.send_signal(signal.SIGINT)
    out, more = up.communicate(timeout=PATIENCE_S)
    events = [json.loads(line) for line in out.splitlines()]
    died = [event for event in events if event["event"] == "died"]
    assert [(event["layer"], event["detail"]) for event in died] == [("udp", "killed by SIGKILL")]
    assert events[-1]["event"] == "down"
    assert more == "stopping\n"


def test_an_unknown_format(new_stack):
    assert "invalid choice: 'xml'" in new_stack().run("up", "--log-format", "xml", status=2).stderr


def test_levels_of_each_layer_while_the_stack_runs(new_stack):
    stack = new_stack().up()
    levels = json.loads(stack.run("log", "--json").stdout)
    assert {"keeper", "link", "tcp"} <= set(levels)
    assert set(levels.values()) == {"info"}
    assert stack.run("log", "udp", "error").stdout.split() == ["udp", "error"]
    os.kill(stack.pids()["udp"], signal.SIGKILL)
    wait_for("udp", lambda: stack.serves(udp=2))
    about_udp = [event["event"] for event in stack.events() if event.get("layer") == "udp" and event["at"]]
    assert about_udp[-1] == "died"  # an error; that it serves again would be an information
    assert stack.run("log", "udp").stdout.split() == ["udp", "error"]  # its restart has not changed that

    stack.run("log", "icmp", "debug")
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    bad = bytes(Ether(src="02:00:00:00:00:01", dst=stack.mac) / IP(src=KERNEL, dst=STACK) / ICMP(chksum=1))
    with stack.kernel.packet() as cable:
        def dropped() -> list[dict]:
            cable.send(bad)
            return [event for event in stack.events() if event["event"] == "dropped"]

        event = wait_for("an event about drops", dropped)[0]
    assert (event["layer"], event["level"]) == ("icmp", "debug")
    assert re.fullmatch(r"\d+ bad_checksum", event["detail"])


def test_unknown_layers_and_levels(stack):
    assert "no layer 'xx'; there are keeper, link" in stack.run("log", "xx", "debug", status=2).stderr
    assert "no level 'loud'; the levels are error" in stack.run("log", "ip", "loud", status=2).stderr
