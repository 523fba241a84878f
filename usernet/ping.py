"""Echo requests from a stack, by a ping socket (icmp(7)), without privileges."""

from __future__ import annotations

import socket as _std
import time
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from usernet.pipe.messages import DATAGRAM_HEADER
from usernet.sockets.endpoint import socket
from usernet.stack import Stack

_ECHO = Struct(">BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
ECHO_REQUEST, ECHO_REPLY = 8, 0
SIZE_DEFAULT = 56  # octets after the header, as ping(8)


class Result(NamedTuple):
    """The result of one echo request. `round_trip_s` is None if no reply arrived; then `error` is the error, if any."""

    sequence: int
    octets: int = 0  # of the reply, including its ICMP header
    source: str = ""
    ttl: int = 0
    round_trip_s: float | None = None
    error: str = ""


def ping(
    stack: Stack | None,
    address: str,
    count: int | None = 4,
    interval_s: float = 1.0,
    size: int = SIZE_DEFAULT,
    timeout_s: float = 1.0,
    options: Iterable[tuple[int, int, int]] = (),
) -> Iterator[Result]:
    """Send `count` echo requests (None: without end), one each `interval_s`; yield the result of each in turn.

    `options`: of the socket, as for setsockopt. OSError: none can be sent (no such stack, no route, `size` beyond the
    MTU).
    """
    padding = bytes(octet & 0xFF for octet in range(size))
    with (stack or Stack()).socket(_std.AF_INET, _std.SOCK_DGRAM, _std.IPPROTO_ICMP) as endpoint:
        endpoint.setsockopt(_std.IPPROTO_IP, getattr(_std, "IP_RECVERR", 11), 1)
        for option in options:
            endpoint.setsockopt(*option)
        endpoint.connect((address, 0))
        sequence = 0
        while count is None or sequence < count:
            sequence += 1
            started = time.monotonic()
            # The stack fills in identifier and checksum, as Linux does.
            endpoint.getsockopt(_std.SOL_SOCKET, _std.SO_ERROR)  # a late error of an earlier request
            endpoint.send(_ECHO.pack(ECHO_REQUEST, 0, 0, 0, sequence & 0xFFFF) + padding)
            yield _outcome(endpoint, sequence, started, timeout_s)
            if count is None or sequence < count:
                time.sleep(max(0.0, started + interval_s - time.monotonic()))


def _outcome(endpoint: socket, sequence: int, started: float, timeout_s: float) -> Result:
    while True:
        endpoint.settimeout(max(0.0, started + timeout_s - time.monotonic()))
        try:
            record = endpoint.receive_record()
        except (TimeoutError, BlockingIOError):
            return Result(sequence, error="no reply")
        except OSError as error:
            return Result(sequence, error=error.strerror or str(error))
        finally:
            endpoint.settimeout(None)
        arrived = time.monotonic()
        _, _, _, ttl, _, _, _, source, _ = DATAGRAM_HEADER.unpack_from(record)
        message = record[DATAGRAM_HEADER.size :]
        if len(message) >= _ECHO.size:
            kind, _, _, _, number = _ECHO.unpack_from(message)
            if kind == ECHO_REPLY and number == sequence & 0xFFFF:
                return Result(sequence, len(message), _std.inet_ntoa(source), ttl, arrived - started)
