"""`launcher.py traceroute`: find the routers on a path by datagrams (or echo requests) with increasing TTL.

The errors come from the socket's error queue (ip(7), IP_RECVERR), so no privileges are needed.
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
from cli.tools import address_of, failures, families, refuse, stack_of

if TYPE_CHECKING:
    from usernet.sockets.endpoint import socket as Socket  # noqa: N812

TEXT = "show the routers on the path to ADDRESS"
IP_RECVERR = 11  # linux/in.h
PORT = 33434  # traceroute(8): the first of a range of ports that are usually closed, one for each probe
PAYLOAD = bytes(range(64, 96))
_ERROR = Struct("=IBBBBIIHH4s8x")  # struct sock_extended_err, struct sockaddr_in
_ECHO = Struct(">BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
ECHO_REPLY, ECHO_REQUEST, TIME_EXCEEDED, UNREACHABLE = 0, 8, 11, 3  # RFC 792: types
PORT_UNREACHABLE = 3
_MARKS = {0: "!N", 1: "!H", 2: "!P", 4: "!F", 5: "!S", 9: "!X", 10: "!X", 13: "!X"}  # traceroute(8), by ICMP code


class Answer(NamedTuple):
    """The result of one probe."""

    router: str
    round_trip_s: float
    mark: str = ""
    final: bool = False


class Datagrams:
    """Probes by UDP; the destination port contains the number of the probe."""

    protocol = socket.IPPROTO_UDP

    def __init__(self, first_port: int) -> None:
        self.first_port = first_port

    def send(self, endpoint: Socket, host: str, number: int) -> None:
        """Send the probe with this number."""
        endpoint.sendto(PAYLOAD, (host, self.first_port + number))

    def is_about(self, quoted: bytes, target: tuple[str, int], number: int) -> bool:
        """True if an error is about the probe."""
        return target[1] == self.first_port + number

    def is_answered(self, data: bytes, sender: tuple[str, int], host: str, number: int) -> bool:
        """True if a datagram is an answer to the probe: the port is open."""
        return sender == (host, self.first_port + number)


class Echoes:
    """Probes by echo requests; the sequence number is the number of the probe."""

    protocol = socket.IPPROTO_ICMP

    def send(self, endpoint: Socket, host: str, number: int) -> None:
        """Send the probe with this number. The stack fills in identifier and checksum, as Linux does."""
        endpoint.sendto(_ECHO.pack(ECHO_REQUEST, 0, 0, 0, number) + PAYLOAD, (host, 0))

    def is_about(self, quoted: bytes, target: tuple[str, int], number: int) -> bool:
        """True if an error is about the probe."""
        return _sequence(quoted, ECHO_REQUEST) == number

    def is_answered(self, data: bytes, sender: tuple[str, int], host: str, number: int) -> bool:
        """True if a message is the reply to the probe."""
        return _sequence(data, ECHO_REPLY) == number


def _sequence(message: bytes, kind: int) -> int | None:
    return _ECHO.unpack_from(message)[4] if len(message) >= _ECHO.size and message[0] == kind else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("address", metavar="ADDRESS", help="or name")
    parser.add_argument(
        "-m", "--max-hops", type=whole(1, 255), default=30, metavar="N", help="maximum TTL (default 30)"
    )
    parser.add_argument(
        "-f", "--first", type=whole(1, 255), default=1, metavar="N", help="first TTL (default 1)"
    )
    parser.add_argument(
        "-q", "--probes", type=whole(1, 100), default=3, metavar="N", help="probes for each hop (default 3)"
    )
    parser.add_argument(
        "-w", "--wait", type=seconds(above=True), default=1.0, metavar="S", help="seconds to wait for each answer "
        "(default 1)"
    )
    parser.add_argument(
        "-p", "--port", type=whole(1, 65535), default=PORT, metavar="N", help=f"of the first probe ({PORT})"
    )
    parser.add_argument("-I", "--icmp", action="store_true", help="use echo requests instead of UDP")
    parser.add_argument("-n", "--numeric", action="store_true", help="ignored: addresses are always shown as numbers")
    families(parser)


def run(given: argparse.Namespace) -> int:
    """Print one line per hop, as traceroute(8); returns 0 if the destination was reached."""
    if given.first > given.max_hops:
        refuse(f"traceroute: -f {given.first}: must not be more than the {given.max_hops} hops of -m")
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
    """Send one probe and wait for its result; None: no answer."""
    # clear the error of an earlier probe whose answer came too late
    endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    started = time.monotonic()
    way.send(endpoint, host, number)
    while (left := started + wait_s - time.monotonic()) > 0:
        endpoint.settimeout(left)
        try:
            quoted, controls, _, about = endpoint.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except TimeoutError:
            return None
        except BlockingIOError:  # no error: the destination was reached
            data, sender = endpoint.recvfrom(512)
            if sender and way.is_answered(data, sender, host, number):
                return Answer(sender[0], time.monotonic() - started, final=True)
            continue
        if about and way.is_about(quoted, about, number):
            return answer_of(controls[0][2], time.monotonic() - started)
    return None


def answer_of(error: bytes, round_trip_s: float) -> Answer:
    """The answer in the ancillary data of an error."""
    number, _, kind, code, _, _, _, _, _, router = _ERROR.unpack(error)
    host = socket.inet_ntoa(router) if any(router) else ""  # 0.0.0.0: the error comes from our own stack
    if kind == TIME_EXCEEDED:
        return Answer(host, round_trip_s)
    if kind == UNREACHABLE and code == PORT_UNREACHABLE:
        return Answer(host, round_trip_s, final=True)
    return Answer(host, round_trip_s, _MARKS.get(code, f"!<{errno.errorcode.get(number, number)}>"), final=True)


def line(hop: int, answers: list[Answer | None]) -> str:
    """One line for a hop; each router is named once, before its answers."""
    text, last = f"{hop:>2} ", ""
    for answer in answers:
        if answer is None:
            text += " *"
            continue
        text += (f" {answer.router}" if answer.router != last else "") + f"  {answer.round_trip_s * 1000:.3f} ms"
        text += f" {answer.mark}" if answer.mark else ""
        last = answer.router
    return text
