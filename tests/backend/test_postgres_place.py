"""Where a store in PostgreSQL lives: its schema, hostile settings, several migrators, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

import stepwell
from stepwell.backend.base import Filter
from stepwell.backend.postgres import PostgresBackend
from stepwell.backend.postgres_schema import MIGRATIONS, migrate, migration_sql
from stepwell.codec import MsgpackCodec
from stepwell.errors import (
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    Closed,
    OptionError,
    SchemaTooNew,
    UsageError,
)
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    change,
    create,
    creation,
    definition_of,
    header_of,
    session_of,
    signal,
    start,
)

from ..postgres import Server, until  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252

HOSTILE = {
    "search_path": "evil, public",
    "TimeZone": "Pacific/Kiritimati",
    "synchronous_commit": "off",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "2ms",
    "lock_timeout": "1ms",
    "client_encoding": "latin1",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "DateStyle": "German",
}


@pytest.fixture
def place(postgres_server: Server) -> tuple[str, str]:
    return postgres_server.dsn(), postgres_server.new_schema()


def tables(server: Server, schema: str) -> int:
    query = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"
    return int(server.execute(query, [schema])[0][0])


# --- the schema -------------------------------------------------------------------------------------


def test_migrating_says_what_it_did(place: tuple[str, str]) -> None:
    """The second time nothing is left to do, and a store finds itself in what was made."""
    dsn, schema = place
    assert migrate(dsn, schema=schema) == list(MIGRATIONS)
    assert migrate(dsn, schema=schema) == []
    with PostgresBackend(dsn, schema=schema) as backend:
        start(backend, None)


def test_the_printed_sql_makes_the_same(postgres_server: Server, place: tuple[str, str]) -> None:
    """For whoever runs it by hand, in a schema with an odd name."""
    dsn, _ = place
    schema = 'odd "name"; --'
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(migration_sql(schema=schema).encode())
    with PostgresBackend(dsn, schema=schema) as backend:
        start(backend, None)
        assert backend.count(Filter()) == 1
    assert migrate(dsn, schema=schema) == []


def test_many_migrate_at_once(place: tuple[str, str]) -> None:
    """One does it, the others wait, and all have the same store."""
    dsn, schema = place
    barrier = Barrier(4)

    def open_one(_: int) -> str:
        barrier.wait()
        with PostgresBackend(dsn, schema=schema) as backend:
            return backend.backend_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_one, range(4)))) == 1


def test_a_migration_killed_anywhere_leaves_nothing(postgres_server: Server) -> None:
    """At each statement in turn its server process is ended: the tables are all there or none, and it is done again."""
    schema, script = postgres_server.new_schema(), migration_sql()
    statements = [part.strip() for part in script.replace('"stepwell"', schema).split(";\n") if part.strip()]
    assert len(statements) > 20
    for number in range(len(statements)):
        with psycopg.connect(postgres_server.dsn(), autocommit=True) as victim:
            for statement in statements[:number]:
                victim.execute(statement.encode())
            postgres_server.execute("SELECT pg_terminate_backend(%s)", [victim.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                victim.execute(statements[number].encode())
        assert tables(postgres_server, schema) == 0
    with PostgresBackend(postgres_server.dsn(), schema=schema) as backend:
        start(backend, None)


def test_a_store_makes_its_schema_through_lost_connections(postgres_server: Server) -> None:
    """At each statement in turn the server ends the connection; opening goes on from what is there."""
    for number in range(1, 30):
        schema, struck = postgres_server.new_schema(), []  # type: ignore[var-annotated]

        def strike(pid: int, struck: list[int] = struck) -> None:
            struck.append(pid)
            postgres_server.execute("SELECT pg_terminate_backend(%s)", [pid])

        with Proxy(postgres_server.socket) as proxy:
            proxy.at_statement(number, strike)
            with PostgresBackend(proxy.dsn(), schema=schema) as backend:
                start(backend, None)
                assert backend.count(Filter()) == 1
        postgres_server.execute(f"DROP SCHEMA {schema} CASCADE")
        if not struck:
            break
    assert number > 8


def test_a_newer_schema_is_refused(postgres_server: Server, place: tuple[str, str]) -> None:
    """Whoever wrote it knows what this one does not."""
    dsn, schema = place
    migrate(dsn, schema=schema)
    postgres_server.execute(f"UPDATE {schema}.meta SET value = '99' WHERE key = 'schema'")  # noqa: S608
    for opening in (lambda: PostgresBackend(dsn, schema=schema), lambda: migrate(dsn, schema=schema)):
        with pytest.raises(SchemaTooNew, match="upgrade stepwell"):
            opening()


def test_another_application_s_schema_is_refused(postgres_server: Server, place: tuple[str, str]) -> None:
    """Its tables are left alone."""
    dsn, schema = place
    postgres_server.execute(f"CREATE SCHEMA {schema}")
    postgres_server.execute(f"CREATE TABLE {schema}.meta (key text, value text)")
    postgres_server.execute(f"INSERT INTO {schema}.meta VALUES ('theirs', '1')")  # noqa: S608
    with pytest.raises(BackendError, match="another application"):
        PostgresBackend(dsn, schema=schema)
    assert tables(postgres_server, schema) == 1


def test_another_codec_is_refused(place: tuple[str, str]) -> None:
    """And the one it was made with is used by default."""
    dsn, schema = place
    PostgresBackend(dsn, schema=schema, codec=MsgpackCodec()).close()
    with pytest.raises(OptionError, match="codec"):
        PostgresBackend(dsn, schema=schema, codec=stepwell.JsonCodec())
    with PostgresBackend(dsn, schema=schema) as backend:
        assert isinstance(backend.codec, MsgpackCodec)


# --- roles ------------------------------------------------------------------------------------------


@pytest.fixture
def role(postgres_server: Server) -> Iterator[str]:
    """A role that may connect, and nothing else."""
    name = f"role_{postgres_server.new_schema()}"
    postgres_server.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    postgres_server.execute(f"DROP OWNED BY {name} CASCADE")
    postgres_server.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("pooled", [False, True])
def test_hostile_defaults_change_nothing(
    postgres_server: Server, place: tuple[str, str], role: str, pooled: bool
) -> None:
    """Whatever a role has set, what is written is flushed, exact, and written at all."""
    _, schema = place
    postgres_server.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    for name, value in HOSTILE.items():
        if not (pooled and name == "statement_timeout"):  # it may strike before it can be changed
            postgres_server.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    with PostgresBackend(postgres_server.dsn(user=role), schema=schema, pooled=pooled) as backend:
        ann = session_of(backend)
        odd = "\0\\'ü\ud800\U0001f600"
        header = create(backend, ann, replace(creation(backend, odd), trace=odd))
        backend.post(header.instance, signal(odd, odd))
        assert (header_of(backend, odd).instance_id, header_of(backend, odd).trace) == (odd, odd)
        assert [message.name for message in backend.mail(ann)[header.instance]] == [odd]
        assert list(backend.received(header.instance)) == [odd]
        assert backend.commit(ann, [change(header, rest=COMPLETED)]) == ["done"]
        flushed = backend._write.together(lambda db: db.row("SELECT current_setting('synchronous_commit')"))
        assert flushed == ("on",)
        assert backend.delete(odd)


def test_a_role_that_may_not_make_a_schema(postgres_server: Server, place: tuple[str, str], role: str) -> None:
    """It is told what to do, and works in one that is there."""
    dsn, schema = place
    mine = postgres_server.dsn(user=role)
    with pytest.raises(BackendUnavailable, match="stepwell migrate"):
        PostgresBackend(mine, schema=schema)
    migrate(dsn, schema=schema)
    postgres_server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    postgres_server.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    postgres_server.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
    with PostgresBackend(mine, schema=schema) as backend:
        start(backend, None)
        assert backend.count(Filter()) == 1


def test_a_role_that_may_only_read(postgres_server: Server, place: tuple[str, str], role: str) -> None:
    """Its writes are refused with the reason."""
    dsn, schema = place
    migrate(dsn, schema=schema)
    postgres_server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    postgres_server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    with PostgresBackend(postgres_server.dsn(user=role), schema=schema) as backend:
        assert backend.count(Filter()) == 0
        with pytest.raises(BackendError, match="may not do this"):
            definition_of(backend)


def test_a_read_only_connection_is_not_joined(place: tuple[str, str]) -> None:
    """The user hears it from the first write."""
    dsn, schema = place
    with PostgresBackend(dsn, schema=schema) as backend, backend.connect() as connection:
        connection.read_only = True
        with pytest.raises(BackendReadOnly):
            backend.within(connection).register("w", "f", b"plan")
        connection.rollback()


def test_another_database_is_not_joined(postgres_server: Server, place: tuple[str, str]) -> None:
    """One transaction needs one database, and this very store in it."""
    dsn, schema = place
    other = postgres_server.new_schema()
    with PostgresBackend(dsn, schema=schema) as backend, PostgresBackend(dsn, schema=other) as stranger:
        migrate(postgres_server.dsn("template1"), schema=schema)
        with psycopg.connect(postgres_server.dsn("template1")) as connection:
            with pytest.raises(OptionError, match="another database"):
                backend.within(connection).header("a")
            connection.rollback()
        postgres_server.execute(f"DROP SCHEMA {schema} CASCADE", database="template1")
        assert stranger.header("a") is None


def test_a_joined_transaction_is_as_safe_as_promised(place: tuple[str, str]) -> None:
    """One that would be reported before it is flushed is made to wait."""
    dsn, schema = place
    with PostgresBackend(dsn, schema=schema) as backend, psycopg.connect(dsn) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.commit()
        backend.within(connection).register("w", "f", b"plan")
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        connection.commit()
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dsn", ["password='s3cret", "s3cret", 7])
def test_what_is_no_dsn_is_refused_without_showing_it(dsn: Any) -> None:
    """It may be mostly a password."""
    with pytest.raises(OptionError) as refused:
        PostgresBackend(dsn)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_wrong_options_are_refused(place: tuple[str, str]) -> None:
    """Before anything is connected to."""
    for wrong in ({"schema": ""}, {"schema": "x" * 64}, {"schema": "a\0"}, {"durability": "none"}):
        with pytest.raises(OptionError):
            PostgresBackend(place[0], **wrong)  # type: ignore[arg-type]


def test_an_unknown_database_is_told_at_once(postgres_server: Server) -> None:
    """Nothing is gained by trying again."""
    with pytest.raises(BackendUnavailable, match="what the DSN says"):
        PostgresBackend(postgres_server.dsn("nowhere"))


def test_psycopg_is_asked_for_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class can be named without it; making one says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"stepwell\[postgres\]"):
        stepwell.PostgresBackend("postgresql://localhost/x")


def test_closing_closes_every_connection(postgres_server: Server, place: tuple[str, str]) -> None:
    """Those that write, read, claim, renew and listen, and the thread that did."""
    dsn, schema = place
    backend = PostgresBackend(f"{dsn}&application_name={schema}", schema=schema)
    ann = session_of(backend)
    start(backend, ann)
    backend.renew(ann)
    end = backend.watch(lambda: None)
    backend.claim(ann, "a")
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    assert postgres_server.execute(count, [schema]) == [(5,)]
    backend.close()
    backend.close()
    assert end is not None
    end()
    with pytest.raises(Closed):
        backend.hint()
    until(lambda: postgres_server.execute(count, [schema]) == [(0,)], "its connections are gone")


def test_word_of_other_processes_comes_by_itself(place: tuple[str, str]) -> None:
    """A second backend is told of a write that it may wait for, and of none in the middle of work."""
    from threading import Event

    dsn, schema = place
    with PostgresBackend(dsn, schema=schema) as one, PostgresBackend(dsn, schema=schema) as other:
        heard = Event()
        assert other.watch(heard.set) is not None
        create(one, None, replace(creation(one), due_us=T0))
        assert heard.wait(10)
