"""A UDP echo server that needs only pyzmq and nothing of usernet: an implementation of docs/app-protocol.md.

python examples/zeromq_echo.py ADDRESS:PORT        (with a stack running)

It continues after the socket service is killed, because both ends number their frames and keep the last of them.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import sys
import tempfile
from collections import deque

import zmq

SEND, DATAGRAM, HELLO, RESUME, REQUEST, REPLY, CREDIT, REFUSAL = 1, 2, 128, 129, 130, 131, 132, 135
VERSION = 2  # of the protocol
FRAME = struct.Struct("<BBHIQQ")  # version, kind, count of records, incarnation, id, sequence number
# Handle, family, flags, TTL, TOS, port, interface, the peer's address, the own address: of received and sent datagrams
DATAGRAM_HEADER = struct.Struct("<IBBBBHH4s4s")
GONE_CHECK_MS = 500  # the stack's end removes our inbox
DATAGRAM_OVERHEAD, CREDIT_BATCH, CREDIT_TOTAL = 256, 100_000, 1 << 31


def run_dir() -> str:
    """The run directory of the stack."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    base = f"{base}/usernet" if base else f"{tempfile.gettempdir()}/usernet-{os.getuid()}"
    return os.environ.get("USERNET_DIR") or f"{base}/{os.environ.get('USERNET_NAME', 'default')}"


class Application:
    """Two ZeroMQ sockets, and the positions of both sides."""

    def __init__(self, directory: str) -> None:
        self.id = 0  # assigned by the service
        name = f"app-{1 + secrets.randbelow((1 << 64) - 1):x}.sock"
        context = zmq.Context()
        self.inbox, self.outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self.inbox.set(zmq.RCVHWM, 0)
        self.outbox.set(zmq.SNDHWM, 64)
        self.outbox.set(zmq.RECONNECT_IVL, 1)
        if not os.path.exists(f"{directory}/sockets.sock"):
            raise OSError(f"no usernet stack is running (looked in {directory})")
        self.path = f"{directory}/sockets/{name}"
        self.inbox.bind(f"ipc://{self.path}")
        self.outbox.connect(f"ipc://{directory}/sockets.sock")
        self.sent = self.done = self.incarnation = 0
        self.resumed = False
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=512)
        self.unanswered: dict[int, dict] = {}
        self.answers: dict[int, dict] = {}
        self.requests = 0
        self.handle = 0  # handle of the socket
        self.greet(HELLO, {"version": VERSION, "inbox": name, "done": 0})
        while not self.incarnation:
            self.receive()

    def frame(self, kind: int, sequence: int, record: bytes) -> bytes:
        return FRAME.pack(VERSION, kind, 1, 1, self.id, sequence) + struct.pack("<I", len(record)) + record

    def greet(self, kind: int, fields: dict) -> None:
        self.outbox.send(self.frame(kind, 0, json.dumps(fields).encode()))

    def send(self, kind: int, record: bytes) -> None:
        self.sent += 1
        self.kept.append((self.sent, self.frame(kind, self.sent, record)))
        self.outbox.send(self.kept[-1][1])

    def request(self, op: str, **fields: object) -> dict:
        """Send a request and wait for the answer; datagrams that arrive meanwhile are dropped."""
        self.requests += 1
        number = self.requests
        self.unanswered[number] = {"id": number, "op": op, **fields}
        self.send(REQUEST, json.dumps(self.unanswered[number]).encode())
        while number not in self.answers:
            self.receive()
        answer = self.answers.pop(number)
        if answer["errno"]:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer

    def receive(self) -> list[bytes]:
        """Wait for a frame; returns the DATAGRAM records in it."""
        while not self.inbox.poll(GONE_CHECK_MS):
            if not os.path.exists(self.path):
                raise OSError("the stack is gone")
        frame = self.inbox.recv()
        _, kind, count, incarnation, number, sequence = FRAME.unpack_from(frame)
        records, at = [], FRAME.size + 4 * count
        for length in struct.unpack_from(f"<{count}I", frame, FRAME.size):
            records.append(frame[at : at + length])
            at += length
        if not self.id:
            if kind == REFUSAL:
                sys.exit(json.loads(records[0])["error"])
            self.id = number
        if number != self.id or incarnation < self.incarnation:
            return []
        if sequence == 0:
            self.greeted(kind, incarnation, json.loads(records[0]))
        # otherwise a repetition, or too early
        elif sequence == self.done + 1 or (sequence > self.done and self.resumed):
            self.done = sequence
            if kind == DATAGRAM:
                return records
            for answer in map(json.loads, records if kind == REPLY else []):
                if self.unanswered.pop(answer["id"], None):
                    self.answers[answer["id"]] = answer
        return []

    def greeted(self, kind: int, incarnation: int, fields: dict) -> None:
        """The service has sent HELLO or RESUME."""
        self.resumed = kind == RESUME
        if self.resumed:
            self.done = max(self.done, fields["first"] - 1)
        elif kind == HELLO:
            self.incarnation = incarnation
            kept = [(number, frame) for number, frame in self.kept if number > fields["done"]]
            self.greet(RESUME, {"first": kept[0][0] if kept else self.sent + 1, "done": self.done})
            for _, frame in kept:
                self.outbox.send(frame)
            for request in list(self.unanswered.values()):  # executed once, even if sent repeatedly
                self.send(REQUEST, json.dumps(request).encode())
            self.send(CREDIT, struct.pack("<II", self.handle, CREDIT_TOTAL))  # nothing is queued here


def main(local: str) -> None:
    address, _, port_text = local.rpartition(":")
    application = Application(run_dir())
    handle = application.handle = application.request("socket", type="dgram")["handle"]
    bound = application.request("bind", handle=handle, address=address, port=int(port_text))
    print(f"echoing at {bound['address']}:{bound['port']}", flush=True)
    consumed = 0
    while True:
        for record in application.receive():
            _, family, _, _, _, port, _, peer, own = DATAGRAM_HEADER.unpack_from(record)
            payload = record[DATAGRAM_HEADER.size :]
            head = DATAGRAM_HEADER.pack(handle, family, 0, 0, 0, port, 0, peer, own)
            application.send(SEND, head + payload)
            consumed += len(payload) + DATAGRAM_OVERHEAD
            if consumed > CREDIT_BATCH:
                application.send(CREDIT, struct.pack("<II", handle, consumed))
                consumed = 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError, zmq.ZMQError) as error:
        sys.exit(f"zeromq_echo: {error}")
