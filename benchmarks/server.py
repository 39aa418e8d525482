"""The PostgreSQL server of a run, and a database of its own in it for each measurement.

The server is that of the tests: found on the machine, started in a folder, gone with this process; fsync is on. Those
who measure are told where it is through the environment.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

PLACE = "STEPWELL_BENCH_POSTGRES"  # the folder of the server's socket and log
SETTINGS = {  # a server's own defaults, where the tests have chosen others
    "shared_buffers": "128MB",
    "wal_level": "replica",
    "max_connections": "200",
    "log_line_prefix": "%d ",
    "log_parameter_max_length": "0",
}
_numbers = count(1)


class Database(NamedTuple):
    """``dsn`` is as libpq takes it; ``url`` names the socket as the host, which some drivers insist on."""

    name: str
    dsn: str
    url: str


@contextmanager
def running(wanted: bool, folder: str | None) -> Iterator[str]:
    """Run a server meanwhile, with its data in a folder of that folder, and yield why there is none."""
    if not wanted:
        yield "no server"
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from tests.postgres import NoServer, Server
    except ImportError:
        yield "no psycopg"
        return
    tempfile.tempdir = folder  # a path that is too long for a socket is not used
    try:
        server = Server(SETTINGS)
    except NoServer:
        yield "no server"
        return
    with server:
        os.environ[PLACE] = str(server.folder)
        yield ""


def version() -> str:
    with connected() as connection:
        return str(connection.execute("SELECT version()").fetchone()[0]).split(" on ")[0]


@contextmanager
def database(*, logged: bool = False) -> Iterator[Database]:
    """A new database, dropped afterwards. ``logged``: the server writes down every statement in it."""
    name = f"b{os.getpid()}_{next(_numbers)}"
    with connected() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        if logged:
            connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
    try:
        host = quote(os.environ[PLACE], safe="")
        yield Database(name, _dsn(name), f"postgresql://postgres@{host}:5432/{name}")
    finally:
        with connected() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def connected(name: str = "postgres") -> Any:
    """A connection in autocommit mode, of which the server writes nothing down; ``with`` closes it."""
    import psycopg

    return psycopg.connect(_dsn(name), autocommit=True, options="-c log_statement=none")


def _dsn(name: str) -> str:
    return f"postgresql://postgres@/{name}?host={quote(os.environ[PLACE], safe='')}&port=5432"


def stored_bytes(place: Database) -> int:
    """Return what all tables and indexes of a database take."""
    query = """
        SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')"""
    with connected(place.name) as connection:
        return int(connection.execute(query).fetchone()[0])


def statements(place: Database) -> int:
    """Return how many statements the server has written down for a database that is logged."""
    start = f"{place.name} LOG:  ".encode()
    kinds = (start + b"statement: ", start + b"execute ")
    with (Path(os.environ[PLACE]) / "log").open("rb") as log:
        return sum(line.startswith(kinds) for line in log)


def wal_bytes() -> int:
    with connected() as connection:
        return int(connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])


def cost_each(place: Database, call: Callable[[], object], units: int) -> dict[str, float]:
    """Return how many statements, and how many bytes of the write-ahead log, a call takes for each unit."""
    said, written = statements(place), wal_bytes()
    call()
    return {"wal": (wal_bytes() - written) / units, "statements": (statements(place) - said) / units}
