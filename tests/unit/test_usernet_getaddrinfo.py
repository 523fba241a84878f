"""getaddrinfo beside glibc's, for what needs no name server."""

from __future__ import annotations

import socket as std

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import usernet

HOSTS = st.sampled_from([None, "", "*", "10.0.0.1", "10.1", "0x7f.1", "010.1",  "localhost",
                         b"10.0.0.9", "4294967295"])
PORTS = st.one_of(st.none(), st.integers(-70000, 1 << 34), st.sampled_from(
    ["", "*", "80", "http", "domain", "nosuch", "-1", "+7", " 9", "0x50", b"53", "99999", "80 "]))
KINDS = st.sampled_from([0, std.SOCK_STREAM, std.SOCK_DGRAM, std.SOCK_RAW, std.SOCK_SEQPACKET, std.SOCK_RDM, 77])
PROTOCOLS = st.sampled_from([0, std.IPPROTO_TCP, std.IPPROTO_UDP, std.IPPROTO_ICMP, std.IPPROTO_RAW, 136, 132, 200])
FLAGS = st.sampled_from([0, std.AI_PASSIVE, std.AI_CANONNAME, std.AI_NUMERICHOST, std.AI_NUMERICSERV,
                         std.AI_PASSIVE | std.AI_CANONNAME, std.AI_NUMERICHOST | std.AI_NUMERICSERV, 1 << 20])


def outcome(call, *arguments):
    try:
        return [tuple(map(plain, entry)) for entry in call(*arguments)]
    except (OSError, TypeError, ValueError, OverflowError) as error:
        return type(error).__name__, error.args[:1] if isinstance(error, std.gaierror) else ()


def plain(value):
    return int(value) if isinstance(value, int) else value


@settings(max_examples=1500, deadline=None)
@given(st.tuples(HOSTS, PORTS, st.sampled_from([std.AF_INET, 99]), KINDS, PROTOCOLS, FLAGS))
@example(("10.0.0.1", None, std.AF_INET, std.SOCK_RAW, 0, 0))
@example(("localhost", 80, std.AF_INET, 0, 0, std.AI_NUMERICHOST))
@example((None, 80, std.AF_INET, 0, 0, std.AI_CANONNAME))
@example(("::1", 80, std.AF_INET, 0, 0, 0))
def test_as_glibc(arguments):
    assert outcome(usernet.getaddrinfo, *arguments) == outcome(std.getaddrinfo, *arguments)


@pytest.mark.parametrize("arguments", [(1, 80), ("10.0.0.1", 1.5), ("10.0.0.1", object()), ("10.0.0.1", 1 << 70),
                                       ("10.0.0.1\0b", 80), ("10.0.0.1", "8\0")])
def test_impossible_arguments_fail_as_with_the_standard_function(arguments):
    assert outcome(usernet.getaddrinfo, *arguments) == outcome(std.getaddrinfo, *arguments)
