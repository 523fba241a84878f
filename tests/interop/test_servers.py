"""Programs of the subject that serve the kernel's programs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .conftest import TRANSFER_S, Files
from .worlds import PROGRAMS, World, finish

PORT = 8000
TIMED_OUT = 28  # curl(1): the operation


def serve(world: World, program: str, *arguments: object) -> None:
    """Start it, until it says that it is ready."""
    world.serve(world.subject, program, *arguments)


@pytest.mark.parametrize("server", ["http_server.py", "asgi_server.py"])
def test_curl_fetches_and_puts(world: World, files: Files, program, server: str) -> None:
    serve(world, server, world.subject_address, PORT, files.directory)
    url = f"http://{world.subject_address}:{PORT}"
    world.on_kernel(program("curl"), "-sSf", "-o", files.received, f"{url}/data", timeout_s=TRANSFER_S)
    assert files.same()
    world.on_kernel(program("curl"), "-sSf", "-T", files.sent, f"{url}/put", timeout_s=TRANSFER_S)
    assert files.same(files.directory / "put")


@pytest.mark.parametrize("server", ["http_server.py", "asgi_server.py"])
def test_curl_fetches_and_puts_over_tls(world: World, files: Files, program, server: str) -> None:
    certificate = files.directory / "certificate"
    subprocess.run([program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-subj", "/CN=subject", "-addext", f"subjectAltName=IP:{world.subject_address}",
                    "-keyout", files.directory / "key", "-out", certificate], check=True, capture_output=True)
    with certificate.open("a") as file:
        file.write((files.directory / "key").read_text())
    serve(world, server, world.subject_address, PORT, files.directory, certificate)
    curl = [program("curl"), "-sSf", "--cacert", certificate]
    url = f"https://{world.subject_address}:{PORT}"
    world.on_kernel(*curl, "-o", files.received, f"{url}/data", timeout_s=TRANSFER_S)
    assert files.same()
    world.on_kernel(*curl, "-T", files.sent, f"{url}/put", timeout_s=TRANSFER_S)
    assert files.same(files.directory / "put")


@pytest.mark.parametrize("server", ["http_server.py", "asgi_server.py"])
def test_a_server_outlives_clients_that_leave_in_the_middle(world: World, files: Files, program, server: str) -> None:
    serve(world, server, world.subject_address, PORT, files.directory)
    url = f"http://{world.subject_address}:{PORT}"
    slowly = [program("curl"), "-sS", "--limit-rate", "20M", "--max-time"]
    for seconds in (0.1, 0.3, 0.5) * 3:
        for what in ["-o", files.received, f"{url}/data"], ["-T", files.sent, f"{url}/left"]:
            leaves = world.kernel(*slowly, seconds, *what)
            assert leaves.wait(TRANSFER_S) == TIMED_OUT, leaves.stdout.read()
    world.on_kernel(program("curl"), "-sSf", "-o", files.received, f"{url}/data", timeout_s=TRANSFER_S)
    assert files.same()


def test_wget_fetches(world: World, files: Files, program) -> None:
    serve(world, "http_server.py", world.subject_address, PORT, files.directory)
    world.on_kernel(program("wget"), "-q", "-O", files.received, f"http://{world.subject_address}:{PORT}/data",
                    timeout_s=TRANSFER_S)
    assert files.same()


def test_ab_has_no_failed_request(world: World, files: Files, program) -> None:
    """A connection for each of 2,000 requests, 32 at a time."""
    (files.directory / "small").write_text("small\n")
    serve(world, "http_server.py", world.subject_address, PORT, files.directory)
    said = world.on_kernel(program("ab"), "-q", "-n", 2000, "-c", 32, "-s", 30,
                           f"http://{world.subject_address}:{PORT}/small", timeout_s=TRANSFER_S)
    assert re.search(r"Complete requests: +2000\n", said), said
    assert re.search(r"Failed requests: +0\n", said), said


def test_wrk_has_no_error(world: World, files: Files, program) -> None:
    """64 connections kept alive for three seconds."""
    serve(world, "asgi_server.py", world.subject_address, PORT, files.directory)
    said = world.on_kernel(program("wrk"), "-t", 1, "-c", 64, "-d", "3s", "--timeout", "20s",
                           f"http://{world.subject_address}:{PORT}/", timeout_s=TRANSFER_S)
    assert re.search(r"[1-9]\d* requests in", said), said
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said


def test_h2load_completes(world: World, files: Files, program) -> None:
    """HTTP/1.1, 20 connections, requests pipelined."""
    serve(world, "asgi_server.py", world.subject_address, PORT, files.directory)
    said = world.on_kernel(program("h2load"), "--h1", "-n", 2000, "-c", 20, "-m", 4,
                           f"http://{world.subject_address}:{PORT}/", timeout_s=TRANSFER_S)
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in said, said


@pytest.mark.parametrize("protocol", ["websocket.py", "grpc.py"])
def test_python_on_the_kernels_end_talks_to(world: World, files: Files, protocol: str) -> None:
    serve(world, protocol, "server", world.subject_address, PORT)
    finish(world.kernel_python(protocol, "client", world.subject_address, PORT, files.sent, files.received), TRANSFER_S)
    assert files.same()


def test_mail_is_taken(world: World, files: Files) -> None:
    serve(world, "smtp.py", "server", world.subject_address, PORT, files.received)
    world.on_kernel(sys.executable, PROGRAMS / "smtp.py", "client", world.subject_address, PORT, files.sent,
                    timeout_s=TRANSFER_S)
    assert files.same()
