"""Steps that leave their holder: how they are given to other sessions, and how one is run for another holder.

The holder stays the only writer of an instance's journal. For a step it would rather not run itself it puts up an
*offer*, with just so much of the state as the step reads. To its drive the step is in the air from then on, like a body
in a thread. Whoever claims the offer runs it as a :class:`Guest` and sends the outcome to the instance's inbox, where
the holder of that moment finds it. If the holder dies, the next one reads from the store what is on offer; if the
guest's process dies, the offer is free again or the loss is told by a message. No step hangs on either's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Final

import msgspec

from stepwell.backend.base import LOST, Message, Offer, Offered
from stepwell.engine import events as e
from stepwell.engine.frontier import Frontier, from_image, to_image
from stepwell.flow.plan import Key

from . import offered
from .arrivals import event_of_failure
from .invoke import Body, Job, Outcome, Prepared
from .launch import Flights
from .live import STARTED, Live
from .observed import taken_over
from .ranking import rank_us

if TYPE_CHECKING:
    from .room import Room

LIVES: Final = 2  # sessions that may be lost with an offered step before its holder deals with it
ABOUT_STEPS: Final = frozenset({offered.OUTCOME, offered.DECLINED, LOST})


class Away:
    """What one drive's instances have in the air elsewhere."""

    def __init__(self, room: Room, flights: Flights) -> None:
        self._room, self._flights = room, flights

    # --- giving ---

    def offer(self, steps: Iterable[tuple[Live, Key, Body]]) -> None:
        """Let others run these steps; they are in the air from now on."""
        assert self._room.backend is not None
        offers: dict[int, list[Offer]] = {}
        jobs: list[tuple[Live, Job]] = []
        for live, key, body in steps:
            job = _job(live, key, body)
            offers.setdefault(live.instance, []).append(self._offer_of(job))
            jobs.append((live, job))
        for live, job in jobs:  # whatever becomes of the call: it may have come through
            self._flights.send_away(live, job)
        self._room.fenced(self._room.backend.offer, offers)

    def _offer_of(self, job: Job) -> Offer:
        row = job.facts.plan.nodes[job.node]
        rank = rank_us(self._room.clock.now_us(), row.priority)
        lives = 1 if job.facts.state.steps[job.key].phase in STARTED else LIVES
        return Offer(_ref(job), _work(job), rank, row.tags, lives)

    # --- what is out ---

    def expect(self, live: Live, *, keep_free: bool) -> tuple[int, Sequence[Key]]:
        """Learn which steps of an instance just taken up are out; those nobody runs come back unless they are kept.

        Returns how many were on offer, and which came back: nobody has begun them, whatever is recorded.
        """
        backend = self._room.backend
        assert backend is not None
        out = list(backend.offered(live.instance))
        back: Sequence[bytes] = ()
        if not keep_free:
            back = self._room.fenced(backend.call_off, live.instance, out, stop=False)
        stale: list[bytes] = []
        for step in set(out) - set(back):
            job = _job_of(live, step)
            if job is None:
                stale.append(step)
            elif job.key not in live.flights:
                self._flights.send_away(live, job)
        if stale:
            self._room.fenced(backend.call_off, live.instance, stale, stop=True)
        jobs = [job for job in (_job_of(live, step) for step in back) if job is not None]
        return len(out), [job.key for job in jobs]

    def recall(self, live: Live, keys: Iterable[Key], *, stop: bool) -> list[Key]:
        """Take steps back that nobody runs, and return them; ``stop``: tell the others to stop."""
        backend = self._room.backend
        jobs = {_ref(job): job for job in map(live.flights.get, keys) if job is not None and job.away}
        if backend is None or not jobs:
            return []
        back = self._room.fenced(backend.call_off, live.instance, list(jobs), stop=stop)
        for step in back:
            self._flights.land(jobs[step])
        return [jobs[step].key for step in back]

    def out(self, live: Live) -> frozenset[bytes]:
        """Return what the store has on offer of an instance."""
        assert self._room.backend is not None
        return frozenset(self._room.backend.offered(live.instance))

    def missing(self, live: Live, out: frozenset[bytes]) -> list[Key]:
        """Return the steps in the air that nobody will tell anything about, which are not in the air any more."""
        gone = [job for job in live.flights.values() if job.away and _ref(job) not in out]
        for job in gone:
            self._flights.land(job)
        return [job.key for job in gone]

    def landed(self, live: Live, message: Message) -> Key | None:
        """Return the step in the air that a message tells the end of, which is not in the air any more."""
        if message.kind not in ABOUT_STEPS or not live.flights:
            return None
        try:
            step = offered.step_of(message)
        except ValueError:
            return None
        job = live.flights.get((step.node, step.turns))
        if job is None or not job.away or job.number != step.attempt:
            return None
        self._flights.land(job)
        return job.key


def _job(live: Live, key: Key, body: Body) -> Job:
    return Job(live, body, key[0], key[1], live.state.steps[key].attempt, None)


def _job_of(live: Live, step: bytes) -> Job | None:
    """Return the attempt that an offer is about, ``None`` if the instance does not wait for it."""
    try:
        meant = offered.ref_of(step)
    except msgspec.MsgspecError:
        return None
    open_step = live.state.steps.get(key := (meant.node, meant.turns))
    if open_step is None or open_step.attempt != meant.attempt or meant.graph not in ("", live.plan.fingerprint):
        return None
    return _job(live, key, live.bodies[key[0]] or live.prepared.body(key[0]))


def _ref(job: Job) -> bytes:
    return offered.ref(job.node, job.turns, job.number, job.facts.plan.fingerprint)


def _work(job: Job) -> bytes:
    """Return so much of the state as this step reads."""
    whole, part, (node, turns) = job.facts.state, Frontier(), job.key
    part.seq, part.started = whole.seq, True
    part.steps[job.key] = whole.steps[job.key]
    depth = job.facts.plan.depth
    for ref in job.body.refs:
        at = ref, turns[: depth[ref]]
        address = part.values[at] = whole.values[at]
        if address in whole.tags:
            part.tags[address] = whole.tags[address]
    if (node, turns) in whole.cursors:
        part.cursors[(node, turns)] = whole.cursors[(node, turns)]
    return to_image(part)


# --- running for others ---------------------------------------------------------------------------------


class Guest(Live):
    """One step of an instance that another session holds. It has a state to read and no journal to write."""

    guest = True

    __slots__ = ("key", "offer", "step")

    def __init__(self, room: Room, prepared: Prepared, claimed: Offered) -> None:
        header = claimed.header
        super().__init__(room, prepared, header.instance_id, header.instance, header.run, copy_context())
        self.offer, self.step = claimed.id, claimed.step
        self.state = from_image(claimed.work)
        self.backend_id, self.trace = header.origin or room.backend_id, header.trace
        self.observed = room.lookout.run(self)
        (self.key,) = self.state.steps
        taken_over(self)

    @property
    def told_to_stop(self) -> bool:
        return any(job.stopped for job in self.flights.values())


def report(outcome: Outcome) -> Message:
    """Return the message that tells the holder how a guest's attempt ended."""
    job, now_us = outcome.job, outcome.job.live.room.clock.now_us()
    step = offered.StepRef(job.node, job.turns, job.number, job.facts.plan.fingerprint)
    if outcome.error is None:
        return offered.report(step, outcome.output, now_us, tag=outcome.tag, took_us=job.took_us)
    event, record = event_of_failure(outcome)
    if isinstance(event, e.HoldAsked):
        return offered.report(step, None, now_us, undecodable=event.detail)
    assert isinstance(event, e.Errored)
    return offered.report(
        step,
        record,
        now_us,
        error=True,
        retryable=event.retryable,
        after_us=event.after_us,
        draw=event.draw,
        took_us=job.took_us,
    )


def declined(guest: Guest, now_us: int) -> Message:
    """Return the message by which a step goes back to its holder, who alone can run it."""
    return Message(offered.DECLINED, "", guest.step, now_us)


def lost(guest: Guest, now_us: int) -> Message:
    """Return the message by which a step counts as cut off in the middle."""
    return Message(LOST, "", guest.step, now_us)


def kept_cursor(job: Job, cursor: bytes | None, now_us: int) -> Message:
    """Return the message by which a guest's cursor reaches the journal."""
    return Message(offered.CURSOR, _ref(job).hex(), cursor, now_us)
