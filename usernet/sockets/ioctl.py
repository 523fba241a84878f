"""ioctl(2) for stream sockets of a stack, with the arguments of `fcntl.ioctl` (tcp(7), sockios.h)."""

from __future__ import annotations

import errno
import fcntl
from struct import Struct
from typing import Any

from usernet.client.stack import all_sockets
from usernet.client.streams import StreamDescription
from usernet.errors import os_error
from usernet.pipe.streams import INFO_ANSWER
from usernet.sockets.descriptors import is_number_of

SIOCINQ, SIOCOUTQ, SIOCATMARK, SIOCOUTQNSD = 0x541B, 0x5411, 0x8905, 0x894B
_QUESTIONS = (SIOCINQ, SIOCOUTQ, SIOCATMARK, SIOCOUTQNSD)
_INT = Struct("@i")

_kernels = fcntl.ioctl  # stored here because usernet.patch replaces it


def ioctl(fd: Any, request: int, arg: Any = 0, mutate_flag: bool = True, /) -> Any:
    """As the standard function; for a stream socket of a stack SIOCINQ (FIONREAD), SIOCOUTQ, SIOCOUTQNSD, SIOCATMARK.

    `arg` is a buffer of at least four octets for the answer. EFAULT: it is a number.
    """
    found = _stream_of(fd) if request in _QUESTIONS else None
    if found is None:
        return _kernels(fd, request, arg, mutate_flag)
    if isinstance(arg, int):
        raise os_error(errno.EFAULT)
    answer = _INT.pack(_answer(found, request))
    if mutate_flag and not isinstance(arg, (bytes, str)):
        view = memoryview(arg).cast("B")
        if not view.readonly:
            view[: len(answer)] = answer
            return 0
    return answer + bytes(memoryview(arg.encode() if isinstance(arg, str) else arg))[len(answer) :]


def _stream_of(fd: Any) -> Any:
    number = fd if isinstance(fd, int) else fd.fileno()
    found = next((each for each in all_sockets() if is_number_of(each, number)), None)
    return found if found is not None and isinstance(found._box, StreamDescription) else None


def _answer(sock: Any, request: int) -> int:
    """Linux, tcp_ioctl."""
    box: StreamDescription = sock._box
    sock._connection.look()
    if request == SIOCATMARK:
        return int(box.at_mark)
    if box.listening:
        raise os_error(errno.EINVAL)
    if request == SIOCINQ:
        before = box.urgent > box.read and not box.oob_inline and box.urgent <= box.have
        return box.urgent - 1 - box.read if before else box.have - box.read
    told = sock._connection.stream_info(box.handle)
    if not told:
        return 0
    *_, unacknowledged, unsent = INFO_ANSWER.unpack_from(told)
    return int(unsent if request == SIOCOUTQNSD else unacknowledged + unsent)
