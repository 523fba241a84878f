"""Programs that measure an HTTP server: each function is a role of `python -m bench.load`."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.http_server import serve
from bench.load import across_veth

_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_FAILED = re.compile(r".*(?:Socket errors|Non-2xx).*")


def http_server(address: str, port: str) -> None:
    """The server on the stack, which does not know it."""
    os.execv(sys.executable, [sys.executable, "-m", "usernet", "-m", "bench.http_server", address, port])


def wrk(address: str, port: str, connections: str, seconds: str) -> dict:
    """wrk(1) asks a server on connections that stay, each for the next answer when it has one."""
    printed = subprocess.run(["wrk", "-t", "1", "-c", connections, "-d", f"{seconds}s", f"http://{address}:{port}/"],
                             text=True, capture_output=True, check=True).stdout
    rate, failed = _RATE.search(printed), _FAILED.search(printed)
    if rate is None or failed:
        raise RuntimeError(f"wrk did not get all answers:\n{printed}")
    return {"per_s": float(rate[1])}


def veth_wrk(connections: str, seconds: str) -> dict:
    """The same with the kernel at both ends, through a veth pair."""
    return across_veth(lambda address, port: asyncio.run(serve(address, port)),
                       lambda address, port: wrk(address, port, connections, seconds))


ROLES: dict[str, Callable[..., Any]] = {"http-server": http_server, "wrk": wrk, "veth-wrk": veth_wrk}
