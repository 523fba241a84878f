"""What the standard module has and a stack has not, or not yet: clear errors instead of missing names."""

from __future__ import annotations

import errno
import os


def no_raw() -> OSError:
    """What says that the stack's owner has not allowed raw sockets."""
    return OSError(errno.EPERM, f"{os.strerror(errno.EPERM)}: raw sockets need the consent of the stack's owner, who "
                   "gives it by: launcher.py up --allow-raw")


def has_dualstack_ipv6() -> bool:
    """False: there is no IPv6."""
    return False
