"""`replay`: repeat offline what a recorded layer did, with the present code, and report the differences.

A recording contains one run for each process: the initial state of the core, each call, and its result. replay creates
the core from that state and repeats the calls; a result that differs from the recorded one is reported.
"""

from __future__ import annotations

import argparse
import bdb
import importlib
import pdb
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bus import messages, topology
from bus.runtime.crash_log import LENGTH, MAGIC
from bus.runtime.keyed_random import KeyedRandom
from bus.runtime.recorder import Start
from cli.numbers import whole
from supervisor.options import UsageError

TEXT = "repeat the calls of a recorded layer and report which results differ"
_OWN = ("bus", "layers", "packets", "usernet")  # packages that --diff loads from the other checkout
_DIFFERENCES_SHOWN = 5
_MADE = '"""Made by `launcher.py replay --as-test`: '
_TEST = _MADE + '''the {layer} layer does what it did when it was recorded."""

from __future__ import annotations

from pathlib import Path

from cli.replay import differences


def test_{layer}_does_again_what_{name}_recorded():
    assert differences(Path(__file__).with_name({file!r})) == []
'''


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--break-at", type=whole(1), metavar="N", help="stop in the debugger before call N (from 1)")
    parser.add_argument("--pdb", action="store_true", help="start the debugger where the core raises an exception")
    parser.add_argument("--diff", metavar="DIR", help="use the code of the checkout in this directory")
    parser.add_argument("--as-test", metavar="FILE", help="write a pytest test that repeats this replay")


class ReplayedState(dict[int, bytes]):
    """A dict with the order of a layer's durable state: a key that is stored again moves to the end."""

    def __setitem__(self, key: int, value: bytes) -> None:
        if self.get(key) != value:
            self.pop(key, None)
            super().__setitem__(key, value)


class Call(msgspec.Struct):
    """One call of the core. `result` is None if the process ended during the call."""

    number: int
    name: str
    arguments: list[Any]
    result: list[Any] | None = None  # the returned value and next_wake

    def describe(self) -> str:
        """One line of text for a call."""
        if self.name == "receive":
            sender, kind, records, now = self.arguments
            who = {topology.DEVICE: "device"}.get(sender) or topology.NAMES.get(sender, f"application {sender:x}")
            return (f"call {self.number}: receive {len(records)} {messages.KIND_NAMES.get(kind, kind)} from {who} "
                    f"at {now:.6f}")
        return f"call {self.number}: {self.name}({', '.join(map(repr, self.arguments))})"


class Run(msgspec.Struct):
    """The recording of one process."""

    start: Start
    state: list[tuple[int, bytes]]
    calls: list[Call]
    core: bytes = b""  # pickled at a checkpoint; empty: the run begins with the process
    memory: list[list[Any]] = []  # pieces of the memory of streams


def read(path: Path) -> list[Run]:
    """The runs of a recording, at least one. OSError. ValueError: not a recording, or a damaged or an empty one."""
    octets = path.read_bytes()
    if not octets.startswith(MAGIC):
        if octets.startswith(MAGIC[: -len(b"2\n")]):
            raise ValueError(f"{path}: a recording of another version of usernet")
        raise ValueError(f"{path}: not a recording")
    try:
        runs = _runs(_entries(octets))
    except (LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: the recording is damaged: {error}") from error
    if not runs:
        raise ValueError(f"{path}: the recording is empty")
    return runs


def _entries(octets: bytes) -> Iterator[list[Any]]:
    """The complete entries of a recording; the last one may be incomplete, because the disk was full."""
    at = len(MAGIC)
    while at + LENGTH.size <= len(octets):
        (length,) = LENGTH.unpack_from(octets, at)
        at += LENGTH.size + length
        if at <= len(octets):
            yield msgspec.msgpack.decode(octets[at - length : at], type=list[Any])


def _runs(entries: Iterable[list[Any]]) -> list[Run]:
    runs: list[Run] = []
    passed = False  # the present checkpoint is in the middle of a run
    for kind, *fields in entries:
        if kind == "start":
            runs.append(Run(msgspec.convert(fields[0], Start), [], []))
            passed = False
        elif kind == "checkpoint":
            start, core, whole = msgspec.convert(fields[0], Start), fields[1], fields[2]
            passed = whole and bool(runs) and runs[-1].start.incarnation == start.incarnation
            if not passed:
                runs.append(Run(start, [], [], core))
        elif kind == "state":
            if not passed:
                runs[-1].state += [(key, value) for key, value in fields[0]]
        elif kind == "memory":
            if not passed:
                runs[-1].memory.append(fields)
        elif kind == "call":
            runs[-1].calls.append(Call(len(runs[-1].calls) + 1, *fields))
        else:
            runs[-1].calls[-1].result = fields
    return runs


def _plain(value: Any) -> Any:
    """The value after encoding and decoding: tuples become lists."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def replay(run: Run, break_at: int | None = None,
           begins: Callable[[Call], object] = lambda call: None) -> Iterator[tuple[Call, list[Any]]]:
    """Create the core and repeat the calls. Yields (call, new result) for each call whose result differs."""
    module, _, name = run.start.make.partition(":")
    config = importlib.import_module("bus.config").decode(run.start.config)
    counters = importlib.import_module(f"layers.{run.start.layer}.counters").Counters.new()
    for number, value in enumerate(run.start.counters[: len(counters)]):
        counters[number] = value
    state = ReplayedState(run.state)
    if run.core:
        parts = {"counters": counters, "state": state, "held": importlib.import_module("bus.durable.held").NO_HOLDINGS}
        if run.memory:
            parts |= {f"memory {number}": each for number, each in _stream_memory(run).mappings.items()}
        core = importlib.import_module("bus.runtime.recorder").unpickled(run.core, parts)
    else:
        make = getattr(importlib.import_module(module), name)
        more = [_stream_memory(run)] if run.memory else []
        core = make(config, state, counters, KeyedRandom(run.start.seed), *more)
    for call in run.calls:
        begins(call)
        if call.number == break_at:
            print(f"{call.describe()}\ns steps into the call; `core`, `call` and `state` are defined")
            pdb.set_trace()
        result = _plain([getattr(core, call.name)(*call.arguments), core.next_wake])
        if call.result is not None and result != call.result:
            yield call, result


def _stream_memory(run: Run) -> Any:
    module = importlib.import_module("bus.durable.stream_memory")
    return module.StreamMemory.volatile([module.Piece(*fields) for fields in run.memory])


def differences(path: Path) -> list[str]:
    """The differences between the present code and the recording; empty if there are none."""
    return [text for run in read(path) for call, result in replay(run) for text in _describe(call, result)]


def _describe(call: Call, result: list[Any]) -> list[str]:
    """Text for one difference."""
    assert call.result is not None
    lines = [call.describe()]
    for name, was, now in (("recorded", call.result, result), ("now", result, call.result)):
        sends = was[0] if isinstance(was[0], list) else [was[0]]
        others = now[0] if isinstance(now[0], list) else [now[0]]
        lines += [f"  only {name}: {_send(send)}" for send in sends if send not in others]
    if len(lines) == 1:
        lines.append(f"  recorded {call.result!r}" if call.result[0] == result[0] else "  the same items in another "
                     "order")
        lines.append(f"  now      {result!r}" if call.result[0] == result[0] else "")
    return [line for line in lines if line]


def _send(send: Any) -> str:
    if isinstance(send, list) and len(send) == 3 and isinstance(send[2], bytes):
        to = topology.NAMES.get(send[0], f"{send[0]:x}")
        return f"to {to}: {messages.KIND_NAMES.get(send[1], send[1])} {send[2].hex()}"
    return repr(send)


def run(given: argparse.Namespace) -> int:
    """Replay all runs; returns 1 if a result differs, the core raises, or the user leaves the debugger before."""
    path = Path(given.file)
    try:
        runs = read(path)
    except OSError as error:
        raise UsageError(f"replay: {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"replay: {error}") from error
    if given.as_test:
        if given.break_at is not None or given.pdb or given.diff:
            raise UsageError("--as-test cannot be combined with --break-at, --pdb or --diff")
        return _write_test(path, Path(given.as_test), runs)
    most = max(len(each.calls) for each in runs)
    if given.break_at is not None and given.break_at > most:
        numbers = f"the calls have the numbers 1 to {most}" if most else "there are no calls"
        raise UsageError(f"--break-at {given.break_at}: {numbers}")
    if given.diff:
        _take_code_from(Path(given.diff))
    status = 0
    for number, each in enumerate(runs, 1):
        title = (f"run {number}: {each.start.layer}, incarnation {each.start.incarnation}, {len(each.calls)} calls"
                 + (" from a checkpoint" if each.core else ""))
        called: list[Call] = []
        try:
            found = list(replay(each, given.break_at, called.append))
        except bdb.BdbQuit:
            print(f"{title}: the debugger was left in {called[-1].describe()}")
            return 1
        except Exception:
            last = called[-1].describe() if called else "its creation"
            print(f"{title}: the core raised in {last}")
            traceback.print_exc(limit=-8)
            if given.pdb:
                pdb.post_mortem()
            status = 1
            continue
        print(f"{title}: " + (f"{len(found)} with another result" if found else "all results as recorded"))
        for call, result in found[:_DIFFERENCES_SHOWN]:
            print("\n".join(_describe(call, result)))
        status |= bool(found)
    return status


def _take_code_from(directory: Path) -> None:
    if not all((directory / package / "__init__.py").is_file() for package in _OWN):
        raise UsageError(f"--diff {directory}: not a checkout of usernet")
    sys.path.insert(0, str(directory.resolve()))
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        del sys.modules[name]


def _write_test(recording: Path, test: Path, runs: list[Run]) -> int:
    """Write the test, and a copy of the recording next to it. UsageError: another file has one of these names."""
    if not test.name.startswith("test_") or test.suffix != ".py":
        raise UsageError(f"--as-test {test}: must be a path like tests/unit/test_NAME.py")
    beside = test.with_suffix(".rec")
    if test.exists():
        if not test.read_text(errors="replace").startswith(_MADE):
            raise UsageError(f"--as-test {test}: exists, and replay did not make it")
    elif beside.exists() and beside.resolve() != recording.resolve():
        raise UsageError(f"--as-test {test}: {beside} exists, which this recording would replace")
    name = "".join(letter if letter.isalnum() else "_" for letter in recording.stem)
    if beside.resolve() != recording.resolve():
        shutil.copyfile(recording, beside)
    test.write_text(_TEST.format(layer=runs[0].start.layer, name=name, file=beside.name))
    print(f"{test} and {beside}")
    return 0
