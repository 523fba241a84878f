"""The filter of `capture`: pcap-filter(7), compiled by libpcap if it is installed, else by `packets.filter`.

libpcap only compiles the expression and tests octets in memory. It opens no device and needs no privilege.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache

from packets import pcapng
from packets.filter import FilterError, compile_filter

_NO_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _PacketHeader(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long), ("kept", ctypes.c_uint32),
                ("length", ctypes.c_uint32))


@cache
def _libpcap() -> ctypes.CDLL | None:
    # the name in Debian, the name elsewhere
    for name in ("libpcap.so.0.8", "libpcap.so.1", ctypes.util.find_library("pcap")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None:
            library.pcap_open_dead.restype = ctypes.c_void_p
            library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
            library.pcap_compile.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int,
                                             ctypes.c_uint32)
            library.pcap_geterr.restype = ctypes.c_char_p
            library.pcap_geterr.argtypes = (ctypes.c_void_p,)
            library.pcap_close.argtypes = (ctypes.c_void_p,)
            library.pcap_offline_filter.argtypes = (ctypes.POINTER(_Program), ctypes.POINTER(_PacketHeader),
                                                    ctypes.c_char_p)
            return library
    return None


def capture_filter(expression: str, link_type: int) -> Callable[[bytes], bool]:
    """A test for packets of `link_type`. FilterError, with libpcap's message: the expression does not compile.

    An expression that compiles only for Ethernet ('ether host') matches no packet without an Ethernet header.
    """
    library = _libpcap()
    if library is None:
        return _subset(expression, link_type)
    program, problem = _compile(library, expression, link_type)
    if program is None and link_type != pcapng.LINKTYPE_ETHERNET:
        _, foreign = _compile(library, expression, pcapng.LINKTYPE_ETHERNET)
        if not foreign:
            return lambda packet: False
    if program is None:
        raise FilterError(f"{expression!r}: {problem}")

    def test(packet: bytes) -> bool:
        header = _PacketHeader(0, 0, len(packet), len(packet))
        return bool(library.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), packet))

    return test


def _compile(library: ctypes.CDLL, expression: str, link_type: int) -> tuple[_Program | None, str]:
    """The program, or None and libpcap's message."""
    if "\0" in expression:
        return None, "it contains a NUL character"
    # Not optimized: the optimizer reports an error for an expression that no packet can match.
    dead = library.pcap_open_dead(_DLT.get(link_type, link_type), pcapng.SNAP_OCTETS)
    program = _Program()
    try:
        if library.pcap_compile(dead, ctypes.byref(program), expression.encode(), 0, _NO_NETMASK) == 0:
            return program, ""
        return None, library.pcap_geterr(dead).decode(errors="replace")
    finally:
        library.pcap_close(dead)


_DLT = {pcapng.LINKTYPE_RAW: 12}  # DLT_RAW is not LINKTYPE_RAW (pcap/dlt.h)


def _subset(expression: str, link_type: int) -> Callable[[bytes], bool]:
    """Without libpcap: the subset of the language that `packets.filter` supports, for IPv4 packets only."""
    test = compile_filter(expression)
    if link_type != pcapng.LINKTYPE_ETHERNET:
        return test
    return lambda frame: frame[12:14] == b"\x08\x00" and test(frame[14:])
