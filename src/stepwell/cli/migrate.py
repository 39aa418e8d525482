"""``stepwell migrate``: bring a database to the schema of this version."""

from __future__ import annotations

from typing import Any

import click

from stepwell.backend.urls import Place

from .common import database_option, json_option, opened, place_named, subcommand
from .mistakes import refuse
from .page import say, say_json


@subcommand(
    "migrate",
    "stepwell migrate --db postgresql://dba@db/orders",
    "stepwell migrate --db postgresql://dba@db/orders --sql > schema.sql",
    "stepwell migrate --db sqlite:orders.db",
)
@click.option("--sql", is_flag=True, help="Change nothing; print what would make an empty PostgreSQL database ready.")
@database_option
@json_option
def command(sql: bool, db: str | None, as_json: bool) -> None:
    """Bring the database to the schema of this version of stepwell; one that has it already is left alone.

    Programs bring it up themselves when they open it, if their role may; this is for roles that may not, and for doing
    it before a deployment. A missing SQLite file is created.
    """
    place = place_named(db)
    if sql:
        _print_sql(place, as_json)
        return
    done = _postgres(place) if place.kind == "postgresql" else _sqlite(db)
    if as_json:
        say_json({"database": place.shown, **done})
    else:
        news = f"applied {', '.join(done['applied'])}" if done["applied"] else "is up to date"
        say(f"{place.shown} {news}")


def _sqlite(db: str | None) -> dict[str, Any]:
    with opened(db, create=True) as at:
        from .checks_file import schema_version

        return {"schema": schema_version(at.place.target), "applied": []}


def _postgres(place: Place) -> dict[str, Any]:
    from stepwell.backend.postgres import check_driver

    check_driver()
    from stepwell.backend.postgres_schema import MIGRATIONS, migrate

    return {"applied": migrate(place.target, schema=place.schema), "schema": len(MIGRATIONS)}


def _print_sql(place: Place, as_json: bool) -> None:
    if place.kind != "postgresql":
        refuse("--sql is for PostgreSQL; an SQLite file is made ready when it is opened")
    from stepwell.backend.postgres import check_driver

    check_driver()
    from stepwell.backend.postgres_schema import migration_sql

    text = migration_sql(schema=place.schema)
    if as_json:
        say_json({"database": place.shown, "sql": text})
    else:
        say(*text.rstrip("\n").split("\n"))
