"""The meaning of an ICMP error for a socket: the errno that Linux gives, and whether a connected socket fails with it.

All transports share it, so that a port unreachable is always the same ECONNREFUSED.
"""

from __future__ import annotations

import errno

from packets.icmp import DESTINATION_UNREACHABLE, PARAMETER_PROBLEM, UNREACHABLE_CODE_MAX

# (errno, fatal) by code of a destination unreachable: icmp_err_convert in Linux's net/ipv4/icmp.c, with one deviation.
# In Linux's table fragmentation needed (4) is not fatal, but udp_err and ping_err report it as fatal to every socket
# with path MTU discovery; here the table contains this.
_UNREACHABLE = (
    (errno.ENETUNREACH, False),  # 0 network unreachable
    (errno.EHOSTUNREACH, False),  # 1 host unreachable
    (errno.ENOPROTOOPT, True),  # 2 protocol unreachable
    (errno.ECONNREFUSED, True),  # 3 port unreachable
    (errno.EMSGSIZE, True),  # 4 fragmentation needed and DF set
    (errno.EOPNOTSUPP, False),  # 5 source route failed
    (errno.ENETUNREACH, True),  # 6 destination network unknown
    (errno.EHOSTDOWN, True),  # 7 destination host unknown
    (errno.ENONET, True),  # 8 source host isolated
    (errno.ENETUNREACH, True),  # 9 network administratively prohibited
    (errno.EHOSTUNREACH, True),  # 10 host administratively prohibited
    (errno.ENETUNREACH, False),  # 11 network unreachable for this TOS
    (errno.EHOSTUNREACH, False),  # 12 host unreachable for this TOS
    (errno.EHOSTUNREACH, True),  # 13 communication administratively filtered
    (errno.EHOSTUNREACH, True),  # 14 host precedence violation
    (errno.EHOSTUNREACH, True),  # 15 precedence cutoff in effect
)
assert len(_UNREACHABLE) == UNREACHABLE_CODE_MAX + 1


def errno_of(icmp_type: int, code: int) -> tuple[int, bool]:
    """(errno, fatal) of an ICMP error.

    Fatal: a connected socket fails with it. Any other error only reaches a socket with IP_RECVERR. A socket without
    path MTU discovery ignores fragmentation needed; the caller must check this.
    """
    if icmp_type == DESTINATION_UNREACHABLE and code <= UNREACHABLE_CODE_MAX:
        return _UNREACHABLE[code]
    if icmp_type == PARAMETER_PROBLEM:
        return errno.EPROTO, True
    return errno.EHOSTUNREACH, False  # time exceeded, and any other
