"""Run a Python program over a stack: python -m usernet [--name N] PROGRAM [ARGS…], or -m MODULE [ARGS…]."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys

from usernet.compat.patching import patch
from usernet.stack import Stack


def main() -> None:
    """The arguments of the program are those after its name."""
    parser = argparse.ArgumentParser(prog="python -m usernet", description="Run an unmodified Python program with a "
                                     "usernet stack instead of the kernel's network.", allow_abbrev=False)
    parser.add_argument("--name", metavar="N", help="name of the stack (default: $USERNET_NAME, else 'default')")
    parser.add_argument("--strict", action="store_true", help="refuse code that would use the kernel's network, "
                        "such as uvloop or a packet socket; the default is only to report it")
    parser.add_argument("-m", dest="module", action="store_true", help="PROGRAM is a module's name, as for python -m")
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.name:
        os.environ["USERNET_NAME"] = given.name
        os.environ.pop("USERNET_DIR", None)
    try:
        Stack()
    except (OSError, ValueError) as error:
        parser.exit(2, f"usernet: {error.strerror or error if isinstance(error, OSError) else error}\n")
    if not given.module:
        where = os.path.join(given.program, "__main__.py") if os.path.isdir(given.program) else given.program
        try:
            os.close(os.open(where, os.O_RDONLY))
        except OSError as error:  # as the interpreter says it
            parser.exit(2, f"usernet: can't open file {where!r}: {error.strerror}\n")
    elif not _is_module(given.program):
        parser.exit(1, f"usernet: no module named {given.program!r}\n")
    patch(given.strict)
    sys.argv = [given.program, *given.arguments]
    if given.module:
        runpy.run_module(given.program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(given.program))
        runpy.run_path(given.program, run_name="__main__")


def _is_module(name: str) -> bool:
    """True if there is a module of this name, also in the working directory; nothing of it is imported."""
    sys.path[0] = os.getcwd()
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


if __name__ == "__main__":
    main()
