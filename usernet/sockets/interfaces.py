"""The interfaces of a stack, as if_nametoindex(3) and its kin have them: the loopback, and the one to the link."""

from __future__ import annotations

import errno
import os

from usernet.pipe.messages import INTERFACE_INDEX

NAMES = {1: "lo", INTERFACE_INDEX: "link"}


def if_nameindex() -> list[tuple[int, str]]:
    """(index, name) of each."""
    return list(NAMES.items())


def if_nametoindex(if_name: str | bytes) -> int:
    """OSError where there is none."""
    wanted = os.fsdecode(if_name)
    for index, name in NAMES.items():
        if name == wanted:
            return index
    raise OSError("no interface with this name")


def if_indextoname(if_index: int) -> str:
    """OSError (ENXIO) where there is none."""
    try:
        return NAMES[if_index]
    except KeyError:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO)) from None
