"""The drive of a worker: it takes up what is due for as long as it is wanted, and shares wide forks with other workers.

How much it takes up follows from what it can run at a time, and from how quickly that comes to an end: enough for a
twentieth of a second, so that quick steps share commits and slow ones are left to others. Steps beyond that wait in a
backlog, those of the highest priority in front; when there is nothing to do but to wait, some of its end is put up for
others to run. A step that asks for tags this worker does not have is put up at once.
"""

from __future__ import annotations

import heapq
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

from stepwell.backend.base import Header, Loaded, Message, Offered, Rest, Want
from stepwell.engine import events as e
from stepwell.errors import BackendError, Closed, InstanceDamaged, InstanceError, LeaseLost
from stepwell.flow.plan import Key
from stepwell.observe.logs import extras

from . import away, observed
from .arrivals import Lapsed
from .away import Guest
from .claiming import AT_ONCE
from .clock import AnyMailbox, Mailbox, Wait
from .context import CURRENT
from .drive import TURN_STEPS
from .hands import Fatal
from .invoke import Body, Job, NeedsHolder, Outcome
from .live import STARTED, Live
from .pace import AHEAD_NS, GATHER_NS, Pace
from .patience import PASSING
from .serving import Serving

if TYPE_CHECKING:
    from .room import Room

_LOG: Final = logging.getLogger("stepwell.runtime")

WINDOW: Final = 2  # so many times its concurrency may be on offer to others
PATIENCE_US: Final = 250_000  # so long others may take first what has failed here
AGAIN_NS: Final = 5_000_000  # so long after a claim it is asked for the rest: what was claimed goes first
LEARN_NS: Final = 1_000_000_000  # a worker that claims all the time asks this often at least what else there is


class Drain:
    """Asks a pool to take up nothing more, and to end when what runs has ended."""


class Leave:
    """Asks a pool to end now, whatever runs."""


class Pool(Serving):
    """Works until it is told to stop."""

    lends_thread = False
    shares = True
    _refused_us = 100_000

    def __init__(
        self,
        room: Room,
        mailbox: AnyMailbox,
        runnables: Iterable[object],
        *,
        concurrency: int,
        tags: Sequence[str],
        poll_us: int,
        most: Mapping[str, int],
    ) -> None:
        super().__init__(room, mailbox, runnables, poll_us=poll_us)
        self._concurrency, self._tags, self._most = concurrency, frozenset(tags), most
        self._gate = self._admits
        self._backlog: list[tuple[int, int, Live, Key]] = []  # a heap
        self._foreign: list[tuple[Live, Key, Body]] = []
        self._homebound: set[tuple[Live, Key]] = set()
        self._full_since = 0
        self._order = count()
        self._guests: dict[int, Guest] = {}
        self._reports: list[tuple[int, Message]] = []
        self._cut_short: list[Live] = []
        self._telling: dict[int, Live] = {}
        self._pace = Pace()
        self._draining = self._leaving = False
        self._asked, self._poll_at, self._polls = -1, 0, 0
        self._helps, self._helped_ns = True, 0
        self._learned_ns = 0
        self._again = False  # something was claimed a moment ago, and there may be more of another kind
        self._guest_hint = -1
        self._sure_until = 0  # that what is away is on offer
        self._stirred = self._heard = False
        self._unwatch: Callable[[], None] | None = None
        # A call to the store has failed, perhaps after it took effect; or the pool before has left claims of a session
        # that goes on, which nobody knows of here.
        self.in_doubt = room.lease is not None

    def __enter__(self) -> Self:
        super().__enter__()
        self._unwatch = self._backend.watch(self._stir)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._unwatch is not None:
            self._unwatch()
        self._tell_of_cut_starts()
        for guest in self._guests.values():
            self._flights.stop(guest, "the worker has stopped")
            self._flights.forget(guest)  # or a later pool of this worker would take its end for that of its own guest
        super().__exit__(*exc)

    def _tell_of_cut_starts(self) -> None:
        """An only start that is cut off here has happened: with the session its offer would be free for another one."""
        lease, now_us = self.room.lease, self.room.clock.now_us()
        if lease is None or lease.lost:
            return  # whoever ends that session tells of it
        begun = [each for each in self._guests.values() if each.flights and self._has_begun(each, each.key)]
        with suppress(BackendError, LeaseLost, Closed):
            if begun:
                self._backend.settle(lease.session, [(each.offer, away.lost(each, now_us)) for each in begun])

    def _stir(self) -> None:
        """Others have written; one word of that is enough until it is taken in. What was written here is known."""
        if not self._stirred and CURRENT.get() is not self._cell:
            self._stirred = self._heard = True
            self.mailbox.put(None)

    # --- what is going on, for those who ask from other threads ---

    @property
    def running(self) -> int:
        return self._flights.here

    @property
    def held(self) -> int:
        return len(self._lives)

    @property
    def guests(self) -> int:
        return len(self._guests)

    # --- coming and going ---

    def _has_work(self) -> bool:
        if self._leaving:
            return False
        if self._draining:
            return bool(self._lives or self._guests)
        self._idle = False
        self._begin_again()
        self._admit_backlog()
        return True

    def _refill(self) -> bool:
        if self.in_doubt:
            self._compare()
        elif self._flights.away and time.perf_counter_ns() > self._sure_until:
            self._look_for_strayed()
        self._send_reports()
        self._write_rests()
        if self._draining:
            return bool(self._ready) or not self._has_work()
        return bool(self._ready) or self._take(self._space())

    def _heed(self, item: object) -> None:
        match item:
            case Drain():
                self._drain()
            case Leave():
                self._leaving = True
            case Lapsed(_, session) if session is not None and self._session not in (None, session):
                pass  # it was the one before: what is held now is not concerned
            case _:
                if item is None:
                    self._stirred = False
                super()._heed(item)

    def _drain(self) -> None:
        """What has not begun is given back, tried or not; what is recorded as an only start still begins."""
        self._draining = True
        self._serve_no_more()
        self._backlog = []
        self._foreign = []
        for number in [number for number, guest in self._guests.items() if not guest.flights]:
            self._dismiss(number)
        self._keep_ready(self._works_on)
        kept = [(live, key) for live, key in self._ready if self._has_begun(live, key)]
        self._ready.clear()
        self._ready.extend(kept)
        for live in self.lives():
            live.kept = 0
            self._restless[live.instance_id] = live

    @staticmethod
    def _has_begun(live: Live, key: Key) -> bool:
        step = live.state.steps.get(key)
        return step is not None and step.phase == "began"

    def _rest_of(self, live: Live) -> Rest | None:
        if self._draining and not live.ended and not live.flights:
            live.upcoming = [key for key in live.upcoming if self._has_begun(live, key)]
            if not live.upcoming and not self._is_busy(live):
                live.resting = True
                return live.rest(release=True)
        return super()._rest_of(live)

    def _write_rests(self) -> None:
        if self._draining:
            for live in self.lives():
                if live.flights and all(job.away for job in live.flights.values()):
                    self._restless[live.instance_id] = live
                    self._flights.forget(live)  # what others run, the next holder finds on offer
        super()._write_rests()

    # --- how much, and what ---

    def _target(self) -> int:
        return self._concurrency + self._pace.ahead()

    def _take(self, limit: int) -> bool:
        """Ask for work if others have written, if something of ours is due, or if it is time to ask all the same."""
        if self._look_after_older(limit):
            return True
        now_ns, hint = time.perf_counter_ns(), self._backend.hint()
        due = self._due_us is not None and self._due_us <= self.room.clock.now_us()
        if hint != self._asked:
            self._polling.came(now_ns)
        elif now_ns < self._poll_at and not due:
            return False
        self._look_at, polls = 0, hint == self._asked and not self._again
        self._polls += polls
        self._helps = not (polls and self._polls % 2)  # an idle worker asks for offers at every second poll
        taken = super()._take(limit)
        self._again = taken and self._look_at > 0
        if self._again:
            self._asked, self._poll_at = hint, now_ns + AGAIN_NS
        elif not taken and limit > 0:
            self._asked, self._poll_at = hint, now_ns + self._jittered() * 1_000
        return taken

    def _may_learn(self) -> bool:
        soon = self._again and time.perf_counter_ns() - self._learned_ns < LEARN_NS
        return not soon and super()._may_learn()

    def _learn_next(self) -> None:
        self._learned_ns = time.perf_counter_ns()
        super()._learn_next()

    def _space(self) -> int:
        if self._draining:
            return 0
        target, busy = self._target(), self._flights.here + len(self._backlog)
        space = min(target - busy, AT_ONCE - len(self._lives))
        return space if space > target // 4 or not self._flights.here else 0

    def _want(self, limit: int) -> Want:
        most = {number: self._most[name] for number, name in self._definitions.items() if name in self._most}
        now_us, name = self.room.clock.now_us(), self.room.name
        limit = max(limit, len(self._newest))  # one of each at least, or a long queue of one would delay the others
        return Want(list(self._definitions), now_us, limit, tuple(self._tags), name, PATIENCE_US, most)

    def _admits(self, live: Live, key: Key, body: Body) -> bool:
        """Say whether a step may start here and now; another one waits, or is put up for others."""
        begun, row = self._has_begun(live, key), live.plan.nodes[key[0]]
        if isinstance(live, Guest) or ((live, key) in self._homebound and not self._draining):
            return True
        if self._draining and not begun:
            return False
        if not self._tags.issuperset(row.tags):
            if body.at_most_once and not begun:
                return True  # its start is recorded before anybody may run it
            self._foreign.append((live, key, body))
            live.kept += 1
            return False
        if begun or self._flights.here < (self._concurrency if body.is_async else self._target()):
            return True
        heapq.heappush(self._backlog, (row.priority, next(self._order), live, key))
        live.kept += 1
        return False

    def _keep_ready(self, wanted: Callable[[Live], bool]) -> None:
        super()._keep_ready(wanted)
        for *_, live, _ in (each for each in self._backlog if not wanted(each[2])):
            live.kept -= 1
        for live, *_ in (each for each in self._foreign if not wanted(each[0])):
            live.kept -= 1
        self._backlog = [each for each in self._backlog if wanted(each[2])]
        heapq.heapify(self._backlog)
        self._foreign = [each for each in self._foreign if wanted(each[0])]

    def _queued(self) -> Iterable[tuple[Live, Key]]:
        yield from super()._queued()
        yield from ((live, key) for *_, live, key in self._backlog)
        yield from ((live, key) for live, key, _ in self._foreign)

    def _admit_backlog(self) -> None:
        free = self._concurrency - self._flights.here - len(self._ready)
        while self._backlog and free > 0:
            _, _, live, key = heapq.heappop(self._backlog)
            live.kept -= 1
            self._ready.append((live, key))
            free -= 1

    def _wait(self) -> Wait | None:
        self._offer_foreign()
        self._thin_backlog()
        self._send_reports()
        wait = super()._wait()
        if wait is None:
            return None
        if self._again and not self._draining:
            return wait._replace(poll_us=AGAIN_NS // 1_000)
        if self._unwatch is None:  # a store that tells of nothing is asked in short intervals
            return wait
        return wait._replace(poll_us=AHEAD_NS // 1_000 if self._backlog else self._jittered())

    def _jittered(self) -> int:
        return int(self._poll_us * random.uniform(0.8, 1.2))  # noqa: S311  # keeps workers from asking in step

    # --- committing ---

    def _commit(self) -> None:
        if self._dirty and self._pace.quick:
            self._gather()
        super()._commit()

    def _gather(self) -> None:
        """Let quick steps that are in the air end first: a commit costs the same for one as for hundreds."""
        until_ns = time.perf_counter_ns() + GATHER_NS
        while self._flights.here and len(self._dirty) < TURN_STEPS:
            left_ns = until_ns - time.perf_counter_ns()
            if left_ns <= 0:
                return
            self._take_in(self._await(left_ns / 1e9))

    def _await(self, seconds: float) -> Sequence[object]:
        """Return what comes into the mailbox within a short time."""
        return self.mailbox.wait(seconds) if isinstance(self.mailbox, Mailbox) else []

    # --- giving steps to others ---

    def _offer_foreign(self) -> None:
        foreign, self._foreign = [each for each in self._foreign if self._may_offer(*each[:2])], []
        self._offer(foreign)

    def _thin_backlog(self) -> None:
        """What has waited for a place here for some time is put up for others, and too much of it given back."""
        now_ns = time.perf_counter_ns()
        if len(self._backlog) <= self._pace.ahead():
            self._full_since = now_ns
        elif now_ns - self._full_since > AHEAD_NS:
            self._offer_surplus()
            self._give_back_surplus()

    def _give_back_surplus(self) -> None:
        """More is held than will be begun soon: what has not begun at all is for whoever has a place for it."""
        self._backlog.sort()
        beyond = (live for _, _, live, _ in self._backlog[WINDOW * self._concurrency :])
        spare = dict.fromkeys(live for live in beyond if not live.flights)  # in their order
        if spare:
            self.abandon(spare)

    def _offer_surplus(self) -> None:
        """Put up the last of the backlog, so that there is always something for others to take."""
        room_for = WINDOW * self._concurrency - self._flights.away
        if room_for <= 0:
            return
        self._backlog.sort()
        surplus = self._backlog[-room_for:]
        del self._backlog[-room_for:]
        steps = [(live, key, live.bodies[key[0]] or live.prepared.body(key[0])) for _, _, live, key in surplus]
        own = [each for each, step in zip(surplus, steps, strict=True) if step[2].at_most_once]
        self._offer([each for each in steps if not each[2].at_most_once and self._may_offer(*each[:2])])
        self._backlog += own  # the highest again: it is still a heap

    def _may_offer(self, live: Live, key: Key) -> bool:
        live.kept -= 1
        state, step = live.state, live.state.steps.get(key)
        stopped = state.ended or state.held or state.paused or state.stopping
        return (
            self._works_on(live)
            and not stopped
            and step is not None
            and (step.phase == "ready" or step.phase in STARTED)
        )

    def _offer(self, steps: Sequence[tuple[Live, Key, Body]]) -> None:
        if steps:
            self._away.offer(steps)

    def _back(self, live: Live, key: Key) -> None:
        here = {each for each in self._homebound if self._works_on(each[0])}
        self._homebound = here | {(live, key)}
        super()._back(live, key)

    # --- running steps of others ---

    def _has_changed(self, hint: int) -> bool:
        if self._unwatch is None:
            return super()._has_changed(hint)
        heard, self._heard = self._heard, False  # the hint changes by itself too, in case a word was lost
        return heard

    def _claim(self, limit: int) -> Sequence[Loaded]:
        if not self._lives:  # whoever is idle begins sooner this way; others first help to end what has begun
            found = super()._claim(limit)
            if not found or time.perf_counter_ns() - self._helped_ns > AHEAD_NS:
                self._take_offers()
            return found
        self._take_offers()
        return super()._claim(limit)

    def _take_offers(self) -> None:
        free = self._concurrency - self._flights.here - len(self._backlog)
        if free <= 0 or not (self._helps or self._lives):
            return
        self._helped_ns = time.perf_counter_ns()
        known = [each.definition for each in self._known]
        want = Want(known, self.room.clock.now_us(), free, tuple(self._tags))
        for claimed in self.room.fenced(self._backend.claim_offers, want):
            self._host(claimed)

    def _host(self, claimed: Offered) -> None:
        before = self._guests.get(claimed.id)
        if before is not None and not before.told_to_stop:  # it runs here: its first claim was forgotten
            return
        try:
            guest = Guest(self.room, self._prepared_for(claimed.header), claimed)
        except Exception as error:  # noqa: BLE001  # one damaged row must not stop the others
            _LOG.warning("an offered step of instance %s cannot be read: %s", claimed.header.instance_id, error)
            self.room.fenced(self._backend.hand_back, [claimed.id])
            return
        self._guests[claimed.id] = guest
        self._ready.append((guest, guest.key))

    def _has_left(self, guest: Guest) -> bool:
        """Take a guest out, and say whether it was there: a later one for the same offer answers for itself."""
        there = self._works_on(guest)
        if there:
            del self._guests[guest.offer]
        return there

    def _works_on(self, live: Live) -> bool:
        return self._guests.get(live.offer) is live if isinstance(live, Guest) else super()._works_on(live)

    def _absorb(self, outcome: Outcome) -> None:
        self._pace.ended(outcome.job.took_us)
        live = outcome.job.live
        if not isinstance(live, Guest):
            self._homebound.discard((live, outcome.job.key))
            super()._absorb(outcome)
        elif self._has_left(live):
            if live.observed is not None:
                observed.ended(outcome)
                self._telling[live.offer] = live
            self._reports.append((live.offer, away.report(outcome)))

    def _send_reports(self) -> None:
        if self._reports:
            reports, self._reports = self._reports, []
            for (offer, _), there in zip(reports, self.room.fenced(self._backend.settle, reports), strict=True):
                observed.settled(self._telling.pop(offer, None), there)
            if self._flights.away:  # it may be ours what was settled, and no word comes of what is written here
                self.mailbox.put(None)

    def _read_mail(self) -> None:
        self._send_reports()
        hint = self._backend.hint() if self._guests else self._guest_hint
        if hint != self._guest_hint:
            self._guest_hint = hint
            for number in self.room.fenced(self._backend.called_off, list(self._guests)):
                self._flights.stop(self._guests[number], "the instance is being ended")
                if not self._guests[number].flights:  # it was ended at once, and so will not report
                    self._dismiss(number)
        super()._read_mail()

    def _dismiss(self, number: int) -> None:
        self._guests.pop(number).let_go = True
        self.room.fenced(self._backend.hand_back, [number])

    def _keep(self, job: Job, cursor: Any) -> None:
        if isinstance(job.live, Guest):
            self._backend.post(job.live.instance, away.kept_cursor(job, cursor, self.room.clock.now_us()))
        else:
            super()._keep(job, cursor)

    # --- after trouble with the store ---

    def _compare(self) -> None:
        """Bring what is believed here and what the store has together again, after a call that may have been lost."""
        self.in_doubt = False
        instances, offers = self.room.fenced(self._backend.holdings)
        known = {live.instance for live in (*self._lives.values(), *self._aside)}
        self.room.fenced(self._backend.release, [number for number in instances if number not in known])
        self.room.fenced(self._backend.hand_back, [number for number in offers if self._is_strange(number)])
        self._look_for_strayed()

    def _look_for_strayed(self) -> None:
        """Take back what is thought to be on offer and is not, as it was put up under a claim that was forgotten."""
        self._sure_until = time.perf_counter_ns() + self._jittered() * 1_000
        lives = [live for live in self.lives() if any(job.away for job in live.flights.values())]
        out = [(live, self._away.out(live)) for live in lives]
        self._hint = -1
        self._read_mail()  # after that: an offer that has ended meanwhile has left a message
        for live, on_offer in out:
            for key in self._away.missing(live, on_offer):
                self._ready.append((live, key))
            self._settle_idle(live)

    def _regained(self) -> None:
        self.in_doubt = True

    def _is_strange(self, offer: int) -> bool:
        return offer not in self._guests and all(offer != number for number, _ in self._reports)

    def _begin_again(self) -> None:
        """Bodies that the store's trouble has ended begin again once it can be reached; no attempt is used up.

        The store says which: a transaction's own commit may have come through although nobody was told.
        """
        if self._cut_short:
            cut_short, self._cut_short = dict.fromkeys(self._cut_short), []
            self._compare()
            for live in cut_short:
                if self._works_on(live):
                    self._redo(live)

    # --- trouble with single ones ---

    def _lose(self, live: Live, error: BaseException) -> None:
        if isinstance(live, Guest):
            self._dismiss(live.offer)
        else:
            super()._lose(live, error)

    def _take_in(self, items: Iterable[object]) -> None:
        super()._take_in([item for item in items if not (isinstance(item, Fatal) and self._outlives(item))])

    def _start(self, live: Live, key: Key, body: Body, attempt: int) -> None:
        try:
            super()._start(live, key, body, attempt)
        except NeedsHolder:
            self._decline(live)
        except SystemExit as error:  # of an inline body; what runs elsewhere tells of it by a Fatal
            self._outlives(Fatal(Job(live, body, key[0], key[1], attempt, None), error))

    def _decline(self, live: Live) -> None:
        assert isinstance(live, Guest)
        if self._has_left(live):
            self._reports.append((live.offer, away.declined(live, self.room.clock.now_us())))

    def _outlives(self, fatal: Fatal) -> bool:
        """A body asked for the end of the process. It gets what a crash gets, and the worker goes on."""
        job = fatal.job
        if isinstance(fatal.error, NeedsHolder):
            self._flights.land(job)
            self._decline(job.live)
            return True
        if isinstance(fatal.error, PASSING):  # it wanted a transaction of a store that could not be reached
            if self._flights.land(job):
                self._cut_short.append(job.live)
            return True
        if not isinstance(fatal.error, (SystemExit, KeyboardInterrupt)):
            return False
        if self._flights.land(job) or job.body.inline:
            raised = type(fatal.error).__name__
            more = extras(job.live, job.path, job.number)
            _LOG.warning("%s of instance %s raised %s", job.path, job.live.instance_id, raised, extra=more)
            if isinstance(job.live, Guest):
                if self._has_left(job.live):
                    self._reports.append((job.live.offer, away.lost(job.live, self.room.clock.now_us())))
            else:
                cut = e.CutOff(job.node, job.turns, job.number, self.room.max_crashes)
                self._record(job.live, cut, self.room.clock.now_us())
        return True

    def _go_on_with(self, live: Live, loaded: Loaded) -> None:
        if loaded.header.suspect:
            lost = loaded.header.suspect
            text = "took over instance %s from a session that was lost (%d so far)"
            _LOG.warning(text, live.instance_id, lost, extra=extras(live))
        super()._go_on_with(live, loaded)

    def _refuse(self, header: Header, error: InstanceError) -> None:
        super()._refuse(header, error)
        if isinstance(error, InstanceDamaged):
            _LOG.warning("instance %s is left alone: %s", header.instance_id, error)
