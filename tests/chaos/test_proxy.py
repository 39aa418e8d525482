"""The proxy does what it says, seen through a connection of psycopg that knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import psycopg
import pytest

from ..postgres import Server, until  # noqa: TID252 - the tests are not installed
from ..proxy import Pooler, Proxy, writes  # noqa: TID252 - the tests are not installed

Connection = psycopg.Connection[Any]
_NAMES = count(1)


@pytest.fixture
def proxy(postgres_server: Server) -> Iterator[Proxy]:
    with Proxy(postgres_server.socket) as made:
        yield made


@pytest.fixture
def pooler(postgres_server: Server) -> Iterator[Pooler]:
    with Pooler(postgres_server.socket, size=2) as made:
        yield made


@pytest.fixture
def table(postgres_server: Server) -> str:
    name = f"proxied_{next(_NAMES)}"
    postgres_server.execute(f"CREATE TABLE {name} (x int PRIMARY KEY)")
    return name


def connect(proxy: Proxy, **options: Any) -> Connection:
    return psycopg.connect(proxy.dsn(), **{"autocommit": True, **options})


def insert(connection: Connection, table: str, x: int) -> None:
    connection.execute(f"INSERT INTO {table} VALUES (%s)", (x,))  # noqa: S608 - our own name


def insert_all(connection: Connection, table: str, *xs: int) -> None:
    for x in xs:
        insert(connection, table, x)
        connection.commit()


def insert_piped(connection: Connection, table: str, *xs: int) -> None:
    with connection.pipeline(), connection.transaction():
        for x in xs:
            insert(connection, table, x)


def prepare(connection: Connection) -> None:
    for _ in range(3):
        connection.execute("SELECT 1", prepare=True)


def rows(server: Server, table: str) -> list[int]:
    return [x for (x,) in server.execute(f"SELECT x FROM {table} ORDER BY x")]  # noqa: S608 - our own name


def test_it_passes_everything(proxy: Proxy, table: str, postgres_server: Server) -> None:
    """Large values, many rows, errors, blocks, pipelines and prepared statements."""
    with connect(proxy) as connection:
        assert connection.execute("SELECT repeat('x', 3000000)").fetchone() == ("x" * 3_000_000,)
        assert len(connection.execute("SELECT generate_series(1, 20000)").fetchall()) == 20_000
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        with connection.transaction():
            insert(connection, table, 1)
        with connection.pipeline():
            for x in range(2, 10):
                connection.execute(f"INSERT INTO {table} VALUES (%s)", (x,), prepare=True)  # noqa: S608
        with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write_row((10,))
    assert rows(postgres_server, table) == list(range(1, 11))


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("prepare", [False, True])
def test_the_kth_commit_happens_and_its_answer_is_lost(
    proxy: Proxy, table: str, postgres_server: Server, block: bool, prepare: bool
) -> None:
    """Be it a COMMIT or a statement that commits by itself."""
    proxy.drop_commit(3)
    with connect(proxy, autocommit=not block) as connection:
        connection.prepare_threshold = 0 if prepare else None
        insert_all(connection, table, 1, 2)
        with pytest.raises(psycopg.OperationalError):
            insert_all(connection, table, 3)
    assert rows(postgres_server, table) == [1, 2, 3]
    assert proxy.commits == 3
    assert proxy.observed["commit"] == 1


def test_a_statement_of_an_open_block_is_no_commit(proxy: Proxy, table: str) -> None:
    """Nor is a read, a rollback, or a write that fails."""
    with connect(proxy) as connection:
        connection.execute("SELECT 1")
        connection.execute(f"SELECT * FROM {table} FOR UPDATE")  # noqa: S608
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("INSERT INTO nowhere VALUES (1)")
        connection.execute("BEGIN")
        insert(connection, table, 1)
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        insert(connection, table, 1)
        assert proxy.commits == 0
        connection.execute("COMMIT")
    assert proxy.commits == 1


def test_a_pipeline_with_a_block_in_it_is_one_commit(proxy: Proxy, table: str, postgres_server: Server) -> None:
    """BEGIN, writes and COMMIT sent at once are answered at once or not at all."""
    proxy.drop_commit(1)
    with connect(proxy) as connection, pytest.raises(psycopg.OperationalError):
        insert_piped(connection, table, 1, 2)
    assert rows(postgres_server, table) == [1, 2]
    assert proxy.commits == 1


@pytest.mark.parametrize(
    ("statement", "commits"),
    [
        ("insert into t values (1)", True),
        ("WITH x AS (UPDATE t SET y = 1 RETURNING *) SELECT * FROM x", True),
        ("SELECT * FROM t FOR UPDATE SKIP LOCKED", False),
        ("SELECT * FROM t FOR NO KEY UPDATE", False),
        ("WITH x AS (SELECT 1 FROM t FOR UPDATE) DELETE FROM t", True),
        ("SELECT updated_us FROM t", False),
    ],
)
def test_what_writes(statement: str, commits: bool) -> None:
    """It is told by the words of a statement."""
    assert writes(statement) is commits


def test_a_cut_is_a_reset(proxy: Proxy) -> None:
    """Whoever uses an old connection is told; a new one works."""
    with connect(proxy) as connection:
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with connect(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_half_open_nothing_arrives(proxy: Proxy, table: str, postgres_server: Server) -> None:
    """The client waits, the server hears nothing; after the thaw it goes on where it was."""
    with connect(proxy) as connection, ThreadPoolExecutor(1) as pool:
        proxy.freeze()
        asked = pool.submit(insert, connection, table, 1)
        late = postgres_server.execute(
            "SELECT 1 FROM pg_stat_activity, pg_sleep(0.05) WHERE state = 'active' AND query LIKE %s",
            (f"INSERT INTO {table}%",),
        )
        assert (late, asked.done(), rows(postgres_server, table)) == ([], False, [])
        proxy.thaw(cut=False)
        asked.result(30)
    assert rows(postgres_server, table) == [1]


def test_half_open_for_ever_ends_with_a_cut(proxy: Proxy, table: str, postgres_server: Server) -> None:
    """What was sent into the dark has not happened."""
    with connect(proxy) as connection, ThreadPoolExecutor(1) as pool:
        proxy.freeze()
        asked = pool.submit(insert, connection, table, 1)
        proxy.thaw()
        with pytest.raises(psycopg.OperationalError):
            asked.result(30)
    assert rows(postgres_server, table) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_deaf_to_notifications(proxy: Proxy, postgres_server: Server, deaf: bool) -> None:
    """Answers arrive all the same."""
    proxy.deaf = deaf
    with connect(proxy) as connection:
        connection.execute("LISTEN proxied")
        postgres_server.execute("NOTIFY proxied")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        heard = list(connection.notifies(timeout=0, stop_after=1))
    assert (len(heard), proxy.observed["unheard"]) == (0, 1) if deaf else (1, 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_session_is_ended_at_the_kth_statement(
    proxy: Proxy, table: str, postgres_server: Server, when: Any
) -> None:
    """Before it the statement never happens; after it, it may have."""

    def end(pid: int) -> None:
        postgres_server.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))

    proxy.at_statement(2, end, when)
    with connect(proxy) as connection:
        insert(connection, table, 1)
        with pytest.raises(psycopg.OperationalError):
            insert_all(connection, table, 2, 3)
    left = rows(postgres_server, table)
    assert left == [1] if when == "before" else left in ([1], [1, 2])
    assert proxy.observed["statement"] == 1


def test_lag_is_added_to_each_message(proxy: Proxy) -> None:
    """It is slow, and works."""
    proxy.latency_s = 0.001
    with connect(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_down_is_a_refused_connection(own_server: Server) -> None:
    """And works again when the server does, through the same proxy."""
    with Proxy(own_server.socket) as proxy:
        own_server.stop("immediate")
        try:
            with pytest.raises(psycopg.OperationalError):
                connect(proxy)
        finally:
            own_server.start()
        with connect(proxy) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


# --- the pooler -----------------------------------------------------------------------------------------------


def pid_of(connection: Connection) -> int:
    return connection.execute("SELECT pg_backend_pid()").fetchone()[0]  # type: ignore[index]


def test_each_transaction_is_on_another_session(pooler: Pooler) -> None:
    """In turn; within a block it stays the same."""
    with connect(pooler) as connection:
        pids = [pid_of(connection) for _ in range(4)]
        assert (len(set(pids)), pids[:2]) == (2, pids[2:])
        with connection.transaction():
            assert len({pid_of(connection) for _ in range(4)}) == 1


def test_what_a_session_was_told_is_not_known_to_the_next(pooler: Pooler) -> None:
    """A setting, a prepared statement, a temporary table."""
    with connect(pooler) as connection:
        connection.execute("SET search_path = elsewhere")
        assert connection.execute("SHOW search_path").fetchone() != ("elsewhere",)
        assert connection.execute("SHOW search_path").fetchone() == ("elsewhere",)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            prepare(connection)


def test_more_clients_than_sessions(pooler: Pooler, table: str, postgres_server: Server) -> None:
    """They wait for each other, transaction by transaction."""

    def work(first: int) -> None:
        with connect(pooler, prepare_threshold=None) as connection:
            for x in range(first, first + 10):
                with connection.transaction():
                    insert(connection, table, x)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(0, 80, 10)))
    assert rows(postgres_server, table) == list(range(80))
    assert pooler.commits == 80


def test_a_client_that_leaves_in_a_block_leaves_nothing(pooler: Pooler, table: str, postgres_server: Server) -> None:
    """Its session is ended, and another takes its place."""
    connection = connect(pooler, autocommit=False)
    insert(connection, table, 1)
    connection.close()
    with connect(pooler) as other:
        for x in range(2, 6):
            insert(other, table, x)
    until(lambda: rows(postgres_server, table) == [2, 3, 4, 5], "only the other client's rows are there")


def test_sessions_that_are_ended_are_replaced(pooler: Pooler, postgres_server: Server) -> None:
    """At the price of a lost connection at most for each."""
    with connect(pooler) as connection:
        ended = {pid_of(connection), pid_of(connection)}
        for pid in ended:
            postgres_server.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))
    with connect(pooler) as connection:
        assert not ended & {pid_of(connection), pid_of(connection)}


def test_startup_options_are_refused(pooler: Pooler) -> None:
    """As PgBouncer does."""
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        connect(pooler, options="-c search_path=elsewhere")
