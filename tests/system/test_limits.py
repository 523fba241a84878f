"""Applications that take all that there is: each gets its share, and what all have together survives crashes."""

from __future__ import annotations

import errno
import os
import signal
import sys

from layers.sockets.limits import SOCKETS_MAX

from .peers import ROOT, Stack, wait_for

HOGS = 5
# Opens sockets until that is refused, and binds each. Prints how many, and the errno.
HOG = """
import json, os, secrets, socket, sys, time
from pathlib import Path
from usernet.pipe.contract import Trust, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION, pack_frame, unpack_frame
from usernet.pipe.messages import HELLO, REPLY, REQUEST, RESUME, inbox_name

run_dir, address = Path(sys.argv[1]), sys.argv[2]
inbox = inbox_name(1 + secrets.randbelow(1 << 63))
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(run_dir / "sockets" / inbox))
listener.listen()
service = (run_dir / "sockets").stat().st_uid
poller = open_poller("direct", Trust(os.geteuid(), {os.geteuid(), service}))
pull = poller.pull(listener.detach(), MAX_FRAME_OCTETS, 16, lambda _: None)
push = poller.push(str(run_dir / "sockets.sock"))
sequence, replies, token = 0, [], ""


def hear():
    global number, token
    for descriptor, _ in poller.epoll.poll(0.1):
        if descriptor in poller.pushes:
            poller.pushes[descriptor].hear()
        for frame in pull.read(descriptor) or ():
            kind, _, to, _, records = unpack_frame(frame)
            if kind == HELLO:
                number, token = to, json.loads(records[0]).get("token", token)
            elif kind == REPLY:
                replies.extend(map(json.loads, records))
    push.flush()


def ask(requests):
    "The answers to so many at once."
    global sequence
    replies.clear()
    sequence += 1
    frame = pack_frame(REQUEST, number, 1, sequence, [json.dumps(each).encode() for each in requests])
    while not push.send(frame):
        hear()
    while len(replies) < len(requests):
        hear()
    return sorted(replies, key=lambda each: each["id"])


push.send(pack_frame(HELLO, 0, 1, 0, [json.dumps({"version": VERSION, "inbox": inbox, "done": 0,
                                                  "token": "mine"}).encode()]))
while token != "mine":
    hear()
push.send(pack_frame(RESUME, number, 1, 0, [b'{"first": 1, "done": 0}']))
bound = asked = refusal = 0
while not refusal:
    opened = ask([{"id": asked + each, "op": "socket", "type": "dgram"} for each in range(1, 65)])
    asked += 64
    refusal = next((each["errno"] for each in opened if each["errno"]), 0)
    handles = [each["handle"] for each in opened if not each["errno"]]
    if handles:
        answers = ask([{"id": asked + place, "op": "bind", "handle": handle, "address": address,
                        "port": 1024 + bound + place} for place, handle in enumerate(handles, 1)])
        asked += 64
        assert all(each["errno"] == 0 for each in answers), answers
        bound += len(handles)
print(bound, refusal, flush=True)
while True:
    hear()
"""


def echoes(stack: Stack) -> bool:
    """Whether an application that comes now can have a socket, and use it."""
    with stack.bound() as app:
        app.sendto(b"to itself", app.getsockname())
        return app.recv(100) == b"to itself"


def test_applications_that_open_sockets_for_ever_get_emfile_and_a_crash_loses_no_socket(new_stack) -> None:
    stack = new_stack().up()
    free, told = SOCKETS_MAX, []
    for number in range(1, HOGS + 1):
        hog = stack.spawn([sys.executable, "-c", HOG, str(stack.run_dir), f"127.0.0.{number}"],
                          env=stack.env | {"PYTHONPATH": str(ROOT)})
        told.append(tuple(map(int, hog.stdout.readline().split())))
        assert told[-1] == (free // 2, errno.EMFILE)
        free -= free // 2
    assert echoes(stack)
    for layer in ("sockets", "udp", "sockets", "udp"):
        pid, incarnation = stack.pids()[layer], stack.incarnations()[layer]
        os.kill(pid, signal.SIGKILL)
        wait_for(layer, lambda: stack.serves(**{layer: incarnation + 1}))  # noqa: B023
        assert echoes(stack)
    hung = [event["detail"] for event in stack.events() if "it hung" in event.get("detail", "")]
    assert not hung, hung
    wait_for("the sockets of the echoes to be closed", lambda: (found := stack.counters("sockets"))["sockets_opened"]
             - found["sockets_closed"] == sum(count for count, _ in told))
    found = stack.counters("sockets")
    assert found["state_unreadable"] == found["bus_state_damaged"] == 0
    assert {stack.incarnations()[layer] for layer in ("sockets", "udp")} == {3}
