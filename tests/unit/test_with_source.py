"""Tracebacks of processes that can read no files: the keeper adds the lines, of that layer's code alone."""

from __future__ import annotations

import traceback

import layers.udp.core
from supervisor.snapshots import ROOT, with_source


def told_by_udp() -> str:
    """As a process tells it that cannot read the sources."""
    try:
        layers.udp.core.Core.start(None, 0.0)
    except AttributeError:
        text = traceback.format_exc()
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def test_the_lines_of_the_layers_own_code_stand_in_it():
    lines = with_source(told_by_udp(), "udp").splitlines()
    place = next(number for number, line in enumerate(lines) if "layers/udp/core.py" in line)
    number = int(lines[place].split("line ")[1].split(",")[0])
    source = (ROOT / "layers/udp/core.py").read_text().splitlines()[number - 1].strip()
    assert lines[place + 1] == f"    {source}"


def test_no_other_files_and_no_nonsense_are_read(tmp_path):
    (tmp_path / "secret.py").write_text("password = 1\n")
    for told in (f'  File "{tmp_path}/secret.py", line 1, in x\nE', '  File "/etc/passwd", line 1, in x\nE', "",
                 f'  File "{ROOT}/layers/udp/core.py", line 999999, in x\nE', "\0\x1b[2J", '  File "", line 1, in \n'):
        assert with_source(told, "udp") == told.rstrip("\n")


def test_a_traceback_with_source_lines_is_left_as_it_is():
    told = f'  File "{ROOT}/layers/udp/core.py", line 3, in x\n    as it was\nE'
    assert with_source(told, "udp") == told
