"""What ``doctor`` finds out about a schema in PostgreSQL: its version, tables, and what the role may do with them.

Nothing is mended here; each finding names the statement that does it, for whoever owns the tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, LiteralString

import psycopg

from stepwell.backend.postgres_schema import APPLICATION, MIGRATIONS
from stepwell.backend.postgres_shape import SEQUENCE, Column, Index, Shape, Table, shape_of, wanted_shape
from stepwell.backend.urls import Place
from stepwell.codec import codec_name

from .checks import Finding
from .text import counted

Connection = psycopg.Connection[Any]

RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
NAMED: Final = 5

_NAMESPACE: Final = """
SELECT n.oid, quote_ident(n.nspname), has_schema_privilege(n.oid, 'USAGE'), pg_get_userbyid(n.nspowner)
FROM pg_namespace n WHERE n.nspname = %s::name
"""
_OTHERS: Final = """
SELECT n.nspname FROM pg_namespace n WHERE EXISTS (
    SELECT 1 FROM pg_class a, pg_class j WHERE a.relnamespace = n.oid AND a.relname = 'agenda' AND a.relkind = 'r'
        AND j.relnamespace = n.oid AND j.relname = 'journal' AND j.relkind = 'r')
ORDER BY n.nspname
"""
_MAY_CREATE: Final = "SELECT has_database_privilege(current_database(), 'CREATE')"
_TABLES: Final = """
SELECT c.relname, pg_get_userbyid(c.relowner), c.relpersistence = 'u', row_security_active(c.oid),
    coalesce('autovacuum_enabled=false' = ANY(c.reloptions) OR 'autovacuum_enabled=off' = ANY(c.reloptions), false),
    ARRAY(SELECT r FROM unnest(%s::text[]) WITH ORDINALITY u(r, n)
          WHERE NOT has_table_privilege(c.oid, r) ORDER BY n)
FROM pg_class c WHERE c.relnamespace = %s AND c.relname = ANY(%s::name[]) AND c.relkind IN ('r', 'p')
ORDER BY c.relname
"""
_SEQUENCE: Final = """
SELECT has_sequence_privilege(c.oid, 'USAGE'), pg_get_userbyid(c.relowner)
FROM pg_class c WHERE c.relnamespace = %s AND c.relname = %s AND c.relkind = 'S'
"""


class Tables:
    """One schema, looked at in a transaction that sees ``pg_catalog`` first."""

    def __init__(self, connection: Connection, place: Place, role: str, command: Callable[..., str]) -> None:
        self._connection, self._place, self._role, self._command = connection, place, role, command
        self._wanted = wanted_shape()
        self._found: Shape = {}
        self.schema = ""  # as SQL takes it
        #: Whether a store can be opened and read, and opening it changes nothing.
        self.usable = True

    def _rows(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()

    def findings(self) -> Iterator[Finding]:
        space = self._rows(_NAMESPACE, self._place.schema)
        if not space or not (found := shape_of(self._connection, space[0][0])).keys() & self._wanted.keys():
            self.usable = False
            yield self._missing()
            return
        ((number, self.schema, enters, owner),) = space
        self._found = found
        if not enters:
            self.usable = False
            text = f"role {self._role} may not use schema {self.schema}; its owner {owner} may let it"
            yield Finding("problem", "permissions", text, f"GRANT USAGE ON SCHEMA {self.schema} TO {self._role};")
        yield from self._permissions(number, enters)
        yield from self._version()

    def _missing(self) -> Finding:
        others = [name for (name,) in self._rows(_OTHERS)]
        text = f"there is no store in schema {self._place.schema} yet"
        if others:
            text += f"; there is one in {', '.join(others[:NAMED])}, which the URL's ?schema= names"
        ((creates,),) = self._rows(_MAY_CREATE)
        if not creates:
            text += f"; role {self._role} may not make it, so let one that may"
        return Finding("problem", "schema", text, self._command("migrate"))

    # --- what the role may do -------------------------------------------------------------------------

    def _permissions(self, number: int, enters: bool) -> Iterator[Finding]:
        lacks: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        owners: set[str] = set()
        rows = self._rows(_TABLES, list(RIGHTS), number, list(self._wanted))
        for table, owner, unlogged, hidden, unswept, missing in rows:
            if missing:
                lacks[tuple(missing)].append(table)
                owners.add(owner)
            yield from self._odd(table, unlogged=unlogged, hidden=hidden, unswept=unswept)
        for rights, tables in lacks.items():
            yield self._lacking(rights, tables, owners)
        sequence = list(self._sequence(number))
        yield from sequence
        if enters and not lacks and not sequence:
            text = f"role {self._role} may do all it has to with the tables of schema {self.schema}"
            yield Finding("ok", "permissions", text)

    def _lacking(self, rights: tuple[str, ...], tables: list[str], owners: set[str]) -> Finding:
        if "SELECT" in rights:
            self.usable = False
        every = len(tables) == len(self._wanted)
        on = f"ALL TABLES IN SCHEMA {self.schema}" if every else ", ".join(map(self._full, tables))
        which = "any table" if every else ", ".join(tables)
        text = f"role {self._role} has no {', '.join(rights)} on {which} of schema {self.schema}"
        text += f"; their owner {', '.join(sorted(owners))} may grant it"
        return Finding("problem", "permissions", text, f"GRANT {', '.join(rights)} ON {on} TO {self._role};")

    def _full(self, name: str) -> str:
        return f"{self.schema}.{name}"

    def _odd(self, table: str, *, unlogged: bool, hidden: bool, unswept: bool) -> Iterator[Finding]:
        full = self._full(table)
        if unlogged:
            text = f"{full} is unlogged: a crash of the server empties it"
            yield Finding("problem", "durability", text, f"ALTER TABLE {full} SET LOGGED;")
        if hidden:
            text = f"row level security hides rows of {full} from role {self._role}"
            yield Finding("problem", "permissions", text, f"ALTER TABLE {full} DISABLE ROW LEVEL SECURITY;")
        if unswept:
            text = f"autovacuum is off for {full}: dead rows stay, and claims get slower with each"
            yield Finding("problem", "vacuum", text, f"ALTER TABLE {full} RESET (autovacuum_enabled);")

    def _sequence(self, number: int) -> Iterator[Finding]:
        """Numbers of instances are drawn by name, which takes a right that inserting alone does not."""
        full = self._full(SEQUENCE)
        rows = self._rows(_SEQUENCE, number, SEQUENCE)
        if not rows:
            text = f"sequence {full} is missing, from which instances are numbered"
            yield Finding("problem", "schema", text, self._command("migrate", "--sql"))
        elif not rows[0][0]:
            text = (
                f"role {self._role} may not draw numbers from {full}, so it can start nothing; its owner {rows[0][1]}"
            )
            yield Finding(
                "problem", "permissions", f"{text} may grant it", f"GRANT USAGE ON SEQUENCE {full} TO {self._role};"
            )

    # --- what there is --------------------------------------------------------------------------------

    def _version(self) -> Iterator[Finding]:
        if not self.usable:  # the version stands in a table
            return
        if "meta" not in self._found:
            yield from self._differences()
            return
        meta = self._meta()
        version, newest = int(meta.get("schema", "0")), len(MIGRATIONS)
        if meta.get("application") != APPLICATION:
            self.usable = False
            text = f"{self.schema}.meta is another application's; give stepwell a schema of its own"
            yield Finding("problem", "schema", text, self._command("migrate", "--db", "postgresql://…?schema=stepwell"))
        elif version > newest:
            self.usable = False
            text = f"schema {self.schema} has version {version}, and this stepwell knows up to {newest}"
            yield Finding("problem", "schema", text, "pip install --upgrade stepwell")
        elif version < newest:
            self.usable = False
            text = f"schema {self.schema} has version {version}, and this stepwell wants {newest}"
            yield Finding("problem", "schema", text, self._command("migrate"))
        else:
            yield from self._shape(version, meta)

    def _meta(self) -> Mapping[str, str]:
        if not self._found.get("meta", Table({}, {})).columns.keys() >= {"key", "value"}:
            return {}
        return dict(self._connection.execute(f"SELECT key, value FROM {self.schema}.meta".encode()).fetchall())  # noqa: S608  # quoted by the server

    def _shape(self, version: int, meta: Mapping[str, str]) -> Iterator[Finding]:
        wrong = list(self._differences())
        yield from wrong
        if not wrong:
            values = codec_name(int(meta.get("codec_id", "0")))
            tables = counted(len(self._wanted), "table")
            indexes = counted(sum(len(table.indexes) for table in self._wanted.values()), "index", "indexes")
            text = f"{self.schema} has version {version}, with {tables} and {indexes} as made; values are {values}'s"
            yield Finding("ok", "schema", text)

    def _differences(self) -> Iterator[Finding]:
        for name, wanted in self._wanted.items():
            found = self._found.get(name)
            if found is None:
                self.usable = False
                text = f"table {self._full(name)} is missing; a backup has its rows, and this prints how it is made"
                yield Finding("problem", "schema", text, self._command("migrate", "--sql"))
                continue
            yield from self._columns(name, wanted.columns, found.columns)
            yield from self._indexes(name, wanted.indexes, found.indexes)

    def _columns(self, table: str, wanted: Mapping[str, Column], found: Mapping[str, Column]) -> Iterator[Finding]:
        full = self._full(table)
        for name, column in wanted.items():
            there = found.get(name)
            if there is None:
                self.usable = False
                text = f"column {name} of {full} is missing"
                yield Finding("problem", "schema", text, f"ALTER TABLE {full} ADD COLUMN {name} {_said(column)};")
            elif not there.like(column):
                text = f"column {name} of {full} is {_said(there)}, and was made as {_said(column)}"
                yield Finding(
                    "problem", "schema", text, f"ALTER TABLE {full} ALTER COLUMN {name} {_alter(column, there)};"
                )
        for name in found.keys() - wanted.keys():
            if found[name].not_null and not found[name].default:
                text = f"column {name} of {full} is not stepwell's, and must be given with each row"
                yield Finding("problem", "schema", text, f"ALTER TABLE {full} ALTER COLUMN {name} DROP NOT NULL;")

    def _indexes(self, table: str, wanted: Mapping[str, Index], found: Mapping[str, Index]) -> Iterator[Finding]:
        for name, index in wanted.items():
            there = found.get(name)
            if there is None and any(other.valid and other.like(index) for other in found.values()):
                continue  # under another name it does the same
            make = _make(self._full(table), name, index)
            if there is None:
                text = f"index {self._full(name)} is missing: {_loss(index)}"
                yield Finding("problem", "schema", text, make)
            elif not there.valid:
                text = f"index {self._full(name)} is INVALID, so it is not used: {_loss(index)}"
                yield Finding("problem", "schema", text, f"REINDEX INDEX CONCURRENTLY {self._full(name)};")
            elif not there.like(index):
                text = f"index {self._full(name)} is {there.of}, and was made as {index.of}"
                yield Finding("problem", "schema", text, f"DROP INDEX {self._full(name)}; {make}")


def _said(column: Column) -> str:
    default = column.default
    given = " GENERATED ALWAYS AS IDENTITY" if default == "identity" else f" DEFAULT {default}" if default else ""
    return f"{column.type}{' NOT NULL' if column.not_null else ''}{given}"


def _alter(wanted: Column, found: Column) -> str:
    if wanted.type != found.type:
        return f"TYPE {wanted.type}"
    if wanted.not_null != found.not_null:
        return "SET NOT NULL" if wanted.not_null else "DROP NOT NULL"
    if wanted.default == "identity":
        return "ADD GENERATED ALWAYS AS IDENTITY"
    return f"SET DEFAULT {wanted.default}" if wanted.default else "DROP DEFAULT"


def _loss(index: Index) -> str:
    return "nothing keeps rows from being there twice" if index.unique else "what it finds is searched for in all rows"


def _make(table: str, name: str, index: Index) -> str:
    if index.primary:
        return f"ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY {index.of.partition(' ')[2]};"
    unique = "UNIQUE " if index.unique else ""
    return f"CREATE {unique}INDEX CONCURRENTLY {name} ON {table} USING {index.of};"
