"""The load of streams itself, with sockets of the kernel: what it takes for lost, and that it loses nothing itself."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import streams
from tests.faults.flows import ANSWERS, Book

SOON_S, PATIENCE_S = 0.02, 0.5
DEADLINE_S = 10.0


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    """Of a flow whose receiver looks every SOON_S."""
    monkeypatch.setattr(streams, "PATIENCE_S", PATIENCE_S)
    return Book(tmp_path, "bulk-in")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection; reading from the first one waits for SOON_S."""
    first, second = socket.socketpair()
    with first, second:
        first.settimeout(SOON_S)
        yield first, second


def send_block(sender: socket.socket, book: Book) -> None:
    """The next one."""
    sender.sendall(streams.block(book.next(time.monotonic())))


def test_a_connection_over_which_nothing_is_sent_for_long_is_not_lost(pair, book):
    """As at the end of a campaign, whose load is paused until the other flows have their answers."""
    receiver, sender = pair
    looks = 0

    class Counting:
        """Counts the time-outs."""

        def recv_into(self, view: memoryview) -> int:
            nonlocal looks
            try:
                return receiver.recv_into(view)
            except TimeoutError:
                looks += 1
                raise

    comparing = threading.Thread(target=streams._compare, args=(Counting(), book))
    comparing.start()
    for _ in range(2):
        send_block(sender, book)
        so_far, deadline, until = looks, time.monotonic() + DEADLINE_S, time.monotonic() + PATIENCE_S + 0.1
        while (looks < so_far + 3 or time.monotonic() < until) and comparing.is_alive() and time.monotonic() < deadline:
            time.sleep(SOON_S / 4)
        assert comparing.is_alive()
    sender.close()
    comparing.join(DEADLINE_S)
    assert (book.cells[ANSWERS], book.oddities()) == (2, [])


def test_a_connection_over_which_a_block_does_not_come_is_lost(pair, book):
    receiver, sender = pair
    send_block(sender, book)
    book.next(time.monotonic())
    with pytest.raises(TimeoutError):
        streams._compare(receiver, book)
    assert book.cells[ANSWERS] == 1


def test_an_answer_that_finds_no_room_is_sent_later(pair):
    caller, server = pair
    server.setblocking(False)
    filling = 0
    try:
        while True:
            filling += server.send(bytes(4096))
    except BlockingIOError:
        pass
    with selectors.DefaultSelector() as selector:
        key = selector.register(server, selectors.EVENT_READ, bytearray(b"answer"))
        streams._pay(key, selector)
        assert selector.select(0) == []
        got = b""
        while len(got) < filling:
            got += caller.recv(filling - len(got))
        ((key, happened),) = selector.select(DEADLINE_S)
        assert happened == selectors.EVENT_WRITE
        streams._pay(key, selector)
        assert (caller.recv(100), selector.get_key(server).events) == (b"answer", selectors.EVENT_READ)
