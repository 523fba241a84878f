"""A layer's life as the keeper leads it: named states, one table, no process; with a clock that the test moves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.policy import GIVE_UP_AFTER, RETRY_S, STABLE_S
from supervisor.service import (
    LOAD_TIMEOUT_S,
    PROBATION_S,
    SPARE_AFTER_S,
    STOP_TIMEOUT_S,
    TABLE,
    Answer,
    Blame,
    Death,
    Dismiss,
    Event,
    Fork,
    Go,
    Kill,
    Log,
    Role,
    Service,
    State,
    Take,
    TellStop,
    UseCode,
)

CRASH = Death("ValueError: its own fault")
KILL = Death("killed by SIGKILL", from_outside=True)


class Layer:
    """A service and what became of its actions."""

    def __init__(self) -> None:
        self.service = Service("toy")
        self.now = 1000.0
        self.processes: dict[Role, str] = {}  # with which code
        self.code, self.former = "old", None
        self.done: list = []  # the actions of the last event
        self.killed: list[Role] = []
        self.answers: list[str] = []
        self.forks = True

    def happens(self, event: Event, *facts: object) -> list:
        self.done = self.service.happens(event, self.now, *facts)
        for action in list(self.done):
            match action:
                case Fork(role, new_code):
                    if not self.forks:
                        self.happens(Event.FORK_REFUSED, role, "no room")
                        return self.done
                    assert role not in self.processes
                    self.processes[role] = "new" if new_code else self.code
                case Take(role):
                    assert Role.PROCESS not in self.processes
                    self.processes[Role.PROCESS] = self.processes.pop(role)
                case Go(_) | TellStop(Role.PROCESS):
                    assert Role.PROCESS in self.processes
                case Kill(role, _):
                    assert role in self.processes
                    self.killed.append(role)
                case Dismiss():
                    del self.processes[Role.SPARE]
                case UseCode("successor"):
                    self.former, self.code = self.code, self.processes[Role.PROCESS]
                case UseCode("former"):
                    self.code, self.former = self.former, None
                case UseCode(_):
                    self.former = None
                case Answer(problem):
                    self.answers.append(problem)
        return self.done

    def dies(self, death: Death = CRASH) -> list:
        del self.processes[Role.PROCESS]
        return self.happens(Event.DIED, death)

    def up(self) -> Layer:
        self.happens(Event.START)
        return self.ready()

    def ready(self) -> Layer:
        self.happens(Event.READY)
        return self

    def passes(self, seconds: float) -> None:
        """Time passes; TIME comes when it is due."""
        end = self.now + seconds
        while (due := self.service.next_time) is not None and due <= end:
            self.now = max(self.now, due)
            self.happens(Event.TIME)
            assert self.service.next_time is None or self.service.next_time > self.now or self.now >= end
        self.now = end

    def renews(self) -> Layer:
        """A planned restart up to where new code serves."""
        self.happens(Event.RENEW)
        self.happens(Event.LOADED)
        self.dies(Death("exited with status 0"))
        return self.ready()

    @property
    def state(self) -> State:
        return self.service.state


def events(actions: list) -> list[str]:
    return [action.event for action in actions if isinstance(action, Log)]


def test_every_state_has_a_row_and_every_row_leads_to_states():
    assert set(TABLE) == set(State)
    assert all(transition.follow <= set(State) for row in TABLE.values() for transition in row.values())
    assert {event for row in TABLE.values() for event in row} == set(Event)


def test_a_boot_and_a_spare_soon_after():
    layer = Layer()
    assert layer.happens(Event.START) == [Fork(Role.PROCESS), Go(1)]
    assert layer.state is State.STARTING
    layer.ready()
    assert layer.state is State.UP
    layer.passes(SPARE_AFTER_S)
    assert layer.processes == {Role.PROCESS: "old", Role.SPARE: "old"}


def test_a_death_is_answered_by_the_spare_and_costs_no_fork():
    layer = Layer().up()
    layer.passes(SPARE_AFTER_S)
    assert [type(action) for action in layer.dies()] == [Blame, Log, Take, Go]
    layer.now += 0.007
    assert Log("serves", gap_ms=7.0) in layer.ready().done
    assert (layer.state, layer.service.incarnation, layer.service.restarts) == (State.UP, 2, 1)


@pytest.mark.parametrize(("death", "may_be"), [(CRASH, True), (KILL, False)])
def test_a_record_in_hand_at_a_kill_from_outside_is_not_suspected(death, may_be):
    assert Blame(may_be) in Layer().up().dies(death)


def test_a_layer_that_keeps_dying_fails_and_is_tried_again_after_a_while():
    layer = Layer().up()
    while layer.state is not State.FAILED:
        if layer.processes:
            layer.dies()
        layer.passes(2.1) if layer.state is State.PAUSED else None
    assert layer.service.policy.quick_deaths == GIVE_UP_AFTER + 1
    assert not layer.processes
    layer.passes(RETRY_S)
    assert layer.state is State.STARTING
    layer.ready()
    layer.passes(STABLE_S)
    layer.dies()
    assert layer.state is State.STARTING  # forgiven


def test_a_hundred_kills_from_outside_never_pause_it_nor_make_it_fail():
    layer = Layer().up()
    for _ in range(100):
        layer.now += 0.4
        layer.dies(KILL)
        assert layer.state is State.STARTING
        layer.ready()


def test_a_planned_restart_loads_first_then_stops_then_goes_on_with_the_new_code():
    layer = Layer().up()
    layer.passes(SPARE_AFTER_S)
    assert layer.happens(Event.RENEW) == [Fork(Role.SUCCESSOR, new_code=True)]
    assert layer.state is State.UP  # and serves on
    assert layer.happens(Event.LOADED) == [TellStop(Role.PROCESS)]
    assert layer.state is State.HANDING_OVER
    done = layer.dies(Death("exited with status 0"))
    assert done == [Take(Role.SUCCESSOR), UseCode("successor"), Dismiss(), Go(2)]
    layer.ready()
    assert (layer.processes, layer.code, layer.former) == ({Role.PROCESS: "new"}, "new", "old")
    assert layer.answers == ["", ""]
    layer.passes(PROBATION_S)
    assert (layer.processes, layer.former) == ({Role.PROCESS: "new", Role.SPARE: "new"}, None)


def test_a_request_during_a_restart_is_answered_by_that_restart():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    assert layer.happens(Event.RENEW) == []


def test_a_planned_restart_is_answered_when_the_new_code_serves_not_when_the_former_does_after_a_death():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.dies(KILL)
    layer.ready()
    assert layer.answers == [""], "that of the boot"
    layer.happens(Event.LOADED)
    layer.dies(Death("exited with status 0"))
    layer.ready()
    assert (layer.answers, layer.processes) == (["", ""], {Role.PROCESS: "new"})


def test_new_code_is_the_way_out_for_a_layer_that_keeps_dying():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    while layer.state is not State.FAILED:
        if Role.PROCESS in layer.processes:
            layer.dies()
        layer.passes(2.1) if layer.state is State.PAUSED else None
    assert layer.answers == [""]
    layer.happens(Event.LOADED)
    layer.ready()
    assert (layer.answers, layer.processes) == (["", ""], {Role.PROCESS: "new"})


def test_a_kill_from_outside_while_a_process_stops_for_its_successor_is_not_the_records():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.happens(Event.LOADED)
    assert layer.dies(KILL)[0] == Blame(may_be=False)


def test_code_that_does_not_load_is_refused_and_the_former_serves_on():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    del layer.processes[Role.SUCCESSOR]
    assert events(layer.happens(Event.SUCCESSOR_DIED, Death("SyntaxError"))) == ["refused"]
    assert layer.state is State.UP
    assert "SyntaxError" in layer.answers[-1]


def test_code_that_takes_too_long_to_load_is_killed():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.passes(LOAD_TIMEOUT_S)
    assert layer.killed == [Role.SUCCESSOR]


def test_a_process_that_does_not_stop_for_its_successor_is_killed():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.happens(Event.LOADED)
    layer.passes(STOP_TIMEOUT_S)
    assert layer.killed == [Role.PROCESS]
    layer.dies(Death("it did not stop when told"))
    assert (layer.state, layer.code) == (State.STARTING, "new")


def test_new_code_that_dies_of_itself_is_rolled_back_but_a_kill_from_outside_says_nothing_of_it():
    layer = Layer().up().renews()
    layer.dies(KILL)
    assert (layer.code, layer.processes) == ("new", {Role.PROCESS: "new"})
    layer.ready()
    done = layer.dies(CRASH)
    assert events(done) == ["died", "rolled back"]
    assert (layer.code, layer.processes) == ("old", {Role.PROCESS: "old"})


def test_new_code_that_has_served_for_a_while_is_not_rolled_back():
    layer = Layer().up().renews()
    layer.passes(PROBATION_S)
    layer.dies(CRASH)
    assert layer.code == "new"


def test_a_successor_that_dies_after_the_process_was_told_to_stop_leaves_the_layer_to_the_former_code():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.happens(Event.LOADED)
    del layer.processes[Role.SUCCESSOR]
    layer.happens(Event.SUCCESSOR_DIED, CRASH)
    layer.dies(Death("exited with status 0"))
    assert (layer.state, layer.processes) == (State.STARTING, {Role.PROCESS: "old"})


def test_a_hung_process_is_killed_and_the_gap_counts_from_its_last_sign_of_life():
    layer = Layer().up()
    layer.now += 5
    assert layer.happens(Event.HUNG, layer.now - 0.3, "it hung") == [Kill(Role.PROCESS, "it hung")]
    layer.dies(Death("it hung"))
    assert Log("serves", gap_ms=300.0) in layer.ready().done


def test_a_process_that_hangs_instead_of_stopping_for_its_successor_is_killed_at_once():
    layer = Layer().up()
    layer.happens(Event.RENEW)
    layer.happens(Event.LOADED)
    assert layer.happens(Event.HUNG, layer.now - 0.3, "it hung") == [Kill(Role.PROCESS, "it hung")]
    layer.dies(Death("it hung"))
    assert (layer.state, layer.code) == (State.STARTING, "new")


def test_a_process_that_hangs_instead_of_stopping_with_the_stack_is_killed_at_once():
    layer = Layer().up()
    layer.happens(Event.STOP)
    assert layer.happens(Event.HUNG, layer.now - 0.3, "it hung") == [Kill(Role.PROCESS, "it hung")]


@pytest.mark.parametrize("state", [State.UP, State.PAUSED])
def test_forks_that_the_system_refuses_are_tried_again_later_and_later(state):
    layer = Layer().up()
    layer.forks = False
    if state is State.UP:
        layer.passes(1.0)
        assert layer.processes == {Role.PROCESS: "old"}
    else:
        layer.dies()
        assert layer.state is State.PAUSED
        layer.passes(20.0)
        assert layer.state is State.PAUSED
    layer.passes(7200.0)  # more than a thousand times
    layer.forks = True
    layer.passes(6.0)
    assert Role.PROCESS in layer.processes
    assert (Role.SPARE in layer.processes) == (state is State.UP)


def test_a_restart_without_a_process_to_be_had_is_answered():
    layer = Layer().up()
    layer.forks = False
    layer.happens(Event.RENEW)
    assert "no room" in layer.answers[-1]
    assert layer.state is State.UP


@pytest.mark.parametrize("lead", range(7))
def test_the_end_comes_from_every_state_within_the_time_for_stopping(lead):
    layer = Layer()
    layer.happens(Event.START)
    if lead >= 1:
        layer.ready()
    if lead >= 2:
        layer.passes(SPARE_AFTER_S)
    if lead in (3, 4):
        layer.happens(Event.RENEW)
    if lead == 4:
        layer.happens(Event.LOADED)
    if lead == 5:
        for _ in range(4):
            layer.dies()
            layer.ready() if layer.processes else None
    if lead == 6:
        layer.forks = False
        layer.dies()
    layer.happens(Event.STOP)
    layer.passes(STOP_TIMEOUT_S)
    for role in list(layer.processes):
        assert role in layer.killed
        del layer.processes[role]
        layer.happens({Role.PROCESS: Event.DIED, Role.SUCCESSOR: Event.SUCCESSOR_DIED}.get(role, Event.SPARE_DIED),
                      *([] if role is Role.SPARE else [CRASH]))
    assert (layer.state, layer.service.next_time) == (State.DOWN, None)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_in_whatever_order_the_layer_comes_back_to_serve(seed):
    chance = random.Random(seed)
    layer = Layer()
    layer.happens(Event.START)
    for _ in range(60):
        layer.forks = chance.random() < 0.9
        layer.passes(chance.choice([0, 0.01, 0.2, 1.0, 4.0]))
        roles = list(layer.processes)
        what = chance.randrange(8)
        if what < 3 and Role.PROCESS in roles and layer.state is State.STARTING:
            layer.ready()
        elif what < 4:
            layer.happens(Event.RENEW)
        elif what < 5 and Role.SUCCESSOR in roles:
            layer.happens(Event.LOADED) if chance.random() < 0.7 else (
                layer.processes.pop(Role.SUCCESSOR), layer.happens(Event.SUCCESSOR_DIED, CRASH))
        elif what < 6 and Role.SPARE in roles:
            del layer.processes[Role.SPARE]
            layer.happens(Event.SPARE_DIED)
        elif Role.PROCESS in roles:
            layer.dies(chance.choice([CRASH, KILL]))
        assert set(layer.processes) == layer.service.present
    layer.forks = True
    for _ in range(20):
        layer.passes(400.0)
        for role in (Role.SUCCESSOR,):
            if role in layer.processes and layer.state is not State.HANDING_OVER:
                layer.happens(Event.LOADED)
        if layer.state is State.HANDING_OVER:
            layer.dies(Death("exited with status 0"))
        if layer.state is State.STARTING:
            layer.ready()
    assert layer.state is State.UP
    assert Role.PROCESS in layer.processes
