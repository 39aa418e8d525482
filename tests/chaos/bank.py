"""What the workers of the chaos suite do: money moved between accounts, with an outside ledger of starts and effects.

A transfer comes in two modes: *joined*, in the transaction that also stores the step's outcome, and *keyed*, in a
transaction of the task's own with the step's idempotency key. Neither may ever book twice; booking lines have no key of
their own, so that what is done twice is to be seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stepwell import Retry, branch, delay, inject, parallel, signal, task, task_context, workflow
from stepwell.runtime.clock import SystemClock

ACCOUNTS = 8
CENTS_EACH = 100_000
WORK_S = 0.01  # what a body takes
TABLES = (
    "CREATE TABLE @account (name INTEGER PRIMARY KEY, cents INTEGER NOT NULL)",
    "CREATE TABLE @booking (instance TEXT NOT NULL, path TEXT NOT NULL, cents INTEGER NOT NULL)",
    "CREATE TABLE @used (key TEXT PRIMARY KEY)",
)
TRANSFERS = ("first", "parallel/late/second", "third")


class Skewed(SystemClock):
    """A clock that is wrong by a constant."""

    def __init__(self, skew_s: float) -> None:
        self._skew_us = int(skew_s * 1e6)

    def now_us(self) -> int:
        return super().now_us() + self._skew_us


# --- the outside ledger -------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the ledger; ``ns`` is a clock that all processes of a machine share."""

    ns: int
    pid: int
    worker: str
    event: str
    instance: str
    path: str
    attempt: int
    key: str


class Ledger:
    """An append-only file; a line is one write, so that lines of several processes do not mix."""

    def __init__(self, path: str, worker: str) -> None:
        self.path, self.worker = path, worker
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, event: str) -> None:
        ctx = task_context()
        about = (ctx.instance_id, ctx.path, ctx.attempt, ctx.idempotency_key)
        text = " ".join(map(str, (time.monotonic_ns(), os.getpid(), self.worker, event, *about)))
        os.write(self._file, f"{text}\n".encode())


def lines_of(path: Path) -> list[Line]:
    rows = [row.split() for row in path.read_text().splitlines()] if path.exists() else []
    return [Line(int(ns), int(pid), who, event, i, at, int(n), key) for ns, pid, who, event, i, at, n, key in rows]


# --- the bank -----------------------------------------------------------------------------------------------------


class Bank:
    """Where the accounts are: in the store's own database. Statements are written with ``?``."""

    def __init__(self, connect: Callable[[], Any], mark: str, schema: str = "") -> None:
        self.connect, self._mark, self._schema = connect, mark, schema

    def execute(self, db: Any, statement: str, *values: object) -> list[Any]:
        cursor = db.execute(statement.replace("?", self._mark).replace("@", self._schema), values)
        return list(cursor) if self._mark == "?" or cursor.description else []

    @contextmanager
    def own_transaction(self) -> Iterator[Any]:
        db = self.connect()
        try:
            db.execute("BEGIN IMMEDIATE" if self._mark == "?" else "BEGIN")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()

    def move(self, db: Any, cents: int) -> None:
        """Book a transfer between two accounts that go by the step; in the order of their names, against deadlocks."""
        ctx = task_context()
        source = sum(f"{ctx.instance_id}{ctx.path}".encode()) % ACCOUNTS
        target = (source + 3) % ACCOUNTS
        for name, change in sorted(((source, -cents), (target, cents))):
            self.execute(db, "UPDATE @account SET cents = cents + ? WHERE name = ?", change, name)
        self.execute(db, "INSERT INTO @booking VALUES (?, ?, ?)", ctx.instance_id, ctx.path, cents)

    def use_key(self, db: Any) -> bool:
        """Say whether the step's idempotency key is new here, and note it."""
        key = task_context().idempotency_key
        return bool(self.execute(db, "INSERT INTO @used VALUES (?) ON CONFLICT DO NOTHING RETURNING key", key))

    def set_up(self) -> None:
        db = self.connect()
        for statement in TABLES:
            self.execute(db, statement)
        for name in range(ACCOUNTS):
            self.execute(db, "INSERT INTO @account VALUES (?, ?)", name, CENTS_EACH)
        db.close()

    def books(self) -> tuple[int, list[tuple[str, str, int]]]:
        """Return all money there is, and how often each step has booked."""
        db = self.connect()
        ((total,),) = self.execute(db, "SELECT sum(cents) FROM @account")
        booked = self.execute(db, "SELECT instance, path, count(*) FROM @booking GROUP BY instance, path")
        db.close()
        return int(total), [(str(i), str(path), int(times)) for i, path, times in booked]


# --- what the workers run -----------------------------------------------------------------------------------------


def labour() -> None:
    """Take the time that work takes, so that faults meet bodies."""
    threading.Event().wait(WORK_S)


def transfer(cents: int, ledger: Ledger, bank: Bank, joined: bool) -> int:
    ledger.note("start")
    labour()
    if joined:
        with task_context().transaction() as db:
            bank.move(db, cents)
    else:
        with bank.own_transaction() as db:
            if bank.use_key(db):
                bank.move(db, cents)
    ledger.note("effect")
    return cents


RETRY = Retry(attempts=50, delay="50ms", factor=1, jitter=0.5)  # the bank may be down for a moment


@task(retry=RETRY)
def first(cents: int, *, ledger: Ledger = inject(), bank: Bank = inject()) -> int:
    return transfer(cents, ledger, bank, joined=False)


@task(retry=RETRY)
def second(cents: int, *, ledger: Ledger = inject(), bank: Bank = inject()) -> int:
    return transfer(cents, ledger, bank, joined=True)


@task(retry=RETRY)
def third(cents: int, word: int, *, ledger: Ledger = inject(), bank: Bank = inject()) -> int:
    return transfer(cents + word, ledger, bank, joined=True)


@task
def plain(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    labour()
    ledger.note("effect")
    return x + 1


@task(retry=Retry(attempts=3, delay="50ms", jitter=0))
def shaky(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    labour()
    if task_context().attempt == 1:
        raise OSError("the first attempt fails")
    ledger.note("effect")
    return x + 2


@task
async def later(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("effect")
    return x + 3


@task
def total(a: int, b: int, c: int, d: int) -> int:
    return a + b + c + d


@workflow
async def payday(cents: int) -> int:
    a = first(cents)
    with parallel():
        with branch("late"):
            delay("200ms")
            moved = second(a)
        b, c = shaky(a), await later(a)
    word = signal("word", int)
    return total(third(moved, word), plain(b), c, word)


def output_of(cents: int, word: int) -> int:
    return (cents + word) + (cents + 2 + 1) + (cents + 3) + word


@task
def waits(path: str, *, ledger: Ledger = inject()) -> str:
    """Busy until a file exists."""
    ledger.note("start")
    while not Path(path).exists():
        threading.Event().wait(0.005)
    ledger.note("effect")
    return ledger.worker


@workflow
def patience(path: str) -> str:
    return waits(path)


WORKFLOWS = (payday, patience)
