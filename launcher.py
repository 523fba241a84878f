#!/bin/sh
''':'
# What sh reads of this file; Python takes it for a string. Python must not hear Ctrl-C before it comes to the lines
# below: it would end in a traceback, or abort. So SIGINT is blocked and waits for them; where env(1) cannot do that
# (coreutils before 8.31), it is ignored until then. The Python of .venv saves the start of another.
python=$(dirname "$(readlink -f "$0")")/.venv/bin/python
[ -x "$python" ] || python=python3
if env --block-signal=INT true 2>/dev/null; then exec env --block-signal=INT "$python" "$0" "$@"; fi
trap '' INT
exec "$python" "$0" "$@"
'''

import _signal  # `signal` itself takes long to import
import posix

INTERRUPTED = 130  # as in cli.main
# Until everything is imported: an import must not end in a traceback
_signal.signal(_signal.SIGINT, lambda *_: posix._exit(INTERRUPTED))
_signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGINT})

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
            _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})  # until that Python comes to the line above
            os.execv(python, [str(python), *sys.argv])
        sys.exit(f"launcher.py: no package {error.name!r}: run `make demo` once in {VENV.parent}, which installs all "
                 "that is needed into .venv; or pip install -r requirements.txt")


if __name__ == "__main__":
    _in_the_virtual_environment()
    from cli.main import main

    sys.exit(main())
