"""Streams for so long, counted where they arrive.

transfer.py server ADDRESS PORT. transfer.py client ADDRESS PORT WAY SECONDS FLOWS: prints the Mbit/s of each flow, of
payload, from the server (`down`) or to it (`up`).
"""

import asyncio
import json
import socket
import struct
import sys
import time

CHUNK = 1 << 16
ANSWERED_S = 60  # an answer may be lost again and again
WAYS = ("up", "down")


def use_cubic(sock):
    """Whatever the machine's default is: like is compared with like."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


async def count(reader, seconds):
    """Mbit/s, from the first octet on."""
    begun = None
    octets, deadline = 0, time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            part = await asyncio.wait_for(reader.read(CHUNK), left)
        except TimeoutError:
            break
        if not part:
            break
        begun = begun or time.monotonic()
        octets += len(part)
    return octets * 8 / 1e6 / max(time.monotonic() - begun, 1e-3) if begun else 0.0


async def pour(writer, seconds):
    deadline = time.monotonic() + seconds + 0.5
    octets = bytes(range(256)) * (CHUNK // 256)
    try:
        while (left := deadline - time.monotonic()) > 0:
            writer.write(octets)
            await asyncio.wait_for(writer.drain(), left)
    except (TimeoutError, ConnectionError):
        pass


async def serve(address, port):
    async def answer(reader, writer):
        try:
            way, seconds = struct.unpack("!Bd", await reader.readexactly(9))
            if WAYS[way] == "down":
                await pour(writer, seconds)
            else:
                writer.write(struct.pack("!d", await count(reader, seconds)))
                while await asyncio.wait_for(reader.read(CHUNK), ANSWERED_S):
                    pass  # until the client has the answer, and hangs up
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass
        writer.transport.abort()

    server = await asyncio.start_server(answer, address, port, backlog=256, limit=1 << 20)
    use_cubic(server.sockets[0])  # which its connections take over
    print("ready", flush=True)
    await server.serve_forever()


async def flow(address, port, way, seconds):
    reader, writer = await asyncio.open_connection(address, port, limit=1 << 20)
    use_cubic(writer.get_extra_info("socket"))
    writer.write(struct.pack("!Bd", WAYS.index(way), seconds))
    if way == "down":
        got = await count(reader, seconds)
    else:
        pouring = asyncio.ensure_future(pour(writer, seconds + 60))
        (got,) = struct.unpack("!d", await asyncio.wait_for(reader.readexactly(8), seconds + 60))
        pouring.cancel()
    writer.transport.abort()
    return got


async def measure(address, port, way, seconds, flows):
    print(json.dumps(await asyncio.gather(*[flow(address, port, way, seconds) for _ in range(flows)])))


what, address, port, *rest = sys.argv[1:]
if what == "server":
    asyncio.run(serve(address, int(port)))
else:
    asyncio.run(measure(address, int(port), rest[0], float(rest[1]), int(rest[2])))
