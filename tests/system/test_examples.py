"""Every program in examples/, on a real stack."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import require_program, unavailable, unique_name
from .peers import KERNEL, NOBODY, PATIENCE_S, ROOT, STACK, Stack, wait_for

EXAMPLES = ROOT / "examples"


def run(stack: Stack, name: str, *arguments: object) -> str:
    """Run an example to its end; its output."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=stack.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def echo_of(stack: Stack, port: int) -> None:
    """Datagrams of the kernel's come back from an echo server on the stack."""
    with stack.kernel.udp() as peer:
        peer.connect((STACK, port))
        for size in (0, 1, 100, 1472):
            data = bytes(number & 0xFF for number in range(size))
            peer.send(data)
            assert peer.recv(2048) == data


def zeromq_echo(tmp_path: Path) -> list[str]:
    """The command of examples/zeromq_echo.py."""
    return [sys.executable, str(EXAMPLES / "zeromq_echo.py"), "0.0.0.0:0"]


def c_echo(tmp_path: Path) -> list[str]:
    """The command of examples/c/echo.c, compiled."""
    program = tmp_path / "echo"
    built = subprocess.run([require_program("gcc"), "-Wall", "-Wextra", "-Werror", "-O2", "-o", program,
                            EXAMPLES / "c" / "echo.c", "-lzmq"], capture_output=True, text=True, check=False)
    if "zmq.h" in built.stderr and not Path("/usr/include/zmq.h").exists():
        unavailable("zmq.h is not there (Debian: libzmq3-dev)")
    assert built.returncode == 0, built.stderr
    return [str(program), "0.0.0.0", "0"]


def javascript_echo(tmp_path: Path) -> list[str]:
    """The command of examples/js/echo.js, with what it needs beside it."""
    node, npm = require_program("node"), require_program("npm")
    shutil.copytree(EXAMPLES / "js", tmp_path / "js", ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=tmp_path / "js", capture_output=True,
                               text=True, timeout=100, check=False)
    if installed.returncode:
        unavailable(f"npm install of zeromq failed: {installed.stderr[-500:]}")
    return [node, str(tmp_path / "js" / "echo.js"), "0"]


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
def test_two_threads(stack: Stack, address: str | None) -> None:
    output = run(stack, "two_threads.py", *([address] if address else []))
    where = address or STACK
    for number in range(5):
        assert f"one got 'other says hello {number}' from {where}:4055" in output
        assert f"other got 'one says hello {number}' from {where}:5055" in output


def test_udp_echo_server_and_client(stack: Stack) -> None:
    server = stack.spawn([sys.executable, str(EXAMPLES / "udp_echo_server.py"), "0.0.0.0:0"])
    port = int(server.stdout.readline().rpartition(":")[2])
    echo_of(stack, port)
    for address in (STACK, "127.0.0.1"):
        lines = run(stack, "udp_echo_client.py", f"{address}:{port}", 3).splitlines()
        assert [line.split(" after ")[0] for line in lines] == [f"{n}: 'echo {n}'" for n in (1, 2, 3)]


def test_dns_lookup_of_a_real_name_server(stack: Stack) -> None:
    dnsmasq = require_program("dnsmasq")
    server = stack.start(dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv",
                         "--no-hosts", "--port=5300", f"--listen-address={KERNEL}", "--bind-interfaces", "--user=root",
                         "--pid-file", "--log-facility=-", "--address=/one.example.test/192.0.2.17")

    def answers() -> str:
        assert server.poll() is None, server.stdout.read()
        tried = subprocess.run([sys.executable, str(EXAMPLES / "dns_lookup.py"), "one.example.test", f"{KERNEL}:5300"],
                               env=stack.env, capture_output=True, text=True, timeout=60, check=False)
        return tried.stdout

    assert wait_for("an answer of dnsmasq's", answers) == "192.0.2.17\n"


def test_javascript_echo_survives_a_kill_of_the_socket_service(stack: Stack, tmp_path: Path) -> None:
    server = stack.spawn(javascript_echo(tmp_path))
    port = int(server.stdout.readline().rpartition(":")[2])
    echo_of(stack, port)
    before = stack.incarnations()["sockets"]
    stack.run("sabotage", "sockets", "kill")
    wait_for("the socket service", lambda: stack.serves(sockets=before + 1))
    echo_of(stack, port)
    server.terminate()
    server.wait(PATIENCE_S)


def test_an_example_of_another_version_says_why_it_ends(stack: Stack, tmp_path: Path) -> None:
    program = tmp_path / "echo.py"
    text = (EXAMPLES / "zeromq_echo.py").read_text()
    assert "VERSION = 2 " in text
    program.write_text(text.replace("VERSION = 2 ", "VERSION = 1 "))
    done = subprocess.run([sys.executable, str(program), "0.0.0.0:0"], env=stack.env, capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "this stack speaks version 2 of the application protocol, the "
                                              "application version 1\n")


def test_c_echo_survives_a_kill_of_the_socket_service(stack: Stack, tmp_path: Path) -> None:
    server = stack.spawn(c_echo(tmp_path))
    port = int(server.stdout.readline().rpartition(":")[2])
    echo_of(stack, port)
    before = stack.incarnations()["sockets"]
    stack.run("sabotage", "sockets", "kill")
    wait_for("the socket service", lambda: stack.serves(sockets=before + 1))
    echo_of(stack, port)
    server.terminate()
    server.wait(PATIENCE_S)


@pytest.mark.parametrize("command", [zeromq_echo, c_echo, javascript_echo])
def test_an_application_without_the_library_notices_the_end_of_the_stack(new_stack, tmp_path, command) -> None:
    """As docs/app-protocol.md says: its inbox is removed."""
    stack = new_stack().up()
    server = stack.spawn(command(tmp_path))
    assert "echoing at" in server.stdout.readline()
    stack.run("down")
    said, _ = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, said.splitlines()[-1].partition(": ")[2]) == (1, "the stack is gone")


def test_an_example_without_an_answer_fails(stack: Stack) -> None:
    for program, said in (
            (["udp_echo_client.py", f"{KERNEL}:9", "1"], "Connection refused"),
            (["udp_echo_client.py", f"{NOBODY}:9", "1"], ""),
            (["udp_echo_client.py", "x"], "examples/udp_echo_client.py ADDRESS:PORT [COUNT]"),
            (["udp_echo_server.py", "x"], "examples/udp_echo_server.py [ADDRESS:PORT]")):
        done = subprocess.run([sys.executable, str(EXAMPLES / program[0]), *program[1:]], env=stack.env, text=True,
                              capture_output=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 1, program
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_an_example_without_a_stack_is_one_line(home, tmp_path) -> None:
    stack = Stack(home, unique_name())
    done = subprocess.run(zeromq_echo(tmp_path), env=stack.env, text=True, capture_output=True, timeout=PATIENCE_S,
                          check=False)
    assert (done.returncode, done.stderr) == (
        1, f"zeromq_echo: no usernet stack is running (looked in {stack.run_dir})\n")
