"""`nc`: copies standard input to a TCP or UDP socket of the stack, and received data to standard output."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING

import usernet as socket
from cli.numbers import seconds
from cli.tools import BROADCASTS, address_of, failures, families, port_of, refuse, stack_of

if TYPE_CHECKING:
    from usernet.sockets.endpoint import socket as Socket  # noqa: N812

TEXT = "connect standard input and output to TCP, or to UDP with -u: nc ADDRESS PORT, nc -l PORT"
USE = "usage: nc [-u] ADDRESS PORT, or nc [-u] -l [ADDRESS] PORT"
PAYLOAD_OCTETS = 1472  # read from standard input at a time: one packet of Ethernet's MTU
ANSWER_OCTETS_MAX = 65535
STREAM_OCTETS = 1 << 16  # moved at a time


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("-u", "--udp", action="store_true", help="UDP instead of TCP")
    parser.add_argument("-l", "--listen", action="store_true", help="wait for a connection (with -u for a datagram) "
                        "and use its sender as peer")
    parser.add_argument("-N", "--shutdown", action="store_true", help="half-close the connection at the end of "
                        "standard "
                        "input")
    parser.add_argument("-p", "--source-port", metavar="PORT", help="the local port")
    parser.add_argument("-s", "--source", metavar="ADDRESS", help="the local address")
    parser.add_argument(
        "-w", "--wait", type=seconds(above=True), metavar="S", help="exit after S seconds without traffic"
    )
    parser.add_argument("-b", "--broadcast", action="store_true", help="ADDRESS may be a broadcast address")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the addresses of both ends")
    parser.add_argument(
        "-n", "--numeric", action="store_true", help="ignored: addresses are always shown as numbers"
    )
    families(parser)
    parser.add_argument("where", nargs="*", metavar="[ADDRESS] PORT")


def run(given: argparse.Namespace) -> int:
    """Copy data until the wait is over or Ctrl-C is pressed."""
    with contextlib.suppress(KeyboardInterrupt):
        return _listen(given) if given.listen else _connect(given)
    return 0


def _listen(given: argparse.Namespace) -> int:
    *host, port = [*given.where, given.source_port] if given.source_port else given.where or [None]
    if port is None or len(host) > 1 or (host and given.source):
        refuse(f"nc: {USE}")
    stack = stack_of(given)
    wanted = (host or [given.source])[0]
    local = address_of("nc", wanted, stack) if wanted else "", port_of("nc", port)
    if not given.udp:
        return _accept(given, stack, local)
    with stack.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint, failures(f"nc: {_name(local)}", BROADCASTS):
        endpoint.bind(local)
        _say(given, f"listening on {_name(endpoint.getsockname())}")
        peer = _first(endpoint, given.wait)
        if peer is None:
            return 1
        _say(given, f"a datagram from {_name(peer)}")
        _carry(endpoint, given.wait)
    return 0


def _accept(given: argparse.Namespace, stack: socket.Stack, local: tuple[str, int]) -> int:
    with stack.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, failures(f"nc: {_name(local)}", BROADCASTS):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(local)
        listener.listen(1)
        _say(given, f"listening on {_name(listener.getsockname())}")
        if given.wait is not None and not select.select([listener], [], [], given.wait)[0]:
            return 1
        connection, peer = listener.accept()
        with connection:
            _say(given, f"a connection from {_name(peer)}")
            _carry_stream(connection, given)
    return 0


def _connect(given: argparse.Namespace) -> int:
    if len(given.where) != 2:
        refuse(f"nc: {USE}")
    stack = stack_of(given)
    peer = address_of("nc", given.where[0], stack), port_of("nc", given.where[1])
    local = address_of("nc", given.source, stack) if given.source else "", port_of("nc", given.source_port or "0")
    with stack.socket(socket.AF_INET, socket.SOCK_DGRAM if given.udp else socket.SOCK_STREAM) as endpoint:
        with failures(f"nc: {_name(local)}", BROADCASTS):
            if any(local):
                endpoint.bind(local)
        with failures(f"nc: {_name(peer)}", BROADCASTS):
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, given.broadcast)
            endpoint.connect(peer)
            _say(given, f"from {_name(endpoint.getsockname())} to {_name(peer)}")
            if given.udp:
                _carry(endpoint, given.wait)
            else:
                _carry_stream(endpoint, given)
    return 0


def _name(address: tuple[str, int]) -> str:
    return f"{address[0] or '*'} port {address[1]}"


def _say(given: argparse.Namespace, text: str) -> None:
    if given.verbose:
        print(f"nc: {text}", file=sys.stderr)


def _first(endpoint: Socket, wait_s: float | None) -> tuple[str, int] | None:
    """Connect to the sender of the first datagram; None if none arrives."""
    if not select.select([endpoint], [], [], wait_s)[0]:
        return None
    data, peer = endpoint.recvfrom(ANSWER_OCTETS_MAX)
    assert peer is not None  # recvfrom returns no sender only after a shutdown
    endpoint.connect(peer)
    _write(data)
    return peer


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
                sources = [endpoint]  # standard input has ended: only receive


def _carry_stream(endpoint: Socket, given: argparse.Namespace) -> None:
    """Copy data until the peer has closed its direction, or no data arrived for --wait seconds."""
    sources: list = [endpoint, sys.stdin.fileno()]
    while ready := select.select(sources, [], [], given.wait)[0]:
        if endpoint in ready:
            data = endpoint.recv(STREAM_OCTETS)
            if not data:
                return
            _write(data)
        if sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), STREAM_OCTETS)
            if data:
                endpoint.sendall(data)
                continue
            sources = [endpoint]  # standard input has ended: only receive
            if given.shutdown:
                endpoint.shutdown(socket.SHUT_WR)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
