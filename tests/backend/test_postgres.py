"""PostgreSQL passes the examination we ship, directly and behind a pooler of transactions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stepwell.backend.base import Backend
from stepwell.backend.postgres import PostgresBackend
from stepwell.backend.postgres_schema import migrate
from stepwell.testing.conformance import BackendConformance
from stepwell.testing.sample import LEASE_US

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..proxy import Pooler  # noqa: TID252

TABLES = ("definition", "session", "instance", "label", "journal", "agenda", "inbox", "received", "offer")
COUNTED = ("definition", "session", "instance", "inbox", "offer")


@pytest.fixture(scope="class")
def schema_of_class(postgres_server: Server) -> str:
    schema = postgres_server.new_schema()
    migrate(postgres_server.dsn(), schema=schema)
    return schema


class ExaminesPostgres(BackendConformance):
    """Each class has a schema of its own, which each test finds empty."""

    options: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def place(self, postgres_server: Server, schema_of_class: str) -> Iterator[None]:
        self.server, self.schema = postgres_server, schema_of_class
        yield
        empty = [f'DELETE FROM "{self.schema}".{name}' for name in TABLES]  # noqa: S608
        first = [f"SELECT setval('\"{self.schema}\".{name}_id_seq', 1, false)" for name in COUNTED]
        postgres_server.execute("; ".join(empty + first))

    @property
    def dsn(self) -> str:
        return self.server.dsn()

    def make_backend(self, tmp_path: Path) -> Backend:
        return PostgresBackend(self.dsn, schema=self.schema, **self.options)

    def pass_leases(self, backend: Backend) -> None:
        past = f"lease_until - interval '{LEASE_US + 1} us'"
        self.server.execute(f'UPDATE "{self.schema}".session SET lease_until = {past}')  # noqa: S608

    def child_source(self, tmp_path: Path) -> str:
        arguments = f"{self.server.dsn()!r}, schema={self.schema!r}, **{self.options!r}"
        return f"from stepwell.backend.postgres import PostgresBackend; backend = PostgresBackend({arguments})"

    def begin(self, backend: Backend) -> psycopg.Connection:
        assert isinstance(backend, PostgresBackend)
        return backend.connect()

    def finish(self, connection: object, keep: bool) -> None:
        assert isinstance(connection, psycopg.Connection)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        connection.commit() if keep else connection.rollback()
        connection.close()


class TestPostgres(ExaminesPostgres):
    pass


class TestBehindAPooler(ExaminesPostgres):
    """Each transaction may be on another server connection, which knows nothing of what was said before."""

    @pytest.fixture(autouse=True)
    def pooler(self, place: None) -> Iterator[None]:
        with Pooler(self.server.socket, size=2) as self.proxy:
            yield

    @property
    def dsn(self) -> str:
        return self.proxy.dsn()

    def make_backend(self, tmp_path: Path) -> Backend:
        backend = super().make_backend(tmp_path)
        assert isinstance(backend, PostgresBackend)
        assert backend._server.pooled, "it was not found out"
        return backend


for _slow in (name for name in dir(BackendConformance) if "process" in name and name.startswith("test_")):
    setattr(TestBehindAPooler, _slow, None)  # other processes do not use the pooler here
