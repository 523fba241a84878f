"""The life of a layer: a state machine that returns actions for the keeper. Pure: processes are names, times are
arguments.

   DOWN ──START──> STARTING ──READY──> UP ──LOADED──> HANDING_OVER ──DIED──> STARTING (of the successor)
                     ^   │ DIED        │ DIED
           start_at  │   v             v
                   PAUSED <── if a pause is due; otherwise STARTING at once; FAILED after too many quick deaths

Up to three processes belong to a layer (`Role`): the one that serves; a *successor*, which loads new code while the
former still serves (a planned restart); and a *spare*, forked in advance with the code that serves, so that a death
costs no fork. `TABLE` contains for each state and event the method that handles it and the states that may follow;
other events change nothing in that state. Every method returns the actions for the keeper, in order.

docs/decisions/restart-policy.md and code-in-memory.md give the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, StrEnum
from typing import NamedTuple

from supervisor.policy import Restarts

# For a process that was told to stop. One that hangs is killed sooner (supervisor.policy.Watch), but none because the
# machine is busy: 0.5 s were too short for tcp when it closed the 5,000 connections of an application.
STOP_TIMEOUT_S = 3.0
LOAD_TIMEOUT_S = 20.0  # for new code to be loaded; seven layers may load theirs at once, and `restart` waits for 30 s
SPARE_AFTER_S = 0.1  # from the start of serving to the fork of the spare
PROBATION_S = 3.0  # new code that crashes within this time is rolled back
FORK_PAUSE_S, FORK_PAUSE_MAX_S = 0.05, 5.0  # after a failed fork; doubled each time


class State(StrEnum):
    """The states, as `status` shows them."""

    DOWN = "down"
    STARTING = "starting"  # a process was told to serve and does not serve yet
    UP = "up"
    HANDING_OVER = "handing over"  # the process was told to stop; a successor waits for its end
    PAUSED = "paused"  # no process until `start_at`
    FAILED = "failed"  # as PAUSED, for longer: it died too often
    STOPPING = "stopping"  # the stack is stopping


class Role(StrEnum):
    """The role of a process of the layer."""

    PROCESS = "process"
    SUCCESSOR = "successor"
    SPARE = "spare"


class Event(Enum):
    """The events of a layer."""

    START = "the stack boots"
    READY = "the process serves"
    DIED = "the process ended"
    HUNG = "the process gives no life sign"
    RENEW = "a planned restart is requested"
    LOADED = "the successor has loaded its code"
    SUCCESSOR_DIED = "the successor ended"
    SPARE_DIED = "the spare ended"
    FORK_REFUSED = "the system refused a fork"
    TIME = "a deadline has come"
    STOP = "the stack stops"


class Fork(NamedTuple):
    """Fork a process. `new_code`: it loads the code that is on disk; else it has the code that serves."""

    role: Role
    new_code: bool = False


class Go(NamedTuple):
    """Tell the process to serve, as this incarnation of the layer."""

    incarnation: int


class TellStop(NamedTuple):
    """Tell a process to stop."""

    role: Role


class Kill(NamedTuple):
    """Send SIGKILL to a process; `why` is the reason."""

    role: Role
    why: str


class Dismiss(NamedTuple):
    """Kill the spare, whose code is no longer the one to run; its end is not reported."""


class Take(NamedTuple):
    """The process with this role becomes the one that serves."""

    role: Role


class UseCode(NamedTuple):
    """The code of the next processes: the successor's, or the former again; or the former is no longer needed."""

    which: str  # "successor", "former", "forget former"


class Blame(NamedTuple):
    """Whether the record that the process was handling may have caused its death."""

    may_be: bool


class Log(NamedTuple):
    """Add an event to the log. `process`: the event is about the process that serves or served."""

    event: str
    detail: str = ""
    gap_ms: float = 0.0
    process: bool = True


class Serves(NamedTuple):
    """The layer serves: pin its process to its core, and repeat the pending requests."""


class Answer(NamedTuple):
    """Answer the requests for a restart: done (""), or the error."""

    problem: str


Action = Fork | Go | TellStop | Kill | Dismiss | Take | UseCode | Blame | Log | Serves | Answer


class Death(NamedTuple):
    """The end of a process. `from_outside`: by a SIGKILL that the keeper did not send."""

    why: str
    from_outside: bool = False


class Transition(NamedTuple):
    """The method that handles an event, and the states that may follow."""

    act: Callable[..., None]
    follow: frozenset[State]


class Service:
    """The state machine of one layer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.DOWN
        self.present: set[Role] = set()
        self.incarnation = 0
        self.restarts = 0
        self.policy = Restarts()
        self.ready_at: float | None = None  # time since which the process serves; None: it does not serve yet
        self.away_since: float | None = None
        self.start_at: float | None = None
        self._spare_at: float | None = None
        self._on_probation = False  # the code is new, and the former code is kept
        self._stop_by: float | None = None
        self._load_by: float | None = None
        self._forks_refused = 0
        self._actions: list[Action] = []

    def happens(self, event: Event, now: float, *facts: object) -> list[Action]:
        """Handle an event; returns the actions for the keeper."""
        row = TABLE[self.state].get(event)
        if row is None:
            return []
        self._actions = []
        row.act(self, now, *facts)
        assert self.state in row.follow, (event, self.state)
        return self._actions

    @property
    def next_time(self) -> float | None:
        """Time of the next TIME event; None: none is due."""
        due = [self.start_at, self._stop_by, self._load_by]
        if self.state is State.UP:
            due.append(self._spare_at)
            if self._on_probation and self.ready_at is not None:
                due.append(self.ready_at + PROBATION_S)
        return min((at for at in due if at is not None), default=None)

    def _do(self, *actions: Action) -> None:
        self._actions += actions

    # -- starting ------------------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        """Serve at once with the code that served last."""
        self.state = State.STARTING
        self.start_at = self.ready_at = None
        self.incarnation += 1
        if Role.SPARE in self.present:
            self.present.remove(Role.SPARE)
            self._do(Take(Role.SPARE))
        else:
            self._do(Fork(Role.PROCESS))
        self.present.add(Role.PROCESS)
        self._do(Go(self.incarnation))

    def _serve(self, now: float) -> None:
        gap_ms = round((now - self.away_since) * 1000, 1) if self.away_since is not None else 0.0
        self.state = State.UP
        self.ready_at, self.away_since = now, None
        self._spare_at = now + SPARE_AFTER_S
        self._forks_refused = 0
        self._do(Serves(), Log("serves", gap_ms=gap_ms))
        self._answer("")

    def _refused(self, now: float, role: Role, why: str) -> None:
        """A fork failed: try again, with increasing pauses."""
        self.present.discard(role)
        doublings = min(self._forks_refused, 10)  # more are beyond the maximum, and 1,024 of them no float any more
        pause_s = min(FORK_PAUSE_MAX_S, FORK_PAUSE_S * 2**doublings)
        self._forks_refused += 1
        if self._forks_refused == 1 or role is not Role.SPARE:
            self._do(Log("no process", f"{role}: {why}; next try in {pause_s:.2f} s", process=False))
        if role is Role.SPARE:
            self._spare_at = now + pause_s
        elif role is Role.SUCCESSOR:
            self._load_by = None
            self._answer(f"{self.name}: no process for the new code: {why}")
        elif self.state is not State.STOPPING:
            self.state, self.start_at = State.PAUSED, now + pause_s

    # -- dying ---------------------------------------------------------------------------------------------------

    def _die(self, now: float, death: Death) -> None:
        """The process ended without having been told to stop."""
        self.present.discard(Role.PROCESS)
        served_s = now - (self.ready_at if self.ready_at is not None else now)
        self.away_since = self.away_since if self.away_since is not None else now
        self.restarts += 1
        self._do(Blame(not death.from_outside), Log("died", death.why))
        if self._on_probation and not death.from_outside and served_s < PROBATION_S:
            self._on_probation = False
            self._do(UseCode("former"), Log("rolled back", "the new version died; the former code is used again",
                                            process=False))
            self._dismiss_spare()
        pause_s = self.policy.pause_s(served_s, now, death.from_outside)
        if pause_s == 0:
            self._start(now)
        else:
            self.start_at = now + pause_s
            self.state = State.FAILED if self.policy.given_up else State.PAUSED
        if self.state is State.FAILED:
            self._answer(f"{self.name} keeps dying: {death.why}")
            self._do(Log("failed", f"it keeps dying; it is tried again in {pause_s:.0f} s, or at once by "
                         f"`launcher.py restart {self.name}`", process=False))

    def _hang(self, now: float, beat: float, why: str) -> None:
        self.away_since = beat
        self._do(Kill(Role.PROCESS, why))

    def _lose_spare(self, now: float) -> None:
        self.present.discard(Role.SPARE)
        self._spare_at = now + SPARE_AFTER_S

    def _dismiss_spare(self) -> None:
        if Role.SPARE in self.present:
            self.present.remove(Role.SPARE)
            self._do(Dismiss())

    # -- planned restarts ----------------------------------------------------------------------------------------

    def _renew(self, now: float) -> None:
        """Load the code on disk into a successor, while the present process keeps serving."""
        if Role.SUCCESSOR in self.present:
            return  # the restart under way also answers the new request
        self.policy.forgive()
        self.present.add(Role.SUCCESSOR)
        self._load_by = now + LOAD_TIMEOUT_S
        self._do(Fork(Role.SUCCESSOR, new_code=True))

    def _hand_over(self, now: float) -> None:
        self._load_by = None
        if self.state is State.HANDING_OVER:
            return  # this is a second successor: the first ended after the process was told to stop
        if Role.PROCESS not in self.present:
            self._promote(now)
            return
        self.state = State.HANDING_OVER
        self.away_since, self._stop_by = now, now + STOP_TIMEOUT_S
        self._do(TellStop(Role.PROCESS))

    def _promote(self, now: float) -> None:
        self.present -= {Role.SUCCESSOR}
        self.state = State.STARTING
        self.start_at = self.ready_at = None
        self.incarnation += 1
        self.restarts += 1
        self._on_probation = True
        self._do(Take(Role.SUCCESSOR), UseCode("successor"))
        self._dismiss_spare()
        self.present.add(Role.PROCESS)
        self._do(Go(self.incarnation))

    def _handed_over(self, now: float, death: Death) -> None:
        """The process that was told to stop has ended."""
        self.present.discard(Role.PROCESS)
        self._stop_by = None
        if death.from_outside:
            self._do(Blame(may_be=False))
        if Role.SUCCESSOR in self.present and self._load_by is None:
            self._promote(now)
        else:
            self.restarts += 1
            self._start(now)

    def _lose_successor(self, now: float, death: Death) -> None:
        self.present.discard(Role.SUCCESSOR)
        self._load_by = None
        self._do(Log("refused", death.why, process=False))
        self._answer(f"{self.name}: the new version did not start, the former one keeps serving:\n{death.why}")

    def _answer(self, problem: str) -> None:
        """To those who have asked for a planned restart. While there is a successor, only what becomes of it answers:
        until then a process with the former code may die and be replaced."""
        if Role.SUCCESSOR not in self.present:
            self._do(Answer(problem))

    # -- time, and the end ---------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self._stop_by is not None and now >= self._stop_by:
            self._stop_by = None
            roles = self.present if self.state is State.STOPPING else {Role.PROCESS}
            self._do(*(Kill(role, "it did not stop when told") for role in sorted(roles)))
        if self._load_by is not None and now >= self._load_by:
            self._load_by = None
            self._do(Kill(Role.SUCCESSOR, f"its code was not loaded within {LOAD_TIMEOUT_S:.0f} s"))
        if self.start_at is not None and now >= self.start_at:
            self._start(now)
        if self.state is State.UP:
            self._settle_in(now)

    def _settle_in(self, now: float) -> None:
        if self._spare_at is not None and now >= self._spare_at:
            self._spare_at = None
            if Role.SPARE not in self.present:
                self.present.add(Role.SPARE)
                self._do(Fork(Role.SPARE))
        if self._on_probation and self.ready_at is not None and now - self.ready_at >= PROBATION_S:
            self._on_probation = False
            self._do(UseCode("forget former"))

    def _stop(self, now: float) -> None:
        self.state = State.STOPPING
        self.start_at = self._load_by = None
        self._stop_by = now + STOP_TIMEOUT_S
        self._do(*(TellStop(role) for role in sorted(self.present)))
        self._maybe_down()

    def _stopped(self, now: float, *death: Death) -> None:
        self.present.discard(Role.PROCESS)
        self._maybe_down()

    def _successor_stopped(self, now: float, *death: Death) -> None:
        self.present.discard(Role.SUCCESSOR)
        self._maybe_down()

    def _spare_stopped(self, now: float) -> None:
        self.present.discard(Role.SPARE)
        self._maybe_down()

    def _maybe_down(self) -> None:
        if not self.present:
            self.state, self._stop_by = State.DOWN, None


def _to(act: Callable[..., None], *follow: State) -> Transition:
    return Transition(act, frozenset(follow))


_S, _E = State, Event
_SAME: dict[State, dict[Event, Transition]] = {  # the events that a state with or without a process handles alike
    state: {
        _E.RENEW: _to(Service._renew, state),
        _E.SUCCESSOR_DIED: _to(Service._lose_successor, state),
        _E.SPARE_DIED: _to(Service._lose_spare, state),
        _E.STOP: _to(Service._stop, _S.STOPPING, _S.DOWN),
    }
    for state in (_S.STARTING, _S.UP, _S.PAUSED, _S.FAILED, _S.HANDING_OVER)
}
_AFTER_DEATH = (_S.STARTING, _S.PAUSED, _S.FAILED)
TABLE: dict[State, dict[Event, Transition]] = {
    _S.DOWN: {
        _E.START: _to(Service._start, _S.STARTING),
    },
    _S.STARTING: _SAME[_S.STARTING] | {
        _E.READY: _to(Service._serve, _S.UP),
        _E.DIED: _to(Service._die, *_AFTER_DEATH),
        _E.HUNG: _to(Service._hang, _S.STARTING),
        _E.LOADED: _to(Service._hand_over, _S.HANDING_OVER),
        _E.FORK_REFUSED: _to(Service._refused, _S.PAUSED, _S.STARTING),
        _E.TIME: _to(Service._tick, _S.STARTING),
    },
    _S.UP: _SAME[_S.UP] | {
        _E.DIED: _to(Service._die, *_AFTER_DEATH),
        _E.HUNG: _to(Service._hang, _S.UP),
        _E.LOADED: _to(Service._hand_over, _S.HANDING_OVER),
        _E.FORK_REFUSED: _to(Service._refused, _S.UP),
        _E.TIME: _to(Service._tick, _S.UP),
    },
    _S.HANDING_OVER: _SAME[_S.HANDING_OVER] | {
        _E.LOADED: _to(Service._hand_over, _S.HANDING_OVER),
        _E.DIED: _to(Service._handed_over, _S.STARTING),
        _E.HUNG: _to(Service._hang, _S.HANDING_OVER),
        _E.FORK_REFUSED: _to(Service._refused, _S.HANDING_OVER),
        _E.TIME: _to(Service._tick, _S.HANDING_OVER),
    },
    _S.PAUSED: _SAME[_S.PAUSED] | {
        _E.LOADED: _to(Service._hand_over, _S.STARTING),
        _E.FORK_REFUSED: _to(Service._refused, _S.PAUSED),
        _E.TIME: _to(Service._tick, _S.PAUSED, _S.STARTING),
    },
    _S.FAILED: _SAME[_S.FAILED] | {
        _E.LOADED: _to(Service._hand_over, _S.STARTING),
        _E.FORK_REFUSED: _to(Service._refused, _S.FAILED),
        _E.TIME: _to(Service._tick, _S.FAILED, _S.STARTING),
    },
    _S.STOPPING: {
        _E.DIED: _to(Service._stopped, _S.STOPPING, _S.DOWN),
        _E.HUNG: _to(Service._hang, _S.STOPPING),
        _E.SUCCESSOR_DIED: _to(Service._successor_stopped, _S.STOPPING, _S.DOWN),
        _E.SPARE_DIED: _to(Service._spare_stopped, _S.STOPPING, _S.DOWN),
        _E.TIME: _to(Service._tick, _S.STOPPING),
    },
}
