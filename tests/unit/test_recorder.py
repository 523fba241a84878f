"""Recordings with checkpoints: a core goes on as it was, from the middle of a recording, in bounded memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from glue import GLUED, Stack
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from bus import topology
from bus.config import encode
from bus.runtime.crash_log import MAGIC, CrashLog, entries
from bus.runtime.keyed_random import KeyedRandom
from bus.runtime.recorder import Origin, Start, pickled, recorded, unpickled
from cli.record import LastOnes
from cli.replay import Run, read, replay

ME, MY_MAC, PEER, PEER_MAC = "10.0.0.2", "02:00:5e:00:00:02", "10.0.0.1", "02:00:5e:00:00:01"
RECORDED = list(GLUED)
KEY = b"of the random numbers"


class RecordedStack(Stack):
    """A stack in memory of which one layer is recorded."""

    def __init__(self, layer: str, sink: object) -> None:
        self._recorded, self._sink = layer, sink
        super().__init__(ME, MY_MAC, gateway=PEER)

    def _make(self, layer: str) -> None:
        number = topology.LAYERS[layer]
        state = list(self._states[layer].items())
        self._random, shared = KeyedRandom(KEY), self._random
        super()._make(layer)
        self._random = shared
        if layer == self._recorded:
            start = Start(layer, 1, f"layers.{layer}.core:Core", encode(self.config), KEY, False,
                          list(self._counters[layer]))
            parts = {"counters": self._counters[layer], "state": self._states[layer]}
            self._cores[number] = recorded(self._cores[number], Origin(start, self._states[layer], parts), state,
                                           self._sink)


def traffic(stack: Stack, rounds: int) -> None:
    stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=ME))
    for number in range(rounds):
        stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / IP(src=PEER, dst=ME) / ICMP(seq=number) / bytes(200))
        stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=ME))
        stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / IP(src=PEER, dst=ME) / UDP(dport=9) / bytes(64))
        stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / IP(src=PEER, dst=ME) / TCP(sport=number + 1, dport=9) / bytes(64))
        if number % 20 == 0:
            part = IP(src=PEER, dst=ME, id=number, flags="MF") / UDP() / bytes(64)
            stack.hears(Ether(src=PEER_MAC, dst=MY_MAC) / part)
        stack.passes(0.1)


def runs_in(path: Path, octets: bytes) -> list[Run]:
    path.write_bytes(MAGIC + octets)
    return read(path)


@pytest.mark.parametrize("layer", RECORDED)
def test_the_last_calls_are_kept_and_do_again_what_they_did(layer, tmp_path):
    memory = memoryview(bytearray(2 * 60_000))
    stack = RecordedStack(layer, CrashLog(memory))
    traffic(stack, 300)
    (run,) = runs_in(tmp_path / "x.rec", entries(memory))
    assert run.core or layer not in ("link", "ip", "icmp")  # the beginning of these is gone
    assert len(run.calls) > 20
    assert all(call.result is not None for call in run.calls)
    assert list(replay(run)) == []


def test_a_call_that_does_not_fit_begins_another_run(tmp_path):
    memory = memoryview(bytearray(2 * 40_000))
    stack = RecordedStack("icmp", CrashLog(memory))
    traffic(stack, 5)
    for size in (41_000, 10):
        stack.tells("icmp", topology.IP, 200, bytes(size))  # a kind that it does not know
    traffic(stack, 5)
    runs = runs_in(tmp_path / "x.rec", entries(memory))
    assert runs[-1].core
    assert not any(len(call.arguments[2][0]) >= 41_000 for run in runs for call in run.calls if call.name == "receive")
    assert [list(replay(run)) for run in runs] == [[] for _ in runs]


def test_only_the_last_stretches_are_kept_in_memory(tmp_path):
    class Sink:
        def __init__(self) -> None:
            self.out = open(tmp_path / "ring.rec", "wb", buffering=0)  # noqa: SIM115
            self.last = LastOnes(self.out, 100_000)
            self.every = self.last.every
            self.most = 50_000

        def put(self, octets: bytes) -> bool:
            self.last.add(octets)
            return True

        def turn(self) -> None:
            pass

    sink = Sink()
    traffic(RecordedStack("icmp", sink), 500)
    sink.last.close()
    sink.out.close()
    assert 50_000 < (tmp_path / "ring.rec").stat().st_size < 110_000
    (run,) = read(tmp_path / "ring.rec")
    assert run.core
    assert list(replay(run)) == []


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("false",)


def test_a_pickled_core_consists_of_what_cores_consist_of():
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system is not a part of a core"):
        unpickled(pickle.dumps(Attack()), {})
    smuggled = b"\x80\x04\x8c\x16bus.runtime.event_loop\x8c\x09os.system\x93."
    with pytest.raises(pickle.UnpicklingError, match=r"bus\.runtime\.event_loop\.os\.system is not"):
        unpickled(smuggled, {})
    with pytest.raises(TypeError, match="cannot pickle"):
        pickled(memoryview(b""), {})
