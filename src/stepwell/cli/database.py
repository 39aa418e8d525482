"""Which database a command works on, and opening it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stepwell.backend.urls import Place
from stepwell.backend.urls import place_of as place_of_url
from stepwell.errors import OptionError

from .mistakes import NO_DATABASE, refuse

if TYPE_CHECKING:
    from stepwell.backend.base import Backend

VARIABLE: Final = "STEPWELL_DB"
IMPATIENT: Final = "3s"


def place_of(text: str | None) -> Place:
    """Return the place that ``--db`` or STEPWELL_DB names. Raises Mistake."""
    named = text or os.environ.get(VARIABLE, "")
    if not named:
        refuse(f"no database is named; give --db sqlite:FILE or --db postgresql://…, or set {VARIABLE}")
    if named.removeprefix("sqlite:").startswith((":memory:", "memory:")):
        refuse("a database in memory is gone when the command ends; name a file: --db sqlite:orders.db")
    try:
        return place_of_url(named)
    except OptionError as error:
        refuse(str(error))


def open_place(place: Place, *, create: bool) -> Backend:
    """Open a database. One that is missing is made only by a command that puts something into it."""
    if place.kind == "postgresql":
        return _postgres(place, create=create)
    if not create and not Path(place.target).exists():
        refuse(f"there is no database {place.target}; is the name right? 'stepwell start' would create it", NO_DATABASE)
    from stepwell.backend.sqlite import SqliteBackend

    return SqliteBackend(place.target)


def _postgres(place: Place, *, create: bool) -> Backend:
    """Open a server's database. Who only looks is told soon that it cannot be reached; a worker waits longer."""
    from stepwell.backend.postgres import PostgresBackend

    if not create:
        _check_schema(place)
    return PostgresBackend(place.target, schema=place.schema, timeout="30s" if create else IMPATIENT)


def _check_schema(place: Place) -> None:
    from stepwell.backend.postgres import check_driver

    check_driver()
    from stepwell.backend.postgres_schema import is_there

    if not is_there(place.target, schema=place.schema, timeout=IMPATIENT):
        missing = f"{place.shown} has no stepwell schema {place.schema!r}"
        refuse(f"{missing}; is the name right? 'stepwell start' would create it", NO_DATABASE)
