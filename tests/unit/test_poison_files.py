"""Poison records, which are private traffic, are readable only by the user, and do not fill the disk."""

from __future__ import annotations

import base64
import os
import time

from bus import messages
from supervisor import poison
from supervisor.poison import write_poison


def test_captures_are_the_owners_alone_and_bounded_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(poison, "CAPTURES_MAX", 3)
    record = {"kind": messages.PACKET, "record": base64.b64encode(bytes(64)).decode()}
    before = os.umask(0)
    try:
        paths = []
        for _ in range(5):
            paths.append(write_poison("t", "udp", record))
            time.sleep(0.005)  # a millisecond is in the name
    finally:
        os.umask(before)
    assert paths[-1].stat().st_mode & 0o777 == 0o600
    assert paths[-1].parent.stat().st_mode & 0o777 == 0o700
    assert [path.exists() for path in paths] == [False, False, True, True, True]
