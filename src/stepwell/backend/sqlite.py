"""A store in one SQLite file, shared by the threads of a process and by the processes of a machine.

How a step is written, since nearly everything is: the journal row is inserted, and one query over the rows just
written says whether they were to be admitted (:data:`.queries.ADMITTED`); nothing else is touched. That is done for all
changes of a commit together. Only if the answer is no does it roll back and go through them one at a time, asking of
each what is the matter. (Asking in the insert itself costs twice as much.)

An instance is held by whoever ``agenda.session`` names, as long as that session's row exists. Whoever finds such a
session to be over, its lease run out or its process dead, deletes the row before it acts on that; so a holder that
was only slow finds no row and cannot write any more.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from stepwell.errors import LeaseLost, OptionError
from stepwell.timing import Duration, duration_us
from stepwell.types import ENDED

from . import queries as sql
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
    Session,
    Stuck,
    check_creation,
)
from .liveness import boot_id, is_dead, lease_clock

if TYPE_CHECKING:
    import apsw

    from stepwell.codec import Codec

    from .sqlite_file import Connection

    Row = tuple[object, ...]
    _Names = dict[int | None, str | None]


class SqliteBackend:
    """A store in one SQLite file.

    Args:
        path: the file; created for its owner only (mode 0600) if it is missing. Two more files stand beside it while it
            is open, named ``-wal`` and ``-shm``; they belong to it.
        durability: ``"full"``: what was committed survives a power cut. ``"fast"``: it survives the death of the
            process, and a power cut may cost the last commits, never the file.
        codec: how values are encoded; by default as the file says, :class:`~stepwell.codec.JsonCodec` for a new one.
        busy_timeout: how long to wait for other processes' writes, before BackendUnavailable; default 30 s.
        lease_clock: microseconds that only grow; for tests.

    Raises:
        OptionError: a wrong argument, or another codec than the file was created with.
        BackendError: the file cannot be used; the subclass and the message say why and what helps.

    Example:
        >>> backend = SqliteBackend("orders.db", durability="fast")  # doctest: +SKIP
        >>> backend.close()  # doctest: +SKIP
    """

    capabilities = Capabilities(durable=True, multi_process=True, user_transactions=False)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "fast"] = "full",
        codec: Codec | None = None,
        busy_timeout: Duration = "30s",
        lease_clock: Callable[[], int] = lease_clock,
    ) -> None:
        from .sqlite_file import Database, NotAdmitted, checked_path  # apsw is loaded with the first SqliteBackend only

        if durability not in ("full", "fast"):
            raise OptionError(f'durability must be "full" or "fast", not {durability!r}')
        self._not_admitted = NotAdmitted
        self._clock, self._boot_id = lease_clock, boot_id()
        self._definitions: dict[int, tuple[str, str]] = {}
        busy_us, new_codec = duration_us(busy_timeout, "busy_timeout"), codec if codec is not None else _codec(0)
        self._database = Database(checked_path(path), durability, busy_us, new_codec.id)
        try:
            self.backend_id, self.codec_id = self._identity()
            self.codec: Codec = codec if codec is not None else _codec(self.codec_id)
            self._check_codec()
        except BaseException:
            self.close()
            raise

    def _identity(self) -> tuple[str, int]:
        with self._database.read as db:
            found = {key: value for key in ("backend_id", "codec_id") for (value,) in db.execute(sql.META, (key,))}
            return found["backend_id"], found["codec_id"]

    def _check_codec(self) -> None:
        if self.codec.id != self.codec_id:
            raise OptionError(
                f"{self._database.path} was created with codec {self.codec_id} and is opened with codec "
                f"{self.codec.id} ({type(self.codec).__name__}); pass codec= as when it was created"
            )

    def connect(self) -> apsw.Connection:
        """Return a new connection to the same file with the same settings; closing it is the caller's business."""
        return self._database.connect()

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        token = secrets.randbits(63)
        with self._database.write as db:
            until_us = self._clock() + lease_us
            db.execute(sql.OPEN_SESSION, (token, until_us, self._boot_id, *msgspec.structs.astuple(holder)))
            return Session(db.last_insert_rowid(), token, lease_us)

    def renew(self, session: Session) -> None:
        with self._database.write as db:
            db.execute(sql.RENEW, (self._clock() + session.lease_us, session.id, session.token))
            if not db.changes():
                raise _lost()

    def end_session(self, session: Session) -> None:
        with self._database.write as db:
            if db.execute(sql.SESSION_NAME, (session.id, session.token)).fetchone() is not None:
                self._end(db, session.id)

    def _end(self, db: Connection, session_id: int) -> None:
        db.execute(sql.FREE_SESSION, (session_id,))
        db.execute(sql.DELETE_SESSION, (session_id,))

    def _live_name(self, db: Connection, session: Session) -> str:
        """Return the name of a session that still exists, else raise ``LeaseLost``."""
        row = db.execute(sql.SESSION_NAME, (session.id, session.token)).fetchone()
        if row is None:
            raise _lost()
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
            self._end(db, session_id)
        return True

    # --- writing ----------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        with self._database.write as db:
            row = db.execute(sql.DEFINITION_ID, (name, fingerprint)).fetchone()
            if row is not None:
                return int(row[0])
            db.execute(sql.NEW_DEFINITION, (name, fingerprint, plan))
            return db.last_insert_rowid()

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        for creation in creations:
            check_creation(creation)
        with self._database.write as db:
            name = self._live_name(db, session) if session is not None else ""
            for creation in creations:
                self._check_definitions(db, creation)
            pending = _Pending()
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
        return Created(self._insert(db, creation, last[1] + 1 if last is not None else 1, holder, pending))

    def _replace(self, db: Connection, last: int, change: Change) -> bool:
        """End the last run and close it to every further write, whoever holds it; return whether that was admitted."""
        if last != change.instance or not self._admits(db, change):
            return False
        self._append(db, change)
        self._write_rests(db, None, [change] if change.rest is not None else [])
        for statement in (sql.REPLACE, sql.END, sql.CLEAR_INBOX):
            db.execute(statement, (change.instance,))
        return True

    def _insert(
        self, db: Connection, creation: Creation, run: int, holder: tuple[int, str], pending: _Pending
    ) -> Header:
        """Insert a run and return its header, made from what is written and not read back."""
        ended = creation.state in ENDED
        ended_us, due_us = (creation.at_us, None) if ended else (None, creation.due_us)
        session_id, held_by = holder if creation.claim and not ended else (0, "")
        labels = msgspec.json.encode(creation.labels).decode() if creation.labels else None
        image_seq = len(creation.entries) if creation.image is not None else 0
        row = (
            creation.instance_id, run, creation.definition, creation.state, creation.at_us, ended_us,
            creation.input_digest, labels, creation.trace, creation.image, image_seq,
        )  # fmt: skip
        db.execute(sql.NEW_INSTANCE, row)
        number = db.last_insert_rowid()
        pending.journal += _journal_rows(number, creation.entries)
        if not ended:
            pending.agenda.append((number, creation.definition, due_us, session_id or None))
        workflow, fingerprint = self._definitions[creation.definition]
        return Header(
            instance=number,
            instance_id=creation.instance_id,
            run=run,
            workflow=workflow,
            fingerprint=fingerprint,
            state=creation.state,
            seq=len(creation.entries),
            created_us=creation.at_us,
            updated_us=creation.at_us,
            ended_us=ended_us,
            due_us=due_us,
            input_digest=creation.input_digest,
            result_seq=0,
            held_by=held_by,
            mail=0,
            labels=creation.labels,
            trace=creation.trace,
            session=session_id,
        )

    def _check_definitions(self, db: Connection, creation: Creation) -> None:
        self._check_definition(db, creation.definition)
        if creation.replacing is not None:
            self._check_rest(db, creation.replacing)

    def _check_rest(self, db: Connection, change: Change) -> None:
        if change.rest is not None and change.rest.definition is not None:
            self._check_definition(db, change.rest.definition)

    def _check_definition(self, db: Connection, number: int) -> None:
        if number in self._definitions:
            return
        row = db.execute(sql.DEFINITION, (number,)).fetchone()
        if row is None:
            raise OptionError(f"no definition has the number {number}; register it in this backend first")
        self._definitions[number] = row

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        if session is not None and _plain(changes):
            # One that is not admitted rolls back; what follows finds out which it was, and why.
            with suppress(self._not_admitted), self._database.write as db:
                return self._commit_together(db, session, changes)
        with self._database.write as db:
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
            raise self._not_admitted
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
        db.execute(sql.LEAVE, (change.instance, 0, None))
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
                left.append((number, rest.due_us, None))
                free.append(number)
            else:
                left.append((number, rest.due_us, session.id))
        db.executemany(sql.REST, states)
        db.executemany(sql.END, ended)
        db.executemany(sql.LEAVE, left)
        return self._with_mail(db, free)

    def _with_mail(self, db: Connection, instances: Sequence[int]) -> set[int]:
        if not instances or db.execute(sql.ANY_MAIL).fetchone() is None:
            return set()
        return {number for number in instances if db.execute(sql.HAS_MAIL, (number,)).fetchone() is not None}

    def post(self, instance: int, message: Message) -> Posted:
        with self._database.write as db:
            row = db.execute(sql.STANDING, (instance,)).fetchone()
            if row is None:
                return "ended"
            if message.message_id and db.execute(sql.KNOWN, (instance, message.message_id)).fetchone() is not None:
                return "known"
            ended, replaced, holder, _ = row
            if ended or replaced:
                return "ended"
            if self._free_if_over(db, holder):
                return "free"
            fields = (message.kind, message.name, message.payload, message.at_us, message.message_id)
            db.execute(sql.POST, (instance, *fields))
            if message.message_id:
                db.execute(sql.RECEIVE, (instance, message.message_id))
            return "posted"

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        with self._database.write as db:
            names: _Names = {session.id: self._live_name(db, session)}
            last = db.execute(sql.LAST_RUN, (instance_id,)).fetchone()
            if last is None:
                return None
            row = db.execute(sql.STANDING, (last[0],)).fetchone()
            assert row is not None
            ended, _, holder, _ = row
            if not ended and holder != session.id and self._free_if_over(db, holder):
                db.execute(sql.HOLD, (session.id, last[0]))
            return self._loaded(db, last[0], names)

    def claim_due(self, session: Session, definitions: Sequence[int], now_us: int, limit: int) -> Sequence[Loaded]:
        with self._database.read as db:  # an idle poll takes no write lock
            self._live_name(db, session)
            if not self._others_over(db, session) and not self._due(db, definitions, now_us, 1):
                return []
        with self._database.write as db:
            names: _Names = {session.id: self._live_name(db, session)}
            for other in self._others_over(db, session):
                self._end(db, other)
            found = self._due(db, definitions, now_us, limit)
            db.executemany(sql.HOLD, [(session.id, number) for number in found])
            return [self._loaded(db, number, names) for number in found]

    def _others_over(self, db: Connection, session: Session) -> list[int]:
        others = db.execute(sql.OTHER_SESSIONS, (session.id,)).fetchall()
        return [other for (other,) in others if self._holder_name(db, other) is None]

    def _due(self, db: Connection, definitions: Iterable[int], now_us: int, limit: int) -> list[int]:
        """Return the numbers of free instances that are due, oldest first, one index walk per definition."""
        limit = max(limit, 0)
        due = [row for definition in set(definitions) for row in db.execute(sql.DUE, (definition, now_us, limit))]
        return [number for _, number in sorted(due)[:limit]]

    def release(self, session: Session, instances: Sequence[int]) -> None:
        with self._database.write as db:
            self._live_name(db, session)
            db.executemany(sql.FREE, [(session.id, number) for number in instances])

    # --- reading ----------------------------------------------------------------------------------

    def load(self, instance_id: str) -> Loaded | None:
        with self._database.read as db:
            last = db.execute(sql.LAST_RUN, (instance_id,)).fetchone()
            return self._loaded(db, last[0], {}) if last is not None else None

    def header(self, instance_id: str) -> Header | None:
        with self._database.read as db:
            row = db.execute(sql.HEADER_LAST, (instance_id,)).fetchone()
            return self._header(db, row, {}) if row is not None else None

    def _loaded(self, db: Connection, instance: int, names: _Names) -> Loaded:
        row = db.execute(sql.HEADER_OF, (instance,)).fetchone()
        found = db.execute(sql.IMAGE, (instance,)).fetchone()
        assert row is not None
        assert found is not None
        image, image_seq = found
        header = self._header(db, row, names)
        entries = [Entry(*entry) for entry in db.execute(sql.ENTRIES_AFTER, (instance, image_seq))]
        mail = [Message(*message) for message in db.execute(sql.MAIL, (instance,))] if header.mail else []
        return Loaded(header, image, entries, mail)

    def _header(self, db: Connection, row: tuple[Any, ...], names: _Names) -> Header:
        """Make a header of a row; ``names`` remembers whose sessions count, so that each is looked at once."""
        *front, session_id, mail, labels, trace = row
        if session_id not in names:
            names[session_id] = self._holder_name(db, session_id)
        name = names[session_id]
        found = msgspec.json.decode(labels, type=dict[str, str]) if labels is not None else {}
        columns: list[Any] = [*front, name or "", mail, found, trace, session_id if name is not None else 0]
        return Header(*columns)

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        with self._database.read as db:
            return dict(db.execute(sql.VALUES, (instance, msgspec.json.encode(seqs).decode())))

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        with self._database.read as db:
            self._live_name(db, session)
            found: dict[int, list[Message]] = {}
            for instance, *message in db.execute(sql.MAIL_OF_SESSION, (session.id,)):
                found.setdefault(instance, []).append(Message(*message))
            return found

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        with self._database.read as db:
            row = db.execute(sql.PLAN, (name, fingerprint)).fetchone()
            return row[0] if row is not None else None

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        with self._database.read as db:
            return [Entry(*row) for row in db.execute(sql.HISTORY, (instance, after, max(limit, 0)))]

    def list(self, where: Filter) -> Sequence[Header]:
        condition, values = sql.matching(where)
        if where.after is not None:
            condition, values = f"{condition} AND i.id < ?", [*values, where.after]
        query = f"{sql.HEADER} WHERE {condition} ORDER BY i.id DESC LIMIT ?"
        with self._database.read as db:
            rows = db.execute(query, [*values, max(where.limit, 0)]).fetchall()
            names: _Names = {}
            return [self._header(db, row, names) for row in rows]

    def count(self, where: Filter) -> int:
        condition, values = sql.matching(where)
        with self._database.read as db:
            row = db.execute(f"{sql.COUNT} WHERE {condition}", values).fetchone()
            assert row is not None
            return int(row[0])

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        with self._database.read as db:
            return [
                Stuck(instance_id, NOTHING_MOVES if session is None else "its session does not exist")
                for instance_id, session in db.execute(sql.STUCK)
            ]

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        with self._database.write as db:
            row = db.execute(sql.LAST_ENDED, (instance_id,)).fetchone()
            if row is None or not row[0]:
                return False
            self._remove(db, [(instance_id,)])
            return True

    def purge(self, ended_before_us: int, limit: int) -> int:
        with self._database.write as db:
            ids = db.execute(sql.ENDED_BEFORE, (ended_before_us, max(limit, 0))).fetchall()
            self._remove(db, ids)
            return len(ids)

    def _remove(self, db: Connection, ids: Sequence[tuple[str]]) -> None:
        for statement in sql.REMOVE:
            db.executemany(statement, ids)

    def hint(self) -> int:
        return self._database.hint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()


class _Pending:
    """Rows of new instances that are written together, at the end of a batch or before one of them is read."""

    def __init__(self) -> None:
        self.journal: list[Row] = []
        self.agenda: list[Row] = []

    def write(self, db: Connection) -> None:
        db.executemany(sql.APPEND, self.journal)
        db.executemany(sql.NEW_AGENDA, self.agenda)
        self.journal, self.agenda = [], []


def _codec(codec_id: int) -> Codec:
    """Return the codec that a file names; :class:`JsonCodec` for one it does not know, to be refused as different."""
    from stepwell.codec import JsonCodec, MsgpackCodec

    msgpack = MsgpackCodec()
    return msgpack if codec_id == msgpack.id else JsonCodec()


def _lost() -> LeaseLost:
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
