"""A host on the cable that is nobody's TCP: it sends what segments it likes, from its own address or another's."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from tests.tcpcases.octets import IPV4, Tcp, checksum, ethernet, parse_tcp, tcp

from .peers import PATIENCE_S, STACK, Stack, wait_for

ADDRESS = "10.0.0.66"
UNDER_WAY_MAX = 400  # frames between us and link: the kernel queues 1000 for a TAP's reader
TARGET = IPv4Address(STACK)


class Attacker:
    """`address` is its own; frames to it come to the kernel's end, which ignores them."""

    def __init__(self, stack: Stack, address: str = ADDRESS) -> None:
        self.stack, self.address = stack, IPv4Address(address)
        self.cable = stack.kernel.packet()
        self.mac = self.cable.getsockname()[4]
        self.stack_mac = bytes.fromhex(stack.mac.replace(":", ""))
        stack.run("neighbor", "add", address, self.mac.hex(":"))

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.cable.close()
        self.stack.run("neighbor", "del", self.address)

    def segment(self, source_port: int, port: int, flags: str, seq: int, ack: int = 0, payload: bytes = b"",
                window: int = 65535, source: IPv4Address | None = None, **options: tuple) -> bytes:
        """A frame with a segment to the stack."""
        made = Tcp(source or self.address, TARGET, source_port, port, flags, seq % (1 << 32), ack % (1 << 32), window,
                   payload, options)
        return ethernet(self.stack_mac, self.mac, IPV4, tcp(made))

    def send(self, frames: Iterable[bytes]) -> int:
        """Send them no faster than link takes them; how many."""
        before, number = self.stack.counters("link")["frames_in"], 0
        for number, frame in enumerate(frames, 1):
            self.cable.send(frame)
            if number % (UNDER_WAY_MAX // 2) == 0:
                self._wait(before + number - UNDER_WAY_MAX // 2)
        self._wait(before + number)
        return number

    def _wait(self, frames: int) -> None:
        wait_for("link to take the frames", lambda: self.stack.counters("link")["frames_in"] >= frames)

    def heard(self, timeout_s: float = PATIENCE_S) -> Iterator[Tcp]:
        """The segments that the stack sends to this address, until none has come for so long."""
        self.cable.settimeout(timeout_s)
        while True:
            try:
                frame, origin = self.cable.recvfrom(1 << 17)
            except TimeoutError:
                return
            if origin[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00":
                said = parse_tcp(frame[14:])
                if said is not None and said.destination == self.address:
                    yield said

    def open(self, port: int, ports: Iterable[int], window: int, **options: tuple) -> dict[int, Tcp]:
        """Connections from `ports`: the SYN-ACK of each. Their windows are `window` from the last ACK on."""
        answers: dict[int, Tcp] = {}
        for batch in _batches(list(ports), 100):
            self.send(self.segment(each, port, "S", each, **options) for each in batch)
            for said in self.heard():
                if set(said.flags) == set("S."):
                    answers[said.destination_port] = said
                if all(each in answers for each in batch):
                    break
            self.send(self.segment(each, port, ".", each + 1, answers[each].seq + 1, window=window) for each in batch)
        return answers


def _batches(items: list[int], size: int) -> Iterator[list[int]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def mutated(frame: bytes, rng: random.Random) -> bytes:
    """A segment with a few octets of its TCP part changed; mostly with the right checksum, so that it gets in."""
    head, octets = frame[:34], bytearray(frame[34:])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(min(len(octets), rng.choice((20, 60))))
        match rng.randrange(4):
            case 0:
                octets[at] ^= 1 << rng.randrange(8)
            case 1:
                octets[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                octets[at : at + 4] = rng.randbytes(4)
            case 3:
                octets[12] = octets[12] & 15 | rng.randrange(16) << 4
    if rng.random() < 0.9:
        octets[16:18] = b"\0\0"
        octets[16:18] = checksum(head[26:34] + b"\0\6" + len(octets).to_bytes(2) + octets).to_bytes(2)
    return head + bytes(octets)


def resident(stack: Stack) -> int:
    """Octets of memory of all layers, shared pages counted in parts (PSS)."""
    total = 0
    for pid in stack.pids().values():
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    return total


def processor_s(stack: Stack) -> float:
    """Seconds of processor time that all layers have used."""
    total = 0
    for pid in stack.pids().values():
        with open(f"/proc/{pid}/schedstat") as file:
            total += int(file.read().split()[0])
    return total / 1e9
