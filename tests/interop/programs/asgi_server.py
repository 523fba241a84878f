"""asgi_server.py ADDRESS PORT DIRECTORY [CERTIFICATE]: uvicorn with an ASGI application that gives and takes files.

With a certificate (and its key in the same file) over TLS.
"""

import os
import sys

import uvicorn

DIRECTORY = sys.argv[3]


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["method"] == "PUT":
        with open(os.path.join(DIRECTORY, "put"), "wb") as file:
            while True:
                message = await receive()
                file.write(message.get("body", b""))
                if not message.get("more_body"):
                    break
        await answer(send, [b"taken\n"])
    elif scope["path"] == "/data":
        with open(os.path.join(DIRECTORY, "data"), "rb") as file:
            await answer(send, iter(lambda: file.read(1 << 16), b""))
    else:
        await answer(send, [b"hello\n"])


async def answer(send, parts):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


class Announcing(uvicorn.Server):
    async def startup(self, *arguments, **options):
        await super().startup(*arguments, **options)
        print("ready", flush=True)


tls = {"ssl_certfile": sys.argv[4]} if len(sys.argv) > 4 else {}
Announcing(uvicorn.Config(application, host=sys.argv[1], port=int(sys.argv[2]), log_level="warning", backlog=256,
                          **tls)).run()
