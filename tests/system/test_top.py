"""`top` in a real terminal (tmux): what it shows, its keys, other sizes, and the stack's end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator

import pytest

from cli.screen import HELP

from .conftest import require_program, unique_name
from .peers import LAYERS, STACK, Stack, wait_for


class Terminal:
    """A tmux of its own with the launcher in it."""

    def __init__(self, stack: Stack, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self._tmux = [require_program("tmux"), "-L", unique_name(), "-f", "/dev/null"]
        command = shlex.join(stack.command(*arguments)) + "; echo ended $?; sleep 60"
        subprocess.run([*self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(lines), command], check=True,
                       env=stack.env, cwd=stack.home)

    def screen(self) -> str:
        return subprocess.run([*self._tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def shows(self, *texts: str) -> str:
        wait_for(f"{texts} on\n{self.screen()}", lambda: all(text in self.screen() for text in texts))
        return self.screen()

    def press(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def resize(self, columns: int, lines: int) -> None:
        subprocess.run([*self._tmux, "resize-window", "-x", str(columns), "-y", str(lines)], check=True)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def top(new_stack) -> Iterator[tuple[Stack, Terminal]]:
    stack = new_stack().up()
    terminal = Terminal(stack, "top", "--interval", "0.3")
    try:
        terminal.shows("usernet", "sockets", "q quit")
        yield stack, terminal
    finally:
        terminal.close()


def test_in_eighty_by_twenty_four(top):
    stack, terminal = top
    stack.execute("ping", "-c", 20, "-i", 0.05, STACK)
    screen = terminal.shows("link:device", "device:link", "serves")
    lines = screen.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    for layer in ("link", "arp", "ip", "icmp", "udp", "sockets"):
        assert any(layer in line and " up " in line for line in lines), layer


def test_keys_kill_restart_impair_sort_pause_help_and_quit(top):
    stack, terminal = top
    terminal.press("Down", "Down", "k")
    terminal.shows("ip: killed", "died: killed by SIGKILL")
    wait_for("ip", lambda: stack.serves(ip=2))
    terminal.press("r")
    terminal.shows("ip: restarted")
    assert stack.serves(ip=3)
    terminal.press("i", "device --delay 20ms --loss 1%", "Enter")
    terminal.shows("impaired: link:device: loss 1% delay 20ms")
    terminal.press("i", "device --loss many", "Enter")
    terminal.shows("expected a value like 5%")
    terminal.press("i", "--clear", "Enter")
    wait_for("nothing impaired", lambda: "impaired: " not in terminal.screen())
    terminal.press("s")
    terminal.shows("sorted by name")
    terminal.press("h")
    terminal.shows(*HELP.splitlines())
    terminal.press("h", "p")
    terminal.shows("paused")
    terminal.press("q")
    terminal.shows("ended 0")
    assert stack.serves(ip=3)


def test_other_sizes(top):
    _, terminal = top
    for columns, lines in ((120, 40), (80, 24), (40, 12), (60, 15), (200, 60)):
        terminal.resize(columns, lines)
        wait_for(f"the screen in {columns} x {lines}",
                 lambda lines=lines: terminal.screen().splitlines()[0].startswith("usernet")
                 and "q quit" in "".join(terminal.screen().splitlines()[lines - 1 : lines]))
        shown = terminal.screen().splitlines()
        titles, *layers = shown[2 : min(lines - 1, 3 + len(LAYERS))]
        assert titles.split()[:2] == ["layer", "pid" if columns >= 80 else "state"]
        assert "drops" in titles
        assert [row[1:].split()[0] for row in layers] == LAYERS[: len(layers)]
        assert not [row for row in (titles, *layers) if "…" in row]  # a column that does not fit is left out


def test_the_stack_goes_down_underneath(top):
    stack, terminal = top
    stack.run("down")
    terminal.shows("the stack has ended", "ended 0")


def test_once_and_without_a_terminal(stack):
    for arguments in (("top", "--once"), ("top",)):
        done = stack.run(*arguments, "--interval", "0.2")
        assert "usernet" in done.stdout
        assert "\x1b" not in done.stdout
        assert " sockets " in done.stdout


def test_queues_and_drops_of_each_pipe(new_stack):
    stack = new_stack().up()
    stack.run("impair", "device:link", "--loss", "100%")
    try:
        stack.execute("ping", "-c", 3, "-i", 0.05, "-W", 0.2, STACK, status=None)
    finally:
        stack.run("impair", "--clear")
    stack.execute("ping", "-c", 3, "-i", 0.05, STACK)
    shown = stack.run("top", "--once", "--interval", "0.2", "--sort", "drops").stdout.splitlines()
    (titles,) = (line.split() for line in shown if line.startswith("pipe"))
    assert titles[:5] == ["pipe", "/s", "Mbit/s", "queue", "drops"]
    first = shown[shown.index(next(line for line in shown if line.startswith("pipe"))) + 1].split()
    assert first[0] == "device:link", "\n".join(shown)
    lost = stack.counters("link")["bus_impaired_lost"]
    assert lost >= 1
    assert float(first[4]) == lost
    stopped = stack.pids()["udp"]
    os.kill(stopped, signal.SIGSTOP)  # until the keeper replaces it, ip's records for it wait
    with stack.kernel.udp() as peer:
        for _ in range(200):
            peer.sendto(b"x", (STACK, 9))
    wait_for("udp", lambda: stack.pids()["udp"] != stopped and stack.serves())
    os.kill(stack.pids()["udp"], 0)
    wait_for("that nothing waits any more", lambda: not stack.ask()["ip"]["pipes"].get("5", [0])[0])


def test_without_colour(new_stack):
    stack = new_stack().up()
    stack.env["NO_COLOR"] = "1"
    terminal = Terminal(stack, "top")
    try:
        terminal.shows("usernet", "q quit")
    finally:
        terminal.close()


def test_bad_arguments(stack, new_stack):
    assert "0.1 to 60" in stack.run("top", "--interval", "0", status=2).stderr
    assert "no stack is running" in new_stack().run("top", "--once", status=2).stderr
