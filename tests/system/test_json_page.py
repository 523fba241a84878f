"""docs/commands.md, "What --json prints": names every field that the command line prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

import usernet

from .peers import KERNEL, PATIENCE_S, ROOT, STACK, Stack, wait_for


@pytest.fixture(scope="module")
def documented() -> dict[str, set[str]]:
    """{verb: the words in code on the page about it}."""
    page = (ROOT / "docs" / "commands.md").read_text().partition("## What --json prints")[2].partition("\n## ")[0]
    found: dict[str, set[str]] = {}
    for part in re.split(r"\n(?=`\w+`: )", page)[1:]:
        verb, *words = re.findall(r"`([^`]+)`", part)
        found[verb] = set(words)
    return found


def printed(stack: Stack, *arguments: str) -> list[dict]:
    text = stack.run(*arguments, "--json").stdout
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]
    return value if isinstance(value, list) else [value]


def fields(objects: list[dict]) -> Iterator[str]:
    return (key for each in objects for key in each)


def test_every_field_is_on_the_page(stack: Stack, documented) -> None:
    with (usernet.Stack(run_dir=stack.run_dir).socket(usernet.AF_INET, usernet.SOCK_STREAM) as listener,
          usernet.Stack(run_dir=stack.run_dir).socket(usernet.AF_INET, usernet.SOCK_STREAM) as client):
        listener.bind((STACK, 0))
        listener.listen()
        client.connect(listener.getsockname())
        client.sendall(b"x")
        stack.run("sabotage", "icmp", "kill")
        wait_for("icmp", lambda: stack.serves(icmp=2))
        stack.run("impair", "udp:ip", "--loss", "1%")
        status = printed(stack, "status")[0]
        objects = {
            "list": printed(stack, "list"),
            "events": printed(stack, "events"),
            "ss": [*printed(stack, "ss"), *printed(stack, "ss", "-i")],
            "why": printed(stack, "why"),
            "status": [status, *status["layers"].values(), status["switch"] or {}],
        }
        stack.run("impair", "--clear")
    assert stack.run("ping", "-c", "1", "-W", PATIENCE_S, KERNEL).returncode == 0
    missing = {verb: set(fields(found)) - documented.get(verb, set()) for verb, found in objects.items()}
    assert not any(missing.values()), missing
    assert {"counters", "log"} <= set(documented)
