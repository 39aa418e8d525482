"""Word of writes comes however many files are open, however its connection fares, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from enum import IntEnum
from threading import Event
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from stepwell.backend import postgres_listen
from stepwell.backend.postgres import PostgresBackend
from stepwell.backend.postgres_listen import Listener, has_answered
from stepwell.backend.postgres_pack import packed_values
from stepwell.testing.sample import T0, create, creation

from ..postgres import Server, until  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252


@pytest.fixture
def many_files() -> Iterator[None]:
    """Have so many files open that the next one has a number which select() does not take."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] < 4_096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4_096, before[1]), before[1]))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1_100:
        opened.append(os.dup(opened[0]))
    yield
    for each in opened:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def write(backend: PostgresBackend) -> None:
    """Write what others may wait for."""
    create(backend, None, replace(creation(backend), due_us=T0))


def watching_connects(backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Return what is set when the backend connects anew."""
    connect, again = backend._server.connect, Event()

    def connecting(**options: Any) -> Any:
        again.set()
        return connect(**options)

    monkeypatch.setattr(backend._server, "connect", connecting)
    return again


@pytest.mark.usefixtures("many_files")
def test_many_open_files_keep_no_word_back(postgres_place: tuple[str, str]) -> None:
    """A busy server has thousands; both to hear and to tell goes on."""
    dsn, schema = postgres_place
    with PostgresBackend(dsn, schema=schema) as one, PostgresBackend(dsn, schema=schema) as other:
        heard = Event()
        one.hint()
        assert other.watch(heard.set) is not None
        write(one)
        assert heard.wait(10)


def test_who_asks_while_it_is_closed_leaves_nothing_behind(
    postgres_server: Server, postgres_place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that waits for news must not begin to listen again."""
    dsn, schema = postgres_place
    backend, close = PostgresBackend(f"{dsn}&application_name={schema}", schema=schema), Listener.close
    backend.hint()

    def closing(listener: Listener) -> None:
        close(listener)
        backend.hint()

    monkeypatch.setattr(Listener, "close", closing)
    backend.close()
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    until(lambda: postgres_server.execute(count, [schema]) == [(0,)], "its connections are gone")


def test_what_was_said_while_the_connection_hung_is_heard_after_it(
    postgres_server: Server, postgres_place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers no more, another connection is made, and what came between is not overlooked."""
    monkeypatch.setattr(postgres_listen, "HEALTH_S", 0.05)
    monkeypatch.setattr(postgres_listen, "ANSWER_S", 0.05)
    (dsn, schema), heard = postgres_place, Event()
    with (
        Proxy(postgres_server.socket) as proxy,
        PostgresBackend(dsn, schema=schema) as other,
        PostgresBackend(proxy.dsn(), schema=schema) as backend,
    ):
        assert backend.watch(heard.set) is not None
        again = watching_connects(backend, monkeypatch)
        proxy.freeze()
        assert again.wait(10)
        write(other)
        proxy.thaw(cut=False)
        assert heard.wait(10)


def test_what_was_told_to_a_connection_that_hung_is_told_again(
    postgres_server: Server, postgres_place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has confirmed it, so it may have been lost with the connection."""
    monkeypatch.setattr(postgres_listen, "ANSWER_S", 0.05)
    (dsn, schema), heard = postgres_place, Event()
    with (
        Proxy(postgres_server.socket) as proxy,
        PostgresBackend(dsn, schema=schema) as other,
        PostgresBackend(proxy.dsn(), schema=schema) as backend,
    ):
        assert other.watch(heard.set) is not None
        backend.hint()
        again = watching_connects(backend, monkeypatch)
        proxy.freeze()
        backend._wrote()
        assert again.wait(10)
        proxy.thaw()
        assert heard.wait(10)


def test_what_a_user_s_transaction_brings_is_told_with_its_commit(postgres_place: tuple[str, str]) -> None:
    """A worker need not wait for its poll to begin what was started in somebody's own transaction."""
    dsn, schema = postgres_place
    with PostgresBackend(dsn, schema=schema) as one, PostgresBackend(dsn, schema=schema) as other:
        heard = Event()
        end = other.watch(heard.set)
        assert end is not None
        made = replace(creation(one), due_us=T0)
        with one.connect() as connection:
            one.within(connection).create(None, [made])
            before = heard.is_set()
            connection.commit()
        assert heard.wait(20)
        assert not before
        end()


@pytest.mark.parametrize("value", [IntEnum("Few", ["one"])(1), type("Bytes", (bytes,), {})(b"x")])
def test_a_value_of_a_subclass_is_sent_as_what_it_is(value: Any) -> None:
    """An option that is an enum, or a codec's own kind of bytes."""
    assert packed_values([value]) == packed_values([int(value) if isinstance(value, int) else bytes(value)])


def test_an_answer_that_breaks_off_is_not_waited_for() -> None:
    """A session that the server ends has one result, and nothing behind it: to ask for that stops the whole process."""

    class Line:
        results: ClassVar[list[object]] = [object()]

        def is_busy(self) -> bool:
            return not self.results

        def get_result(self) -> object:
            assert self.results, "it would wait without a limit"
            return self.results.pop()

    line: Any = Line()
    assert not has_answered(line)
    line.results.extend([None, object()])
    assert has_answered(line)
