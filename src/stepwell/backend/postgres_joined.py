"""A store inside a transaction of the user's own, so that rows of theirs and steps of ours land together or not at all.

Each method is a savepoint in the user's transaction: a failure undoes that method alone, and whether anything lands is
decided by whoever began. Nothing here commits or rolls back what it did not begin. The connection belongs to the user:
its settings and adapters are left as they are; only a transaction that would be reported before it is safe is made so.

Nothing is remembered from one method to the next, because the user may have rolled back in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from stepwell.errors import BackendUnavailable, OptionError

from .postgres_errors import UNIQUE
from .postgres_lines import BoundedConnection, Db, Server
from .postgres_runs import NotAdmitted, TryAgain
from .postgres_store import Store

T = TypeVar("T")

NOTIFY: Final = "SELECT pg_catalog.pg_notify($1, '')"
CHECK: Final = "SELECT to_regclass($1) IS NOT NULL, current_setting('synchronous_commit')"
META: Final = "SELECT value FROM @meta WHERE key = 'backend_id'"


class UserConnection(BoundedConnection):
    """A connection of the user's, who may let a statement run as long as they like.

    ``refuse`` is set while the transaction on it is not theirs to end.
    """

    patience_s = None
    server: Server
    refuse: Callable[[], Exception] | None = None

    def commit(self) -> None:
        self._allow()
        super().commit()

    def rollback(self) -> None:
        self._allow()
        super().rollback()

    def _allow(self) -> None:
        if self.refuse is not None:
            raise self.refuse()


def connected(server: Server) -> UserConnection:
    """Return a connection for the user, which has what their own role and database set, but for safety and text."""
    server.check()
    try:
        connection = server.open(UserConnection)
        connection.server = server
        return connection
    except psycopg.Error as error:
        server.fail(error)


def join(server: Server, backend_id: str, connection: object) -> Store:
    """Return the store on a connection of the user's. Raises OptionError if it cannot be joined."""
    server.check()
    if not isinstance(connection, psycopg.Connection):
        raise OptionError(
            f"connection= takes a psycopg.Connection, as backend.connect() returns it, not {type(connection).__name__}"
        )
    theirs: psycopg.Connection[Any] = connection  # pyright: ignore[reportUnknownVariableType]
    if theirs.closed:
        raise OptionError("connection= is closed; open another one with backend.connect()")
    return JoinedStore(Savepoints(server, backend_id, theirs), server.channel)


class JoinedStore(Store):
    """Told of is what is committed: the word goes with the transaction, and with nothing if that is undone."""

    def __init__(self, savepoints: Savepoints, channel: str) -> None:
        super().__init__(savepoints, savepoints)
        self._channel = channel

    def _wrote(self) -> None:
        self._write.once(lambda db: db.rows(NOTIFY, self._channel))


class Savepoints:
    """Runs work on the user's connection: in a savepoint, or in a transaction if none is open."""

    def __init__(self, server: Server, backend_id: str, connection: psycopg.Connection[Any]) -> None:
        self._server, self._backend_id, self._connection = server, backend_id, connection
        self._checked = False

    def once(self, work: Callable[[Db], T]) -> T:
        return self.together(work)

    def together(self, work: Callable[[Db], T]) -> T:
        self._server.check()
        try:
            if not self._connection.autocommit and self._is_idle():
                self._connection.execute(b"SELECT 1")  # as with any statement, the user's transaction begins here
            with self._connection.transaction():
                db = Db(self._connection, self._server.texts)
                self._check(db)
                return work(db)
        except psycopg.Error as error:
            if error.sqlstate == UNIQUE:
                raise NotAdmitted from error
            self._server.fail(error)
        except TryAgain:
            raise BackendUnavailable(
                f"{self._server.place}: rows came and went at the same moment; begin the transaction again"
            ) from None

    def _is_idle(self) -> bool:
        return self._connection.pgconn.transaction_status == TransactionStatus.IDLE

    def _check(self, db: Db) -> None:
        """Refuse another database, and see to it that what is reported as committed is safe."""
        if self._checked:
            return
        there, synchronous = db.row(CHECK, db.named("meta")) or (False, "")
        if not there or db.row(META) != (self._backend_id,):
            raise OptionError(
                f"connection= is open on another database than this backend's, {self._server.place}: one transaction "
                "needs one database; open the connection with backend.connect() and keep your tables there"
            )
        if synchronous == "off" and self._server.synchronous != "off":
            db.rows("SELECT set_config('synchronous_commit', $1, true)", self._server.synchronous)
