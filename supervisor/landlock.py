"""Landlock: no files, no TCP ports, no abstract sockets, and no signals beyond this process.

landlock(7), linux/landlock.h. It needs no privilege, and also keeps the process from tracing processes outside its
domain. Landlock does not restrict paths of Unix sockets; the root directory does that.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 3, 1 << 4, 1 << 5
FILE_RIGHTS = ((5, 16), (3, 15), (2, 14), (1, 13))  # (version of the interface, number of bits of rights)
NET_RIGHTS, NET_SINCE = 0b11, 4  # bind and connect TCP
SCOPES, SCOPES_SINCE = 0b11, 6  # abstract Unix sockets and signals
_RULESET = struct.Struct("=QQQ")  # struct landlock_ruleset_attr: rights to files, to ports; scopes
_PATH_BENEATH = struct.Struct("=Qi")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return result


def version() -> int:
    """The version of the kernel's interface. OSError (ENOSYS, EOPNOTSUPP): the kernel has none."""
    return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(CREATE_RULESET_VERSION))


def restrict(folders: Mapping[int, int] | Mapping[str, int]) -> int:
    """Enter a domain whose only rights are `folders`: {directory or its descriptor: rights to everything below it}.

    Returns the version of the interface. The process must have no_new_privs. OSError: the kernel refuses.
    """
    known = version()
    rights = next((1 << bits) - 1 for since, bits in FILE_RIGHTS if known >= since)
    attributes = _RULESET.pack(rights, NET_RIGHTS if known >= NET_SINCE else 0, SCOPES if known >= SCOPES_SINCE else 0)
    octets = 24 if known >= SCOPES_SINCE else 16 if known >= NET_SINCE else 8
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(octets), ctypes.c_uint(0))
    try:
        for folder, granted in folders.items():
            directory = folder
            if isinstance(directory, str):
                directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rule = _PATH_BENEATH.pack(granted, directory)
                _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(RULE_PATH_BENEATH), rule, ctypes.c_uint(0))
            finally:
                if isinstance(folder, str):
                    os.close(directory)
        _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return known
