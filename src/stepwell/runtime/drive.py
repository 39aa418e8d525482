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
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from stepwell.backend.base import Change, Message, Rest
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.errors import InstanceConflict, InstanceDamaged, LeaseLost
from stepwell.flow.plan import Key
from stepwell.types import ENDED

from .arrivals import Kept, News, Posted, Replaced, event_of_failure, timed_out
from .clock import AnyMailbox, Wait
from .context import CURRENT, Cell
from .hands import Fatal, perform_apart
from .invoke import Body, Job, Outcome, perform
from .launch import Flights, stop
from .live import Arrived, Live
from .requests import event_of, value_of
from .timers import Timers

if TYPE_CHECKING:
    import asyncio

    from .room import Room


BUSY_MAIL_NS: Final = 10_000_000  # how long a busy drive may overlook a posted request
TURN_STEPS: Final = 500  # a commit is shared by at most so many steps …
TURN_NS: Final = 2_000_000  # … or by what ends within 2 ms, unless nothing else is ready
GRACE_US: Final = 30_000_000  # how long a cancelled instance waits for bodies that do not stop
LOOKS: Final = 64  # how many waiting instances are looked at between two waits, once others have written
_START_PHASES: Final = frozenset({"ready", "began"})

Turns_: TypeAlias = Generator[Wait, Sequence[object], None]


class Drive:
    """Works on instances until they end, or (``stay=False``) until nothing can move now."""

    lets_go = False  # whether an instance is given back as soon as it is at rest, while others go on

    def __init__(self, room: Room, mailbox: AnyMailbox, *, stay: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        self.room, self.mailbox, self.stay = room, mailbox, stay
        self._loop = loop
        self._writes = room.backend is not None
        self._at_once = self._keep_at_once
        self.over = False
        self.on_finish: Callable[[Live], None] | None = None
        self._cell = Cell()
        self._lives: dict[str, Live] = {}
        self._ready: deque[tuple[Live, Key]] = deque()
        self._timers = Timers(self._works_on)
        self._broken: BaseException | None = None
        self._dirty: dict[str, Live] = {}
        self._restless: dict[str, Live] = {}
        self._flights = Flights(room, mailbox, loop)
        self._hint = -1
        self._unsure: list[Live] = []
        self._mail_at = 0

    # --- joining and leaving ---

    def join(self, live: Live) -> None:
        """Take on an instance that the store (if any) has given to this runner."""
        self.room.enter(live, self.mailbox)
        if (before := self._lives.get(live.instance_id)) is not None:
            self._replaced(before)  # a message says so too, but there is one place for an id
        self._lives[live.instance_id] = live

    def begin(self, live: Live, mail: Iterable[Message] = ()) -> None:
        """Look over a joined instance: what may run, what waits for a time, what was cut off, what has been asked."""
        if not live.upcoming:  # a new one may say by itself what comes first
            self._survey(live)
        for message in mail:  # before anything starts: a holder that died had left it, and its sender relies on it
            self._take_message(live, message)
        if live.entries or live.taken:
            self._dirty[live.instance_id] = live
        else:
            self._release_unwritten(live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Whatever happened: claims are given back and flights are let go."""
        self.over = True
        if self._lives:
            self.abandon(self.lives())

    def turns(self) -> Turns_:
        """Work until nothing is left to work on."""
        token = CURRENT.set(self._cell)
        try:
            while self._has_work():
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
                    came = yield wait
                    self._take_in(came)
                    self._read_mail()
                    if not came:
                        self._look_around()
                    self._fire()
        finally:
            self.over = True
            CURRENT.reset(token)

    def _has_work(self) -> bool:
        return bool(self._lives)

    def _refill(self) -> bool:
        """Take up more, if there is more to be had. Returns whether to look again before waiting."""
        return not self._lives

    def lives(self) -> list[Live]:
        """Return the instances that are worked on."""
        return list(self._lives.values())

    def abandon(self, lives: Iterable[Live]) -> None:
        """Give instances back as they stand: what has ended is kept, what still runs is no longer waited for."""
        left = [live for live in lives if self._let_go(live, "the runner has stopped")]
        self._keep_ready(self._works_on)
        self.room.give_back(left)

    def _let_go(self, live: Live, why: str) -> bool:
        """Work on an instance no more, and tell its bodies to stop. Returns whether it was worked on."""
        if not self._works_on(live):
            return False
        del self._lives[live.instance_id]
        self._restless.pop(live.instance_id, None)
        self._dirty.pop(live.instance_id, None)
        self._flights.stop(live, why)
        self._flights.forget(live)
        live.upcoming = []
        self.room.leave(live)
        return True

    def _works_on(self, live: Live) -> bool:
        return self._lives.get(live.instance_id) is live

    def _keep_ready(self, wanted: Callable[[Live], bool]) -> None:
        kept = [(live, key) for live, key in self._ready if wanted(live)]
        self._ready.clear()
        self._ready.extend(kept)

    # --- starting ---

    def _start_some(self) -> None:
        ready, began, started = self._ready, time.perf_counter_ns(), 0
        nothing_came = self.mailbox.empty
        while ready:
            live, key = ready.popleft()
            state = live.state
            step = state.steps.get(key)
            if step is None or step.phase not in _START_PHASES or key in live.flights:
                continue
            if step.phase == "began":
                if key in live.upcoming:
                    continue  # that it began is not stored yet
            elif state.ended or state.held or state.paused or state.stopping:
                continue
            elif step.due_us and step.due_us > self.room.clock.now_us():
                continue  # it has been tried meanwhile
            body = live.bodies[key[0]] or live.prepared.body(key[0])
            if body.at_most_once and step.phase == "ready":
                live.upcoming.append(key)
                self._record(live, e.Begun(key[0], key[1], step.attempt), self.room.clock.now_us())
            else:
                try:
                    self._start(live, key, body, step.attempt)
                except InstanceDamaged as error:
                    self._lose(live, error)
            started += 1
            if not nothing_came() or (
                (self._dirty or self._timers.heap)
                and (started >= TURN_STEPS or time.perf_counter_ns() - began > TURN_NS)
            ):
                return

    def _start(self, live: Live, key: Key, body: Body, attempt: int) -> None:
        job = Job(live, body, key[0], key[1], attempt, live.gather(body, key))
        if body.inline or (body.plain and self._loop is None and not self._ready and not self._flights.count):
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
            case News():
                self._hint = self._mail_at = 0
            case None:
                self.room.check_open()  # or a clock was moved: what is due now is seen without being told
            case _:
                raise AssertionError(f"nobody puts a {type(item).__name__} into a mailbox")

    def _absorb(self, outcome: Outcome) -> None:
        live: Live = outcome.job.live
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

    def _deliver(self, live: Live, message: Message) -> bool:
        """Turn a message into an event. Returns whether it changed anything."""
        payload: Any = value_of(message)
        if payload is not None and not live.prepared.stored:
            payload = self.room.codec.decode(payload, live.prepared.signal_types.get(message.name, Any))
        return self._record(live, event_of(message, live.plan), message.at_us, payload, from_inbox=True)

    # --- what the engine decided ---

    def _record(
        self, live: Live, event: e.Event, at_us: int, output: Any = None, took_us: int = 0, from_inbox: bool = False
    ) -> bool:
        facts = live.advance(event, at_us, output, took_us, from_inbox)
        if not facts:
            return False
        if type(facts) is f.Fixed:  # nearly every step: the next one follows, and there is nothing to obey
            live.upcoming.append(facts.opened)
        else:
            self._obey(live, facts)
        state = live.state
        if self._writes or state.ended or state.held or state.paused or state.stopping:
            self._dirty[live.instance_id] = self._restless[live.instance_id] = live
        else:  # nothing is written, so nothing has to be waited for
            for key in live.upcoming:
                self._ready.append((live, key))
            live.upcoming.clear()
        return True

    def _obey(self, live: Live, facts: Sequence[f.Fact]) -> None:
        for fact in facts:
            match fact:
                case f.Opened():
                    if live.plan.bodied[fact.node]:
                        live.upcoming.append((fact.node, fact.turns))
                    elif fact.due_us:
                        self._timers.add(fact.due_us, live, (fact.node, fact.turns))
                case f.AttemptFailed():
                    if fact.due_us >= 0:
                        self._timers.add(fact.due_us, live, (fact.node, fact.turns))
                case f.ScopeFailing():
                    self._settle_idle(live)
                case f.CancelBegun() | f.HoldDecided() if live.state.stopping:
                    self._stop(live)
                case f.RunResumed() | f.HoldDecided():
                    self._survey_again(live, self._about_to_start(live))
                case _:
                    pass

    def _stop(self, live: Live) -> None:
        self._flights.stop(live, "the instance is being ended")
        if live.flights:
            self._timers.add(self.room.clock.now_us() + GRACE_US, live, None)
        self._settle_idle(live)

    def _settle_idle(self, live: Live) -> None:
        """Tell the engine which closing steps are not running here; nobody else runs them."""
        busy = self._running_here(live)
        closing = tuple(
            k for k, s in live.state.steps.items() if s.phase == "closing" and k not in live.flights and k != busy
        )
        if closing:
            self._record(live, e.Settled(closing), self.room.clock.now_us())

    def _running_here(self, live: Live) -> Key | None:
        """Return the step whose body has called back into this drive (a heartbeat), if it belongs to ``live``."""
        job = self._cell.attempt
        return job.key if isinstance(job, Job) and job.live is live else None

    def _survey(self, live: Live, begun: Container[Key] = ()) -> None:
        """Look at every open step that does not run here; those ``begun`` by this drive are yet to start."""
        now, busy = self.room.clock.now_us(), self._running_here(live)
        for key, step in list(live.state.steps.items()):
            if key == busy or key in live.flights:
                continue
            if step.phase == "began" and key not in begun:
                self._record(live, e.CutOff(key[0], key[1], step.attempt), now)
            elif step.phase == "began" or (step.phase == "ready" and step.due_us <= now):
                live.upcoming.append(key)
            elif step.phase in ("ready", "parked") and step.due_us:
                self._timers.add(step.due_us, live, key)
        self._settle_idle(live)

    def _survey_again(self, live: Live, begun: Container[Key]) -> None:
        """Look anew at an instance that goes on otherwise than was thought: after a pause, or another's write."""
        live.upcoming = []
        self._keep_ready(lambda other: other is not live)
        self._survey(live, begun)

    def _about_to_start(self, live: Live) -> set[Key]:
        """Return the steps that are recorded as begun and wait for their commit, or for their turn."""
        keys = [*live.upcoming, *(key for other, key in self._ready if other is live)]
        steps = live.state.steps
        return {key for key in keys if key in steps and steps[key].phase == "began"}

    def _is_busy(self, live: Live) -> bool:
        """Whether a body of it runs, or has to: what is recorded as begun does begin."""
        return bool(live.flights or self._running_here(live) or self._about_to_start(live))

    def _release(self, live: Live) -> None:
        """What was decided is safe: its successors may start, and an ended run is done with."""
        if live.upcoming:
            for key in live.upcoming:
                self._ready.append((live, key))
            live.upcoming.clear()
        state = live.state
        at_rest = live.resting and self.lets_go
        if state.ended or at_rest or ((state.held or state.paused) and not self._is_busy(live)):
            self._finish(live)

    def _release_unwritten(self, live: Live) -> None:
        """Go on with a run that was read and not changed; if it rests, no commit will give it back."""
        self._release(live)
        if not self._works_on(live):
            self.room.give_back([live])

    def _finish(self, live: Live) -> None:
        if self._let_go(live, "the instance has ended") and self.on_finish is not None:
            self.on_finish(live)

    # --- committing ---

    def _commit(self) -> None:
        if not self._dirty:
            return
        dirty, self._dirty = list(self._dirty.values()), {}
        if self.room.backend is None:
            for live in dirty:
                self._release(live)
            return
        rest_of = self._rest_of
        changes = [Change(live.instance, live.base, live.entries, live.taken, rest_of(live)) for live in dirty]
        for live, outcome in zip(dirty, self._write(changes), strict=True):
            if outcome != "conflict":
                live.committed()
            if outcome == "done":
                self._release(live)
            else:
                self._redo(live)

    def _write(self, changes: Sequence[Change]) -> Sequence[str]:
        room = self.room
        assert room.backend is not None
        session = room.session()
        with room.quiet:
            try:
                return room.backend.commit(session, changes)
            except LeaseLost:
                room.lost(session)
                raise

    def _rest_of(self, live: Live) -> Rest | None:
        """Describe an instance that this commit leaves with nothing to do; ``None`` while it goes on."""
        state = live.state
        if state.ended:
            return live.rest(release=True)
        if live.flights:
            return None
        if state.held or state.paused or state.stopping:
            return None if self._is_busy(live) else live.rest(release=True)
        if live.upcoming or self._ready or self._running_here(live):
            return None
        live.resting = True
        return live.rest(release=self.lets_go)

    def _redo(self, live: Live) -> None:
        """Take up anew what others wrote or what got messages as it was given back; deciding again has no effect."""
        assert self.room.backend is not None
        arrived = [again for again in live.arrived if not again[-1]]  # a message is still in the inbox
        session = self.room.session()
        loaded = None if self._is_replaced(live) else self.room.backend.claim(session, live.instance_id)
        live.arrived = []
        if loaded is None:
            self._replaced(live)
        elif loaded.header.session != session.id and loaded.header.state not in ENDED:
            self._lose(live, LeaseLost(f"{loaded.header.held_by} has taken over instance {live.instance_id!r}"))
        else:
            try:
                live.restore(loaded)
            except (InstanceDamaged, InstanceConflict) as error:
                self._lose(live, error)
            else:
                self._go_on(live, arrived, loaded.mail)

    def _go_on(self, live: Live, arrived: Iterable[Arrived], mail: Iterable[Message]) -> None:
        begun = set[Key]()
        for event, at_us, output, took_us, _ in arrived:
            if self._record(live, event, at_us, output, took_us) and isinstance(event, e.Begun):
                begun.add((event.node, event.turns))
        self._survey_again(live, begun)
        for message in () if live.state.ended else mail:
            self._take_message(live, message)
        if not live.entries and not live.taken:
            self._release_unwritten(live)

    def _lose(self, live: Live, error: BaseException) -> None:
        """One instance cannot be worked on any more; the others are not affected."""
        live.lost, live.entries = error, []
        self._finish(live)
        self.room.give_back([live])

    def _is_replaced(self, live: Live) -> bool:
        assert self.room.backend is not None
        header = self.room.backend.header(live.instance_id)
        return header is None or header.instance != live.instance

    def _look_around(self) -> None:
        """What waits does not commit, so it would not notice; each look costs a read, so they are few at a time."""
        looks, self._unsure = self._unsure[:LOOKS], self._unsure[LOOKS:]
        for live in looks:
            if self._works_on(live) and self._is_replaced(live):
                self._replaced(live)

    def _replaced(self, live: Live) -> None:
        """Another run has taken this one's place: what was not stored is forgotten; its callers hear of a cancel."""
        live.replaced()
        self._finish(live)

    def _rest_all(self) -> None:
        """Nothing can move now: leave every instance as it is, with its next due time, and go."""
        self._write_rests()
        if self._ready:
            return
        left = self.lives()
        for live in left:
            self._finish(live)
        self.room.give_back(left)

    def _write_rests(self) -> None:
        """Store where idle instances stand, once, so that others see it and a crash costs nothing."""
        for live in self._restless.values():
            if not live.resting and not live.flights and live.instance_id in self._lives:
                self._dirty[live.instance_id] = live
        self._restless = {}
        self._commit()

    # --- waiting ---

    def _wait(self) -> Wait | None:
        """Return what to wait for, or ``None`` if there is something to do already."""
        self._write_rests()
        if self._ready or not (self._lives or self.lets_go):
            return None
        until = self._next_us()
        if until is not None and until <= self.room.clock.now_us():
            self._fire()
            return None
        poll_us = self.room.poll_us if self.room.backend is not None else None
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
        self._unsure = self.lives()
        by_number = {live.instance: live for live in self._unsure}
        for number, messages in self.room.fenced(backend.mail).items():
            if (live := by_number.get(number)) is not None:
                for message in messages:
                    self._take_message(live, message)
        self._hint = hint  # not a later one: what was posted since the inbox was read must be seen
        self._commit()

    def _take_message(self, live: Live, message: Message) -> None:
        if message.id in live.taken:
            return
        live.taken = [*live.taken, message.id]
        live.resting = self._deliver(live, message) and live.resting
        self._dirty[live.instance_id] = live

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
