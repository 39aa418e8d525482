"""A connection of the user's with an open transaction, as the runner of a task sees it, whatever the database.

The task writes on the connection; the runner begins, watches, commits and closes. Which kind it is, is told by the
connection, as a store may stand behind wrappers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from stepwell.errors import OptionError


class Opened(Protocol):
    """One transaction. Methods raise what the database raises."""

    #: The connection, for the task.
    connection: Any
    #: Whether nobody else can write while it is open.
    excludes: bool
    #: What the database raises if the task has left the connection in a state that cannot be used.
    failures: tuple[type[Exception], ...]

    def begin(self, idle_us: int) -> None:
        """Begin. Where that can be said, the database undoes it after so long without a statement: we may be frozen."""
        ...

    def guard(self, refuse: Callable[[], Exception]) -> None:
        """From now on, let a task that commits by itself meet this error, as far as that can be done."""
        ...

    def unusable(self) -> str:
        """Say what a task has done to the transaction that makes it impossible to commit, ``""`` if nothing."""
        ...

    def commit(self) -> None: ...

    def in_use(self, error: BaseException | None) -> bool:
        """Whether an error says that a statement of the task's is not at its end."""
        ...

    def let_go(self) -> None:
        """The runner has taken the connection from the task, to end it."""
        ...

    def interrupt(self) -> None:
        """Undo what is not committed, from another thread than the task's: a call that is under way fails."""
        ...

    def close(self) -> None:
        """Close the connection, in the task's thread, and with it what is not committed."""
        ...


ENDED_BY_TASK = "has ended its transaction; leave COMMIT and ROLLBACK to the runner"


def public_name(kind: type) -> str:
    """Return the name of a connection's class as users write it: ours are their drivers' with a little more."""
    theirs = next(each for each in kind.__mro__ if not each.__module__.startswith("stepwell."))
    return f"{theirs.__module__}.{theirs.__qualname__}"


def opened(backend: Any) -> Opened:
    """Connect to a store's database, without beginning a transaction yet."""
    connection = backend.connect()
    kinds = {kind.__module__.partition(".")[0] for kind in type(connection).__mro__}
    if "apsw" in kinds:
        from .sqlite_opened import SqliteOpened

        return SqliteOpened(connection, backend)
    if "psycopg" in kinds:
        from .postgres_opened import PostgresOpened

        return PostgresOpened(connection)
    raise OptionError(f"no task can have a transaction on a {type(connection).__name__}")
