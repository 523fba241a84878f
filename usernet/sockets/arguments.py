"""Arguments of a socket's methods, judged as the standard module does it: before anything is sent or taken."""

from __future__ import annotations

import errno
import operator
from typing import Any, SupportsIndex

from usernet.errors import os_error

BUFFERS_MAX = 1024  # of sendmsg and recvmsg_into: linux/uio.h, UIO_MAXIOV
ANCILLARY_OCTETS_MAX = 0x7FFFFFFF  # CPython, socketmodule.c: SOCKLEN_T_LIMIT
_UNSIGNED = 1 << 32


def as_int(value: SupportsIndex) -> int:
    """An integer argument as the standard module converts it to a C int."""
    if value.__class__ is int and -(1 << 31) <= value < 1 << 31:
        return value  # the usual case
    number = int(operator.index(value))  # of True, or of a flag of an enumeration, too
    if not -(1 << 31) <= number < 1 << 31:
        raise OverflowError(f"signed integer is {'greater than maximum' if number > 0 else 'less than minimum'}")
    return number


def as_size(value: SupportsIndex) -> int:
    """An integer argument as the standard module converts it to a C ssize_t."""
    number = int(operator.index(value))  # of True, or of a flag of an enumeration, too
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError("Python int too large to convert to C ssize_t")
    return number


def contiguous(view: memoryview) -> memoryview:
    """The same view. BufferError, as of the standard module: it has gaps."""
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view


def buffers_of(given: Any, caller: str) -> list[Any]:
    """The buffers of one message. TypeError: not iterable. EMSGSIZE: too many."""
    try:
        buffers = list(given)
    except TypeError:
        raise TypeError(f"{caller}() argument 1 must be an iterable") from None
    if len(buffers) > BUFFERS_MAX:
        raise os_error(errno.EMSGSIZE)
    return buffers


def ancillary_room(octets: int) -> int:
    """The size of a buffer for ancillary data. ValueError: none that can be."""
    if not 0 <= octets <= ANCILLARY_OCTETS_MAX:
        raise ValueError("invalid ancillary data buffer length")
    return octets


def absent_value(optlen: SupportsIndex) -> OSError:
    """The error of setsockopt(level, option, None, optlen): a null pointer, and a length that CPython does not check.

    TypeError: no length.
    """
    octets = operator.index(optlen) % _UNSIGNED
    return os_error(errno.EFAULT if 4 <= octets < _UNSIGNED // 2 else errno.EINVAL)
