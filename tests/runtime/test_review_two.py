"""What a second pair of eyes found in transactions, clients and the fast paths; each test says what went wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    Flow,
    InstanceDamaged,
    SqliteBackend,
    UsageError,
    WorkflowFailed,
    task,
    task_context,
)
from stepwell.runtime import transaction

INSERT = "INSERT INTO entry VALUES ('in', 1)"


@task
def plus(x: int) -> int:
    return x + 1


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[SqliteBackend]:
    with SqliteBackend(tmp_path / "bank.db", durability="fast", busy_timeout="2s") as store:
        connection = store.connect()
        connection.execute("CREATE TABLE entry (account TEXT, cents INTEGER)")
        connection.close()
        yield store


@pytest.fixture
def runner(backend: SqliteBackend) -> Iterator[CheckpointingRunner]:
    with CheckpointingRunner(backend) as one:
        yield one


def booked(backend: SqliteBackend) -> int:
    connection = backend.connect()
    try:
        return len(list(connection.execute("SELECT * FROM entry")))
    finally:
        connection.close()


def is_locked(backend: SqliteBackend) -> bool:
    connection = backend.connect()
    connection.set_busy_timeout(0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except apsw.BusyError:
        return True
    finally:
        connection.close()
    return False


@task
def after(cents: int) -> int:
    return cents


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("timeout", [None, "1h"], ids=["caller's thread", "thread"])
def test_an_interrupt_after_the_block_lets_the_lock_go(
    backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], timeout: str | None
) -> None:
    """It left the transaction open until the watch closed it: Ctrl-C took 5 s, and nobody could write meanwhile."""
    monkeypatch.setattr(transaction, "LIMIT_US", 3_600_000_000)
    locked: list[bool] = []

    @task(timeout=timeout)
    def interrupted(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute(INSERT)
        raise kind

    with CheckpointingRunner(backend, lease="4h") as runner:
        with pytest.raises(kind):
            runner.run(Flow("bank").then(interrupted).build(), 1, instance_id="a")
        locked.append(is_locked(backend))
    assert (locked, booked(backend)) == ([False], 0)


def commits(db: apsw.Connection) -> object:
    return db.execute("COMMIT")


def commits_and_begins(db: apsw.Connection) -> object:
    return db.execute("COMMIT; BEGIN IMMEDIATE")


def rolls_back(db: apsw.Connection) -> object:
    return db.execute("ROLLBACK")


def closes(db: apsw.Connection) -> object:
    db.close()
    return None


def hides_a_table(db: apsw.Connection) -> object:
    return db.execute("CREATE TEMP TABLE journal (x)")


def reads_on(db: apsw.Connection) -> object:
    rows = db.execute("INSERT INTO entry VALUES ('a', 1), ('b', 2) RETURNING cents")
    rows.fetchone()
    return rows


@pytest.mark.parametrize("misuse", [commits, commits_and_begins, rolls_back, closes, hides_a_table, reads_on])
def test_a_connection_that_was_misused_fails_the_step(
    runner: CheckpointingRunner, backend: SqliteBackend, misuse: Callable[[apsw.Connection], object]
) -> None:
    """COMMIT kept the rows without the step, ROLLBACK the step without the rows, both as a store that had failed; the
    others suspended the run as if the store had failed, again at every resume."""
    kept: list[object] = []

    @task
    def misuses(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute(INSERT)
            kept.append(misuse(db))
        return cents

    with pytest.raises(WorkflowFailed) as failed:
        runner.run(Flow("bank").then(misuses).build(), 1, instance_id="a")
    assert isinstance(failed.value.__cause__, UsageError)
    assert (booked(backend), is_locked(backend)) == (0, False)


def test_a_thread_that_still_uses_the_connection_fails_the_step(
    runner: CheckpointingRunner, backend: SqliteBackend
) -> None:
    """It could not be closed then, so the write lock stayed for ever: nobody could write to the file any more."""
    helpers: list[threading.Thread] = []

    @task
    def leaves_a_thread(cents: int) -> int:
        inside = threading.Event()
        endless = "WITH RECURSIVE c(x) AS (SELECT inside() UNION ALL SELECT 1 FROM c) SELECT count(*) FROM c"

        def spin(db: apsw.Connection) -> None:
            with pytest.raises(apsw.InterruptError):
                db.execute(endless).fetchall()

        def say_inside(*_: object) -> int:
            inside.set()
            return 1

        with task_context().transaction() as db:
            db.execute(INSERT)
            db.create_scalar_function("inside", say_inside)
            helpers.append(threading.Thread(target=spin, args=(db,)))
            helpers[0].start()
            inside.wait()
        return cents

    with pytest.raises(WorkflowFailed) as failed:
        runner.run(Flow("bank").then(leaves_a_thread).build(), 1, instance_id="a")
    helpers[0].join()
    assert isinstance(failed.value.__cause__, UsageError)
    assert (booked(backend), is_locked(backend)) == (0, False)


@pytest.mark.parametrize(
    "call",
    [
        lambda runner, flow: runner.client.signal("other", "go"),
        lambda runner, flow: runner.client.start(flow, 1),
        lambda runner, flow: runner.client.status("other"),
        lambda runner, flow: runner.run(flow, 1),
    ],
    ids=["signal", "start", "status", "run"],
)
def test_the_store_cannot_be_used_beside_an_open_transaction(
    runner: CheckpointingRunner, backend: SqliteBackend, call: Callable[[Any, Any], object]
) -> None:
    """The thread waited for itself until the watch ended the transaction, after 5 s; now it hears at once."""
    flow = Flow("other").then(after).build()
    runner.run(flow, 1, instance_id="other")

    @task
    def reaches_out(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute(INSERT)
            with pytest.raises(UsageError, match=r"a transaction\(\) is open in this thread"):
                call(runner, flow)
        return cents

    assert runner.run(Flow("bank").then(reaches_out).then(after).build(), 1) == 1
    assert booked(backend) == 1
    runner.client.status("other")


@pytest.mark.broken_store
def test_damaged_labels_stop_nothing(runner: CheckpointingRunner, backend: SqliteBackend) -> None:
    """One row whose labels could not be read made list, status, recover and delete fail, with a bare DecodeError."""
    flow = Flow("bank").then(after).build()
    for name in ("a", "b"):
        runner.run(flow, 1, instance_id=name, labels={"of": name})
    connection = backend.connect()
    connection.execute("UPDATE instance SET labels = '{' WHERE instance_id = 'a'")
    connection.close()
    assert [(status.instance_id, status.labels) for status in runner.client.list()] == [("b", {"of": "b"}), ("a", {})]
    runner.client.delete("a")
    assert runner.client.count() == 1


@pytest.mark.broken_store
def test_a_retry_of_a_row_that_contradicts_its_journal_says_so(
    runner: CheckpointingRunner, backend: SqliteBackend
) -> None:
    """It looked again and again for ever, at full speed."""
    runner.start(Flow("bank").delay("wait", "1h").then(after).build(), 1, instance_id="a")
    connection = backend.connect()
    connection.execute("UPDATE instance SET state = 'failed', ended_us = 1")
    connection.close()
    with pytest.raises(InstanceDamaged, match="its journal goes on"):
        runner.client.retry("a")


def test_a_late_body_does_not_take_back_what_was_given_back(tmp_path: Path, backend: SqliteBackend) -> None:
    """Its caller was cancelled, and its commit took the instance for a session that did not work on it any more: no
    other runner could, until this one was closed."""
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    @task
    def late(cents: int) -> int:
        inside.set()
        go_on.wait()
        with task_context().transaction() as db:
            db.execute(INSERT)
        return cents

    flow = Flow("bank").then(late).then(after).build()

    async def run() -> None:
        async with AsyncCheckpointingRunner(backend) as runner:
            running = asyncio.create_task(runner.run(flow, 1, instance_id="a"))
            await asyncio.to_thread(inside.wait)
            settle = transaction.Transaction.settle

            def settle_and_say(self: Any, value: object) -> Any:
                try:
                    return settle(self, value)
                finally:
                    done.set()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(transaction.Transaction, "settle", settle_and_say)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                go_on.set()
                await asyncio.to_thread(done.wait)
            assert await asyncio.to_thread(resume_elsewhere) == 1

    def resume_elsewhere() -> int:
        with SqliteBackend(tmp_path / "bank.db") as other, CheckpointingRunner(other) as runner:
            return runner.resume(flow, "a")

    asyncio.run(run())
    assert booked(backend) == 1


@pytest.mark.broken_store
def test_a_row_that_is_queued_under_another_workflow_stops_only_itself(tmp_path: Path) -> None:
    """recover raised KeyError for it, and went on with none of the others."""
    with SqliteBackend(tmp_path / "runs.db") as store, CheckpointingRunner(store) as runner:
        runner.client.start(Flow("stray").then(plus).build(), 1, instance_id="stray")
        mine = Flow("mine").then(plus).build()
        runner.client.start(mine, 1, instance_id="mine")
        connection = store.connect()
        connection.execute("UPDATE agenda SET definition = (SELECT id FROM definition WHERE name = 'mine')")
        connection.close()
        found = {status.instance_id: status for status in runner.recover([mine])}
        assert found["mine"].state == "completed"
        assert "another workflow" in found["stray"].detail


def test_a_workflow_is_registered_without_holding_up_the_runner(tmp_path: Path) -> None:
    """A task whose transaction kept the file locked waited for the lock that the registering thread held."""
    with SqliteBackend(tmp_path / "runs.db") as store, CheckpointingRunner(store) as runner:
        free: list[bool] = []
        register = store.register

        def look() -> None:
            if runner._room._lock.acquire(timeout=5):
                runner._room._lock.release()
                free.append(True)

        def watched(name: str, fingerprint: str, plan: bytes) -> int:
            other = threading.Thread(target=look)
            other.start()
            other.join()
            return register(name, fingerprint, plan)

        store.register = watched  # type: ignore[method-assign]
        assert runner.run(Flow("new").then(plus).build(), 1) == 2
    assert free == [True]
