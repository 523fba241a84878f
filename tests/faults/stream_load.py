"""The load of streams in a lab, on the cable (the peer is the kernel) or on a wire (the peer is another stack)."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from supervisor.control import Client
from tests.faults import extra, schedule
from tests.faults.flows import ANSWERS, COUNT, Book, Switchboard
from tests.faults.lab import ADDRESS, PREFIX, Lab, Load
from tests.faults.load import TICK_S
from tests.faults.streams import ROLES, SIDES, ready_cell

FLOWS = ("bulk-in", "bulk-out", "calls", "short-in", "short-out", "idle")
STEADY_FLOWS = FLOWS[:3]
WIRE_PEER = "10.0.0.3"
WIRE_TICK_S = 4 * TICK_S  # two stacks at this pace use as much of two cores as one at the other
READY_S = 40.0  # for a role to be there on both sides: 164 connections on a busy machine


class WireLab(Lab):
    """Two stacks on a wire. Layers of the one with `name` are hit; `peer` is the name of the other."""

    def up(self) -> None:
        """Boot both."""
        self.peer, wire = f"p{secrets.token_hex(3)}", ("--wire", f"w{secrets.token_hex(4)}")
        self.launcher("up", "--detach", "--address", f"{ADDRESS}/{PREFIX}", *wire, *self._options)
        self._launch_peer("up", "--detach", "--address", f"{WIRE_PEER}/{PREFIX}", *wire, *self._options)

    def __exit__(self, *raised: object) -> None:
        if hasattr(self, "peer"):
            self._launch_peer("down", check=False)
        super().__exit__(*raised)

    def _launch_peer(self, verb: str, *arguments: str, check: bool = True) -> None:
        name, self.name = self.name, self.peer
        try:
            self.launcher(verb, *arguments, check=check)
        finally:
            self.name = name


class StreamLoad(Load):
    """Bulk both ways, 64 connections with requests and responses, short connections all the time, 100 idle ones."""

    flows = FLOWS
    applications = tuple(f"{role} near" for role in ROLES)
    moments = schedule.STREAM_MOMENTS

    def start(self) -> None:
        """See `Load`. Each role on both sides; they meet when both are there."""
        lab = self.lab
        self._wire = lab if isinstance(lab, WireLab) else None
        peer = WIRE_PEER if self._wire else extra.KERNEL_END
        for role in ROLES:
            for side in SIDES:
                own, other = (ADDRESS, peer) if side == "near" else (peer, ADDRESS)
                arguments = ("tests.faults.streams", role, side, "kernel" if side == "far" and not self._wire else
                             "usernet", str(self.folder), own, other, str(WIRE_TICK_S if self._wire else TICK_S))
                if side == "far" and self._wire:
                    process = lab.start(*arguments, name=self._wire.peer)
                else:
                    process = lab.start(*arguments, inside=side == "far")
                self.processes[f"{role} {side}"] = process
            for side in SIDES:
                self.board.wait_ready(READY_S, ready_cell(role, side))
        self.books = {name: Book(self.folder, name) for name in FLOWS}
        self.steady = [self.books[name] for name in STEADY_FLOWS]

    def timeouts(self) -> int:
        """Retransmission timeouts of the peer: of the kernel's end, or of the other stack."""
        if self._wire:
            with Client(self._wire.run_dir.with_name(self._wire.peer)) as client:
                return client.request("status")["layers"]["tcp"]["counters"]["timeouts"]
        lines = Path(f"/proc/{self.processes['bulk far'].pid}/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
        return int(dict(zip(names, values, strict=True))["TCPTimeouts"])

    def stop(self) -> None:
        """See `Load`. What is under way is waited for, because it is delivered however long it takes."""
        self.board.cells[Switchboard.PAUSE] = 1
        deadline = time.monotonic() + READY_S
        while any(book.cells[ANSWERS] < book.cells[COUNT] for book in self.books.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        super().stop()
