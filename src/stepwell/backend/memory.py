"""The reference store: what every backend means, in plain Python with one lock and no disk.

It is meant to be read beside :mod:`.base`. Where another backend and this one differ, this one is right; the
differential test in ``tests/backend`` runs the same random operations on both.

A run is *held* while ``run.session`` names a session that still exists; ending a session is the one way to free what it
holds. Due runs are found through a heap per definition whose entries may be stale: an entry counts only if the run is
still free and still due at that moment, so nothing ever has to be taken out of the middle.
"""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Literal, Self

from msgspec.structs import replace

from stepwell.errors import Closed, LeaseLost, OptionError
from stepwell.types import ENDED, State

from .base import (
    NOTHING_MOVES,
    Capabilities,
    Change,
    Created,
    Creation,
    Entry,
    Filter,
    Header,
    Holder,
    Loaded,
    Message,
    Outcome,
    Posted,
    Rest,
    Session,
    Stuck,
    check_creation,
)
from .liveness import is_dead, lease_clock

if TYPE_CHECKING:
    from stepwell.codec import Codec


@dataclass(slots=True)
class _Held:
    """A session as the store knows it. ``runs`` are the numbers it holds, in order of claiming."""

    session: Session
    holder: Holder
    until_us: int
    runs: dict[int, None] = field(default_factory=dict[int, None])


@dataclass(slots=True)
class _Definition:
    id: int
    name: str
    fingerprint: str
    plan: bytes
    due: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(slots=True)
class _Run:
    """One run of an instance. ``due_us`` counts only while it is not ended; ``replaced`` runs take no more writes."""

    number: int
    run: int
    made: Creation
    definition: _Definition
    state: State
    updated_us: int
    ended_us: int | None
    due_us: int | None
    image: bytes | None
    journal: list[Entry]
    image_seq: int = 0
    result_seq: int = 0
    session: int = 0
    replaced: bool = False
    mail: list[Message] = field(default_factory=list[Message])
    known: set[str] = field(default_factory=set[str])

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def parked(self) -> bool:
        """Whether its last rest still says when it wants to be claimed."""
        return self.state in ("waiting", "paused", "held") and len(self.journal) == self.image_seq and not self.mail

    def admits(self, change: Change) -> bool:
        """Whether the change continues this run's journal without a gap and brings no message twice."""
        if self.replaced or len(self.journal) != change.base or not self.known.isdisjoint(change.message_ids):
            return False
        return all(entry.seq == seq for seq, entry in enumerate(change.entries, change.base + 1))


class InMemoryBackend:
    """A store that lives as long as this object: for tests of what a restart does, with two runners on one store.

    Args:
        codec: how values are encoded; :class:`~stepwell.codec.JsonCodec` by default.
        lease_clock: microseconds that only grow; for tests.

    Example:
        >>> store = InMemoryBackend()
        >>> with CheckpointingRunner(store) as runner:
        ...     status = runner.start(approval, "ticket", instance_id="a")
        >>> with CheckpointingRunner(store) as runner:
        ...     runner.recover([approval])
    """

    capabilities = Capabilities(durable=False, multi_process=False, user_transactions=False)

    def __init__(self, codec: Codec | None = None, *, lease_clock: Callable[[], int] = lease_clock) -> None:
        if codec is None:
            from stepwell.codec import JsonCodec

            codec = JsonCodec()
        self.codec: Codec = codec
        self.backend_id = secrets.token_hex(16)
        self._clock = lease_clock
        self._lock = RLock()
        self._closed = False
        self._writes = 0
        self._sessions: dict[int, _Held] = {}
        self._definitions: list[_Definition] = []
        self._runs: dict[int, _Run] = {}
        self._last: dict[str, _Run] = {}
        self._numbers = 0
        self._messages = 0
        self._session_ids = 0

    @property
    def codec_id(self) -> int:
        return self.codec.id

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        with self._open():
            self._writes += 1
            self._session_ids += 1
            session = Session(self._session_ids, secrets.randbits(63), lease_us)
            self._sessions[session.id] = _Held(session, holder, self._clock() + lease_us)
            return session

    def renew(self, session: Session) -> None:
        with self._open():
            self._live(session).until_us = self._clock() + session.lease_us

    def end_session(self, session: Session) -> None:
        with self._open():
            held = self._sessions.get(session.id)
            if held is not None and held.session.token == session.token:
                self._end(held)

    # --- writing ----------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        with self._open():
            for known in self._definitions:
                if (known.name, known.fingerprint) == (name, fingerprint):
                    return known.id
            self._writes += 1
            definition = _Definition(len(self._definitions) + 1, name, fingerprint, plan)
            self._definitions.append(definition)
            return definition.id

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        with self._open():
            held = self._live(session) if session is not None else None
            for creation in creations:
                check_creation(creation)
                self._definition(creation.definition)
                self._check_rest(creation.replacing)
            return [self._create(held, creation) for creation in creations]

    def _create(self, held: _Held | None, creation: Creation) -> Created | Header | Literal["conflict"]:
        last, change = self._last.get(creation.instance_id), creation.replacing
        if change is None and last is not None:
            return self._header(last)
        if change is not None:
            if last is None or last.number != change.instance or not last.admits(change):
                return "conflict"
            self._apply(last, change)
            self._replace(last)
        run = self._insert(creation, last.run + 1 if last is not None else 1)
        if held is not None and creation.claim and not run.ended:
            self._hold(held, run)
        return Created(self._header(run, held))

    def _insert(self, creation: Creation, number_of_run: int) -> _Run:
        self._writes += 1
        self._numbers += 1
        ended_us = creation.at_us if creation.state in ENDED else None
        run = _Run(
            self._numbers, number_of_run, creation, self._definition(creation.definition), creation.state,
            creation.at_us, ended_us, creation.due_us, creation.image, list(creation.entries),
        )  # fmt: skip
        run.image_seq = len(run.journal) if run.image is not None else 0
        self._runs[run.number] = self._last[creation.instance_id] = run
        self._queue(run)
        return run

    def _replace(self, run: _Run) -> None:
        """Close a run to every further write, whoever holds it."""
        self._drop_claim(run)
        run.replaced, run.due_us = True, None
        run.mail.clear()

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        with self._open():
            held = self._live(session) if session is not None else None
            for change in changes:
                self._check_rest(change)
            return [self._commit(held, change) for change in changes]

    def _commit(self, held: _Held | None, change: Change) -> Outcome:
        run = self._runs.get(change.instance)
        if run is None:
            return "conflict"
        if (held is None or run.session != held.session.id) and self._holder_of(run) is not None:
            return "conflict" if held is not None else "held"
        if not run.admits(change):
            return "conflict"
        self._apply(run, change)
        return self._settle(run, held, change.rest)

    def _apply(self, run: _Run, change: Change) -> None:
        self._writes += 1
        run.journal.extend(change.entries)
        run.known.update(change.message_ids)
        if change.taken:
            run.mail = [message for message in run.mail if message.id not in change.taken]
        if (rest := change.rest) is None:
            return
        run.state, run.image, run.image_seq = rest.state, rest.image, len(run.journal)
        run.due_us, run.result_seq = rest.due_us, rest.result_seq
        run.definition = run.definition if rest.definition is None else self._definition(rest.definition)
        run.updated_us = change.entries[-1].at_us if change.entries else run.updated_us
        run.ended_us = run.updated_us if run.ended else None

    def _settle(self, run: _Run, held: _Held | None, rest: Rest | None) -> Outcome:
        """Decide who holds the run after a change, and whether anyone has to look at it soon."""
        if run.ended:
            self._drop_claim(run)
            run.due_us = None
            return "done"
        if held is not None and (rest is None or not rest.release):
            self._hold(held, run)
            return "done"
        self._drop_claim(run)
        run.due_us = 0 if rest is None or run.mail else run.due_us
        self._queue(run)
        return "mail" if run.mail else "done"

    def post(self, instance: int, message: Message) -> Posted:
        with self._open():
            run = self._runs.get(instance)
            if run is None:
                return "ended"
            if message.message_id and message.message_id in run.known:
                return "known"
            if run.ended or run.replaced:
                return "ended"
            if self._holder_of(run) is None:
                return "free"
            self._writes += 1
            self._messages += 1
            run.mail.append(replace(message, id=self._messages))
            if message.message_id:
                run.known.add(message.message_id)
            return "posted"

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        with self._open():
            held = self._live(session)
            run = self._last.get(instance_id)
            if run is None:
                return None
            if not run.ended and run.session != held.session.id and self._holder_of(run) is None:
                self._hold(held, run)
            return self._loaded(run, held)

    def claim_due(self, session: Session, definitions: Sequence[int], now_us: int, limit: int) -> Sequence[Loaded]:
        with self._open():
            held = self._live(session)
            for other in [other for other in self._sessions.values() if other is not held and self._over(other)]:
                self._end(other)
            found: list[_Run] = []
            while len(found) < limit and (run := self._next_due(definitions, now_us)) is not None:
                self._hold(held, run)
                found.append(run)
            return [self._loaded(run, held) for run in found]

    def _next_due(self, definitions: Iterable[int], now_us: int) -> _Run | None:
        """Return the free run that is due longest, leaving its queue entry to go stale."""
        due: list[tuple[int, int]] = []
        for definition in map(self._definition, definitions):
            if (first := self._first_due(definition)) is not None and first[0] <= now_us:
                due.append(first)
        return self._runs[min(due)[1]] if due else None

    def _first_due(self, definition: _Definition) -> tuple[int, int] | None:
        queue = definition.due
        while queue:
            due_us, number = queue[0]
            run = self._runs.get(number)
            if run is not None and not run.session and run.definition is definition and run.due_us == due_us:
                return queue[0]
            heapq.heappop(queue)
        return None

    def release(self, session: Session, instances: Sequence[int]) -> None:
        with self._open():
            held = self._live(session)
            for number in instances:
                if number in held.runs:
                    self._free(self._runs[number])

    # --- reading ----------------------------------------------------------------------------------

    def load(self, instance_id: str) -> Loaded | None:
        with self._open():
            run = self._last.get(instance_id)
            return self._loaded(run) if run is not None else None

    def header(self, instance_id: str) -> Header | None:
        with self._open():
            run = self._last.get(instance_id)
            return self._header(run) if run is not None else None

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        with self._open():
            run = self._runs.get(instance)
            wanted = set(seqs)
            found = run.journal if run is not None else []
            return {entry.seq: entry.output for entry in found if entry.seq in wanted and entry.output is not None}

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        with self._open():
            held = self._live(session)
            return {number: tuple(mail) for number in held.runs if (mail := self._runs[number].mail)}

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        with self._open():
            for known in self._definitions:
                if (known.name, known.fingerprint) == (name, fingerprint):
                    return known.plan
            return None

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        with self._open():
            run = self._runs.get(instance)
            start = max(after, 0)
            return run.journal[start : start + max(limit, 0)] if run is not None else []

    def list(self, where: Filter) -> Sequence[Header]:
        with self._open():
            found = sorted(self._matching(where), key=lambda run: -run.number)
            page = [run for run in found if where.after is None or run.number < where.after]
            return [self._header(run) for run in page[: max(where.limit, 0)]]

    def count(self, where: Filter) -> int:
        with self._open():
            return sum(1 for _ in self._matching(where))

    def _matching(self, where: Filter) -> Iterator[_Run]:
        return (run for run in self._last.values() if _matches(run, where))

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        with self._open():
            return [Stuck(run.made.instance_id, NOTHING_MOVES) for run in self._last.values() if self._stuck(run)]

    def _stuck(self, run: _Run) -> bool:
        moved = run.ended or run.state in ("waiting", "paused", "held") or run.due_us is not None
        return not moved and run.session not in self._sessions

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        with self._open():
            run = self._last.get(instance_id)
            if run is None or not run.ended:
                return False
            self._remove(instance_id)
            return True

    def purge(self, ended_before_us: int, limit: int) -> int:
        with self._open():
            ended = sorted(
                (run.ended_us, run.number, run.made.instance_id)
                for run in self._last.values()
                if run.ended_us is not None and run.ended_us < ended_before_us
            )[: max(limit, 0)]
            for _, _, instance_id in ended:
                self._remove(instance_id)
            return len(ended)

    def hint(self) -> int:
        with self._open():
            return self._writes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True

    # --- inside -----------------------------------------------------------------------------------

    def _open(self) -> RLock:
        if self._closed:
            raise Closed("this InMemoryBackend is closed; make a new one")
        return self._lock

    def _live(self, session: Session) -> _Held:
        held = self._sessions.get(session.id)
        if held is None or held.session.token != session.token:
            raise LeaseLost("this session was ended or taken over")
        return held

    def _over(self, held: _Held) -> bool:
        return held.until_us <= self._clock() or is_dead(held.holder)

    def _holder_of(self, run: _Run) -> _Held | None:
        """Return the live session that holds the run, after ending one that is not live any more."""
        held = self._sessions.get(run.session)
        if held is None or not self._over(held):
            return held
        self._end(held)
        return None

    def _hold(self, held: _Held, run: _Run) -> None:
        self._writes += 1
        held.runs[run.number] = None
        run.session = held.session.id

    def _drop_claim(self, run: _Run) -> None:
        held = self._sessions.get(run.session)
        if held is not None:
            del held.runs[run.number]
        run.session = 0

    def _free(self, run: _Run) -> None:
        """End a claim without a rest: whoever comes next has to look, unless the run is still parked as it was."""
        self._writes += 1
        self._drop_claim(run)
        run.due_us = run.due_us if run.parked else 0
        self._queue(run)

    def _end(self, held: _Held) -> None:
        self._writes += 1
        for number in tuple(held.runs):
            self._free(self._runs[number])
        del self._sessions[held.session.id]

    def _queue(self, run: _Run) -> None:
        if run.due_us is not None and not run.ended:
            heapq.heappush(run.definition.due, (run.due_us, run.number))

    def _definition(self, number: int) -> _Definition:
        if not 1 <= number <= len(self._definitions):
            raise OptionError(f"no definition has the number {number}; register it in this backend first")
        return self._definitions[number - 1]

    def _check_rest(self, change: Change | None) -> None:
        if change is not None and change.rest is not None and change.rest.definition is not None:
            self._definition(change.rest.definition)

    def _remove(self, instance_id: str) -> None:
        self._writes += 1
        del self._last[instance_id]
        for number in [run.number for run in self._runs.values() if run.made.instance_id == instance_id]:
            del self._runs[number]

    def _loaded(self, run: _Run, asking: _Held | None = None) -> Loaded:
        later, header = run.journal[run.image_seq :], self._header(run, asking)
        return Loaded(header, run.image, [replace(entry, output=None) for entry in later], tuple(run.mail))

    def _header(self, run: _Run, asking: _Held | None = None) -> Header:
        held = self._sessions.get(run.session)
        if held is not None and held is not asking and self._over(held):
            held = None
        return Header(
            instance=run.number,
            instance_id=run.made.instance_id,
            run=run.run,
            workflow=run.definition.name,
            fingerprint=run.definition.fingerprint,
            state=run.state,
            seq=len(run.journal),
            created_us=run.made.at_us,
            updated_us=run.updated_us,
            ended_us=run.ended_us,
            due_us=None if run.ended else run.due_us,
            input_digest=run.made.input_digest,
            result_seq=run.result_seq,
            held_by=held.holder.name if held is not None else "",
            mail=len(run.mail),
            labels=run.made.labels,
            trace=run.made.trace,
            session=held.session.id if held is not None else 0,
        )


def _matches(run: _Run, where: Filter) -> bool:
    return (
        (not where.states or run.state in where.states)
        and (not where.workflow or run.definition.name == where.workflow)
        and where.labels.items() <= run.made.labels.items()
        and (where.created_from_us is None or run.made.at_us >= where.created_from_us)
        and (where.created_to_us is None or run.made.at_us < where.created_to_us)
        and not (where.unfinished and run.ended)
    )
