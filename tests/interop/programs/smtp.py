"""smtp.py server ADDRESS PORT FILE, which keeps the messages' bodies; smtp.py client ADDRESS PORT FILE: sends it."""

import base64
import smtplib
import sys

what, address, port, path = sys.argv[1:]
LIMIT = 1 << 30


def serve():
    import asyncio

    from aiosmtpd.controller import UnthreadedController
    from aiosmtpd.smtp import SMTP

    class Keep:
        async def handle_DATA(self, server, session, envelope):
            body = envelope.content.partition(b"\r\n\r\n")[2]
            with open(path, "wb") as file:
                file.write(base64.b64decode(body))
            return "250 kept"

    class Large(UnthreadedController):
        def factory(self):
            return SMTP(self.handler, data_size_limit=LIMIT)

    loop = asyncio.new_event_loop()
    controller = Large(Keep(), hostname=address, port=int(port), loop=loop)
    controller.begin()
    print("ready", flush=True)
    loop.run_forever()


def deliver():
    with open(path, "rb") as file:
        body = base64.encodebytes(file.read()).decode()
    with smtplib.SMTP(address, int(port), timeout=120) as server:
        server.sendmail("one@example.org", ["other@example.org"], f"Subject: octets\r\n\r\n{body}")


serve() if what == "server" else deliver()
