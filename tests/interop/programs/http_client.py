"""http_client.py LIBRARY URL SENT RECEIVED: PUT the file SENT to URL/put, GET URL/data into RECEIVED."""

import asyncio
import sys
from pathlib import Path

library, url, sent, received = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
TIMEOUT_S = 60


def by_urllib():
    import shutil
    import urllib.request

    with sent.open("rb") as body:
        request = urllib.request.Request(f"{url}/put", body, {"Content-Length": str(sent.stat().st_size)}, method="PUT")
        urllib.request.urlopen(request, timeout=TIMEOUT_S).read()
    with urllib.request.urlopen(f"{url}/data", timeout=TIMEOUT_S) as answer, received.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 18)


def by_requests():
    import requests

    with requests.Session() as session, sent.open("rb") as body, received.open("wb") as file:
        session.put(f"{url}/put", data=body, timeout=TIMEOUT_S).raise_for_status()
        with session.get(f"{url}/data", stream=True, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            for part in answer.iter_content(1 << 18):
                file.write(part)


def by_httpx():
    import httpx

    with httpx.Client(timeout=TIMEOUT_S) as client, sent.open("rb") as body, received.open("wb") as file:
        length = {"Content-Length": str(sent.stat().st_size)}
        client.put(f"{url}/put", content=iter(lambda: body.read(1 << 18), b""), headers=length).raise_for_status()
        with client.stream("GET", f"{url}/data") as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                file.write(part)


def by_aiohttp():
    import aiohttp

    async def exchange():
        async with aiohttp.ClientSession() as session:
            with sent.open("rb") as body:
                length = {"Content-Length": str(sent.stat().st_size)}
                async with session.put(f"{url}/put", data=body, headers=length) as answer:
                    answer.raise_for_status()
            async with session.get(f"{url}/data") as answer:
                answer.raise_for_status()
                with received.open("wb") as file:
                    async for part in answer.content.iter_chunked(1 << 18):
                        file.write(part)

    asyncio.run(exchange())


globals()[f"by_{library}"]()
