"""Where the chaos happens: a store of some kind, as any process opens it."""

from __future__ import annotations

from typing import Any, NamedTuple

from stepwell import SqliteBackend

from .bank import Bank


class Place(NamedTuple):
    """``at`` is a file, or a DSN that may lead through a proxy."""

    kind: str
    at: str
    schema: str = ""

    def open(self) -> Any:
        if self.kind == "sqlite":
            return SqliteBackend(self.at, durability="fast")
        from stepwell.backend.postgres import PostgresBackend

        return PostgresBackend(self.at, schema=self.schema)

    def bank(self, backend: Any) -> Bank:
        if self.kind == "sqlite":
            return Bank(backend.connect, "?")
        return Bank(self._connect, "%s", f"{self.schema}_bank.")

    def _connect(self) -> Any:
        import psycopg

        db = psycopg.connect(self.at, autocommit=True)
        db.execute("SELECT set_config('search_path', %s, false)", (f"{self.schema}_bank",))
        db.execute("SET idle_in_transaction_session_timeout = '3s'")  # a stopped worker may have accounts locked
        return db
