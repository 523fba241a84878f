"""What the standard module has and a stack has not, or not yet: clear errors instead of missing names."""

from __future__ import annotations

import errno
import os
from typing import NoReturn


def no_tcp() -> OSError:
    """What says that there is no TCP yet."""
    return OSError(errno.ESOCKTNOSUPPORT, f"{os.strerror(errno.ESOCKTNOSUPPORT)}: usernet has no TCP yet, only UDP and "
                   "ping sockets (SOCK_DGRAM)")


def no_raw() -> OSError:
    """What says that the stack's owner has not allowed raw sockets."""
    return OSError(errno.EPERM, f"{os.strerror(errno.EPERM)}: raw sockets need the consent of the stack's owner, who "
                   "gives it by: launcher.py up --allow-raw")


def create_connection(*_: object, **__: object) -> NoReturn:
    """ESOCKTNOSUPPORT."""
    raise no_tcp()


def has_dualstack_ipv6() -> bool:
    """False: there is no IPv6."""
    return False
