"""A task's own transaction in the store's database: its effects and the step's outcome land together or not at all.

Whoever ran the body also writes its outcome, on the user's connection: the state is read inside that transaction,
advanced by the one event, and committed with the seq checked as ever. So nobody waits for anybody who holds the write
lock. The drive hears that the outcome is stored and reads the instance anew, as it does after any other's write.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, cast

from stepwell.backend.base import Change, Entry, Header, Loaded, Rest
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import BackendError, BackendUnavailable, LeaseLost, OptionError, TransactionTimeout, UsageError

from .invoke import Job, Outcome, failed, keep
from .live import Live, frontier_of

if TYPE_CHECKING:
    from types import TracebackType

    import apsw

    from stepwell.backend.sqlite_connection import Connection

LIMIT_US: Final = 5_000_000  # nobody else can write to the file meanwhile
IMAGE_AFTER: Final = 64  # entries; with more to read, the next such step would pay for all of them again


class Transaction:
    """One attempt's transaction. It is opened by ``with``, and ended by the runner when the task has returned.

    Whoever takes the connection out of it (the runner, an error, the watch) ends it, and nobody else does.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._connection: apsw.Connection | None = None
        self._watch: threading.Timer | None = None
        self._lock = threading.Lock()
        self._used = self._late = False
        self._broken: BaseException | None = None
        self._limit_us = min(LIMIT_US, job.facts.room.lease_us // 2)
        self._backend: Any = job.facts.room.backend
        self._thread = threading.get_ident()
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
        self._session = self._job.facts.room.session()  # it may have to be opened, which is a write
        connection: apsw.Connection = self._backend.connect()
        self._connection = connection
        try:
            _execute(connection, "BEGIN IMMEDIATE")
        except Exception as error:
            raise BackendUnavailable(f"the transaction of {self._job.path} could not begin: {error}") from error
        self._backend.within(connection).header(self._job.facts.instance_id)  # refuses what could not be committed
        connection.set_commit_hook(self._refuse_commit, id=self)
        self._thread = threading.get_ident()
        self._backend.keep_apart(self._thread, apart=True)
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Leaving the block commits nothing; an error undoes what was written in it."""
        if error is not None:
            self.roll_back()
            if self._late and isinstance(error, Exception):
                raise self._timeout() from error

    @property
    def open(self) -> bool:
        """Whether it holds the database's write lock."""
        return self._connection is not None

    def settle(self, value: object) -> Outcome:
        """Commit what the task wrote together with its outcome, or undo it. Returns how the attempt ended.

        Raises:
            LeaseLost: another session has taken the instance over.
            BackendError: the store failed; nothing was written.
        """
        job, connection = self._job, None
        try:
            outcome = keep(job, value)
            connection = self._taken()
            if self._late:
                return failed(job, self._timeout())
            if connection is None or outcome.error is not None:
                return outcome
            if misuse := self._commit_with(connection, outcome):
                return failed(job, misuse)
            outcome.stored = True  # or the step awaits it no longer; the journal says which
            return outcome
        except LeaseLost:
            if connection is not None:
                _close(connection)
            job.facts.room.lost(self._session)  # not before, as that may wait for who waits to write
            raise
        finally:
            self.roll_back()
            if connection is not None:
                _close(connection)

    def _commit_with(self, connection: apsw.Connection, outcome: Outcome) -> UsageError | None:
        """Commit rows and outcome, or say what the task has done to the connection that makes it impossible."""
        import apsw

        path = self._job.path
        try:
            if not connection.in_transaction:
                return self._ended_by_task()
            if self._written(connection, outcome):
                connection.set_commit_hook(None, id=self)
                self._commit(connection)
        except (OptionError, apsw.Error) as error:
            return UsageError(f"{path} left the connection of its transaction unusable: {error}")
        except BackendError as error:
            if isinstance(error.__cause__, (apsw.BusyError, apsw.ThreadingViolationError)):
                # Nobody else holds the write lock, so it is a statement of the task's that is not at its end.
                return UsageError(f"{path} still uses its transaction: {error.__cause__}; end that first")
            raise
        return None

    def _ended_by_task(self) -> UsageError:
        return UsageError(f"{self._job.path} has ended its transaction; leave COMMIT and ROLLBACK to the runner")

    def _refuse_commit(self) -> bool:
        raise self._ended_by_task()

    def _commit(self, connection: apsw.Connection) -> None:
        try:
            _execute(connection, "COMMIT")
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
        room, store = live.room, self._backend.within(connection)
        loaded = store.load(live.instance_id)
        if loaded is None or not self._awaited(loaded.header):
            return False
        state, now = frontier_of(live.plan, loaded), room.clock.now_us()
        facts = advance(live.plan, state, e.Succeeded(job.node, job.turns, job.number, outcome.tag), now)
        if not facts:
            return False
        entry = Entry(state.seq, f.encode(facts), outcome.output, now, job.took_us)
        change = Change(live.instance, loaded.header.seq, [entry], (), _rest(live, loaded, state, now))
        return store.commit(self._session, [change])[0] in ("done", "mail")

    def _awaited(self, header: Header) -> bool:
        """Whether this run is still worked on here: a commit would take an instance that was given back."""
        live = self._job.facts
        if (header.instance, header.fingerprint) != (live.instance, live.plan.fingerprint):
            return False
        return header.session == self._session.id or live.room.holds(live.instance_id, live.instance)

    def roll_back(self) -> None:
        """Undo what is not committed, and let the connection go."""
        if (connection := self._taken()) is not None:
            _close(connection)

    def _taken(self, late: bool = False) -> apsw.Connection | None:
        """Return the connection to whoever asks first, who ends it."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._late = self._late or (late and connection is not None)
        if connection is not None:
            self._backend.keep_apart(self._thread, apart=False)
        if self._watch is not None:
            self._watch.cancel()
        return connection

    def _expire(self) -> None:
        """The limit has passed: end it from outside. What runs is interrupted, what follows finds it closed."""
        if (connection := self._taken(late=True)) is not None:
            _close(connection)

    def _timeout(self) -> TransactionTimeout:
        path = self._job.path
        return TransactionTimeout(
            f"the transaction of {path} was open for longer than {self._limit_us / 1e6:g} s and was undone, as nobody "
            "else can write to the database meanwhile; do slow work before it is opened",
            path,
        )


def _execute(connection: apsw.Connection, statement: str) -> None:
    cast("Connection", connection).execute(statement)


def _close(connection: apsw.Connection) -> None:
    """Close a connection, and with it what it has not committed, even if another thread is inside a call on it."""
    import apsw

    while True:
        try:
            connection.interrupt()
            connection.close(True)
        except apsw.ConnectionClosedError:
            return
        except apsw.ThreadingViolationError:  # interrupted, that call comes out
            threading.Event().wait(0.001)
        else:
            return


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
