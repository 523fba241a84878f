"""`up --log-format json`: nothing but one object a line on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from .peers import PATIENCE_S, wait_for


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
