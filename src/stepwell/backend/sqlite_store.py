"""What :class:`.sqlite.SqliteBackend` does in the same way on its own connection and inside a user's transaction.

How a step is written, since nearly everything is: the journal row is inserted, and one query over the rows just
written says whether they were to be admitted (:data:`.queries.ADMITTED`); nothing else is touched. That is done for all
changes of a commit together. Only if the answer is no does it roll back and go through them one at a time, asking of
each what is the matter. (Asking in the insert itself costs twice as much.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from stepwell.errors import LeaseLost, OptionError
from stepwell.types import ENDED

from . import queries as sql
from . import queries_offers as offer_sql
from .base import (
    Change,
    Created,
    Creation,
    Entry,
    Header,
    Holder,
    Loaded,
    Message,
    Outcome,
    Session,
    check_creation,
    lost_message,
)
from .liveness import boot_id, is_dead
from .sqlite_connection import Connection, NotAdmitted

if TYPE_CHECKING:
    Row = tuple[object, ...]

Names: TypeAlias = dict[int | None, str | None]
"""Whose sessions count, as far as one transaction has looked."""


class Store:
    """Each public method is one use of ``write`` or ``read``: a context that begins, and commits or rolls back."""

    def __init__(
        self,
        write: AbstractContextManager[Connection],
        read: AbstractContextManager[Connection],
        lease_clock: Callable[[], int],
    ) -> None:
        self._write, self._read = write, read
        self._clock, self._boot_id = lease_clock, boot_id()

    # --- who holds what -----------------------------------------------------------------------------

    def _end(self, db: Connection, session_id: int, *, lost: bool) -> None:
        """End a session, by itself or ``lost``; the second is remembered of all that it had."""
        db.execute(sql.TAKE_OVER if lost else sql.FREE_SESSION, (session_id,))
        self._give_up(db, db.execute(offer_sql.HELD_BY, (session_id,)).fetchall(), lost=lost)
        db.execute(sql.DELETE_SESSION, (session_id,))

    def _give_up(self, db: Connection, offers: Iterable[tuple[int, int, bytes, int, int]], *, lost: bool) -> None:
        """Let others have claimed offers, or end those that were called off or cost too many sessions."""
        for number, instance, step, lives, called_off in offers:
            lives -= lost
            if called_off or (lost and lives <= 0):
                db.execute(offer_sql.REMOVE, (number,))
                self._tell(db, instance, lost_message(step))
            else:
                db.execute(offer_sql.FREE_AGAIN, (lives, number))

    def _tell(self, db: Connection, instance: int, message: Message) -> None:
        """Put a message into the inbox of an instance whoever holds it; if nobody does, it is due."""
        known = message.message_id and db.execute(sql.KNOWN, (instance, message.message_id)).fetchone()
        if not known:
            self._receive(db, instance, message)
            db.execute(sql.WAKE, (instance,))

    def _live_name(self, db: Connection, session: Session) -> str:
        """Return the name of a session that still exists, else raise ``LeaseLost``."""
        row = db.execute(sql.SESSION_NAME, (session.id, session.token)).fetchone()
        if row is None:
            raise lost()
        return str(row[0])

    def _holder_name(self, db: Connection, session_id: int | None) -> str | None:
        """Return the name of a session that counts, ``None`` if it is gone or over."""
        row = db.execute(sql.SESSION, (session_id,)).fetchone() if session_id is not None else None
        if row is None:
            return None
        lease_us, lease_boot, *rest = row
        rebooted = bool(lease_boot and self._boot_id and lease_boot != self._boot_id)
        holder = Holder(*rest)
        return None if rebooted or lease_us <= self._clock() or is_dead(holder) else holder.name

    def _free_if_over(self, db: Connection, session_id: int | None) -> bool:
        """Return whether nobody holds what this session holds, after ending it if it is over."""
        if self._holder_name(db, session_id) is not None:
            return False
        if session_id is not None:
            self._end(db, session_id, lost=True)
        return True

    # --- writing ----------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        with self._write as db:
            row = db.execute(sql.DEFINITION_ID, (name, fingerprint)).fetchone()
            if row is not None:
                if row[1] != plan:
                    db.execute(sql.TUNED_DEFINITION, (plan, row[0]))
                return int(row[0])
            db.execute(sql.NEW_DEFINITION, (name, fingerprint, plan))
            return db.last_insert_rowid()

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        for creation in creations:
            check_creation(creation)
        with self._write as db:
            name = self._live_name(db, session) if session is not None else ""
            pending = _Pending({number: self._definition(db, number) for number in {c.definition for c in creations}})
            for creation in creations:
                self._check_rest(db, creation.replacing)
            holder = (session.id, name) if session is not None else (0, "")
            answers: list[Created | Header | Literal["conflict"]] = [
                self._create(db, creation, holder, pending) for creation in creations
            ]
            pending.write(db)
            return answers

    def _create(
        self, db: Connection, creation: Creation, holder: tuple[int, str], pending: _Pending
    ) -> Created | Header | Literal["conflict"]:
        last = db.execute(sql.LAST_RUN, (creation.instance_id,)).fetchone()
        if last is not None:
            pending.write(db)  # it may be of this very batch
        if creation.replacing is not None:
            if last is None or not self._replace(db, last[0], creation.replacing):
                return "conflict"
        elif last is not None:
            row = db.execute(sql.HEADER_OF, (last[0],)).fetchone()
            assert row is not None
            return self._header(db, row, {})
        run = creation.run or (last[1] + 1 if last is not None else 1)
        return Created(self._insert(db, creation, run, holder, pending))

    def _replace(self, db: Connection, last: int, change: Change) -> bool:
        """End the last run and close it to every further write, whoever holds it; return whether that was admitted."""
        if last != change.instance or not self._admits(db, change):
            return False
        self._append(db, change)
        self._write_rests(db, None, [change] if change.rest is not None else [])
        for statement in (sql.REPLACE, sql.END, sql.CLEAR_INBOX, offer_sql.REMOVE_ALL):
            db.execute(statement, (change.instance,))
        return True

    def _insert(
        self, db: Connection, creation: Creation, run: int, holder: tuple[int, str], pending: _Pending
    ) -> Header:
        """Insert a run and return its header, made from what is written and not read back."""
        ended, updated_us = creation.state in ENDED, creation.updated_us or creation.at_us
        ended_us = (creation.at_us if creation.ended_us is None else creation.ended_us) if ended else None
        due_us = None if ended else 0 if creation.messages else creation.due_us
        session_id, held_by = holder if creation.claim and not ended else (0, "")
        labels = msgspec.json.encode(creation.labels).decode() if creation.labels else None
        image_seq = len(creation.entries) if creation.image is not None else 0
        row = (
            creation.instance_id, run, creation.definition, creation.state, creation.at_us, updated_us,
            ended_us, creation.input_digest, labels, creation.trace, creation.origin, creation.lane, creation.image,
            image_seq, creation.result_seq,
        )  # fmt: skip
        db.execute(sql.NEW_INSTANCE, row)
        number = db.last_insert_rowid()
        pending.journal += _journal_rows(number, creation.entries)
        if not ended:
            pending.agenda.append((number, creation.definition, due_us, session_id or None, creation.lane))
        if creation.labels:
            db.executemany(sql.NEW_LABEL, label_rows(number, creation.labels))
        if creation.messages or creation.message_ids:
            self._restore_inbox(db, number, creation)
        workflow, fingerprint = pending.definitions[creation.definition]
        return Header(
            instance=number,
            instance_id=creation.instance_id,
            run=run,
            workflow=workflow,
            fingerprint=fingerprint,
            state=creation.state,
            seq=len(creation.entries),
            created_us=creation.at_us,
            updated_us=updated_us,
            ended_us=ended_us,
            due_us=due_us,
            input_digest=creation.input_digest,
            result_seq=creation.result_seq,
            held_by=held_by,
            mail=len(creation.messages),
            labels=creation.labels,
            trace=creation.trace,
            session=session_id,
            definition=creation.definition,
            origin=creation.origin,
            lane=creation.lane,
        )

    def _restore_inbox(self, db: Connection, number: int, creation: Creation) -> None:
        for message in creation.messages:
            self._receive(db, number, message)
        db.executemany(sql.RECEIVE, [(number, known) for known in creation.message_ids])

    def _receive(self, db: Connection, instance: int, message: Message) -> None:
        fields = (message.kind, message.name, message.payload, message.at_us, message.message_id, message.trace)
        db.execute(sql.POST, (instance, *fields))
        if message.message_id:
            db.execute(sql.RECEIVE, (instance, message.message_id))

    def _check_rest(self, db: Connection, change: Change | None) -> None:
        if change is not None and change.rest is not None and change.rest.definition is not None:
            self._definition(db, change.rest.definition)

    def _definition(self, db: Connection, number: int) -> tuple[str, str]:
        """Return the name and the fingerprint of a definition, which may be one that is not committed yet."""
        row = db.execute(sql.DEFINITION, (number,)).fetchone()
        if row is None:
            raise OptionError(f"no definition has the number {number}; register it in this backend first")
        return row[0], row[1]

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        if session is not None and _plain(changes):
            # One that is not admitted rolls back; what follows finds out which it was, and why.
            with suppress(NotAdmitted), self._write as db:
                return self._commit_together(db, session, changes)
        with self._write as db:
            if session is not None:
                self._live_name(db, session)
            for change in changes:
                self._check_rest(db, change)
            return [self._commit_one(db, session, change) for change in changes]

    def _commit_together(self, db: Connection, session: Session, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Apply changes of which all are admitted, or raise."""
        rows = [row for change in changes for row in _journal_rows(change.instance, change.entries)]
        db.executemany(sql.APPEND, rows)
        before = db.last_insert_rowid() - len(rows)
        if db.execute(sql.ADMITTED, (before, session.id, session.token)).fetchone() != (len(rows),):
            raise NotAdmitted
        taken = [(change.instance, message) for change in changes for message in change.taken]
        if taken:
            db.executemany(sql.TAKE, taken)
        rests = [change for change in changes if change.rest is not None]
        if not rests:
            return ["done" for _ in changes]
        mail = self._write_rests(db, session, rests)
        return ["mail" if change.instance in mail else "done" for change in changes]

    def _commit_one(self, db: Connection, session: Session | None, change: Change) -> Outcome:
        row = db.execute(sql.STANDING, (change.instance,)).fetchone()
        if row is None:
            return "conflict"
        ended, _, holder, _ = row
        if (session is None or holder != session.id) and not self._free_if_over(db, holder):
            return "conflict" if session is not None else "held"
        if not self._admits(db, change):
            return "conflict"
        self._append(db, change)
        if change.rest is not None:
            return "mail" if self._write_rests(db, session, [change]) else "done"
        if ended:
            return "done"
        if session is not None:
            db.execute(sql.HOLD, (session.id, change.instance))
            return "done"
        db.execute(sql.LEAVE, (change.instance, 0, None, None))
        return "mail" if self._with_mail(db, [change.instance]) else "done"

    def _admits(self, db: Connection, change: Change) -> bool:
        """Whether the change continues its journal without a gap and brings no message twice."""
        row = db.execute(sql.STANDING, (change.instance,)).fetchone()
        if row is None or row[1] or row[3] != change.base or not _numbered(change):
            return False
        ids = change.message_ids
        return not any(db.execute(sql.KNOWN, (change.instance, known)).fetchone() for known in ids)

    def _append(self, db: Connection, change: Change) -> None:
        db.executemany(sql.APPEND, _journal_rows(change.instance, change.entries))
        db.executemany(sql.TAKE, [(change.instance, taken) for taken in change.taken])
        db.executemany(sql.RECEIVE, [(change.instance, known) for known in change.message_ids])

    def _write_rests(self, db: Connection, session: Session | None, changes: Sequence[Change]) -> set[int]:
        """Write how instances are left; return those that were given back with unread messages."""
        states: list[Row] = []
        ended: list[Row] = []
        left: list[Row] = []
        moved: list[Row] = []
        free: list[int] = []
        for change in changes:
            rest = change.rest
            assert rest is not None
            number, at_us = change.instance, change.entries[-1].at_us if change.entries else None
            image_seq, is_ended = change.base + len(change.entries), rest.state in ENDED
            states.append(
                (number, rest.state, rest.image, image_seq, rest.result_seq, rest.definition, at_us, is_ended)
            )
            if is_ended:
                ended.append((number,))
            elif session is None or rest.release:
                left.append((number, rest.due_us, None, rest.avoid))
                free.append(number)
            else:
                left.append((number, rest.due_us, session.id, rest.avoid))
            if rest.definition is not None:
                moved.append((rest.definition, number))
        db.executemany(sql.REST, states)
        if ended:
            db.executemany(sql.END, ended)
            db.executemany(offer_sql.REMOVE_ALL, ended)
        if moved:
            db.executemany(offer_sql.MOVE, moved)
        db.executemany(sql.LEAVE, left)
        return self._with_mail(db, free)

    def _with_mail(self, db: Connection, instances: Sequence[int]) -> set[int]:
        if not instances or db.execute(sql.ANY_MAIL).fetchone() is None:
            return set()
        return {number for number in instances if db.execute(sql.HAS_MAIL, (number,)).fetchone() is not None}

    # --- reading ----------------------------------------------------------------------------------

    def load(self, instance_id: str) -> Loaded | None:
        with self._read as db:
            last = db.execute(sql.LAST_RUN, (instance_id,)).fetchone()
            return self._loaded(db, last[0], {}) if last is not None else None

    def header(self, instance_id: str) -> Header | None:
        with self._read as db:
            row = db.execute(sql.HEADER_LAST, (instance_id,)).fetchone()
            return self._header(db, row, {}) if row is not None else None

    def _loaded(self, db: Connection, instance: int, names: Names) -> Loaded:
        row = db.execute(sql.HEADER_OF, (instance,)).fetchone()
        found = db.execute(sql.IMAGE, (instance,)).fetchone()
        assert row is not None
        assert found is not None
        image, image_seq = found
        header = self._header(db, row, names)
        entries = [Entry(*entry) for entry in db.execute(sql.ENTRIES_AFTER, (instance, image_seq))]
        mail = [Message(*message) for message in db.execute(sql.MAIL, (instance,))] if header.mail else []
        return Loaded(header, image, entries, mail)

    def _header(self, db: Connection, row: tuple[Any, ...], names: Names) -> Header:
        """Make a header of a row; ``names`` remembers whose sessions count, so that each is looked at once."""
        *front, session_id, mail, labels, trace, definition, origin, suspect, suspect_seq, offered, lane = row
        if session_id not in names:
            names[session_id] = self._holder_name(db, session_id)
        name = names[session_id]
        found = labels_of(labels) if labels is not None else {}
        held_by, session = (name, session_id) if name is not None else ("", 0)
        suspect = suspect if suspect_seq == front[6] else 0  # `seq`: what was written since clears it
        columns: list[Any] = [*front, held_by, mail, found, trace, session, definition, origin, suspect, offered, lane]
        return Header(*columns)

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        with self._read as db:
            return dict(db.execute(sql.VALUES, (instance, msgspec.json.encode(seqs).decode())))

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        with self._read as db:
            row = db.execute(sql.PLAN, (name, fingerprint)).fetchone()
            return row[0] if row is not None else None


class _Pending:
    """Rows of new instances that are written together, at the end of a batch or before one of them is read.

    ``definitions`` are the names and fingerprints of their graphs, looked up once for the batch.
    """

    def __init__(self, definitions: Mapping[int, tuple[str, str]]) -> None:
        self.definitions = definitions
        self.journal: list[Row] = []
        self.agenda: list[Row] = []

    def write(self, db: Connection) -> None:
        db.executemany(sql.APPEND, self.journal)
        db.executemany(sql.NEW_AGENDA, self.agenda)
        self.journal, self.agenda = [], []


def lost() -> LeaseLost:
    return LeaseLost("this session was ended or taken over")


def _plain(changes: Sequence[Change]) -> bool:
    """Whether no change needs more than the admission in its own rows."""
    if not changes or len({change.instance for change in changes}) != len(changes):
        return False
    for change in changes:
        if not change.entries or change.entries[0].seq != change.base + 1 or change.message_ids:
            return False
        if change.rest is not None and change.rest.definition is not None:
            return False
    return True


def _numbered(change: Change) -> bool:
    return all(entry.seq == seq for seq, entry in enumerate(change.entries, change.base + 1))


def _journal_rows(instance: int, entries: Sequence[Entry]) -> list[Row]:
    return [(instance, entry.seq, entry.at_us, entry.took_us, entry.facts, entry.output) for entry in entries]


def label_rows(instance: int, labels: Mapping[str, str]) -> list[Row]:
    return [(instance, key, value) for key, value in labels.items()]


def labels_of(text: str) -> dict[str, str]:
    """Return labels as they were given, none if the text is damaged: one bad row must not stop a list.

    SQLite's own reading of JSON would end a text at its first NUL.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.MsgspecError:
        return {}
