"""`capture`: the packets on any pipe, as one line each or as a pcapng file for Wireshark."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bus import messages, views
from bus.runtime import ring
from cli import deferring
from cli.capture_filter import capture_filter
from cli.main import INTERRUPTED, program
from cli.numbers import seconds, whole
from cli.pipes import DEVICE, Pipe, chosen
from cli.watching import Seen, Watch, sentence
from packets import pcapng, summary
from packets.addresses import WIDTHS
from packets.ethernet import MAC_OCTETS
from packets.filter import FilterError
from supervisor.control import Client, printable
from supervisor.options import UsageError
from usernet.pipe.run_dir import run_dir

TEXT = "show the packets on any pipe, one line each, or write a pcapng file for Wireshark"
_SIZE = re.compile(r"(\d+)([kMG]?B|s|min)")
_BUFFER_OCTETS = 1 << 20  # what a file gets in one write, about
_SOON_OCTETS = 5_000_000  # copied from rings, encoded in a tenth of a second
_SCALES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "s": 1, "min": 60}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("pipes", nargs="*", metavar="PIPE", help="ip:udp is the pipe from ip to udp; ip stands for all "
                        "pipes of ip, device for the TAP or wire, app for the applications (default: all pipes)")
    parser.add_argument("-w", dest="file", metavar="FILE", help="write a pcapng file; - is standard output: ... -w - | "
                        "wireshark -k -i -")
    parser.add_argument("--filter", default="", metavar="EXPR", help="only packets that match this expression "
                        "of pcap-filter(7)")
    parser.add_argument("--count", type=whole(1), metavar="N", help="stop after N packets")
    parser.add_argument("--seconds", type=seconds(above=True), metavar="S", help="stop after S seconds")
    parser.add_argument("--control", action="store_true", help="also show the records between layers that are not "
                        "packets")
    parser.add_argument("--rotate", metavar="SIZE", help="with -w: start a new file after this size or time: 10MB, "
                        "60s, 5min")
    parser.add_argument("--files", type=whole(1), metavar="N", help="with --rotate: keep the last N files")


def packets(seen: Seen, with_vnet: bool, control: bool) -> list[bytes]:
    """The packets in some records; with `control`, also records that are none (`is_control`)."""
    if is_control(seen):
        return seen.records if control else []
    return views.packets_of(seen.kind, seen.records, with_vnet, seen.pipe.protocol)


def is_control(seen: Seen) -> bool:
    """True if the records are not packets."""
    return not views.shows_packets(seen.kind)


def said(kind: int, record: bytes) -> str:
    """One line of text for a control record."""
    name = messages.KIND_NAMES.get(kind, f"kind {kind}")
    if kind in (messages.RESOLVE, messages.UNREACHABLE, messages.FORGET) and len(record) in WIDTHS:
        return f"{name} {ip_address(record)}"
    if kind == messages.NEIGHBOR and len(record) - MAC_OCTETS in WIDTHS:
        return f"{name} {ip_address(record[:-MAC_OCTETS])} is-at {record[-MAC_OCTETS:].hex(':')}"
    if kind in messages.STRUCTURED:
        try:
            return f"{name} {msgspec.json.encode(_in_text(msgspec.msgpack.decode(record))).decode()}"
        except (ValueError, RecursionError):
            return f"{name} {record.hex()}"
    if record[:1] in (b"{", b"["):
        return f"{name} {record.decode(errors='replace')}"
    return f"{name} {record.hex()}"


def _in_text(value: object, key: str = "") -> object:
    """A decoded record with its octets as text: addresses as people write them, IP options in hexadecimal."""
    if isinstance(value, bytes):
        return str(ip_address(value)) if len(value) in WIDTHS and key != "ip_options" else value.hex()
    if isinstance(value, list):
        return [_in_text(each) for each in value]
    return {name: _in_text(each, name) for name, each in value.items()} if isinstance(value, dict) else value


def line(seen: Seen, octets: bytes) -> str:
    """One line of text for a packet, or control record, among the seen."""
    when = time.strftime("%H:%M:%S", time.localtime(seen.when_ns // 10**9)) + f".{seen.when_ns // 1000 % 10**6:06}"
    if is_control(seen):
        text = said(seen.kind, octets)
    else:
        ethernet = seen.pipe.link_type == pcapng.LINKTYPE_ETHERNET
        text = summary.ethernet(octets) if ethernet else summary.ipv4(octets)
    if seen.kind in (messages.ICMP_ERROR, messages.REPORT_ERROR):
        text = f"{messages.KIND_NAMES[seen.kind]} about {text}"
    dropped = f" -- dropped by {seen.layer}: {seen.counter}" if seen.direction == ring.DROPPED else ""
    return printable(f"{when} {seen.pipe.name:<12} {text}{dropped}")


def comment(seen: Seen) -> str:
    """The comment of a packet in a file; that of a control record continues with what it says."""
    if seen.direction == ring.DROPPED:
        return f"dropped by {seen.layer} {seen.incarnation}: {seen.counter}: {sentence(seen.layer, seen.counter)}"
    return f"{seen.layer} {seen.incarnation}: {messages.KIND_NAMES.get(seen.kind, seen.kind)}"


def _direction(pipe: Pipe) -> int:
    if DEVICE not in pipe:
        return 0
    return pcapng.INBOUND if pipe.producer == DEVICE else pcapng.OUTBOUND


class File:
    """A pcapng file with one interface per pipe; with rotation, a sequence of such files."""

    def __init__(self, path: str, pipes: list[Pipe], expression: str, rotate: str | None, keep: int | None,
                 now_ns: Callable[[], int] = time.time_ns) -> None:
        """`now_ns`: the time when what is written now was read from the layers, in nanoseconds since 1970."""
        self._path = path
        self._now_ns = now_ns
        self._pipes = pipes
        self._expression = expression
        self._size, self._seconds = _rotation(rotate)
        self._keep = keep
        self._number = 0
        self._files: list[Path] = []
        self._numbers: dict[tuple[Pipe, bool], int] = {}
        self._counts: Counter[int] = Counter()
        self._told: Counter[str] = Counter()  # losses that the file already contains
        self._open()

    def _open(self) -> None:
        path = self._path
        if self._size or self._seconds:
            self._number += 1
            stem, suffix = os.path.splitext(path)
            path = f"{stem}-{self._number:05}{suffix}"
            self._files.append(Path(path))
            if self._keep and len(self._files) > self._keep:
                self._files.pop(0).unlink(missing_ok=True)
        self._out: BinaryIO = sys.stdout.buffer if path == "-" else open(path, "wb", buffering=0)  # noqa: SIM115
        self._written = 0  # octets
        self._blocks: list[bytes] = []  # complete blocks that are not written yet
        self._octets = 0  # of these
        self._opened_ns = self._now_ns()
        self._numbers, self._counts = {}, Counter()
        # {origin: number of the interface, options}: entries of one origin are alike in all that is not a packet
        self._forms: dict[tuple[Pipe, str, int, int, int, str], tuple[int, bytes]] = {}
        self._write(pcapng.section("usernet", system=platform.platform(), hardware=platform.machine()))
        for pipe in self._pipes:
            self._interface(pipe, False)
        self.flush()

    def spool(self) -> deferring.Spool | None:
        """Where packets can wait until there is time to encode them; None: somebody reads the file as it is written."""
        mode = os.fstat(self._out.fileno()).st_mode
        if self._path == "-" or stat.S_ISFIFO(mode):
            return None
        return deferring.Spool(os.path.dirname(os.path.abspath(self._path)) if stat.S_ISREG(mode) else None)

    def _interface(self, pipe: Pipe, control: bool) -> int:
        number = self._numbers.get((pipe, control))
        if number is None:
            number = self._numbers[pipe, control] = len(self._numbers)
            name, kind = (f"{pipe.name} control", pcapng.LINKTYPE_USER0) if control else (pipe.name, pipe.link_type)
            about = f"what {pipe.producer} sends to {pipe.consumer}"
            self._write(pcapng.interface(name, kind, about, self._expression))
        return number

    def _write(self, blocks: bytes) -> None:
        """Add complete blocks to the file."""
        self._blocks.append(blocks)
        self._octets += len(blocks)
        if self._octets >= _BUFFER_OCTETS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet, so that the reader of a pipe sees the packets.

        OSError: there was no room for all; the file ends with the last complete block.
        """
        octets, done = b"".join(self._blocks), 0
        self._blocks, self._octets = [], 0
        try:
            while done < len(octets):
                done += self._out.write(octets[done:])
            self._out.flush()
        except OSError:
            if self._path != "-":
                os.ftruncate(self._out.fileno(), self._written + pcapng.complete(octets, done))
            raise
        self._written += done

    def add(self, seen: Seen, packets: Sequence[bytes], lost: Mapping[str, int]) -> None:
        """Write the packets, or control records, of some records."""
        if self._size:  # a file may be full after each of them
            for octets in packets:
                self._add(seen, (octets,), lost)
        elif packets:
            self._add(seen, packets, lost)

    def _add(self, seen: Seen, packets: Sequence[bytes], lost: Mapping[str, int]) -> None:
        if (self._size and self._written + self._octets >= self._size) or (
                self._seconds and self._now_ns() - self._opened_ns >= self._seconds * 10**9):
            self.close(lost)
            self._open()
        number, options = self._forms.get(seen.origin) or self._form(seen)
        self._counts[number] += len(packets)
        missing = lost[seen.layer] - self._told[seen.layer]
        self._told[seen.layer] += missing
        if is_control(seen) and seen.direction != ring.DROPPED:
            for octets in packets:
                text = f"{comment(seen)} {said(seen.kind, octets)}"
                options = pcapng.packet_options(text, _direction(seen.pipe), missing)
                self._write(pcapng.packets(number, seen.when_ns, (octets,), options))
                missing = 0
            return
        if missing:
            first = pcapng.packet_options(comment(seen), _direction(seen.pipe), missing)
            self._write(pcapng.packets(number, seen.when_ns, packets[:1], first))
            packets = packets[1:]
        self._write(pcapng.packets(number, seen.when_ns, packets, options))

    def _form(self, seen: Seen) -> tuple[int, bytes]:
        form = self._forms[seen.origin] = (self._interface(seen.pipe, is_control(seen)),
                                           pcapng.packet_options(comment(seen), _direction(seen.pipe)))
        return form

    def close(self, lost: Mapping[str, int]) -> None:
        """Finish the file with statistics of each interface; the losses of a layer are counted at its first
        interface."""
        told: set[str] = set()
        for (pipe, _), number in self._numbers.items():
            missing = 0 if pipe.layer in told else lost.get(pipe.layer, 0)
            told.add(pipe.layer)
            self._write(pcapng.statistics(number, self._now_ns(), start_ns=self._opened_ns,
                                          received=self._counts[number], lost=missing))
        self.flush()
        if self._path != "-":
            self._out.close()


def _rotation(text: str | None) -> tuple[int, int]:
    """(octets, seconds); 0: no limit of this kind. UsageError: neither a size nor a time."""
    if text is None:
        return 0, 0
    match = _SIZE.fullmatch(text)
    if match is None or not int(match[1]):
        raise UsageError(f"--rotate {text}: expected a size or a time like 10MB, 500kB, 60s or 5min")
    amount = int(match[1]) * _SCALES[match[2]]
    return (amount, 0) if match[2].endswith("B") else (0, amount)


def run(given: argparse.Namespace) -> int:
    """Capture until the count or the time is reached, Ctrl-C is pressed, or the stack ends."""
    if (given.rotate and given.file in (None, "-")) or (given.files and not given.rotate):
        raise UsageError("--rotate needs -w FILE, and --files needs --rotate")
    with Client(run_dir(given.name)) as client:
        layers = client.request("status")["layers"]
    pipes = chosen(given.pipes, layers)
    tests = _tests(given.filter, pipes)
    _rotation(given.rotate)
    with Watch(given.name, pipes) as watch:
        rest = Rest()
        heed(rest, watch.stop)
        out = (File(given.file, pipes, given.filter, given.rotate, given.files, lambda: watch.merger.at_ns)
               if given.file else None)
        print(f"capturing on {len(pipes)} pipe{'s' if len(pipes) > 1 else ''}; Ctrl-C ends it", file=sys.stderr)
        signal.setitimer(signal.ITIMER_REAL, given.seconds or 0)
        count, problem = 0, ""
        try:
            try:
                for seen, found in _wanted(_batches(watch, out, given.count, rest), watch.with_vnet, tests, given,
                                           out.flush if out else sys.stdout.flush):
                    count += len(found)
                    if out:
                        out.add(seen, found, watch.lost)
                    else:
                        for octets in found:
                            print(line(seen, octets))
            except ring.FormError as error:
                problem = f"{program()}: {error}"
            if out:
                out.close(watch.lost)
        except BrokenPipeError:
            # the reader has closed the pipe: avoid another error from the flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            problem = (f"{program()}: {given.file or 'standard output'}: {error.strerror}; "
                       "the packets written so far are complete")
        lost = sum(watch.lost.values())
        ended = "the stack has ended; " if watch.ended else ""
        print(problem or f"{ended}{count} packets captured, {lost} lost{rest.missing}", file=sys.stderr)
        return 1 if problem else INTERRUPTED if rest.missing else 0


class Rest:
    """What waits to be encoded when a capture has ended. If that is much, a signal ends it."""

    def __init__(self) -> None:
        self.missing = ""  # what the last line says of it
        self._is_much = self._interrupted = False

    def begin(self, octets: int) -> None:
        """So many octets are encoded from now on."""
        self._is_much = octets > _SOON_OCTETS
        if self._is_much:
            print(f"encoding {octets / 1e6:.0f} MB that wait; Ctrl-C leaves them out", file=sys.stderr)

    def interrupt(self) -> bool:
        """A signal has arrived; True: it is for this."""
        self._interrupted = self._is_much
        return self._is_much

    def given_up(self, octets: int) -> bool:
        """True if the last octets, so many, are to be left out."""
        if self._interrupted:
            self.missing = f"; {octets / 1e6:.0f} MB that waited are not in the file"
        return self._interrupted


def heed(rest: Rest, stop: Callable[[], object]) -> dict[signal.Signals, Any]:
    """Handle signals: `stop`, or end the rest. Returns the handlers before."""
    def interrupt(*_: object) -> None:
        if not rest.interrupt():
            stop()

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt, signal.SIGALRM: lambda *_: stop()}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _batches(watch: Watch, out: File | None, count: int | None, rest: Rest) -> Iterator[list[Seen]]:
    """What is seen: at once if it is to be counted, or somebody reads it as it is written."""
    spool = out.spool() if out and not count else None
    if spool is None:
        return iter(watch)

    def ending(octets: int) -> None:
        watch.close()
        rest.begin(octets)

    return deferring.batches(watch.merger, watch.looks(), spool, deferring.Budget(), ending, rest.given_up)


def _tests(expression: str, pipes: list[Pipe]) -> dict[Pipe, Callable[[bytes], bool]]:
    """One test for each pipe; none if there is no filter."""
    try:
        tests = {kind: capture_filter(expression, kind) for kind in {pipe.link_type for pipe in pipes} if expression}
    except FilterError as error:
        raise UsageError(f"--filter {error}") from error
    return {pipe: tests[pipe.link_type] for pipe in pipes} if tests else {}


def _wanted(batches: Iterable[list[Seen]], with_vnet: bool, tests: dict[Pipe, Callable[[bytes], bool]],
            given: argparse.Namespace, flush: Callable[[], object]) -> Iterator[tuple[Seen, Sequence[bytes]]]:
    """The packets that match, up to the count; `flush` is called after each batch."""
    left: int | None = given.count
    for batch in batches:
        for seen in batch:
            found = packets(seen, with_vnet, given.control)
            if tests:
                test = tests[seen.pipe]
                found = [octets for octets in found if test(octets)] if not is_control(seen) else []
            if left is not None:
                found = found[:left]
                left -= len(found)
            yield seen, found
            if left == 0:
                return
        flush()
