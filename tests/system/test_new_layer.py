"""A layer is one folder and one row: a made-up protocol, added to a copy of the tree by CONTRIBUTING.md's own words."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from .peers import ROOT, copy_product, wait_for

PROTOCOL = 253  # RFC 3692: for experiments
DOWN_LIMIT_S = 5.0


@pytest.fixture
def checkout(home: Path) -> Path:
    """A copy of the tree with the layer of CONTRIBUTING.md: its files, and its row before the socket service's."""
    tree = copy_product(home / "with-a-layer")
    page = (ROOT / "CONTRIBUTING.md").read_text()
    files = dict(re.findall(r"`(layers/shout/\w+\.py)`\n\n((?:    .*\n|\n)+)", page))
    assert set(files) == {"layers/shout/core.py", "layers/shout/counters.py", "layers/shout/__main__.py"}
    (tree / "layers/shout").mkdir()
    (tree / "layers/shout/__init__.py").write_text("")
    for path, text in files.items():
        (tree / path).write_text(re.sub(r"^    ", "", text, flags=re.M))
    (row,) = re.findall(r"^    (Layer\(\"shout\".*)\n", page, flags=re.M)
    table = tree / "bus/topology.py"
    text = table.read_text()
    before = '    Layer("sockets"'
    assert before in text
    table.write_text(text.replace(before, f"    {row}\n{before}"))
    return tree


def test_a_layer_of_a_made_up_protocol_boots_answers_restarts_and_goes_down_in_time(new_stack, checkout: Path) -> None:
    stack = new_stack(checkout).up()
    assert stack.status()["layers"]["shout"]["state"] == "up"
    with stack.kernel.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL) as peer:
        peer.settimeout(20)

        def answer(text: bytes) -> bytes:
            peer.sendto(text, ("10.0.0.2", 0))
            return peer.recv(2048)[20:]  # behind the IP header: raw(7)

        assert answer(b"is anybody there?") == b"IS ANYBODY THERE?"
        stack.run("sabotage", "shout", "kill")
        wait_for("its successor", lambda: stack.serves(shout=2))
        assert answer(b"still there?") == b"STILL THERE?"
        core = checkout / "layers/shout/core.py"
        core.write_text(core.read_text().replace(".upper()", ".title()"))
        stack.run("restart", "shout")
        assert answer(b"and now?") == b"And Now?"
        assert stack.counters("shout")["answered"] == 3
    said = stack.run("down").stdout
    assert float(re.findall(r"down in ([\d.]+) s", said)[0]) < DOWN_LIMIT_S
