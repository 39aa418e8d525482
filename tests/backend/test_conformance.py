"""Our own backends pass the examination we ship."""

from __future__ import annotations

from pathlib import Path

from stepwell.backend.base import Backend
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.testing.conformance import BackendConformance


class TestInMemory(BackendConformance):
    def make_backend(self, tmp_path: Path) -> Backend:
        return InMemoryBackend(lease_clock=self.clock)


class TestSqlite(BackendConformance):
    def make_backend(self, tmp_path: Path) -> Backend:
        return SqliteBackend(tmp_path / "store.db", lease_clock=self.clock)

    def child_source(self, tmp_path: Path) -> str:
        path = str(tmp_path / "store.db")
        return f"from stepwell.backend.sqlite import SqliteBackend; backend = SqliteBackend({path!r})"
