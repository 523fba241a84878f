"""websocket.py server ADDRESS PORT, which returns every message; websocket.py client ADDRESS PORT SENT RECEIVED."""

import asyncio
import sys

import websockets

PART = 1 << 18


async def serve(address, port):
    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(echo, address, port, max_size=None, compression=None):
        print("ready", flush=True)
        await asyncio.Future()


async def exchange(address, port, sent, received):
    with open(sent, "rb") as file:
        parts = list(iter(lambda: file.read(PART), b""))
    async with websockets.connect(f"ws://{address}:{port}", max_size=None, compression=None, open_timeout=30) as there:
        async def send():
            for part in parts:
                await there.send(part)

        sending = asyncio.ensure_future(send())
        with open(received, "wb") as file:
            for _ in parts:
                file.write(await there.recv())
        await sending


what, address, port, *files = sys.argv[1:]
asyncio.run(serve(address, int(port)) if what == "server" else exchange(address, int(port), *files))
