"""A store in a schema of a PostgreSQL database, shared by the processes of any number of machines.

What is here is what needs no more than a statement: sessions, messages, lists, upkeep. How an instance is written and
read, which a user's transaction can do as well, is in :mod:`.postgres_store`; claims are in :mod:`.postgres_claims`.

An instance is held by whoever ``agenda.session`` names, as long as that session's row exists. A write locks that row
against being deleted (``FOR KEY SHARE``), which lets other writes and renewals of the same session pass. Whoever finds
a session to be over deletes its row; so a holder that was only slow finds none and cannot write any more.

Each backend has up to five connections, made when they are first needed: one writes, one claims, one reads, one renews
the leases, so that nothing slow can cost them, and one listens.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, Self

from stepwell.errors import OptionError
from stepwell.timing import Duration, duration_us

from . import postgres_queries as sql
from . import postgres_queries_claims as claims
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
    Message,
    Posted,
    Session,
    Stuck,
    check_purge,
)
from .postgres_claims import ClaimStore
from .postgres_filters import counted, page
from .postgres_pack import byteas, from_utf8, int8s, utf8
from .postgres_rows import header_of, holder_name, message_of
from .postgres_runs import Db
from .postgres_store import insert_message, lost

if TYPE_CHECKING:
    import psycopg

    from stepwell.codec import Codec

Durability = Literal["replicated", "full", "fast"]
_SYNCHRONOUS: Final = {"replicated": "remote_apply", "full": "on", "fast": "off"}


class PostgresBackend(ClaimStore):
    """A store in a schema of a PostgreSQL database, version 13 or newer. Needs ``pip install "stepwell[postgres]"``.

    Args:
        dsn: where it is, as libpq takes it: ``postgresql://user@host/database``. The schema is made when it is
            missing, and brought up to date; a role that may not do this needs :func:`.postgres_schema.migrate` by one
            that may.
        schema: the schema of its tables.
        durability: ``"full"``: what was committed survives a crash of the server. ``"replicated"``: and of its whole
            machine, if it has synchronous standbys. ``"fast"``: the last moments may be lost with the server.
        codec: how values are encoded; by default as the schema says, :class:`~stepwell.codec.JsonCodec` for a new one.
        timeout: how long a call tries again while the server is away or busy, before BackendUnavailable; default 30 s.
        pooled: whether connections go through a pooler that gives each transaction another server connection, such as
            PgBouncer in transaction mode. Then nothing is prepared, every call is a transaction, and other processes'
            writes are noticed by polling. ``None``: found out.

    Raises:
        OptionError: a wrong argument, another codec than the schema was created with, or psycopg is not installed.
        BackendError: the database cannot be used; the subclass and the message say why and what helps.

    Example:
        >>> backend = PostgresBackend("postgresql://app@localhost/orders")  # doctest: +SKIP
        >>> backend.close()  # doctest: +SKIP
    """

    capabilities = Capabilities(durable=True, multi_process=True, user_transactions=True)

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "stepwell",
        durability: Durability = "full",
        codec: Codec | None = None,
        timeout: Duration = "30s",
        pooled: bool | None = None,
    ) -> None:
        check_driver()
        from stepwell.codec import check_codec, check_same_codec

        from .postgres_errors import Place  # psycopg is loaded with the first PostgresBackend only
        from .postgres_lines import Line, Server
        from .postgres_listen import Hints
        from .postgres_schema import Schema

        if durability not in _SYNCHRONOUS:
            raise OptionError(f'durability must be "full", "replicated" or "fast", not {durability!r}')
        if codec is not None:
            check_codec(codec)
        self._server = Server(Place(dsn, schema), pooled, _SYNCHRONOUS[durability], duration_us(timeout, "timeout"))
        write, read = Line(self._server), Line(self._server, writes=False)
        # A claim or a renewal that a crash of the server takes back costs nobody anything; see .postgres_claims.
        claim, self._renew = (Line(self._server, synchronous="off") for _ in range(2))
        self._lines = write, read, claim, self._renew
        super().__init__(write, read, claim)
        self._hints = Hints(self._server, claim)
        self._known: dict[int, tuple[str, str]] = {}
        try:
            meta = Schema(self._server, write, (codec if codec is not None else _codec(0)).id).ready()
            self.backend_id, self.codec_id = meta["backend_id"], int(meta["codec_id"])
            self.codec: Codec = codec if codec is not None else _codec(self.codec_id)
            check_same_codec(self._server.place, self.codec_id, self.codec)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<PostgresBackend {self._server.place}>"

    def _wrote(self) -> None:
        self._hints.wrote()

    def _definitions(self, db: Db, numbers: set[int]) -> Mapping[int, tuple[str, str]]:
        if not numbers <= self._known.keys():  # what these connections see is committed and stays
            self._known = {**self._known, **super()._definitions(db, numbers)}
        return self._known

    # --- the user's transaction -------------------------------------------------------------------

    def connect(self) -> psycopg.Connection:
        """Return a new ``psycopg.Connection`` to the same database, not in autocommit mode, which the caller closes."""
        from .postgres_joined import connected

        return connected(self._server)

    def within(self, connection: object) -> Joined:
        """Return a view whose writes are part of the user's transaction on ``connection``.

        Args:
            connection: a ``psycopg.Connection`` to this backend's database, as :meth:`connect` returns it.

        Raises:
            OptionError: another kind of connection, or one to another database.
            BackendReadOnly: a connection that only reads.

        Example:
            >>> with backend.connect() as connection:  # doctest: +SKIP
            ...     joined = backend.within(connection)
        """
        from .postgres_joined import join

        return join(self._server, self.backend_id, connection)

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        token = secrets.randbits(63)
        names = [utf8(holder.name), utf8(holder.host), holder.pid, holder.started]
        values = token, lease_us, *names, utf8(holder.boot_id), utf8(holder.namespace)
        (number,) = self._write.once(lambda db: db.row(sql.OPEN_SESSION, *values)) or (0,)
        return Session(number, token, lease_us)

    def renew(self, session: Session) -> None:
        values = session.id, session.token, session.lease_us
        if self._renew.once(lambda db: db.row(sql.RENEW, *values)) is None:
            raise lost()

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        values = session.id, session.token, int8s(sorted({*definitions}))
        if self._write.once(lambda db: db.row(sql.SERVE, *values)) is None:
            raise lost()
        self._wrote()

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        wanted = {*definitions}
        rows = self._read.once(lambda db: db.rows(sql.SERVED, int8s(sorted(wanted))))
        live = [serves for serves, *holder in rows if holder_name(tuple(holder)) is not None]
        return Counter(number for serves in live for number in wanted.intersection(serves))

    # --- messages ---------------------------------------------------------------------------------

    def post(self, instance: int, message: Message) -> Posted:
        known = utf8(message.message_id)
        while True:
            row = self._write.once(lambda db: db.row(claims.POST_LOOK, instance, known))
            if row is None:
                return "ended"
            ended, is_known, *holder = row
            if message.message_id and is_known:
                return "known"
            if ended:
                return "ended"
            if holder[0] is None:
                return "free"
            if holder_name(tuple(holder)) is None:
                self._end_over(self._write, holder[0])
            elif (answer := self._post(instance, holder[0], message)) is not None:
                return answer

    def _post(self, instance: int, session: int, message: Message) -> Posted | None:
        """Post if the session still holds the instance; else return ``None``, to look again."""

        def work(db: Db) -> Posted | None:
            if db.row(sql.MORE_MAIL, instance, session) is None:
                return None
            # Whoever posts to this instance waits for its agenda's row, so nobody else can be about to.
            if message.message_id and db.row(sql.KNOWN, instance, byteas([utf8(message.message_id)])) is not None:
                raise _Known
            if message.message_id:
                db.run(sql.RECEIVE, instance, byteas([utf8(message.message_id)]))
            insert_message(db, instance, message)
            return "posted"

        try:
            answer = self._write.together(work)
        except _Known:
            return "known"
        if answer is not None:
            self._wrote()
        return answer

    # --- reading ----------------------------------------------------------------------------------

    def received(self, instance: int) -> Sequence[str]:
        rows = self._read.once(lambda db: db.rows(sql.RECEIVED, instance))
        return sorted(from_utf8(message_id) for (message_id,) in rows)

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        def work(db: Db) -> list[tuple[int, Message]]:
            rows = db.rows(sql.MAIL_OF_SESSION, session.id)
            if db.row(sql.SESSION_NAME, session.id, session.token) is None:
                raise lost()
            return [(row[0], message_of(row[1:])) for row in rows]

        found: dict[int, list[Message]] = {}
        for instance, message in self._read.once(work):
            found.setdefault(instance, []).append(message)
        return found

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        rows = self._read.once(lambda db: db.rows(sql.HISTORY, instance, after, max(limit, 0)))
        return [Entry(*row) for row in rows]

    def list(self, where: Filter) -> Sequence[Header]:
        query, values = page(where)
        return [header_of(row) for row in self._read.once(lambda db: db.rows(query, *values))]

    def count(self, where: Filter) -> int:
        query, values = counted(where)
        (number,) = self._read.once(lambda db: db.row(query, *values)) or (0,)
        return int(number)

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        def work(db: Db) -> dict[tuple[bytes, str], None]:
            found = db.rows(sql.STUCK, NO_SESSION, NOTHING_MOVES, UNREAD)
            found += db.rows(claims.STUCK_OFFERS, OFFER_LEFT, OFFER_NO_SESSION)
            return dict.fromkeys((row[0] or b"", row[1]) for row in found)

        return [Stuck(from_utf8(instance_id), reason) for instance_id, reason in self._read.once(work)]

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        def work(db: Db) -> bool:
            row = db.row(sql.LAST_ENDED, utf8(instance_id))
            if row is not None:
                db.run(sql.REMOVE, int8s([row[0]]))
            return row is not None

        return self._write.together(work)

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        check_purge(ended_before_us, keep)

        def work(db: Db) -> int:
            # Both ask for the first rows of one order, so the later bound stands for both.
            bound = (ended_before_us, 0) if ended_before_us is not None else None
            if keep is not None and (beyond := db.row(sql.NEWEST_ENDED, keep)) is not None:
                bound = max(bound, (beyond[0], beyond[1])) if bound is not None else (beyond[0], beyond[1])
            ids = db.rows(sql.ENDED_BEFORE, *bound, max(limit, 0)) if bound is not None else []
            if ids:
                db.run(sql.REMOVE, int8s([number for (number,) in ids]))
            return len(ids)

        return self._write.together(work)

    # --- whether to look --------------------------------------------------------------------------

    def hint(self) -> int:
        return self._hints.hint()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        return self._hints.watch(wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._server.closed and self._server.is_ours:
            self._hints.close()
            self._server.closed = True
        for line in self._lines:
            line.close()


class _Known(Exception):
    """The message was accepted before; what was begun is undone."""


def check_driver() -> None:
    """Refuse to go on without psycopg, saying where it comes from."""
    try:
        import psycopg  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise OptionError(
            f'PostgresBackend needs psycopg 3, which cannot be imported ({error}); install "stepwell[postgres]"'
        ) from error


def _codec(codec_id: int) -> Codec:
    """Return the codec that a schema names; :class:`JsonCodec` for one it does not know, to be refused as different."""
    from stepwell.codec import JsonCodec, MsgpackCodec

    msgpack = MsgpackCodec()
    return msgpack if codec_id == msgpack.id else JsonCodec()
