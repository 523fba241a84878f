"""Parts of the standard module that a stack does not have: clear errors instead of missing names."""

from __future__ import annotations

import errno
import os


def no_raw() -> OSError:
    """The error if the owner of the stack has not allowed raw sockets."""
    return OSError(errno.EPERM, f"{os.strerror(errno.EPERM)}: the owner of the stack has not allowed raw "
                   "sockets, which needs: launcher.py up --allow-raw")


def has_dualstack_ipv6() -> bool:
    """False: there is no IPv6."""
    return False
