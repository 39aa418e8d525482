"""One process's life: it plays its parts on a store and says what it saw, or dies at a point that was named before.

==================  ==============================================================================================
``before:commit:3``  before the third call of a method of the backend; ``after``: when it has returned
``before:write:3``   before the third call of any method that writes; ``after``: when it has returned
``statement:3``      before the third SQL statement on any connection, opening and migration included
``inside:3``         the same, counted from when the store is open; of reads in a row, which change nothing, the first
``waiting:3``        the third time it waits for PostgreSQL: what it has sent lands without it, or does not
``ledger:3``         right after the third line that a task wrote outside of the store
``count:0``          nowhere; it says instead how many places of each kind there were
==================  ==============================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import Any, TypeVar

import apsw

from stepwell import CheckpointingRunner, SqliteBackend, task_context
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend, die

from .planted import planted

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

    def writes(self) -> int:
        return next(self._writes) - 1

    def _call(self, method: str, action: Callable[[], T]) -> T:
        nth = next(self._writes) if method in WRITES else 0
        if nth == self._number and self._kind == "before:write":
            die()
        result = super()._call(method, action)
        if nth == self._number and self._kind == "after:write":
            die()
        return result


def play(request: dict[str, Any], parts: dict[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
    """Play a process's parts, one after the other, on its store."""
    kind, _, digits = request["fault"].rpartition(":")
    number, found = int(digits or 0), dict[str, Any]()
    statements = Statements(kind, number)
    if kind in WITHIN:
        statements.watch(request["dsn"])
    make = Log if request["log"] else Ledger
    ledger = make(request["story"], request["process"], number if kind == "ledger" else 0)
    if not request["parts"]:
        return found
    # a killed process loses nothing that it gave to the operating system: power cuts are not the point here
    backend = Dying(planted(request["plant"], opened(request)), kind, number)
    statements.inside = True
    for part in request["parts"]:
        found |= parts[part](backend, ledger)
    backend.close()
    if kind == "count":
        writes = backend.writes()
        found["places"] = {
            "before:write": writes, "after:write": writes, "ledger": ledger.lines, **statements.places()
        }  # fmt: skip
    return found


def opened(request: dict[str, Any]) -> Any:
    if not request["dsn"]:
        return SqliteBackend(f"{request['story']}.db", durability="fast")
    from stepwell.backend.postgres import PostgresBackend

    return PostgresBackend(request["dsn"], schema=request["schema"], durability="fast")


WITHIN = ("statement", "inside", "waiting", "count")


class Statements:
    """The SQL statements of this process, on whatever connection; it dies before the n-th, or waiting for it."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.inside, self.reading = kind, number, False, False
        self.seen, self.waits = count(1), count(1)

    def watch(self, dsn: str) -> None:
        if dsn:
            from .talking import watch  # psycopg is for those who need it

            watch(self.about_to, self.waiting)
        else:
            apsw.connection_hooks.append(lambda connection: setattr(connection, "exec_trace", self.trace))

    def trace(self, cursor: Any, sql: str, bindings: Any) -> bool:
        self.about_to(sql)
        return True

    def about_to(self, sql: str) -> None:
        if self._counts(sql) and next(self.seen) == self.number and self.kind in ("statement", "inside"):
            die()

    def waiting(self) -> None:
        if self.inside and next(self.waits) == self.number and self.kind == "waiting":
            die()

    def places(self) -> dict[str, int]:
        return {"inside": next(self.seen) - 1, "waiting": next(self.waits) - 1}

    def _counts(self, sql: str) -> bool:
        before, self.reading = self.reading, sql.lstrip().startswith(READS)
        return self.kind == "statement" or (self.inside and not (before and self.reading))


def runner_of(backend: Any, ledger: Ledger, **options: Any) -> CheckpointingRunner:
    """Return a runner whose tasks know the ledger, and the ledger a client."""
    runner = CheckpointingRunner(backend, deps={Ledger: ledger}, clock=VirtualClock(), **options)
    ledger.send = runner.client
    return runner
