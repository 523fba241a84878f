"""Programs of the same user that would speak for others, crowd them out, or kill the socket service: a real service."""

from __future__ import annotations

import os
import socket as std
import subprocess
import sys

import pytest
from usernet_service import ADDRESS, REPOSITORY, Service

from bus.config import StackConfig
from bus.durable import layout
from bus.durable.journal import Journal
from bus.runtime.clients import Clients
from supervisor.resources import Resources
from usernet.client.connection import Connection
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import pack_frame
from usernet.pipe.messages import HELLO

# Says, in the name of the client argv[2]: I repeat from number 1000 on; goodbye, whatever number is next.
FORGER = """
import sys
from usernet.pipe.contract import open_poller
from usernet.pipe.frame import pack_frame
poller = open_poller("direct")
push = poller.push(sys.argv[1])
push.send(pack_frame(129, int(sys.argv[2]), 1, 0, [b'{"first": 1000, "done": 0}']))
for sequence in range(1, 30):
    push.send(pack_frame(134, int(sys.argv[2]), 1, sequence, []))
while push.waiting or not push.open:
    push.await_room(0.05)
"""


@pytest.fixture(scope="module")
def service():
    """With plain sockets as pipes: libzmq does not tell who sent a message (docs/security.md)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USERNET_PIPES", "direct")
        made = Service()
        yield made
        made.down()


def test_nobody_speaks_in_anothers_name(service):
    connection = Connection(service.run_dir, "test")
    box = connection.open_socket("dgram")
    forged = subprocess.run([sys.executable, "-c", FORGER, str(service.run_dir / "sockets.sock"), str(connection.id)],
                            cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=30)
    assert forged.returncode == 0, forged.stderr
    connection.request("bind", handle=box.handle, address=ADDRESS, port=5995)
    assert [ADDRESS, 5995] in [each["local"] for each in connection.request("list", after=0)["sockets"]]
    connection.close()


def test_an_inbox_that_is_a_symbolic_link_is_refused(service):
    """Else the service could be made to speak to any socket that it can reach."""
    with std.socket(std.AF_UNIX) as elsewhere:
        elsewhere.bind(str(service.run_dir / "elsewhere.sock"))
        elsewhere.listen()
        elsewhere.setblocking(False)
        number = (1 << 32) + 77
        (service.run_dir / "sockets" / f"app-{number:x}.sock").symlink_to(service.run_dir / "elsewhere.sock")
        poller = open_poller("direct")
        push = poller.push(str(service.run_dir / "sockets.sock"))
        push.send(pack_frame(HELLO, number, 1, 0, [b'{"version": 1, "inbox": "x", "done": 0}']))
        while push.waiting or not push.open:
            push.await_room(0.05)
        Connection(service.run_dir, "test").close()  # what was sent before is heard by now
        poller.close()
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_who_sends_a_second_record_that_kills_is_not_heard_any_more():
    memory_fd = layout.create("test")
    durable = layout.Memory(memory_fd)
    config = StackConfig(name="t", run_dir="/nowhere", address=1, prefix=24, mac=bytes(6))
    clients = Clients(None, config, open_poller("direct"), 7, Journal(durable), durable, [], {}, {})
    clients.offended(1000)
    assert not clients.is_barred(1000)
    for other in range(1, layout.OFFENDERS_MAX):
        clients.offended(other)
    clients.offended(1000)
    assert clients.is_barred(1000)
    assert not clients.is_barred(1)
    os.close(memory_fd)


def test_a_request_that_is_longer_than_the_line_is_refused_and_kills_nobody(tmp_path):
    resources = Resources("arp", tmp_path)
    answers: list[dict] = []
    assert resources.ask({"op": "x" * 70_000}, answers.append) == ""
    assert "octets" in answers[0]["error"]
    assert resources.ask({"op": "list"}, answers.append)
    resources.listener.close()
    os.close(resources.memory_fd)
