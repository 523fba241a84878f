"""`nc`: standard input to a TCP or UDP socket of the stack, and what comes from there to standard output."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from typing import TYPE_CHECKING

import usernet as socket
from cli.numbers import seconds
from cli.tools import address_of, failures, port_of, refuse, stack_of

if TYPE_CHECKING:
    from usernet.sockets.endpoint import socket as Socket  # noqa: N812

TEXT = "standard input and output over TCP, or UDP with -u: nc ADDRESS PORT, nc -l PORT"
USE = "give it like: nc [-u] ADDRESS PORT, or nc [-u] -l [ADDRESS] PORT"
PAYLOAD_OCTETS = 1472  # of what is read at a time, as it goes into one packet of Ethernet's MTU
ANSWER_OCTETS_MAX = 65535
STREAM_OCTETS = 1 << 16  # that are moved at a time


def arguments(parser: argparse.ArgumentParser) -> None:
    """What may follow."""
    parser.add_argument("-u", "--udp", action="store_true", help="UDP instead of TCP")
    parser.add_argument("-l", "--listen", action="store_true", help="wait for a connection (with -u a datagram), and "
                        "talk with whoever made it")
    parser.add_argument("-N", "--shutdown", action="store_true", help="at the end of standard input half-close the "
                        "connection")
    parser.add_argument("-p", "--source-port", metavar="PORT", help="the local port")
    parser.add_argument("-s", "--source", metavar="ADDRESS", help="the local address")
    parser.add_argument(
        "-w", "--wait", type=seconds(above=True), metavar="S", help="end after so many seconds of silence"
    )
    parser.add_argument("-b", "--broadcast", action="store_true", help="ADDRESS may be a broadcast address")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell who talks with whom")
    parser.add_argument(
        "-n", "--numeric", action="store_true", help="addresses as numbers, which is how they are always shown"
    )
    parser.add_argument("where", nargs="*", metavar="[ADDRESS] PORT")


def run(given: argparse.Namespace) -> int:
    """Carry on until the wait is over, or Ctrl-C."""
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
    with stack.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint, failures(f"nc: {_name(local)}"):
        endpoint.bind(local)
        _say(given, f"listening on {_name(endpoint.getsockname())}")
        peer = _first(endpoint, given.wait)
        if peer is None:
            return 1
        _say(given, f"a datagram from {_name(peer)}")
        _carry(endpoint, given.wait)
    return 0


def _accept(given: argparse.Namespace, stack: socket.Stack, local: tuple[str, int]) -> int:
    with stack.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, failures(f"nc: {_name(local)}"):
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
        with failures(f"nc: {_name(local)}"):
            if any(local):
                endpoint.bind(local)
        with failures(f"nc: {_name(peer)}"):
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
    """Connect to whoever sends first; None where nobody does."""
    if not select.select([endpoint], [], [], wait_s)[0]:
        return None
    data, peer = endpoint.recvfrom(ANSWER_OCTETS_MAX)
    assert peer is not None  # as only after a shutdown
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
                sources = [endpoint]  # go on listening


def _carry_stream(endpoint: Socket, given: argparse.Namespace) -> None:
    """Until the other end has said all, or nothing came for --wait seconds."""
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
            sources = [endpoint]  # go on listening
            if given.shutdown:
                endpoint.shutdown(socket.SHUT_WR)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
