"""How other processes' writes are noticed: a number that changes, and a thread that listens.

PostgreSQL can tell connections of each other's writes (NOTIFY, LISTEN). It is only a hint here: the payload is
constant, the same few words are sent at most every few milliseconds, never inside a transaction that writes, and
whoever waits looks once a second anyway, which is also what changes the number when nothing was heard. So a lost
notification costs a second, and a pooler without LISTEN nothing more. Who listens also tells, in the same thread: a
write waits for nobody's being told of it.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from select import POLLIN, poll
from typing import Final

import psycopg
from psycopg.pq.abc import PGconn

from stepwell.errors import StepwellError

from .postgres_lines import PAUSE_S, BoundedConnection, Line, Server

SELF_S: Final = 1.0
APART_S: Final = 0.005
HEALTH_S: Final = 30.0
ANSWER_S: Final = 5.0
READY_S: Final = 1.0  # so long the first to ask waits, that no word of what follows is missed


class Hints:
    """The number that :meth:`PostgresBackend.hint` gives, and who is woken when it changes."""

    def __init__(self, server: Server, line: Line) -> None:
        self._server, self._line = server, line
        self._lock = threading.Lock()
        self._number, self._changed_s = 0, time.monotonic()
        self._watchers: dict[int, Callable[[], None]] = {}
        self._keys = count()
        self._listener: Listener | None = None
        self._closed = False
        self._sent_s = 0.0
        self._later: threading.Timer | None = None

    def hint(self) -> int:
        self._server.check()
        self._listen()
        if time.monotonic() - self._changed_s >= SELF_S:
            self.changed()
        return self._number

    def changed(self) -> None:
        with self._lock:
            self._number, self._changed_s = self._number + 1, time.monotonic()

    def heard(self) -> None:
        """Take note of somebody's write, and wake whoever waits for one."""
        self.changed()
        for wake in list(self._watchers.values()):
            wake()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        self._server.check()
        if not self._listen():
            return None
        with self._lock:
            key = next(self._keys)
            self._watchers = {**self._watchers, key: wake}

        def end() -> None:
            with self._lock:
                self._watchers = {each: other for each, other in self._watchers.items() if each != key}

        return end

    def _listen(self) -> bool:
        """Begin to listen if that is not done yet; return whether it can be done."""
        if self._server.pooled:
            return False
        if self._listener is None:
            with self._lock:
                if self._closed:  # whoever asks while it is being closed
                    return False
                if self._listener is None:
                    self._listener = Listener(self._server, self.heard)
        return True

    def wrote(self) -> None:
        """Take note of a write that somebody may wait for, and let other processes know soon."""
        self.heard()
        if (listener := self._listener) is not None:
            listener.tell()
            return
        with self._lock:
            if self._later is not None:
                return
            wait_s = self._sent_s + APART_S - time.monotonic()
            if wait_s > 0:
                self._later = threading.Timer(wait_s, self._send_later)
                self._later.daemon = True
                self._later.start()
                return
        self._send()

    def _send_later(self) -> None:
        with self._lock:
            self._later = None
        if not self._server.closed and self._server.is_ours:
            self._send()

    def _send(self) -> None:
        self._sent_s = time.monotonic()
        with suppress(StepwellError):  # it is a hint, and what it is about has landed
            self._line.once(lambda db: db.rows("SELECT pg_notify($1, '')", self._server.channel))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            later, self._later = self._later, None
            listener, self._listener = self._listener, None
        if later is not None:
            later.cancel()
            if self._server.is_ours:
                self._send()
        if listener is not None:
            listener.close()
            if listener.untold and self._server.is_ours:
                self._send()


class Listener:
    """A thread with a connection that listens, made again whenever it is lost or has stopped to answer.

    It also tells others what this backend has written, so that whoever writes does not wait for that.

    Attributes:
        untold: whether there is something to tell that was not sent yet.
    """

    def __init__(self, server: Server, heard: Callable[[], None]) -> None:
        self._server, self._channel, self._heard = server, server.channel, heard
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._closing = self.untold = self._telling = False
        self._told_s = 0.0
        self._thread = threading.Thread(target=self._run, name="stepwell-listen", daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait(READY_S)

    def tell(self) -> None:
        """Tell others soon; what is told within a few milliseconds is told once."""
        if not self.untold:
            self.untold = True
            self._wake()

    def close(self) -> None:
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread and self._server.is_ours:
            self._thread.join(ANSWER_S)
        self._theirs.close()

    def _wake(self) -> None:
        with suppress(OSError):
            self._theirs.send(b"x")

    def _run(self) -> None:
        tries, missed = 0, False
        while not self._closing:
            try:
                with closing(self._server.connect()) as connection:
                    connection.execute(f"LISTEN {self._channel}".encode())
                    self._ready.set()
                    if missed:
                        self._heard()  # something may have been said meanwhile
                    tries = 0
                    self._listen(connection)
            except (psycopg.Error, OSError, StepwellError):
                tries += 1
            missed = True
            self.untold, self._telling = self.untold or self._telling, False  # it may not have come through
            self._ready.set()
            self._drain()
            if not self._closing:
                _readable(random.uniform(0.3, 1) * PAUSE_S[min(tries, len(PAUSE_S) - 1)], self._ours.fileno())  # noqa: S311
        self._ours.close()

    def _listen(self, connection: BoundedConnection) -> None:
        """Return when the connection is lost; it is asked for a sign of life from time to time."""
        pgconn = connection.pgconn
        asked_s, heard_s = 0.0, time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if asked_s and now - asked_s > ANSWER_S:
                return
            if not asked_s and (query := self._query(now, heard_s)):
                pgconn.send_query(query)
                asked_s = now
            ready = _readable(self._patience_s(asked_s, now), pgconn.socket, self._ours.fileno())
            self._drain()
            if pgconn.socket not in ready:
                continue
            heard_s = time.monotonic()
            pgconn.consume_input()
            if asked_s and has_answered(pgconn):
                asked_s, self._telling = 0.0, False
            if _notified(pgconn):
                self._heard()

    def _query(self, now: float, heard_s: float) -> bytes:
        """Return what is to be said to the server now, if anything."""
        if self.untold and now - self._told_s >= APART_S:
            self._telling, self._told_s = True, now
            self.untold = False  # before it is sent: what is written from now on is told again
            return f"NOTIFY {self._channel}".encode()
        return b"SELECT 1" if now - heard_s > HEALTH_S else b""

    def _patience_s(self, asked_s: float, now: float) -> float:
        if asked_s:
            return ANSWER_S
        return max(self._told_s + APART_S - now, 0.0) if self.untold else HEALTH_S

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._ours.recv(64):
                continue


def _readable(seconds: float, *files: int) -> set[int]:
    """Wait until there is something to read, at most so long. A file's number may be any, which select() refuses."""
    waiting = poll()
    for each in files:
        waiting.register(each, POLLIN)
    return {each for each, _ in waiting.poll(seconds * 1_000)}


def has_answered(pgconn: PGconn) -> bool:
    """Take in what has come of an answer, and say whether that was all of it.

    A result that is not there is not asked for: libpq would wait for it without a limit, and with it, as psycopg keeps
    the interpreter's lock meanwhile, everything in this process.
    """
    while not pgconn.is_busy():
        if pgconn.get_result() is None:
            return True
    return False


def _notified(pgconn: PGconn) -> bool:
    """Whether others have told something; what this very connection has told comes back to it, too."""
    found = False
    while (told := pgconn.notifies()) is not None:
        found = found or told.be_pid != pgconn.backend_pid
    return found
