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
    wait_for("the stack", lambda: (stack.run_dir / "control.sock").exists() and stack.serves())
    os.kill(stack.pids()["udp"], signal.SIGKILL)
    wait_for("udp", lambda: stack.serves(udp=2))
    up.send_signal(signal.SIGINT)
    out, said = up.communicate(timeout=PATIENCE_S)
    events = [json.loads(line) for line in out.splitlines()]
    died = [event for event in events if event["event"] == "died"]
    assert [(event["layer"], event["detail"]) for event in died] == [("udp", "killed by SIGKILL")]
    assert "Ctrl-C stops it" in said


def test_an_unknown_format(new_stack):
    assert "invalid choice: 'xml'" in new_stack().run("up", "--log-format", "xml", status=2).stderr
