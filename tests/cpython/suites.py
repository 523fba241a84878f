"""Runs a suite over the stack or the kernel, and goes on behind tests that hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .child import journal_of

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("test_socket", "test_selectors", "test_socketserver", "test_asyncore", "test_asynchat",
          "test_asyncio.test_streams", "test_asyncio.test_sock_lowlevel", "test_asyncio.test_events",
          "test_asyncio.test_server", "test_asyncio.test_sslproto", "test_httplib", "test_httpservers", "test_ftplib",
          "test_smtplib", "test_poplib", "test_imaplib", "test_telnetlib", "test_xmlrpc", "test_urllib2_localnet",
          "test_ssl")
HUNG_S = 20.0  # without a test that ends
HANGS_MAX = 40  # then a suite is given up


def run(suite: str, subject: str, scratch: Path, environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    """By test: passed, failed, skipped or hung, and why. `subject`: kernel, or usernet, as the environment has it."""
    journal = scratch / f"{suite}.journal"
    quiet = ["unshare", "-n" if os.geteuid() == 0 else "-rn"]
    over = ["-m", "usernet", "-m"] if subject == "usernet" else ["-m"]
    child = [sys.executable, *over, "tests.cpython.child", f"test.{suite}", str(journal)]
    if subject == "kernel":
        child = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *child]
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for _ in range(HANGS_MAX):
        with (scratch / f"{suite}.out").open("a") as output:
            process = subprocess.Popen([*quiet, *child], cwd=scratch, env=variables, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=output, start_new_session=True)
        try:
            if _ends(process, journal):
                break
        finally:
            with contextlib.suppress(ProcessLookupError):  # the child may have children
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    results = {name: ("hung", "") if outcome == "begun" else (outcome, why)
               for name, (outcome, why) in journal_of(journal).items()}
    if not results:
        return {suite: ("failed", (scratch / f"{suite}.out").read_text()[-300:])}
    return results


def _ends(process: subprocess.Popen, journal: Path) -> bool:
    """Whether it ends by itself, before nothing has happened for too long."""
    last, size = time.monotonic(), 0
    while process.poll() is None:
        grown = journal.stat().st_size if journal.exists() else 0
        if grown != size:
            last, size = time.monotonic(), grown
        elif time.monotonic() - last > HUNG_S:
            return False
        time.sleep(0.05)
    return True
