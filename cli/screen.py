"""The screen of `top`, drawn by rich, and its keys. It works in 80 x 24 characters and without colours."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import select
import shlex
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli import impair, restart, stack
from cli.board import Board, Snapshot
from supervisor.control import NotRunning, Refused
from supervisor.options import UsageError

HELP = """\
up, down   select a layer         s    sort pipes by rate, name or drops
r          restart the layer      i    impair: a pipe or flow and parameters,
k          kill it (SIGKILL)           as in device --delay 20ms; or --clear
p, space   pause this screen      +,-  refresh less or more often
h, ?       this help              q    quit
"""
SORTS = ("rate", "name", "drops")
# The columns of a layer and the first that a narrow screen leaves out.
_COLUMNS = {"pid": 7, "state": 6, "restarts": 8, "cpu%": 4, "MB": 3, "in/s": 5, "us/rec": 6, "waits": 5, "drops": 5,
            "drops/s": 7}
_LAYER_COLUMN = 8
_LEFT_OUT = ("pid", "waits", "us/rec", "drops/s", "MB", "restarts", "in/s", "cpu%", "drops")
_RED, _YELLOW, _GREEN, _DIM = "bold red", "yellow", "green", "dim"


class View:
    """The settings that the user has chosen by keys."""

    def __init__(self, sort: str, interval_s: float) -> None:
        self.sort = sort
        self.interval_s = interval_s
        self.chosen = 0
        self.paused = self.help = False
        self.said = ""  # the answer to the last key
        self.typing: str | None = None  # the text of an impairment while it is typed


def _number(value: float) -> str:
    """A number in short form: 3.2, 417, 12.3k, 4.5M; 7 if it counts something."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= scale:
            return f"{value / (1e3 if unit == 'k' else scale):.1f}{unit}"
    return "." if not value else f"{value:.1f}" if value < 10 and not isinstance(value, int) else f"{value:.0f}"


def draw(snapshot: Snapshot, view: View, width: int, height: int) -> Group:
    """The whole screen."""
    clock = f"{int(snapshot.uptime_s) // 3600}:{int(snapshot.uptime_s) // 60 % 60:02}:{int(snapshot.uptime_s) % 60:02}"
    head = Text(f"usernet {snapshot.name}  {snapshot.address} on {snapshot.where}  up {clock}  ", no_wrap=True,
                overflow="crop")
    head.append(snapshot.state, _GREEN if snapshot.state == "up" else _RED)
    counts = Text(f"applications {snapshot.applications}, sockets {snapshot.sockets}, connections "
                  f"{snapshot.connections}, cores {snapshot.cores}", no_wrap=True, overflow="crop")
    parts: list[RenderableType] = [head, counts]
    layers = _layers(snapshot, view, width)
    room = height - 2 - (len(snapshot.layers) + 1) - 1
    parts.append(layers)
    if view.help:
        parts.append(Text("\n" + HELP))
    else:
        pipes = _pipes(snapshot, view, room - room // 3 - len(snapshot.impairments[:3]), width)
        events = max(1, room - 1 - pipes.row_count - len(snapshot.impairments[:3]))
        parts.append(pipes)
        parts += [Text(f"impaired: {one}", _YELLOW, no_wrap=True, overflow="ellipsis")
                  for one in snapshot.impairments[:3]]
        parts += [Text(event, _DIM, no_wrap=True, overflow="ellipsis") for event in snapshot.events[-events:]]
    return Group(*parts)


def foot(view: View) -> Text:
    """The last line: the text being typed, the last answer, or the keys."""
    if view.typing is not None:
        return Text(f"impair {view.typing}_", no_wrap=True)
    keys = "q quit  h help  r restart  k kill  i impair  s sort  p pause"
    return Text(view.said or ("paused; " if view.paused else "") + keys, no_wrap=True, overflow="ellipsis")


def _columns(width: int) -> list[str]:
    """The columns of a layer that fit."""
    names = list(_COLUMNS)
    for name in _LEFT_OUT:
        if _LAYER_COLUMN + sum(_COLUMNS[each] + 1 for each in names) < width:
            break
        names.remove(name)
    return names


def _layers(snapshot: Snapshot, view: View, width: int) -> Table:
    columns = _columns(width)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=False)
    table.add_column("layer", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    rows = list(enumerate(snapshot.layers))
    if view.sort == "drops":
        rows.sort(key=lambda row: -row[1].drops)
    for number, row in rows:
        style = "reverse" if number == view.chosen else ""
        mark = ">" if number == view.chosen else " "
        cells: dict[str, RenderableType] = {
            "pid": str(row.pid or "-"), "state": Text(row.state, "" if row.state == "up" else _RED),
            "restarts": str(row.restarts), "cpu%": f"{row.cpu_percent:.0f}", "MB": f"{row.memory_bytes / 1e6:.0f}",
            "in/s": _number(row.records_s), "us/rec": _number(row.us_record), "waits": _number(row.waiting),
            "drops": _number(row.drops), "drops/s": Text(_number(row.drops_s), _RED if row.drops_s else "")}
        table.add_row(f"{mark}{row.name}", *(cells[name] for name in columns), style=style)
    return table


def _pipes(snapshot: Snapshot, view: View, lines: int, width: int) -> Table:
    """The pipes, in as many columns as fit."""
    pipes = [pipe for pipe in snapshot.pipes
             if pipe.records or pipe.impaired or pipe.drops or pipe.waiting] or snapshot.pipes
    if view.sort == "drops":
        pipes = sorted(pipes, key=lambda pipe: -pipe.drops)
    elif view.sort == "rate":
        pipes = sorted(pipes, key=lambda pipe: -pipe.records_s)
    columns = max(1, width // 40)
    rows = max(1, lines - 1)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for _ in range(columns):
        table.add_column("pipe", width=12, no_wrap=True)
        for name, octets in (("/s", 5), ("Mbit/s", 6), ("queue", 5), ("drops", 6)):
            table.add_column(name, justify="right", width=octets, no_wrap=True)
    shown = pipes[: rows * columns]
    rows = -(-len(shown) // columns)
    for row in range(rows):
        cells: list[RenderableType] = []
        for pipe in shown[row::rows]:
            cells += [Text(pipe.name, _YELLOW if pipe.impaired else ""), _number(pipe.records_s),
                      f"{pipe.mbit_s:.{0 if pipe.mbit_s >= 1000 else 2}f}" if pipe.mbit_s else ".",
                      _number(pipe.waiting), Text(_number(pipe.drops), _RED if pipe.drops_s else "")]
        table.add_row(*cells)
    return table


def _act(key: str, view: View, snapshot: Snapshot, name: str | None) -> bool:
    """Carry out the action of a key; False: quit."""
    if view.typing is not None:
        _type(key, view, name)
        return True
    view.said = ""
    layer = snapshot.layers[view.chosen % len(snapshot.layers)].name
    try:
        if key in ("q", "\x03", "\x04"):
            return False
        if key in ("\x1b[A", "\x1b[B"):
            view.chosen = (view.chosen + (1 if key[-1] == "B" else -1)) % len(snapshot.layers)
        elif key in ("h", "?"):
            view.help = not view.help
        elif key in ("p", " "):
            view.paused = not view.paused
        elif key == "s":
            view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
            view.said = f"sorted by {view.sort}"
        elif key == "+":
            view.interval_s = min(60.0, view.interval_s * 2)
        elif key == "-":
            view.interval_s = max(0.1, view.interval_s / 2)
        elif key == "i":
            view.typing = ""
        elif key == "k":
            stack.query(stack.run_dir(name), "sabotage", layer=layer, fault="kill")
            view.said = f"{layer}: killed"
        elif key == "r":
            restart.restart(stack.run_dir(name), [layer])
            view.said = f"{layer}: restarted"
    except (Refused, UsageError) as error:
        view.said = str(error)
    return True


def _type(key: str, view: View, name: str | None) -> None:
    """Add one character to the text of an impairment, or finish it."""
    assert view.typing is not None
    if key in ("\r", "\n"):
        order, view.typing = view.typing, None
        view.said = _impair(order, name)
    elif key in ("\x1b", "\x03"):
        view.typing = None
    elif key in ("\x7f", "\x08"):
        view.typing = view.typing[:-1]
    elif key.isprintable():
        view.typing += key


def _impair(order: str, name: str | None) -> str:
    """Run `impair` with these words and return its message."""
    parser = argparse.ArgumentParser(prog="impair", add_help=False, exit_on_error=False, allow_abbrev=False)
    impair.arguments(parser)
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer), contextlib.redirect_stderr(answer):
            given = parser.parse_args(shlex.split(order))
            given.name = name
            impair.run(given)
    except (UsageError, Refused, ValueError, argparse.ArgumentError, SystemExit) as error:
        return f"impair: {str(error).removeprefix('impair: ')}" if str(error) else answer.getvalue()
    return "; ".join(answer.getvalue().splitlines())


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Read single keys, on the alternate screen; both are restored at the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    sys.stdout.write("\033[?1049h\033[?25l")
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()


def _frame(snapshot: Snapshot, view: View, colour: bool) -> str:
    """The screen as text. Each line is cleared just before it is written, so that the screen does not flicker."""
    size = os.get_terminal_size(sys.stdout.fileno())  # the present size of the terminal, not $COLUMNS
    made = io.StringIO()
    console = Console(file=made, width=size.columns, height=size.lines, force_terminal=colour, no_color=not colour,
                      highlight=False, legacy_windows=False)
    console.print(draw(snapshot, view, size.columns, size.lines), end="")
    lines = made.getvalue().split("\n")[: size.lines - 1]
    made.seek(0)
    made.truncate()
    console.print(foot(view), end="")
    lines += [""] * (size.lines - 1 - len(lines)) + made.getvalue().split("\n")[:1]
    return "\033[H" + "\r\n".join(f"{line}\033[K" for line in lines) + "\033[J"


def show(name: str | None, once: bool, interval_s: float, sort: str) -> int:
    """Show the screen until q is pressed, or once."""
    board, view = Board(name), View(sort, interval_s)
    try:
        snapshot = board.tick()
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            time.sleep(interval_s)
            size = shutil.get_terminal_size()
            height = size.lines if sys.stdout.isatty() else max(24, 60)
            Console(width=size.columns, highlight=False).print(draw(board.tick(), view, size.columns, height))
            return 0
        return _live(board, view, snapshot, name)
    finally:
        board.close()


def _live(board: Board, view: View, snapshot: Snapshot, name: str | None) -> int:
    colour = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGWINCH, lambda *_: None)  # the wakeup descriptor reports it; then the screen is drawn again
    with _terminal():
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                due = now + view.interval_s
                if not view.paused:
                    try:
                        snapshot = board.tick()
                    except (NotRunning, ConnectionError):
                        break
            sys.stdout.write(_frame(snapshot, view, colour))
            sys.stdout.flush()
            ready, _, _ = select.select([sys.stdin, wake], [], [], max(0.0, due - time.monotonic()))
            if wake in ready:
                os.read(wake, 64)
            if sys.stdin in ready:
                octets = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
                try:
                    if not octets or not all(_act(key, view, snapshot, name) for key in _keys(octets)):
                        return 0
                except (NotRunning, ConnectionError):
                    break
    print("the stack has ended")
    return 0


def _keys(octets: str) -> Iterator[str]:
    """Yields the keys one by one; an arrow key is three characters."""
    while octets:
        length = 3 if octets.startswith("\x1b[") else 1
        yield octets[:length]
        octets = octets[length:]
