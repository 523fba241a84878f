"""grpc.py server ADDRESS PORT, which returns every message; grpc.py client ADDRESS PORT SENT RECEIVED."""

import asyncio
import sys

from grpclib.client import Channel, StreamStreamMethod
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

PART = 1 << 18


class Octets(CodecBase):
    """Messages as they are: what is tried is the transport."""

    __content_subtype__ = "octets"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


class Echo:
    async def talk(self, stream):
        async for message in stream:
            await stream.send_message(message)

    def __mapping__(self):
        return {"/Echo/Talk": Handler(self.talk, Cardinality.STREAM_STREAM, bytes, bytes)}


async def serve(address, port):
    server = Server([Echo()], codec=Octets())
    await server.start(address, port)
    print("ready", flush=True)
    await server.wait_closed()


async def exchange(address, port, sent, received):
    with open(sent, "rb") as file:
        parts = list(iter(lambda: file.read(PART), b""))
    channel = Channel(address, port, codec=Octets())
    async with StreamStreamMethod(channel, "/Echo/Talk", bytes, bytes).open() as stream:
        with open(received, "wb") as file:
            for number, part in enumerate(parts):
                await stream.send_message(part, end=number == len(parts) - 1)
                file.write(await stream.recv_message())
    channel.close()


what, address, port, *files = sys.argv[1:]
asyncio.run(serve(address, int(port)) if what == "server" else exchange(address, int(port), *files))
