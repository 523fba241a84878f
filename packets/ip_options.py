"""IP options (RFC 791 section 3.1): decoding, and which options an application may send (ip(7), IP_OPTIONS).

The library and the stack use the same rules, so that both refuse the same options.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

END, NO_OPERATION = 0, 1  # these two are single octets
RECORD_ROUTE = 7
TIMESTAMP = 68
LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE = 131, 137
COMMERCIAL_SECURITY = 134  # CIPSO, FIPS 188
ROUTER_ALERT = 148  # RFC 2113
COPIED = 0x80  # in the type of an option: it is copied into every fragment
OCTETS_MAX = 40

_ADDRESS_OCTETS = 4
_SLOT_OCTETS = {0: 4, 1: 8, 3: 8}  # octets of a slot of a timestamp option, by flag


def walk(options: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, option) for each option of more than one octet, up to the end of the list.

    An empty option means malformed octets at that offset; it is the last.
    """
    offset = 0
    while offset < len(options) and options[offset] != END:
        if options[offset] == NO_OPERATION:
            offset += 1
            continue
        length = options[offset + 1] if offset + 1 < len(options) else 0
        if not 2 <= length <= len(options) - offset:
            yield offset, b""
            return
        yield offset, options[offset : offset + length]
        offset += length


def join(options: Iterable[bytes]) -> bytes:
    """A list of options in the form of a header: padded by END to whole words of 4 octets."""
    joined = b"".join(options)
    return joined + bytes(-len(joined) % 4)


def echoed(options: bytes) -> bytes:
    """The options of a request that its reply contains: record route and timestamp (RFC 1122 section 3.2.2.6).

    They contain the address and time that ip has recorded.
    """
    return join(option for _, option in walk(options) if option and option[0] in (RECORD_ROUTE, TIMESTAMP))


def checked(options: bytes, privileged: bool) -> bytes:
    """Options in the form in which they are sent, padded. OSError as from Linux's ip_options_get: not permitted or
    malformed.

    `privileged`: any well-formed options are allowed, as with CAP_NET_RAW, except source routes. Without privilege,
    source routes are EPERM as on Linux.
    """
    if len(options) > OCTETS_MAX:
        raise _refused(errno.EINVAL)
    seen = set()
    end = 0
    source_routed = False
    for offset, option in walk(options):
        if not option or not _is_well_formed(option, privileged):
            raise _refused(errno.EINVAL)
        kind = option[0]
        if kind in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE):
            source_routed, kind = True, LOOSE_SOURCE_ROUTE
        if kind in seen and kind in (RECORD_ROUTE, TIMESTAMP, LOOSE_SOURCE_ROUTE):
            raise _refused(errno.EINVAL)  # RFC 791: each appears at most once in a datagram
        seen.add(kind)
        end = offset + len(option)
    if source_routed:
        raise _refused(errno.EPERM)
    while options[end : end + 1] == b"\x01":
        end += 1
    return options[:end] + bytes(len(options) - end) + bytes(-len(options) % 4)


def _is_well_formed(option: bytes, privileged: bool) -> bool:
    """True if an option is well formed, as in Linux's ip_options_compile."""
    kind, length = option[0], len(option)
    pointer = option[2] if length > 2 else 0
    if kind in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE):
        return pointer == 4 and length >= 7 and length % 4 == 3
    if kind == RECORD_ROUTE:
        return pointer >= 4 and not length - _ADDRESS_OCTETS + 1 < pointer <= length
    if kind == TIMESTAMP:
        return length >= 4 and pointer >= 5 and _has_room_for_time(option, privileged)
    if kind == ROUTER_ALERT:
        return length >= 4
    return privileged and kind != COMMERCIAL_SECURITY


def _has_room_for_time(option: bytes, privileged: bool) -> bool:
    length, pointer, flag = len(option), option[2], option[3] & 15
    if pointer > length:
        return option[3] >> 4 != 15  # full; the overflow counter has 4 bits
    slot = _SLOT_OCTETS.get(flag, 4 if privileged else 0)
    return slot > 0 and pointer + slot - 1 <= length


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """(options, rest) of data that begins with one octet with the number of octets of options that follow. None:
    malformed.

    Options in the records of the stack are whole words.
    """
    octets = data[0] if data else 1
    if octets % 4 or octets > OCTETS_MAX or len(data) <= octets:
        return None
    return data[1 : 1 + octets], data[1 + octets :]


def before(options: bytes, data: bytes) -> bytes:
    """The inverse of `split`: options with their length, before other data."""
    return bytes((len(options),)) + options + data


def _refused(number: int) -> OSError:
    return OSError(number, "Operation not permitted" if number == errno.EPERM else "Invalid argument")
