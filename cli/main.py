"""The command line: finds the verb, parses what follows, runs it, and turns errors into one line and a status.

A verb is a module of `cli` or `cli.tools` with

    TEXT = "one sentence"                              what --help says of it
    def arguments(parser: argparse.ArgumentParser)     what may follow
    def run(given: argparse.Namespace) -> int          one of the statuses below

and it is called as the module is. Only the verb that was asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
from types import ModuleType
from typing import NoReturn

from supervisor.errors import BootError
from usernet import __version__

# Exit statuses, the same for all verbs but exec, whose status is its command's.
OK = 0
FAILED = 1  # it was tried, and did not work or got no answer
USAGE = 2  # a command line that makes no sense, or a stack that does not run
DEGRADED = 3  # `status`: the stack runs, and not all of its layers serve
INTERRUPTED = 130  # by Ctrl-C

ABOUT = "usernet: a TCP/IP stack you can take apart while it runs."
STATUSES = ("exit status: 0 done, 1 failed or without an answer, 2 usage or no such stack, 3 degraded (status), "
            "130 interrupted")
PACKAGES = ("cli", "cli.tools")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        """argparse.ArgumentParser."""
        self.exit(USAGE, f"{self.prog.replace(' ', ': ', 1)}: {message}\n")


def names() -> dict[str, str]:
    """Every verb and its module, which is imported for it."""
    found = {}
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.ispkg and hasattr(importlib.import_module(f"{package}.{module.name}"), "arguments"):
                found[module.name] = f"{package}.{module.name}"
    return found


def verb_module(name: str) -> ModuleType | None:
    """The module of a verb; None: there is none of that name."""
    if not name.isidentifier() or name == "main":
        return None
    for package in PACKAGES:
        try:
            module = importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
            continue
        if hasattr(module, "arguments"):
            return module
    return None


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line of all verbs, or of one."""
    top = Parser(prog=program(), allow_abbrev=False, description=ABOUT, epilog=STATUSES)
    top.add_argument("--version", action="version", version=f"usernet {__version__}")
    _common(top)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name in [only] if only else sorted(names()):
        module = verb_module(name)
        assert module is not None
        added = verbs.add_parser(name, help=module.TEXT, description=module.TEXT, allow_abbrev=False)
        _common(added, default=argparse.SUPPRESS)
        module.arguments(added)
        added.set_defaults(run=module.run)
    return top


def _common(to: argparse.ArgumentParser, default: object = None) -> None:
    to.add_argument("--name", metavar="N", default=default, help="which stack (default: $USERNET_NAME, else 'default')")


def program() -> str:
    """What this command is called: usernet, or the script in the checkout."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "usernet"


def main(words: list[str] | None = None) -> int:
    """Run the command line; errors are one line on standard error."""
    words = sys.argv[1:] if words is None else words
    _prepare_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            return _run(words)
        finally:
            _flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence()
        return FAILED


def _run(words: list[str]) -> int:
    verb = next((word for number, word in enumerate(words) if not word.startswith("-")
                 and not (number and words[number - 1] == "--name")), None)
    helps = verb is None or bool({"-h", "--help"} & set(words[: words.index(verb)])) or verb_module(verb) is None
    given = parser(None if helps else verb).parse_args(words)
    from cli.tools import ToolError  # here, as a command line that makes no sense needs none of it
    from supervisor.control import NotRunning, Refused, printable
    from supervisor.options import UsageError
    from supervisor.sandbox import SandboxError

    try:
        return given.run(given)
    except (UsageError, ValueError) as error:  # ValueError: a name that no stack can have
        text, status = str(error), USAGE
    except NotRunning as error:
        named = f" --name {given.name}" if given.name else ""
        text, status = f"{error}; start one with: {program()} up --detach{named}", USAGE
    except ToolError as error:
        text, status = str(error), error.status
    except BrokenPipeError:
        raise
    except SandboxError as error:
        text, status = f"{error}; or use a wire, which needs nothing of the kernel: --wire NAME", FAILED
    except (BootError, Refused) as error:
        text, status = str(error), FAILED
    except OSError as error:
        text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        status = FAILED
    print(f"{program()}: {printable(text)}", file=sys.stderr)
    return status


def _prepare_streams() -> None:
    """Where a terminal cannot show a character it shows another; a stream that is closed is /dev/null."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  (to the process's end)
        elif number:
            stream.reconfigure(errors="replace")


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence()
        print(f"{program()}: standard output: {error.strerror}", file=sys.stderr)
        raise SystemExit(FAILED) from error


def _silence() -> None:
    """Nothing more can be said on standard output: not at the interpreter's end either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
