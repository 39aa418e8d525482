"""What the migrations make, as the server's catalog tells it, so that a schema can be held against it.

``sql/postgres/shape.json`` is the shape of a schema that has just been made; a test holds it to what the migrations
make. Servers of several versions write the same expression with more parentheses or casts, so those do not count.
"""

from __future__ import annotations

import pkgutil
import re
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

#: Numbers are drawn from it by name; those of other identity columns need no right of their own.
SEQUENCE: Final = "instance_id_seq"

_COLUMNS: Final = b"""
SELECT c.relname, a.attname,
    pg_catalog.format_type(a.atttypid, a.atttypmod)
        || coalesce(' COLLATE ' || pg_catalog.quote_ident(l.collname), ''),
    a.attnotnull,
    CASE WHEN a.attidentity <> '' THEN 'identity' ELSE coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') END
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation AND l.oid <> t.typcollation
WHERE c.relnamespace = %s AND c.relkind IN ('r', 'p') ORDER BY c.relname, a.attnum
"""
_INDEXES: Final = b"""
SELECT c.relname, i.relname, x.indisunique, x.indisprimary, pg_catalog.pg_get_indexdef(x.indexrelid),
    x.indisvalid AND x.indisready AND x.indislive
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
WHERE c.relnamespace = %s AND c.relkind IN ('r', 'p') ORDER BY c.relname, i.relname
"""
_PLAIN: Final = re.compile(r"::[a-z ]+(\[\])?|[\s()]|\bpg_catalog\.")
_STORED: Final = re.compile(r" WITH \([^)]*\)")


class Column(NamedTuple):
    """A column; its default is ``identity`` for one that numbers itself, ``""`` for none."""

    type: str
    not_null: bool
    default: str

    def like(self, other: Column) -> bool:
        same = (self.type, self.not_null) == (other.type, other.not_null)
        return same and plain(self.default) == plain(other.default)


class Index(NamedTuple):
    """An index; ``of`` is what follows USING in its definition."""

    unique: bool
    primary: bool
    of: str
    valid: bool = True

    def like(self, other: Index) -> bool:
        return self.unique == other.unique and plain(self.of) == plain(other.of)


class Table(NamedTuple):
    columns: dict[str, Column]
    indexes: dict[str, Index]


Shape = dict[str, Table]


def wanted_shape() -> Shape:
    """Return the shape of a schema that the migrations of this version have made."""
    text = pkgutil.get_data(__package__ or "stepwell.backend", "sql/postgres/shape.json")
    assert text is not None
    return msgspec.json.decode(text, type=Shape)


def shape_of(connection: psycopg.Connection[Any], namespace: int) -> Shape:
    """Return the shape of a schema as it is, read on a connection that sees ``pg_catalog`` first."""
    found: Shape = {}
    for table, name, *column in connection.execute(_COLUMNS, (namespace,)):
        found.setdefault(table, Table({}, {})).columns[name] = Column(*column)
    for table, name, unique, primary, definition, valid in connection.execute(_INDEXES, (namespace,)):
        of = _STORED.sub("", definition.partition(" USING ")[2])
        found.setdefault(table, Table({}, {})).indexes[name] = Index(unique, primary, of, valid)
    return found


def plain(expression: str) -> str:
    """Return an expression without what the servers' versions write differently."""
    return _PLAIN.sub("", expression)
