"""Records that the socket service makes of a socket: answers to applications, memberships for ip."""

from __future__ import annotations

import msgspec

from bus import messages
from bus.layer import Send
from layers.sockets.entry import Entry, Socket
from layers.sockets.operations import text_of
from layers.sockets.table import TRANSPORTS

_encode = msgspec.json.Encoder().encode


def reply(client: int, request: int, fields: dict[str, object]) -> Send:
    """REPLY: the request was carried out."""
    return client, messages.REPLY, _encode({"id": request, "errno": 0, **fields})


def refusal(client: int, request: int, number: int) -> Send:
    """REPLY with the errno for which a request was refused."""
    return client, messages.REPLY, _encode({"id": request, "errno": number})


def no_error(handle: int) -> bytes:
    """A SOCKET_ERROR with errno 0, which says that the results of `prepare` are no longer valid."""
    return messages.SocketError(handle, 0, messages.ORIGIN_LOCAL, 0, 0, 0, bytes(4), bytes(4), 0).pack()


def membership(handle: int, socket: Socket | None = None, request: int = 0) -> bytes:
    """MEMBERSHIP for ip: the groups of a socket; none for a closed one."""
    return messages.encode(messages.Membership(handle, socket.groups if socket else (), request))


def summary(entry: Entry) -> dict[str, object]:
    """What `list` says of a socket."""
    socket = entry.socket
    return {
        "handle": entry.handle,
        "type": "raw" if socket.raw else TRANSPORTS[socket.protocol].sockets,
        "pid": socket.pid,
        "local": [text_of(socket.local), socket.port],
        "peer": [text_of(socket.peer), socket.peer_port] if socket.peer else None,
        "queued": entry.outstanding,
        "drops": entry.drops,
    }
