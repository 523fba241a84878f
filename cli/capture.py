"""`capture`: the packets on any pipe, as one line each or as a pcapng file for Wireshark."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from bus import messages, views
from bus.runtime import ring
from cli.capture_filter import capture_filter
from cli.main import program
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


class Packet(NamedTuple):
    """One packet, or one control record, at one pipe."""

    seen: Seen
    octets: bytes
    is_control: bool


def packets(seen: Seen, with_vnet: bool, control: bool) -> Iterator[Packet]:
    """The packets in some records, and with `control` the control records."""
    for record in seen.records:
        if views.shows_packets(seen.kind):
            for octets in views.packets_of(seen.kind, record, with_vnet, seen.pipe.protocol):
                yield Packet(seen, octets, False)
        elif control:
            yield Packet(seen, record, True)


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


def line(packet: Packet) -> str:
    """One line of text for a packet."""
    seen, octets = packet.seen, packet.octets
    when = time.strftime("%H:%M:%S", time.localtime(seen.when_ns // 10**9)) + f".{seen.when_ns // 1000 % 10**6:06}"
    if packet.is_control:
        text = said(seen.kind, octets)
    else:
        ethernet = seen.pipe.link_type == pcapng.LINKTYPE_ETHERNET
        text = summary.ethernet(octets) if ethernet else summary.ipv4(octets)
    if seen.kind in (messages.ICMP_ERROR, messages.REPORT_ERROR):
        text = f"{messages.KIND_NAMES[seen.kind]} about {text}"
    dropped = f" -- dropped by {seen.layer}: {seen.counter}" if seen.direction == ring.DROPPED else ""
    return printable(f"{when} {seen.pipe.name:<12} {text}{dropped}")


def comment(packet: Packet) -> str:
    """The comment of a packet in a file."""
    seen = packet.seen
    text = f"{seen.layer} {seen.incarnation}: {messages.KIND_NAMES.get(seen.kind, seen.kind)}"
    if seen.direction == ring.DROPPED:
        return f"dropped by {seen.layer} {seen.incarnation}: {seen.counter}: {sentence(seen.layer, seen.counter)}"
    return f"{text} {said(seen.kind, packet.octets)}" if packet.is_control else text


class File:
    """A pcapng file with one interface per pipe; with rotation, a sequence of such files."""

    def __init__(self, path: str, pipes: list[Pipe], expression: str, rotate: str | None, keep: int | None) -> None:
        self._path = path
        self._pipes = pipes
        self._expression = expression
        self._size, self._seconds = _rotation(rotate)
        self._keep = keep
        self._number = 0
        self._files: list[Path] = []
        self._numbers: dict[tuple[Pipe, bool], int] = {}
        self._counts: Counter[int] = Counter()
        self._told: Counter[str] = Counter()  # losses that the file already contains
        self._out: BinaryIO | None = None
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
        self._out = sys.stdout.buffer if path == "-" else open(path, "wb", buffering=0)  # noqa: SIM115
        self._whole = 0  # octets of complete blocks
        self._opened_ns = time.time_ns()
        self._numbers, self._counts = {}, Counter()
        self._write(pcapng.section("usernet", system=platform.platform(), hardware=platform.machine()))
        for pipe in self._pipes:
            self._interface(pipe, False)
        self.flush()

    def _interface(self, pipe: Pipe, control: bool) -> int:
        number = self._numbers.get((pipe, control))
        if number is None:
            number = self._numbers[pipe, control] = len(self._numbers)
            name, kind = (f"{pipe.name} control", pcapng.LINKTYPE_USER0) if control else (pipe.name, pipe.link_type)
            about = f"what {pipe.producer} sends to {pipe.consumer}"
            self._write(pcapng.interface(name, kind, about, self._expression))
        return number

    def _write(self, octets: bytes) -> None:
        """Write complete blocks or nothing, so that a file on a full disk ends with the last complete block."""
        assert self._out is not None
        try:
            done = 0
            while done < len(octets):
                done += self._out.write(octets[done:])
        except OSError:
            if self._path != "-":
                os.ftruncate(self._out.fileno(), self._whole)
            raise
        self._whole += len(octets)

    def add(self, packet: Packet, lost: dict[str, int]) -> None:
        """Write one packet."""
        if (self._size and self._whole >= self._size) or (
                self._seconds and time.time_ns() - self._opened_ns >= self._seconds * 10**9):
            self.close(lost)
            self._open()
        seen = packet.seen
        number = self._interface(seen.pipe, packet.is_control)
        self._counts[number] += 1
        missing = lost[seen.layer] - self._told[seen.layer]
        self._told[seen.layer] += missing
        direction = {(DEVICE, True): pcapng.INBOUND, (DEVICE, False): pcapng.OUTBOUND}.get(
            (DEVICE if DEVICE in seen.pipe else "", seen.pipe.producer == DEVICE), 0)
        self._write(pcapng.packet(number, seen.when_ns, packet.octets, comment=comment(packet), direction=direction,
                                  dropped=missing))

    def flush(self) -> None:
        """Write the buffer, so that the reader of a pipe sees the packets."""
        if self._out is not None:
            self._out.flush()

    def close(self, lost: dict[str, int]) -> None:
        """Finish the file with statistics of each interface; the losses of a layer are counted at its first
        interface."""
        told: set[str] = set()
        for (pipe, _), number in self._numbers.items():
            missing = 0 if pipe.layer in told else lost.get(pipe.layer, 0)
            told.add(pipe.layer)
            self._write(pcapng.statistics(number, time.time_ns(), start_ns=self._opened_ns,
                                          received=self._counts[number], lost=missing))
        self.flush()
        if self._path != "-" and self._out is not None:
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
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: watch.stop())
        out = File(given.file, pipes, given.filter, given.rotate, given.files) if given.file else None
        print(f"capturing on {len(pipes)} pipe{'s' if len(pipes) > 1 else ''}; Ctrl-C ends it", file=sys.stderr)
        count, problem = 0, ""
        try:
            for packet in _wanted(watch, tests, given, out):
                count += 1
                if out:
                    out.add(packet, watch.lost)
                else:
                    print(line(packet))
        except BrokenPipeError:
            # the reader has closed the pipe: avoid another error from the flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            problem = (f"{program()}: {given.file or 'standard output'}: {error.strerror}; "
                       "the packets written so far are complete")
        if out and not problem:
            out.close(watch.lost)
        lost = sum(watch.lost.values())
        ended = "the stack has ended; " if watch.ended else ""
        print(problem or f"{ended}{count} packets captured, {lost} lost", file=sys.stderr)
        return 1 if problem else 0


def _tests(expression: str, pipes: list[Pipe]) -> dict[int, Callable[[bytes], bool]]:
    """One test for each link type; None if there is no filter."""
    try:
        return {kind: capture_filter(expression, kind) for kind in {pipe.link_type for pipe in pipes} if expression}
    except FilterError as error:
        raise UsageError(f"--filter {error}") from error


def _wanted(watch: Watch, tests: dict[int, Callable[[bytes], bool]], given: argparse.Namespace,
            out: File | None) -> Iterator[Packet]:
    """The packets that match, up to the count."""
    until = time.monotonic() + given.seconds if given.seconds else float("inf")
    left = given.count or -1
    for batch in watch:
        for seen in batch:
            test = tests.get(seen.pipe.link_type)
            for packet in packets(seen, watch.with_vnet, given.control):
                if test is None or (not packet.is_control and test(packet.octets)):
                    yield packet
                    left -= 1
                    if left == 0:
                        return
        if out:
            out.flush()
        else:
            sys.stdout.flush()
        if time.monotonic() >= until:
            return


