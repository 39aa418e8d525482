"""What an error of PostgreSQL means: for the retry, and for the user.

Three things can be done about one: the connection is gone, and it depends on the moment whether the statement landed;
the server has undone the transaction because of others, and it can be tried again; or it is final, and the user is told
what, where and how to mend it. Passwords never leave this module's :class:`Place`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from stepwell.errors import (
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    DatabaseCorrupt,
    OptionError,
    StorageFull,
)

UNKNOWN: Final = " while committing: whether this write landed is not known"

SERIALIZATION, DEADLOCK, LOCK_TIMEOUT, CANCELED = "40001", "40P01", "55P03", "57014"
AGAIN: Final = frozenset({SERIALIZATION, DEADLOCK, LOCK_TIMEOUT})
"""The server has undone the transaction for the sake of others."""
NOT_PREPARED: Final = frozenset({"0A000", "26000"})
"""A prepared statement has met a migration, or another server connection than it was prepared on."""
UNIQUE: Final = "23505"
_GONE: Final = (
    "08",
    "57P",
    "25P03",
    "25P04",
    "25P05",
)  # no connection; shut down, crashed or starting; ended for being idle
_WRONG: Final = ("does not exist", "authentication failed", "no password", "pg_hba.conf", "resolve", "translate", "SSL")
_FULL_HOUSE: Final = frozenset({"53300", "53400"})


class Place:
    """Where a store is, said without its password: ``user@host:port/database, schema "stepwell"``."""

    def __init__(self, dsn: object, schema: str) -> None:
        if not isinstance(dsn, str):
            raise OptionError(f"PostgresBackend takes a DSN as a str, not {type(dsn).__name__}")
        try:
            self._parts = cast("dict[str, str]", conninfo_to_dict(dsn))
        except psycopg.Error:
            # Not even the reason is shown: it quotes what it does not understand, which may be the password.
            raise OptionError(
                "the DSN is not one that PostgreSQL understands; write postgresql://user@host:5432/database"
            ) from None
        self.schema = schema
        parts = self._parts
        host = f"{parts.get('user', '')}@{parts.get('host', '')}:{parts.get('port', '')}/{parts.get('dbname', '')}"
        self._text = f'PostgreSQL {host}, schema "{schema}"'

    def __str__(self) -> str:
        return self._text

    def conninfo(self, more: Mapping[str, str], ours: Mapping[str, str]) -> str:
        """Return what libpq is given: of the first what the user did not choose otherwise, the second in any case."""
        return make_conninfo("", **{**more, **self._parts, **ours})

    def clean(self, error: BaseException) -> str:
        """Return an error's text on one line, without the password."""
        text = " ".join(str(error).split())
        for key in ("password", "sslpassword"):
            if secret := self._parts.get(key):
                text = text.replace(str(secret), "***")
        return text


def is_gone(error: psycopg.Error) -> bool:
    """Whether the connection is lost with it."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_GONE) or error.sqlstate in _FULL_HOUSE


def is_final(error: psycopg.Error) -> bool:
    """Whether trying again is of no use for a first connection: a wrong name, password or database."""
    return is_gone(error) and any(each in str(error) for each in _WRONG)


def fail(place: Place, error: psycopg.Error, when: str = "") -> NoReturn:
    """Raise what an error means for the user."""
    state = error.sqlstate or ""
    for starts, meaning, text in _MEANINGS:
        if state.startswith(starts):
            raise meaning(f"{place}: {text}{when} ({place.clean(error)})") from _cause(place, error)
    if is_gone(error):
        text = "it cannot be reached; check that the server runs and what the DSN says"
        raise BackendUnavailable(f"{place}: {text}{when} ({place.clean(error)})") from _cause(place, error)
    name = type(error).__name__
    raise BackendError(f"{place}: unexpected PostgreSQL error {name}{when} ({place.clean(error)})") from _cause(
        place, error
    )


def _cause(place: Place, error: BaseException) -> BaseException | None:
    """Return the error to be shown as the cause, none if it would show what must not be seen."""
    return error if place.clean(error) == " ".join(str(error).split()) else None


_MEANINGS: Final[tuple[tuple[tuple[str, ...], Callable[[str], BackendError], str], ...]] = (
    (("40001", "40P01"), BackendUnavailable, "other transactions kept getting in the way; find what else writes here"),
    (("55P03",), BackendUnavailable, "rows stayed locked for too long; find the transaction that is left open"),
    (("57014",), BackendUnavailable, "a statement took longer than it may; find what keeps the server busy"),
    (("25006",), BackendReadOnly, "it cannot be written: a standby, or a server or role set to read-only"),
    (("53100",), StorageFull, "the server's disk is full; nothing of this write was kept; free some space and go on"),
    (("53300", "53400"), BackendUnavailable, "the server has no connection left; raise max_connections or use fewer"),
    (("53",), BackendUnavailable, "the server is out of memory"),
    (("XX001", "XX002"), DatabaseCorrupt, "the database is damaged; keep a copy of it and restore a backup"),
    (("28", "3D000"), BackendUnavailable, "the server refused this user or database; check the DSN"),
    (
        ("42501",),
        BackendUnavailable,
        "the role may not do this; give it USAGE on the schema and rights on its tables; `stepwell doctor` says which",
    ),
    (("42P01", "3F000"), BackendUnavailable, "tables of the store are missing; has the schema been dropped?"),
    (("58",), BackendUnavailable, "the server cannot read or write its files; check its disk and its log"),
)
