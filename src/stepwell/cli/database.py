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
        return _postgres(place, patient=create)
    if not create and not Path(place.target).exists():
        refuse(f"there is no database {place.target}; is the name right? 'stepwell start' would create it", NO_DATABASE)
    from stepwell.backend.sqlite import SqliteBackend

    return SqliteBackend(place.target)


def _postgres(place: Place, *, patient: bool) -> Backend:
    """Open a server's database. Who only looks is told soon that it cannot be reached; a worker waits longer."""
    from stepwell.backend.postgres import PostgresBackend

    return PostgresBackend(place.target, schema=place.schema, timeout="30s" if patient else IMPATIENT)
