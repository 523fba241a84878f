"""A stack glued together in this process on a real TAP, the kernel at its other end.

Run it by `unshare -rn python -m tests.system.glued_tcp`.

The cores are the real ones; the socket service and the application are this module: an HTTP server on port 80 that
sends what the path asks for (`/BYTES`) and counts what is sent to it (PUT), and a client for the kernel's server. For
what has to be seen with the kernel's TCP as the peer and needs no processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

from bus import messages
from bus.messages import decode_socket_reply, encode
from bus.streams import StreamState
from tests.unit.glue import Stack
from usernet.pipe.streams import (
    ACCEPT_RECORD,
    ACCEPTED_HEADER,
    CLOSE_RECORD,
    READ_RECORD,
    RESET_RECORD,
    ROOM_RECORD,
    STREAM_END,
    STREAM_HEADER,
)

KERNEL, OURS = "10.0.0.1", "10.0.0.2"
LISTENER = 1
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


_BLOCK = bytes(i * 7 % 251 for i in range(251)) * 300


def pattern(offset: int, length: int) -> bytes:
    """Octets that tell their place."""
    return b"".join(_BLOCK[(offset + at) % 251 :][: min(65536, length - at)] for at in range(0, length, 65536))


class Connection:
    def __init__(self) -> None:
        self.received = bytearray()
        self.count = 0  # octets received
        self.wanted = self.written = self.limit = 0
        self.head = b""
        self.ended = self.closing = False
        self.error = 0
        self.body_left = -1


class Glued:
    def __init__(self) -> None:
        self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
        for command in ("link set lo up", f"address add {KERNEL}/24 dev tap0", "link set tap0 up"):
            subprocess.run(["ip", *command.split()], check=True)
        self.stack = Stack(OURS, "02:00:00:00:00:02")
        self.connections: dict[int, Connection] = {}
        self.accepted = 0
        self._ask(messages.SOCKET_SET, encode(StreamState(handle=LISTENER, request=1, port=80, bind=True, listen=128)))

    def _ask(self, kind: int, record: bytes) -> None:
        self.stack._asks("tcp", kind, record)

    def connect(self, handle: int, port: int) -> None:
        self.connections[handle] = Connection()
        self._ask(messages.SOCKET_SET, encode(StreamState(
            handle=handle, request=handle, peer=int(IPv4Address(KERNEL)), peer_port=port, connect=handle)))

    def turn(self, timeout: float = 0.05) -> None:
        stack = self.stack
        due = [core.next_wake for core in stack._cores.values() if core.next_wake is not None]
        wait = max(0.0, min([timeout, *(at - time.monotonic() for at in due)]))
        select.select([self.tap], [], [], wait)
        stack.now = time.monotonic()
        frames = []
        while len(frames) < 48:
            try:
                frames.append(os.read(self.tap, 70000))
            except BlockingIOError:
                break
        if frames:
            stack.takes(frames)
        stack.passes(0)
        self._hear()
        for frame in stack.sent():
            os.write(self.tap, frame)

    def _hear(self) -> None:
        while self.stack.told:
            told, self.stack.told = self.stack.told, []
            for _, kind, record in told:
                self._record(kind, record)

    def _record(self, kind: int, record: bytes) -> None:
        if kind == messages.SOCKET_REPLY:
            assert not decode_socket_reply(record).errno, record
        elif kind == messages.ACCEPTED:
            _, handle, number, *_ = ACCEPTED_HEADER.unpack_from(record)
            self.connections[handle] = Connection()
            self.accepted += 1
            self._ask(messages.ACCEPT, ACCEPT_RECORD.pack(LISTENER, 0, number, number + 129))
        elif kind == messages.ROOM:
            handle, _, _, _, limit = ROOM_RECORD.unpack(record)
            if handle in self.connections:
                self.connections[handle].limit = limit
                self._write(handle)
        elif kind == messages.STREAM:
            handle, flags, offset = STREAM_HEADER.unpack_from(record)
            if handle in self.connections:
                self._stream(handle, flags, offset, record[STREAM_HEADER.size :])
        elif kind == messages.STREAM_RESET:
            handle, number = RESET_RECORD.unpack(record)
            if handle in self.connections:
                self.connections[handle].error = number
                self._close(handle)

    def _stream(self, handle: int, flags: int, offset: int, octets: bytes) -> None:
        conn = self.connections[handle]
        assert offset == conn.count, (offset, conn.count)
        conn.count += len(octets)
        self._ask(messages.READ, READ_RECORD.pack(handle, 0, conn.count, conn.count))
        conn.ended |= bool(flags & STREAM_END)
        if handle >= 1 << 31:
            self._serve(handle, conn, octets)
        elif len(conn.received) < 4096:
            conn.received += octets[:4096]

    def _serve(self, handle: int, conn: Connection, octets: bytes) -> None:
        if conn.body_left > 0:
            conn.body_left -= len(octets)
        else:
            conn.received += octets
            if b"\r\n\r\n" in conn.received:
                head, _, rest = bytes(conn.received).partition(b"\r\n\r\n")
                conn.received.clear()
                method, path, *_ = head.split()
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                conn.wanted = int(path[1:] or b"0") if method == b"GET" else 3
                if method == b"PUT":
                    conn.body_left = int(lengths[0].split(b":")[1]) - len(rest)
                conn.head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % conn.wanted
        if conn.head and conn.body_left <= 0:
            self._write(handle)
        if conn.ended and not conn.head:
            self._close(handle)

    def _write(self, handle: int) -> None:
        conn = self.connections[handle]
        if not conn.head or conn.body_left > 0:
            return
        total = len(conn.head) + conn.wanted
        while conn.written < min(total, conn.limit):
            size = min(total, conn.limit, conn.written + 65536) - conn.written
            if conn.written < len(conn.head):
                octets = conn.head[conn.written :][:size]
            else:
                octets = pattern(conn.written - len(conn.head), size)
            flags = STREAM_END if conn.written + len(octets) == total else 0
            record = STREAM_HEADER.pack(handle, flags, conn.written) + octets
            conn.written += len(octets)
            self._ask(messages.STREAM, record)
        if conn.written == total:
            self._close(handle)

    def _close(self, handle: int) -> None:
        conn = self.connections.pop(handle)
        self._ask(messages.SOCKET_CLOSE, CLOSE_RECORD.pack(handle, -1, conn.written, conn.count))

    def while_running(self, *command: str, seconds: float = 60) -> str:
        """The output of a program of the kernel's end."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            self.turn()
        if process.poll() is None:
            process.kill()
        assert process.stdout is not None
        return process.stdout.read()


def main() -> None:
    """Fetch, put, many, by the kernel's curl; a line of figures each."""
    glued = Glued()
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    out = glued.while_running("curl", "-s", "-w", "%{http_code} %{size_download} %{speed_download}\n", "-o", "/tmp/o",
                              f"http://{OURS}/{size}")
    same = Path("/tmp/o").read_bytes() == pattern(0, size)
    print("get", out.strip(), same)
    out = glued.while_running("curl", "-s", "-T", "/tmp/o", "-w", "\n%{http_code} %{size_upload} %{speed_upload}\n",
                              f"http://{OURS}/x")
    print("put", out.strip().splitlines()[-1:])
    os.unlink("/tmp/o")
    fetch = f"for i in $(seq 50); do curl -s -o /dev/null http://{OURS}/100 || echo bad; done"
    out = glued.while_running("bash", "-c", fetch)
    print("many", repr(out))
    print(glued.stack.counted("tcp"))


if __name__ == "__main__":
    main()
