"""What one call works on: instances with their states, what has happened to them, and the commits that make it so.

The desk knows no workflow semantics: it tells the engine what happened, obeys facts, and writes. What runs and when is
:class:`~stepwell.runtime.drive.Drive`'s, which is a desk with hands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from stepwell.backend.base import LOST, Change, Loaded, Message, Rest, Session
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.errors import InstanceConflict, InstanceDamaged, LeaseLost
from stepwell.flow.plan import Key
from stepwell.types import ENDED

from . import observed
from .away import Away
from .clock import AnyMailbox
from .context import Cell
from .invoke import Job
from .launch import Flights
from .live import STARTED, Arrived, Live
from .offered import OUTCOME, key_of, took_of
from .requests import event_of, value_of
from .timers import Timers
from .trials import Trials

if TYPE_CHECKING:
    import asyncio

    from .room import Room


GRACE_US: Final = 30_000_000  # how long a cancelled instance waits for bodies that do not stop


class Desk:
    """Instances that are worked on until they end or rest."""

    lets_go = False  # whether an instance is given back as soon as it is at rest, while others go on
    shares = False  # whether steps are left on offer to other sessions

    def __init__(self, room: Room, mailbox: AnyMailbox, *, stay: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        self.room, self.mailbox, self.stay = room, mailbox, stay
        self._loop = loop
        self._writes = room.backend is not None
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
        self._trials = Trials(room.max_crashes)
        self._away = Away(room, self._flights)
        self._session: Session | None = None  # which claimed what is worked on here
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
        if self._session is None and self.room.backend is not None:
            self._session = self.room.session()
        back: Sequence[Key] = ()
        if live.offered:
            out, back = self._away.expect(live, keep_free=self.shares)
            mail = mail if out == live.offered else self._mail_of(live)  # one has ended since it was loaded
        outcomes = [message for message in mail if message.kind == OUTCOME]
        for message in outcomes:  # before their steps count as cut off
            self._take_message(live, message)
        live.upcoming = [] if outcomes else live.upcoming
        if not live.upcoming:  # a new one may say by itself what comes first
            self._survey(live, back)
        for message in mail:  # before anything starts: a holder that died had left it, and its sender relies on it
            self._take_message(live, message)
        if live.entries or live.taken:
            self._dirty[live.instance_id] = live
        else:
            self._release_unwritten(live)

    def _mail_of(self, live: Live) -> Sequence[Message]:
        assert self.room.backend is not None
        return self.room.fenced(self.room.backend.mail).get(live.instance, ())

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
        live.let_go = True
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

    def _deliver(self, live: Live, message: Message) -> bool:
        """Turn a message into an event. Returns whether it changed anything."""
        payload: Any = value_of(message)
        took_us = took_of(message)
        if payload is not None and not live.prepared.stored:
            payload = self.room.codec.decode(payload, live.prepared.signal_types.get(message.name, Any))
        event = event_of(message, live.plan, self.room.max_crashes)
        address = live.state.seq + 1
        at_us = message.at_us or self.room.clock.now_us()  # a store that tells of a loss gives no time for it
        if changed := self._record(live, event, at_us, payload, took_us, from_inbox=True):
            observed.arrived(live, message, address)
        return changed

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
            if live.observed is not None:
                observed.let_go(live, facts)
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
                    self._opened(live, fact)
                case f.AttemptFailed():
                    if fact.due_us >= 0:
                        self._timers.add(fact.due_us, live, (fact.node, fact.turns))
                case f.StepCrashed():
                    observed.cut_off(live, fact)
                    live.suspects = live.suspects | {(fact.node, fact.turns)}
                    live.upcoming.append((fact.node, fact.turns))
                case f.ScopeFailing():
                    self._recall(live, [key for key, step in live.state.steps.items() if step.phase == "closing"])
                    self._settle_idle(live)
                case f.RunPaused() | f.RunHeld():
                    observed.cut_off(live, fact)
                    self._recall(live, self._not_begun(live))
                case f.CancelBegun() | f.HoldDecided() if live.state.stopping:
                    self._stop(live)
                case f.RunResumed() | f.HoldDecided():
                    self._survey_again(live, self._about_to_start(live))
                case _:
                    pass

    def _opened(self, live: Live, fact: f.Opened) -> None:
        if live.plan.bodied[fact.node]:
            live.upcoming.append((fact.node, fact.turns))
        elif fact.due_us:
            self._timers.add(fact.due_us, live, (fact.node, fact.turns))

    def _not_begun(self, live: Live) -> list[Key]:
        """Return what is in the air and may be left undone; what is recorded as begun does begin."""
        steps = live.state.steps
        return [key for key in live.flights if key in steps and steps[key].phase not in STARTED]

    def _recall(self, live: Live, keys: Iterable[Key], *, stop: bool = False) -> None:
        """Take back what others were to run and have not begun: nothing of it starts any more."""
        if self._flights.away:
            self._away.recall(live, keys, stop=stop)

    def _stop(self, live: Live) -> None:
        self._flights.stop(live, "the instance is being ended")
        self._recall(live, live.flights, stop=True)
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
        """Look at every open step that does not run here; those ``begun`` by this drive are yet to start.

        What is tried has crashed only if a session was lost with it; whoever gave the instance back may have had it.
        """
        now, busy = self.room.clock.now_us(), self._running_here(live)
        lost, live.lost_sessions = live.lost_sessions, 0
        for key, step in list(live.state.steps.items()):
            if key == busy or key in live.flights:
                continue
            if key not in begun and (step.phase == "began" or (step.phase == "tried" and lost)):
                self._record(live, e.CutOff(key[0], key[1], step.attempt, self.room.max_crashes), now)
            elif step.phase in STARTED or (step.phase == "ready" and step.due_us <= now):
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
        """Return the steps whose only start is recorded and waits for its commit, or for its turn."""
        keys = [*live.upcoming, *(key for other, key in self._queued() if other is live)]
        steps = live.state.steps
        return {key for key in keys if key in steps and steps[key].phase == "began"}

    def _queued(self) -> Iterable[tuple[Live, Key]]:
        """Yield what waits for its turn."""
        yield from self._ready
        yield from self._trials.kept

    def _is_busy(self, live: Live) -> bool:
        """Whether a body of it runs, or has to: what is recorded as an only start does happen."""
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
        if live.unrested and (live.state.held or live.state.paused) and not self._is_busy(live):
            self._dirty[live.instance_id] = live  # else the store would have it due again at once, for ever
            return
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
        changed, changes = self._changes(dirty)
        for live, outcome in zip(changed, self._write(changes) if changes else (), strict=True):
            if outcome != "conflict":
                live.committed()
            if outcome == "done":
                self._release(live)
            else:
                self._redo(live)

    def _changes(self, dirty: Iterable[Live]) -> tuple[list[Live], list[Change]]:
        """Return what there is to write, and of which instances; of others nothing has to be waited for."""
        changed, changes, rest_of = list[Live](), list[Change](), self._rest_of
        for live in dirty:
            rest = rest_of(live)
            if live.entries or live.taken or rest is not None:
                changed.append(live)
                changes.append(Change(live.instance, live.base, live.entries, live.taken, rest))
            else:
                self._release(live)
        return changed, changes

    def _write(self, changes: Sequence[Change]) -> Sequence[str]:
        room = self.room
        assert room.backend is not None
        session = room.session()
        if self.shares and session is not self._session:  # others may run on what this one still believes its own
            raise LeaseLost("the session that claimed these instances was taken over, and another one has been opened")
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
        if live.kept or live.upcoming or self._ready or self._running_here(live):
            return None
        live.resting = True
        return live.rest(release=self.lets_go)

    def _redo(self, live: Live) -> None:
        """Take up anew what others wrote or what got messages as it was given back; deciding again has no effect."""
        assert self.room.backend is not None
        arrived = [again for again in live.arrived if not again[-1]]  # a message is still in the inbox
        session = self.room.session()
        loaded = None if self._is_replaced(live) else self.room.backend.claim(session, live.instance_id)
        begun = _begun_by_us(live, loaded) if loaded is not None else set[Key]()
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
                if live.offered:
                    self._away.expect(live, keep_free=self.shares)
                self._go_on(live, arrived, loaded.mail, begun)

    def _go_on(self, live: Live, arrived: Iterable[Arrived], mail: Iterable[Message], begun: set[Key]) -> None:
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

    def _take_message(self, live: Live, message: Message) -> None:
        if message.id in live.taken:
            return
        landed = self._away.landed(live, message)
        live.taken = [*live.taken, message.id]
        changed = not self._is_lost_elsewhere(live, message) and self._deliver(live, message)
        live.resting = changed and live.resting
        self._dirty[live.instance_id] = live
        if landed is not None and not changed:
            self._back(live, landed)

    def _is_lost_elsewhere(self, live: Live, message: Message) -> bool:
        """Whether a message tells the loss of a step that runs here now, to which it means nothing."""
        if message.kind != LOST or (key := key_of(message)) is None:
            return False
        job = live.flights.get(key)
        return key == self._running_here(live) or (job is not None and not job.away)

    def _back(self, live: Live, key: Key) -> None:
        """A step is back that nobody else could run."""
        live.upcoming.append(key)


def _begun_by_us(live: Live, loaded: Loaded) -> set[Key]:
    """Return the steps whose start is stored by a commit of ours, although we were told that it is not."""
    stored = {(entry.seq, entry.facts, entry.at_us) for entry in loaded.entries}
    ours = zip(live.entries, live.arrived, strict=False)
    starts = [(entry, event) for entry, (event, *_) in ours if isinstance(event, e.Begun)]
    return {(event.node, event.turns) for entry, event in starts if (entry.seq, entry.facts, entry.at_us) in stored}
