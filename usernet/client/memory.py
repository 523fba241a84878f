"""The memory that this process shares with one stack, for the octets of its streams (usernet.pipe.rings) and of large
groups of datagrams that it sends (usernet.pipe.buffers).

The keeper creates it and sends its descriptor over the control socket, on request. A stack without this, or without a
free memory, sends and receives the octets in records.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import threading
from typing import Any

from usernet.client.buffers import Buffers
from usernet.pipe.rings import APPLICATION_OCTETS, TOKEN, ApplicationRings, Ring, block_of
from usernet.pipe.run_dir import peer
from usernet.pipe.streams import MEMORY_RECORD

CONTROL_SOCKET = "control.sock"  # in the run directory
ANSWER_TIMEOUT_S = 5.0  # of the keeper, which is stopped or starved then; the process has to do without its memory
ANSWER_OCTETS = 4096


class Memory:
    """The rings of this process. OSError: the stack has none for it."""

    def __init__(self, directory: str) -> None:
        """`directory`: a path of the run directory."""
        answer, descriptors = _lent(f"{directory}/{CONTROL_SOCKET}")
        self.number = answer["number"]
        self.buffers: Buffers | None = None  # None: this stack has none, or they have another user in this process
        try:
            self._rings = ApplicationRings(mmap.mmap(descriptors[0], APPLICATION_OCTETS))
            if len(descriptors) > 1:
                self.buffers = Buffers.of(self.number, descriptors[0], descriptors[1], answer["returned"])
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(str(error)) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def offer(self, handle: int) -> bytes:
        """The STREAM_MEMORY record that offers it for the octets of a stream."""
        return MEMORY_RECORD.pack(handle, self.number, self._rings.facts[TOKEN])

    def ring(self, reference: int) -> Ring | None:
        """The ring with this reference; None: its memory is used for something else."""
        return self._rings.ring(reference)

    def good(self, reference: int) -> bool:
        """True if the ring is still that of this reference: to be checked after copying."""
        return self._rings.good(reference)

    def wrote(self, reference: int, total: int) -> None:
        """Say in the memory how many octets of its stream were written, so that they count even if this process ends
        before the record about them has arrived."""
        self._rings.written[block_of(reference)] = total


class Lending:
    """The memory of this process at one stack, which is asked for when it is first needed. `directory`: as for it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._memory: Memory | None = None
        self._refused = False
        self._lock = threading.RLock()

    def memory(self) -> Memory | None:
        """The memory; None: the octets travel in records."""
        if self._memory is None and not self._refused:
            with self._lock:  # of two, the second would have no buffers
                try:
                    made = self._memory or Memory(self._directory)
                    self._memory = self._memory or made  # a signal handler may have been here, too
                except OSError:
                    self._refused = True
        return self._memory


def _lent(path: str) -> tuple[dict[str, Any], list[int]]:
    """The keeper's answer, and the descriptors: of the memory for this process, of the table of returned buffers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_TIMEOUT_S)
        line.connect(path)
        if peer(line)[1] != os.geteuid():
            raise PermissionError(f"the process that answers at {path} belongs to another user")
        line.sendall(b'{"op": "memory", "buffers": true}\n')
        answer, found = b"", array.array("i")
        try:
            while not answer.endswith(b"\n"):
                octets, ancillary, _, _ = line.recvmsg(ANSWER_OCTETS, socket.CMSG_SPACE(2 * found.itemsize))
                for level, kind, data in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        found.frombytes(data[: len(data) - len(data) % found.itemsize])
                if not octets:
                    break
                answer += octets
            fields = json.loads(answer)["ok"]
            if not found or not isinstance(fields["number"], int):
                raise ValueError("no descriptor")
            descriptors = list(found)
            del found[:]
            return fields, descriptors
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise OSError(f"the keeper has no memory for this process: {answer!r}") from error
        finally:
            for descriptor in found:
                os.close(descriptor)
