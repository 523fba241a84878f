"""`completion`: what bash needs to complete the command line, generated from the parsers of all verbs."""

from __future__ import annotations

import argparse

from bus.runtime.sabotage import FAULTS
from bus.topology import LAYERS
from cli import main
from cli.main import OK

TEXT = "print a completion script for bash: source <(usernet completion)"
_SCRIPT = """\
_usernet() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} verb='' each words
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
        case $each in {verbs}) verb=$each; break ;; esac
    done
    if [[ $before == --name ]]; then
        words=$("${{COMP_WORDS[0]}}" list 2>/dev/null | cut -d ' ' -f 1)
    else
        case $verb in
            '') words='{top}' ;;
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _usernet usernet launcher.py ./launcher.py
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments."""


def run(given: argparse.Namespace) -> int:
    """Print the script."""
    print(script(), end="")
    return OK


def script() -> str:
    """A function for bash's programmable completion (bash(1)) and the commands that it is for."""
    verbs = {verb: _words(parser) for verb, parser in main.verb_parsers().items()}
    cases = "\n".join(f"            {verb}) words='{' '.join(words)}' ;;" for verb, words in verbs.items())
    return _SCRIPT.format(verbs="|".join(verbs), cases=cases, top=" ".join([*verbs, "--help", "--name", "--version"]))


def _words(parser: argparse.ArgumentParser) -> list[str]:
    words: list[str] = []
    for action in parser._actions:
        words += action.option_strings
        words += [str(choice) for choice in action.choices or ()]
        if action.metavar == "LAYER":
            words += LAYERS
        elif action.metavar == "FAULT":
            words += ["kill", "stop", *FAULTS]
    return words
