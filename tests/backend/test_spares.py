"""A schema that is used again is as good as new, and only one that is gets used again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from stepwell.backend.base import Filter
from stepwell.backend.postgres import PostgresBackend
from stepwell.codec import JsonCodec, MsgpackCodec
from stepwell.testing.sample import session_of, start

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..spares import Spares  # noqa: TID252


@pytest.fixture
def spares() -> Iterator[Spares]:
    with closing(Spares()) as made:
        yield made


@pytest.fixture
def used(postgres_server: Server) -> str:
    """A schema with a row in most of its tables."""
    schema = postgres_server.new_schema()
    with PostgresBackend(postgres_server.dsn(), schema=schema) as backend:
        start(backend, session_of(backend), "held")
        start(backend, None)
    return schema


def test_a_schema_that_is_used_again_is_as_new(postgres_server: Server, spares: Spares, used: str) -> None:
    """It has no rows, counts from 1, is another store, and has the codec of whoever opens it."""
    dsn, again = postgres_server.dsn(), postgres_server.new_schema()
    with PostgresBackend(dsn, schema=used) as backend:
        before = backend.backend_id
    assert spares.take(dsn, used)
    spares.give(dsn, again, MsgpackCodec().id)
    assert spares.given == 1
    with PostgresBackend(dsn, schema=again, codec=MsgpackCodec()) as backend:
        assert backend.count(Filter()) == 0
        assert backend.backend_id != before
        assert session_of(backend).id == 1
        assert start(backend, None).instance == 1
    query = f'SELECT (SELECT count(*) FROM "{again}".journal), (SELECT count(*) FROM "{again}".agenda)'  # noqa: S608
    assert postgres_server.execute(query) == [(1, 1)]


def test_a_store_that_has_its_tables_keeps_them(postgres_server: Server, spares: Spares, used: str) -> None:
    """A child process may have made it first."""
    dsn, other = postgres_server.dsn(), postgres_server.new_schema()
    assert spares.take(dsn, used)
    with PostgresBackend(dsn, schema=other) as backend:
        start(backend, None)
    spares.give(dsn, other, JsonCodec().id)
    assert spares.given == 0
    with PostgresBackend(dsn, schema=other) as backend:
        assert backend.count(Filter()) == 1


@pytest.mark.parametrize(
    "change",
    ["CREATE TABLE {}.mine ()", "ALTER TABLE {}.journal DROP CONSTRAINT journal_pkey", "DROP INDEX {}.agenda_due"],
)
def test_a_schema_that_was_changed_is_not_used_again(
    postgres_server: Server, spares: Spares, used: str, change: str
) -> None:
    """It is left to be dropped."""
    other = postgres_server.new_schema()
    PostgresBackend(postgres_server.dsn(), schema=other).close()
    assert spares.take(postgres_server.dsn(), other)
    postgres_server.execute(change.format(used))
    assert not spares.take(postgres_server.dsn(), used)


def test_a_schema_that_somebody_works_on_is_not_used_again(postgres_server: Server, spares: Spares, used: str) -> None:
    """What an open transaction has written would be in the next store."""
    with psycopg.connect(postgres_server.dsn()) as late:
        late.execute(f'INSERT INTO "{used}".label VALUES (1, %s, %s)', [b"", b""])  # noqa: S608
        assert not spares.take(postgres_server.dsn(), used)
    assert spares.take(postgres_server.dsn(), used)
