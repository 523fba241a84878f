"""The manual page usernet(1), generated from the parsers of all verbs: `python -m cli.manual` updates it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from cli import main
from usernet import __version__

PAGE = Path(__file__).resolve().parent.parent / "docs" / "usernet.1"
_TAIL = r""".SH ENVIRONMENT
.TP
.B USERNET_NAME
name of the stack, unless \-\-name gives one
.TP
.B USERNET_DIR
run directory of the stack, unless \-\-name gives a name
.TP
.B USERNET_PIPES
zmq or direct: what joins an application to the stack
.SH FILES
.TP
.I $XDG_RUNTIME_DIR/usernet/NAME
run directory, with the sockets of a stack; without the variable in the directory for temporary files
.TP
.I $XDG_STATE_HOME/usernet/NAME
records that crashed a layer twice, and with \-\-record\-crashes recordings of crashes
.SH SEE ALSO
docs/commands.md in the repository;
.BR ip (8),
.BR tc\-netem (8),
.BR pcap\-filter (7)
"""


def page() -> str:
    """The page, in the macros of man(7)."""
    lines = [f'.TH USERNET 1 "" "usernet {__version__}" "User Commands"', ".SH NAME",
             _text(f"usernet - {main.ABOUT.removeprefix('usernet: ').rstrip('.')}"), ".SH SYNOPSIS", ".B usernet",
             _text("[--name N] COMMAND [ARGUMENT...]"), ".SH COMMANDS"]
    for verb, parser in main.verb_parsers().items():
        lines += [f".SS {verb}", _text(_sentence(parser.description or "")), *_arguments(parser)]
    lines += [".SH EXIT STATUS", _text(main.STATUSES.removeprefix("exit status: "))]
    return "\n".join(lines) + "\n" + _TAIL


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.dest in ("help", "name"):
            continue
        yield ".TP"
        shown = parser._get_formatter()
        value = shown._format_args(action, shown._get_default_metavar_for_optional(action)
                                   if action.option_strings else
                                   shown._get_default_metavar_for_positional(action)) if action.nargs != 0 else ""
        words = ", ".join(action.option_strings)
        yield _text(" ".join(filter(None, (f"\\fB{words}\\fR" if words else "", f"\\fI{value}\\fR" if value else ""))))
        yield _text(shown._expand_help(action) if action.help else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _text(text: str) -> str:
    """As roff takes it: hyphens are minus signs, and no line begins with a control character."""
    text = text.replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    PAGE.write_text(page())
