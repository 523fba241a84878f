"""A filter for IPv4 packets: a subset of the language of pcap-filter(7), compiled to a test of a packet's octets.

   expression = factor { "and" factor | "or" factor }        factor = "not" factor | "(" expression ")" | test
   test = [ip] udp | tcp | icmp | igmp | "proto" N | ["src" | "dst"] "host" ADDRESS | ["src" | "dst"] "net" ADDRESS/N
        | [udp | tcp] ["src" | "dst"] "port" N | [udp | tcp] ["src" | "dst"] "portrange" N-M | "less" N | "greater" N

Also "&&", "||", "!". As in pcap-filter(7), "and" and "or" have equal precedence and associate to the left. A test gives
the same result as libpcap for a whole packet; a later fragment has no ports. Impairments inside a layer select packets
with it. `capture --filter` uses it if libpcap is not installed; with libpcap it accepts the whole language.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

Test = Callable[[bytes], bool]

_PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17}
_WITH_PORTS = (6, 17, 132)  # pcap-filter(7): port means TCP, UDP or SCTP
_TOKEN = re.compile(r"\s*(&&|\|\||!|[()]|[^\s()!&|]+)")
_DEPTH_MAX = 100  # parentheses and negations within each other; Python nests some 1000 calls
_SOURCE, _DESTINATION = 12, 16  # offsets of the addresses, RFC 791 section 3.1


class FilterError(ValueError):
    """The expression is not in the language; the text says where."""


def compile_filter(expression: str) -> Test:
    """A test for whole IPv4 packets. FilterError: the expression is not in the language."""
    parser = _Parser(expression)
    test = parser.expression()
    if parser.here is not None:
        raise FilterError(f"{expression!r}: what is {parser.here!r} doing there?")
    return test


def _ports(packet: bytes) -> tuple[int, int] | None:
    """Source and destination port; None if the packet has none."""
    if len(packet) < 20 or (packet[6] & 0x1F or packet[7]):
        return None
    at = (packet[0] & 15) * 4
    if len(packet) < at + 4:
        return None
    return packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3]


def _joined(first: Test, others: list[tuple[bool, Test]]) -> Test:
    """From left to right, True for "and": both bind alike. A loop, because a chain may be longer than Python nests."""
    def test(packet: bytes) -> bool:
        verdict = first(packet)
        for both, other in others:
            if verdict is both:
                verdict = other(packet)
        return verdict

    return test


class _Parser:
    """Recursive descent; `here` is the current token, None at the end."""

    def __init__(self, expression: str) -> None:
        self._text = expression
        self._tokens = [token for token in _TOKEN.findall(expression) if token]
        self._at = 0
        if "".join(self._tokens) != re.sub(r"\s", "", expression):
            raise FilterError(f"{expression!r}: a stray '&' or '|'")

    @property
    def here(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        here = self.here
        if here is None or (wanted and here not in wanted):
            return None
        self._at += 1
        return here

    def _fail(self, wanted: str) -> FilterError:
        return FilterError(f"{self._text!r}: {wanted} expected " + (f"instead of {self.here!r}" if self.here else
                                                                      "at the end"))

    def expression(self, depth: int = 0) -> Test:
        first, others = self._factor(depth), list[tuple[bool, Test]]()
        while joint := self._take("and", "&&", "or", "||"):
            others.append((joint in ("and", "&&"), self._factor(depth)))
        return _joined(first, others) if others else first

    def _factor(self, depth: int) -> Test:
        if depth > _DEPTH_MAX:
            raise FilterError(f"{self._text!r}: nested more than {_DEPTH_MAX} deep")
        if self._take("not", "!"):
            test = self._factor(depth + 1)
            return lambda packet: not test(packet)
        if self._take("("):
            test = self.expression(depth + 1)
            if not self._take(")"):
                raise self._fail("')'")
            return test
        return self._test()

    def _test(self) -> Test:
        size = self._take("less", "greater")
        if size:
            octets = self._number(1 << 32)
            return (lambda packet: len(packet) <= octets) if size == "less" else (
                lambda packet: len(packet) >= octets)
        ip = self._take("ip")
        if self._take("proto"):
            return self._protocol(self._number(255))
        name = self._take(*_PROTOCOLS)
        direction = self._take("src", "dst")
        what = self._take("host", "net", "port", "portrange")
        if what in ("port", "portrange"):
            if name in ("icmp", "igmp"):
                raise FilterError(f"{self._text!r}: {name} has no ports")
            return self._port(name, direction, ranged=what == "portrange")
        if name and (direction or what):
            raise self._fail("'port' or 'portrange'")
        if name:
            return self._protocol(_PROTOCOLS[name])
        if direction or what:
            return self._network(direction, what or "host")
        if ip:
            return lambda packet: packet[:1] != b"" and packet[0] >> 4 == 4
        raise self._fail("a test such as 'udp', 'host 10.0.0.1' or 'port 53'")

    def _number(self, most: int) -> int:
        word = self._take()
        if word is None or not word.isdecimal() or int(word) > most:
            self._at -= word is not None
            raise self._fail(f"a number up to {most}")
        return int(word)

    @staticmethod
    def _protocol(number: int) -> Test:
        return lambda packet: len(packet) > 9 and packet[9] == number

    def _network(self, direction: str | None, what: str) -> Test:
        word = self._take() or ""
        try:
            if what == "host" and "/" in word:
                raise ValueError(f"host {word}: a host has no prefix length")
            network = ipaddress.IPv4Network(word)
        except ValueError as error:
            raise FilterError(f"{self._text!r}: {error}") from error
        mask, wanted = int(network.netmask), int(network.network_address)
        offsets = {"src": (_SOURCE,), "dst": (_DESTINATION,), None: (_SOURCE, _DESTINATION)}[direction]
        return lambda packet: any(
            len(packet) >= at + 4 and int.from_bytes(packet[at : at + 4], "big") & mask == wanted for at in offsets)

    def _port(self, name: str | None, direction: str | None, ranged: bool) -> Test:
        protocols = (_PROTOCOLS[name],) if name else _WITH_PORTS
        if ranged:
            first, dash, last = (self._take() or "").partition("-")
            if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1 << 16):
                raise FilterError(f"{self._text!r}: a portrange is like 1000-2000")
            wanted = range(int(first), int(last) + 1)
        else:
            wanted = range(number := self._number(0xFFFF), number + 1)
        sides = {"src": (0,), "dst": (1,), None: (0, 1)}[direction]

        def test(packet: bytes) -> bool:
            ports = _ports(packet)
            return ports is not None and packet[9] in protocols and any(ports[side] in wanted for side in sides)

        return test
