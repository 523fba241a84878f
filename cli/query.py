"""Requests to the keeper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supervisor.control import Client


def query(folder: Path, op: str, **fields: object) -> Any:
    """Send one request to the keeper and return its answer."""
    with Client(folder) as client:
        return client.request(op, **fields)
