"""The shape on record is that of a schema that has just been made.

After a change of the migrations, ``python -m tests.backend.test_postgres_shape`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

import stepwell
from stepwell.backend.postgres_schema import migrate
from stepwell.backend.postgres_shape import Index, Shape, plain, shape_of, wanted_shape

from ..postgres import Server  # noqa: TID252 - the tests are not installed

FILE = Path(stepwell.__file__).parent / "backend/sql/postgres/shape.json"


def fresh(server: Server) -> Shape:
    schema = server.new_schema()
    migrate(server.dsn(), schema=schema)
    ((number,),) = server.execute("SELECT to_regnamespace(%s)::oid", [schema])
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("SET search_path = pg_catalog")
        return shape_of(connection, number)


def flat(shape: Shape) -> dict[str, Any]:
    """Return a shape as what has to be the same, whatever the server's version."""
    columns = {f"{t}.{c}": (*x[:2], plain(x.default)) for t, table in shape.items() for c, x in table.columns.items()}
    indexes = {f"{t}/{i}": (*x[:2], plain(x.of)) for t, table in shape.items() for i, x in table.indexes.items()}
    return columns | indexes


def test_the_shape_on_record_is_what_the_migrations_make(postgres_server: Server) -> None:
    """Whoever changes a migration writes the file anew."""
    assert flat(fresh(postgres_server)) == flat(wanted_shape()), __doc__


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("btree (a) WHERE ((b IS NULL) AND (c = 'x'::text))", "btree (a) WHERE b IS NULL AND c = 'x'"),
        ("btree (a) WHERE (s = ANY (ARRAY['x'::text, 'y'::text]))", "btree (a) WHERE s = ANY (ARRAY['x', 'y'])"),
    ],
)
def test_parentheses_and_casts_do_not_count(one: str, other: str) -> None:
    """Servers differ in how many of them they write."""
    assert Index(True, False, one).like(Index(True, False, other))
    assert not Index(True, False, one).like(Index(False, False, other))
    assert not Index(True, False, one).like(Index(True, False, other.replace("(a)", "(a, b)")))


def written(shape: Shape) -> str:
    """Return a shape as JSON with a line for each column and index."""
    parts = [f'"{name}": [{lines(columns)}, {lines(indexes)}]' for name, (columns, indexes) in shape.items()]
    return "{" + ",\n".join(parts) + "}\n"


def lines(rows: dict[str, Any]) -> str:
    return "{\n" + ",\n".join(f'  "{name}": {msgspec.json.encode(row).decode()}' for name, row in rows.items()) + "\n}"


if __name__ == "__main__":
    with Server(durable=False) as made:
        FILE.write_text(written(fresh(made)), "utf-8")
