"""The other end of the subject's cable: a station in raw Ethernet frames, without a TCP of its own.

It answers ARP for every address of the network but the subject's, so that each case has a peer's address to itself, and
hands what comes to that address to the judge of the case. A cable is anything with `send`, `receive` and `close`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Protocol

import zmq

from bus.wire import SWITCH_SOCKET, pack, port_name, unpack

from .octets import ARP, BROADCAST, IPV4, Tcp, arp, ethernet, parse_tcp

FRAME_OCTETS_MAX = 1 << 17
LOOK_S = 0.2  # how often a thread that waits for frames looks whether it is to end


class Cable(Protocol):
    """Whole Ethernet frames, without check sequence; `receive` waits for some, a moment at most."""

    def send(self, frame: bytes) -> None: ...

    def receive(self) -> list[bytes]: ...

    def close(self) -> None: ...


class Tap:
    """The far side of a TAP: what the kernel sends to the interface is read here."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, frame: bytes) -> None:
        os.write(self._descriptor, frame)

    def receive(self) -> list[bytes]:
        if not select.select([self._descriptor], [], [], LOOK_S)[0]:
            return []
        return [os.read(self._descriptor, FRAME_OCTETS_MAX)]

    def close(self) -> None:
        os.close(self._descriptor)


class WirePort:
    """A port of a virtual wire (bus/wire.py), beside the stack's: the switch finds it by its socket's file."""

    NUMBER = 0x7CA5E5

    def __init__(self, directory: Path) -> None:
        self._context = zmq.Context()
        self.inbox, self._outbox = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        for each in (self.inbox, self._outbox):
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.SNDHWM if each is self._outbox else zmq.RCVHWM, 0)
        path = directory / port_name(self.NUMBER)
        made = path.with_suffix(".new")  # a port listens before its file has its name
        self.inbox.bind(f"ipc://{made}")
        made.rename(path)
        self._outbox.connect(f"ipc://{directory / SWITCH_SOCKET}")
        self._lock = threading.Lock()
        self._outbox.send(pack(self.NUMBER, 0, 0, []))

    def send(self, frame: bytes) -> None:
        with self._lock:
            self._outbox.send(pack(self.NUMBER, 0, 0, [frame]))

    def receive(self) -> list[bytes]:
        if not self.inbox.poll(int(LOOK_S * 1000)):
            return []
        return unpack(self.inbox.recv()).frames

    def close(self) -> None:
        self._context.destroy(linger=0)


class Station:
    """Reads the cable in a thread. `subject`: the subject's address in `network`."""

    MAC = bytes.fromhex("02005e7ca5e5")

    def __init__(self, cable: Cable, network: IPv4Network, subject: IPv4Address) -> None:
        self._cable, self._network, self._subject = cable, network, subject
        self._subject_mac = BROADCAST
        self._known = threading.Event()
        self._conversations: dict[IPv4Address, queue.SimpleQueue[tuple[float, Tcp]]] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="station", daemon=True)
        self._reader.start()

    def find_subject(self, within_s: float = 10.0) -> None:
        """Ask for the subject's MAC address until it answers; TimeoutError where it does not."""
        deadline = time.monotonic() + within_s
        asker = self._network[-2]
        request = arp(1, self.MAC, asker, bytes(6), self._subject)
        while not self._known.wait(0.05):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._subject} does not answer ARP")
            self._cable.send(ethernet(BROADCAST, self.MAC, ARP, request))

    def converse(self, address: IPv4Address) -> queue.SimpleQueue[tuple[float, Tcp]]:
        """What comes to `address` from now on: segments, each with when it came (CLOCK_MONOTONIC)."""
        arrivals = self._conversations[address] = queue.SimpleQueue()
        return arrivals

    def send(self, packet: bytes) -> None:
        """An IPv4 packet, to the subject."""
        self._cable.send(ethernet(self._subject_mac, self.MAC, IPV4, packet))

    def close(self) -> None:
        """Stop reading, and let go of the cable."""
        self._ended = True
        self._reader.join()
        self._cable.close()

    def _read(self) -> None:
        while not self._ended:
            for frame in self._cable.receive():
                kind = int.from_bytes(frame[12:14], "big")
                if kind == ARP and len(frame) >= 42:
                    self._take_arp(frame[14:42])
                elif kind == IPV4 and (segment := parse_tcp(frame[14:])) is not None:
                    with contextlib.suppress(KeyError):
                        self._conversations[segment.destination].put((time.monotonic(), segment))

    def _take_arp(self, message: bytes) -> None:
        operation, sender_mac = int.from_bytes(message[6:8], "big"), message[8:14]
        sender, target = IPv4Address(message[14:18]), IPv4Address(message[24:28])
        if sender == self._subject:
            self._subject_mac = sender_mac
            self._known.set()
            if operation == 1 and target != self._subject and target in self._network:
                reply = arp(2, self.MAC, target, sender_mac, sender)
                self._cable.send(ethernet(sender_mac, self.MAC, ARP, reply))
