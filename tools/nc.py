"""`launcher.py nc`: standard input to a UDP socket of the stack, and what comes from there to standard output."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING

import usernet as socket
from tools import refuse, stack_of

if TYPE_CHECKING:
    from usernet.endpoint import socket as Socket  # noqa: N812

TEXT = "datagrams from and to standard input and output: nc -u ADDRESS PORT, nc -u -l PORT"
PAYLOAD_OCTETS = 1472  # of what is read at a time, as it goes into one packet of Ethernet's MTU
ANSWER_OCTETS_MAX = 65535


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("-u", "--udp", action="store_true", help="UDP (there is no TCP yet)")
    parser.add_argument("-l", "--listen", action="store_true", help="wait for a datagram, and talk with its sender")
    parser.add_argument("-p", "--source-port", type=int, default=0, metavar="N", help="the local port")
    parser.add_argument("-w", "--wait", type=float, metavar="S", help="end after so many seconds of silence")
    parser.add_argument("where", nargs="+", metavar="[ADDRESS] PORT")


def run(given: argparse.Namespace) -> int:
    """Carry on until the wait is over, or Ctrl-C."""
    if not given.udp:
        refuse("nc: there is no TCP yet; give -u for UDP")
    *host, port = given.where
    if len(host) > 1 or not (host or given.listen) or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        refuse("nc: expected nc -u ADDRESS PORT or nc -u -l [ADDRESS] PORT")
    address = (host[0] if host else "", int(port))
    with stack_of(given).socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint, contextlib.suppress(KeyboardInterrupt):
        if given.listen:
            endpoint.bind(address)
            if not _first(endpoint, given.wait):
                return 1
        else:
            if given.source_port:
                endpoint.bind(("", given.source_port))
            endpoint.connect(address)
        _carry(endpoint, given.wait)
    return 0


def _first(endpoint: Socket, wait_s: float | None) -> bool:
    """Connect to whoever sends first; False where nobody does."""
    if not select.select([endpoint], [], [], wait_s)[0]:
        return False
    data, peer = endpoint.recvfrom(ANSWER_OCTETS_MAX)
    assert peer is not None  # as only after a shutdown
    endpoint.connect(peer)
    _write(data)
    return True


def _carry(endpoint: Socket, wait_s: float | None) -> None:
    sources: list = [endpoint, sys.stdin.fileno()]
    while ready := select.select(sources, [], [], wait_s)[0]:
        if endpoint in ready:
            _write(endpoint.recv(ANSWER_OCTETS_MAX))
        if sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), PAYLOAD_OCTETS)
            if data:
                endpoint.send(data)
            else:
                sources = [endpoint]  # go on listening


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
