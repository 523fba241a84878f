"""The examples, run as a person runs them, against a real service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

import usernet


@pytest.fixture(scope="module")
def service():
    service = Service()
    yield service
    service.down()


@pytest.fixture
def run(service):
    processes = []

    def start(name: str, *arguments: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "USERNET_DIR": str(service.run_dir)}
        command = [sys.executable, str(REPOSITORY / "examples" / name), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_echo(run):
    server = run("udp_echo_server.py", f"{ADDRESS}:9000")
    assert server.stdout.readline() == f"echoing at {ADDRESS}:9000\n"
    out, err = run("udp_echo_client.py", f"{ADDRESS}:9000", "2").communicate(timeout=30)
    assert (out.count("'echo 1' after"), out.count("'echo 2' after"), err) == (1, 1, "")
    server.send_signal(signal.SIGINT)
    assert server.wait(10) == 0


def test_an_application_of_plain_zeromq_outlives_the_service(run, service):
    server = run("zeromq_echo.py", f"{ADDRESS}:9001")
    assert server.stdout.readline() == f"echoing at {ADDRESS}:9001\n"
    with usernet.Stack(run_dir=service.run_dir).socket(usernet.AF_INET, usernet.SOCK_DGRAM) as client:
        client.settimeout(30)
        for number in range(900):  # more than its receive buffer holds
            if number % 300 == 150:
                service.restart()
            client.sendto(b"%d" % number, (ADDRESS, 9001))
            assert client.recv(100) == b"%d" % number
    server.send_signal(signal.SIGINT)
    assert (server.wait(10), server.stderr.read()) == (0, "")


def test_two_threads(run):
    out, err = run("two_threads.py").communicate(timeout=30)
    assert err == ""
    for number in range(5):
        assert f"one got 'other says hello {number}' from {ADDRESS}:4055" in out
        assert f"other got 'one says hello {number}' from {ADDRESS}:5055" in out


def test_dns_lookup(run, service):
    """Scapy reads the query and makes the answer."""
    dns = pytest.importorskip("scapy.layers.dns")
    stack = usernet.Stack(run_dir=service.run_dir)
    with stack.socket(usernet.AF_INET, usernet.SOCK_DGRAM) as server:
        server.bind((ADDRESS, 5353))
        server.settimeout(30)
        client = run("dns_lookup.py", "www.example.org", f"{ADDRESS}:5353")
        message, peer = server.recvfrom(512)
        query = dns.DNS(message)
        assert (query.qd[0].qname, query.qd[0].qtype, query.rd) == (b"www.example.org.", 1, 1)
        alias = dns.DNSRR(rrname=query.qd[0].qname, type="CNAME", rdata="example.org")
        records = [dns.DNSRR(rrname="example.org", type="A", rdata=rdata) for rdata in ("192.0.2.1", "192.0.2.2")]
        server.sendto(bytes(dns.DNS(id=query.id, qr=1, qd=query.qd, an=[alias, *records])), peer)
        assert client.communicate(timeout=30) == ("192.0.2.1\n192.0.2.2\n", "")


def test_an_error_is_one_clear_line(run, service, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "run_dir", tmp_path)
    out, err = run("two_threads.py").communicate(timeout=30)
    assert out == ""
    assert err.startswith("two_threads: [Errno 111] no usernet stack 'default' is running")
    assert err.count("\n") == 1
