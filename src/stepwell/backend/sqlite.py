"""A store in one SQLite file, shared by the threads of a process and by the processes of a machine.

What is here works on the backend's own connection only: sessions, claims, lists, upkeep. How an instance is written and
read, which a user's transaction can do as well, is in :mod:`.sqlite_store`.

An instance is held by whoever ``agenda.session`` names, as long as that session's row exists. Whoever finds such a
session to be over, its lease run out or its process dead, deletes the row before it acts on that; so a holder that
was only slow finds no row and cannot write any more.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from stepwell.errors import OptionError
from stepwell.timing import Duration, duration_us

from . import queries as sql
from . import queries_offers as offer_sql
from .base import (
    NO_SESSION,
    NOTHING_MOVES,
    OFFER_LEFT,
    OFFER_NO_SESSION,
    UNREAD,
    Capabilities,
    Entry,
    Filter,
    Header,
    Holder,
    Joined,
    Loaded,
    Message,
    Posted,
    Session,
    Stuck,
    Want,
    check_purge,
)
from .liveness import lease_clock
from .sqlite_offers import OfferStore
from .sqlite_store import Names, label_rows, labels_of, lost
from .turns import Due, Room, in_turn

if TYPE_CHECKING:
    import apsw

    from stepwell.codec import Codec

    from .sqlite_connection import Connection

SKIM: Final = 64
"""How many due instances in full lanes are passed over one by one before it is asked lane by lane."""


class SqliteBackend(OfferStore):
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

    capabilities = Capabilities(durable=True, multi_process=True, user_transactions=True)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "fast"] = "full",
        codec: Codec | None = None,
        busy_timeout: Duration = "30s",
        lease_clock: Callable[[], int] = lease_clock,
    ) -> None:
        from stepwell.codec import check_codec, check_same_codec

        from .sqlite_file import Database, checked_path  # apsw is loaded with the first SqliteBackend only

        if durability not in ("full", "fast"):
            raise OptionError(f'durability must be "full" or "fast", not {durability!r}')
        if codec is not None:
            check_codec(codec)
        busy_us, new_codec = duration_us(busy_timeout, "busy_timeout"), codec if codec is not None else _codec(0)
        self._database = Database(checked_path(path), durability, busy_us, new_codec.id)
        super().__init__(self._database.write, self._database.read, lease_clock)
        self._definitions: dict[int, tuple[str, str]] = {}
        try:
            self.backend_id, self.codec_id = self._identity()
            self.codec: Codec = codec if codec is not None else _codec(self.codec_id)
            check_same_codec(self._database.path, self.codec_id, self.codec)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"SqliteBackend({self._database.path!r})"

    def _identity(self) -> tuple[str, int]:
        with self._read as db:
            found = {key: value for key in ("backend_id", "codec_id") for (value,) in db.execute(sql.META, (key,))}
            return found["backend_id"], found["codec_id"]

    def connect(self) -> apsw.Connection:
        """Return a new ``apsw.Connection`` to the same file, with the same settings, which the caller closes."""
        return self._database.connect()

    def within(self, connection: object) -> Joined:
        """Return a view whose writes are part of the user's transaction on ``connection``.

        Args:
            connection: an ``apsw.Connection`` to this backend's file, as :meth:`connect` returns it. Begin the
                transaction with ``BEGIN IMMEDIATE``: one that has read before it writes may be too old to write.

        Raises:
            OptionError: another kind of connection, one to another file, or one that keeps less than this backend's
                ``durability`` promises.
            BackendReadOnly: a connection that only reads.

        Example:
            >>> connection = backend.connect()  # doctest: +SKIP
            >>> with connection:  # doctest: +SKIP
            ...     joined = backend.within(connection)
        """
        from .sqlite_joined import join

        return join(self._database, self.backend_id, connection, self._clock)

    def keep_apart(self, thread: int, *, apart: bool) -> None:
        """Refuse a thread this backend's own connection while another one keeps the write lock for it."""
        (self._database.apart.add if apart else self._database.apart.discard)(thread)

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        token = secrets.randbits(63)
        with self._write as db:
            until_us = self._clock() + lease_us
            db.execute(sql.OPEN_SESSION, (token, until_us, self._boot_id, *msgspec.structs.astuple(holder)))
            return Session(db.last_insert_rowid(), token, lease_us)

    def renew(self, session: Session) -> None:
        with self._write as db:
            db.execute(sql.RENEW, (self._clock() + session.lease_us, session.id, session.token))
            if not db.changes():
                raise lost()

    def end_session(self, session: Session) -> None:
        with self._write as db:
            if db.execute(sql.SESSION_NAME, (session.id, session.token)).fetchone() is not None:
                self._end(db, session.id, lost=False)

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        with self._write as db:
            db.execute(sql.SERVE, (_numbers(definitions), session.id, session.token))
            if not db.changes():
                raise lost()

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        with self._read as db:
            found = db.execute(sql.SERVED, (_numbers(definitions),)).fetchall()
            live = {each for each in {row[0] for row in found} if self._holder_name(db, each) is not None}
            return Counter(definition for session, definition in found if session in live)

    # --- writing ----------------------------------------------------------------------------------

    def post(self, instance: int, message: Message) -> Posted:
        with self._write as db:
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
            self._receive(db, instance, message)
            return "posted"

    def _definition(self, db: Connection, number: int) -> tuple[str, str]:
        known = self._definitions.get(number)  # what this connection sees is committed and stays
        if known is None:
            known = self._definitions[number] = super()._definition(db, number)
        return known

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        with self._write as db:
            names: Names = {session.id: self._live_name(db, session)}
            last = db.execute(sql.LAST_RUN, (instance_id,)).fetchone()
            if last is None:
                return None
            row = db.execute(sql.STANDING, (last[0],)).fetchone()
            assert row is not None
            ended, _, holder, _ = row
            if not ended and holder != session.id and self._free_if_over(db, holder):
                db.execute(sql.HOLD, (session.id, last[0]))
            return self._loaded(db, last[0], names)

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        with self._read as db:  # an idle poll takes no write lock
            self._live_name(db, session)
            if not self._others_over(db, session) and not self._due(db, want, 1):
                return []
        with self._write as db:
            names: Names = {session.id: self._live_name(db, session)}
            self._end_others(db, session)
            found = self._due(db, want, want.limit)
            db.executemany(sql.HOLD, [(session.id, number) for number in found])
            return [self._loaded(db, number, names) for number in found]

    def _due(self, db: Connection, want: Want, limit: int) -> list[int]:
        """Return the numbers of free instances that are due, those of each definition in turn."""
        if limit <= 0 or want.limit <= 0:
            return []
        room = Room(
            want.most, lambda definition: self._definition(db, definition)[0], lambda: Counter(db.execute(sql.HELD))
        )
        return in_turn({each: self._due_of(db, each, want, limit, room) for each in want.definitions}, limit, room)

    def _due_of(self, db: Connection, definition: int, want: Want, limit: int, room: Room) -> list[Due]:
        """Return the oldest due instances of one definition: one index walk, unless lanes that are full are in its way.

        Of a limited definition a few more are read than are asked for. If those do not do, there may be any number of
        others in the same lanes, and each lane is asked for its own.
        """
        values = (definition, want.now_us, want.avoid, want.patience_us)
        if not room.limits(definition):
            return _rows(db.execute(sql.DUE, (*values, limit)))
        rows = _rows(db.execute(sql.DUE, (*values, limit + SKIM)))
        fitting = room.fitting(definition, rows)
        if len(fitting) < limit and len(rows) == limit + SKIM:
            lanes = [lane for (lane,) in db.execute(sql.LANES, (definition,)).fetchall()]
            few = {lane: min(limit, room.left(definition, lane)) for lane in lanes}
            fitting = sorted(
                row
                for lane, count in few.items()
                if count
                for row in _rows(db.execute(sql.DUE_IN_LANE if lane else sql.DUE_IN_NO_LANE, (*values, count, lane)))
            )
        return fitting[:limit]

    def next_due(self, workflows: Sequence[str]) -> Mapping[str, Mapping[int, int | None]]:
        with self._read as db:
            return {name: dict(db.execute(sql.NEXT_DUE, (name,))) for name in workflows}

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        with self._read as db:
            self._live_name(db, session)
            instances, offers = (
                db.execute(query, (session.id,)).fetchall() for query in (sql.HOLDS, offer_sql.HELD_BY)
            )
            return sorted(row[0] for row in instances), [row[0] for row in offers]

    def release(self, session: Session, instances: Sequence[int]) -> None:
        with self._write as db:
            self._live_name(db, session)
            db.executemany(sql.FREE, [(session.id, number) for number in instances])

    # --- reading ----------------------------------------------------------------------------------

    def received(self, instance: int) -> Sequence[str]:
        with self._read as db:
            return [message_id for (message_id,) in db.execute(sql.RECEIVED, (instance,))]

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        with self._read as db:
            self._live_name(db, session)
            found: dict[int, list[Message]] = {}
            for instance, *message in db.execute(sql.MAIL_OF_SESSION, (session.id,)):
                found.setdefault(instance, []).append(Message(*message))
            return found

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        with self._read as db:
            return [Entry(*row) for row in db.execute(sql.HISTORY, (instance, after, max(limit, 0)))]

    def list(self, where: Filter) -> Sequence[Header]:
        query, values = sql.page(where)
        with self._read as db:
            rows = db.execute(query, values).fetchall()
            names: Names = {}
            return [self._header(db, row, names) for row in rows]

    def count(self, where: Filter) -> int:
        query, values = sql.count(where)
        with self._read as db:
            row = db.execute(query, values).fetchone()
            assert row is not None
            return int(row[0])

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        reasons = (NO_SESSION, NOTHING_MOVES, UNREAD)
        with self._read as db:
            found = db.execute(sql.STUCK, reasons).fetchall()
            found += db.execute(offer_sql.STUCK, (OFFER_LEFT, OFFER_NO_SESSION)).fetchall()
            return [Stuck(instance_id, reason) for instance_id, reason in found]

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        with self._write as db:
            row = db.execute(sql.LAST_ENDED, (instance_id,)).fetchone()
            if row is None or not row[0]:
                return False
            self._remove(db, [(instance_id,)])
            return True

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        check_purge(ended_before_us, keep)
        with self._write as db:
            # Both ask for the first rows of one order, so the later bound stands for both.
            bound = (ended_before_us, 0) if ended_before_us is not None else None
            if keep is not None and (beyond := db.execute(sql.NEWEST_ENDED, (keep,)).fetchone()) is not None:
                bound = max(bound, beyond) if bound is not None else beyond
            ids = db.execute(sql.ENDED_BEFORE, (*bound, max(limit, 0))).fetchall() if bound is not None else []
            self._remove(db, ids)
            return len(ids)

    def _remove(self, db: Connection, ids: Sequence[tuple[str, ...]]) -> None:
        labelled: list[tuple[int, str]] = [(row[0], row[1]) for name in ids for row in db.execute(sql.LABELS, name)]
        for number, labels in labelled:
            db.executemany(sql.REMOVE_LABEL, label_rows(number, labels_of(labels)))
        for statement in sql.REMOVE:
            db.executemany(statement, ids)

    def hint(self) -> int:
        return self._database.hint()

    def watch(self, wake: Callable[[], None]) -> None:
        """Return ``None``: SQLite tells nobody of another process's write; :meth:`hint` is cheap enough to look at."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()


def _numbers(definitions: Sequence[int]) -> str:
    return msgspec.json.encode(sorted({*definitions})).decode()


def _rows(found: Iterable[tuple[Any, ...]]) -> list[Due]:
    return [Due(*row) for row in found]


def _codec(codec_id: int) -> Codec:
    """Return the codec that a file names; :class:`JsonCodec` for one it does not know, to be refused as different."""
    from stepwell.codec import JsonCodec, MsgpackCodec

    msgpack = MsgpackCodec()
    return msgpack if codec_id == msgpack.id else JsonCodec()
