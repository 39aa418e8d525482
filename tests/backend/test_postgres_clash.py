"""A seq that another transaction takes, and has not committed yet, is a conflict like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg
import pytest
from msgspec.structs import replace

from stepwell.backend.base import Change, Header, Rest, Session
from stepwell.backend.postgres import PostgresBackend
from stepwell.testing.sample import WAITING, change, create, creation, definition_of, seqs, session_of

from ..postgres import Server, until  # noqa: TID252 - the tests are not installed

T = TypeVar("T")
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"


class Store:
    """A store, a session, and a transaction that has written the next entry of an instance and is still open."""

    def __init__(self, server: Server, schema: str) -> None:
        self.server, self.schema = server, schema
        self.backend = PostgresBackend(f"{server.dsn()}&application_name={schema}", schema=schema)
        self.ann: Session = session_of(self.backend)
        self.connection = self.backend.connect()

    def claimed(self, instance_id: str) -> Header:
        return create(self.backend, self.ann, replace(creation(self.backend, instance_id), claim=True))

    def write_beside(self, *changes: Change) -> None:
        assert set(self.backend.within(self.connection).commit(self.ann, changes)) == {"done"}

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Do work that has to wait for the transaction, which is committed then."""
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            until(lambda: self.server.execute(WAITS, [self.schema]) != [(0,)], "it waits for the transaction")
            self.connection.commit()
            return working.result(30)


@pytest.fixture
def store(postgres_server: Server) -> Iterator[Store]:
    store = Store(postgres_server, postgres_server.new_schema())
    yield store
    store.connection.close()
    store.backend.close()


def test_beside_a_change_that_lost(store: Store) -> None:
    """One change of the commit is old, the other one's seq is being taken: both are told, and nothing else breaks."""
    old, met = store.claimed("old"), store.claimed("met")
    store.backend.commit(store.ann, [change(old)])
    store.write_beside(change(met))
    outcomes: Sequence[str] = store.meanwhile(lambda: store.backend.commit(store.ann, [change(old), change(met)]))
    assert outcomes == ["conflict", "conflict"]
    assert (seqs(store.backend, old), seqs(store.backend, met)) == ([1, 2], [1, 2])


def test_in_a_move_to_another_graph(store: Store) -> None:
    """Such a change is written by several statements, which see the seq as free until it is not."""
    met = store.claimed("met")
    store.write_beside(change(met))
    moved = change(met, rest=replace(WAITING, definition=definition_of(store.backend)))
    assert store.meanwhile(lambda: store.backend.commit(store.ann, [moved])) == ["conflict"]
    assert seqs(store.backend, met) == [1, 2]


def test_in_a_replacement(store: Store) -> None:
    """The holder records a step at the moment when another run is to take its place: the caller looks again."""
    met = store.claimed("met")
    store.write_beside(change(met))
    anew = replace(creation(store.backend, "met"), replacing=change(met, rest=Rest("cancelled", b"image")))
    assert store.meanwhile(lambda: store.backend.create(None, [anew])) == ["conflict"]
    assert seqs(store.backend, met) == [1, 2]


def test_in_a_transaction_that_sees_nothing_new(store: Store) -> None:
    """At REPEATABLE READ the entry of another is never seen, however often it is looked for."""
    met = store.claimed("met")
    store.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    joined = store.backend.within(store.connection)
    assert joined.load("met") is not None
    store.backend.commit(store.ann, [change(met)])
    assert joined.commit(store.ann, [change(met)]) == ["conflict"]
