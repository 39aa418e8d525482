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
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from stepwell.backend.base import Change, Message, Rest
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.errors import BackendError, Closed, InstanceDamaged, LeaseLost
from stepwell.flow.plan import Key
from stepwell.types import ENDED

from .arrivals import Kept, News, Posted, arrived_of, timed_out
from .clock import AnyMailbox, Wait
from .context import CURRENT, Cell
from .hands import Fatal, perform_apart
from .invoke import Body, Job, Outcome, perform
from .launch import Launcher
from .live import Arrived, Live, event_of
from .timers import Timers, What

if TYPE_CHECKING:
    import asyncio

    from .room import Room


BUSY_MAIL_NS: Final = 10_000_000  # how long a busy drive may overlook a posted request
TURN_STEPS: Final = 500  # a commit is shared by at most so many steps …
TURN_NS: Final = 2_000_000  # … or by what ends within 2 ms, unless nothing else is ready
GRACE_US: Final = 30_000_000  # how long a cancelled instance waits for bodies that do not stop
_START_PHASES: Final = frozenset({"ready", "began"})

Turns_: TypeAlias = Generator[Wait, Sequence[object], None]


class Drive:
    """Works on instances until they end, or (``stay=False``) until nothing can move now."""

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
        self._timers = Timers(self._awaits)
        self._broken: BaseException | None = None
        self._dirty: dict[str, Live] = {}
        self._restless: dict[str, Live] = {}
        self._flights = 0
        self._launcher = Launcher(room, mailbox, loop)
        self._hint = -1
        self._mail_at = 0
        self._orders: Mapping[type, Callable[[Live, Any], None]] = {
            f.Opened: self._opened,
            f.AttemptFailed: self._attempt_failed,
            f.CancelBegun: self._cancel_begun,
            f.ScopeFailing: self._scope_failing,
            f.RunResumed: self._run_resumed,
        }

    # --- joining and leaving ---

    def join(self, live: Live) -> None:
        """Take on an instance that the store (if any) has given to this runner."""
        self.room.enter(live.instance_id, self.mailbox, live.plan)
        self._lives[live.instance_id] = live

    def begin(self, live: Live) -> None:
        """Look over a joined instance: what may run, what waits for a time, what was cut off."""
        self._survey(live)
        if live.entries:
            self._dirty[live.instance_id] = live
        else:
            self._release_unwritten(live)

    def __enter__(self) -> Drive:
        return self

    def __exit__(self, *exc: object) -> None:
        """Whatever happened: claims are given back and flights are let go."""
        self.over = True
        self.abandon(self.lives())

    def turns(self) -> Turns_:
        """Work until nothing is left to work on."""
        token = CURRENT.set(self._cell)
        try:
            while self._lives:
                if self._ready:
                    self._start_some()
                    self._launcher.hand_over()
                if not self.mailbox.empty():
                    self._take_in(self.mailbox.drain())
                if self._dirty:
                    self._commit()
                if time.perf_counter_ns() - self._mail_at > BUSY_MAIL_NS:
                    self._read_mail()
                if self._timer_due():
                    self._fire()
                    continue
                if self._ready or not self._lives:
                    continue
                if not self.stay and not self._flights and not self._timer_due():
                    self._rest_all()
                elif (wait := self._wait()) is not None:
                    self._take_in((yield wait))
                    self._read_mail()
                    self._fire()
        finally:
            self.over = True
            CURRENT.reset(token)

    def lives(self) -> list[Live]:
        """Return the instances that are worked on."""
        return list(self._lives.values())

    def abandon(self, lives: Iterable[Live]) -> None:
        """Give instances back as they stand: what has ended is kept, what still runs is no longer waited for."""
        left = [live for live in lives if self._let_go(live, "the runner has stopped")]
        for live in left:
            self._dirty.pop(live.instance_id, None)
        self._keep_ready(self._works_on)
        self._give_back(left)

    def _let_go(self, live: Live, why: str) -> bool:
        """Work on an instance no more, and tell its bodies to stop. Returns whether it was worked on."""
        if not self._works_on(live):
            return False
        del self._lives[live.instance_id]
        self._restless.pop(live.instance_id, None)
        for job in live.flights.values():
            self._flights -= 1
            job.stopped = why
            if job.stop is not None:
                job.stop()
        live.flights, live.upcoming = {}, []
        self.room.leave(live.instance_id)
        return True

    def _works_on(self, live: Live) -> bool:
        return self._lives.get(live.instance_id) is live

    def _keep_ready(self, wanted: Callable[[Live], bool]) -> None:
        kept = [(live, key) for live, key in self._ready if wanted(live)]
        self._ready.clear()
        self._ready.extend(kept)

    def _give_back(self, left: Iterable[Live]) -> None:
        """Store what is still unwritten, and release the claims."""
        backend, held = self.room.backend, [live for live in left if live.instance]
        if backend is None or not held:
            return
        try:
            if changes := [live.change(None) for live in held if live.entries]:
                backend.commit(self.room.session(), changes)
            backend.release(self.room.session(), [live.instance for live in held])
        except (BackendError, LeaseLost, Closed):
            return  # the claim ends with the session or its lease; the reason we are leaving matters more

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
            elif state.ended or state.held or state.paused or state.cancelling:
                continue
            elif step.due_us and step.due_us > self.room.clock.now_us():
                continue  # it has been tried meanwhile
            body = live.bodies[key[0]] or live.prepared.body(key[0])
            if body.at_most_once and step.phase == "ready":
                live.upcoming.append(key)
                self._record(live, Arrived(e.Begun(key[0], key[1], step.attempt), None, self.room.clock.now_us()))
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
        if body.inline or (body.plain and self._loop is None and not self._ready and not self._flights):
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
        self._flights += 1
        live.flights[job.key] = job
        self._launcher.launch(job)

    # --- taking in ---

    def _take_in(self, items: Iterable[object]) -> None:
        for item in items:
            match item:
                case Outcome():
                    self._land(item)
                case Fatal(job, error):
                    if self._has_landed(job):
                        raise error
                case Kept(job, cursor):
                    self._keep(job, cursor)
                case Posted(instance_id, message):
                    if live := self._lives.get(instance_id):
                        self._deliver(live, message)
                case News():
                    self._hint = self._mail_at = 0
                case None:
                    self.room.check_open()  # or a clock was moved: what is due now is seen without being told
                case _:
                    raise AssertionError(f"nobody puts a {type(item).__name__} into a mailbox")

    def _land(self, outcome: Outcome) -> None:
        """A body that was handed over has ended; a late one (its attempt timed out) is no longer in flight."""
        if self._has_landed(outcome.job):
            self._absorb(outcome)

    def _has_landed(self, job: Job) -> bool:
        """Take a job out of the air, and say whether it was still there."""
        flights, key = job.live.flights, job.key
        if flights.get(key) is not job:
            return False
        del flights[key]
        self._flights -= 1
        return True

    def _absorb(self, outcome: Outcome) -> None:
        live: Live = outcome.job.live
        before = live.state.seq
        self._record(live, arrived_of(outcome, self.room.clock.now_us()))
        if outcome.error is not None and (failure := live.state.failure) and failure.address > before:
            live.errors[failure.address] = outcome.error

    def _deliver(self, live: Live, message: Message) -> bool:
        """Turn a message into an event. Returns whether it changed anything."""
        payload: Any = message.payload if message.kind == "signal" else None
        if payload is not None and not live.prepared.stored:
            payload = self.room.codec.decode(payload, live.prepared.signal_types.get(message.name, Any))
        return self._record(live, Arrived(event_of(message), payload, message.at_us, from_inbox=True))

    # --- what the engine decided ---

    def _record(self, live: Live, arrived: Arrived) -> bool:
        facts = live.advance(arrived)
        if not facts:
            return False
        opened, bodied = f.Opened, live.plan.bodied
        for fact in facts:
            if type(fact) is opened and bodied[fact.node]:
                live.upcoming.append((fact.node, fact.turns))
            elif (obey := self._orders.get(type(fact))) is not None:
                obey(live, fact)
        state = live.state
        if self._writes or state.ended or state.held or state.paused or state.cancelling:
            self._dirty[live.instance_id] = self._restless[live.instance_id] = live
        elif live.upcoming:
            self._free_steps(live)  # nothing is written, so nothing has to be waited for
        return True

    def _opened(self, live: Live, fact: f.Opened) -> None:
        if fact.due_us:
            self._timers.add(fact.due_us, live, (fact.node, fact.turns))

    def _attempt_failed(self, live: Live, fact: f.AttemptFailed) -> None:
        if fact.due_us >= 0:
            self._timers.add(fact.due_us, live, (fact.node, fact.turns))

    def _cancel_begun(self, live: Live, fact: f.CancelBegun) -> None:
        for job in list(live.flights.values()):
            job.stopped = "the instance is being cancelled"
            if job.stop is not None:
                job.stop()
            if job.body.run_in == "process":
                self._has_landed(job)  # its process is gone, so nothing will come of it
        if live.flights:
            self._timers.add(self.room.clock.now_us() + GRACE_US, live, None)
        self._settle_idle(live)

    def _run_resumed(self, live: Live, fact: f.RunResumed) -> None:
        self._survey_again(live, self._about_to_start(live))

    def _scope_failing(self, live: Live, fact: f.ScopeFailing) -> None:
        self._settle_idle(live)

    def _settle_idle(self, live: Live) -> None:
        """Tell the engine which closing steps are not running here; nobody else runs them."""
        busy = self._running_here(live)
        closing = tuple(
            k for k, s in live.state.steps.items() if s.phase == "closing" and k not in live.flights and k != busy
        )
        if closing:
            self._record(live, Arrived(e.Settled(closing), None, self.room.clock.now_us()))

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
                self._record(live, Arrived(e.CutOff(key[0], key[1], step.attempt), None, now))
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
            self._free_steps(live)
        state = live.state
        if state.ended or ((state.held or state.paused) and not self._is_busy(live)):
            self._finish(live)

    def _free_steps(self, live: Live) -> None:
        for key in live.upcoming:
            self._ready.append((live, key))
        live.upcoming = []

    def _release_unwritten(self, live: Live) -> None:
        """Go on with a run that was read and not changed; if it rests, no commit will give it back."""
        self._release(live)
        if not self._works_on(live):
            self._give_back([live])

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
        changes = [live.change(self._rest_of(live)) for live in dirty]
        for live, outcome in zip(dirty, self._write(changes), strict=True):
            if outcome != "conflict":
                live.committed()
            if outcome == "done":
                self._release(live)
            else:
                self._redo(live)

    def _write(self, changes: Sequence[Change]) -> Sequence[str]:
        assert self.room.backend is not None
        with self.room.quiet:
            return self.room.fenced(self.room.backend.commit, changes)

    def _rest_of(self, live: Live) -> Rest | None:
        """Describe an instance that this commit leaves with nothing to do; ``None`` while it goes on."""
        if live.state.ended:
            return live.rest(release=True)
        if live.flights or self._running_here(live):
            return None
        if live.gated:
            return None if self._is_busy(live) else live.rest(release=True)
        if live.upcoming or self._ready:
            return None
        live.resting = True
        return live.rest(release=False)

    def _redo(self, live: Live) -> None:
        """Take up anew what others wrote or what got messages as it was given back; deciding again has no effect."""
        assert self.room.backend is not None
        arrived = [a for a in live.arrived if not a.from_inbox]  # a message is still in the inbox
        session = self.room.session()
        loaded = self.room.backend.claim(session, live.instance_id)
        live.arrived = []
        if loaded is None or loaded.header.instance != live.instance:
            self._replaced(live)
            if loaded is not None and loaded.header.session == session.id:
                self.room.backend.release(session, [loaded.header.instance])
        elif loaded.header.session != session.id and loaded.header.state not in ENDED:
            self._lose(live, LeaseLost(f"{loaded.header.held_by} has taken over instance {live.instance_id!r}"))
        else:
            try:
                live.restore(loaded)
            except InstanceDamaged as error:
                self._lose(live, error)
            else:
                self._go_on(live, arrived, loaded.mail)

    def _go_on(self, live: Live, arrived: Iterable[Arrived], mail: Iterable[Message]) -> None:
        begun = set[Key]()
        for again in arrived:
            if self._record(live, again) and isinstance(again.event, e.Begun):
                begun.add((again.event.node, again.event.turns))
        self._survey_again(live, begun)
        for message in () if live.state.ended else mail:
            self._take_message(live, message)
        if not live.entries and not live.taken:
            self._release_unwritten(live)

    def _lose(self, live: Live, error: BaseException) -> None:
        """One instance cannot be worked on any more; the others are not affected."""
        live.lost, live.entries = error, []
        self._finish(live)
        self._give_back([live])

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
        self._give_back(left)

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
        if self._ready or not self._lives:
            return None
        until = self._timers.next_us()
        if until is not None and until <= self.room.clock.now_us():
            self._fire()
            return None
        poll_us = self.room.poll_us if self.room.backend is not None else None
        return Wait(until, self._flights > 0, poll_us, self.mailbox.put)

    def _timer_due(self) -> bool:
        heap = self._timers.heap
        return bool(heap) and heap[0][0] <= self.room.clock.now_us()

    def _awaits(self, due_us: int, live: Live, what: What) -> bool:
        """Say whether a moment still counts: most timeouts belong to what has long ended."""
        if not self._works_on(live):
            return False
        if isinstance(what, Job):
            return live.flights.get(what.key) is what
        step = live.state.steps.get(what) if what is not None else None
        return step.due_us == due_us if step is not None else what is None and bool(live.flights)

    def _fire(self) -> None:
        now = self.room.clock.now_us()
        for live, what in self._timers.take(now):
            if isinstance(what, Job):
                self._time_out(what)
            elif what is None:
                self._give_up(live)
            else:
                self._due(live, what, now)

    def _due(self, live: Live, key: Key, now: int) -> None:
        phase = live.state.steps[key].phase
        if phase == "ready":
            self._ready.append((live, key))
        elif phase == "parked":
            self._record(live, Arrived(e.Fired(*key), None, now))

    def _give_up(self, live: Live) -> None:
        """The grace of a cancelled instance is over: bodies that did not stop are no longer waited for."""
        for key in list(live.flights):
            del live.flights[key]
            self._flights -= 1
        self._settle_idle(live)

    def _time_out(self, job: Job) -> None:
        if not self._has_landed(job):
            return
        job.stopped = "its timeout has passed"
        if job.stop is not None:
            job.stop()
        else:
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
        by_number = {live.instance: live for live in self._lives.values()}
        for number, messages in self.room.fenced(backend.mail).items():
            if (live := by_number.get(number)) is not None:
                for message in messages:
                    self._take_message(live, message)
        self._hint = hint  # not a later one: what was posted since the inbox was read must be seen
        self._commit()

    def _take_message(self, live: Live, message: Message) -> None:
        if message.id in live.taken:
            return
        live.taken.append(message.id)
        if not self._deliver(live, message):
            live.resting = False
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
        self._record(job.live, Arrived(e.Beat(job.node, job.turns, job.number), cursor, self.room.clock.now_us()))
