"""Schemas that tests have done with: each is emptied, and becomes the store of a later test under that test's name.

To make a store's tables and to drop them costs twenty times what it takes to empty them. A schema is used again only
if no transaction is open on it and it has what it was made with; it gets another identity, and counts from 1 again.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from threading import Lock
from typing import Any

import psycopg
from psycopg import sql

THINGS = """
SELECT c.relname, c.relkind, pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid
WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s) ORDER BY 1, 3
"""
QUICKLY = "SET lock_timeout = '200ms'"


class Spares:
    """The schemas of one server that nobody uses, and a connection to give and take them."""

    def __init__(self) -> None:
        self._free: list[str] = []
        self._made_of: list[tuple[Any, ...]] = []
        self._pid, self._lock = os.getpid(), Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self.given = 0

    def give(self, dsn: str, schema: str, codec_id: int) -> None:
        """Let a store find its tables made, if there is a schema to spare and it has none yet."""
        if not self._free or os.getpid() != self._pid:
            return
        with self._lock, suppress(psycopg.Error):
            spare, meta = self._free[-1], sql.Identifier(schema, "meta")
            with suppress(psycopg.errors.DuplicateSchema), self._connected(dsn).transaction():
                self._say(_renamed(spare, schema))
                for key, value in (("backend_id", secrets.token_hex(16)), ("codec_id", str(codec_id))):
                    self._say(sql.SQL("UPDATE {} SET value = {} WHERE key = {}").format(meta, value, key))
                self._free.pop()
                self.given += 1

    def take(self, dsn: str, schema: str) -> bool:
        """Take a schema that nobody uses any more; return whether that was possible."""
        with self._lock, suppress(psycopg.Error):
            connection, spare = self._connected(dsn), f"spare_{secrets.token_hex(8)}"
            things = connection.execute(THINGS, [schema]).fetchall()
            self._made_of = self._made_of or things
            if not things or things != self._made_of:
                return False
            with connection.transaction():
                self._empty(schema)
                self._say(_renamed(schema, spare))
            self._free.append(spare)
            return True
        return False

    def _empty(self, schema: str) -> None:
        tables = sorted({name for name, kind, _ in self._made_of if kind == "r"} - {"meta"})
        names = [sql.Identifier(schema, name) for name in tables]
        counted = [name for name, kind, _ in self._made_of if kind == "S"]
        parts = [sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(names))]
        parts += [sql.SQL("DELETE FROM {}").format(name) for name in names]
        parts += [
            sql.SQL("SELECT pg_catalog.setval({}::regclass, 1, false)").format(f'"{schema}"."{name}"')
            for name in counted
        ]
        self._say(sql.SQL("; ").join(parts))

    def _say(self, statement: sql.Composable) -> None:
        assert self._connection is not None
        self._connection.execute(statement, prepare=False)

    def _connected(self, dsn: str) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._free, self._made_of = [], []
            self._connection = psycopg.connect(dsn, autocommit=True, connect_timeout=5)
            self._connection.execute(QUICKLY)
        return self._connection

    def close(self) -> None:
        if self._connection is not None and os.getpid() == self._pid:
            self._connection.close()


def _renamed(schema: str, name: str) -> sql.Composable:
    return sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(schema), sql.Identifier(name))
