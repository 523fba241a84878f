"""The event loop of a layer's process, with its inbox and its outboxes.

Each turn: wait for the inbox, the device or the next timer; take what is there, up to a bound; pass it to the core;
pack and send what the core returned; only then record the input as done. The loop itself writes the life sign, so a
layer that hangs cannot appear alive. The record that was being processed at a crash is suspected: see
`bus.runtime.poison`.
"""

from __future__ import annotations

import gc
import os
import select
import time

import msgspec

from bus import messages, topology
from bus.config import StackConfig
from bus.counters import PipeCounters as C
from bus.durable import layout
from bus.layer import ClientCore, Core, ManagedCore, PoisonCore, Send
from bus.messages import decode_notices
from bus.runtime import sabotage
from bus.runtime.clients import Clients
from bus.runtime.device import Device, DeviceEnd
from bus.runtime.greetings import Greetings
from bus.runtime.inbox import COUNTED, Inbox
from bus.runtime.outbox import inherit
from bus.runtime.pipes import Pipes
from bus.runtime.poison import PoisonFilter
from bus.runtime.runs import runs
from bus.runtime.spawn import SpawnArguments
from bus.runtime.taps import Taps
from bus.runtime.timerfd import TICK_OCTETS, ticker
from bus.runtime.turn import Turn
from usernet.pipe.contract import Trust, open_poller
from usernet.pipe.frame import MAX_FRAME_OCTETS, VERSION, FrameError, unpack_frame
from usernet.pipe.messages import BYE, REQUEST
from usernet.pipe.numbering import NEXT

# The longest wait, so the maximum time between life signs. A timer of its own wakes the loop, because a timeout for
# each wait makes an echo 7 % slower (docs/profile.md).
TICK_S = 0.1
RETRY_S = 0.01  # while output waits: a socket signals when there is room, but not when there is a listener
CLIENT_CHECK_S = 0.1
STARVED_TOLD_S = 10.0  # minimum time between two reports of it to the keeper
DESCRIPTORS_AT_ONCE = 64  # in a turn, so that no turn is long; epoll(7) reports the others first in the next one
# The time after which a turn takes nothing more: timers, and what others have sent, wait until its end. 1,100 closes of
# connections, which fit into one read, are 160 ms of tcp.
TURN_S = 0.01
RUN_FRAMES = 32  # maximum of frames that go to the core in one call
# So many records are passed on one by one, and so are those that begin with two for different outboxes: to look for
# runs would take longer.
FEW = 4
CONNECTIONS_MAX = layout.CLIENTS_MAX + 64  # of the inbox
DEVICE_PATIENCE_S = 0.1  # maximum time for which the device is not read because output waits

# Kinds whose frames go to the core one by one: 1,600 requests for a list of sockets, which may arrive together, take
# 0.7 s, and to take up the next frame is a life sign.
_ALONE = frozenset({BYE, REQUEST})


class EventLoop:
    """The event loop of one layer. `run` returns when the keeper tells it to stop."""

    def __init__(self, spawned: SpawnArguments, core: Core, durable: layout.Memory, device: Device | None = None,
                 taps: Taps | None = None) -> None:
        config = spawned.config
        self.number = topology.LAYERS[spawned.layer]
        self._taps = taps
        self._core: Core = taps.core if taps else core  # the core, perhaps with taps
        self._runs = taps.runs if taps else runs
        self._memory = durable
        self._words = durable.words
        self._counters = durable.bus_counters
        self._control = spawned.control
        self._next_starved_told = 0.0
        self._poller = open_poller(config.pipes, Trust(config.owner, config.users or (config.owner,)), spawned.statm_fd)
        self._pull = self._poller.pull(spawned.listener_fd, MAX_FRAME_OCTETS, CONNECTIONS_MAX, self._refused)
        self._turn = Turn(durable, spawned.held)
        self._cookie = config.cookie
        self._pipes = self._connected(spawned.layer, config)
        self._inboxes, self._outboxes = self._pipes.inboxes, self._pipes.outboxes
        self._device: DeviceEnd | None = None
        self._writes_through = device is not None and device.writes_through
        if device is not None:
            batches = self._pipes.inbox(topology.DEVICE, frozenset(), layout.DONE + topology.DEVICE)
            self._device = DeviceEnd(device, durable, batches, spawned.held, spawned.windows)
            self._turn.flush = self._device.flush
        self._clients = Clients(core, config, self._pipes) if isinstance(core, ClientCore) else None
        self._greetings = Greetings(self._core, self._pipes, self._clients, self._pull, self._control, self._dispatch)
        self._next_client_check = 0.0
        self._next_check_is_near = False
        self._suspect = PoisonFilter(durable, spawned.control)
        # Frames that were read and not looked at, because the turn was long: they are taken before anything else is
        # read. If the process dies, their senders repeat them.
        self._rest: list[bytes] = []

    def _connected(self, layer: str, config: StackConfig) -> Pipes:
        """The pipes to and from the other layers. All frames carry the cookie of the stack."""
        pipes, cookie = Pipes(self._poller, self._turn), config.cookie
        for name, kinds in topology.inputs(layer, config.layers).items():
            number = topology.LAYERS[name]
            pipes.inboxes[cookie + number] = pipes.inbox(number, kinds, layout.DONE + number)
        for name in topology.outputs(layer, config.layers):
            number = topology.LAYERS[name]
            pipes.connect(f"{config.run_dir}/{name}.sock", cookie + self.number, number, layout.SENT + number)
        return pipes

    def _refused(self, starved: int) -> None:
        if not starved:
            self._counters[C.bus_refused] += 1
            return
        self._counters[C.bus_starved] += 1
        if self._memory.beat[0] >= self._next_starved_told:
            self._next_starved_told = self._memory.beat[0] + STARVED_TOLD_S
            self._control.tell("starved", detail=os.strerror(starved))

    def run(self) -> None:
        """Serve until the keeper tells the loop to stop, or ends."""
        self._start()
        poll, pushes = self._poller.epoll, self._poller.pushes
        device, control_fd = self._device, self._control.fileno()
        device_fd = -1 if device is None else device.device.fileno()
        poll.register(control_fd, select.EPOLLIN)
        tick_fd = ticker(TICK_S)
        poll.register(tick_fd, select.EPOLLIN)
        if device is not None:
            poll.register(device_fd, select.EPOLLIN)
        words, core, wait, monotonic = self._words, self._core, poll.poll, time.monotonic
        turn, touched, beat = self._turn, self._turn.touched, self._memory.beat
        read = self._pull.read
        device_due = device is not None
        edge_triggered = device is not None and device.device.edge_triggered
        at_once = DESCRIPTORS_AT_ONCE
        takes_in = device is not None or self._clients is not None  # it gets input from outside the stack
        held = False
        unheard: list[tuple[int, int]] = []  # what the poller has reported, and the turn was long
        while True:
            if (touched or held) and held != self._holds_back(monotonic()):
                held = not held
                poll.modify(device_fd, 0 if held else select.EPOLLIN)
            rest = self._rest
            ready: list[tuple[int, int]] = []
            if rest:
                pass
            elif unheard:
                ready, unheard = unheard, ready
            elif device_due and not held:
                ready = wait(0, at_once)
            elif core.next_wake is None and not touched and not self._next_check_is_near:
                ready = wait(-1, at_once)
            else:
                ready = wait(self._timeout_s(monotonic()), at_once)
            now = monotonic()
            beat[0] = now
            most = len(rest)  # maximum number of frames at once in this turn
            if rest:
                self._take_some(rest, now)
            several = len(ready) > 1
            for descriptor, _ in ready:
                frames = read(descriptor)
                if frames is not None:
                    if len(frames) > most:
                        most = len(frames)
                    if len(frames) > 1:
                        self._take_some(frames, now)
                    elif frames:
                        self._take(frames[0], now)
                    if self._rest or (several and monotonic() > now + TURN_S):
                        unheard = ready[[each for each, _ in ready].index(descriptor) + 1 :]
                        break
                elif descriptor == device_fd:
                    device_due = True
                elif descriptor in pushes:
                    pushes[descriptor].hear()
                elif descriptor == tick_fd:
                    os.read(tick_fd, TICK_OCTETS)
                    self._pull.expire(now)
                elif descriptor == control_fd:
                    if not self._handle_message(self._control.hear(), now):
                        return
                    core = self._core
            if device is not None and device_due and not held:
                count = self._take_device(device, now)
                device_due = count > 0 and edge_triggered
                most = max(most, count)
            if core.next_wake is not None and core.next_wake <= now:
                self._dispatch(core.wake(now))
            if self._clients is not None and not (self._rest or unheard) and (
                    now >= self._next_client_check or self._clients.is_contested):
                self._check_clients(self._clients, now)
            turn.end()
            if most > 1 and takes_in:
                # There is enough work for several processes. Layers further along should run first, so that more frames
                # arrive at once, which costs less per frame: a tenth more echoes/s with 64 in flight, a sixth more with
                # long ones.
                os.sched_yield()
            if words[layout.SABOTAGE]:
                sabotage.commit(words)

    def _start(self) -> None:
        now = time.monotonic()
        self._memory.beat[0] = now
        self._words[layout.LONG_WORK] = 0
        batch = self._device.left() if self._device is not None else []
        self._suspect.inherit(self._turn.journal.done)
        inherit(self._memory)
        self._greetings.begin(self._cookie)
        self._dispatch(self._core.start(now))
        self._greetings.known(now)
        if self._device is not None:
            self._work_off(self._device, batch, now)
        self._turn.end()
        gc.freeze()  # a collection need not look at the restored state, which may be that of 65,536 sockets
        self._memory.beat[0] = time.monotonic()  # else the time of restoring would look like a hang
        self._control.tell("ready")

    def _holds_back(self, now: float) -> bool:
        """True if frames should stay in the device, where they cost nothing and survive a crash, because output waits.

        This is limited in time, so that one consumer that does not read cannot block the others.
        """
        device = self._device
        return device is not None and now < device.read_at + DEVICE_PATIENCE_S and self._turn.blocked

    def _timeout_s(self, now: float) -> float:
        wake = self._core.next_wake
        limit = RETRY_S if self._turn.touched or self._next_check_is_near else TICK_S
        return limit if wake is None else min(limit, max(0.0, wake - now))

    # -- taking -------------------------------------------------------------------------------------------------

    def _take(self, frame: bytes, now: float) -> None:
        counters = self._counters
        counters[C.bus_frames_in] += 1
        turn = self._turn
        if turn.taken and turn.journal.crowded:
            turn.end()  # because the output of one turn must fit into the journal
        try:
            kind, incarnation, sender, sequence, records = unpack_frame(frame)
        except FrameError:
            counters[C.bus_malformed] += 1
            self._greetings.undecodable(frame, now)
            return
        inbox = self._inboxes.get(sender)
        if inbox is None:
            self._greetings.stranger(kind, records, VERSION, now)
            return
        if inbox.pid and self._pull.pid not in (inbox.pid, 0):  # the id of another process
            counters[C.bus_foreign] += 1
            return
        if sequence == 0:
            self._greetings.heard(inbox, kind, incarnation, records, now)
            return
        verdict = inbox.judge(incarnation, sequence)
        if verdict is not NEXT:
            counters[COUNTED[verdict]] += 1
            return
        if kind not in inbox.kinds:
            counters[C.bus_foreign] += 1
        elif kind == BYE:
            self._greetings.bye(inbox, now)
        else:
            self._give(inbox, kind, records, now)

    def _take_some(self, frames: list[bytes], now: float) -> None:
        """Take frames that arrived together, until the turn has been long; the others are the rest."""
        monotonic, until = time.monotonic, now + TURN_S
        many = self._clients is not None and not self._suspect.watching
        step = RUN_FRAMES if many else 1
        for at in range(0, len(frames), step):
            if at and monotonic() > until:
                self._rest = frames[at:]
                return
            if many:
                self._take_many(frames[at : at + step], now)
            else:
                self._take(frames[at], now)
        self._rest = []

    def _take_many(self, frames: list[bytes], now: float) -> None:
        """Take frames that arrived together: consecutive frames of one kind from one sender go to the core in one call.

        Applications send one datagram per frame, and a call for each would take a fifth of the socket service's time.
        """
        counters, inboxes, pid, turn = self._counters, self._inboxes, self._pull.pid, self._turn
        runner: Inbox | None = None  # the sender of the present run, its kind, and its records
        running, run = 0, list[bytes]()
        for frame in frames:
            try:
                kind, incarnation, sender, sequence, records = unpack_frame(frame)
                inbox = inboxes[sender]
                joins = (sequence > 0 and kind in inbox.kinds and kind not in _ALONE
                         and (inbox.pid == pid or not (inbox.pid and pid)))
            except (FrameError, KeyError):
                joins = False
            if runner is not None and not (joins and inbox is runner and kind == running):
                self._give(runner, running, run, now)
                runner = None
            if not joins:
                self._take(frame, now)
                continue
            counters[C.bus_frames_in] += 1
            if runner is None and turn.taken and turn.journal.crowded:
                turn.end()
            verdict = inbox.judge(incarnation, sequence)
            if verdict is not NEXT:
                counters[COUNTED[verdict]] += 1
            elif runner is None:
                runner, running, run = inbox, kind, records
            else:
                run += records
        if runner is not None:
            self._give(runner, running, run, now)

    def _give(self, inbox: Inbox, kind: int, records: list[bytes], now: float) -> None:
        """Pass records to the core: those up to the last frame taken from `inbox`."""
        words, sender, sequence = self._words, inbox.sender, inbox.done
        words[layout.IN_HAND_SEQUENCE] = sequence
        words[layout.IN_HAND_SENDER] = sender
        device = self._device
        if device is not None and self._writes_through:
            device.begin(sender, sequence)
        self._turn.taken.add(inbox)
        if self._suspect.watching:
            for record in self._suspect.sift(sender, sequence, kind, records):
                self._dispatch(self._core.receive(sender, kind, [record], now))
            if isinstance(self._core, PoisonCore):
                for record in self._suspect.dropped:
                    self._dispatch(self._core.record_set_aside(sender, kind, record, now))
            if self._suspect.found and inbox.pid and self._greetings.offended(inbox, now):
                return
        else:
            self._dispatch(self._core.receive(sender, kind, records, now))
        if self._writes_through and not self._turn.unpublished:
            self._turn.commit(inbox)  # its output has left already, so a crash later in this turn must not repeat it

    def _take_device(self, device: DeviceEnd, now: float) -> int:
        """Read frames from the device and process them; returns their number."""
        frames = device.read(now)
        self._work_off(device, frames, now)
        return len(frames)

    def _work_off(self, device: DeviceEnd, frames: list[bytes], now: float) -> None:
        if not frames:
            return
        self._turn.taken.add(device.inbox)
        for kind, run in device.runs(frames):
            if self._suspect.watching:
                for frame in self._suspect.sift(topology.DEVICE, 0, kind, run):
                    self._dispatch(self._core.receive(topology.DEVICE, kind, [frame], now))
            else:
                self._dispatch(self._core.receive(topology.DEVICE, kind, run, now))

    def _handle_message(self, word: str, now: float) -> bool:
        """Carry out a message of the keeper; False: stop, or the keeper has ended."""
        if word.startswith("{"):
            try:
                question = msgspec.json.decode(word)
            except msgspec.DecodeError:
                return True  # longer than a packet of the control channel; the keeper has refused the request already
            if "taps" in question and self._taps:
                released = self._taps.apply(question["taps"], now)
                self._core = self._greetings.core = self._taps.core
                self._runs = self._taps.runs
                self._dispatch(released)
                if self._clients is not None and isinstance(self._core, ClientCore):
                    self._clients.core = self._core
                self._control.tell("answer", id=question["id"], answer={})
                return True
            answer: dict[str, object] = {"error": "this layer accepts no requests of the command line"}
            if isinstance(self._core, ManagedCore):
                answer, sends = self._core.manage(question["request"], now)
                self._dispatch(sends)
                self._turn.end()  # what was answered has to count
            self._control.tell("answer", id=question["id"], answer=answer)
            return True
        return word == "go"

    # -- sending ------------------------------------------------------------------------------------------------

    def _dispatch(self, sends: list[Send]) -> None:
        outboxes = self._outboxes
        if self._runs is runs and (len(sends) <= FEW or sends[0][:2] != sends[1][:2]):
            for consumer, kind, record in sends:
                outbox = outboxes.get(consumer)
                if outbox is not None:
                    outbox.enqueue(kind, record)
                else:
                    self._hand_over(consumer, kind, [record])
            return
        for consumer, kind, records in self._runs(sends):
            outbox = outboxes.get(consumer)
            if outbox is not None:
                if len(records) > 1:
                    outbox.enqueue_run(kind, records)
                else:
                    outbox.enqueue(kind, records[0])
            else:
                self._hand_over(consumer, kind, records)

    def _hand_over(self, consumer: int, kind: int, records: list[bytes]) -> None:
        """What does not leave through a pipe."""
        if consumer == topology.DEVICE and self._device is not None:
            write = self._device.write_held if kind == messages.ETHERNET_HELD else self._device.write
            for record in records:
                write(record)
        elif consumer == topology.KEEPER:
            for record in records:
                self._control.tell("notices", notices=decode_notices(record))

    # -- clients --------------------------------------------------------------------------------------------------

    def _check_clients(self, clients: Clients, now: float) -> None:
        for number in clients.ended(self._pull, now):
            self._dispatch(clients.core.client_left(number, now))
        if clients.is_contested:
            self._dispatch(clients.core.clients_checked(now))
        self._next_check_is_near = clients.ending
        self._next_client_check = now + (RETRY_S if clients.ending else CLIENT_CHECK_S)
