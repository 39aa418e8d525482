"""A line that is used again brings nothing with it, and is used by whoever wants one to the same server only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from stepwell.backend.postgres_errors import Place
from stepwell.backend.postgres_lines import BoundedConnection
from stepwell.backend.postgres_lines import Server as Lines

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..warm import Warm  # noqa: TID252


@pytest.fixture
def warm(postgres_server: Server) -> Iterator[Warm]:
    with closing(Warm()) as made:
        end = made.watch()
        made.dsn = postgres_server.dsn()
        yield made
        end()


@pytest.fixture
def lines(postgres_server: Server) -> Lines:
    return Lines(Place(postgres_server.dsn(), "s"), None, "on", 1_000_000)


def asked(connection: psycopg.Connection[Any], query: bytes) -> Any:
    (value,) = connection.execute(query).fetchone() or (None,)
    return value


def pid(connection: psycopg.Connection[Any]) -> int:
    return connection.info.backend_pid


def test_nothing_is_left_of_whoever_had_it(warm: Warm, lines: Lines) -> None:
    """Neither a setting, nor a lock, a channel, a table, or a word that was not heard yet."""
    with lines.connect() as first:
        first.execute("SET search_path = evil; SELECT pg_advisory_lock(7); LISTEN x; NOTIFY x; CREATE TEMP TABLE t ()")
        process = pid(first)
    with lines.open(BoundedConnection, autocommit=True) as second:
        assert (warm.again, pid(second)) == (1, process)
        assert asked(second, b"SELECT current_setting('search_path')") == '"$user", public'
        assert asked(second, b"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert asked(second, b"SELECT count(*) FROM pg_listening_channels()") == 0
        assert asked(second, b"SELECT to_regclass('pg_temp.t')") is None
        assert list(second.notifies(timeout=0)) == []


def test_who_has_closed_it_cannot_use_it(warm: Warm, lines: Lines) -> None:
    """As ever: the object is closed, whoever has the line now."""
    first = lines.connect()
    first.close()
    first.close()
    second = lines.connect()
    assert first.closed
    with pytest.raises(psycopg.OperationalError, match="closed"):
        first.execute("SELECT 1")
    assert asked(second, b"SELECT 1") == 1
    second.close()


@pytest.mark.parametrize("how", ["in a transaction", "ended by the server"])
def test_a_line_that_is_not_at_rest_is_not_kept(warm: Warm, lines: Lines, postgres_server: Server, how: str) -> None:
    """What was not committed is rolled back by the end of the connection, as without us."""
    with closing(lines.open(BoundedConnection)) as first:
        if how == "in a transaction":
            first.execute("SELECT 1")
        else:
            postgres_server.execute("SELECT pg_terminate_backend(%s)", [pid(first)])
            with pytest.raises(psycopg.OperationalError):
                first.execute("SELECT 1")
    lines.connect().close()
    assert warm.again == 0


def test_a_line_that_ended_while_it_was_kept_is_not_given(warm: Warm, lines: Lines, postgres_server: Server) -> None:
    """A new one is made instead."""
    with lines.connect() as first:
        process = pid(first)
    postgres_server.execute("SELECT pg_terminate_backend(%s, 10000)", [process])
    with lines.connect() as second:
        assert asked(second, b"SELECT 1") == 1
    assert warm.again == 0


def test_another_place_gets_its_own(warm: Warm, lines: Lines, postgres_server: Server) -> None:
    """Another role, database or proxy; and everybody, where lines are not kept."""
    lines.connect().close()
    other = Lines(Place(postgres_server.dsn("template1"), "s"), None, "on", 1_000_000)
    other.connect().close()
    warm.dsn = ""
    lines.connect().close()
    assert warm.again == 0
