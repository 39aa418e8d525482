"""A backend that is held to its promises while it works: who may write cannot be seen from the rows afterwards.

Each call goes on to ``inner``, one at a time, and its answer is compared with those before it. What the watcher cannot
know by itself it asks the store: a session is over if ``mail`` says so. It sees the calls of one process; rows that
other processes change meanwhile would look like violations.

S3: a claim, of an instance or of an offer, is granted only when the last holder gave it back, ended, died, or its lease
was over. S4: a lost session's
commit, and one that is answered ``"conflict"`` or ``"held"``, changes nothing; an offer is settled only by the session
that has claimed it. S5: what is answered ``"done"``
continued the journal, and now ends it. S7: an id is created once. S8: a message id is posted once. L1: a lease that is
over keeps nobody out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Final, Literal, TypeVar

from stepwell.backend.base import (
    Backend,
    Change,
    Created,
    Creation,
    Entry,
    Header,
    Holder,
    Loaded,
    Message,
    Offered,
    Outcome,
    Posted,
    Session,
    Want,
)
from stepwell.backend.liveness import is_dead, lease_clock
from stepwell.errors import LeaseLost
from stepwell.types import ENDED

from .faults import FaultyBackend
from .violations import Report

T = TypeVar("T")

TRACE_MAX: Final = 10_000


@dataclass(slots=True)
class _Known:
    """A session as it was opened. Its lease ends between ``soonest_us`` and ``latest_us`` on the lease clock."""

    session: Session
    holder: Holder
    soonest_us: int
    latest_us: int
    over: bool = False


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a commit may change of an instance: the entries after its base, and the row itself if its id is known.

    Messages may come meanwhile: a commit that finds the session of another one over tells of the offers lost with it.
    """

    later: Sequence[Entry]
    row: tuple[object, ...]
    mail: int = 0

    def is_untouched(self, now: _Rows) -> bool:
        return (now.later, now.row) == (self.later, self.row) and now.mail >= self.mail


class _Turn:
    """A lock that one thread at a time has; what is put off meanwhile is done when it has been given up."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._owner = self._depth = 0
        self._later: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = get_ident()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        later: list[Callable[[], None]] = []
        if not self._depth:
            self._owner = 0
            later, self._later = self._later, later
        self._lock.release()
        for action in later:
            action()

    def after(self, action: Callable[[], None]) -> None:
        """Do this now, or, in the thread whose turn it is, after its turn."""
        if self._owner == get_ident():
            self._later.append(action)
        else:
            action()


class WatchedBackend(FaultyBackend):
    """A backend that records every call in ``trace`` and every broken promise in ``report``.

    Args:
        lease_clock: the one that ``inner`` was given.

    Example:
        >>> from stepwell import CheckpointingRunner, InMemoryBackend
        >>> store = WatchedBackend(InMemoryBackend())
        >>> with CheckpointingRunner(store) as runner:
        ...     _ = runner.run(abs, -1)
        >>> store.report.ok
        True
    """

    def __init__(self, inner: Backend, *, lease_clock: Callable[[], int] = lease_clock) -> None:
        super().__init__(inner, ())
        self.report = Report()
        self.trace: deque[str] = deque(maxlen=TRACE_MAX)
        self._clock = lease_clock
        self._turn = _Turn()
        self._sessions: dict[int, _Known] = {}
        self._holders: dict[int, int] = {}
        self._claimers: dict[int, tuple[int, int]] = {}  # of offers: the session, and the instance
        self._ids: dict[int, str] = {}
        self._last: dict[str, int] = {}
        self._replaced: set[int] = set()
        self._posted: set[tuple[int, str]] = set()

    def _call(self, method: str, action: Callable[[], T]) -> T:
        with self._turn:
            self.trace.append(method)
            return super()._call(method, action)

    def _hold(self, rule: str, truth: bool, instance: int, text: str) -> None:
        self.report.examined[rule] += 1
        if not truth:
            self.report.add(rule, self._ids.get(instance, ""), text)

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        with self._turn:
            before = self._clock()
            session = super().open_session(holder, lease_us)
            self._sessions[session.id] = _Known(session, holder, before + lease_us, self._clock() + lease_us)
            return session

    def renew(self, session: Session) -> None:
        with self._turn:
            before, known = self._clock(), self._sessions.get(session.id)
            try:
                super().renew(session)
            except LeaseLost:
                self._has_lost(session)
                raise
            if known is not None:
                self._hold("S4", not known.over, 0, f"session {session.id} is over and was renewed")
                known.soonest_us, known.latest_us = before + session.lease_us, self._clock() + session.lease_us

    def end_session(self, session: Session) -> None:
        with self._turn:
            super().end_session(session)
            self._has_lost(session)

    def _has_lost(self, session: Session | None) -> None:
        """Note that a session is over, unless it is one with a forged token."""
        known = self._sessions.get(session.id) if session is not None else None
        if known is not None and known.session == session:
            self._is_over(known.session.id)

    def _is_over(self, session_id: int) -> None:
        if session_id in self._sessions:
            self._sessions[session_id].over = True
        self._holders = {number: holder for number, holder in self._holders.items() if holder != session_id}
        self._claimers = {number: claim for number, claim in self._claimers.items() if claim[0] != session_id}

    def _still_holds(self, instance: int, but: Session | None) -> int:
        """Return the id of another session that holds an instance and is not over, else 0; the store is asked."""
        return self._still_lives(self._holders.get(instance, 0), instance, but)

    def _still_lives(self, holder: int, instance: int, but: Session | None) -> int:
        known = self._sessions.get(holder)
        if known is None or (but is not None and holder == but.id):
            return 0
        try:
            self.inner.mail(known.session)
        except LeaseLost:
            self._check_takeover(instance, known)
            self._is_over(holder)
            return 0
        return holder

    def _check_takeover(self, instance: int, known: _Known) -> None:
        """A session that nobody ended is over: its process must be dead, or its lease."""
        rightly = known.over or known.soonest_us <= self._clock() or is_dead(known.holder)
        self._hold("S3", rightly, instance, f"session {known.session.id} was ended before its lease and its process")

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        with self._turn:
            before = self._clock()
            loaded = super().claim(session, instance_id)
            if loaded is not None and loaded.header.session == session.id:
                self._granted(session, loaded.header)
            elif loaded is not None and loaded.header.state not in ENDED:
                other = self._sessions.get(loaded.header.session)
                late = other is not None and other.latest_us <= before
                self._hold("L1", not late, loaded.header.instance, "a session whose lease is over keeps others out")
            return loaded

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        with self._turn:
            found = super().claim_due(session, want)
            for loaded in found:
                self._granted(session, loaded.header)
            return found

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        with self._turn:
            instances, offers = super().holdings(session)
            for number in instances:
                other = self._still_holds(number, session)
                self._hold("S3", not other, number, f"session {session.id} is said to hold what session {other} holds")
            return instances, offers

    def _granted(self, session: Session, header: Header) -> None:
        number = header.instance
        self._know(header)
        self._hold("S12", header.state not in ENDED, number, "a claim was granted on a run that has ended")
        holder = self._still_holds(number, session)
        self._hold("S3", not holder, number, f"session {session.id} was granted what session {holder} holds")
        self._holders[number] = session.id

    def _know(self, header: Header) -> None:
        self._ids[header.instance] = header.instance_id
        self._last[header.instance_id] = max(header.instance, self._last.get(header.instance_id, 0))

    def release(self, session: Session, instances: Sequence[int]) -> None:
        with self._turn:
            super().release(session, instances)
            for number in instances:
                if self._holders.get(number) == session.id:
                    del self._holders[number]

    # --- offers -----------------------------------------------------------------------------------

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        with self._turn:
            found = super().claim_offers(session, want)
            for each in found:
                self._know(each.header)
                number = each.header.instance
                fresh = each.header.state not in ENDED
                self._hold("S12", fresh, number, "an offer of a run that has ended was claimed")
                claimer, _ = self._claimers.get(each.id, (0, 0))
                holder = self._still_lives(claimer, number, None)
                text = f"session {session.id} was granted offer {each.id}, which session {holder} has claimed"
                self._hold("S3", not holder, number, text)
                self._claimers[each.id] = (session.id, number)
            return found

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        with self._turn:
            try:
                settled = super().settle(session, results)
            except LeaseLost:
                self._has_lost(session)
                raise
            self._check_writer(session)
            for (offer, _), ended in zip(results, settled, strict=True):
                claimer, number = self._claimers.get(offer, (0, 0))
                if ended:
                    text = f"session {session.id} has settled offer {offer}, which it has not claimed"
                    self._hold("S4", claimer == session.id, number, text)
                if claimer == session.id:
                    del self._claimers[offer]
            return settled

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        with self._turn:
            super().hand_back(session, offers)
            for offer in offers:
                if self._claimers.get(offer, (0, 0))[0] == session.id:
                    del self._claimers[offer]

    # --- creating ---------------------------------------------------------------------------------

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        with self._turn:
            answers = super().create(session, creations)
            for creation, answer in zip(creations, answers, strict=True):
                self._check_answer(session, creation, answer)
            return answers

    def _check_answer(
        self, session: Session | None, creation: Creation, answer: Created | Header | Literal["conflict"]
    ) -> None:
        known, change = self._last.get(creation.instance_id, 0), creation.replacing
        if isinstance(answer, Created):
            free = not known or change is not None
            self._hold("S7", free, known, f"{creation.instance_id!r} was created a second time")
            if change is not None:
                self._replaced.add(change.instance)
                self._holders.pop(change.instance, None)
            self._know(answer.header)
            if answer.header.session:
                self._holders[answer.header.instance] = answer.header.session
        elif isinstance(answer, Header):
            same = answer.instance_id == creation.instance_id and answer.instance >= known
            self._hold("S7", same, known, f"{creation.instance_id!r} is answered with an older run, or another's")
            self._know(answer)
        else:
            self._hold("S7", change is not None, known, f"{creation.instance_id!r} is refused without a run to replace")

    # --- committing -------------------------------------------------------------------------------

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        with self._turn:
            times = Counter(change.instance for change in changes)
            before = {change.instance: self._rows(change) for change in changes if times[change.instance] == 1}
            try:
                outcomes = super().commit(session, changes)
            except LeaseLost:
                self._check_untouched(before, changes, "a lost session's commit changed it")
                self._has_lost(session)
                raise
            self._check_writer(session)
            landed = [change for change, outcome in zip(changes, outcomes, strict=True) if outcome in ("done", "mail")]
            refused = [change for change in changes if change not in landed]
            self._check_untouched(before, refused, "a commit that was refused changed it")
            for change in landed:
                self._landed(session, change, before.get(change.instance))
            return outcomes

    def _check_untouched(self, before: Mapping[int, _Rows], changes: Sequence[Change], text: str) -> None:
        for change in changes:
            if change.instance in before:
                same = before[change.instance].is_untouched(self._rows(change))
                self._hold("S4", same, change.instance, text)

    def _check_writer(self, session: Session | None) -> None:
        known = self._sessions.get(session.id) if session is not None else None
        self._hold("S4", known is None or not known.over, 0, "a session that is over has written")

    def _rows(self, change: Change) -> _Rows:
        later = self.inner.history(change.instance, change.base, len(change.entries) + 1)
        header = self.inner.header(self._ids.get(change.instance, "")) if change.instance in self._ids else None
        if header is None or header.instance != change.instance:
            return _Rows(list(later), ())
        row = (header.state, header.seq, header.result_seq, header.updated_us, header.ended_us)
        return _Rows(list(later), row, header.mail)

    def _landed(self, session: Session | None, change: Change, before: _Rows | None) -> None:
        number, holder = change.instance, self._still_holds(change.instance, session)
        self._hold("S3", not holder, number, f"session {holder} holds it and another has written")
        self._hold("S7", number not in self._replaced, number, "a run that was replaced was written to")
        if before is not None:
            self._hold("S5", not before.later, number, f"a commit from entry {change.base} landed behind a later one")
            now = self.inner.history(number, change.base, len(change.entries) + 1)
            self._hold("S5", list(now) == list(change.entries), number, "what is stored is not what was committed")
        if session is None or (change.rest is not None and (change.rest.release or change.rest.state in ENDED)):
            self._holders.pop(number, None)
        else:
            self._holders[number] = session.id

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        return super().watch(lambda: self._turn.after(wake))

    # --- messages and upkeep ----------------------------------------------------------------------

    def post(self, instance: int, message: Message) -> Posted:
        with self._turn:
            posted = super().post(instance, message)
            if posted == "posted" and message.message_id:
                key = (instance, message.message_id)
                self._hold("S8", key not in self._posted, instance, f"message {message.message_id!r} is taken twice")
                self._posted.add(key)
            return posted

    def delete(self, instance_id: str) -> bool:
        with self._turn:
            deleted = super().delete(instance_id)
            if deleted:
                self._last.pop(instance_id, None)
            return deleted

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        with self._turn:
            removed = super().purge(ended_before_us, keep, limit)
            self._last = {known: number for known, number in self._last.items() if self.inner.header(known) is not None}
            return removed
