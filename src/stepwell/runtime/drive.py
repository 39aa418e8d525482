"""One call's work: start what is ready, take in what ended, commit, and wait for what comes.

A drive is a generator that yields :class:`~stepwell.runtime.clock.Wait` and is sent what the mailbox held; the sync and
async runners differ in who waits (the two functions in :mod:`.drivers`) and in nothing else. It knows no workflow
semantics: it asks the frontier what may run, tells the engine what happened, and obeys facts.

One turn: *take in* (outcomes, messages, timers) → *start* (or run here) → *commit* everything that ended since the last
commit, in one transaction → release the successors. A step starts only after what it follows has been committed. A turn
never waits for a body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from stepwell.engine import events as e
from stepwell.errors import InstanceDamaged, LeaseLost
from stepwell.flow.plan import Key

from . import observed
from .arrivals import Kept, Lapsed, News, Posted, Replaced, event_of_failure, timed_out
from .clock import AnyMailbox, Polling, Wait
from .context import CURRENT
from .desk import Desk
from .hands import Fatal, perform_apart
from .invoke import Body, Job, Outcome, perform
from .launch import stop
from .live import STARTED, Live

if TYPE_CHECKING:
    import asyncio

    from .room import Room


BUSY_MAIL_NS: Final = 10_000_000  # how long a busy drive may overlook a posted request
TURN_STEPS: Final = 500  # a commit is shared by at most so many steps …
TURN_NS: Final = 2_000_000  # … or by what ends within 2 ms, unless nothing else is ready
LOOKS: Final = 64  # how many waiting instances are looked at between two waits, once others have written
_START_PHASES: Final = frozenset({"ready", *STARTED})

Turns_: TypeAlias = Generator[Wait, Sequence[object], None]


class Drive(Desk):
    """Works on instances until they end, or (``stay=False``) until nothing can move now.

    Attributes:
        lends_thread: whether a plain body that is alone runs in the thread that drives.
    """

    lends_thread = True

    def __init__(self, room: Room, mailbox: AnyMailbox, *, stay: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        super().__init__(room, mailbox, stay=stay, loop=loop)
        self._at_once = self._keep_at_once
        self._has_thread = self.lends_thread and loop is None
        self._polling = Polling(room.poll_us)
        self._gate: Callable[[Live, Key, Body], bool] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Whatever happened: claims are given back and flights are let go."""
        self.over = True
        if self._lives:
            self.abandon(self.lives())
        self.room.lookout.settle()

    def turns(self) -> Turns_:
        """Work until nothing is left to work on."""
        token = CURRENT.set(self._cell)
        try:
            while self._has_work():
                if not self._trials.idle:
                    self._ready.extend(self._trials.freed(self._works_on, self._flights.here))
                if self._ready:
                    self._start_some()
                    self._flights.hand_over()
                if not self.mailbox.empty():
                    self._take_in(self.mailbox.drain())
                if self._dirty:
                    self._commit()
                if self._writes and time.perf_counter_ns() - self._mail_at > BUSY_MAIL_NS:
                    self._read_mail()
                if self._timer_due():
                    self._fire()
                    continue
                if self._ready or self._refill():
                    continue
                if not self.stay and not self._flights.count and not self._timer_due():
                    self._rest_all()
                elif (wait := self._wait()) is not None:
                    self._wake_up((yield wait))
        finally:
            self.over = True
            CURRENT.reset(token)

    def _wake_up(self, came: Sequence[object]) -> None:
        """Take in what has come; what has ended is made safe before anything else is asked for."""
        if came:
            self._polling.came(time.perf_counter_ns())
        self._take_in(came)
        self._commit()
        self._read_mail()
        if not came:
            self._look_around()
        self._fire()

    def _has_work(self) -> bool:
        return bool(self._lives)

    def _refill(self) -> bool:
        """Take up more, if there is more to be had. Returns whether to look again before waiting."""
        return not self._lives

    # --- starting ---

    def _start_some(self) -> None:
        ready, began, started = self._ready, time.perf_counter_ns(), 0
        nothing_came, trials = self.mailbox.empty, self._trials
        while ready:
            live, key = ready.popleft()
            state = live.state
            step = state.steps.get(key)
            if step is None or live.let_go or step.phase not in _START_PHASES or key in live.flights:
                continue
            if step.phase in STARTED and key in live.upcoming:
                continue  # that it began is not stored yet
            if step.phase == "began":
                pass  # what is recorded as its only start does happen
            elif state.ended or state.held or state.paused or state.stopping:
                continue
            elif step.due_us and step.due_us > self.room.clock.now_us():
                continue  # it has been tried meanwhile
            body = live.bodies[key[0]] or live.prepared.body(key[0])
            if (self._gate or live.suspects or not trials.idle) and self._holds_back(live, key, body):
                continue
            if step.phase != "began" and (body.at_most_once or (step.phase == "ready" and key in live.suspects)):
                live.upcoming.append(key)
                self._record(live, e.Begun(key[0], key[1], step.attempt), self.room.clock.now_us())
            else:
                try:
                    self._start(live, key, body, step.attempt)
                except InstanceDamaged as error:
                    self._lose(live, error)
            started += 1
            if not nothing_came() and key not in live.flights:  # it ran here, and may have been told something
                return
            if (self._dirty or self._timers.heap or not nothing_came()) and (
                started >= TURN_STEPS or time.perf_counter_ns() - began > TURN_NS
            ):
                return

    def _holds_back(self, live: Live, key: Key, body: Body) -> bool:
        if (live.suspects or not self._trials.idle) and not self._trials.admits(live, key, self._flights.here):
            return True
        return self._gate is not None and not self._gate(live, key, body)

    def _start(self, live: Live, key: Key, body: Body, attempt: int) -> None:
        job = Job(live, body, key[0], key[1], attempt, live.gather(body, key))
        if live.observed is not None:
            observed.watch(job)
        if body.inline or (body.plain and self._has_thread and not self._ready and not self._flights.count):
            job.keep = self._at_once
            outcome = perform(job, self._cell) if self._loop is None else perform_apart(job, self._cell)
            if self._broken is not None:
                raise self._broken
            self._absorb(outcome)
        else:
            self._launch(live, body, job)

    def _launch(self, live: Live, body: Body, job: Job) -> None:
        job.keep = self._keep_later
        if body.timeout_us:
            job.deadline_us = self.room.clock.now_us() + body.timeout_us
            self._timers.add(job.deadline_us, live, job)
        self._flights.launch(live, job)

    # --- taking in ---

    def _take_in(self, items: Iterable[object]) -> None:
        for item in items:
            if type(item) is Outcome:
                if self._flights.land(item.job):
                    self._absorb(item)
            elif type(item) is Fatal:
                if self._flights.land(item.job):
                    raise item.error
            else:
                self._heed(item)

    def _heed(self, item: object) -> None:
        match item:
            case Kept(job, cursor):
                self._keep(job, cursor)
            case Posted(instance_id, message):
                if live := self._lives.get(instance_id):
                    self._deliver(live, message)
            case Replaced(live):
                if self._works_on(live):
                    self._replaced(live)
            case Lapsed(why):
                raise LeaseLost(f"the lease of this runner's session is lost: {why}")
            case News():
                self._hint = self._mail_at = 0
            case None:
                self.room.check_open()  # or a clock was moved: what is due now is seen without being told
            case _:
                raise AssertionError(f"nobody puts a {type(item).__name__} into a mailbox")

    def _absorb(self, outcome: Outcome) -> None:
        live: Live = outcome.job.live
        if live.observed is not None:
            observed.ended(outcome)
        if live.suspects:
            self._trials.ended(live, outcome.job.key)
        if outcome.stored:
            self._redo(live)
            return
        job, now = outcome.job, self.room.clock.now_us()
        if outcome.error is None:
            succeeded = e.Succeeded(job.node, job.turns, job.number, outcome.tag)
            self._record(live, succeeded, now, outcome.output, job.took_us)
            return
        before = live.state.seq
        event, record = event_of_failure(outcome)
        self._record(live, event, now, record, job.took_us)
        if (failure := live.state.failure) and failure.address > before:
            live.errors = {**live.errors, failure.address: outcome.error}

    # --- waiting ---

    def _look_around(self) -> None:
        """What waits does not commit, so it would not notice; each look costs a read, so they are few at a time."""
        looks, self._unsure = self._unsure[:LOOKS], self._unsure[LOOKS:]
        for live in looks:
            if self._works_on(live) and self._is_replaced(live):
                self._replaced(live)

    def _wait(self) -> Wait | None:
        """Return what to wait for, or ``None`` if there is something to do already."""
        self._write_rests()
        if self._ready or not (self._lives or self.lets_go):
            return None
        until = self._next_us()
        if until is not None and until <= self.room.clock.now_us():
            self._fire()
            return None
        poll_us = self._polling.pause_us(time.perf_counter_ns()) if self.room.backend is not None else None
        return Wait(until, self._flights.count > 0, poll_us, self.mailbox.put)

    def _next_us(self) -> int | None:
        return self._timers.next_us()

    def _timer_due(self) -> bool:
        return self._timers.due(self.room.clock.now_us)

    def _fire(self) -> None:
        now = self.room.clock.now_us()
        for live, what in self._timers.take(now):
            if isinstance(what, Job):
                self._time_out(what)
            elif what is None:
                self._give_up(live)
            elif (phase := live.state.steps[what].phase) == "ready":
                self._ready.append((live, what))
            elif phase == "parked":
                self._record(live, e.Fired(*what), now)

    def _give_up(self, live: Live) -> None:
        """The grace of a cancelled instance is over: bodies that did not stop are no longer waited for."""
        self._flights.forget(live)
        self._settle_idle(live)

    def _time_out(self, job: Job) -> None:
        if not self._flights.land(job):
            return
        if not stop(job, "its timeout has passed"):
            self.room.threads().abandon(job)
        self._absorb(timed_out(job))

    # --- messages ---

    def _read_mail(self) -> None:
        """Take in what others posted to the instances held here."""
        backend = self.room.backend
        self._mail_at = time.perf_counter_ns()
        if backend is None or not self._lives:
            return
        hint = backend.hint()
        if hint == self._hint:
            return
        self._polling.came(self._mail_at)
        self._unsure = self.lives()
        by_number = {live.instance: live for live in self._unsure}
        for number, messages in self.room.fenced(backend.mail).items():
            if (live := by_number.get(number)) is not None:
                for message in messages:
                    self._take_message(live, message)
        self._hint = hint  # not a later one: what was posted since the inbox was read must be seen
        self._commit()

    # --- cursors ---

    def _keep_later(self, job: Job, cursor: object) -> None:
        self.mailbox.put(Kept(job, job.live.encode(cursor)))

    def _keep_at_once(self, job: Job, cursor: object) -> None:
        """Store a cursor for the body that runs here. If that cannot be, the drive is over, whatever the body does."""
        kept = job.live.encode(cursor)
        try:
            self._keep(job, kept)
            self._take_in(self.mailbox.drain())
            self._read_mail()
            self._commit()
        except BaseException as error:
            self._broken, job.stopped = error, "the run is suspended"
            if not isinstance(error, Exception):
                raise

    def _keep(self, job: Job, cursor: object) -> None:
        if not self._works_on(job.live):
            return  # it was let go meanwhile
        self._record(job.live, e.Beat(job.node, job.turns, job.number), self.room.clock.now_us(), cursor)
