"""The IP options in which each host on the way records something (RFC 791 section 3.1): record route and timestamp."""

from __future__ import annotations

from packets.time_of_day import time_of_day

_POINTER = 2  # offset in either option: position of the next slot, counted from 1
_OVERFLOW_FLAG = 3  # offset in a timestamp option: overflow count, flag
_TIME_ONLY, _ADDRESS_AND_TIME, _PRESPECIFIED = 0, 1, 3
_SLOT_OCTETS = {_TIME_ONLY: 4, _ADDRESS_AND_TIME: 8, _PRESPECIFIED: 8}
_OTHER_SLOT_OCTETS = 4  # as Linux's ip_options_compile for unknown flags; nothing is recorded


def record_route(header: bytearray, at: int, length: int, ours: bytes | None) -> int:
    """Fill in one slot of the record route at `at`; the offset of a malformed octet, or 0. `ours` None: only check."""
    if length < 3:
        return at + 1
    pointer = header[at + _POINTER]
    if pointer < 4 or length - 3 < pointer <= length:
        return at + _POINTER
    if ours is not None and pointer <= length:
        header[at + pointer - 1 : at + pointer + 3] = ours
        header[at + _POINTER] += 4
    return 0


def timestamp(header: bytearray, at: int, length: int, ours: bytes | None, epoch_s: float, ours_to_send: bool) -> int:
    """Fill in one slot of the timestamp at `at`, or count that there was none; the offset of a malformed octet, or 0.

    `ours` None: only check. `epoch_s`: now, in seconds since 1970. `ours_to_send`: a missing slot is not counted.
    """
    if length < 4:
        return at + 1
    pointer, flag = header[at + _POINTER], header[at + _OVERFLOW_FLAG] & 15
    slot = _SLOT_OCTETS.get(flag, _OTHER_SLOT_OCTETS)
    if pointer < 5 or length + 1 - slot < pointer <= length:
        return at + _POINTER
    if pointer > length:
        if header[at + _OVERFLOW_FLAG] >> 4 == 15:
            return at + _OVERFLOW_FLAG
        if ours is not None and not ours_to_send:
            header[at + _OVERFLOW_FLAG] += 16
        return 0
    start, end = at + pointer - 1, at + pointer - 1 + slot
    if ours is None or flag not in _SLOT_OCTETS or (flag == _PRESPECIFIED and header[start : start + 4] != ours):
        return 0
    if flag != _TIME_ONLY:
        header[start : start + 4] = ours
    header[end - 4 : end] = time_of_day(epoch_s)
    header[at + _POINTER] += slot
    return 0
