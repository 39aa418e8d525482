"""Connections of stores to the tests' own server are kept when they are closed, and given to the next store.

A connection costs the server a process, and that process costs more than all that most tests have it do. What is kept
is the line and the process: each store gets a connection object of its own, sets it up as ever, and finds a session in
which nothing was said before. Rooms in which connections are the point get new ones: see ``conftest.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from select import select
from threading import Lock
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from stepwell.backend.postgres_lines import Server

MOST = 12


class Warm:
    """Idle lines to one server, each with nothing left of whoever had it."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._lock, self._pid = Lock(), os.getpid()
        self.dsn = ""  # of the server whose lines are kept, while they are
        self._ended = pq.PGconn.connect_start(b"host=/nowhere")
        self._ended.finish()
        self.again = 0

    def watch(self) -> Callable[[], None]:
        """Begin; return what ends it."""
        opens = Server.open

        def opened(server: Server, kind: Any, *, autocommit: bool = False) -> Any:
            if os.getpid() != self._pid or not self.dsn or not _is_at(server, self.dsn):
                return opens(server, kind, autocommit=autocommit)
            if (line := self._take()) is None:
                made = opens(server, kind, autocommit=autocommit)
            else:
                made = kind(line)
                made._autocommit = autocommit
            made.close = partial(self._close, made)
            return made

        Server.open = opened  # type: ignore[method-assign, assignment]
        return partial(setattr, Server, "open", opens)

    def _take(self) -> Any:
        with self._lock:
            while self._idle:
                if _is_quiet(line := self._idle.pop()):
                    self.again += 1
                    return line
                line.finish()
        return None

    def _close(self, connection: psycopg.Connection[Any]) -> None:
        line = connection.pgconn
        if os.getpid() == self._pid and not connection.closed and _forgets(line):
            with self._lock:
                if len(self._idle) < MOST:
                    self._idle.append(line)
                    connection.pgconn = self._ended
        del connection.close  # type: ignore[method-assign]
        connection._closed = True
        connection.pgconn.finish()

    def close(self) -> None:
        if os.getpid() == self._pid:
            for line in self._idle:
                line.finish()


def _is_at(server: Server, dsn: str) -> bool:
    return server.place.conninfo({}, {}) == make_conninfo("", **conninfo_to_dict(dsn))


def _is_quiet(line: Any) -> bool:
    """Return whether nothing was said on a line since it was left, such as that the server ends it."""
    return line.status == pq.ConnStatus.OK and not select([line.socket], [], [], 0)[0]


def _forgets(line: Any) -> bool:
    """Let the server forget a session, if it is at rest."""
    if line.status != pq.ConnStatus.OK or line.transaction_status != pq.TransactionStatus.IDLE:
        return False
    if line.exec_(b"DISCARD ALL").status != pq.ExecStatus.COMMAND_OK:
        return False
    while line.notifies() is not None:
        pass
    return True
