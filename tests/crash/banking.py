"""Money moved between accounts in the store's own database: ``task_context().transaction()`` and ``connection=``."""

from __future__ import annotations

from typing import Any

import apsw

from stepwell import Retry, WorkflowClient, branch, inject, parallel, task, task_context, workflow

from .dying import Ledger, runner_of

ALL_MONEY = 3_000
CENTS = 7
TRANSFERS = ("transfer", "parallel/a/transfer", "parallel/b/shaky", "transfer#2")


def _move(db: Any, cents: int) -> None:
    """Book a line with no key of its own: what is done twice is to be seen."""
    path = task_context().path
    _do(db, "UPDATE account SET cents = cents - ? WHERE name = 'ann'", cents)
    _do(db, "UPDATE account SET cents = cents + ? WHERE name = 'bob'", cents)
    _do(db, "INSERT INTO booking (path, cents) VALUES (?, ?)", path, cents)


def _do(db: Any, statement: str, *values: object) -> None:
    db.execute(statement if isinstance(db, apsw.Connection) else statement.replace("?", "%s"), values)


def _begin(db: Any) -> None:
    """SQLite's writers take turns; with psycopg a transaction begins by itself."""
    if isinstance(db, apsw.Connection):
        db.execute("BEGIN IMMEDIATE")


@task
def transfer(cents: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    with task_context().transaction() as db:
        _move(db, cents)
    ledger.note("end")
    return cents


@task(retry=Retry(attempts=3, delay="10m", jitter=0))
def shaky(cents: int, *, ledger: Ledger = inject()) -> int:
    """Fails in its block the first time, and after it the second time."""
    ledger.note("start")
    with task_context().transaction() as db:
        _move(db, cents)
        if task_context().attempt == 1:
            raise OSError("the first attempt fails")
    if task_context().attempt == 2:
        raise OSError("so does the second")
    ledger.note("end")
    return cents


@workflow
def banking(cents: int) -> int:
    a = transfer(cents)
    with parallel():
        with branch("a"):
            left = transfer(a)
        with branch("b"):
            shaky(a)
    return transfer(left)


@workflow
def buying(cents: int) -> int:
    return transfer(cents)


def setup_accounts(backend: Any, ledger: Ledger) -> dict[str, Any]:
    db = backend.connect()
    _begin(db)
    db.execute("CREATE TABLE account (name TEXT PRIMARY KEY, cents INTEGER NOT NULL)")
    db.execute("CREATE TABLE booking (path TEXT NOT NULL, cents INTEGER NOT NULL)")
    db.execute("CREATE TABLE purchase (id TEXT NOT NULL, part TEXT NOT NULL)")
    for name in ("ann", "bob", "cid"):
        _do(db, "INSERT INTO account VALUES (?, ?)", name, ALL_MONEY // 3)
    db.execute("COMMIT")
    db.close()
    return {}


def transfers(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"output": runner.run(banking, CENTS, instance_id="i")}


def place(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """A purchase and the instance that sees to it, in one transaction of the user's."""
    db = backend.connect()
    with WorkflowClient(backend) as client:
        _begin(db)
        if not db.execute("SELECT 1 FROM purchase").fetchone():
            db.execute("INSERT INTO purchase VALUES ('i', 'before')")
            client.start(buying, CENTS, instance_id="i", connection=db)
            db.execute("INSERT INTO purchase VALUES ('i', 'after')")
        db.execute("COMMIT")
    db.close()
    with runner_of(backend, ledger) as runner:
        runner.recover([buying], wait=True)
    return {}
