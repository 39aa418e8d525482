"""What :class:`.postgres.PostgresBackend` does in the same way on its own connections and inside a user's transaction.

How steps are written, since nearly everything is: one statement carries all changes of a commit as arrays. It locks the
session against being ended, counts how many changes are admitted, and writes if that is all of them. Nothing is updated
for a step but that lock; the next seq can be taken once, because it is the journal's key. Only if the count says no is
it looked, in a transaction, what is the matter: most are written in one statement all the same, the rest one at a time.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final, Literal, TypeAlias, TypeVar

from stepwell.errors import BackendUnavailable, LeaseLost, OptionError
from stepwell.types import ENDED

from . import postgres_queries as sql
from . import postgres_queries_claims as claims
from .base import (
    Change,
    Created,
    Creation,
    Header,
    Loaded,
    Message,
    Outcome,
    Rest,
    Session,
    check_creation,
    lost_message,
)
from .liveness import is_dead
from .postgres_new import NewRows
from .postgres_pack import byteas, from_utf8, int8s, utf8
from .postgres_rows import (
    Row,
    columns,
    header_of,
    holder_name,
    holder_of,
    is_lone,
    is_numbered,
    is_plain,
    loaded_of,
    rests,
    steps,
)
from .postgres_runs import Db, NotAdmitted, Runs, TryAgain

T = TypeVar("T")
CLASHES: Final = 3  # tries of what met a seq that was being taken
Answer: TypeAlias = "Created | Header | Literal['conflict']"


class Store:
    """Each public method is one piece of work on ``write`` or ``read``."""

    def __init__(self, write: Runs, read: Runs) -> None:
        self._write, self._read = write, read

    def _wrote(self) -> None:
        """Take note of a write that others may wait for; a claim or a step of somebody's own work is none."""

    # --- who holds what -----------------------------------------------------------------------------

    def _end_over(self, lines: Runs, session_id: int) -> bool:
        """End a session that was seen to be over, unless it has been renewed meanwhile; return whether it is gone."""

        def end(db: Db) -> bool:
            # If its process is dead no clock is asked.
            dead = _dead(db, session_id)
            if db.row(sql.LOCK_IF_OVER, session_id, dead) is None:
                return False
            db.run(sql.SUSPECT, session_id)
            end_session(db, session_id, lost=True)
            return True

        if ended := lines.together(end):
            self._wrote()
        return ended

    def _end_holders(self, instances: Sequence[int], mine: int) -> None:
        """End the sessions that hold any of these and are over."""
        rows = self._write.once(lambda db: db.rows(sql.HOLDERS, int8s(instances)))
        over = {row[1]: row for row in rows if row[1] != mine}
        for number, row in over.items():
            if holder_name(row[1:]) is None:
                self._end_over(self._write, number)

    # --- definitions --------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        def work(db: Db) -> int:
            key = utf8(name), utf8(fingerprint), blake2b(plan, digest_size=16).digest()
            row = db.row(sql.DEFINITION_ID, *key)
            if row is None:
                row = db.row(sql.NEW_DEFINITION, *key, plan)
                assert row is not None
            elif not row[1]:
                db.run(sql.TUNED_DEFINITION, key[-1], plan, row[0])
            return int(row[0])

        return self._write.once(work)

    def _definitions(self, db: Db, numbers: set[int]) -> Mapping[int, tuple[str, str]]:
        """Return names and fingerprints of definitions, which may be ones that are not committed yet."""
        found = {row[0]: (from_utf8(row[1]), from_utf8(row[2])) for row in db.rows(sql.DEFINITIONS, int8s([*numbers]))}
        if missing := numbers - found.keys():
            raise OptionError(f"no definition has the number {min(missing)}; register it in this backend first")
        return found

    # --- creating -----------------------------------------------------------------------------------

    def create(self, session: Session | None, creations: Sequence[Creation]) -> Sequence[Answer]:
        for creation in creations:
            check_creation(creation)
        nonce = secrets.randbits(62) + 1
        if all(_is_new_and_plain(each) for each in creations):
            answers = self._write.once(lambda db: self._create_all(db, session, creations, nonce))
        else:
            found = self._in_turn(lambda db: self._create_in_turn(db, session, creations, nonce))
            if found is None:
                raise BackendUnavailable("a run is in the way that is not seen here; begin the transaction again")
            answers = found
        if any(_is_news(session, *each) for each in zip(creations, answers, strict=True)):
            self._wrote()
        return answers

    def _create_all(self, db: Db, session: Session | None, creations: Sequence[Creation], nonce: int) -> list[Answer]:
        """Create those whose ids are free, all in one statement, and read the others."""
        names = self._definitions(db, {each.definition for each in creations})
        firsts = {each.instance_id: at for at, each in reversed([*enumerate(creations)])}
        wanted = sorted(firsts.values())
        made = self._insert(db, session, [(creations[at], 1, None) for at in wanted], nonce, names)
        found = {at: header for at, header in zip(wanted, made, strict=True) if header is not None}
        missing = {each.instance_id for at, each in enumerate(creations) if at not in found}
        rows = self._last_headers(db, missing) if missing else {}
        return [
            Created(found[at]) if at in found else self._existing(db, each, rows, nonce, firsts[each.instance_id] == at)
            for at, each in enumerate(creations)
        ]

    def _existing(
        self, db: Db, creation: Creation, rows: Mapping[str, tuple[int, Header]], nonce: int, first: bool
    ) -> Created | Header:
        """Return the run that is there; it is this call's own if that is what an earlier try has made."""
        if creation.instance_id not in rows:  # it was removed a moment ago
            raise TryAgain
        made_by, header = rows[creation.instance_id]
        return Created(header) if db.doubt and first and made_by == nonce else header

    def _last_headers(self, db: Db, ids: set[str]) -> dict[str, tuple[int, Header]]:
        rows = db.rows(sql.HEADERS_LAST, byteas([utf8(each) for each in ids]))
        headers = [(row[0], header_of(row[1:])) for row in rows]
        return {header.instance_id: (nonce, header) for nonce, header in headers}

    def _create_in_turn(
        self, db: Db, session: Session | None, creations: Sequence[Creation], nonce: int
    ) -> list[Answer]:
        if session is not None:
            live_name(db, session)
        names = self._definitions(db, {each.definition for each in creations})
        moving = {each.replacing.rest.definition for each in creations if each.replacing and each.replacing.rest}
        self._definitions(db, {each for each in moving if each is not None})
        return [self._create_one(db, session, each, nonce, names) for each in creations]

    def _create_one(
        self, db: Db, session: Session | None, creation: Creation, nonce: int, names: Mapping[int, tuple[str, str]]
    ) -> Answer:
        last = db.row(sql.LAST_RUN, utf8(creation.instance_id))
        if creation.replacing is not None:
            if last is None or not self._replace(db, last[0], creation.replacing, nonce):
                return "conflict"
        elif last is not None:
            return header_of(db.rows(sql.HEADERS_LAST, byteas([utf8(creation.instance_id)]))[0][1:])
        run = creation.run or (last[1] + 1 if last is not None else 1)
        earlier = last[0] if last is not None else None
        (header,) = self._insert(db, session, [(creation, run, earlier)], nonce, names)
        if header is None:  # another has created it at this moment
            return self._create_one(db, session, creation, nonce, names)
        self._restore_inbox(db, header.instance, creation)
        return Created(header)

    def _insert(
        self,
        db: Db,
        session: Session | None,
        new: Sequence[tuple[Creation, int, int | None]],
        nonce: int,
        names: Mapping[int, tuple[str, str]],
    ) -> list[Header | None]:
        """Insert runs and return their headers, made from what is written and not read back; ``None``: it exists."""
        ids = byteas([utf8(creation.instance_id) for creation, _, _ in new])
        numbers: dict[int, int] = {}
        for place, number in db.rows(sql.NEW_NUMBERS, ids, db.named("instance_id_seq")):
            numbers[place - 1] = number
        rows = NewRows(session.id if session is not None else 0)
        for place, number in numbers.items():
            rows.add(number, *new[place])
        held_by, made = b"", frozenset[int]()
        if numbers or session is not None:
            key = (session.id, session.token) if session is not None else (0, 0)
            found, inserted = db.row(sql.CREATE, *key, nonce, *rows.arrays()) or (None, None)
            if session is not None and found is None:
                raise lost()
            held_by, made = found or b"", frozenset(inserted or ())
        name = from_utf8(held_by)
        return [
            rows.header(number, *new[place], names[new[place][0].definition], name) if number in made else None
            for place, number in ((place, numbers.get(place, 0)) for place in range(len(new)))
        ]

    def _restore_inbox(self, db: Db, number: int, creation: Creation) -> None:
        for message in creation.messages:
            insert_message(db, number, message)
        known = [*creation.message_ids, *(each.message_id for each in creation.messages if each.message_id)]
        if known:
            db.run(sql.RECEIVE, number, byteas([utf8(each) for each in known]))
        if creation.messages:
            db.run(sql.LESS_MAIL, number)

    def _replace(self, db: Db, last: int, change: Change, nonce: int) -> bool:
        """End the last run and close it to every further write, whoever holds it; return whether that was admitted."""
        if last != change.instance:
            return False
        lock(db, [last])
        if not self._admits(db, change):
            return False
        self._append(db, change)
        if change.rest is not None:
            self._rest(db, None, change, change.rest, nonce)
        for statement in (sql.REPLACE, sql.END, sql.CLEAR_INBOX, claims.REMOVE_ALL):
            db.run(statement, change.instance)
        return True

    # --- committing ---------------------------------------------------------------------------------

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        attempt = _Attempt(session, changes)
        try:
            if is_lone(session, changes):
                return self._write.once(attempt.step)
            if not is_plain(session, changes):
                raise NotAdmitted
            outcomes = self._write.once(attempt.at_once)
        except NotAdmitted:
            outcomes = self._commit_in_turn(session, changes, attempt)
        landed = any(each != "conflict" and each != "held" for each in outcomes)
        if landed and (session is None or any(each.rest is not None for each in changes)):
            self._wrote()
        return outcomes

    def _commit_in_turn(
        self, session: Session | None, changes: Sequence[Change], attempt: _Attempt
    ) -> Sequence[Outcome]:
        self._end_holders([change.instance for change in changes], session.id if session is not None else 0)

        def work(db: Db) -> list[Outcome]:
            if session is not None:
                live_name(db, session)
            moving = {each.rest.definition for each in changes if each.rest is not None}
            self._definitions(db, {each for each in moving if each is not None})
            lock(db, [change.instance for change in changes])
            most = self._commit_most(db, session, changes, attempt)
            return [most.get(at) or self._commit_one(db, session, each, attempt) for at, each in enumerate(changes)]

        outcomes = self._in_turn(work)
        return outcomes if outcomes is not None else ["conflict" for _ in changes]

    def _in_turn(self, work: Callable[[Db], T]) -> T | None:
        """Do work in one transaction; return ``None``, with nothing written, if it meets a seq that it cannot see.

        A step locks nothing but its session. So another one's may be on its way (a task's transaction, a holder that is
        being replaced), seen by nobody until it refuses ours; after that it is seen, but for a user's transaction that
        sees only what was there when it began.
        """
        for _ in range(CLASHES):
            with suppress(NotAdmitted):
                return self._write.together(work)
        return None

    def _commit_most(
        self, db: Db, session: Session | None, changes: Sequence[Change], attempt: _Attempt
    ) -> Mapping[int, Outcome]:
        """Write at once what nothing is the matter with, so that one loser does not cost its neighbours much."""
        if session is None or attempt.doubt:
            return {}
        times = Counter(change.instance for change in changes)
        ends = {row[0]: row[1:] for row in db.rows(sql.ENDS, int8s([*times]))}
        most = {
            at: change
            for at, change in enumerate(changes)
            if times[change.instance] == 1
            and ends.get(change.instance) == (session.id, change.base)
            and is_plain(session, [change])
        }
        if not most:
            return {}
        outcomes = _Attempt(session, [*most.values()], attempt.nonce).at_once(db)
        return dict(zip(most, outcomes, strict=True))

    def _commit_one(self, db: Db, session: Session | None, change: Change, attempt: _Attempt) -> Outcome:
        row = db.row(sql.STANDING, change.instance)
        if row is None:
            return "conflict"
        ended, _, holder, _, written_by = row
        if attempt.doubt and (written_by == attempt.nonce or self._is_there(db, change)):
            free = change.rest is not None and change.rest.release and change.rest.state not in ENDED
            return "mail" if free and has_mail(db, change.instance) else "done"
        if holder is not None and (session is None or holder != session.id):
            return "conflict" if session is not None else "held"
        if not self._admits(db, change):
            return "conflict"
        self._append(db, change)
        if change.rest is not None:
            return "mail" if self._rest(db, session, change, change.rest, attempt.nonce) else "done"
        if ended:
            return "done"
        if session is not None:
            db.run(sql.HOLD, session.id, change.instance)
            return "done"
        db.run(sql.LEAVE, change.instance, 0, None, None)
        return "mail" if has_mail(db, change.instance) else "done"

    def _is_there(self, db: Db, change: Change) -> bool:
        """Whether the journal has the first entry of this change already, byte for byte."""
        if not change.entries:
            return False
        first = change.entries[0]
        return db.row(sql.SAME_ENTRY, change.instance, first.seq, first.at_us, first.facts, first.output) is not None

    def _admits(self, db: Db, change: Change) -> bool:
        """Whether the change continues its journal without a gap and brings no message twice."""
        row = db.row(sql.STANDING, change.instance)
        if row is None or row[1] or row[3] != change.base or not is_numbered(change):
            return False
        known = byteas([utf8(each) for each in change.message_ids])
        return not change.message_ids or db.row(sql.KNOWN, change.instance, known) is None

    def _append(self, db: Db, change: Change) -> None:
        if entries := change.entries:
            db.run(sql.APPEND, change.instance, *columns(entries))
        if change.taken and db.run(sql.TAKE, change.instance, int8s(change.taken)):
            db.run(sql.LESS_MAIL, change.instance)
        if change.message_ids:
            db.run(sql.RECEIVE, change.instance, byteas([utf8(each) for each in change.message_ids]))

    def _rest(self, db: Db, session: Session | None, change: Change, rest: Rest, nonce: int) -> bool:
        """Write how an instance is left; return whether it was given back with unread messages."""
        number, at_us = change.instance, change.entries[-1].at_us if change.entries else None
        seq, ended = change.base + len(change.entries), rest.state in ENDED
        db.run(sql.REST, number, rest.state, rest.image, seq, rest.result_seq, rest.definition, at_us, ended, nonce)
        if ended:
            db.run(sql.END, number)
            db.run(claims.REMOVE_ALL, number)
            return False
        keeper = session.id if session is not None and not rest.release else None
        db.run(sql.LEAVE, number, rest.due_us, keeper, utf8(rest.avoid))
        if rest.definition is not None:
            db.run(claims.MOVE, number, rest.definition)
        return keeper is None and has_mail(db, number)

    # --- reading ------------------------------------------------------------------------------------

    def load(self, instance_id: str) -> Loaded | None:
        row = self._read.once(lambda db: db.row(sql.LOADED_LAST, utf8(instance_id)))
        return loaded_of(row) if row is not None else None

    def header(self, instance_id: str) -> Header | None:
        rows = self._read.once(lambda db: db.rows(sql.HEADERS_LAST, byteas([utf8(instance_id)])))
        return header_of(rows[0][1:]) if rows else None

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        return dict(self._read.once(lambda db: db.rows(sql.VALUES, instance, int8s(seqs))))

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        row = self._read.once(lambda db: db.row(sql.PLAN, utf8(name), utf8(fingerprint)))
        return row[0] if row is not None else None


class _Attempt:
    """One commit, tried as a whole. ``doubt``: it may have landed without an answer; ``nonce`` tells its rests."""

    def __init__(self, session: Session | None, changes: Sequence[Change], nonce: int = 0) -> None:
        self._session, self._changes = session, changes
        self.doubt = False
        self._nonce = nonce

    @property
    def nonce(self) -> int:
        self._nonce = self._nonce or secrets.randbits(62) + 1
        return self._nonce

    def step(self, db: Db) -> Sequence[Outcome]:
        """Write a lone step, which most commits are, if it is admitted, or raise ``NotAdmitted``."""
        self.doubt = self.doubt or db.doubt
        session, (change,) = self._session, self._changes
        assert session is not None
        (entry,) = change.entries
        values = entry.seq, entry.at_us, entry.took_us, entry.facts, entry.output
        if not db.run(sql.STEP, session.id, session.token, change.instance, *values):
            raise NotAdmitted
        return ["done"]

    def at_once(self, db: Db) -> Sequence[Outcome]:
        """Write changes of which all are admitted, or raise ``NotAdmitted``."""
        self.doubt = self.doubt or db.doubt
        session, changes = self._session, self._changes
        assert session is not None
        if all(change.rest is None and not change.taken for change in changes):
            if not db.run(sql.STEPS, *steps(session, changes)):
                raise NotAdmitted
            return ["done" for _ in changes]
        values = steps(session, changes), rests(changes, self.nonce)
        count, mail = db.row(sql.RESTS, *values[0], *values[1]) or (0, None)
        if count != len(changes):
            raise NotAdmitted
        return ["mail" if mail and each.instance in mail else "done" for each in changes]


# --- sessions and messages, inside a transaction ------------------------------------------------------


def lost() -> LeaseLost:
    return LeaseLost("this session was ended or taken over")


def live_name(db: Db, session: Session) -> str:
    """Return the name of a session that still exists, and lock it against being ended; else raise ``LeaseLost``."""
    row = db.row(sql.LOCK_SESSION, session.id, session.token)
    if row is None:
        raise lost()
    return from_utf8(row[0])


def end_session(db: Db, session_id: int, *, lost: bool) -> None:
    """Free what a session holds, give up its offers, and delete it; its row is locked already."""
    db.run(sql.FREE_SESSION, session_id)
    give_up(db, db.rows(claims.OF_SESSION, session_id), lost=lost)
    db.run(sql.DELETE_SESSION, session_id)


def give_up(db: Db, offers: Sequence[Row], *, lost: bool) -> None:
    """Let others have claimed offers, or end those that were called off or cost too many sessions."""
    over = [row for row in offers if row[4] or (lost and row[3] <= 1)]
    free = [row[0] for row in offers if not (row[4] or (lost and row[3] <= 1))]
    if free:
        db.run(claims.FREE_OFFERS, int8s(free), int(lost))
    if over:
        db.run(claims.REMOVE_OFFERS, int8s([row[0] for row in over]))
        for _, instance, step, _, _ in over:
            tell(db, instance, lost_message(step))


def tell(db: Db, instance: int, message: Message) -> None:
    """Put a message into the inbox of an instance whoever holds it; if nobody does, it is due."""
    if message.message_id and not db.rows(sql.RECEIVE, instance, byteas([utf8(message.message_id)])):
        return
    db.run(sql.TELL, instance)
    insert_message(db, instance, message)


def insert_message(db: Db, instance: int, message: Message) -> None:
    kind, name, message_id = utf8(message.kind), utf8(message.name), utf8(message.message_id)
    db.run(sql.POST, instance, kind, name, message.payload, message.at_us, message_id, utf8(message.trace))


def has_mail(db: Db, instance: int) -> bool:
    return db.row(sql.HAS_MAIL, instance) is not None


def lock(db: Db, instances: Iterable[int]) -> None:
    """Keep others from writing to instances; statements of their own, so that what follows sees what was waited for.

    The agenda's row first, as in :data:`.postgres_queries.RESTS`.
    """
    numbers = int8s(sorted({*instances}))
    db.rows(sql.LOCK_AGENDA, numbers)
    db.rows(sql.LOCK_INSTANCE, numbers)


def _dead(db: Db, session_id: int) -> bool:
    row = db.row(sql.PROCESS, session_id)
    return row is not None and is_dead(holder_of(row))


def _is_new_and_plain(creation: Creation) -> bool:
    return creation.replacing is None and not creation.run and not creation.messages and not creation.message_ids


def _is_news(session: Session | None, creation: Creation, answer: Answer) -> bool:
    """Whether somebody is to take up what was created, or has to hear that it took a place."""
    return isinstance(answer, Created) and (session is None or not creation.claim or creation.replacing is not None)
