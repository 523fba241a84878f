"""A headless Chromium that a test drives as a person does: it looks, clicks and types.

It speaks the Chrome DevTools protocol over two pipes (`--remote-debugging-pipe`): JSON messages, each followed by a
zero octet.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from .peers import PATIENCE_S

LOAD_S = 60.0  # until a browser has started on a busy machine


class Browser:
    """One page. `program`: the path of Chromium."""

    def __init__(self, program: str, profile: Path, url: str) -> None:
        its_input, self._input = os.pipe()
        self._output, its_output = os.pipe()
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}", "--window-size=1300,1000"]
        script = f'exec "$@" 3<&{its_input} 4>&{its_output} {its_input}<&- {its_output}>&-'  # it wants these numbers
        self._process = subprocess.Popen(["bash", "-c", script, "bash", *command], pass_fds=(its_input, its_output),
                                         stderr=subprocess.DEVNULL)
        os.close(its_input)
        os.close(its_output)
        self._received = b""
        self._number = 0
        self._session: dict[str, str] = {}
        target = self._ask("Target.createTarget", url=url)["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def close(self) -> None:
        """End it."""
        os.close(self._input)
        os.close(self._output)
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._input, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LOAD_S
        while True:
            while b"\0" not in self._received:
                assert select.select([self._output], [], [], deadline - time.monotonic())[0], f"no answer to {method}"
                octets = os.read(self._output, 1 << 16)
                assert octets, "the browser has ended"
                self._received += octets
            line, _, self._received = self._received.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of the first element that a CSS selector finds; empty: there is none."""
        return self.value(f"document.querySelector({json.dumps(selector)})?.textContent || ''")

    def shows(self, selector: str, part: str) -> None:
        """Wait until an element has this in its text."""
        deadline = time.monotonic() + LOAD_S
        while part not in self.text(selector):
            assert time.monotonic() < deadline, f"no {part!r} in {selector}: {self.text(selector)!r}"
            select.select([], [], [], 0.05)

    def click(self, selector: str, part: str = "", pressed_s: float = 0.0) -> None:
        """Click the middle of the first element that the selector finds and that has this in its text.

        The mouse button stays pressed for so long.
        """
        find = f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.textContent.includes({part!r}))"
        deadline = time.monotonic() + LOAD_S
        while not self.value(f"!!{find}"):
            assert time.monotonic() < deadline, f"no {selector} with {part!r}"
            select.select([], [], [], 0.05)
        x, y = self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({find}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            select.select([], [], [], pressed_s)

    def type(self, text: str) -> None:
        """Type into what has the focus, in place of what is there."""
        self.value("document.activeElement.select()")
        self._ask("Input.insertText", text=text)
