"""IP options (RFC 791 section 3.1): how to read them, and which an application may send (ip(7), IP_OPTIONS).

The layers of the stack go by the same functions, so that library and stack refuse the same.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

END, NO_OPERATION = 0, 1  # these two are a single octet
RECORD_ROUTE = 7
TIMESTAMP = 68
LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE = 131, 137
COMMERCIAL_SECURITY = 134  # CIPSO, FIPS 188
ROUTER_ALERT = 148  # RFC 2113
COPIED = 0x80  # in an option's type: every fragment carries it
OCTETS_MAX = 40

_ADDRESS_OCTETS = 4
_SLOT_OCTETS = {0: 4, 1: 8, 3: 8}  # of a timestamp, by its flag


def walk(options: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, option) for each of more than one octet, up to the end of the list.

    An empty option stands for nonsense at that offset; nothing follows it.
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
    """A list of options, as a header carries it: padded to words of 4 octets by END."""
    joined = b"".join(options)
    return joined + bytes(-len(joined) % 4)


def echoed(options: bytes) -> bytes:
    """RFC 1122 section 3.2.2.6: what an answer carries of the options of a request, record route and timestamp.

    They are as ip left them, with our address and time in them.
    """
    return join(option for _, option in walk(options) if option and option[0] in (RECORD_ROUTE, TIMESTAMP))


def checked(options: bytes, privileged: bool) -> bytes:
    """Options as they may be sent, padded; OSError as of Linux's ip_options_get.

    `privileged`: as with CAP_NET_RAW, whatever has the form of an option may be sent. Source routes may not, and Linux
    gives EPERM to who has no privilege.
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
    """ip_options_compile in Linux."""
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
        return option[3] >> 4 != 15  # full; the hosts that found no room are counted up to 15
    slot = _SLOT_OCTETS.get(flag, 4 if privileged else 0)
    return slot > 0 and pointer + slot - 1 <= length


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """(options, what follows) of data that begins with one octet, how many octets of options follow; None: it is none.

    Options in the messages of the stack are whole words.
    """
    octets = data[0] if data else 1
    if octets % 4 or octets > OCTETS_MAX or len(data) <= octets:
        return None
    return data[1 : 1 + octets], data[1 + octets :]


def before(options: bytes, data: bytes) -> bytes:
    """The contrary of `split`."""
    return bytes((len(options),)) + options + data


def _refused(number: int) -> OSError:
    return OSError(number, "Operation not permitted" if number == errno.EPERM else "Invalid argument")
