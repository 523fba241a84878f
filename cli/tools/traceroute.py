"""`launcher.py traceroute`: the routers on the way, by datagrams (or echo requests) that may live longer and longer.

The errors come out of the socket's error queue (ip(7), IP_RECVERR), so it needs no privileges.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import time
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import usernet as socket
from cli.numbers import seconds, whole
from cli.tools import address_of, failures, refuse, stack_of

if TYPE_CHECKING:
    from usernet.sockets.endpoint import socket as Socket  # noqa: N812

TEXT = "the routers on the way to ADDRESS"
IP_RECVERR = 11  # linux/in.h
PORT = 33434  # traceroute(8): a range where nobody listens, one port a probe
PAYLOAD = bytes(range(64, 96))
_ERROR = Struct("=IBBBBIIHH4s8x")  # struct sock_extended_err, struct sockaddr_in
_ECHO = Struct(">BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
ECHO_REPLY, ECHO_REQUEST, TIME_EXCEEDED, UNREACHABLE = 0, 8, 11, 3  # RFC 792: types
PORT_UNREACHABLE = 3
_MARKS = {0: "!N", 1: "!H", 2: "!P", 4: "!F", 5: "!S", 9: "!X", 10: "!X", 13: "!X"}  # traceroute(8), by ICMP code


class Answer(NamedTuple):
    """What became of one probe."""

    router: str
    round_trip_s: float
    mark: str = ""
    final: bool = False


class Datagrams:
    """Probes by UDP; the number of each is in its port."""

    protocol = socket.IPPROTO_UDP

    def __init__(self, first_port: int) -> None:
        self.first_port = first_port

    def send(self, endpoint: Socket, host: str, number: int) -> None:
        """The probe of this number."""
        endpoint.sendto(PAYLOAD, (host, self.first_port + number))

    def is_about(self, quoted: bytes, target: tuple[str, int], number: int) -> bool:
        """Whether an error is about it."""
        return target[1] == self.first_port + number

    def is_answered(self, data: bytes, sender: tuple[str, int], host: str, number: int) -> bool:
        """Whether this is an answer to it: somebody does listen there."""
        return sender == (host, self.first_port + number)


class Echoes:
    """Probes by echo requests; the number of each is its sequence number."""

    protocol = socket.IPPROTO_ICMP

    def send(self, endpoint: Socket, host: str, number: int) -> None:
        """The probe of this number. Identifier and checksum are filled in below, as by Linux."""
        endpoint.sendto(_ECHO.pack(ECHO_REQUEST, 0, 0, 0, number) + PAYLOAD, (host, 0))

    def is_about(self, quoted: bytes, target: tuple[str, int], number: int) -> bool:
        """Whether an error is about it."""
        return _sequence(quoted, ECHO_REQUEST) == number

    def is_answered(self, data: bytes, sender: tuple[str, int], host: str, number: int) -> bool:
        """Whether this is its reply."""
        return _sequence(data, ECHO_REPLY) == number


def _sequence(message: bytes, kind: int) -> int | None:
    return _ECHO.unpack_from(message)[4] if len(message) >= _ECHO.size and message[0] == kind else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("address", metavar="ADDRESS", help="or name")
    parser.add_argument(
        "-m", "--max-hops", type=whole(1, 255), default=30, metavar="N", help="go no further (default 30)"
    )
    parser.add_argument(
        "-f", "--first", type=whole(1, 255), default=1, metavar="N", help="begin so far away (default 1)"
    )
    parser.add_argument(
        "-q", "--probes", type=whole(1, 100), default=3, metavar="N", help="probes for each hop (default 3)"
    )
    parser.add_argument(
        "-w", "--wait", type=seconds(above=True), default=1.0, metavar="S", help="for each answer (default 1)"
    )
    parser.add_argument(
        "-p", "--port", type=whole(1, 65535), default=PORT, metavar="N", help=f"of the first probe ({PORT})"
    )
    parser.add_argument("-I", "--icmp", action="store_true", help="by echo requests instead of UDP")
    parser.add_argument("-n", "--numeric", action="store_true", help="addresses as numbers, as they are always shown")


def run(given: argparse.Namespace) -> int:
    """Print a line a hop, as traceroute(8); 0 where the destination was reached."""
    if given.first > given.max_hops:
        refuse(f"traceroute: -f {given.first}: not beyond the {given.max_hops} hops of -m")
    probes = given.max_hops * given.probes
    if not 1 <= given.port <= 65536 - probes:
        refuse(f"traceroute: -p {given.port}: a port for each of {probes} probes, 1 to 65535")
    way = Echoes() if given.icmp else Datagrams(given.port)
    stack = stack_of(given)
    host = address_of("traceroute", given.address, stack)
    named = host if host == given.address else f"{given.address} ({host})"
    with (stack.socket(socket.AF_INET, socket.SOCK_DGRAM, way.protocol) as endpoint,
          failures(f"traceroute: {given.address}"), contextlib.suppress(KeyboardInterrupt)):
        endpoint.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        print(f"traceroute to {named} from {stack.address}, {given.max_hops} hops max", flush=True)
        for hop in range(given.first, given.max_hops + 1):
            endpoint.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop)
            numbers = range((hop - 1) * given.probes, hop * given.probes)
            answers = [probe(endpoint, way, host, number, given.wait) for number in numbers]
            print(line(hop, [answer and answer._replace(router=answer.router or stack.address) for answer in answers]),
                  flush=True)
            if any(answer is not None and answer.final for answer in answers):
                return 0
    return 1


def probe(endpoint: Socket, way: Datagrams | Echoes, host: str, number: int, wait_s: float) -> Answer | None:
    """Send one and wait for what becomes of it; None: nothing was heard."""
    endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of an answer that came too late
    started = time.monotonic()
    way.send(endpoint, host, number)
    while (left := started + wait_s - time.monotonic()) > 0:
        endpoint.settimeout(left)
        try:
            quoted, controls, _, about = endpoint.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except TimeoutError:
            return None
        except BlockingIOError:  # no error, so it was reached
            data, sender = endpoint.recvfrom(512)
            if sender and way.is_answered(data, sender, host, number):
                return Answer(sender[0], time.monotonic() - started, final=True)
            continue
        if about and way.is_about(quoted, about, number):
            return answer_of(controls[0][2], time.monotonic() - started)
    return None


def answer_of(error: bytes, round_trip_s: float) -> Answer:
    """From the ancillary data of an error."""
    number, _, kind, code, _, _, _, _, _, router = _ERROR.unpack(error)
    host = socket.inet_ntoa(router) if any(router) else ""  # the error of our own stack
    if kind == TIME_EXCEEDED:
        return Answer(host, round_trip_s)
    if kind == UNREACHABLE and code == PORT_UNREACHABLE:
        return Answer(host, round_trip_s, final=True)
    return Answer(host, round_trip_s, _MARKS.get(code, f"!<{errno.errorcode.get(number, number)}>"), final=True)


def line(hop: int, answers: list[Answer | None]) -> str:
    """One hop, each router named once for the answers that follow."""
    text, last = f"{hop:>2} ", ""
    for answer in answers:
        if answer is None:
            text += " *"
            continue
        text += (f" {answer.router}" if answer.router != last else "") + f"  {answer.round_trip_s * 1000:.3f} ms"
        text += f" {answer.mark}" if answer.mark else ""
        last = answer.router
    return text
