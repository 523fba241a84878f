"""Requests to the keeper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supervisor.control import ANSWER_TIMEOUT_S, Client


def query(folder: Path, op: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **fields: object) -> Any:
    """Send one request to the keeper and return its answer, as supervisor.control.Client.request."""
    with Client(folder, timeout_s) as client:
        return client.request(op, **fields)
