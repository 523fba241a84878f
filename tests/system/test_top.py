"""`top` in a real terminal (tmux): what it shows, its keys, other sizes, and the stack's end."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from cli.screen import HELP

from .conftest import require_program, unique_name
from .peers import LAYERS, PATIENCE_S, STACK, Stack, wait_for


class Terminal:
    """A tmux of its own with the launcher in it."""

    def __init__(self, stack: Stack, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self._tmux = [require_program("tmux"), "-L", unique_name(), "-f", "/dev/null"]
        command = shlex.join(stack.command(*arguments)) + "; echo ended $?; sleep 60"
        subprocess.run([*self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(lines), command], check=True,
                       env=stack.env, cwd=stack.home)

    def screen(self) -> str:
        return subprocess.run([*self._tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def until(self, holds: Callable[[list[str]], None]) -> None:
        """Look at the screen until `holds` takes its lines without an AssertionError.

        What is judged is one look: the terminal may be in the middle of a frame, or have one of its former size.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            screen = self.screen()
            try:
                return holds(screen.splitlines())
            except AssertionError:
                if time.monotonic() > end:
                    print(screen)
                    raise
            select.select([], [], [], 0.02)

    def shows(self, *texts: str) -> None:
        def holds(lines: list[str]) -> None:
            assert [text for text in texts if text not in "\n".join(lines)] == []

        self.until(holds)

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


def whole(lines: list[str], height: int) -> None:
    """The first and the last line of the screen are at their places."""
    assert len(lines) == height
    assert lines[0].startswith("usernet")
    assert "q quit" in lines[-1]


def test_in_eighty_by_twenty_four(top):
    stack, terminal = top
    stack.execute("ping", "-c", 20, "-i", 0.05, STACK)

    def holds(lines: list[str]) -> None:
        whole(lines, 24)
        assert any("link:device" in line for line in lines)
        assert any("device:link" in line for line in lines)
        for layer in LAYERS:
            assert any(layer in line and " up " in line for line in lines), layer
        assert any("serves" in line for line in lines)

    terminal.until(holds)


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

    def holds(lines: list[str]) -> None:
        whole(lines, height)
        titles, *layers = lines[2 : min(height - 1, 3 + len(LAYERS))]
        assert titles.split()[:2] == ["layer", "pid" if columns >= 80 else "state"]
        assert "drops" in titles
        assert [row[1:].split()[:1] for row in layers] == [[layer] for layer in LAYERS[: len(layers)]]
        assert not [row for row in (titles, *layers) if "…" in row]  # a column that does not fit is left out

    for columns, height in ((120, 40), (80, 24), (40, 12), (60, 15), (200, 60)):
        terminal.resize(columns, height)
        terminal.until(holds)


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
