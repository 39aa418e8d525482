"""Connections to PostgreSQL: how they are set up, shared by threads, lost, made again, and what is then believed.

A :class:`Line` is one connection for one kind of work, used by one thread at a time. Its work is a function that can
be called again. It runs either *once*, statement by statement without a transaction around, which is one round trip for
the one statement that it should be; or *together*, in one transaction. When a connection is lost, the moment decides:

- in a transaction before its commit was sent, nothing has landed, and the work is done again on a new connection;
- while committing, the server is asked what became of that very transaction (``pg_xact_status``), so the answer is the
  truth and not a guess;
- in a single statement nobody knows. The work is called again with :attr:`Db.doubt` set, and recognizes what it may
  have written by a number that it had drawn before (a claim, a creation) or by its content (a journal's entry). Before
  that, the old connection's process on the server is ended, so that nothing of it can land later.

Behind a pooler that gives each transaction another server connection (``pooled``) nothing may be left in a session: all
work runs in transactions, each says what it needs by ``set_config(..., is_local)``, and no statement is prepared.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from re import sub
from select import POLLIN, POLLOUT, poll
from threading import RLock
from typing import Any, Final, NoReturn, TypeVar, cast

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import tuple_row

from stepwell.errors import BackendUnavailable, Closed, OptionError, Unsupported, UsageError

from .postgres_errors import AGAIN, NOT_PREPARED, UNKNOWN, Place, fail, is_final, is_gone
from .postgres_pack import packed_values, type_of
from .postgres_runs import NotAdmitted, TryAgain
from .postgres_wire import set_up

T = TypeVar("T")
C = TypeVar("C", bound="BoundedConnection")

POSTGRES_LEAST: Final = 130000
STATEMENT_S: Final = 30
LOCK_S: Final = 5
REPLY_GRACE_S: Final = 10  # past its own limit the server answers; if not, nobody is there any more
PAUSE_S: Final = (0.005, 0.05, 0.2, 0.5, 1.0)
PREPARE_AFTER: Final = 0
POLL_MS: Final = 1000
_GOOD: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
# What a role or database may have set otherwise. "idle_session_timeout" came with 14, "transaction_timeout" with 17.
_SETTINGS: Final = {
    "search_path": "pg_catalog",
    "statement_timeout": f"{STATEMENT_S}s",
    "lock_timeout": f"{LOCK_S}s",
    "idle_in_transaction_session_timeout": "30s",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "jit": "off",  # it costs milliseconds for a statement that takes microseconds
    "enable_seqscan": "off",  # a plan is kept for long, and one made while tables were empty would be
    "plan_cache_mode": "force_generic_plan",
}
_OF_SESSION: Final = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
}
_KEEPALIVES: Final = {
    "application_name": "stepwell",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for an answer, as behind a proxy that has gone deaf."""

    patience_s: float | None = STATEMENT_S + REPLY_GRACE_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        if self.patience_s is not None:
            gen = _bounded(gen, time.monotonic() + self.patience_s)
        return super().wait(gen, *args, **options)


def _bounded(gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            if not ready and time.monotonic() > deadline:
                raise psycopg.OperationalError("the server does not answer")
            waits_for = gen.send(ready)
    except StopIteration as done:
        return cast("T", done.value)


class Db:
    """What work gets: a connection on which statements of ours run.

    ``doubt`` says that an earlier call of the same work may have landed.
    """

    __slots__ = ("_cursor", "_poll", "_prepared", "_prepares", "_texts", "connection", "doubt")

    def __init__(self, connection: psycopg.Connection[Any], texts: Texts, *, prepares: bool = False) -> None:
        self.connection = connection
        self._cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
        self._cursor.format = Format.BINARY
        set_up(self._cursor)
        self._texts = texts
        self._prepares = prepares
        self._prepared: dict[str, bytes] = {}
        self._poll = poll()
        self.doubt = False

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = self._cursor
        cursor.execute(self._texts[query], values, binary=True)
        return cursor.fetchall()

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        cursor = self._cursor
        cursor.execute(self._texts[query], values, binary=True)
        return cursor.fetchone()

    def named(self, name: str) -> str:
        """Return a name in our schema as PostgreSQL's functions take it."""
        return f"{self._texts.schema}.{name}"

    def run(self, query: str, *values: object) -> int:
        """Return how many rows a statement without an answer has touched."""
        if not self._prepares:
            return self._cursor.execute(self._texts[query], values, binary=True).rowcount
        return self._run_prepared(query, values)

    def _run_prepared(self, query: str, values: tuple[object, ...]) -> int:
        """Do the same in a third of the time: no step may cost more than it has to."""
        pgconn = self.connection.pgconn
        name = self._prepared.get(query)
        packed = packed_values(values)
        if name is None:
            name = b"stepwell_%d" % len(self._prepared)
            pgconn.send_prepare(name, self._texts[query], [type_of(value) for value in values])
            self._answer(pgconn)
            self._prepared[query] = name
        pgconn.send_query_prepared(name, packed, [Format.BINARY] * len(packed), Format.BINARY)
        return self._answer(pgconn).command_tuples or 0

    def say(self, text: str) -> str:
        """Run what needs no preparation, such as ROLLBACK, and return the first value of its last answer.

        psycopg would deallocate all that is prepared, ours too, if it saw a transaction rolled back.
        """
        self.connection.pgconn.send_query(text.encode())
        found = self._answer(self.connection.pgconn)
        value = found.get_value(0, 0) if found.ntuples else None
        return value.decode() if value is not None else ""

    def _answer(self, pgconn: PGconn) -> PGresult:
        """Return the answer to what was sent, or raise the error that it is."""
        deadline = time.monotonic() + STATEMENT_S + REPLY_GRACE_S
        while pgconn.flush():
            self._wait(deadline, POLLIN | POLLOUT)
            pgconn.consume_input()
        last, wrong = None, None
        while (found := self._next_result(pgconn, deadline)) is not None:
            last, wrong = found, wrong or (found if found.status not in _GOOD else None)
        if wrong is not None:
            raise error_from_result(wrong, encoding="utf-8")
        if last is None:
            raise psycopg.OperationalError("the server has sent no answer")
        return last

    def _next_result(self, pgconn: PGconn, deadline: float) -> PGresult | None:
        """Wait here for what get_result would wait for without a limit, and with every other thread of the process."""
        while pgconn.is_busy():
            self._wait(deadline, POLLIN)
            pgconn.consume_input()
        return pgconn.get_result()

    def _wait(self, deadline: float, events: int) -> None:
        self._poll.register(self.connection.pgconn.socket, events)
        while not self._poll.poll(POLL_MS):
            if time.monotonic() > deadline:
                raise psycopg.OperationalError("the server does not answer")


class Texts(dict[str, bytes]):
    """Statements with the names of our tables written out: ``@name`` is a table in the schema."""

    def __init__(self, schema: str) -> None:
        super().__init__()
        self.schema = quoted(schema)

    def __missing__(self, query: str) -> bytes:
        found = self[query] = self.said(query).encode()
        return found

    def said(self, query: str) -> str:
        return sub(r"@(?=[a-z])", lambda _: f"{self.schema}.", query)


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL. Raises OptionError for one that PostgreSQL would cut or refuse."""
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= 63 or "\0" in name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(f"schema must be a name of 1 to 63 bytes, not {name!r}")
    return '"' + name.replace('"', '""') + '"'


class Server:
    """What the connections of one backend have in common."""

    def __init__(self, place: Place, pooled: bool | None, synchronous: str, patience_us: int) -> None:
        self.place, self.texts = place, Texts(place.schema)
        self.synchronous, self.patience_s = synchronous, patience_us / 1e6
        self.pooled = bool(pooled)
        self._detect = pooled is None
        self._pid = os.getpid()
        self._version = 0
        self.closed = False

    @cached_property
    def channel(self) -> str:
        """The channel on which those who use this schema tell each other that they have written."""
        return f"stepwell_{blake2b(self.place.schema.encode(), digest_size=8).hexdigest()}"

    def check(self) -> None:
        """Refuse a backend that is closed or was made before a fork."""
        if self.closed:
            raise Closed(f"the backend of {self.place} is closed; make a new one")
        if os.getpid() != self._pid:
            raise UsageError(
                f"the backend of {self.place} was made in process {self._pid} and this is process {os.getpid()}: "
                "a connection does not survive a fork; make the backend after the fork"
            )

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self._pid

    def open(self, kind: type[C], *, autocommit: bool = False) -> C:
        """Return a new connection as it comes, but for what keeps it alive. Raises psycopg's errors."""
        info = self.place.conninfo(_KEEPALIVES, {"client_encoding": "utf8"})
        return kind.connect(info, autocommit=autocommit)

    def connect(self, *, synchronous: str = "") -> BoundedConnection:
        """Return a new connection, set up so that only work remains to be done. Raises psycopg's errors."""
        connection = self.open(BoundedConnection, autocommit=True)
        try:
            self._set_up(connection, synchronous or self.synchronous)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: BoundedConnection, synchronous: str) -> None:
        self._version = connection.info.server_version
        if self._version < POSTGRES_LEAST:
            raise Unsupported(f"{self.place}: PostgreSQL {self._version // 10000} is too old; use 13 or newer")
        if self._detect:
            # A pooler has a process number of its own to offer.
            (pid,) = connection.execute(b"SELECT pg_catalog.pg_backend_pid()").fetchone() or (0,)
            self.pooled, self._detect = pid != connection.info.backend_pid, False
        if self.pooled:
            connection.prepare_threshold = None
        else:
            connection.prepare_threshold = PREPARE_AFTER
            connection.execute(self.settings(synchronous, local=False).encode())

    @property
    def known(self) -> bool:
        """Whether a connection was ever made, so that the DSN cannot be wrong."""
        return self._version > 0

    def settings(self, synchronous: str, *, local: bool) -> str:
        """Return the statement that sets what we rely on, for a transaction or a session."""
        wanted = {**_SETTINGS, **({} if local else _OF_SESSION), "synchronous_commit": synchronous}
        if self._version >= 140000:
            wanted["idle_session_timeout"] = "0"
        if self._version >= 170000:
            wanted["transaction_timeout"] = "0"
        calls = (f"pg_catalog.set_config('{name}', '{value}', {str(local).lower()})" for name, value in wanted.items())
        return f"SELECT {', '.join(calls)}"  # constants

    def fail(self, error: psycopg.Error, when: str = "") -> NoReturn:
        fail(self.place, error, when)


class _Lost(Exception):
    """The connection was lost; ``doubt``: it is not known whether the work has landed."""

    def __init__(self, error: psycopg.Error, doubt: bool) -> None:
        super().__init__()
        self.error, self.doubt = error, doubt


class Line:
    """One connection, made when it is first needed and again when it was lost."""

    def __init__(self, server: Server, *, synchronous: str = "", writes: bool = True) -> None:
        self._server, self._synchronous, self._writes = server, synchronous or server.synchronous, writes
        self._lock = RLock()
        self._db: Db | None = None
        self._busy = False
        self._process: tuple[int, str] | None = None  # on the server: its number and when it began

    def once(self, work: Callable[[Db], T]) -> T:
        """Do work that is one statement, or where each statement may land by itself."""
        return self._run(work, together=False)

    def together(self, work: Callable[[Db], T]) -> T:
        """Do work in one transaction."""
        return self._run(work, together=True)

    def _run(self, work: Callable[[Db], T], *, together: bool) -> T:
        self._server.check()  # before the lock, which a forked child may have inherited locked
        began, doubt, tries = time.monotonic(), False, 0
        while True:
            try:
                self._take_turn()
                try:
                    return self._attempt(work, together, doubt)
                finally:
                    self._busy = False
                    self._lock.release()
            except _Lost as lost:
                error, doubt = lost.error, doubt or (lost.doubt and self._writes)
            except TryAgain:
                error = psycopg.errors.SerializationFailure("rows came and went at the same moment")
            except psycopg.errors.UniqueViolation as clash:
                raise NotAdmitted from clash
            except psycopg.Error as failed:
                if failed.sqlstate in NOT_PREPARED and tries == 0:
                    self._forget()
                elif failed.sqlstate not in AGAIN:
                    self._server.fail(failed, UNKNOWN if doubt else "")
                error = failed
            deadline = began + self._server.patience_s
            if time.monotonic() >= deadline or (not self._server.known and is_final(error)):
                self._server.fail(error, UNKNOWN if doubt else "")
            pause(tries, deadline)
            tries += 1

    def _take_turn(self) -> None:
        """Have the connection for this thread alone; the lock is to be released."""
        if not self._lock.acquire(timeout=self._server.patience_s + LOCK_S):
            raise BackendUnavailable(f"{self._server.place}: another thread has kept the connection for too long")
        if self._server.closed or self._busy:
            self._lock.release()
            self._server.check()
            raise UsageError(
                f"the backend of {self._server.place} was used in the middle of its own transaction, "
                "as by a signal handler: let the handler set a flag or start a thread"
            )
        self._busy = True

    def _attempt(self, work: Callable[[Db], T], together: bool, doubt: bool) -> T:
        try:
            db = self._connected(doubt)
        except psycopg.Error as error:
            raise _Lost(error, False) from error
        together = together or self._server.pooled  # which the first connection finds out
        db.doubt = doubt and not together
        if together:
            return self._transact(db, work)
        try:
            return work(db)
        except psycopg.Error as error:
            if self._is_lost(db, error):
                raise _Lost(error, True) from error
            raise

    def _transact(self, db: Db, work: Callable[[Db], T]) -> T:
        try:
            self._begin(db)
            result = work(db)
            number = self._number(db)
        except psycopg.Error as error:
            if self._is_lost(db, error):
                raise _Lost(error, False) from error
            self._roll_back(db)
            raise
        except BaseException:
            self._roll_back(db)
            raise
        try:
            db.say("COMMIT")
        except psycopg.Error as error:
            if not self._is_lost(db, error):
                self._roll_back(db)
                raise
            if number is None or self.landed(number, error):
                return result
            raise _Lost(error, False) from error
        return result

    def _begin(self, db: Db) -> None:
        mode = "READ WRITE" if self._writes else "READ ONLY"
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED {mode} NOT DEFERRABLE"
        if self._server.pooled:
            begin += "; " + self._server.settings(self._synchronous, local=True)
        db.say(begin)

    def _number(self, db: Db) -> str | None:
        """Return the transaction's number, by which its end can be asked for; ``None`` if it has written nothing."""
        if not self._writes:
            return None
        return db.say("SELECT pg_catalog.pg_current_xact_id_if_assigned()::text") or None

    def landed(self, number: str, lost: psycopg.Error) -> bool:
        """Return whether the transaction of this number has committed. Raises if nobody can tell."""
        deadline, tries = time.monotonic() + self._server.patience_s, 0
        while time.monotonic() < deadline:
            with suppress(psycopg.Error):
                query = b"SELECT pg_catalog.pg_xact_status(%s::text::xid8)"
                (status,) = self._connected(True).connection.execute(query, (number,)).fetchone() or (None,)
                if status in ("committed", "aborted"):
                    return bool(status == "committed")
            pause(tries, deadline)
            tries += 1
        return self._server.fail(lost, UNKNOWN)

    # --- the connection -----------------------------------------------------------------------------

    def _connected(self, doubt: bool) -> Db:
        """Return the connection, idle; made again if it is lost or was left in the middle by an interrupt."""
        db = self._db
        if db is not None:
            if db.connection.pgconn.transaction_status == TransactionStatus.IDLE:
                return db
            self._drop()
        connection = self._server.connect(synchronous=self._synchronous)
        try:
            if doubt and self._process is not None:
                _end_process(connection, self._process)
            self._process = None if self._server.pooled or not self._writes else _process(connection)
        except BaseException:
            connection.close()
            raise
        self._db = db = Db(connection, self._server.texts, prepares=not self._server.pooled)
        return db

    def _is_lost(self, db: Db, error: psycopg.Error) -> bool:
        if db.connection.closed or (
            is_gone(error) and db.connection.pgconn.transaction_status != TransactionStatus.IDLE
        ):
            self._drop()
            return True
        return False

    def _roll_back(self, db: Db) -> None:
        try:
            db.say("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def _forget(self) -> None:
        """Begin with a new connection."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(psycopg.Error):
                db.connection.close()

    def close(self) -> None:
        """Close the connection; in a forked child it is the parent's."""
        if not self._server.is_ours:
            return
        with self._lock:
            if self._db is not None:
                self._db.connection.close()
            self._db = None


def _process(connection: BoundedConnection) -> tuple[int, str] | None:
    """Return which process of the server works for a connection."""
    query = b"SELECT pid, backend_start::text FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
    return cast("tuple[int, str] | None", connection.execute(query).fetchone())


def _end_process(connection: BoundedConnection, process: tuple[int, str]) -> None:
    """End what works for a connection that was lost, so that nothing of it can land from now on."""
    end = (
        b"SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
        b"WHERE pid = %s AND backend_start = %s::timestamptz"
    )
    for tries in range(200):
        if not connection.execute(end, process, prepare=False).fetchall():
            return
        pause(min(tries, 1), None)


def pause(tries: int, deadline: float | None) -> None:
    """Sleep for an uneven moment that grows with each try."""
    longest = PAUSE_S[min(tries, len(PAUSE_S) - 1)]
    if deadline is not None:
        longest = min(longest, max(deadline - time.monotonic(), 0.0))
    time.sleep(random.uniform(0.3, 1) * longest)  # noqa: S311 - an uneven pause is no secret
