"""A task's own transaction in the store's database: its effects and the step's outcome land together or not at all.

Whoever ran the body also writes its outcome, on the user's connection: the state is read inside that transaction,
advanced by the one event, and committed with the seq checked as ever. So nobody waits for anybody who holds the write
lock; where there is none, what another branch has written meanwhile is read and the outcome decided once more. The
drive hears that the outcome is stored and reads the instance anew, as it does after any other's write.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, get_origin

from stepwell.backend.base import Change, Entry, Header, Joined, Loaded, Rest
from stepwell.backend.opened import ENDED_BY_TASK, opened, public_name
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import BackendError, BackendUnavailable, LeaseLost, OptionError, TransactionTimeout, UsageError

from .invoke import Job, Outcome, failed, keep
from .live import Live, frontier_of

if TYPE_CHECKING:
    from types import TracebackType

    from stepwell.backend.opened import Opened

LIMIT_US: Final = 5_000_000  # where nobody else can write meanwhile
IMAGE_AFTER: Final = 64  # entries; with more to read, the next such step would pay for all of them again


class Transaction:
    """One attempt's transaction. It is opened by ``with``, and ended by the runner when the task has returned.

    Whoever takes the connection out of it (the runner, an error, the watch) ends it, and nobody else does. What the
    watch has ended is closed by the thread that ran the task, which may still be inside a call on it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._opened: Opened | None = None
        self._interrupted: Opened | None = None
        self._watch: threading.Timer | None = None
        self._lock = threading.Lock()
        self._used = self._late = False
        self._broken: BaseException | None = None
        self._kind: type | None = None
        self._limit_us = job.facts.room.lease_us // 2
        self._excludes = False
        self._backend: Any = job.facts.room.backend
        _check_allowed(job)

    def giving(self, kind: object) -> Transaction:
        """Return this, to be entered for a connection of a class; ``None``: of whichever the store gives."""
        self._kind = None if kind is None else _class_of(kind, self._job.path)
        return self

    def __enter__(self) -> object:
        if self._used:
            raise UsageError(f"{self._job.path} has opened its transaction already; an attempt has one")
        self._used = True
        try:
            connection = self._begun()
        except BaseException as error:
            self._broken = error
            self.roll_back()
            raise
        self._check_kind(connection)
        self._watch = threading.Timer(self._limit_us / 1e6, self._expire)
        self._watch.daemon = True
        self._watch.start()
        return connection

    def _begun(self) -> object:
        """Open a connection, begin, and hold against the store what could not be committed in the end."""
        self._session = self._job.facts.room.session()  # it may have to be opened, which is a write
        transaction = self._opened = opened(self._backend)
        if transaction.excludes:
            self._excludes, self._limit_us = True, min(LIMIT_US, self._limit_us)
        try:
            transaction.begin(self._job.facts.room.lease_us)
        except Exception as error:
            raise BackendUnavailable(f"the transaction of {self._job.path} could not begin: {error}") from error
        # This refuses what could not be committed.
        self._backend.within(transaction.connection).header(self._job.facts.instance_id)
        transaction.guard(lambda: self._misused(ENDED_BY_TASK))
        return transaction.connection

    def _check_kind(self, connection: object) -> None:
        """Refuse a task that is written for another database, before it can write."""
        if self._kind is None or isinstance(connection, self._kind):
            return
        self.roll_back()
        wanted, given = public_name(self._kind), public_name(type(connection))
        raise UsageError(
            f"{self._job.path} asks for transaction({wanted}), and its store, a {type(self._backend).__name__}, "
            f"gives {given}; write transaction({given}), or run it on a store that gives the other"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Leaving the block commits nothing; an error undoes what was written in it."""
        if error is not None:
            self.roll_back()
            if self._late and isinstance(error, Exception):
                raise self._timeout() from error

    @property
    def open(self) -> bool:
        """Whether it has begun and not ended yet."""
        return self._opened is not None

    def settle(self, value: object) -> Outcome:
        """Commit what the task wrote together with its outcome, or undo it. Returns how the attempt ended.

        Raises:
            LeaseLost: another session has taken the instance over.
            BackendError: the store failed; nothing was written.
        """
        job, transaction = self._job, None
        try:
            outcome = keep(job, value)
            transaction = self._taken()
            if self._late:
                return failed(job, self._timeout())
            if transaction is None or outcome.error is not None:
                return outcome
            if misuse := self._commit_with(transaction, outcome):
                return failed(job, misuse)
            outcome.stored = True  # or the step awaits it no longer; the journal says which
            return outcome
        except LeaseLost:
            if transaction is not None:
                transaction.close()
            job.facts.room.lost(self._session)  # not before, as that may wait for who waits to write
            raise
        finally:
            self.roll_back()
            if transaction is not None:
                transaction.close()

    def _commit_with(self, transaction: Opened, outcome: Outcome) -> UsageError | None:
        """Commit rows and outcome, or say what the task has done to the connection that makes it impossible."""
        path = self._job.path
        try:
            if misuse := transaction.unusable():
                return self._misused(misuse)
            if self._written(transaction, outcome):
                self._commit(transaction)
        except BackendError as error:
            if transaction.in_use(error.__cause__):
                return UsageError(f"{path} still uses its transaction: {error.__cause__}; end that first")
            raise
        except Exception as error:
            if not isinstance(error, (OptionError, *transaction.failures)):
                raise
            return UsageError(f"{path} left the connection of its transaction unusable: {error}")
        return None

    def _misused(self, how: str) -> UsageError:
        return UsageError(f"{self._job.path} {how}")

    def _commit(self, transaction: Opened) -> None:
        try:
            transaction.commit()
        except Exception as error:
            raise BackendUnavailable(f"the transaction of {self._job.path} could not be committed: {error}") from error

    def undo(self, error: BaseException) -> None:
        """Undo what a task wrote before it failed. Raises the error again if it was the store that failed it."""
        self.roll_back()
        if error is self._broken:
            raise error

    def _written(self, transaction: Opened, outcome: Outcome) -> bool:
        """Write the outcome if the step still awaits it; else (it has timed out, the run was replaced) nothing.

        Where a transaction excludes nobody, another branch may be recorded after the state was read. The body has run
        and its rows are here, so the outcome is decided anew and the body is not; it may take as many turns as others
        write entries.
        """
        store = self._backend.within(transaction.connection)
        loaded = store.load(self._job.facts.instance_id)
        while loaded is not None and self._awaited(loaded.header):
            if self._written_after(loaded, store, outcome):
                return True
            before, loaded = loaded, store.load(self._job.facts.instance_id)
            if loaded is None or loaded.header.seq == before.header.seq:
                return False  # it is refused for another reason, or all that is read is as old as the transaction
        return False

    def _written_after(self, loaded: Loaded, store: Joined, outcome: Outcome) -> bool:
        """Write the outcome as the next entry of this state."""
        live, job = self._job.facts, self._job
        state, now = frontier_of(live.plan, loaded), live.room.clock.now_us()
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
        for transaction in (self._taken(), self._interrupted):
            if transaction is not None:
                transaction.close()
        self._interrupted = None

    def _taken(self, late: bool = False) -> Opened | None:
        """Return the transaction to whoever asks first, who ends it."""
        with self._lock:
            transaction, self._opened = self._opened, None
            self._interrupted = transaction if late else self._interrupted
            self._late = self._late or (late and transaction is not None)
        if transaction is not None:
            transaction.let_go()
        if self._watch is not None:
            self._watch.cancel()
        return transaction

    def _expire(self) -> None:
        """The limit has passed: end it from outside. What runs is interrupted, what follows finds it closed."""
        if (transaction := self._taken(late=True)) is not None:
            transaction.interrupt()

    def _timeout(self) -> TransactionTimeout:
        path = self._job.path
        why = "nobody else can write to the database meanwhile" if self._excludes else "its lease may run out"
        return TransactionTimeout(
            f"the transaction of {path} was open for longer than {self._limit_us / 1e6:g} s and was undone, as {why}; "
            "do slow work before it is opened",
            path,
        )


def _class_of(kind: object, path: str) -> type:
    """Return the class that is meant, also by ``psycopg.Connection[...]``."""
    found = get_origin(kind) or kind
    if isinstance(found, type):
        return found
    raise UsageError(
        f"{path}: transaction() takes the class of a connection, psycopg.Connection or apsw.Connection, "
        f"not a {type(found).__name__}"
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
        raise UsageError(
            f"task {name!r} asks for transaction(), but an InProcessRunner stores nothing to join; "
            "run it with CheckpointingRunner(SqliteBackend('file.db'))"
        )
    if not room.backend.capabilities.user_transactions:
        raise UsageError(
            f"task {name!r} asks for transaction(), which a {type(room.backend).__name__} does not have; "
            "use a SqliteBackend or PostgresBackend, or give outside calls task_context().idempotency_key"
        )
    if body.is_async:
        raise UsageError(
            f"task {name!r} is async, and the transaction's connection would block its event loop; make it a plain "
            "def, which runs in a thread"
        )
    if body.at_most_once:
        raise UsageError(f"task {name!r} has delivery='at_most_once'; with transaction() its effect is exact without")
