"""`trace`: each layer and pipe on a packet's way, with times, and the layer that dropped it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import subprocess
from ipaddress import IPv4Address

import pytest

from cli.watching import sentence
from tests.tcpcases.octets import IPV4, Tcp, checksum, ethernet, ipv4, parse_tcp, tcp

from .attacker import Attacker
from .peers import KERNEL, NOBODY, PATIENCE_S, STACK, wait_for
from .test_replay import connected

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
            mac = bytes.fromhex(stack.mac.replace(":", ""))
            packet = bytes.fromhex("4500001c00010000401100000a0000010a00000200090009000800aa")
            before = stack.counters("ip")["bad_header_checksum"]
            cable.send(mac + stack.kernel.mac() + b"\x08\0" + packet)
            wait_for("the drop", lambda: stack.counters("ip")["bad_header_checksum"] > before)

    (text,) = traced(stack, "udp port 9", send_nonsense)
    assert f"dropped by ip: bad_header_checksum: {sentence('ip', 'bad_header_checksum')}" in text
    assert "(RFC 1122 section 3.2.1.2)" in text


def places(text: str) -> list[str]:
    """The layers and pipes of a packet's way."""
    return re.findall(r"^  ((?:in|pipe) \S+)", text, re.MULTILINE)


@pytest.fixture
def impaired(stack):
    yield stack
    stack.run("impair", "--clear")


def ping_once(stack, patience_s: float = PATIENCE_S):
    stack.execute("ping", "-c", 1, "-W", patience_s, STACK, status=None)


def test_a_packet_that_an_impairment_loses(impaired):
    impaired.run("impair", "ip:icmp", "--loss", "100%")
    lost = impaired.counters("ip")["bus_impaired_lost"]

    def lose_one():
        ping_once(impaired, 0.1)
        wait_for("the loss", lambda: impaired.counters("ip")["bus_impaired_lost"] > lost)

    (text,) = traced(impaired, "icmp", lose_one)
    assert places(text) == ["in link", "pipe link:ip", "in ip"]
    assert "\n  dropped by ip: bus_impaired_lost: " in text


def test_a_packet_that_an_impairment_delays(impaired):
    impaired.run("impair", "link:device", "--delay", "400ms")
    request, reply = traced(impaired, "icmp", lambda: ping_once(impaired))
    assert "the packet ends here" in request
    assert places(reply) == ["pipe icmp:ip", "in ip", "pipe ip:link", "in link"]
    assert float(re.search(r"in link +([\d.]+) us", reply)[1]) >= 400_000
    assert "\n  to device\n" in reply


def test_a_packet_to_a_neighbour_that_there_is_not_comes_back_as_an_error(stack):
    def send_nowhere():
        with stack.bound() as app:
            app.connect((NOBODY, 9))
            app.send(b"for nobody")
            with pytest.raises(OSError, match="No route to host"):
                app.recv(10)

    (text,) = traced(stack, f"host {NOBODY}", send_nowhere)
    assert places(text) == ["in sockets", "pipe sockets:udp", "in udp", "pipe udp:ip", "in ip", "pipe ip:udp", "in udp"]
    assert float(re.search(r"in ip +([\d.]+) us", text)[1]) > 1_000_000  # until arp had asked in vain
    assert "pipe ip:udp" in text
    assert "ICMP_ERROR, type 3, code 1" in text


CLAUSES = {
    "ip.truncated": "RFC 791 section 3.1", "ip.other_group": "RFC 1112 section 7.2",
    "ip.igmp_not_for_hosts": "RFC 3376 section 4", "icmp.malformed": "RFC 792",
    "icmp.redirect": "RFC 1122 section 3.2.2.2", "udp.packet_truncated": "RFC 768",
    "tcp.packet_truncated": "RFC 9293 section 3.1", "tcp.outside_window": "RFC 9293 section 3.10.7.4, first",
    "tcp.unacceptable_ack": "RFC 5961 section 5.2", "tcp.unexpected_syn": "RFC 5961 section 4.2",
    "tcp.blind_reset": "RFC 5961 section 3.2", "tcp.old_timestamp": "RFC 7323 section 5.3",
    "tcp.error_forged": "RFC 5927 section 4.1"}


def test_dropped_packets_are_shown_with_the_clauses_that_demand_it(stack):
    kernel, ours = IPv4Address(KERNEL), IPv4Address(STACK)
    with connected(stack) as (near, far), Attacker(stack) as attacker:
        own_port, port = near.getsockname()[1], far.getsockname()[1]
        far.sendall(b"seen on the cable")
        seen = iter(lambda: parse_tcp(attacker.cable.recv(1 << 16)[14:]), 0)
        last = next(each for each in seen if each is not None and each.payload == b"seen on the cable")
        assert near.recv(100) == last.payload
        start, now = last.seq + len(last.payload), last.options["TS"]

        def segment(flags: str, at: int = 0, ack: int = 0, payload: bytes = b"", stamp: int = 0) -> bytes:
            return tcp(Tcp(kernel, ours, port, own_port, flags, (start + at) % (1 << 32), (last.ack + ack) % (1 << 32),
                           500, payload, {"TS": ((now[0] + stamp) % (1 << 32), now[1])}))

        def icmp(kind: int, code: int, octets: bytes) -> bytes:
            message = bytes((kind, code, 0, 0)) + octets
            return ipv4(1, kernel, ours, message[:2] + checksum(message).to_bytes(2) + message[4:])

        in_answer = ipv4(6, ours, kernel, segment("P.")[20:])
        forged = struct.pack("!HHI", own_port, port, (last.ack + 9) % (1 << 32))
        packets = {
            "ip.truncated": ipv4(17, kernel, ours, bytes(100))[:60],
            "ip.other_group": ipv4(17, kernel, IPv4Address("239.1.2.3"), bytes(20)),
            "ip.igmp_not_for_hosts": ipv4(2, kernel, IPv4Address("224.0.0.1"), b"\x17\0\xe8\xff" + bytes(4)),
            "icmp.malformed": ipv4(1, kernel, ours, b"\x08\0"),
            "icmp.redirect": icmp(5, 1, kernel.packed + in_answer[:28]),
            "udp.packet_truncated": ipv4(17, kernel, ours, bytes(7)),
            "tcp.packet_truncated": ipv4(6, kernel, ours, bytes(19)),
            "tcp.outside_window": segment("P.", -1000, payload=b"old"),
            "tcp.unacceptable_ack": segment("P.", ack=1 << 20, payload=b"x"),
            "tcp.unexpected_syn": segment("S"),
            "tcp.blind_reset": segment("R", 7),
            "tcp.old_timestamp": segment("P.", payload=b"x", stamp=-1000),
            "tcp.error_forged": icmp(3, 1, bytes(4) + ipv4(6, ours, kernel, forged)),
        }

        def send_all():
            for name, packet in packets.items():
                layer, _, counter = name.partition(".")
                before = stack.counters(layer)[counter]
                attacker.send([ethernet(attacker.stack_mac, attacker.mac, IPV4, packet)])
                wait_for(name, lambda layer=layer, counter=counter, before=before:
                         stack.counters(layer)[counter] > before)

        said = "\n".join(traced(stack, "ip", send_all))
        far.sendall(b"still there")
        assert near.recv(100) == b"still there"
    for name, clause in CLAUSES.items():
        layer, _, counter = name.partition(".")
        (line,) = re.findall(rf"dropped by {layer}: {counter}: (.*)", said)
        assert clause in line


def test_it_ends_after_the_count(new_stack):
    stack = new_stack().up()  # without errors that other tests have caused
    trace = stack.popen("trace", "icmp", "--count", "3", stderr=subprocess.PIPE)
    assert "tracing" in trace.stderr.readline()
    stack.execute("ping", "-c", 4, "-i", 0.2, "-W", 10, STACK)
    out, _ = trace.communicate(timeout=PATIENCE_S)
    assert trace.returncode == 0
    assert re.findall(r"ICMP echo (\w+), .*seq (\d)", out) == [("request", "1"), ("reply", "1"), ("request", "2")]


@pytest.mark.parametrize("layer", ["ip", "udp", "sockets"])
def test_a_packet_that_waits_for_the_successor_of_a_killed_layer(new_stack, layer):
    stack = new_stack().up()
    with stack.bound() as app, stack.kernel.udp() as peer:
        def killed_before_the_packet():
            peer.sendto(b"before", app.getsockname())
            assert app.recv(100) == b"before"
            before, frames = stack.ask()[layer], stack.counters("link")["frames_in"]
            os.kill(before["pid"], signal.SIGSTOP)
            peer.sendto(b"while it is stopped", app.getsockname())
            wait_for("the datagram", lambda: stack.counters("link")["frames_in"] > frames)
            with contextlib.suppress(ProcessLookupError):  # the keeper kills it too
                os.kill(before["pid"], signal.SIGKILL)
            assert app.recv(100) == b"while it is stopped"
            wait_for(layer, lambda: stack.serves(**{layer: before["incarnation"] + 1}))

        texts = traced(stack, f"udp port {app.getsockname()[1]}", killed_before_the_packet)
    for text in texts:
        assert places(text) == WAY_UP
        assert "\n  to app\n" in text
    assert len(texts) == 2


def test_bad_arguments(stack):
    assert "10.0.0.300" in stack.run("trace", "10.0.0.300", status=2).stderr
    for option, value in (("--count", "0"), ("--count", "x"), ("--seconds", "0"), ("--seconds", "nan")):
        assert stack.run("trace", STACK, option, value, status=2).stderr.startswith(
            f"launcher.py: trace: argument {option}: '{value}': must be a ")
    assert stack.run("trace", STACK, "--seconds", "0.3").stdout == ""
