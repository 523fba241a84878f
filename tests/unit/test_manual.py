"""The manual page and the completion are what the parsers make of them, and man and bash take them."""

from __future__ import annotations

import subprocess

import pytest

from cli import completion, main, manual

COMPLETE = """
{script}
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_usernet
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_the_manual_page_is_the_one_that_the_parsers_make() -> None:
    assert manual.PAGE.read_text() == manual.page(), "python -m cli.manual brings it up to date"


def test_the_manual_page_tells_of_every_verb_and_option() -> None:
    page = manual.page()
    for verb, parser in main.verb_parsers().items():
        section = page.partition(f".SS {verb}\n")[2].partition("\n.S")[0].replace("\\-", "-")
        for action in parser._actions:
            assert action.dest in ("help", "name") or all(option in section for option in action.option_strings), verb


@pytest.mark.parametrize(("words", "expected"), [
    ("usernet sab", {"sabotage"}),
    ("usernet --ver", {"--version"}),
    ("usernet restart ud", {"udp"}),
    ("usernet sabotage udp lo", {"loop"}),
    ("usernet --name x status --j", {"--json"}),
    ("usernet up --pi", {"--pipes"}),
    ("./launcher.py up -q --no", {"--no-offload"}),
])
def test_bash_completes(words: str, expected: set[str]) -> None:
    program = COMPLETE.format(script=completion.script(), words=words)
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""
