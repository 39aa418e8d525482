"""A task's own transaction in the store's database: its effects and the step's outcome land together or not at all.

Whoever ran the body also writes its outcome, on the user's connection: the state is read inside that transaction,
advanced by the one event, and committed with the seq checked as ever. So nobody waits for anybody who holds the write
lock. The drive hears that the outcome is stored and reads the instance anew, as it does after any other's write.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from stepwell.backend.base import Change, Entry, Loaded, Rest
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import BackendUnavailable, LeaseLost, TransactionTimeout, UsageError

from .invoke import Job, Outcome, failed
from .live import Live, frontier_of

if TYPE_CHECKING:
    from types import TracebackType

    import apsw

LIMIT_US: Final = 5_000_000  # nobody else can write to the file meanwhile
IMAGE_AFTER: Final = 64  # entries; with more to read, the next such step would pay for all of them again


class Transaction:
    """One attempt's transaction. It is opened by ``with``, and ended by the runner when the task has returned."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._connection: apsw.Connection | None = None
        self._watch: threading.Timer | None = None
        self._used = self._late = False
        self._broken: BaseException | None = None
        self._limit_us = min(LIMIT_US, job.facts.room.lease_us // 2)
        _check_allowed(job)

    def __enter__(self) -> apsw.Connection:
        if self._used:
            raise UsageError(f"{self._job.path} has opened its transaction already; an attempt has one")
        self._used = True
        try:
            connection = self._begun()
        except BaseException as error:
            self._broken = error
            self.roll_back()
            raise
        self._watch = threading.Timer(self._limit_us / 1e6, self._expire)
        self._watch.daemon = True
        self._watch.start()
        return connection

    def _begun(self) -> apsw.Connection:
        """Open a connection, take the write lock, and hold against the store what could not be committed in the end."""
        backend: Any = self._job.facts.room.backend
        connection: apsw.Connection = backend.connect()
        self._connection = connection
        try:
            connection.execute("BEGIN IMMEDIATE")
        except Exception as error:
            raise BackendUnavailable(f"the transaction of {self._job.path} could not begin: {error}") from error
        backend.within(connection).header(self._job.facts.instance_id)  # refuses what could not be committed in the end
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Leaving the block commits nothing; an error undoes what was written in it."""
        if error is not None:
            self.roll_back()
            if self._late:
                raise self._timeout() from error

    @property
    def open(self) -> bool:
        """Whether it holds the database's write lock."""
        return self._connection is not None

    def settle(self, outcome: Outcome) -> Outcome:
        """Commit what the task wrote together with its outcome, or undo it. Returns how the attempt ended.

        Raises:
            LeaseLost: another session has taken the instance over.
            BackendError: the store failed; nothing was written.
        """
        if self._watch is not None:
            self._watch.cancel()
        if self._late:
            return failed(self._job, self._timeout())
        connection = self._connection
        try:
            if connection is not None and outcome.error is None:
                outcome.stored = True  # or the step awaits it no longer; the journal says which
                if self._written(connection, outcome):
                    self._commit(connection)
        finally:
            self.roll_back()
        return outcome

    def _commit(self, connection: apsw.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except Exception as error:
            raise BackendUnavailable(f"the transaction of {self._job.path} could not be committed: {error}") from error

    def undo(self, error: BaseException) -> None:
        """Undo what a task wrote before it failed. Raises the error again if it was the store that failed it."""
        self.roll_back()
        if error is self._broken:
            raise error

    def _written(self, connection: apsw.Connection, outcome: Outcome) -> bool:
        """Write the outcome if the step still awaits it; else (it has timed out, the run was replaced) nothing."""
        live, job = self._job.facts, self._job
        room = live.room
        assert room.backend is not None
        store = room.backend.within(connection)
        loaded = store.load(live.instance_id)
        if loaded is None or loaded.header.instance != live.instance:
            return False
        state, now = frontier_of(live.plan, loaded), room.clock.now_us()
        facts = advance(live.plan, state, e.Succeeded(job.node, job.turns, job.number, outcome.tag), now)
        if not facts:
            return False
        entry = Entry(state.seq, f.encode(facts), outcome.output, now, job.took_us)
        change = Change(live.instance, loaded.header.seq, [entry], (), _rest(live, loaded, state, now))
        session = room.session()
        try:
            return store.commit(session, [change])[0] in ("done", "mail")
        except LeaseLost:
            room.lost(session)
            raise

    def roll_back(self) -> None:
        """Undo what is not committed, and let the connection go."""
        if self._watch is not None:
            self._watch.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(True)

    def _expire(self) -> None:
        """The limit has passed: end it from outside. What runs is interrupted, what follows finds it closed."""
        connection, self._late = self._connection, True
        while connection is not None and self._connection is connection:
            try:
                connection.interrupt()
                connection.close(True)
            except Exception:  # noqa: BLE001  # the body is inside a call on it just now: interrupted, it comes out
                threading.Event().wait(0.001)
            else:
                return

    def _timeout(self) -> TransactionTimeout:
        path = self._job.path
        return TransactionTimeout(
            f"the transaction of {path} was open for longer than {self._limit_us / 1e6:g} s and was undone, as nobody "
            "else can write to the database meanwhile; do slow work before it is opened",
            path,
        )


def _rest(live: Live, loaded: Loaded, state: Frontier, now: int) -> Rest | None:
    """Write the state whole if the run has ended, or where reading it from its entries has become long."""
    if not state.ended and len(loaded.entries) < IMAGE_AFTER:
        return None
    return Rest(state.status(now), to_image(state), state.next_due_us(), bool(state.ended), state.result)


def _check_allowed(job: Job) -> None:
    """Refuse where it could not keep what it promises. Raises UsageError."""
    room, body, name = job.facts.room, job.body, job.body.name
    if room.backend is None:
        raise UsageError(f"task {name!r} asks for transaction(), but an InProcessRunner stores nothing to join")
    if not room.backend.capabilities.user_transactions:
        raise UsageError(
            f"task {name!r} asks for transaction(), which a {type(room.backend).__name__} does not have; "
            "use a SqliteBackend, or give outside calls task_context().idempotency_key"
        )
    if body.is_async:
        raise UsageError(
            f"task {name!r} is async, and the transaction's connection would block its event loop; make it a plain "
            "def, which runs in a thread"
        )
    if body.at_most_once:
        raise UsageError(f"task {name!r} has delivery='at_most_once'; with transaction() its effect is exact without")
