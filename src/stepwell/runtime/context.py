"""What a task may ask about itself while it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from stepwell.errors import NoTaskContext
from stepwell.timing import moment

if TYPE_CHECKING:
    import logging
    from contextlib import AbstractContextManager

    import apsw
    import psycopg

    from stepwell.flow.plan import Turns

D = TypeVar("D")


class Attempt(Protocol):
    """The attempt that a context describes."""

    node: int
    turns: Turns
    number: int
    deadline_us: int

    @property
    def facts(self) -> InstanceFacts: ...

    @property
    def path(self) -> str: ...

    @property
    def known_as(self) -> str:
        """The path that keys are made of: the one under which the step was first entered."""
        ...

    def cancelled(self) -> bool: ...

    def cursor(self) -> object: ...

    def keep_cursor(self, cursor: object) -> None: ...

    def transaction(self, kind: object) -> AbstractContextManager[object]: ...

    def check_alive(self) -> None: ...


class InstanceFacts(Protocol):
    """What is the same for every step of a run."""

    instance_id: str
    run: int
    workflow: str
    backend_id: str
    metadata: Mapping[str, object]


class Cell:
    """One slot in which bodies run one after the other. The context variable is set once; a body just fills it."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: Attempt | None = None) -> None:
        self.attempt = attempt


CURRENT: Final[ContextVar[Cell | None]] = ContextVar("stepwell_task", default=None)


class _Nothing:
    def __repr__(self) -> str:
        return "<nothing>"


NOTHING: Final = _Nothing()


class TaskContext:
    """The running attempt, seen from inside. Get it with :func:`task_context`.

    Example:
        >>> @task
        ... def charge(order: Order) -> Receipt:
        ...     return gateway.charge(order, key=task_context().idempotency_key)
    """

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def instance_id(self) -> str:
        """The id of the instance this step belongs to."""
        return self._attempt.facts.instance_id

    @property
    def run(self) -> int:
        """Which life of the instance id this is, from 1."""
        return self._attempt.facts.run

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._attempt.facts.workflow

    @property
    def metadata(self) -> Mapping[str, object]:
        """The workflow's metadata."""
        return self._attempt.facts.metadata

    @property
    def path(self) -> str:
        """The step's address by names, ``refine[3]/draft``."""
        return self._attempt.path

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._attempt.number

    @property
    def idempotency_key(self) -> str:
        """The same 32 hex digits for every attempt of this step, others for every other. Give it to outside calls."""
        facts = self._attempt.facts
        known_as = self._attempt.known_as
        return idempotency_key(facts.backend_id, facts.instance_id, facts.run, facts.workflow, known_as)

    @property
    def deadline(self) -> datetime | None:
        """When this attempt's timeout ends, in UTC; ``None`` without one."""
        return moment(self._attempt.deadline_us) if self._attempt.deadline_us else None

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry ``instance``, ``run``, ``workflow``, ``path`` and ``attempt``.

        Its name is ``stepwell.task.`` and the workflow's. What a call gives as ``extra`` is carried too.
        """
        import logging

        from stepwell.observe.logs import StepLogger, extras

        found = extras(self._attempt.facts, self.path, self.attempt)
        return StepLogger(logging.getLogger(f"stepwell.task.{self.workflow}"), found)

    def raise_if_cancelled(self) -> None:
        """Raise :class:`~stepwell.errors.StepCancelled` once the instance is cancelled or the attempt has timed out."""
        self._attempt.check_alive()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`raise_if_cancelled` would raise."""
        return self._attempt.cancelled()

    def heartbeat(self, cursor: object = NOTHING) -> None:
        """Ask whether to go on, and keep ``cursor`` (any storable value), if one is given, for later attempts.

        In the caller's own thread a cursor is stored at once, elsewhere with the next commit.

        Raises:
            StepCancelled: as :meth:`raise_if_cancelled`.
            EncodeError: the cursor cannot be stored.
        """
        if cursor is not NOTHING:
            self._attempt.keep_cursor(cursor)
        self._attempt.check_alive()

    @overload
    def transaction(self) -> AbstractContextManager[apsw.Connection]: ...
    @overload
    def transaction(self, kind: type[apsw.Connection]) -> AbstractContextManager[apsw.Connection]: ...
    @overload
    def transaction(self, kind: type[psycopg.Connection[Any]]) -> AbstractContextManager[psycopg.Connection]: ...
    def transaction(self, kind: object = None) -> AbstractContextManager[object]:
        """Open a transaction in the store's own database: what is written in it commits with this step, or not at all.

        ``with`` gives a connection that has begun: an ``apsw.Connection`` of a SqliteBackend, a ``psycopg.Connection``
        of a PostgresBackend. Leaving the block commits nothing; when the task returns, its result is recorded on this
        connection and both commit. An error, a cancelled or lost step undo both. So an effect in the same database
        happens exactly once, whatever crashes.

        An attempt has one, in a plain ``def`` that runs in a thread or inline. It may be open for half of the lease.
        Nobody else can write to an SQLite file meanwhile, so there it is 5 s at most, and whatever else would use the
        store in this thread, such as a signal or another run, is refused with UsageError. COMMIT and ROLLBACK are the
        runner's; a task that ends the transaction itself, or leaves its connection in use, fails.

        Args:
            kind: the class of the connection that the task is written for, ``psycopg.Connection`` or
                ``apsw.Connection``. It is what type checkers take ``with`` to give, and it is checked: on a store that
                gives another one the task fails before anything is written. Without it any is given, and type checkers
                take it for an ``apsw.Connection``.

        Raises:
            UsageError: this store, runner or kind of task has no such transaction; the text says why.
            TransactionTimeout: it was open for too long.
            BackendError: it could not begin; the run is suspended, and no attempt is used up.

        Example:
            >>> @task
            ... def transfer(order: Order) -> int:
            ...     with task_context().transaction() as db:
            ...         db.execute("UPDATE account SET cents = cents - ? WHERE id = ?", (order.cents, order.payer))
            ...         db.execute("UPDATE account SET cents = cents + ? WHERE id = ?", (order.cents, order.payee))
            ...     return order.cents

        On PostgreSQL:
            >>> @task
            ... def sell(item: str) -> str:
            ...     with task_context().transaction(psycopg.Connection) as db:
            ...         db.execute("INSERT INTO sale VALUES (%s)", (item,))
            ...     return item
        """
        return self._attempt.transaction(kind)

    @property
    def cursor(self) -> object:
        """The last cursor that an attempt of this step gave to :meth:`heartbeat`, or ``None``."""
        return self._attempt.cursor()


def idempotency_key(*parts: object) -> str:
    """Return 32 hex digits for these parts; each is prefixed with its length, so no two lists give one text."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()


@overload
def task_context() -> TaskContext: ...
@overload
def task_context(default: D) -> TaskContext | D: ...
def task_context(default: object = NOTHING) -> object:
    """Return the context of the task that is running here.

    It is a context variable: it reaches awaited code and asyncio tasks, and threads whose context was copied.

    Raises:
        NoTaskContext: outside a task, unless ``default`` is given.

    Example:
        >>> @task
        ... def copy(rows: list[str]) -> int:
        ...     context = task_context()
        ...     done = context.cursor
        ...     for at in range(done if isinstance(done, int) else 0, len(rows)):
        ...         upload(rows[at])
        ...         context.heartbeat(at + 1)  # after a crash the next attempt goes on here
        ...     return len(rows)
    """
    cell = CURRENT.get()
    if cell is not None and cell.attempt is not None:
        return TaskContext(cell.attempt)
    if default is not NOTHING:
        return default
    raise NoTaskContext(
        "task_context() was called outside a running task; "
        "in code that also runs elsewhere use task_context(default=None)"
    )
