"""`launcher.py traceroute`: the routers on the way, by UDP datagrams that may live longer and longer.

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
from tools import refuse, stack_of

if TYPE_CHECKING:
    from usernet.endpoint import socket as Socket  # noqa: N812

TEXT = "the routers on the way to ADDRESS"
IP_RECVERR = 11  # linux/in.h
PORT = 33434  # traceroute(8): a range where nobody listens, one port a probe
PAYLOAD = bytes(range(64, 96))
_ERROR = Struct("=IBBBBIIHH4s8x")  # struct sock_extended_err, struct sockaddr_in
TIME_EXCEEDED, UNREACHABLE = 11, 3  # RFC 792: types
PORT_UNREACHABLE = 3
_MARKS = {0: "!N", 1: "!H", 2: "!P", 4: "!F", 5: "!S", 9: "!X", 10: "!X", 13: "!X"}  # traceroute(8), by ICMP code


class Answer(NamedTuple):
    """What became of one probe."""

    router: str
    round_trip_s: float
    mark: str = ""
    final: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("-m", "--max-hops", type=int, default=30, metavar="N", help="go no further (default 30)")
    parser.add_argument("-q", "--probes", type=int, default=3, metavar="N", help="probes for each hop (default 3)")
    parser.add_argument("-w", "--wait", type=float, default=1.0, metavar="S", help="for each answer (default 1)")


def run(given: argparse.Namespace) -> int:
    """Print a line a hop, as traceroute(8); 0 where the destination was reached."""
    if not (1 <= given.max_hops <= 255 and given.probes >= 1 and given.wait > 0):
        refuse("traceroute: 1 to 255 hops, at least one probe, and some time to wait")
    stack = stack_of(given)
    with stack.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint, contextlib.suppress(KeyboardInterrupt):
        endpoint.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        print(f"traceroute to {given.address} from {stack.address}, {given.max_hops} hops max", flush=True)
        port = PORT
        for hop in range(1, given.max_hops + 1):
            endpoint.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop)
            answers = [probe(endpoint, (given.address, port + number), given.wait) for number in range(given.probes)]
            port += given.probes
            print(line(hop, [answer and answer._replace(router=answer.router or stack.address) for answer in answers]),
                  flush=True)
            if any(answer is not None and answer.final for answer in answers):
                return 0
    return 1


def probe(endpoint: Socket, target: tuple[str, int], wait_s: float) -> Answer | None:
    """Send one and wait for what becomes of it; None: nothing was heard."""
    endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of an answer that came too late
    started = time.monotonic()
    endpoint.sendto(PAYLOAD, target)
    while (left := started + wait_s - time.monotonic()) > 0:
        endpoint.settimeout(left)
        try:
            _, controls, _, about = endpoint.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except TimeoutError:
            return None
        except BlockingIOError:  # no error, so somebody does listen there
            _, sender = endpoint.recvfrom(0)
            if sender == target:
                return Answer(sender[0], time.monotonic() - started, final=True)
            continue
        if about and about[1] == target[1]:
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
