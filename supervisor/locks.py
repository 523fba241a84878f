"""The lock (supervisor.lockdown) for each layer of a stack."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bus import topology
from bus.config import StackConfig, encode
from supervisor import lockdown, seccomp
from supervisor.options import Options
from supervisor.run_dir import Held
from usernet.pipe.run_dir import INBOXES


class Locks:
    """The locks for the layers of one stack, created in its keeper."""

    def __init__(self, options: Options, held: Held, config: StackConfig) -> None:
        self._held = held
        self._config = config
        self._keeper_pid = os.getpid()
        self._unlocked = options.unlocked
        self._roots = not options.unlocked and lockdown.can_root()
        self._users = self._roots and lockdown.has_users()  # only then can other users be excluded by the run directory

    def lock(self, layer: str) -> lockdown.Lock | None:
        """The restrictions for a process of the layer; None: no restrictions."""
        if self._unlocked:
            return None
        return lockdown.Lock(kind=layer if layer in seccomp.KINDS else "layer", uid=self.user(layer),
                             root=str(self._held.here / layer) if self._rooted(layer) else "",
                             clients=layer == INBOXES, threads=self._config.pipes == "zmq")

    def _rooted(self, layer: str) -> bool:
        """True if it gets a root directory: this is possible, and all sockets that the layer connects to have names in
        it."""
        config = self._config
        near = layer != "link" or not config.wire or self._held.near(Path(config.wire_inbox).parent)
        return self._roots and near

    def config(self, layer: str) -> bytes:
        """The stack's configuration for this layer."""
        config, layers = self._config, self._config.layers
        users = {config.owner, *(self.user(producer) for producer in topology.inputs(layer, layers))}
        inbox = Path(config.wire_inbox).name if self._rooted("link") else config.wire_inbox
        return encode(msgspec.structs.replace(config, run_dir=str(self._held.path / layer), users=tuple(users),
                                              wire_inbox=inbox))

    def user(self, layer: str) -> int:
        """The user of the layer's processes."""
        return lockdown.uid_of(self._keeper_pid, topology.LAYERS[layer]) if self._users else self._config.owner
