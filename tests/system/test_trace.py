"""`trace`: each layer and pipe on a packet's way, with times, and the layer that dropped it."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest

from cli.watching import sentence

from .peers import PATIENCE_S, STACK, wait_for

WAY_UP = ["in link", "pipe link:ip", "in ip", "pipe ip:udp", "in udp", "pipe udp:sockets", "in sockets"]
WAY_DOWN = ["in sockets", "pipe sockets:udp", "in udp", "pipe udp:ip", "in ip", "pipe ip:link", "in link"]


def traced(stack, flow, action) -> list[str]:
    """The packets' ways, a text each."""
    trace = stack.popen("trace", flow, stderr=subprocess.PIPE)
    assert "tracing" in trace.stderr.readline()
    action()
    trace.send_signal(signal.SIGINT)
    out, _ = trace.communicate(timeout=PATIENCE_S)
    return [text for text in out.split("\n\n") if text.strip()]


def test_a_datagram_up_and_another_down(stack):
    with stack.bound() as app, stack.kernel.udp() as peer:
        def echo():
            peer.sendto(b"up, only once", app.getsockname())
            _, sender = app.recvfrom(100)
            app.sendto(b"down, only once", sender)
            assert peer.recv(100) == b"down, only once"

        up, down = traced(stack, f"udp port {app.getsockname()[1]}", echo)
    for text, way, ends in ((up, WAY_UP, ("from device", "to app")), (down, WAY_DOWN, ("from app", "to device"))):
        found = re.findall(r"^  ((?:in|pipe) \S+) +([\d.]+) us", text, re.MULTILINE)
        assert [where for where, _ in found] == way
        assert all(0 < float(took) < PATIENCE_S * 1e6 for _, took in found)
        whole = float(re.search(r"altogether +([\d.]+)", text)[1])
        assert whole == pytest.approx(sum(float(took) for _, took in found), abs=1)
        assert all(end in text for end in ends)


def test_a_dropped_packet_is_shown_with_its_layer_and_counter(stack):
    def send_nonsense():
        with stack.kernel.packet() as cable:
            mac = bytes.fromhex(stack.status()["mac"].replace(":", ""))
            packet = bytes.fromhex("4500001c00010000401100000a0000010a00000200090009000800aa")
            before = stack.counters("ip")["bad_header_checksum"]
            cable.send(mac + stack.kernel.mac() + b"\x08\0" + packet)
            wait_for("the drop", lambda: stack.counters("ip")["bad_header_checksum"] > before)

    (text,) = traced(stack, "udp port 9", send_nonsense)
    assert f"dropped by ip: bad_header_checksum: {sentence('ip', 'bad_header_checksum')}" in text
    assert "(RFC 1122 section 3.2.1.2)" in text


def test_count_and_bad_arguments(stack):
    assert "10.0.0.300" in stack.run("trace", "10.0.0.300", status=2).stderr
    assert "more than zero" in stack.run("trace", STACK, "--count", "0", status=2).stderr
    assert stack.run("trace", STACK, "--seconds", "0.3").stdout == ""
