"""A task's transaction in SQLite: it has the write lock of the file from its beginning."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import apsw

from .opened import ENDED_BY_TASK
from .sqlite_connection import Connection


class SqliteOpened:
    """See :class:`.opened.Opened`."""

    excludes = True
    failures: tuple[type[Exception], ...] = (apsw.Error,)

    def __init__(self, connection: apsw.Connection, backend: Any) -> None:
        self.connection = connection
        self._backend = backend
        self._thread = 0

    def begin(self, idle_us: int) -> None:
        self._execute("BEGIN IMMEDIATE")

    def guard(self, refuse: Callable[[], Exception]) -> None:
        def hook() -> bool:
            raise refuse()

        self.connection.set_commit_hook(hook, id=self)
        self._thread = threading.get_ident()
        self._backend.keep_apart(self._thread, apart=True)

    def unusable(self) -> str:
        return "" if self.connection.in_transaction else ENDED_BY_TASK

    def commit(self) -> None:
        self.connection.set_commit_hook(None, id=self)
        self._execute("COMMIT")

    def in_use(self, error: BaseException | None) -> bool:
        # Nobody else holds the write lock, so it is a statement of the task's.
        return isinstance(error, apsw.BusyError | apsw.ThreadingViolationError)

    def let_go(self) -> None:
        if self._thread:
            self._backend.keep_apart(self._thread, apart=False)

    def interrupt(self) -> None:
        self.close()  # whatever the task's thread does: nobody else can write before

    def close(self) -> None:
        while True:
            try:
                self.connection.interrupt()
                self.connection.close(True)
            except apsw.ConnectionClosedError:
                return
            except apsw.ThreadingViolationError:  # interrupted, that call comes out
                threading.Event().wait(0.001)
            else:
                return

    def _execute(self, statement: str) -> None:
        cast("Connection", self.connection).execute(statement)
