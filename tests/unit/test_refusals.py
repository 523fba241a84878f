"""What a process hears whose connection the socket service refuses, because all places are taken."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

import pytest

from usernet.client import connection
from usernet.client.connection import Connection
from usernet.pipe.contract import open_poller

PATIENCE_S = 20


@pytest.mark.parametrize("kind", ["direct", "zmq"])
def test_who_gets_no_connection_hears_so_at_once(kind, tmp_path, monkeypatch):
    """It was told after five seconds, and with libzmq at the other end that there is no answer."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 3 * PATIENCE_S)
    (tmp_path / "sockets").mkdir()
    path = str(tmp_path / "sockets.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    service, client, over = open_poller(kind), open_poller("direct"), threading.Event()
    pull = service.pull(listener.detach(), 1 << 18, 1, lambda _: None)

    def serve() -> None:
        while not over.is_set():
            for descriptor, _ in service.epoll.poll(0.05):
                pull.read(descriptor)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        holder = client.push(path)
        while not holder.ready:
            holder.await_room(1)
        begun = time.monotonic()
        with pytest.raises(OSError, match=f"no place for another connection of process {os.getpid()}") as refused:
            Connection(tmp_path, "test")
        assert refused.value.errno == errno.EUSERS
        assert time.monotonic() - begun < PATIENCE_S
        assert holder.ready
    finally:
        over.set()
        thread.join()
        client.close()
        service.close()
