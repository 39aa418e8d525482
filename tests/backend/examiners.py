"""How the examination gets at the backends of this package."""

from __future__ import annotations

from pathlib import Path

import apsw

from stepwell.backend.base import Backend
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.testing.conformance import BackendConformance


class ExaminesMemory(BackendConformance):
    kind: type[InMemoryBackend] = InMemoryBackend

    def make_backend(self, tmp_path: Path) -> Backend:
        return self.kind(lease_clock=self.clock)


class ExaminesSqlite(BackendConformance):
    kind: type[SqliteBackend] = SqliteBackend

    def make_backend(self, tmp_path: Path) -> Backend:
        return self.kind(tmp_path / "store.db", lease_clock=self.clock)

    def child_source(self, tmp_path: Path) -> str:
        path = str(tmp_path / "store.db")
        return f"from stepwell.backend.sqlite import SqliteBackend; backend = SqliteBackend({path!r})"

    def begin(self, backend: Backend) -> apsw.Connection:
        assert isinstance(backend, SqliteBackend)
        connection = backend.connect()
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def finish(self, connection: object, keep: bool) -> None:
        assert isinstance(connection, apsw.Connection)
        connection.execute("COMMIT" if keep else "ROLLBACK")
        connection.close()
