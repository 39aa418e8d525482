"""The schema in PostgreSQL: how it is made, brought up to date, and checked.

Each migration is one transaction under an advisory lock, so it is there whole or not at all, whoever is killed and
however many try at once; who comes second finds it done. A migration only adds: programs of the version before go on
working until a later one takes away what they used.
"""

from __future__ import annotations

import pkgutil
import secrets
from hashlib import blake2b
from typing import Any, Final

import psycopg

from stepwell.errors import BackendUnavailable, SchemaTooNew
from stepwell.timing import Duration, duration_us

from .postgres_errors import Place
from .postgres_lines import Db, Line, Server, Texts

MIGRATIONS: Final = ("001_schema.sql",)
APPLICATION: Final = "stepwell"

# Not to_regclass(): what it remembers is older than the lock that was waited for.
FIND: Final = """
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'meta')
FROM pg_catalog.pg_namespace n WHERE n.nspname = $1::name
"""
META: Final = "SELECT key, value FROM @meta"
SET_META: Final = """
INSERT INTO @meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""


def migrate(dsn: str, *, schema: str = "stepwell") -> list[str]:
    """Bring a schema up to date, making it if it is missing, and return the names of the migrations applied.

    A store does this by itself when it is opened; call it before a deployment if the role of the program may not.

    Raises:
        OptionError: a DSN or schema name that PostgreSQL would not accept.
        SchemaTooNew: a newer stepwell has been here.
        BackendError: the server cannot be reached, or the role may not do it.

    Example:
        >>> migrate("postgresql://dba@db.example/orders")  # doctest: +SKIP
        ['001_schema.sql']
    """
    server = Server(Place(dsn, schema), None, "on", 30_000_000)
    line = Line(server)
    try:
        return Schema(server, line, _default_codec()).migrate()
    finally:
        line.close()


def is_there(dsn: str, *, schema: str, timeout: Duration) -> bool:
    """Return whether the schema has a store's tables, or what looks like them. Changes nothing.

    Raises:
        OptionError: a DSN or schema name that PostgreSQL would not accept.
        BackendError: the server cannot be reached, or the role may not ask it.
    """
    line = Line(Server(Place(dsn, schema), None, "on", duration_us(timeout, "timeout")), writes=False)
    try:
        found = line.once(lambda db: db.row(FIND, schema))
        return found is not None and bool(found[0])
    finally:
        line.close()


def migration_sql(*, schema: str = "stepwell") -> str:
    """Return what :func:`migrate` would do to an empty database, to be read or run by hand."""
    texts = Texts(schema)
    parts = [f"CREATE SCHEMA IF NOT EXISTS {texts.schema};", *(texts.said(migration(name)) for name in MIGRATIONS)]
    values = {**_new_store(_default_codec()), "schema": str(len(MIGRATIONS))}
    parts += [texts.said(f"INSERT INTO @meta (key, value) VALUES ('{key}', '{values[key]}');") for key in values]  # noqa: S608  # our own
    return "BEGIN;\n\n" + "\n\n".join(part.strip() for part in parts) + "\n\nCOMMIT;\n"


def migration(name: str) -> str:
    """Return the text of one migration, with ``@`` before the names of our tables."""
    text = pkgutil.get_data(__package__ or "stepwell.backend", f"sql/postgres/{name}")
    assert text is not None, name
    return text.decode()


class Schema:
    """The schema of one backend, seen through its writing connection."""

    def __init__(self, server: Server, line: Line, codec_id: int) -> None:
        self._server, self._line, self._codec_id = server, line, codec_id

    def ready(self) -> dict[str, str]:
        """Return what the store says of itself, after bringing its schema up to date if that is needed."""
        meta = self._line.once(self._meta)
        if self._version(meta) < len(MIGRATIONS):
            self.migrate()
            meta = self._line.once(self._meta)
        return meta

    def migrate(self) -> list[str]:
        done: list[str] = []
        while (name := self._line.together(self._migrate_once)) is not None:
            done.append(name)
        return done

    def _meta(self, db: Db) -> dict[str, str]:
        found = db.row(FIND, self._server.place.schema)
        if found is None or not found[0]:
            return {"namespace": "there"} if found is not None else {}
        return dict(db.rows(META))

    def _version(self, meta: dict[str, str]) -> int:
        if "application" not in meta and "schema" not in meta:
            if meta.keys() - {"namespace"}:
                raise BackendUnavailable(
                    f"{self._server.place}: its table meta is another application's; give stepwell a schema of its own"
                )
            return 0
        version = int(meta.get("schema", "0"))
        if version > len(MIGRATIONS):
            raise SchemaTooNew(
                f"{self._server.place} has schema {version} and this stepwell knows up to {len(MIGRATIONS)}; "
                "upgrade stepwell in this environment"
            )
        return version

    def _migrate_once(self, db: Db) -> str | None:
        """Apply the next migration and return its name, or ``None`` if there is none."""
        db.run("SELECT pg_advisory_xact_lock($1)", _lock_key(self._server.place.schema))
        meta = self._meta(db)
        version = self._version(meta)
        if version == len(MIGRATIONS):
            return None
        try:
            if not meta:
                self._execute(db, f"CREATE SCHEMA IF NOT EXISTS {self._server.texts.schema}")
            self._execute(db, self._server.texts.said(migration(MIGRATIONS[version])))
        except psycopg.errors.InsufficientPrivilege as error:
            raise BackendUnavailable(
                f"{self._server.place}: this role may not make the schema's tables; let one that may run "
                f"`stepwell migrate`, or run what it prints with --sql ({self._server.place.clean(error)})"
            ) from error
        values = {"schema": str(version + 1), **(_new_store(self._codec_id) if not version else {})}
        for key, value in values.items():
            db.run(SET_META, key, value)
        return MIGRATIONS[version]

    @staticmethod
    def _execute(db: Db, script: str) -> None:
        connection: psycopg.Connection[Any] = db.connection
        connection.execute(script.encode(), prepare=False)


def _new_store(codec_id: int) -> dict[str, str]:
    return {"application": APPLICATION, "backend_id": secrets.token_hex(16), "codec_id": str(codec_id)}


def _default_codec() -> int:
    from stepwell.codec import JsonCodec

    return JsonCodec().id


def _lock_key(schema: str) -> int:
    digest = blake2b(f"stepwell {schema}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
