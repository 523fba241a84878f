"""`python -m tests.netem [ARGUMENTS OF PYTEST]`: the tests of this directory, in a kernel that has netem.

If the kernel that runs has none, User-mode Linux does (Debian: `apt install user-mode-linux`), which is Linux as a
process: its files are the host's, its network is its own, and it needs no privileges.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path("/usr/lib/uml/modules")
MEMORY = "2G"  # of which it uses what it needs
ENDS_WITHIN_S = 900


def has_netem() -> bool:
    """Whether this kernel does, tried in a namespace that is gone afterwards."""
    tried = subprocess.run(["unshare", "--map-root-user", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem"],
                           capture_output=True, check=False)
    return tried.returncode == 0


def in_user_mode_linux(arguments: list[str]) -> int:
    """Pytest's exit status."""
    kernel = shutil.which("linux.uml")
    if kernel is None or not MODULES.is_dir():
        print("this kernel has no netem, and there is no User-mode Linux: apt install user-mode-linux", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as result:
        given = {"REPOSITORY": ROOT, "MODULES": MODULES, "PYTHON": sys.executable, "RESULT": result,
                 "ARGUMENTS": f'"{shlex.join(arguments)}"', "CI": os.environ.get("CI", "")}
        subprocess.run([kernel, f"mem={MEMORY}", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null",
                        "con0=null,fd:1", f"init={ROOT / 'tests/netem/boot.sh'}",
                        *(f"{name}={value}" for name, value in given.items() if str(value))],
                       stdin=subprocess.DEVNULL, check=False, timeout=ENDS_WITHIN_S)
        status = Path(result, "status")
        return int(status.read_text()) if status.exists() else 1


if __name__ == "__main__":
    if has_netem():
        sys.exit(subprocess.run([sys.executable, "-m", "pytest", "tests/netem", *sys.argv[1:]], cwd=ROOT,
                                check=False).returncode)
    sys.exit(in_user_mode_linux(sys.argv[1:]))
