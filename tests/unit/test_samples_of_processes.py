"""What the keeper asks the kernel about a layer's process whose life sign is late."""

from __future__ import annotations

import os
import signal
import subprocess

from supervisor.layer_process import sample


def test_a_process_that_was_killed_and_not_yet_reaped_has_ended() -> None:
    """It gives no life sign any more, but it is not for this that it ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        assert sample(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert sample(process.pid) is None
        assert process.wait() == -signal.SIGKILL
    assert sample(process.pid) is None
