"""`counters` and `metrics`: so many good and bad packets of each kind, and the books balance to the packet."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from cli.watching import sentence

from .peers import KERNEL, PATIENCE_S, ROOT, STACK, received, wait_for

N = 7


def counted(stack) -> dict[str, dict[str, int]]:
    return json.loads(stack.run("counters", "--json").stdout)


def grown(after: dict, before: dict) -> dict[str, int]:
    """What each counter has gained, by layer.name; nothing of the bus's own."""
    return {f"{layer}.{name}": value - before[layer][name] for layer, counters in after.items()
            for name, value in counters.items() if value != before[layer][name] and not name.startswith("bus_")}


def test_the_books_balance_over_restarts_too(new_stack):
    stack = new_stack().up("--no-offload")  # then a frame is a packet
    mac = stack.mac
    with stack.bound() as app, stack.kernel.packet() as cable:
        port = app.getsockname()[1]
        stack.execute("ping", "-c", 1, "-W", 10, STACK)
        head = Ether(src=cable.getsockname()[4].hex(":"), dst=mac)
        ip = IP(src=KERNEL, dst=STACK)
        bad = {
            "link.runt": b"short",
            "link.other_host": bytes(Ether(src=head.src, dst="02:00:00:00:00:77") / ip / UDP(dport=port)),
            "link.unknown_type": bytes(Ether(src=head.src, dst=mac, type=0x88B5) / bytes(50)),
            "arp.too_short": bytes(Ether(src=head.src, dst=mac, type=0x0806) / bytes(20)),
            "arp.own_packet": bytes(head / ARP(op=1, psrc="10.0.0.9", hwsrc=mac, pdst=STACK)),
            "ip.bad_version": bytes(head / IP(src=KERNEL, dst=STACK, version=5) / bytes(20)),
            "ip.bad_header_checksum": bytes(head / IP(src=KERNEL, dst=STACK, chksum=1) / UDP(dport=port)),
            "ip.other_destination": bytes(head / IP(src=KERNEL, dst="10.0.0.88") / UDP(dport=port)),
            "icmp.bad_checksum": bytes(head / ip / ICMP(chksum=1)),
            "udp.bad_checksum": bytes(head / ip / UDP(sport=5, dport=port, chksum=1) / b"x"),
            "udp.bad_length": bytes(head / ip / UDP(sport=5, dport=port, len=3)),
        }
        good = bytes(head / ip / UDP(sport=5, dport=port) / b"good")
        before = counted(stack)
        frames = 0
        for layer in ("ip", "udp", "link"):
            for frame in (*bad.values(), good):
                for _ in range(N):
                    if len(frame) >= 14:  # the kernel lets nothing shorter out of a packet socket
                        cable.send(frame)
                        frames += 1
            for _ in range(N):
                assert app.recv(100) == b"good"
            taken = before["link"]["frames_in"] + frames
            wait_for("all to be counted", lambda taken=taken: counted(stack)["link"]["frames_in"] >= taken)
            os.kill(stack.pids()[layer], signal.SIGKILL)
            wait_for(layer, lambda layer=layer: stack.serves(**{layer: 2}))

        def settled() -> dict[str, int]:
            return grown(counted(stack), before)

        dropped = [name for name, frame in bad.items() if len(frame) >= 14]

        def balanced() -> dict[str, int]:
            found = settled()
            return found if all(found.get(name, 0) >= 3 * N for name in dropped) else {}

        gained = wait_for("the last drops", balanced)
    for name in dropped:
        assert gained.pop(name) == 3 * N, name
    assert gained.pop("udp.delivered") == 3 * N
    assert gained.pop("sockets.delivered") == 3 * N
    in_link, out_of_link = gained.pop("link.frames_in"), gained.pop("link.frames_out", 0)
    arps = gained.pop("arp.received", 0) - 2 * 3 * N  # the kernel's own
    assert in_link == frames + arps
    assert out_of_link >= 0
    to_ip = gained.pop("ip.packets_in")
    assert to_ip == 3 * N * sum(name.split(".")[0] in ("ip", "icmp", "udp") for name in bad) + 3 * N
    assert gained.pop("icmp.received") == 3 * N
    assert gained.pop("udp.packets_in") == 3 * N * 3
    assert not {name for name in gained if name.split(".")[0] in ("ip", "udp", "sockets")} - {"ip.packets_out"}, gained


def test_for_a_person(stack):
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    text = stack.run("counters", "ip").stdout
    assert "packets_in (IpInReceives)" in text
    assert "Packets from link." in text
    assert "bad_version" not in text
    assert "bad_version" in stack.run("counters", "ip", "--all").stdout
    watched = stack.popen("counters", "ip", "--watch", "0.2", stderr=subprocess.PIPE)
    watched.stdout.readline()
    stack.execute("ping", "-c", 3, "-i", 0.1, "-W", 10, STACK)
    wait_for("a growing counter", lambda: "+" in watched.stdout.readline())
    watched.send_signal(signal.SIGINT)
    watched.communicate(timeout=PATIENCE_S)
    assert "no layer 'xx'" in stack.run("counters", "xx", status=2).stderr
    assert "0.05 to 3600" in stack.run("counters", "--watch", "0", status=2).stderr


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_for_prometheus(new_stack):
    stack = new_stack().up()
    exporter = stack.popen("metrics", "--port", "0", stderr=subprocess.PIPE)
    url = exporter.stdout.readline().split()[2].rstrip(";")
    label = f'stack="{stack.name}"'
    assert scraped(url)[f"usernet_up{{{label}}}"] == 1
    before = scraped(url)
    for _ in range(5):  # one by one: five at once are six if one is answered late
        assert received(stack.execute("ping", "-c", 1, "-W", PATIENCE_S, STACK).stdout) == 1
    after = scraped(url)

    def gained(name: str) -> float:
        return after[name] - before[name]

    assert gained(f'usernet_ip_packets_in_total{{layer="ip",{label}}}') == 5
    assert gained(f'usernet_pipe_records_total{{pipe="link:ip",{label}}}') == 5
    assert gained(f'usernet_pipe_octets_total{{pipe="link:ip",{label}}}') >= 5 * 84
    assert gained(f'usernet_layer_record_seconds_count{{layer="icmp",{label}}}') >= 5
    with urllib.request.urlopen(url) as answer:
        told = answer.read().decode()
        assert f"# HELP usernet_ip_bad_version_total {sentence('ip', 'bad_version')}" in told
    os.kill(stack.pids()["ip"], signal.SIGKILL)
    wait_for("ip", lambda: stack.serves(ip=2))
    assert scraped(url)[f'usernet_layer_restarts_total{{layer="ip",{label}}}'] == 1
    stack.run("down")
    assert scraped(url) == {f"usernet_up{{{label}}}": 0}
    exporter.terminate()
    assert exporter.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("watched", [False, True], ids=["from the beginning", "later"])
def test_metrics_while_the_keeper_is_stopped(new_stack, watched):
    stack = new_stack().up()
    keeper, up = stack.keeper, f'usernet_up{{stack="{stack.name}"}}'
    exporter = stack.popen("metrics", "--port", "0", stderr=subprocess.PIPE)
    url = exporter.stdout.readline().split()[2].rstrip(";")
    if watched:
        assert scraped(url)[up] == 1
    os.kill(keeper, signal.SIGSTOP)
    try:
        assert scraped(url) == {up: 0}
        assert scraped(url) == {up: 0}
    finally:
        os.kill(keeper, signal.SIGCONT)
    wait_for("the keeper's answer", lambda: scraped(url).get(up) == 1)
    exporter.terminate()
    assert exporter.communicate(timeout=PATIENCE_S)[1] == ""
    assert exporter.returncode == 0


def test_the_dashboard_asks_for_metrics_that_there_are(stack):
    exporter = stack.popen("metrics", "--port", "0", stderr=subprocess.PIPE)
    names = {line.partition("{")[0] for line in scraped(exporter.stdout.readline().split()[2].rstrip(";"))}
    exporter.terminate()
    board = json.loads((ROOT / "docs/grafana.json").read_text())
    asked = {name for panel in board["panels"] for target in panel["targets"]
             for name in re.findall(r"usernet_\w+", target["expr"])}
    assert asked
    assert asked <= names
