"""Where stories are played: each on a store of its own, which may be a copy of one that was prepared before."""

from __future__ import annotations

import shutil
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Protocol

import psycopg
from psycopg.conninfo import make_conninfo

from stepwell.backend.postgres_schema import migrate

from ..stores import schema_of  # noqa: TID252 - the tests are not installed


class Places(Protocol):
    def of(self, story: Path) -> dict[str, str]:
        """Return what a process has to know to open a story's store."""
        ...

    def copy(self, before: Path, story: Path) -> None: ...
    def drop(self, story: Path) -> None: ...
    def close(self) -> None: ...


class Files:
    """A store is a file beside the story's ledger."""

    def of(self, story: Path) -> dict[str, str]:
        return {"dsn": "", "schema": ""}

    def copy(self, before: Path, story: Path) -> None:
        shutil.copytree(before.parent, story.parent, ignore=shutil.ignore_patterns("*-shm"))

    def drop(self, story: Path) -> None:
        shutil.rmtree(story.parent)

    def close(self) -> None:
        """Nothing is kept open."""


class Schemas:
    """A store is a schema, and the user's tables are in it too. Its connections go by its name.

    A copy is made into a schema that another story has done with: filling ten tables costs less than making them.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._names: dict[Path, str] = {}
        self._before: set[Path] = set()
        self._free: SimpleQueue[str] = SimpleQueue()
        self._lock = Lock()
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute(REFILL)

    def of(self, story: Path) -> dict[str, str]:
        name = self._names.get(story) or schema_of(story)
        return {"dsn": self._dsn_of(name), "schema": name}

    def _dsn_of(self, name: str) -> str:
        return make_conninfo(self._dsn, options=f"-csearch_path={name}", application_name=name)

    def copy(self, before: Path, story: Path) -> None:
        shutil.copytree(before.parent, story.parent)
        try:
            name = self._free.get_nowait()
        except Empty:
            name = schema_of(story)
            migrate(self._dsn, schema=name)
        self._names[story] = name
        if before not in self._before:
            migrate(self._dsn, schema=schema_of(before))  # if nothing was there before, an empty store was
            self._before.add(before)
        with self._lock:
            self._connection.execute("SELECT public.refill(%s, %s)", (schema_of(before), name))

    def drop(self, story: Path) -> None:
        shutil.rmtree(story.parent)
        self._free.put(self._names.pop(story))

    def close(self) -> None:
        self._connection.close()


#: Nothing that a killed process has sent lands in the next story: what worked for it on the server is ended first.
REFILL = """
CREATE OR REPLACE FUNCTION public.refill(source name, target name) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    each name;
    owned record;
BEGIN
    LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = target;
        EXIT WHEN NOT FOUND;
        PERFORM pg_sleep(0.001);
    END LOOP;
    FOR each IN SELECT tablename FROM pg_tables WHERE schemaname = target LOOP
        EXECUTE format('DELETE FROM %I.%I', target, each);
    END LOOP;
    FOR each IN SELECT tablename FROM pg_tables WHERE schemaname = source LOOP
        IF to_regclass(format('%I.%I', target, each)) IS NULL THEN
            EXECUTE format('CREATE TABLE %I.%I (LIKE %I.%I INCLUDING ALL)', target, each, source, each);
        END IF;
        EXECUTE format('INSERT INTO %I.%I OVERRIDING SYSTEM VALUE SELECT * FROM %I.%I', target, each, source, each);
    END LOOP;
    FOR owned IN
        SELECT c.relname AS tab, a.attname AS col FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = source::text::regnamespace AND a.attidentity <> ''
    LOOP
        EXECUTE format('SELECT setval(%L, last_value, is_called) FROM %s',
            pg_get_serial_sequence(format('%I.%I', target, owned.tab), owned.col),
            pg_get_serial_sequence(format('%I.%I', source, owned.tab), owned.col));
    END LOOP;
END
$$
"""
