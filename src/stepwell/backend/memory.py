"""The reference store: what every backend means, in plain Python with one lock and no disk.

It is meant to be read beside :mod:`.base`. Where another backend and this one differ, this one is right; the
differential test in ``tests/backend`` runs the same random operations on both.

A run is *held* while ``run.session`` names a session that still exists; ending a session is the one way to free what it
holds. Due runs are found through a queue per definition whose entries may be stale: one counts only if the run is still
free and still due at that moment, so nothing ever has to be taken out of the middle.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from msgspec.structs import replace

from stepwell.errors import Closed, LeaseLost, OptionError
from stepwell.types import ENDED

from .base import (
    NO_SESSION,
    NOTHING_MOVES,
    PATIENT,
    UNREAD,
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
    check_purge,
)
from .liveness import is_dead, lease_clock
from .memory_rows import Definition, Held, Queue, Run

if TYPE_CHECKING:
    from stepwell.codec import Codec


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
        self._sessions: dict[int, Held] = {}
        self._definitions: list[Definition] = []
        self._runs: dict[int, Run] = {}
        self._last: dict[str, Run] = {}
        self._ended: dict[int, int] = {}  # of last runs, when they ended
        self._oldest: list[tuple[int, int]] | None = None  # the same sorted, the next to purge last; None: not sorted
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
            self._sessions[session.id] = Held(session, holder, self._clock() + lease_us)
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
                    self._writes += known.plan != plan
                    known.plan = plan
                    return known.id
            self._writes += 1
            number = len(self._definitions) + 1
            definition = Definition(number, name, fingerprint, plan, Queue(partial(self._is_due, number)))
            self._definitions.append(definition)
            return definition.id

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        for creation in creations:
            check_creation(creation)
        with self._open():
            held = self._live(session) if session is not None else None
            for creation in creations:
                self._definition(creation.definition)
                self._check_rest(creation.replacing)
            return [self._create(held, creation) for creation in creations]

    def _create(self, held: Held | None, creation: Creation) -> Created | Header | Literal["conflict"]:
        last, change = self._last.get(creation.instance_id), creation.replacing
        if change is None and last is not None:
            return self._header(last)
        if change is not None:
            if last is None or last.number != change.instance or not last.admits(change):
                return "conflict"
            self._apply(last, change)
            self._replace(last)
        run = self._insert(creation, last)
        if held is not None and creation.claim and not run.ended:
            self._hold(held, run)
        return Created(self._header(run, held))

    def _insert(self, creation: Creation, last: Run | None) -> Run:
        self._writes += 1
        self._numbers += 1
        updated_us = creation.updated_us or creation.at_us
        end_us = creation.at_us if creation.ended_us is None else creation.ended_us
        ended_us = end_us if creation.state in ENDED else None
        run = Run(
            self._numbers, creation.run or (last.run + 1 if last is not None else 1), creation,
            self._definition(creation.definition), creation.state, updated_us, ended_us, creation.due_us,
            creation.image, list(creation.entries), last, result_seq=creation.result_seq,
        )  # fmt: skip
        run.image_seq = len(run.journal) if run.image is not None else 0
        if creation.messages or creation.message_ids:
            self._restore_inbox(run, creation)
        self._runs[run.number] = self._last[creation.instance_id] = run
        if ended_us is not None:
            self._note_end(run)
        self._queue(run)
        return run

    def _restore_inbox(self, run: Run, creation: Creation) -> None:
        run.known.update(creation.message_ids)
        for message in creation.messages:
            self._receive(run, message)
        run.due_us = 0 if run.mail else run.due_us

    def _replace(self, run: Run) -> None:
        """Close a run to every further write, whoever holds it."""
        self._drop_claim(run)
        run.replaced, run.due_us = True, None
        run.mail.clear()
        self._ended.pop(run.number, None)

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        with self._open():
            held = self._live(session) if session is not None else None
            for change in changes:
                if change.rest is not None:
                    self._check_rest(change)
            return [self._commit(held, change) for change in changes]

    def _commit(self, held: Held | None, change: Change) -> Outcome:
        run = self._runs.get(change.instance)
        if run is None:
            return "conflict"
        ours = held is not None and run.session == held.session.id
        if not ours and self._holder_of(run) is not None:
            return "conflict" if held is not None else "held"
        if not run.admits(change):
            return "conflict"
        if (
            ours and change.rest is None and not (change.taken or change.message_ids)
        ):  # work goes on, as after nearly every step
            self._writes += 1
            run.journal.extend(change.entries)
            return "done"
        self._apply(run, change)
        return self._settle(run, held, change.rest)

    def _apply(self, run: Run, change: Change) -> None:
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
        last_us = run.journal[-1].at_us if run.journal else 0  # it may have come with an earlier change
        run.updated_us = last_us if change.entries else max(run.updated_us, last_us)
        run.ended_us = run.updated_us if run.ended else None
        self._note_end(run)

    def _settle(self, run: Run, held: Held | None, rest: Rest | None) -> Outcome:
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
            self._receive(run, message)
            return "posted"

    def _receive(self, run: Run, message: Message) -> None:
        self._messages += 1
        run.mail.append(replace(message, id=self._messages))
        if message.message_id:
            run.known.add(message.message_id)

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
            found: list[Run] = []
            while len(found) < limit and (run := self._next_due(definitions, now_us)) is not None:
                self._hold(held, run)
                found.append(run)
            return [self._loaded(run, held) for run in found]

    def _next_due(self, definitions: Iterable[int], now_us: int) -> Run | None:
        """Return the free run that is due longest, leaving its queue entry to go stale."""
        firsts = [first for number in definitions if (first := self._definition(number).due.first()) is not None]
        return self._runs[min(firsts)[1]] if firsts and min(firsts)[0] <= now_us else None

    def next_due(self, workflow: str) -> Mapping[int, int | None]:
        with self._open():
            return {each.id: _time_of(each.due.first()) for each in self._definitions if each.name == workflow}

    def _is_due(self, definition: int, due_us: int, number: int) -> bool:
        run = self._runs.get(number)
        return run is not None and not run.session and run.definition.id == definition and run.due_us == due_us

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

    def received(self, instance: int) -> Sequence[str]:
        with self._open():
            run = self._runs.get(instance)
            return sorted(run.known) if run is not None else []

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

    def _matching(self, where: Filter) -> Iterator[Run]:
        return (run for run in self._last.values() if _matches(run, where))

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        with self._open():
            reasons = ((run.made.instance_id, self._why_stuck(run)) for run in self._last.values())
            return [Stuck(instance_id, reason) for instance_id, reason in reasons if reason is not None]

    def _why_stuck(self, run: Run) -> str | None:
        if run.ended or run.session in self._sessions:
            return None
        if run.session:
            return NO_SESSION
        if run.due_us is not None:
            return None
        return NOTHING_MOVES if run.state not in PATIENT else UNREAD if run.mail else None

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        with self._open():
            run = self._last.get(instance_id)
            if run is None or not run.ended:
                return False
            self._remove(instance_id)
            return True

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        check_purge(ended_before_us, keep)
        with self._open():
            if self._oldest is None:
                self._oldest = sorted(((ended_us, number) for number, ended_us in self._ended.items()), reverse=True)
            beyond = len(self._ended) - keep if keep is not None else 0
            removed = 0
            while removed < limit and self._oldest:
                ended_us, number = self._oldest[-1]
                if number in self._ended:
                    if removed >= beyond and (ended_before_us is None or ended_us >= ended_before_us):
                        break
                    self._remove(self._runs[number].made.instance_id)
                    removed += 1
                self._oldest.pop()
            return removed

    # --- the user's transaction -------------------------------------------------------------------

    def within(self, connection: object) -> NoReturn:
        raise OptionError(
            f"an InMemoryBackend has no transactions to join, so it cannot use a {type(connection).__name__}: leave "
            "connection= out, or use SqliteBackend(path) with a connection of backend.connect()"
        )

    # --- whether to look --------------------------------------------------------------------------

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

    def _live(self, session: Session) -> Held:
        held = self._sessions.get(session.id)
        if held is None or held.session.token != session.token:
            raise LeaseLost("this session was ended or taken over")
        return held

    def _over(self, held: Held) -> bool:
        return held.until_us <= self._clock() or is_dead(held.holder)

    def _holder_of(self, run: Run) -> Held | None:
        """Return the live session that holds the run, after ending one that is not live any more."""
        held = self._sessions.get(run.session)
        if held is None or not self._over(held):
            return held
        self._end(held)
        return None

    def _hold(self, held: Held, run: Run) -> None:
        self._writes += 1
        held.runs[run.number] = None
        run.session = held.session.id

    def _drop_claim(self, run: Run) -> None:
        held = self._sessions.get(run.session)
        if held is not None:
            del held.runs[run.number]
        run.session = 0

    def _free(self, run: Run) -> None:
        """End a claim without a rest: whoever comes next has to look, unless the run is still parked as it was."""
        self._writes += 1
        self._drop_claim(run)
        run.due_us = run.due_us if run.parked else 0
        self._queue(run)

    def _end(self, held: Held) -> None:
        self._writes += 1
        for number in tuple(held.runs):
            self._free(self._runs[number])
        del self._sessions[held.session.id]

    def _queue(self, run: Run) -> None:
        if run.due_us is not None and not run.ended:
            run.definition.due.push(run.due_us, run.number)

    def _note_end(self, run: Run) -> None:
        if run.ended_us is not None:
            self._ended[run.number], self._oldest = run.ended_us, None
        else:
            self._ended.pop(run.number, None)

    def _definition(self, number: int) -> Definition:
        if not 1 <= number <= len(self._definitions):
            raise OptionError(f"no definition has the number {number}; register it in this backend first")
        return self._definitions[number - 1]

    def _check_rest(self, change: Change | None) -> None:
        if change is not None and change.rest is not None and change.rest.definition is not None:
            self._definition(change.rest.definition)

    def _remove(self, instance_id: str) -> None:
        self._writes += 1
        run: Run | None = self._last.pop(instance_id)
        while run is not None:
            self._ended.pop(run.number, None)
            del self._runs[run.number]
            run = run.earlier

    def _loaded(self, run: Run, asking: Held | None = None) -> Loaded:
        later, header = run.journal[run.image_seq :], self._header(run, asking)
        return Loaded(header, run.image, [replace(entry, output=None) for entry in later], tuple(run.mail))

    def _header(self, run: Run, asking: Held | None = None) -> Header:
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
            definition=run.definition.id,
            origin=run.made.origin,
        )


def _matches(run: Run, where: Filter) -> bool:
    return (
        (not where.states or run.state in where.states)
        and (not where.workflow or run.definition.name == where.workflow)
        and where.labels.items() <= run.made.labels.items()
        and (where.created_from_us is None or run.made.at_us >= where.created_from_us)
        and (where.created_to_us is None or run.made.at_us < where.created_to_us)
        and not (where.unfinished and run.ended)
    )


def _time_of(entry: tuple[int, int] | None) -> int | None:
    return entry[0] if entry is not None else None
