"""The command line: finds the verb, parses its arguments, runs it, and turns errors into one line and an exit status.

A verb is a module of `cli` or `cli.tools` with

   TEXT = "one sentence"                              for --help
   def arguments(parser: argparse.ArgumentParser)     adds its arguments
   def run(given: argparse.Namespace) -> int          returns one of the statuses below

The name of the module is the verb. Only the module of the given verb is imported.
"""

from __future__ import annotations

import _thread
import argparse
import importlib
import io
import os
import pkgutil
import shutil
import signal
import sys
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from supervisor.errors import BootError
from usernet import __version__

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Exit statuses of all verbs except exec, which exits with the status of its command.
OK = 0
FAILED = 1  # the operation failed or got no answer
USAGE = 2  # the command line is invalid, or the stack does not run
DEGRADED = 3  # `status`: the stack runs, but not all of its layers serve
INTERRUPTED = 130  # interrupted by Ctrl-C

ABOUT = "usernet: a TCP/IP stack you can take apart while it runs."
STATUSES = ("exit status: 0 done, 1 failed or no answer, 2 usage error or no such stack, 3 degraded (status), "
            "130 interrupted")
PACKAGES = ("cli", "cli.tools")
COMMAND = os.environ.pop("USERNET_COMMAND", "")  # .venv/bin/usernet as it was called


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line, as all other errors."""

    def error(self, message: str) -> NoReturn:
        """Exit with status USAGE (argparse.ArgumentParser)."""
        self.exit(USAGE, f"{self.prog.replace(' ', ': ', 1)}: {message}\n")


def names() -> dict[str, str]:
    """{verb: name of its module}; imports all of them."""
    found = {}
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.ispkg and hasattr(importlib.import_module(f"{package}.{module.name}"), "arguments"):
                found[module.name] = f"{package}.{module.name}"
    return found


def verb_module(name: str) -> ModuleType | None:
    """The module of a verb, or None if there is no such verb."""
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
    """The parser for all verbs, or for one."""
    top = Parser(prog=program(), allow_abbrev=False, description=ABOUT, epilog=STATUSES)
    top.add_argument("--version", action="version", version=f"usernet {__version__}")
    _common(top)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name in [only] if only else sorted(names()):
        _add_verb(verbs, name)
    return top


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every verb."""
    verbs = Parser(prog="usernet").add_subparsers()
    return {name: _add_verb(verbs, name) for name in sorted(names())}


def _add_verb(verbs: argparse._SubParsersAction[Parser], name: str) -> argparse.ArgumentParser:
    module = verb_module(name)
    assert module is not None
    added = verbs.add_parser(name, help=module.TEXT, description=module.TEXT, allow_abbrev=False)
    _common(added, default=argparse.SUPPRESS)
    module.arguments(added)
    added.set_defaults(run=module.run)
    return added


def _common(to: argparse.ArgumentParser, default: object = None) -> None:
    to.add_argument("--name", metavar="N", default=default, help="name of the stack (default: $USERNET_NAME, else "
                    "'default')")


def program() -> str:
    """The name of this command: usernet, or the script in the checkout."""
    return os.path.basename(_called()) or "usernet"


def command() -> str:
    """This command as it can be typed again in the same shell, for advice."""
    called = _called() or "usernet"
    found = shutil.which(program())
    if found and os.path.realpath(found) == os.path.realpath(called):
        return program()
    return called if "/" in called else f"./{called}"


def _called() -> str:
    return COMMAND or (sys.argv[0] if sys.argv else "")


def main(words: list[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one line on standard error."""
    words = sys.argv[1:] if words is None else words
    try:
        try:
            _prepare_streams()
            return _run(words)
        finally:
            signal.signal(signal.SIGINT, _end)
            _flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, _end)
        return INTERRUPTED
    except BrokenPipeError:
        _silence()
        return FAILED
    except OSError as error:  # of standard output: a verb's own errors are reported by `_run`
        _silence()
        print(f"{program()}: {_described(error)}", file=sys.stderr)
        return FAILED


def _end(*_: object) -> NoReturn:
    """Ctrl-C when the verb is over: the interpreter must not end in a traceback, nor wait for a reader."""
    os._exit(INTERRUPTED)


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a destructor, which cannot raise it: raise it outside, when this has returned."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_thread.interrupt_main, ())
    else:
        sys.__unraisablehook__(unraisable)


def _described(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


class _Output(io.FileIO):
    """Standard output, whose errors say so."""

    def write(self, octets: ReadableBuffer, /) -> int:
        try:
            return super().write(octets)
        except OSError as error:
            error.filename = "standard output"
            raise


def _run(words: list[str]) -> int:
    verb = next((word for number, word in enumerate(words) if not word.startswith("-")
                 and not (number and words[number - 1] == "--name")), None)
    helps = verb is None or bool({"-h", "--help"} & set(words[: words.index(verb)])) or verb_module(verb) is None
    given = parser(None if helps else verb).parse_args(words)
    from cli.tools import ToolError  # imported here because a usage error of argparse does not need them
    from supervisor.control import NotRunning, Refused, printable
    from supervisor.options import UsageError
    from supervisor.sandbox import SandboxError

    try:
        sys.unraisablehook = _again
        signal.signal(signal.SIGINT, signal.default_int_handler)  # until now launcher.py's: _end
        return given.run(given)
    except (UsageError, ValueError) as error:  # ValueError: an invalid name of a stack
        text, status = str(error), USAGE
    except NotRunning as error:
        named = f" --name {given.name}" if given.name else ""
        text, status = f"{error}; start one with: {command()} up --detach{named}", USAGE
    except ToolError as error:
        text, status = str(error).replace("launcher.py up", f"{command()} up"), error.status  # advice of the library
    except BrokenPipeError:
        raise
    except SandboxError as error:
        text, status = f"{error}; or use a wire, which needs no kernel feature: --wire NAME", FAILED
    except (BootError, Refused) as error:
        text, status = str(error), FAILED
    except OSError as error:
        text, status = _described(error), FAILED
    print(f"{program()}: {printable(text)}", file=sys.stderr)
    return status


def _prepare_streams() -> None:
    """Replace characters that the terminal cannot show; replace closed streams by /dev/null."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  (to the process's end)
        elif number:
            stream.reconfigure(errors="replace")
    former = sys.stdout
    if former is sys.__stdout__ and isinstance(former, io.TextIOWrapper):
        raw = _Output(former.fileno(), "w", closefd=False)
        buffer = raw if former.write_through else io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(buffer, former.encoding, "replace", line_buffering=former.line_buffering,
                                      write_through=former.write_through)


def _flush() -> None:
    sys.stdout.flush()


def _silence() -> None:
    """Redirect standard output to /dev/null, so that the interpreter's flush at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
