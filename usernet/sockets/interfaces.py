"""The interfaces of a stack for if_nametoindex(3) and related functions: the loopback and the link."""

from __future__ import annotations

import errno
import operator
import os

from usernet.pipe.messages import INTERFACE_INDEX, LOOPBACK_INDEX

NAMES = {LOOPBACK_INDEX: "lo", INTERFACE_INDEX: "link"}


def if_nameindex() -> list[tuple[int, str]]:
    """[(index, name)] of all interfaces."""
    return list(NAMES.items())


def if_nametoindex(if_name: str | bytes) -> int:
    """The index of an interface. OSError: there is none."""
    wanted = os.fsdecode(if_name)
    for index, name in NAMES.items():
        if name == wanted:
            return index
    raise OSError("no interface with this name")


def if_indextoname(if_index: int) -> str:
    """The name of an interface. OSError (ENXIO): there is none."""
    index = operator.index(if_index)
    if index < 0:
        raise OverflowError("can't convert negative value to unsigned int")
    try:
        return NAMES[index]
    except KeyError:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO)) from None
