"""The campaign's short form: each kind of fault at each layer, and each moment, once; judged as the long form judges.

Times are not judged here, as tests share the machine: `python -m tests.faults` does that.
"""

from __future__ import annotations

import time

import pytest

from tests.faults import schedule, verdict
from tests.faults.campaign import Campaign
from tests.faults.flows import ANSWERS
from tests.faults.lab import Lab, Load
from tests.faults.schedule import Fault, Incident
from tests.faults.stream_load import StreamLoad, WireLab
from tests.faults.verdict import Verdict
from tests.faults.watch import Watch

MOST_LOST = 64  # to one SIGKILL: docs/recovery.md


def carried_out(lab: Lab, load: Load, incidents: list[Incident]) -> list[Verdict]:
    watch = Watch(lab, load)
    done = Campaign(lab, load, watch).run(incidents)
    time.sleep(0.3)
    load.stop()
    verdicts = verdict.judge(done, load, time.monotonic())
    assert len(verdicts) == len(incidents)
    assert not [each for each in verdicts if not each.recovered]
    assert not [text for each in verdicts for text in each.errors]
    assert not [what for what, (first, last) in watch.growth().items()
                if what.endswith(("threads", "files")) and last > first]
    return verdicts


@pytest.mark.parametrize("kind", ["kill", "raise"])
def test_a_layer_that_dies_is_not_noticed(lab, load, kind):
    verdicts = carried_out(lab, load, schedule.every((kind,)))
    assert [each for each in verdicts if each.lost_total > MOST_LOST] == []
    assert sum(each.lost_total == 0 for each in verdicts) >= len(verdicts) - 1


def test_a_layer_that_hangs_is_replaced(lab, load):
    carried_out(lab, load, schedule.every(("stop", "loop")))


def test_a_layer_that_sleeps_or_eats_memory_is_replaced(lab, load):
    carried_out(lab, load, [Incident("steady", (Fault(kind, layer),), 0.0) for kind in ("sleep", "memory")
                            for layer in ("link", "ip", "sockets")])


def test_every_moment(lab, load):
    drawn = {incident.moment: incident for incident in schedule.drawn(1, 60)
             if all(fault.kind == "kill" for fault in incident.faults)}
    assert set(drawn) == set(schedule.MOMENTS)
    carried_out(lab, load, list(drawn.values()))


@pytest.mark.parametrize("kind_of_lab", [Lab, WireLab])
def test_streams_outlive_a_sigkill_of_each_layer(sandbox, kind_of_lab):
    with kind_of_lab() as lab:
        load = StreamLoad(lab)
        done = Campaign(lab, load).run(schedule.every(("kill",)))
        load.stop()
        verdicts = verdict.judge(done, load, time.monotonic())
        assert [text for each in verdicts for text in each.errors] == []
        assert [(each.layers, each.recovered, each.lost) for each in verdicts if not each.transparent] == []
        assert len(verdicts) == len(schedule.LAYERS)
        assert min(load.books[name].cells[ANSWERS] for name in load.flows) > 0


def test_a_seed_repeats_its_schedule():
    assert schedule.drawn(7, 20) == schedule.drawn(7, 20) != schedule.drawn(8, 20)
