"""Datagrams in pieces: MSG_MORE and UDP_CORK (udp(7)). Only the application holds them."""

from __future__ import annotations

import errno
import socket as _std
from typing import NamedTuple

from usernet.client.description import Description
from usernet.errors import os_error
from usernet.sockets.cmsg import Steering

MORE = int(_std.MSG_MORE)
PAYLOAD_OCTETS_MAX = 65535 - 20 - 8  # RFC 791, RFC 768: maximum of a datagram


class Piece(NamedTuple):
    """The first part of an incomplete datagram; address and steering are those of the first piece."""

    data: bytes
    address: object
    steering: Steering | None


def held(box: Description, piece: Piece, flags: int) -> Piece | None:
    """The datagram that is complete with `piece`; None: incomplete. Linux: udp_sendmsg."""
    begun = box.begun
    if begun is not None:
        box.begun = None
        piece = begun._replace(data=begun.data + piece.data)
    if len(piece.data) > PAYLOAD_OCTETS_MAX:
        raise os_error(errno.EMSGSIZE)  # and the whole datagram is dropped
    if flags & MORE or box.corked:
        box.begun = piece
        return None
    return piece
