"""`web`: the page in a real browser, and which requests it answers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from .chromium import Browser
from .conftest import require_program, unavailable
from .peers import KERNEL, PATIENCE_S, STACK, Stack, wait_for

pytestmark = [pytest.mark.tcp, pytest.mark.provokes("window full")]


class Page:
    """The server, as `launcher.py web` started it."""

    def __init__(self, stack: Stack) -> None:
        self.process = stack.popen("web", "--port", "0", stderr=subprocess.PIPE)
        self.url = self.process.stdout.readline().split()[1]
        self.base, _, self.query = self.url.partition("?")

    def ask(self, path: str, order: dict | list | None = None, *, query: str | None = None,
            **headers: str) -> tuple[int, dict]:
        request = urllib.request.Request(f"{self.base}{path}?{self.query if query is None else query}", headers=headers)
        if order is not None:
            request.data = json.dumps(order).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else {"error": text}


@pytest.fixture
def page(stack) -> Iterator[Page]:
    made = Page(stack)
    yield made
    made.process.terminate()
    assert made.process.wait(PATIENCE_S) == 0


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if any(os.access(f"{folder}/{name}", os.X_OK) for folder in os.environ["PATH"].split(":")):
            return require_program(name)
    return unavailable("no Chromium here") or ""


def seen_by_browser(url: str, tmp_path) -> str:
    """The document after its scripts have run for some seconds."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
               "--virtual-time-budget=6000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_in_a_browser(stack, page, tmp_path):
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    stack.run("restart", "ip")
    document = seen_by_browser(f"{page.url}#layer=ip", tmp_path)
    for layer in ("link", "arp", "ip", "icmp", "udp", "sockets"):
        assert f'id="box-{layer}"' in document
    assert f"usernet {stack.name}: {STACK}/24" in document
    assert "<td>packets_in</td>" in document
    assert "kill ip" in document
    assert "# ip" in document  # its README
    assert "1 restarts" in document
    assert document.count("restart: asked for by process") == 2  # among all events, and among those of ip


@pytest.fixture
def flowing(stack) -> Iterator[str]:
    """A connection on which octets flow; its name."""
    with flow(stack) as name:
        yield name


@contextlib.contextmanager
def flow(stack: Stack) -> Iterator[str]:
    """The same."""
    with stack.kernel.socket(kind=socket.SOCK_STREAM) as listener, stack.socket(socket.SOCK_STREAM) as ours:
        listener.bind((KERNEL, 0))
        listener.listen()
        ours.connect(listener.getsockname())
        theirs, peer = listener.accept()
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.01):
                ours.sendall(bytes(3000))
                theirs.recv(1 << 20)

        with theirs:
            sender = threading.Thread(target=send)
            sender.start()
            yield "{}:{}-{}:{}".format(*peer, *listener.getsockname())
            ended.set()
            sender.join(PATIENCE_S)


def test_a_connection_with_its_plots(stack, page, flowing, tmp_path):
    status, found = page.ask("connections")
    assert status == 200
    assert flowing in [one["name"] for one in found["connections"]]
    assert page.ask("state")[1]["connections"] == 1
    status, found = page.ask(f"connection/{flowing}")
    assert (status, found["state"]) == (200, "ESTABLISHED")
    text = [each for each in found["segments"] if each[1] and each[3]]
    numbers = [each[2] for each in text]
    assert len(numbers) > 10
    # Forward, or a little back where an answer was late
    assert all((later - former + (1 << 20)) & 0xFFFFFFFF < 1 << 21 for former, later in itertools.pairwise(numbers))
    answers = [each for each in found["segments"] if not each[1]]
    assert min(each[6] for each in answers) > 1 << 14  # the kernel's window, scaled
    assert all(one["snd_cwnd"] >= 1 and one["rtt"] > 0 for one in found["info"])
    assert "[RFC " in found["events"][0]  # the oldest of the last: an old one is forgotten
    document = seen_by_browser(f"{page.url}#connection={flowing}", tmp_path)
    assert f"connection {flowing}, ESTABLISHED" in document
    assert document.count('class="segment"') > 10
    assert 'class="edge"' in document
    assert "rtt: " in document
    assert page.ask("connection/10.0.0.2:1-10.0.0.1:2")[0] == 400


@pytest.fixture
def opened(new_stack, tmp_path) -> Iterator[tuple[Stack, Browser]]:
    """A stack of its own, with its page in a browser."""
    stack = new_stack().up()
    made = Page(stack)
    shown = Browser(browser(), tmp_path / "profile", made.url)
    try:
        shown.shows("#head", f"usernet {stack.name}: {STACK}/24 on tap0")
        yield stack, shown
    finally:
        shown.close()
        made.process.terminate()
        assert made.process.wait(PATIENCE_S) == 0


def test_a_person_clicks_layers_pipes_and_buttons(opened):
    stack, shown = opened
    shown.click("#box-ip", pressed_s=1.5)  # the picture is drawn anew while the button is pressed
    shown.shows("#detail h2", "ip")
    readme = shown.text("#detail pre:last-child")
    assert "owns addresses, routes and path MTUs; the transports, sockets and arp have a copy.\n\n| from |" in readme
    before = shown.text("#counters")
    assert stack.pinged(3, "-i", 0.05) == 3

    def taken() -> str:  # ping may have sent another one
        count = f"{stack.counters('ip')['packets_in']}packets_in"
        return count if count in shown.text("#counters") else ""

    assert wait_for("the present count, without another click", taken) not in before
    shown.click("#detail button", "kill ip")
    wait_for("ip", lambda: stack.serves(ip=2))
    shown.shows("#said", "kill ip: done")
    shown.shows("#last-events", "died: killed by SIGKILL")
    shown.click("#detail button", "restart ip")
    shown.shows("#said", "restart ip: done")
    assert stack.serves(ip=3)
    shown.shows("#box-ip", "2 restarts")
    shown.click("#words")
    shown.type("device --delay 20ms")
    shown.click("#impair button")
    shown.shows("#said", "impair device --delay 20ms: done")
    shown.shows("#events", "impaired: link:device: delay 20ms")
    assert "link:device: delay 20ms" in stack.run("impair").stdout
    for words, answer in (("device --loss many", "expected a value like 5%"), ("--clear", "impair --clear: done")):
        shown.click("#words")
        shown.type(words)
        shown.click("#impair button")
        shown.shows("#said", answer)
    pinging = stack.start("ping", "-i", "0.05", STACK)
    assert "PING" in pinging.stdout.readline()
    assert "icmp_seq=1" in pinging.stdout.readline()
    shown.click("[data-pipe='link:ip']")
    shown.shows("#detail h2", "pipe link:ip")
    shown.shows("#detail pre", "ICMP echo request")
    pinging.send_signal(signal.SIGINT)
    assert pinging.wait(PATIENCE_S) == 0


def test_a_person_clicks_a_connection(opened):
    stack, shown = opened
    with flow(stack) as name:
        shown.click("#box-tcp")
        shown.click("#detail button.connection", name)
        shown.shows("#detail h2", f"connection {name}, ESTABLISHED")
        assert shown.value("document.querySelectorAll('.segment').length") > 10
        shown.shows("#detail pre", "[RFC 9293 section 3.10.1]")


def test_state_pipes_and_orders(stack, page):
    assert page.ask("state")[0] == 200
    stack.execute("ping", "-c", 1, "-W", 10, STACK)
    status, state = page.ask("state")
    assert status == 200
    assert {layer["name"] for layer in state["layers"]} >= {"link", "ip", "sockets"}
    pinging = stack.start("ping", "-i", "0.05", STACK)
    assert "PING" in pinging.stdout.readline()
    assert "icmp_seq=1" in pinging.stdout.readline()
    status, found = page.ask("pipe/link:ip")
    pinging.send_signal(signal.SIGINT)
    assert pinging.wait(PATIENCE_S) == 0
    assert status == 200
    assert any("ICMP echo request" in line for line in found["packets"])
    before = stack.incarnations()["icmp"]
    assert page.ask("do", {"action": "kill", "layer": "icmp"})[0] == 200
    wait_for("icmp", lambda: stack.serves(icmp=before + 1))
    assert page.ask("do", {"action": "restart", "layer": "icmp"})[0] == 200
    assert page.ask("do", {"action": "impair", "words": "device --delay 1ms"})[0] == 200
    assert "delay 1ms" in stack.run("impair").stdout
    assert page.ask("do", {"action": "impair", "words": "--clear"})[0] == 200
    for order in ({"action": "impair", "words": "device --loss x"}, {"action": "impair", "words": "--nonsense"},
                  {"action": "fly"}, {"action": "kill", "layer": "nobody"}, []):
        status, answer = page.ask("do", order)
        assert (status, bool(answer["error"])) == (400, True)
    assert page.ask("layer/..%2f..%2fcli")[0] in (400, 404)


def test_requests_without_the_token_get_nothing(page):
    port = page.base.rsplit(":", 1)[1].rstrip("/")
    assert page.ask("state", query="")[0] == 403
    assert page.ask("state", query="token=wrong")[0] == 403
    assert page.ask("state", Host=f"evil.example:{port}")[0] == 403
    assert page.ask("state", Origin="http://evil.example")[0] == 403
    assert page.ask("do", {"action": "kill", "layer": "ip"}, Origin="null")[0] == 403
    assert page.ask("state", Origin=page.base.rstrip("/"))[0] == 200
    listening = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    assert f"127.0.0.1:{port}" in listening
    assert "0.0.0.0" not in listening.replace("0.0.0.0:*", "")


def test_the_stack_goes_down_and_comes_back(new_stack):
    stack = new_stack().up()
    page = Page(stack)
    assert page.ask("state")[0] == 200
    stack.run("down")
    status, answer = page.ask("state")
    assert (status, answer["error"]) == (503, "the stack is not running")
    stack.up()
    wait_for("the stack's state", lambda: page.ask("state")[0] == 200)


def test_a_keeper_that_is_stopped_is_told_of_by_every_request(new_stack):
    stack = new_stack().up()
    page, keeper = Page(stack), stack.keeper
    assert page.ask("state")[0] == 200
    os.kill(keeper, signal.SIGSTOP)
    try:
        for path, order in (
            ("state", None), ("layer/ip", None), ("pipe/link:ip", None), ("connections", None),
            ("connection/10.0.0.2:80-10.0.0.1:5000", None), ("do", {"action": "kill", "layer": "udp"}),
            ("do", {"action": "restart", "layer": "udp"}), ("do", {"action": "impair", "words": "device --delay 1ms"}),
        ):
            status, answer = page.ask(path, order)
            assert status == 504, path
            assert answer["error"].startswith(f"the keeper [{keeper}] is stopped and answers nothing: ")
            assert "\n" not in answer["error"]
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert page.ask("state")[0] == 200
    page.process.terminate()
    told = page.process.communicate(timeout=PATIENCE_S)[1]
    assert (page.process.returncode, told) == (0, "")


@pytest.mark.parametrize("verb", ["web", "metrics"])
def test_bad_ports(stack, verb):
    for port in ("70000", "-1", "x"):
        refused = stack.run(verb, "--port", port, status=2).stderr
        assert refused == f"launcher.py: {verb}: argument --port: '{port}': must be a whole number, 0 to 65535\n"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = stack.run(verb, "--port", port, status=1).stderr
        assert refused == (f"launcher.py: Address already in use: 127.0.0.1:{port} (--port 0 takes any free port)\n")
