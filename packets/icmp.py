"""ICMP messages (RFC 792).

A message consists of type, code, checksum over the whole message, 4 octets whose meaning depends on the type, and data,
all in network order. In echo messages the 4 octets are identifier and sequence number. In errors they are a pointer or
an MTU, and the data quotes the packet that the error is about.
"""

from __future__ import annotations

from struct import Struct

from packets.checksum import checksum
from packets.ip_options import RECORD_ROUTE, TIMESTAMP, walk
from packets.ipv4 import DESTINATION, with_checksum
from packets.ipv4 import HEADER_OCTETS as IP_HEADER_OCTETS
from packets.ipv4 import header_octets as ip_header_octets
from packets.time_of_day import time_of_day

PROTOCOL = 1  # RFC 792
HEADER = Struct("!BBHI")
HEADER_OCTETS = HEADER.size

ECHO_REPLY = 0
DESTINATION_UNREACHABLE, UNREACHABLE_CODE_MAX = 3, 15
FRAGMENTATION_NEEDED = 4  # code of a destination unreachable
SOURCE_QUENCH = 4
REDIRECT, REDIRECT_CODE_MAX = 5, 3
ECHO_REQUEST = 8
ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION = 9, 10  # RFC 1256
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12
TIMESTAMP_REQUEST, TIMESTAMP_REPLY = 13, 14
INFORMATION_REQUEST, INFORMATION_REPLY = 15, 16
ADDRESS_MASK_REQUEST, ADDRESS_MASK_REPLY = 17, 18  # RFC 950
REPORTED_TYPES = frozenset({DESTINATION_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM})
# Messages that an error may be about. A message of unknown type might itself be an error.
QUERY_TYPES = frozenset({ECHO_REPLY, ECHO_REQUEST, TIMESTAMP_REQUEST, TIMESTAMP_REPLY, INFORMATION_REQUEST,
                         INFORMATION_REPLY, ADDRESS_MASK_REQUEST, ADDRESS_MASK_REPLY})

IP_PAYLOAD_OCTETS_MAX = 65535 - IP_HEADER_OCTETS
EXTENDED_QUOTE_OCTETS_MIN = 128  # RFC 4884 section 4: the minimum length of the quote before extensions
QUOTE_OCTETS_MAX = 576 - IP_HEADER_OCTETS - HEADER_OCTETS  # RFC 1812 section 4.3.2.3: an error has at most 576 octets

_RECORD_ROUTE, _TIMESTAMP = bytes((RECORD_ROUTE,)), bytes((TIMESTAMP,))
_TIMESTAMP_FLAGS = (0, 1, 3)  # RFC 791: the flags with which ip records something
_PRESPECIFIED = 3  # RFC 791: the sender chose the addresses of the timestamp option
_ECHO_TYPES = (ECHO_REQUEST - ECHO_REPLY) << 8  # the difference between a request and its reply in the message's sum


def echo_reply(request: bytes) -> bytes:
    """The reply to an echo request with a valid checksum: type 0, the rest unchanged.

    RFC 1624: the checksum grows by the difference of the changed word. Where zero has two representations the result
    may be 0xffff instead of 0; both verify.
    """
    check = (request[2] << 8 | request[3]) + _ECHO_TYPES
    if check > 0xFFFF:
        check -= 0xFFFF
    return b"\0" + request[1:2] + check.to_bytes(2, "big") + request[4:]


def timestamp_reply(request: bytes, epoch_s: float) -> bytes:
    """The reply to a timestamp request with an originate timestamp; `epoch_s`: seconds since 1970.

    RFC 792: receive and transmit timestamps are the same moment, in milliseconds since midnight UT. Octets beyond the
    timestamps are not copied.
    """
    at = time_of_day(epoch_s)
    rest = request[4:12] + at + at
    return b"\x0e\0" + checksum(b"\x0e\0\0\0" + rest).to_bytes(2, "big") + rest


def as_received(packet: bytes) -> bytes:
    """A packet without the address and time that ip has recorded in its options (layers/ip/options.py).

    The former content of a slot is unknown, so it becomes zeros, as RFC 791 section 3.1 demands of the sender.
    """
    end, ours = ip_header_octets(packet), packet[DESTINATION]
    header = bytearray(packet[:end])
    for offset, option in walk(packet[IP_HEADER_OCTETS:end]):
        at = IP_HEADER_OCTETS + offset
        pointer = option[2] if len(option) > 2 else 0
        if option[:1] == _RECORD_ROUTE and pointer >= 8 and option[pointer - 5 : pointer - 1] == ours:
            header[at + pointer - 5 : at + pointer - 1] = bytes(4)
            header[at + 2] -= 4
        elif option[:1] == _TIMESTAMP and len(option) > 3:
            overflow, flag = option[3] >> 4, option[3] & 15
            slot = 8 if flag else 4  # with addresses, or without
            start = pointer - 1 - slot
            if overflow:  # it was full before ip processed it
                header[at + 3] -= 16
            elif flag not in _TIMESTAMP_FLAGS:
                continue
            elif 4 <= start <= len(option) - slot and (not flag or option[start : start + 4] == ours):
                kept = 4 if flag == _PRESPECIFIED else 0
                header[at + start + kept : at + pointer - 1] = bytes(slot - kept)
                header[at + 2] -= slot
    return with_checksum(bytes(header)) + packet[end:]


def echo_request(identifier: int, rest: bytes) -> bytes:
    """An echo request; `rest` is the sequence number and the data."""
    rest = identifier.to_bytes(2, "big") + rest
    return b"\x08\0" + checksum(b"\x08\0\0\0" + rest).to_bytes(2, "big") + rest


def error(icmp_type: int, code: int, info: int, quote: bytes) -> bytes:
    """An error message. `info`: the pointer of a parameter problem, or the MTU of fragmentation needed."""
    rest = 0
    if icmp_type == PARAMETER_PROBLEM:
        rest = (info & 0xFF) << 24
    elif icmp_type == DESTINATION_UNREACHABLE and code == FRAGMENTATION_NEEDED:
        rest = info & 0xFFFF  # RFC 1191 section 4
    check = checksum(HEADER.pack(icmp_type, code, 0, rest) + quote)
    return HEADER.pack(icmp_type, code, check, rest) + quote


def info_of(message: bytes) -> int:
    """The `info` of an error message."""
    rest: int
    icmp_type, code, _, rest = HEADER.unpack_from(message)
    if icmp_type == PARAMETER_PROBLEM:
        return rest >> 24
    if icmp_type == DESTINATION_UNREACHABLE and code == FRAGMENTATION_NEEDED:
        return rest & 0xFFFF
    return 0


def identifier_of(message: bytes) -> int:
    """The identifier of an echo message."""
    return message[4] << 8 | message[5]


def gateway_of(message: bytes) -> bytes:
    """The gateway that a redirect names, 4 octets."""
    return message[4:8]


def quote_of(message: bytes) -> bytes:
    """The packet that an error quotes, without extensions that follow it.

    RFC 4884 section 4: octet 5 may contain the number of words of the quote, including padding; extensions follow it.
    Section 5: many senders leave it empty or fill in anything, so an impossible length does not invalidate an error.
    """
    quote = message[HEADER_OCTETS:]
    octets = message[5] * 4
    if EXTENDED_QUOTE_OCTETS_MIN <= octets < len(quote):
        quote = quote[:octets]
        total = quote[2] << 8 | quote[3]
        if IP_HEADER_OCTETS + HEADER_OCTETS <= total < octets:
            quote = quote[:total]
    return quote


def is_error_code(icmp_type: int, code: int) -> bool:
    """True for the type and code of a defined error; destination unreachable has codes up to 15."""
    return icmp_type != DESTINATION_UNREACHABLE or code <= UNREACHABLE_CODE_MAX
