"""Every store that a test makes is checked when the test is over, whatever the test itself looked at.

A store is remembered when it is constructed and checked once, after all fixtures of its test are gone. One that is
closed by then is opened again: a SQLite file by its path, a store in memory by the door. Files that other processes
made under the folder of all tests are found and checked at the end of the whole run.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from stepwell import InMemoryBackend, SqliteBackend
from stepwell.backend.postgres import PostgresBackend
from stepwell.cli.ledger import Reader
from stepwell.codec import JsonCodec
from stepwell.errors import BackendUnavailable, OptionError
from stepwell.testing.invariants import Report, check_store
from stepwell.testing.outside import LedgerLine, check_ledger

from .postgres import DSN
from .spares import Spares

KINDS = ("memory", "sqlite", "postgres")
INSTANCES_MAX = 200
ENTRIES_MAX = 4_000
LAWS_WORK = 400
SQLITE_ONLY = {"busy_timeout", "lease_clock"}
SQL_ONLY = {"busy_timeout", "durability"}
OF_A_PATH = re.compile("t[0-9a-f]{20}")
WATCHED = ("tests/runtime", "tests/control", "tests/differential", "tests/crash", "tests/cli", "tests/invariants")


def open_store(kind: str, path: Path, **options: Any) -> Any:
    """Open a store of a kind. What is at a path is one store, whoever opens it; one in memory is always a new one.

    In PostgreSQL a path is a schema on the server of the fixture ``kind``, also for child processes.
    """
    if kind == "sqlite":
        return SqliteBackend(path, **options)
    if kind == "memory":
        return InMemoryBackend(**{name: options[name] for name in options.keys() - SQL_ONLY})
    options = {name: options[name] for name in options.keys() - SQLITE_ONLY}
    return PostgresBackend(os.environ[DSN], schema=schema_of(path), **options)


def url_of(kind: str, path: Path) -> str:
    """Return what a process of its own opens the same store by, with :func:`stepwell.backend.urls.open_backend`."""
    return f"{os.environ[DSN]}&schema={schema_of(path)}" if kind == "postgres" else os.fspath(path)


def schema_of(path: Path) -> str:
    """Return a name by which :class:`Stores` knows that the schema is of :func:`open_store`, and not there yet."""
    return "t" + hashlib.blake2b(os.fspath(path.absolute()).encode(), digest_size=10).hexdigest()


class Stores:
    """The stores made since the last check, and what all checks came to."""

    def __init__(self) -> None:
        self.memory: list[Any] = []
        self.files: dict[Path, dict[str, Any]] = {}
        self.schemas: dict[tuple[str, str], dict[str, Any]] = {}
        self.open: dict[tuple[str, str], list[PostgresBackend]] = {}
        self.seen: set[Path] = set()
        self.skipped: set[Path] = set()
        self.total = Report()
        self.stores = self.ledgers = 0
        self.seconds = 0.0
        self.spares = Spares()
        self.policies = True
        self._undo: list[Callable[[], None]] = []

    def watch(self) -> None:
        """Note each store that is constructed from now on."""
        self._wrap(InMemoryBackend, lambda store, args, options: self.memory.append(store))
        self._wrap(SqliteBackend, self._note_file)
        self._wrap(PostgresBackend, self._note_schema, self._give_spare)
        self._undo += [self.spares.close]

    def _wrap(
        self, kind: Any, note: Callable[[Any, Any, Any], None], before: Callable[[Any, Any], None] = lambda *_: None
    ) -> None:
        made = kind.__init__

        def init(store: Any, *args: Any, **options: Any) -> None:
            before(args, options)
            made(store, *args, **options)
            note(store, args, options)

        kind.__init__ = init
        self._undo.append(lambda: setattr(kind, "__init__", made))

    def _note_file(self, store: Any, args: Any, options: Any) -> None:
        path = Path(os.fspath(args[0] if args else options["path"])).resolve()
        self.files[path] = {"codec": store.codec, "lease_clock": store._clock}

    def _give_spare(self, args: Any, options: Any) -> None:
        dsn, schema = place = _place(args, options)
        if dsn == os.environ.get(DSN) and place not in self.open and OF_A_PATH.fullmatch(schema):
            self.spares.give(dsn, schema, getattr(options.get("codec") or JsonCodec(), "id", 0))

    def _note_schema(self, store: Any, args: Any, options: Any) -> None:
        place = _place(args, options)
        self.schemas[place] = {"codec": store.codec}
        self.open.setdefault(place, []).append(store)

    def _drop_closed(self, *, spare: bool) -> None:
        """Clear up the schemas that no store of this process is open on; a fixture may keep one for several tests."""
        for place, stores in list(self.open.items()):
            if all(store._server.closed for store in stores):
                if not (spare and place[0] == os.environ.get(DSN) and self.spares.take(*place)):
                    drop_schema(*place)
                del self.open[place]

    def unwatch(self) -> None:
        while self._undo:
            self._undo.pop()()

    def forget(self, folder: Path | None, *, drop: bool = False) -> None:
        """Drop what a test made that damages its stores on purpose, and whatever else is in its folder."""
        self.seen |= self.files.keys()
        self.skipped |= {folder.resolve()} if folder is not None else set()
        self.memory, self.files = [], {}
        if drop:
            self.schemas = {}
            self._drop_closed(spare=False)

    def check(self, *, policies: bool = True) -> Report:
        """Check what was made since the last check."""
        began = time.thread_time()
        try:
            return self._check_all(policies)
        finally:
            self.seconds += time.thread_time() - began

    def _check_all(self, policies: bool) -> Report:
        self.policies = policies
        memory, files, schemas, report = self.memory, self.files, self.schemas, Report()
        self.memory, self.files, self.schemas = [], {}, {}
        for store in memory:
            with _opened_again(store):
                self._check(store, report)
        for path, options in files.items():
            self.seen.add(path)
            if path.exists():
                self._check_file(path, options, report)
        for (dsn, schema), options in schemas.items():
            self._check_schema(dsn, schema, options, report)
        self.memory, self.files, self.schemas = [], {}, {}  # what the checks opened
        self._drop_closed(spare=report.ok)
        return report

    def check_left_files(self, folder: Path) -> Report:
        """Check the files of other processes below a folder, and the ledgers that their tasks wrote beside them."""
        began, report, self.policies = time.thread_time(), Report(), True
        for path in sorted({each.resolve() for each in folder.rglob("*.db")}):
            if path not in self.seen and self.skipped.isdisjoint(path.parents) and _is_database(path):
                self._check_file(path, {}, report, str(path.relative_to(folder.resolve())))
        self.seconds += time.thread_time() - began
        return report

    def _check_file(self, path: Path, options: dict[str, Any], report: Report, name: str = "") -> None:
        try:
            store = SqliteBackend(path, **options)
        except (OptionError, BackendUnavailable):  # made anew with another codec, or another program's
            self.total.left_out += 1
            return
        with store:
            self._check(store, report, name)
            if lines := _ledger_beside(path):
                found = check_ledger(lines, store)
                self.ledgers += 1
                report.violations += found.violations
                self.total.violations += found.violations

    def _check_schema(self, dsn: str, schema: str, options: dict[str, Any], report: Report) -> None:
        try:
            with PostgresBackend(dsn, schema=schema, **options) as store:
                self._check(store, report)
        except (OptionError, BackendUnavailable):  # made anew with another codec, or its server is gone
            self.total.left_out += 1

    def _check(self, store: Any, report: Report, name: str = "") -> None:
        found = check_store(
            store, instances_max=INSTANCES_MAX, entries_max=ENTRIES_MAX, policies=self.policies, laws_work=LAWS_WORK
        )
        self.stores += 1
        self.total.merge(found)
        for violation in found.violations:
            report.add(violation.rule, f"{name} {violation.instance_id}".strip(), violation.text, violation.seq)

    def __str__(self) -> str:
        total = self.total
        return (
            f"invariants: {self.stores} stores, {self.ledgers} ledgers, {total.instances} instances, "
            f"{total.entries} entries, {total.facts} facts, {total.left_out} left out, "
            f"{len(total.violations)} violations, {self.seconds:.1f} s"
        )


def _place(args: Any, options: Any) -> tuple[str, str]:
    return args[0] if args else options["dsn"], options.get("schema", "stepwell")


def drop_schema(dsn: str, schema: str) -> None:
    """Remove a store and its tables, if its server still runs."""
    with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


class Line(NamedTuple):
    """A line of the crash suite's ledger; that suite knows one instance only."""

    event: str
    instance: str
    path: str
    attempt: int
    key: str


def _ledger_beside(path: Path) -> Sequence[LedgerLine]:
    """Return what tasks wrote beside a store: the crash suite's text file, or the demo's ledger."""
    demo = path.with_name("ledger.jsonl")
    if demo.exists():
        return Reader(demo).poll()
    text = path.with_suffix(".txt")
    rows = [row.split() for row in text.read_text().splitlines()] if text.exists() else []
    events = {"start": "start", "end": "effect"}
    return [Line(events[phase], "i", at, int(attempt), key) for _, phase, at, attempt, key in rows]


@contextmanager
def _opened_again(store: Any) -> Iterator[None]:
    was, store._closed = store._closed, False
    try:
        yield
    finally:
        store._closed = was


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
