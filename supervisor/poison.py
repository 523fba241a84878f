"""Poison records, which crash a layer, are stored as pcap files in the user's state directory for debugging."""

from __future__ import annotations

import base64
import os
import struct
import time
from pathlib import Path
from typing import Any

from bus import messages
from packets import vnet
from packets.offload import completed

LINKTYPE_ETHERNET, LINKTYPE_RAW, LINKTYPE_USER0 = 1, 101, 147  # tcpdump.org/linktypes.html
_FILE_HEADER = struct.Struct("=IHHiIII")  # pcap-savefile(5)
_PACKET_HEADER = struct.Struct("=IIII")
_LINKTYPES = {messages.ETHERNET: LINKTYPE_ETHERNET, messages.PACKET: LINKTYPE_RAW}
CAPTURES_MAX = 64  # per stack; the oldest is removed


def state_dir(stack: str) -> Path:
    """xdg basedir: $XDG_STATE_HOME, else ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "usernet" / stack


def write_poison(stack: str, layer: str, message: dict[str, Any], offload: bool = False) -> Path:
    """Write one record into a capture of its own, as it would look on a wire; returns the path."""
    folder = state_dir(stack)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # packets are private
    for old in sorted(folder.glob("poison-*.pcap"), key=lambda path: path.stat().st_mtime)[: -(CAPTURES_MAX - 1)]:
        old.unlink(missing_ok=True)
    record = base64.b64decode(message["record"])
    if offload and message["kind"] == messages.ETHERNET:
        record = record[vnet.HEADER_OCTETS :]
    elif message["kind"] == messages.PACKET and len(record) >= messages.PACKET_HEAD.size:
        _, _, flags, _, _, protocol, *_ = messages.PACKET_HEAD.unpack_from(record)
        record = record[messages.PACKET_HEAD.size :]
        if flags & messages.FLAG_CHECKSUM_PARTIAL:
            record = completed(record, protocol)
    kind = messages.KIND_NAMES.get(message["kind"], str(message["kind"])).lower()
    now = time.time()
    path = folder / f"poison-{layer}-{kind}-{int(now * 1e6)}.pcap"
    linktype = _LINKTYPES.get(message["kind"], LINKTYPE_USER0)
    octets = (_FILE_HEADER.pack(0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, linktype)
                     + _PACKET_HEADER.pack(int(now), int(now % 1 * 1e6), len(record), len(record)) + record)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(octets)
    return path
