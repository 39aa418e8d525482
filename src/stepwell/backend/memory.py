"""The reference store: what every backend means, in plain Python with one lock and no disk.

It is meant to be read beside :mod:`.base`. Where another backend and this one differ, this one is right; the
differential test in ``tests/backend`` runs the same random operations on both. Who holds what, and how that ends, is in
:mod:`.memory_store`.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from stepwell.errors import OptionError
from stepwell.types import ENDED

from .base import (
    NO_SESSION,
    NOTHING_MOVES,
    OFFER_LEFT,
    OFFER_NO_SESSION,
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
    Offer,
    Offered,
    Outcome,
    Posted,
    Rest,
    Session,
    Stuck,
    Want,
    check_creation,
    check_purge,
)
from .liveness import lease_clock
from .memory_rows import Definition, Held, Run, Standing, matches
from .memory_store import MemoryStore
from .turns import Due, Room, in_turn

if TYPE_CHECKING:
    from stepwell.codec import Codec


class InMemoryBackend(MemoryStore):
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
        from stepwell.codec import JsonCodec, check_codec

        if codec is None:
            codec = JsonCodec()
        check_codec(codec)
        super().__init__(lease_clock)
        self.codec: Codec = codec
        self.backend_id = secrets.token_hex(16)

    def __repr__(self) -> str:
        return "InMemoryBackend()"

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
                self._end(held, lost=False)

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        with self._open():
            self._live(session).serves = frozenset(definitions)
            self._writes += 1

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        with self._open():
            live = [held for held in self._sessions.values() if held.serves and not self._over(held)]
            return Counter(number for held in live for number in held.serves.intersection(definitions))

    # --- writing ----------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        with self._open():
            for known in self._definitions:
                if (known.name, known.fingerprint) == (name, fingerprint):
                    self._writes += known.plan != plan
                    known.plan = plan
                    return known.id
            self._writes += 1
            self._definitions.append(Definition(len(self._definitions) + 1, name, fingerprint, plan))
            return len(self._definitions)

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
        self._drop_offers(run)
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
        return self._leave(run, held, change.rest)

    def _apply(self, run: Run, change: Change) -> None:
        self._writes += 1
        run.journal.extend(change.entries)
        run.known.update(change.message_ids)
        if change.taken:
            run.mail = [message for message in run.mail if message.id not in change.taken]
        if (rest := change.rest) is None:
            return
        run.state, run.image, run.image_seq = rest.state, rest.image, len(run.journal)
        run.due_us, run.result_seq, run.avoid = rest.due_us, rest.result_seq, rest.avoid
        if rest.definition is not None:
            run.definition = self._definition(rest.definition)
            self._offers.move(run)
        last_us = run.journal[-1].at_us if run.journal else 0  # it may have come with an earlier change
        run.updated_us = last_us if change.entries else max(run.updated_us, last_us)
        run.ended_us = run.updated_us if run.ended else None
        self._note_end(run)

    def _leave(self, run: Run, held: Held | None, rest: Rest | None) -> Outcome:
        """Decide who holds the run after a change, and whether anyone has to look at it soon."""
        if run.ended:
            self._drop_claim(run)
            self._drop_offers(run)
            run.due_us, run.lost = None, 0
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

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        with self._open():
            held = self._live(session)
            self._end_others(held)
            room = self._room(want)
            queues = {each.id: self._due_of(each, want, room) for each in self._wanted(want)}
            found = [self._runs[number] for number in in_turn(queues, want.limit, room)]
            for run in found:
                self._hold(held, run)
            return [self._loaded(run, held) for run in found]

    def _room(self, want: Want) -> Room:
        return Room(want.most, lambda definition: self._definition(definition).name, self._held)

    def _wanted(self, want: Want) -> list[Definition]:
        return [each for each in self._definitions if each.id in want.definitions]

    def _due_of(self, definition: Definition, want: Want, room: Room) -> list[Due]:
        """Return the oldest due runs of one definition, each lane's as far as there is room in it."""
        now_us, fits = want.now_us, partial(self._is_for, want)
        rows: list[Due] = []
        for lane, queue in definition.due.items():
            most = room.left(definition.id, lane) if room.limits(definition.id) else want.limit
            rows += [Due(*entry, lane) for entry in queue.due(now_us, min(most, want.limit), fits)]
        return sorted(rows)[: max(want.limit, 0)]

    def _is_for(self, want: Want, number: int) -> bool:
        run = self._runs[number]
        assert run.due_us is not None
        return not run.avoid or run.avoid != want.avoid or run.due_us + want.patience_us <= want.now_us

    def _held(self) -> Mapping[tuple[str, str], int]:
        runs = [self._runs[number] for held in self._sessions.values() for number in held.runs]
        return Counter((run.definition.name, run.made.lane) for run in runs)

    def next_due(self, workflows: Sequence[str]) -> Mapping[str, Mapping[int, int | None]]:
        with self._open():
            found: dict[str, dict[int, int | None]] = {name: {} for name in workflows}
            for each in self._definitions:
                if each.name in found:
                    firsts = (queue.first() for queue in each.due.values())
                    found[each.name][each.id] = min((first[0] for first in firsts if first), default=None)
            return found

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        with self._open():
            held = self._live(session)
            return sorted(held.runs), sorted(held.offers)

    def release(self, session: Session, instances: Sequence[int]) -> None:
        with self._open():
            held = self._live(session)
            for number in instances:
                if number in held.runs:
                    self._free(self._runs[number])

    # --- offers -----------------------------------------------------------------------------------

    def offer(self, session: Session, offers: Mapping[int, Sequence[Offer]]) -> None:
        with self._open():
            held = self._live(session)
            for number in offers:
                if number in held.runs:
                    self._writes += sum(self._offers.make(self._runs[number], each) for each in offers[number])

    def offered(self, instance: int) -> Mapping[bytes, str]:
        with self._open():
            run = self._runs.get(instance)
            rows = run.offers.items() if run is not None else ()
            return {step: self._sessions[row.session].holder.name if row.session else "" for step, row in rows}

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        with self._open():
            held = self._live(session)
            self._end_others(held)
            wanted, tags = self._wanted(want), frozenset(want.tags)
            found: list[Standing] = []
            while len(found) < want.limit and (row := self._offers.claim(held, wanted, tags)) is not None:
                found.append(row)
            self._writes += len(found)
            headers = {
                run.number: self._header(run, held) for run in {row.run.number: row.run for row in found}.values()
            }
            return [Offered(row.id, headers[row.run.number], row.offer.step, row.offer.work) for row in found]

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        with self._open():
            held = self._live(session)
            return [self._settle(held, number, message) for number, message in results]

    def _settle(self, held: Held, number: int, message: Message) -> bool:
        row = self._offers.claimed(held, number)
        if row is not None:
            self._offers.remove(row, held)
            self._tell(row.run, message)
        return row is not None

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        with self._open():
            held = self._live(session)
            for number in offers:
                if number in held.offers:
                    self._writes += 1
                    self._offers.give_up(held, number, lost=False)

    def call_off(self, session: Session, instance: int, steps: Sequence[bytes], *, stop: bool) -> Sequence[bytes]:
        with self._open():
            if instance not in self._live(session).runs:
                return []
            run = self._runs[instance]
            return [step for step in steps if self._call_off(run.offers.get(step), stop)]

    def _call_off(self, row: Standing | None, stop: bool) -> bool:
        """Return whether this offer was taken back."""
        if row is None:
            return False
        self._writes += 1
        if not row.session:
            self._offers.remove(row, None)
            return True
        row.called_off |= stop
        return False

    def called_off(self, session: Session, offers: Sequence[int]) -> Sequence[int]:
        with self._open():
            held = self._live(session)
            claimed = {number: self._offers.claimed(held, number) for number in offers}
            return [number for number in offers if (row := claimed[number]) is None or row.called_off]

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
        return (run for run in self._last.values() if matches(run, where))

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        with self._open():
            reasons = ((run.made.instance_id, self._why_stuck(run)) for run in self._last.values())
            left = ((row.run.made.instance_id, self._why_left(row)) for row in self._offers)
            found = [*reasons, *dict.fromkeys(left)]
            return [Stuck(instance_id, reason) for instance_id, reason in found if reason is not None]

    def _why_stuck(self, run: Run) -> str | None:
        if run.ended or run.session in self._sessions:
            return None
        if run.session:
            return NO_SESSION
        if run.due_us is not None:
            return None
        return NOTHING_MOVES if run.state not in PATIENT else UNREAD if run.mail else None

    def _why_left(self, row: Standing) -> str | None:
        if row.run.ended or row.run.replaced or row.run.number not in self._runs:
            return OFFER_LEFT
        return OFFER_NO_SESSION if row.session and row.session not in self._sessions else None

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

    def connect(self) -> NoReturn:
        raise OptionError(
            "an InMemoryBackend has no database to connect to; use SqliteBackend(path) for steps that commit together "
            "with rows of your own"
        )

    def within(self, connection: object) -> NoReturn:
        raise OptionError(
            f"an InMemoryBackend has no transactions to join, so it cannot use a {type(connection).__name__}: leave "
            "connection= out, or use SqliteBackend(path) with a connection of backend.connect()"
        )

    # --- whether to look --------------------------------------------------------------------------

    def hint(self) -> int:
        with self._open():
            return self._writes

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` after every write, in the thread that wrote and outside of the lock."""
        key = object()
        with self._open():
            self._watchers = {**self._watchers, key: wake}

        def end() -> None:
            with self._lock:
                self._watchers = {other: each for other, each in self._watchers.items() if other is not key}

        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed, self._watchers = True, {}
