"""A task's own transaction: its rows and its step land together or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import apsw
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from stepwell import (
    AsyncCheckpointingRunner,
    BackendError,
    CheckpointingRunner,
    Flow,
    InMemoryBackend,
    InProcessRunner,
    PostgresBackend,
    Retry,
    SqliteBackend,
    TransactionTimeout,
    UsageError,
    WorkflowFailed,
    parallel,
    task,
    task_context,
    workflow,
)
from stepwell.runtime import transaction

Store: TypeAlias = SqliteBackend | PostgresBackend
on_a_file = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kinds of store that have transactions."""
    return str(request.param)


@pytest.fixture
def backend(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened(kind, request, tmp_path) as store:
        connection = store.connect()
        connection.execute("BEGIN" if kind == "sqlite" else "SELECT 1")
        connection.execute("CREATE TABLE entry (account TEXT, cents INTEGER)")
        connection.execute("COMMIT")
        connection.close()
        yield store


def opened(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Open a store; on a server the user's tables are in the store's own schema."""
    if kind == "sqlite":
        return SqliteBackend(tmp_path / "bank.db", durability="fast")
    dsn, schema = request.getfixturevalue("postgres_place")
    return PostgresBackend(make_conninfo(dsn, options=f"-csearch_path={schema}"), schema=schema)


@pytest.fixture
def runner(backend: Store) -> Iterator[CheckpointingRunner]:
    with CheckpointingRunner(backend) as one:
        yield one


def book(account: str, cents: int) -> None:
    with task_context().transaction() as db:
        insert(db, account, cents)


def insert(db: Any, account: str, cents: int) -> None:
    mark = "?" if isinstance(db, apsw.Connection) else "%s"
    db.execute(f"INSERT INTO entry VALUES ({mark}, {mark})", (account, cents))  # noqa: S608 - a constant


def booked(backend: Store) -> list[tuple[Any, ...]]:
    row = "rowid" if isinstance(backend, SqliteBackend) else "ctid"
    with closing(backend.connect()) as connection:
        rows: Any = connection.execute(f"SELECT account, cents FROM entry ORDER BY {row}")  # noqa: S608 - a constant
        return list(rows)


@task
def deposit(cents: int) -> int:
    book("in", cents)
    return cents + 1


@task
def plain(cents: int) -> int:
    return cents


def test_what_it_wrote_commits_with_its_step(runner: CheckpointingRunner, backend: Store) -> None:
    """Rows of the user's table and the outcome are both there."""
    flow = Flow("bank").then(plain).then(deposit).then(plain, name="after").build()
    assert runner.run(flow, 5, instance_id="a") == 6
    assert booked(backend) == [("in", 5)]


@on_a_file  # on a server they are the same, and each is a connection
def test_steps_may_follow_each_other_in_transactions(runner: CheckpointingRunner, backend: Store) -> None:
    """Also the last step of a run, and more of them than are read without an image."""
    chain = Flow("bank").then(deposit)
    for at in range(2, transaction.IMAGE_AFTER + 9):
        chain = chain.then(deposit, name=f"deposit-{at}")
    assert runner.run(chain.build(), 1) == transaction.IMAGE_AFTER + 9
    assert len(booked(backend)) == transaction.IMAGE_AFTER + 8


def test_an_error_undoes_what_was_written(runner: CheckpointingRunner, backend: Store) -> None:
    """The attempt that fails after its block leaves nothing; the one that succeeds leaves its rows once."""
    tries: list[int] = []

    @task(retry=Retry(attempts=3, delay="1ms"))
    def shaky(cents: int) -> int:
        tries.append(cents)
        book("in", cents)
        if len(tries) < 3:
            raise OSError("not yet")
        return cents

    assert runner.run(Flow("bank").then(shaky).build(), 4) == 4
    assert booked(backend) == [("in", 4)]


def test_an_error_that_the_task_overcomes_undoes_the_block(runner: CheckpointingRunner, backend: Store) -> None:
    """What was written in a block that raised is gone, and the step is recorded without it."""

    @task
    def overcomes(cents: int) -> int:
        try:
            with task_context().transaction() as db:
                insert(db, "lost", cents)
                raise LookupError("never mind")
        except LookupError:
            return cents

    assert runner.run(Flow("bank").then(overcomes).build(), 4) == 4
    assert booked(backend) == []


def test_a_result_that_cannot_be_stored_undoes_what_was_written(runner: CheckpointingRunner, backend: Store) -> None:
    """The outcome is a failure, so the rows must not stay."""

    @task
    def unstorable(cents: int) -> object:
        book("in", cents)
        return object()

    with pytest.raises(WorkflowFailed, match="cannot be stored"):
        runner.run(Flow("bank").then(unstorable).build(), 4)
    assert booked(backend) == []


def test_branches_may_each_have_one(runner: CheckpointingRunner, backend: Store) -> None:
    """On a file they wait for each other's write lock, and for nothing else."""

    @workflow
    def wide(cents: int) -> list[int]:
        with parallel():
            return [deposit(cents) for _ in range(8)]

    assert runner.run(wide, 1) == [2] * 8
    assert len(booked(backend)) == 8


def test_many_instances_at_once(runner: CheckpointingRunner, backend: Store) -> None:
    """Transactions of some instances and shared commits of others do not get in each other's way."""
    flow = Flow("bank").then(plain).then(deposit).then(plain, name="after").build()
    assert runner.run_many(flow, range(30)) == [n + 1 for n in range(30)]
    assert sorted(cents for _, cents in booked(backend)) == list(range(30))


def test_under_an_async_runner_a_plain_task_has_one(backend: Store) -> None:
    """It runs in a thread there."""

    async def run() -> int:
        async with AsyncCheckpointingRunner(backend) as runner:
            return await runner.run(Flow("bank").then(deposit).build(), 5)

    assert asyncio.run(run()) == 6
    assert booked(backend) == [("in", 5)]


@on_a_file
def test_an_instance_that_another_has_taken_over_keeps_nothing(tmp_path: Path, backend: Store) -> None:
    """The lease is lost while the body runs: admission is refused, and the rows go with it."""
    now = [0]
    slow_store, other_store = (SqliteBackend(tmp_path / "bank.db", lease_clock=lambda: now[0]) for _ in range(2))
    with slow_store, other_store:
        thief: list[CheckpointingRunner] = []

        @task
        def robbed(cents: int) -> int:
            if not thief:
                now[0] += 3_600_000_000
                thief.append(CheckpointingRunner(other_store))
                thief[0].run(flow, 4, instance_id="a")
            book("late", cents)
            return cents

        flow = Flow("bank").then(robbed).build()
        with CheckpointingRunner(slow_store) as slow, pytest.raises(BaseException, match=r"taken over|ended"):
            slow.run(flow, 4, instance_id="a")
        thief[0].close()
    assert booked(backend) == [("late", 4)], "the thief's own, and not that of the robbed"


def test_a_cancelled_run_records_the_step_and_goes_no_further(runner: CheckpointingRunner, backend: Store) -> None:
    """What still returns is recorded, and its rows with it, but nothing follows."""
    followed: list[int] = []

    @task
    def cancels_itself(cents: int) -> int:
        runner.client.cancel("a")
        book("in", cents)
        return cents

    flow = Flow("bank").then(cancels_itself).then(lambda n: followed.append(n), name="follows").build()
    with pytest.raises(Exception, match="cancelled"):
        runner.run(flow, 4, instance_id="a")
    assert (booked(backend), followed) == ([("in", 4)], [])


def test_the_store_that_cannot_begin_suspends_the_run(tmp_path: Path) -> None:
    """A database that somebody else keeps locked is no failure of the task, and uses up no attempt."""
    with SqliteBackend(tmp_path / "bank.db", busy_timeout="1ms") as store, CheckpointingRunner(store) as runner:
        other = store.connect()
        other.execute("CREATE TABLE entry (account TEXT, cents INTEGER)")

        @task
        def locked_out(cents: int) -> int:
            if cents and not other.in_transaction and not tries:
                other.execute("BEGIN IMMEDIATE")
            tries.append(task_context().attempt)
            book("in", cents)
            return cents

        tries: list[int] = []
        flow = Flow("bank").then(locked_out).build()
        with pytest.raises(BackendError, match="could not begin"):
            runner.run(flow, 4, instance_id="a")
        other.execute("ROLLBACK")
        assert runner.resume(flow, "a") == 4
        assert tries == [1, 1]
        other.close()


@on_a_file
def test_open_for_too_long_it_is_undone(
    runner: CheckpointingRunner, backend: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can write meanwhile, so it is ended from outside, and the attempt fails by its name."""
    monkeypatch.setattr(transaction, "LIMIT_US", 1_000)

    @task
    def dawdles(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute("INSERT INTO entry VALUES ('slow', 1)")
            while True:  # until the connection is closed from outside
                db.execute("SELECT 1")

    with pytest.raises(WorkflowFailed, match=r"open for longer than 0\.001 s") as failed:
        runner.run(Flow("bank").then(dawdles).build(), 4)
    assert isinstance(failed.value.__cause__, TransactionTimeout)
    assert booked(backend) == []


def test_an_attempt_has_one(runner: CheckpointingRunner, backend: Store) -> None:
    """A second would commit nothing of the first."""

    @task
    def twice(cents: int) -> int:
        book("in", cents)
        book("in", cents)
        return cents

    with pytest.raises(WorkflowFailed, match="has opened its transaction already"):
        runner.run(Flow("bank").then(twice).build(), 4)
    assert booked(backend) == []


def test_no_cursor_is_kept_while_it_is_open(runner: CheckpointingRunner, backend: Store) -> None:
    """In the caller's own thread that write would wait for itself."""

    @task
    def keeps(cents: int) -> int:
        with task_context().transaction():
            task_context().heartbeat(cents)
        return cents

    with pytest.raises(WorkflowFailed, match="keeps a cursor while its transaction is open"):
        runner.run(Flow("bank").then(keeps).build(), 4)


@task
async def in_a_loop(cents: int) -> int:
    book("in", cents)
    return cents


@task(delivery="at_most_once")
def only_once(cents: int) -> int:
    book("in", cents)
    return cents


@task(run_in="process")
def in_a_process(cents: int) -> int:
    book("in", cents)
    return cents


@pytest.mark.parametrize(
    ("body", "text"),
    [(in_a_loop, "is async"), (only_once, "at_most_once"), (in_a_process, "process of its own")],
    ids=["async", "at-most-once", "process"],
)
def test_tasks_that_cannot_have_one_say_so(
    runner: CheckpointingRunner, backend: Store, body: Callable[[int], int], text: str
) -> None:
    """Each with its reason."""
    with pytest.raises(WorkflowFailed, match=text):
        runner.run(Flow("bank").then(body).build(), 4)
    assert booked(backend) == []


def test_stores_that_have_none_say_so() -> None:
    """Memory has no transactions, and an in-process run no store."""
    flow = Flow("bank").then(deposit).build()
    with CheckpointingRunner(InMemoryBackend()) as runner, pytest.raises(WorkflowFailed, match="does not have") as one:
        runner.run(flow, 1)
    with InProcessRunner() as runner, pytest.raises(WorkflowFailed, match="stores nothing") as two:  # type: ignore[assignment]
        runner.run(flow, 1)
    assert all(isinstance(failed.value.__cause__, UsageError) for failed in (one, two))


def test_a_start_in_it_lands_with_the_step(runner: CheckpointingRunner, backend: Store) -> None:
    """A step that starts another instance on its connection starts it exactly if it is recorded."""
    other = Flow("other").then(plain).build()
    fails = [True]

    @task(retry=Retry(attempts=2, delay="1ms"))
    def starts(cents: int) -> int:
        with task_context().transaction() as db:
            runner.client.start(other, cents, instance_id=f"other-{task_context().attempt}", connection=db)
        if fails:
            fails.clear()
            raise OSError("after the start")
        return cents

    assert runner.run(Flow("bank").then(starts).build(), 4) == 4
    assert [status.instance_id for status in runner.client.list(workflow="other")] == ["other-2"]


# --- the class of the connection ----------------------------------------------------------------------

GIVEN = {"sqlite": apsw.Connection, "postgres": psycopg.Connection}
NAMES = {"sqlite": "apsw.Connection", "postgres": "psycopg.Connection"}
OTHER = {"sqlite": "postgres", "postgres": "sqlite"}


@pytest.mark.parametrize("any_class", [False, True])
def test_the_class_that_it_gives_may_be_named(
    runner: CheckpointingRunner, backend: Store, kind: str, any_class: bool
) -> None:
    """Then type checkers know it, and it is the same connection."""

    @task
    def named(cents: int) -> int:
        with task_context().transaction(object if any_class else GIVEN[kind]) as db:
            insert(db, "in", cents)
        return cents

    assert runner.run(Flow("bank").then(named).build(), 4) == 4
    assert booked(backend) == [("in", 4)]


@pytest.mark.parametrize("which", ["the other store's", "a generic of it", "no store's"])
def test_a_task_for_another_database_is_refused(runner: CheckpointingRunner, kind: str, which: str) -> None:
    """Both classes are named, nothing is written, and the file's lock is free again."""
    other: Any = sqlite3.Connection if which == "no store's" else GIVEN[OTHER[kind]]
    wanted = "sqlite3.Connection" if which == "no store's" else NAMES[OTHER[kind]]
    if which == "a generic of it" and kind == "sqlite":
        other = psycopg.Connection[tuple[Any, ...]]

    @task
    def named(cents: int) -> int:
        with task_context().transaction(other):
            return cents

    with pytest.raises(WorkflowFailed) as failed:
        runner.run(Flow("bank").then(named).build(), 4)
    cause = failed.value.__cause__
    store = "SqliteBackend" if kind == "sqlite" else "PostgresBackend"
    assert isinstance(cause, UsageError)
    assert str(cause) == (
        f"named asks for transaction({wanted}), and its store, a {store}, gives {NAMES[kind]}; "
        f"write transaction({NAMES[kind]}), or run it on a store that gives the other"
    )
    assert runner.run(Flow("bank").then(deposit).build(), 4) == 5


def test_what_is_no_class_is_refused(runner: CheckpointingRunner) -> None:
    """The text says what is one."""

    @task
    def named(cents: int) -> int:
        with task_context().transaction("psycopg"):  # type: ignore[call-overload]
            return cents

    with pytest.raises(WorkflowFailed, match=r"takes the class of a connection, .* not a str"):
        runner.run(Flow("bank").then(named).build(), 4)
