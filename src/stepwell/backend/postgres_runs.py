"""How the stores in PostgreSQL get at a connection, said without loading psycopg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Db(Protocol):
    """A connection on which statements of ours run.

    ``doubt`` says that an earlier call of the same work may have landed.
    """

    doubt: bool

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]: ...
    def row(self, query: str, *values: object) -> tuple[Any, ...] | None: ...
    def run(self, query: str, *values: object) -> int:
        """Return how many rows a statement without an answer has touched."""
        ...

    def named(self, name: str) -> str:
        """Return a name in our schema as PostgreSQL's functions take it."""
        ...


class Runs(Protocol):
    """What does work that may be called again."""

    def once(self, work: Callable[[Db], T]) -> T:
        """Do work that is one statement, or where each statement may land by itself."""
        ...

    def together(self, work: Callable[[Db], T]) -> T:
        """Do work in one transaction."""
        ...


class NotAdmitted(Exception):
    """Rows that contradict what is stored; nothing of the statement has landed."""


class TryAgain(Exception):
    """Raised by work that met others at a bad moment and has to begin anew."""
