"""A store inside a transaction of the user's own, so that rows of theirs and steps of ours land together or not at all.

Each method is a savepoint in the user's transaction: a failure undoes that method alone, and whether anything lands is
decided by whoever began. Nothing here commits or rolls back what it did not begin. The connection belongs to the user:
its settings are left as they are, and what it was taught to do with rows is kept from ours.

Nothing is remembered from one method to the next, because the user may have rolled back in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, NoReturn, Protocol, cast

import apsw

from stepwell.errors import BackendReadOnly, BackendUnavailable, OptionError

from .queries import META
from .sqlite_connection import Connection, Rows
from .sqlite_file import UNKNOWN, Database, refuse_sqlite3
from .sqlite_store import Store

SHADOWED: Final = """
SELECT t.name FROM temp.sqlite_schema t JOIN main.sqlite_schema m ON m.name = t.name COLLATE NOCASE LIMIT 1
"""
TAKE_WRITE_LOCK: Final = "DELETE FROM meta WHERE 0"


class JoinedStore(Store):
    """The methods of :class:`~.base.Joined` on one connection of the user's."""

    def __init__(
        self, database: Database, backend_id: str, connection: apsw.Connection, lease_clock: Callable[[], int]
    ) -> None:
        untraced = _Untraced(connection)
        write, read = (Savepoint(database, backend_id, untraced, writes) for writes in (True, False))
        super().__init__(write, read, lease_clock)


def join(database: Database, backend_id: str, connection: object, lease_clock: Callable[[], int]) -> JoinedStore:
    """Return the store on a connection of the user's. Raises OptionError if it cannot be joined."""
    database.check()
    refuse_sqlite3(connection, "connection=")
    if not isinstance(connection, apsw.Connection):
        raise OptionError(
            f"connection= takes an apsw.Connection, as backend.connect() returns it, not {type(connection).__name__}"
        )
    try:
        _check_connection(database, connection)
    except apsw.ConnectionClosedError as error:
        raise OptionError("connection= is closed; open another one with backend.connect()") from error
    except apsw.Error as error:
        database.fail(error)
    return JoinedStore(database, backend_id, connection, lease_clock)


def _check_connection(database: Database, connection: apsw.Connection) -> None:
    """Refuse what can be refused without reading: that would begin the user's transaction before its first write."""
    theirs = connection.db_filename("main")
    if not theirs or not os.path.exists(theirs) or not os.path.samefile(theirs, database.file):
        raise OptionError(
            f"connection= is open on {theirs or 'a database in memory'} and this backend on {database.path}: one "
            "transaction needs one file; open the connection with backend.connect() and keep your tables there"
        )
    if connection.readonly("main"):
        raise BackendReadOnly(f"connection= only reads {database.path}; open another one with backend.connect()")
    (synchronous,) = _Untraced(connection).execute("PRAGMA main.synchronous").fetchone() or (0,)
    if synchronous < database.synchronous:
        raise OptionError(
            f"connection= has PRAGMA synchronous = {synchronous} and this backend promises {database.synchronous}: "
            "what it commits could be lost in a power cut; raise it, or open the connection with backend.connect()"
        )


def _check_tables(database: Database, backend_id: str, connection: Connection) -> None:
    """Refuse a file that has taken the place of ours since it was opened, and tables that stand before ours."""
    if (shadowed := connection.execute(SHADOWED).fetchone()) is not None:
        raise OptionError(f"connection= has a temporary table {shadowed[0]!r}, which hides the stored one; rename it")
    if connection.execute(META, ("backend_id",)).fetchone() != (backend_id,):
        raise OptionError(f"{database.path} is not the file any more that this backend has open; make both again")


class Savepoint:
    """One use of the user's connection: a savepoint, or a transaction if none is open."""

    def __init__(self, database: Database, backend_id: str, connection: _Untraced, writes: bool) -> None:
        self._database, self._backend_id = database, backend_id
        self._connection, self._writes = connection, writes
        self._joined = self._opened = self._checked = False

    def __enter__(self) -> Connection:
        self._database.check()
        self._opened = False
        try:
            self._joined = self._connection.in_transaction
            self._begin()
            if not self._checked:
                _check_tables(self._database, self._backend_id, self._connection)
                self._checked = True
        except BaseException as error:
            self._abandon(error)
            raise
        return self._connection

    def _begin(self) -> None:
        if not self._joined:
            self._connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
            return
        if self._writes and not self._connection.writing:
            # The lock is taken before anything is read, because a transaction that has read cannot wait for it.
            self._connection.execute(TAKE_WRITE_LOCK)
        self._connection.execute("SAVEPOINT stepwell")  # the user may have one of that name: the innermost counts
        self._opened = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._abandon(error)
            return
        try:
            self._connection.execute("RELEASE stepwell" if self._joined else "COMMIT")
        except BaseException as failed:
            self._abandon(failed, UNKNOWN if isinstance(failed, apsw.IOError) and not self._joined else "")
            raise

    def _abandon(self, error: BaseException, when: str = "") -> None:
        """Undo what was begun here, and raise what an error of SQLite means."""
        if self._connection.in_transaction:
            self._undo()
        elif self._joined:  # a full or broken disk makes SQLite end it
            when = "; SQLite has rolled back the whole transaction"
        if isinstance(error, apsw.Error):
            self._fail(error, when)

    def _undo(self) -> None:
        if not self._joined:
            self._connection.execute("ROLLBACK")
        elif self._opened:
            self._connection.execute("ROLLBACK TO stepwell")
            self._connection.execute("RELEASE stepwell")

    def _fail(self, error: apsw.Error, when: str = "") -> NoReturn:
        """Raise what an error of SQLite means for whoever began the transaction."""
        if not isinstance(error, apsw.BusyError):
            self._database.fail(error, when)
        if not self._joined:
            text = "another connection kept it locked for longer than connection= waits; see its set_busy_timeout()"
        elif getattr(error, "extendedresult", 0) == apsw.SQLITE_BUSY_SNAPSHOT:
            text = "another connection has written since this transaction began to read, so it cannot write any more; "
            text += "roll it back, and begin it with BEGIN IMMEDIATE"
        else:
            text = "another connection is writing, and this transaction cannot wait for it any longer; "
            text += "roll it back, and begin it with BEGIN IMMEDIATE"
        raise BackendUnavailable(f"{self._database.path}: {text} ({error})") from error


class _Cursor(Protocol):
    """The part of ``apsw.Cursor`` that is used here."""

    def execute(self, statements: str, bindings: Sequence[object], /) -> Rows: ...
    def executemany(self, statements: str, bindings: Iterable[Sequence[object]], /) -> Rows: ...


class _Untraced:
    """The user's connection, used past whatever the user has it do with each row."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def _cursor(self) -> _Cursor:
        cursor = apsw.Cursor(self._connection)
        cursor.row_trace = None
        cursor.convert_jsonb = None
        return cast(_Cursor, cursor)

    def execute(self, statements: str, bindings: Sequence[object] = (), /) -> Rows:
        return self._cursor().execute(statements, bindings)

    def executemany(self, statements: str, bindings: Iterable[Sequence[object]], /) -> Rows:
        return self._cursor().executemany(statements, bindings)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @property
    def writing(self) -> bool:
        return self._connection.txn_state("main") == apsw.SQLITE_TXN_WRITE

    def changes(self) -> int:
        return self._connection.changes()

    def total_changes(self) -> int:
        return self._connection.total_changes()

    def last_insert_rowid(self) -> int:
        return self._connection.last_insert_rowid()

    def readonly(self, name: str, /) -> bool:
        return self._connection.readonly(name)

    def db_filename(self, name: str, /) -> str:
        return self._connection.db_filename(name)

    def close(self) -> None:
        self._connection.close()
