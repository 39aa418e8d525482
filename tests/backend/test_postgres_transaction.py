"""A task's own transaction in PostgreSQL: its rows and its step land together or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw
import psycopg
import pytest
from msgspec.structs import replace
from psycopg.pq import TransactionStatus

from stepwell import (
    CheckpointingRunner,
    Flow,
    PostgresBackend,
    Retry,
    TransactionTimeout,
    WorkflowClient,
    WorkflowFailed,
    parallel,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Change
from stepwell.backend.liveness import this_process
from stepwell.backend.postgres_opened import PostgresOpened
from stepwell.engine.events import CancelAsked
from stepwell.runtime import transaction
from stepwell.runtime.live import Live, frontier_of

from ..postgres import Server, until  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252


@pytest.fixture
def server(postgres_server: Server) -> Iterator[Server]:
    postgres_server.execute("DROP TABLE IF EXISTS entry")
    postgres_server.execute("CREATE TABLE entry (account text, cents integer)")
    yield postgres_server
    postgres_server.execute("DROP TABLE entry")


@pytest.fixture
def runner(server: Server) -> Iterator[CheckpointingRunner]:
    with PostgresBackend(server.dsn(), schema=server.new_schema()) as backend, CheckpointingRunner(backend) as made:
        yield made


def book(account: str, cents: int) -> psycopg.Connection:
    with task_context().transaction(psycopg.Connection) as db:
        db.execute("INSERT INTO entry VALUES (%s, %s)", (account, cents))
    return db


def booked(server: Server) -> list[tuple[str, int]]:
    return server.execute("SELECT account, cents FROM entry ORDER BY cents")


@task
def deposit(cents: int) -> int:
    book("in", cents)
    return cents + 1


@task
def plain(cents: int) -> int:
    return cents


def test_what_it_wrote_commits_with_its_step(runner: CheckpointingRunner, server: Server) -> None:
    """Rows of the user's table and the outcome are both there."""
    flow = Flow("bank").then(plain).then(deposit).then(plain, name="after").build()
    assert runner.run(flow, 5, instance_id="a") == 6
    assert booked(server) == [("in", 5)]


def test_others_are_told_of_the_end_that_a_transaction_is(server: Server) -> None:
    """Whoever waits for the instance hears of its end, as of any other."""
    schema, heard = server.new_schema(), threading.Event()
    with (
        PostgresBackend(server.dsn(), schema=schema) as other,
        PostgresBackend(server.dsn(), schema=schema) as backend,
        CheckpointingRunner(backend) as runner,
    ):
        runner.run(plain, 5)
        assert other.watch(heard.set) is not None
        runner.run(deposit, 5)
        assert heard.wait(10)


def test_an_error_undoes_what_was_written(runner: CheckpointingRunner, server: Server) -> None:
    """The attempt that fails leaves nothing; the one that succeeds leaves its rows once."""
    tries: list[int] = []

    @task(retry=Retry(attempts=2, delay="1ms"))
    def shaky(cents: int) -> int:
        tries.append(cents)
        book("in", cents)
        if len(tries) < 2:
            raise OSError("not yet")
        return cents

    assert runner.run(Flow("bank").then(shaky).build(), 4) == 4
    assert booked(server) == [("in", 4)]


def test_branches_have_theirs_at_once(runner: CheckpointingRunner, server: Server) -> None:
    """Nobody waits for anybody else's."""

    @workflow
    def wide(cents: int) -> list[int]:
        with parallel():
            return [deposit(cents) for _ in range(4)]

    assert runner.run(wide, 1) == [2] * 4
    assert len(booked(server)) == 4


def test_a_branch_that_is_recorded_in_the_same_moment_makes_no_body_run_again(
    runner: CheckpointingRunner, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the state and writing the outcome, which on a file nobody else could."""
    runs, reading, advance = list[int](), threading.Event(), transaction.advance
    store = runner._room.backend
    assert store is not None

    def seq() -> int:
        header = store.header("a")
        assert header is not None
        return header.seq

    def advance_late(*args: Any) -> Any:
        if not reading.is_set():
            before = seq()
            reading.set()
            until(lambda: seq() > before, "the other branch is recorded")
        return advance(*args)

    @task
    def pays(cents: int) -> int:
        runs.append(cents)
        book("in", cents)
        return cents

    @task
    def other(cents: int) -> int:
        assert reading.wait(20)
        return cents

    @workflow
    def wide(cents: int) -> list[int]:
        with parallel():
            return [pays(cents), other(cents)]

    monkeypatch.setattr(transaction, "advance", advance_late)
    assert runner.run(wide, 4, instance_id="a") == [4, 4]
    assert (runs, booked(server)) == ([4], [("in", 4)])


@pytest.mark.parametrize("how", ["commit", "rollback", "COMMIT", "ROLLBACK"])
def test_a_task_that_ends_it_fails(runner: CheckpointingRunner, server: Server, how: str) -> None:
    """By the connection's method or by a statement."""

    @task
    def ends(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute("INSERT INTO entry VALUES ('x', 1)")
            db.execute(how) if how.isupper() else getattr(db, how)()
            db.execute("SELECT 1")
        return cents

    with pytest.raises(WorkflowFailed, match="leave COMMIT and ROLLBACK to the runner"):
        runner.run(Flow("bank").then(ends).build(), 4)


def test_a_task_that_goes_on_after_an_error_fails(runner: CheckpointingRunner, server: Server) -> None:
    """PostgreSQL keeps nothing of such a transaction; a savepoint around the statement is another matter."""

    @task
    def goes_on(cents: int) -> int:
        with task_context().transaction() as db:
            db.execute("INSERT INTO entry VALUES ('x', 1)")
            try:
                if cents:
                    db.execute("SELECT 1 / 0")
                else:
                    with db.transaction():  # type: ignore[attr-defined]
                        db.execute("SELECT 1 / 0")
            except psycopg.DataError:
                return cents
        return -1

    flow = Flow("bank").then(goes_on).build()
    with pytest.raises(WorkflowFailed, match="after an error"):
        runner.run(flow, 1)
    assert booked(server) == []
    assert runner.run(flow, 0) == 0
    assert booked(server) == [("x", 1)]


def test_open_for_half_a_lease_it_is_undone(server: Server) -> None:
    """It is ended from outside, and the attempt fails by its name."""
    with (
        PostgresBackend(server.dsn(), schema=server.new_schema()) as backend,
        CheckpointingRunner(backend, lease="1s") as runner,
    ):

        @task
        def dawdles(cents: int) -> int:
            with task_context().transaction() as db:
                db.execute("INSERT INTO entry VALUES ('slow', 1)")
                db.execute("SELECT pg_sleep(20)")
            return cents

        with pytest.raises(WorkflowFailed, match=r"open for longer than 0\.5 s") as failed:
            runner.run(Flow("bank").then(dawdles).build(), 4)
        assert isinstance(failed.value.__cause__, TransactionTimeout)
    assert booked(server) == []


@pytest.mark.parametrize("where", ["in a statement", "between two"])
def test_what_ends_it_from_outside_touches_nobody_else(server: Server, where: str) -> None:
    """Whoever is inside a call comes out of it, though new connections take what the old one has let go."""
    inside, ended, came_out = threading.Event(), threading.Event(), list[psycopg.Error]()

    def body(made: PostgresOpened) -> None:
        inside.set()
        if where == "between two":
            ended.wait()
        try:
            made.connection.execute("SELECT pg_sleep(60)")
        except psycopg.Error as error:
            came_out.append(error)
        made.close()

    with PostgresBackend(server.dsn(), schema=server.new_schema()) as backend:
        made = PostgresOpened(backend.connect())  # type: ignore[arg-type]
        made.begin(30_000_000)
        at_work = threading.Thread(target=body, args=(made,), daemon=True)
        at_work.start()
        inside.wait()
        if where == "in a statement":
            until(lambda: made.connection.pgconn.transaction_status == TransactionStatus.ACTIVE, "it is in a statement")
        made.interrupt()
        ended.set()
        others = [backend.connect() for _ in range(3)]
        until(lambda: came_out, "the body has come out")
        assert [other.execute("SELECT 1").fetchone() for other in others] == [(1,)] * 3
        until(lambda: not running(server, "pg_sleep"), "the server has given up")
        at_work.join()
        for other in others:
            other.close()


def test_a_frozen_one_keeps_nobody_from_taking_over(server: Server) -> None:
    """The server undoes it, as the process cannot; until then it has the session's row, and what it wrote."""
    flow, schema = Flow("bank").then(plain).build(), server.new_schema()
    with (
        PostgresBackend(server.dsn(), schema=schema) as backend,
        PostgresBackend(server.dsn(), schema=schema) as others,
        WorkflowClient(backend) as client,
    ):
        client.start(flow, 1, instance_id="a")
        frozen = backend.open_session(this_process("frozen"), 1_000)
        assert backend.claim(frozen, "a") is not None
        with closing(PostgresOpened(backend.connect())) as made:  # type: ignore[arg-type]
            made.begin(2_000_000)
            made.connection.execute(f"SELECT 1 FROM {schema}.session WHERE id = {frozen.id} FOR KEY SHARE")  # noqa: S608
            loaded = others.claim(others.open_session(this_process("other"), 30_000_000), "a")
        assert loaded is not None
        assert loaded.header.held_by == "other"


def test_what_meets_an_open_transaction_in_a_batch_with_a_conflict_is_one_too(server: Server) -> None:
    """It is gone through one by one; the entry that was not to be seen yet is there by the time it is written."""
    flow, schema, told = Flow("bank").then(plain).build(), server.new_schema(), list[object]()
    with (
        PostgresBackend(server.dsn(), schema=schema) as backend,
        PostgresBackend(server.dsn(), schema=schema) as drive,
        WorkflowClient(backend) as client,
    ):
        for name in ("a", "b"):
            client.start(flow, 1, instance_id=name)
        session = backend.open_session(this_process("one"), 30_000_000)
        runs = {name: backend.claim(session, name) for name in ("a", "b")}
        changes = []
        for loaded in runs.values():
            assert loaded is not None
            rows = Live.rows(flow.plan, frontier_of(flow.plan, loaded), [CancelAsked("enough")], 1)
            changes.append(Change(loaded.header.instance, loaded.header.seq, rows))
        assert backend.commit(session, changes[:1]) == ["done"]
        with closing(backend.connect()) as connection:
            assert backend.within(connection).commit(session, changes[1:]) == ["done"]
            late = [replace(each, entries=[replace(each.entries[0], at_us=2)]) for each in changes]
            thread = threading.Thread(target=lambda: told.append(drive.commit(session, late)), daemon=True)
            thread.start()
            until(lambda: server.execute("SELECT 1 FROM pg_locks WHERE NOT granted"), "the drive waits for it")
            connection.commit()
            until(lambda: not thread.is_alive(), "the drive is told")
    assert told == [["conflict", "conflict"]]


test_what_meets_an_open_transaction_in_a_batch_with_a_conflict_is_one_too = pytest.mark.broken_store(
    test_what_meets_an_open_transaction_in_a_batch_with_a_conflict_is_one_too
)


def running(server: Server, text: str) -> list[tuple[int]]:
    query = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE %s AND state <> 'idle'"
    return server.execute(query, (f"%{text}%",))


def test_a_commit_whose_answer_is_lost_is_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has landed is not done again."""
    commit = PostgresOpened.commit
    with Proxy(server.socket) as proxy:

        def losing(opened: PostgresOpened) -> None:
            proxy.drop_commit()
            commit(opened)
            proxy.drop_commits(lambda number: False)

        monkeypatch.setattr(PostgresOpened, "commit", losing)
        with (
            PostgresBackend(proxy.dsn(), schema=server.new_schema()) as backend,
            CheckpointingRunner(backend) as runner,
        ):
            assert runner.run(Flow("bank").then(deposit).build(), 5, instance_id="a") == 6
    assert booked(server) == [("in", 5)]


def test_the_class_that_it_gives_may_be_named(runner: CheckpointingRunner, server: Server) -> None:
    """A task for another database is refused before it writes."""

    @task
    def named(cents: int) -> int:
        with task_context().transaction(psycopg.Connection) as db:
            db.execute("INSERT INTO entry VALUES ('in', %s)", (cents,))
        return cents

    @task
    def other(cents: int) -> int:
        with task_context().transaction(apsw.Connection) as db:
            db.execute("INSERT INTO entry VALUES ('in', ?)", (cents,))
        return cents

    assert runner.run(Flow("bank").then(named).build(), 4) == 4
    with pytest.raises(WorkflowFailed, match=r"a PostgresBackend, gives psycopg\.Connection; write"):
        runner.run(Flow("bank").then(other).build(), 5)
    assert booked(server) == [("in", 4)]


def test_a_role_that_only_reads_by_default_has_none(server: Server) -> None:
    """Its settings hold on the connection of a task, and not on stepwell's own."""
    server.execute("CREATE ROLE reader LOGIN SUPERUSER")
    server.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    try:
        backend = PostgresBackend(server.dsn(user="reader"), schema=server.new_schema())
        with backend, CheckpointingRunner(backend) as made:
            assert made.run(Flow("bank").then(plain).build(), 1) == 1
            with pytest.raises(WorkflowFailed, match="read-only transaction"):
                made.run(Flow("bank").then(deposit).build(), 4)
    finally:
        server.execute("DROP OWNED BY reader CASCADE")
        server.execute("DROP ROLE reader")
    assert booked(server) == []
