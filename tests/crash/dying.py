"""One process's life: it plays its parts on a store and says what it saw, or dies at a point that was named before.

==================  ==============================================================================================
``before:commit:3``  before the third call of a method of the backend; ``after``: when it has returned
``before:write:3``   before the third call of any method that writes; ``after``: when it has returned
``statement:3``      before the third SQL statement on any connection, opening and migration included
``inside:3``         the same, counted from when the store is open; of reads in a row, which change nothing, the first
``ledger:3``         right after the third line that a task wrote outside of the store
==================  ==============================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import apsw

from stepwell import CheckpointingRunner, SqliteBackend, task_context
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend, die

from ..stores import schema_of  # noqa: TID252 - the tests are not installed

T = TypeVar("T")

WRITES = frozenset({
    "open_session", "renew", "end_session", "register", "create", "commit", "post", "claim", "claim_due", "release",
    "delete", "purge",
})  # fmt: skip


READS = ("SELECT", "PRAGMA")


class Ledger:
    """An append-only file outside of the store; the process may die right after the n-th line."""

    suffix = "txt"

    def __init__(self, path: str, process: int, last: int = 0) -> None:
        self.path, self.process, self.last, self.lines = path, process, last, 0
        self.file = os.open(f"{path}.{self.suffix}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.lock = Lock()
        self.send: Any = None

    def note(self, phase: str) -> None:
        with self.lock:
            os.write(self.file, f"{self.line(phase)}\n".encode())
            self.lines += 1
            if self.lines == self.last:
                die()

    def line(self, phase: str) -> str:
        ctx = task_context()
        return f"{self.process} {phase} {ctx.path} {ctx.attempt} {ctx.idempotency_key}"


class Log(Ledger):
    """A ledger that tells instances and runs apart. It has a name of its own, as its lines are others."""

    suffix = "log"

    def line(self, phase: str) -> str:
        ctx = task_context()
        return f"{self.process} {phase} {ctx.instance_id} {ctx.run} {ctx.path} {ctx.attempt} {ctx.idempotency_key}"


class Dying(FaultyBackend):
    """A backend whose writes are counted together, whatever their method."""

    def __init__(self, inner: Any, kind: str, number: int) -> None:
        of_one = kind.startswith(("before", "after")) and not kind.endswith(":write")
        super().__init__(inner, [Fault.parse(f"{kind}:{number}")] if of_one else [])
        self._kind, self._number, self._writes = kind, number, count(1)

    def _call(self, method: str, action: Callable[[], T]) -> T:
        nth = next(self._writes) if method in WRITES else 0
        if nth == self._number and self._kind == "before:write":
            die()
        result = super()._call(method, action)
        if nth == self._number and self._kind == "after:write":
            die()
        return result


def play(request: dict[str, Any], parts: dict[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
    """Play a process's parts, one after the other, each on the store opened anew."""
    kind, _, digits = request["fault"].rpartition(":")
    number, found = int(digits or 0), dict[str, Any]()
    statements = Statements(kind, number)
    make = Log if request["log"] else Ledger
    ledger = make(request["story"], request["process"], number if kind == "ledger" else 0)
    for part in request["parts"]:
        # a killed process loses nothing that it gave to the operating system: power cuts are not the point here
        backend = Dying(opened(request), kind, number)
        statements.inside = True
        found |= parts[part](backend, ledger)
        backend.close()
    return found


def opened(request: dict[str, Any]) -> Any:
    if not request["dsn"]:
        return SqliteBackend(f"{request['story']}.db", durability="fast")
    from stepwell.backend.postgres import PostgresBackend

    return PostgresBackend(request["dsn"], schema=schema_of(Path(request["story"])), durability="fast")


class Statements:
    """The SQL statements of this process, on whatever connection; it dies before the n-th."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.inside, self.reading, self.seen = kind, number, False, False, count(1)
        if kind in ("statement", "inside"):
            apsw.connection_hooks.append(lambda connection: setattr(connection, "exec_trace", self.trace))

    def trace(self, cursor: Any, sql: str, bindings: Any) -> bool:
        if self._counts(sql) and next(self.seen) == self.number:
            die()
        return True

    def _counts(self, sql: str) -> bool:
        before, self.reading = self.reading, sql.lstrip().startswith(READS)
        return self.kind == "statement" or (self.inside and not (before and self.reading))


def runner_of(backend: Any, ledger: Ledger, **options: Any) -> CheckpointingRunner:
    """Return a runner whose tasks know the ledger, and the ledger a client."""
    runner = CheckpointingRunner(backend, deps={Ledger: ledger}, clock=VirtualClock(), **options)
    ledger.send = runner.client
    return runner
