"""proxy.py KIND ADDRESS PORT TARGET TARGET_PORT: passes each connection on.

`threads` and `asyncio` pass it to the target; `connect` (RFC 9110 section 9.3.6) and `socks5` (RFC 1928) to whom the
client names. Half-closed connections go on in the other direction.
"""

import asyncio
import socket
import sys
import threading

PART = 1 << 16
BACKLOG = 64


def passing(source, destination):
    """By a thread for each direction."""
    buffer = memoryview(bytearray(PART))
    while count := source.recv_into(buffer):
        destination.sendall(buffer[:count])
    destination.shutdown(socket.SHUT_WR)


def both(client, target):
    with client, socket.create_connection(target) as server:
        back = threading.Thread(target=passing, args=(server, client))
        back.start()
        passing(client, server)
        back.join()


def serve_by_threads(own, target):
    with socket.create_server(own, backlog=BACKLOG) as listener:
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=both, args=(client, target), daemon=True).start()


async def to_the_target(reader, writer):
    return TARGET


async def by_connect(reader, writer):
    lines = await reader.readuntil(b"\r\n\r\n")
    method, authority, _ = lines.split(b" ", 2)
    assert method == b"CONNECT", lines
    host, _, port = authority.decode().rpartition(":")
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    return host, int(port)


async def by_socks5(reader, writer):
    _, methods = await reader.readexactly(2)
    await reader.readexactly(methods)
    writer.write(b"\x05\x00")  # no authentication
    version, command, _, kind = await reader.readexactly(4)
    assert (version, command, kind) == (5, 1, 1), (version, command, kind)  # CONNECT to an IPv4 address
    host = socket.inet_ntoa(await reader.readexactly(4))
    port = int.from_bytes(await reader.readexactly(2), "big")
    writer.write(b"\x05\x00\x00\x01" + bytes(6))
    return host, port


async def pass_on(reader, writer):
    while part := await reader.read(PART):
        writer.write(part)
        await writer.drain()
    writer.write_eof()


async def serve(own, whom):
    async def accepted(reader, writer):
        onward_reader, onward_writer = await asyncio.open_connection(*await whom(reader, writer))
        try:
            await asyncio.gather(pass_on(reader, onward_writer), pass_on(onward_reader, writer))
        finally:
            onward_writer.close()
            writer.close()

    server = await asyncio.start_server(accepted, *own, backlog=BACKLOG)
    print("ready", flush=True)
    await server.serve_forever()


kind, address, port, *TARGET = sys.argv[1:]
OWN, TARGET = (address, int(port)), (TARGET[0], int(TARGET[1]))
WHOM = {"asyncio": to_the_target, "connect": by_connect, "socks5": by_socks5}
if kind == "threads":
    serve_by_threads(OWN, TARGET)
else:
    asyncio.run(serve(OWN, WHOM[kind]))
