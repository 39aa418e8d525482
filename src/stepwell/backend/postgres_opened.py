"""A task's transaction in PostgreSQL: it keeps nobody else from writing but those who want its rows.

The transaction's number is known from the beginning. It tells whether the task has ended the transaction and begun
another, and, if the answer to the commit is lost, what became of it.

libpq frees what it knows of a connection when that is closed, and whoever is inside a call on it would go on with freed
memory, and with a descriptor that may be another connection's by now. So from outside a connection is never closed: its
socket is shut down, through a descriptor of our own, and whoever is inside comes out with an error and closes it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .opened import ENDED_BY_TASK
from .postgres_joined import UserConnection
from .postgres_lines import Line

AFTER_AN_ERROR = "went on after an error in its transaction, of which nothing can be kept; let the error out"
CANCEL_S = 1.0
IDLE = b"SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', %s, true)"
NUMBER = b"SELECT pg_catalog.pg_current_xact_id()::text"


class PostgresOpened:
    """See :class:`.opened.Opened`."""

    excludes = False
    failures: tuple[type[Exception], ...] = (psycopg.Error,)

    def __init__(self, connection: UserConnection) -> None:
        self.connection = connection
        self._number = ""
        self._ending = threading.Lock()
        self._socket: socket.socket | None = socket.fromfd(connection.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM)

    def begin(self, idle_us: int) -> None:
        self._number = self._transaction()
        self.connection.execute(IDLE, (f"{idle_us // 1_000}ms",))

    def _transaction(self) -> str:
        cursor: psycopg.Cursor[Any] = psycopg.Cursor(self.connection, row_factory=tuple_row)
        (number,) = cursor.execute(NUMBER).fetchone() or ("",)
        return str(number)

    def guard(self, refuse: Callable[[], Exception]) -> None:
        self.connection.refuse = refuse

    def unusable(self) -> str:
        status = self.connection.pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            return AFTER_AN_ERROR
        if status != TransactionStatus.INTRANS or self._transaction() != self._number:
            return ENDED_BY_TASK
        return ""

    def commit(self) -> None:
        self.connection.refuse = None
        try:
            self.connection.commit()
        except psycopg.Error as error:
            if not self.connection.broken:
                raise
            line = Line(self.connection.server)
            try:
                if not line.landed(self._number, error):
                    raise
            finally:
                line.close()

    def in_use(self, error: BaseException | None) -> bool:
        return False

    def let_go(self) -> None:
        """Nothing was kept from anybody."""

    def interrupt(self) -> None:
        self._cancel()
        with self._ending, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _cancel(self) -> None:
        """Let a statement that waits for rows or computes give up at once; the server sees a closed socket later."""
        if not self.connection.closed and self.connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=CANCEL_S)

    def close(self) -> None:
        if self.connection.lock.locked():  # by a thread of the task's own
            self.interrupt()
        self.connection.refuse = None
        with self.connection.lock, suppress(psycopg.Error):
            self.connection.close()
        with self._ending:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
