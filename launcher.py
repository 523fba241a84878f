#!/usr/bin/env python3
"""usernet's command: boot a stack, look at it, take it apart while it runs. `launcher.py --help` lists the verbs."""

from __future__ import annotations

import _signal  # `signal` itself takes long to import

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # until everything is imported: an import must not end in a traceback

import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

VENV = Path(__file__).resolve().parent / ".venv"


def _in_the_virtual_environment() -> None:
    """What the stack needs is there: go on there, where this Python lacks it; or say in one line what to do."""
    try:
        import msgspec  # noqa: F401
        import setproctitle  # noqa: F401
    except ImportError as error:
        python = VENV / "bin" / "python"
        if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
            _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # until that Python comes to the line above
            os.execv(python, [str(python), *sys.argv])
        sys.exit(f"launcher.py: no package {error.name!r}: run `make demo` once in {VENV.parent}, which installs all "
                 "that is needed into .venv; or pip install -r requirements.txt")


if __name__ == "__main__":
    _in_the_virtual_environment()
    from cli.main import main

    sys.exit(main())
