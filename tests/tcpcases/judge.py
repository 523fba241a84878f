"""Runs one case against a subject, and says at which step it differs.

What is compared: flags, sequence number, length, acknowledgment number, which options are there, SACK blocks; MSS and
window scale where the case is about them; results and errors of calls, and every octet that is delivered. A segment has
to come within 50 ms of its time, counted from what the judge did last, and nothing else before it.

The window's edge is the subject's own: a case that meets FreeBSD's edge meets the same side of what the subject has
announced.
"""

from __future__ import annotations

import errno
import queue
import socket
import time
import zlib
from dataclasses import replace
from ipaddress import IPv4Address

from .cases import Call, Case, Icmp, Knob, Segment, Step
from .octets import Tcp, icmp_error, tcp
from .station import Station
from .subjects import MTU, Subject

TOLERANCE_S = 0.05
SETTLE_S = 0.01  # that a segment has to arrive, before a call that is made at the same time
CALL_S = 1.0  # the longest that a call may block
PEER_PORT = 4242
MODULUS = 1 << 32
MSS = MTU - 40


class Differs(Exception):
    """The subject did something else."""


class Trial:
    """One run of a case. `peer`: an address that no other case uses; `port`: of the subject's, likewise."""

    def __init__(self, subject: Subject, station: Station, case: Case, peer: IPv4Address, port: int) -> None:
        self._subject, self._station, self._case, self._peer = subject, station, case, peer
        self._port = port
        self._sockets: dict[int, socket.socket] = {}
        self._accepted: socket.socket | None = None
        self._arrivals = station.converse(peer)
        self._peer_isn = zlib.crc32(case.name.encode())
        self._subject_isn: int | None = None
        self._peer_syn = 0  # the relative number of the peer's SYN
        self._scales = [0, 0]  # that the peer and the subject have offered
        self._edge: int | None = None  # the right edge of what the subject has announced, relative
        self._case_ack = self._case_window = self._case_buffer = 0  # the same of FreeBSD, and its buffer
        self._read = 0  # octets received by the application
        self._slop = 0
        self._last_at = self._last_done = 0.0
        self._injected = False  # by the step before

    def run(self) -> None:
        """Differs where the subject does."""
        begun = self._last_done = time.monotonic()
        try:
            for number, step in enumerate(self._case.steps):
                try:
                    self._take(step, begun)
                except Differs as difference:
                    raise Differs(f"step {number}, {step.at:.2f} s: {difference}") from None
            self._look_for_more()
        finally:
            self._hang_up()

    def _take(self, step: Step, begun: float) -> None:
        if step.kind == "out":
            self._expect(step)
            self._injected = False
            return
        at = begun + step.at
        if step.kind == "call" and self._injected:
            at = max(at, self._last_done + SETTLE_S)
        time.sleep(max(0.0, at - time.monotonic()))
        self._injected = step.kind == "in"
        self._last_at, self._last_done = step.at, time.monotonic()
        match step.what:
            case Call():
                self._call(step.what)
            case Knob():
                self._subject.change(step.what.name, step.what.value)
            case Icmp():
                about = self._segment(Segment("S", step.what.seq, 0, None, 0, {}), from_subject=True)
                self._station.send(icmp_error(step.what.kind, step.what.code, self._peer, tcp(about)))
            case Segment():
                self._inject(step.what)

    # -- segments --------------------------------------------------------------------------------------------------

    def _inject(self, wanted: Segment) -> None:
        if "S" in wanted.flags:
            self._peer_syn = wanted.seq
            self._scales[0] = wanted.options.get("wscale", (0,))[0]
        if wanted.length and self._accepted is not None:
            self._subject.delay_acknowledgments(self._accepted)
        if self._edge is not None and abs(wanted.seq - self._case_edge) <= 1 and wanted.seq - self._case_ack > 1 << 14:
            wanted = replace(wanted, seq=wanted.seq - self._case_edge + self._edge)
        self._station.send(tcp(self._segment(wanted)))

    def _segment(self, wanted: Segment, from_subject: bool = False) -> Tcp:
        """In numbers of the wire."""
        ends = [(self._peer, PEER_PORT, self._peer_isn), (self._subject.address, self._port, self._subject_isn or 0)]
        (source, source_port, isn), (destination, port, other_isn) = reversed(ends) if from_subject else ends
        first = wanted.seq + ("S" in wanted.flags)
        payload = bytes(self.octet(first + at) for at in range(wanted.length))
        ack = 0 if wanted.ack is None else (other_isn + wanted.ack) % MODULUS
        return Tcp(source, destination, source_port, port, wanted.flags, (isn + wanted.seq) % MODULUS, ack,
                   wanted.window or 0, payload, wanted.options, wanted.urgent)

    @staticmethod
    def octet(seq: int) -> int:
        """What the stream has at that relative sequence number."""
        return seq % 251

    def _expect(self, step: Step) -> None:
        wanted = self._adapted(step)
        due = self._last_done + wanted.at - self._last_at
        try:
            at, seen = self._arrivals.get(timeout=max(0.0, due + TOLERANCE_S - time.monotonic()))
        except queue.Empty:
            raise Differs(f"no {describe(wanted.what)} within {TOLERANCE_S * 1000:.0f} ms") from None
        found = self._relative(seen)
        if not seen.intact:
            raise Differs(f"{describe(found)} has a wrong checksum or length")
        if self._comparable(found) != self._comparable(wanted.what):
            raise Differs(f"{describe(found)} came, {describe(wanted.what)} was expected")
        if at < due - TOLERANCE_S:
            raise Differs(f"{describe(found)} came {(due - at) * 1000:.0f} ms too early")
        self._case_ack = wanted.what.ack if wanted.what.ack is not None else self._case_ack
        self._case_window = wanted.what.window or 0

    @property
    def _case_edge(self) -> int:
        """The right edge of FreeBSD's window: it rounds the buffer of a socket that connects up to whole segments, and
        takes in all of it though the header can announce 65535 only."""
        return self._case_ack + (self._case_window if self._case_buffer % MSS else self._case_buffer)

    def _adapted(self, step: Step) -> Step:
        """The step as RFC 6298 has it: from the second retransmission on FreeBSD adds a slop to each time-out."""
        wanted = step.what
        if isinstance(wanted, Segment) and "S" in wanted.flags and wanted.ack is None and step.at > 2.5:
            return replace(step, at=step.at - self._case.knobs.get("net.inet.tcp.rexmit_slop", 0) / 1000)
        return step

    def _relative(self, seen: Tcp) -> Segment:
        """In the case's numbers; notes what is to be learnt of the subject."""
        if "S" in seen.flags and self._subject_isn is None:
            self._subject_isn, self._port = seen.seq, seen.source_port
            self._scales[1] = seen.options.get("wscale", (0,))[0]
        ack = (seen.ack - self._peer_isn) % MODULUS if "." in seen.flags else None
        if ack is not None and "R" not in seen.flags:
            scale = self._scales[1] if self._scales[0] and "S" not in seen.flags else 0
            self._edge = ack + (seen.window << scale)
        options = dict(seen.options)
        if "sack" in options:
            options["sack"] = tuple(tuple((edge - self._peer_isn) % MODULUS for edge in block)
                                    for block in options["sack"])
        return Segment(seen.flags, (seen.seq - (self._subject_isn or 0)) % MODULUS, len(seen.payload), ack, seen.window,
                       options, seen.urgent)

    def _comparable(self, segment: Segment) -> tuple:
        about = {"sack", *(("mss",) if "-mss-" in self._case.name else ()),
                 *(("wscale",) if "-ws-" in self._case.name and "without" not in self._case.name else ())}
        options = {kind: values if kind in about else () for kind, values in segment.options.items()}
        if "mss" in about and options.get("mss", (MTU,)) > (MSS,):  # of an MTU that the medium has not
            longest = dict(self._subject.setting(self._case))["mtu"] - 40
            options["mss"] = (min(options["mss"][0], longest),)
        return (frozenset(segment.flags), segment.seq % MODULUS, segment.length,
                None if segment.ack is None else segment.ack % MODULUS, options)

    def _look_for_more(self) -> None:
        """Nothing may have come that no step has asked for, but at the end: what the last steps cause is left open."""
        while not self._arrivals.empty():
            at, seen = self._arrivals.get()
            if at < self._last_done - TOLERANCE_S:
                raise Differs(f"{describe(self._relative(seen))} came, which no step expects")

    def _hang_up(self) -> None:
        """Leave nothing that would retransmit."""
        for each in self._sockets.values():
            try:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                each.close()
            except OSError:
                pass

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        try:
            result, error = getattr(self, f"_{call.name}")(call), None
        except BlockingIOError as refused:  # EINPROGRESS, too
            result, error = -1, errno.errorcode[refused.errno]
        except TimeoutError:
            raise Differs(f"{call.name} blocks") from None
        except OSError as refused:
            result, error = -1, errno.errorcode.get(refused.errno or 0, str(refused))
        if (result, error) != (call.result, call.errno):
            raise Differs(f"{call.name} gives {result} {error or ''}, expected {call.result} {call.errno or ''}")

    def _of(self, call: Call) -> socket.socket:
        return self._sockets[int(call.arguments[0])]

    def _hold(self, made: socket.socket) -> int:
        number = 3
        while number in self._sockets:
            number += 1
        self._sockets[number] = made
        return number

    def _socket(self, call: Call) -> int:
        made = self._subject.socket(self._case)
        made.settimeout(CALL_S)
        return self._hold(made)

    def _bind(self, call: Call) -> int:
        self._of(call).bind((str(self._subject.address), self._port))
        return 0

    def _listen(self, call: Call) -> int:
        self._of(call).listen(int(call.arguments[1]))
        return 0

    def _accept(self, call: Call) -> int:
        made, address = self._of(call).accept()
        if address != (str(self._peer), PEER_PORT):
            raise Differs(f"accept says {address}")
        made.settimeout(CALL_S)
        self._accepted = made
        return self._hold(made)

    def _connect(self, call: Call) -> int:
        sock = self._of(call)
        try:
            sock.connect((str(self._peer), PEER_PORT))
        finally:
            self._port = sock.getsockname()[1]
        return 0

    def _close(self, call: Call) -> int:
        self._sockets.pop(int(call.arguments[0])).close()
        return 0

    def _shutdown(self, call: Call) -> int:
        self._of(call).shutdown(getattr(socket, call.arguments[1]))
        return 0

    def _fcntl(self, call: Call) -> int:
        if call.arguments[1] == "F_GETFL":  # O_RDWR, and O_NONBLOCK where it does not block
            return 2 if self._of(call).getblocking() else 2 | 0o4000
        self._of(call).setblocking("O_NONBLOCK" not in call.arguments[2])
        return 0

    def _recv(self, call: Call) -> int:
        flags = getattr(socket, call.arguments[3], 0)
        sock, most = self._of(call), int(call.arguments[2])
        while len(sock.recv(most, socket.MSG_PEEK)) < call.result and not self._overdue():
            pass
        octets = sock.recv(most, flags)
        first = self._peer_syn + 1 + self._read
        if octets != bytes(self.octet(first + at) for at in range(len(octets))):
            raise Differs(f"recv gives {len(octets)} octets, and not those that were sent")
        if flags != socket.MSG_PEEK:
            self._read += len(octets)
        return len(octets)

    def _overdue(self) -> bool:
        """Waits a little for what is still on its way to the socket; True: long enough."""
        time.sleep(0.002)
        return time.monotonic() > self._last_done + TOLERANCE_S

    def _setsockopt(self, call: Call) -> int:
        level, name, value = call.arguments[1:4]
        self._of(call).setsockopt(getattr(socket, level), getattr(socket, name), int(value.strip("[]")))
        return 0

    def _getsockopt(self, call: Call) -> int:
        level, name, wanted = call.arguments[1:4]
        wanted = wanted.strip("[]")
        sock, option = self._of(call), (getattr(socket, level), getattr(socket, name))
        value = sock.getsockopt(*option)
        while name == "SO_ERROR" and value == 0 and wanted != "0" and not self._overdue():
            value = sock.getsockopt(*option)
        if name == "SO_RCVBUF":
            self._case_buffer = int(wanted)  # FreeBSD's; Linux's is its own
            return 0
        expected = int(wanted) if wanted.isdecimal() else getattr(errno, wanted)
        if value != expected:
            shown = errno.errorcode.get(value, value) if name == "SO_ERROR" else value
            raise Differs(f"{name} is {shown}, expected {wanted}")
        return 0


def describe(segment: Segment) -> str:
    """As tcpdump would, in relative numbers."""
    ack = "" if segment.ack is None else f" ack {segment.ack}"
    options = " ".join(kind + "".join(f" {first}:{last}" for first, last in values) if kind == "sack" else kind
                       for kind, values in segment.options.items())
    return f"[{segment.flags}] {segment.seq}+{segment.length}{ack} <{options}>"
