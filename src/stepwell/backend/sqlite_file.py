"""One SQLite file: how it is created, opened, brought to the newest schema, locked and fails.

Everything that is about files, locks and SQLite's errors is here, so that :mod:`.sqlite` reads as the store it is.

SQLite blocks in three places, and each has a bound: another thread of this process (a lock), another process that
writes (the busy handler, which sleeps in short uneven pauses, because SQLite's own grow to 100 ms), and another
process that turns a new file to WAL at the same moment (retried while opening). Past the bound the caller gets
:class:`~stepwell.errors.BackendUnavailable`; nobody sees "database is locked".
"""

from __future__ import annotations

import os
import pkgutil
import random
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable
from threading import RLock, get_ident
from types import FrameType, TracebackType
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar, cast

import apsw

from stepwell.errors import (
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    Closed,
    DatabaseCorrupt,
    OptionError,
    SchemaTooNew,
    StorageFull,
    Unsupported,
    UsageError,
)

from .sqlite_connection import Connection, NotAdmitted

Durability: TypeAlias = Literal["full", "fast"]
T = TypeVar("T")

APPLICATION_ID: Final = 0x53745765  # "StWe": marks the file as ours
MIGRATIONS: Final = ("001_schema.sql",)
SQLITE_LEAST: Final = (3, 51, 3)  # earlier ones from 3.7.0 on can corrupt a WAL file that is reset under load
PAUSE_MAX_S: Final = 0.01
THREAD_GRACE_S: Final = 5.0  # the thread that has the connection may itself be waiting for another process
UNKNOWN: Final = " while committing: whether this write landed is not known"

# synchronous: 2 is FULL, every commit is flushed; 1 is NORMAL, only checkpoints are. Longer between checkpoints pays
# only where commits are not flushed.
_SYNCHRONOUS: Final = {"full": 2, "fast": 1}
_PRAGMAS: Final = {
    "full": {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 1000},
    "fast": {"journal_mode": "wal", "synchronous": 1, "wal_autocheckpoint": 4000},
}


class Database:
    """An open connection, shared by the threads of one process.

    ``with database.write as connection`` and ``with database.read as connection`` are one transaction each; leaving the
    block commits, an exception rolls back. Errors of SQLite leave the block as :class:`~stepwell.errors.BackendError`.
    """

    def __init__(self, path: str, durability: Durability, busy_us: int, codec_id: int) -> None:
        self.path = path
        self._durability: Durability = durability
        self._busy_s = busy_us / 1_000_000
        self._deadline = 0.0
        self._pid = os.getpid()
        self._lock = RLock()
        self._closed = False
        self._user: FrameType | None = None  # the `with` block that has the connection
        #: Threads with a write transaction on a connection of their own, by which they would wait for themselves here.
        self.apart: set[int] = set()
        self.read = Transaction(self, "BEGIN")
        self.write = Transaction(self, "BEGIN IMMEDIATE")
        _check_library()
        _check_place(path)
        _create_private(path)
        self.connection = cast(Connection, self._guarded(self._connect))
        #: The whole path when the file was opened; asked once, as the connection may be busy in another thread.
        self.file = self.connection.db_filename("main")
        try:
            self._guarded(lambda: self._prepare(codec_id))
        except BaseException:
            self.connection.close()
            raise

    # --- opening ----------------------------------------------------------------------------------

    def connect(self) -> apsw.Connection:
        """Return another connection to the file, with the same settings."""
        self.check()
        connection = self._guarded(self._connect)
        self._guarded(lambda: self._set_pragmas(cast(Connection, connection)))
        return connection

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_handler(self._wait)
        # Without this, STAT4 builds plan a statement anew whenever a bound value changes: 15 us for each commit.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        return connection

    def _prepare(self, codec_id: int) -> None:
        connection = self.connection
        if connection.readonly("main"):
            raise BackendReadOnly(f"{self.path} cannot be written by this user; change its owner or mode")
        connection.execute("BEGIN")  # one view of all that is read: somebody may be creating the schema right now
        try:
            version = self._schema_version(connection)
        finally:
            _roll_back(connection)
        self._set_pragmas(connection)
        if version < len(MIGRATIONS):
            self._migrate(connection, codec_id)

    def _schema_version(self, connection: Connection) -> int:
        """Return how many migrations the file has seen, 0 for an empty one. Raises if it is not ours or too new."""
        application_id, version = _pragma(connection, "application_id"), int(_pragma(connection, "user_version"))
        if application_id != APPLICATION_ID and (
            application_id or version or connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        ):
            raise BackendUnavailable(
                f"{self.path} is an SQLite database of another application; give stepwell a file of its own"
            )
        if version > len(MIGRATIONS):
            raise SchemaTooNew(
                f"{self.path} has schema {version} and this stepwell knows up to {len(MIGRATIONS)}; "
                "upgrade stepwell in this environment"
            )
        return version

    def _set_pragmas(self, connection: Connection) -> None:
        for name, wanted in _PRAGMAS[self._durability].items():
            connection.execute(f"PRAGMA {name} = {wanted}")
            if (got := _pragma(connection, name)) != wanted:
                raise BackendUnavailable(
                    f"{self.path}: SQLite keeps {name} at {got!r} and stepwell needs {wanted!r}; "
                    "put the file on a local disk, as network file systems cannot share it safely"
                )

    def _migrate(self, connection: Connection, codec_id: int) -> None:
        """Apply the missing migrations in one transaction; whoever comes second finds them done."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._schema_version(connection)
            for name in MIGRATIONS[version:]:
                connection.execute(migration(name))
            if version == 0:
                new = [("backend_id", secrets.token_hex(16)), ("codec_id", codec_id)]
                connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", new)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    def _guarded(self, action: Callable[[], T]) -> T:
        """Run a step of opening, again while others are opening the same new file."""
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                return action()
            except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError, apsw.SchemaChangeError) as error:
                if time.monotonic() >= deadline:
                    self.fail(error)
                time.sleep(random.random() * PAUSE_MAX_S)  # noqa: S311 - an uneven pause is no secret
            except apsw.Error as error:
                self.fail(error)

    @property
    def synchronous(self) -> int:
        """How surely a commit is on the disk, in the numbers of ``PRAGMA synchronous``."""
        return _SYNCHRONOUS[self._durability]

    # --- using ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a database that is closed or was opened before a fork."""
        if self._closed:
            raise Closed(f"the backend of {self.path} is closed; make a new one")
        if os.getpid() != self._pid:
            raise UsageError(
                f"the backend of {self.path} was opened in process {self._pid} and this is process {os.getpid()}: "
                "an SQLite connection does not survive a fork; make the backend after the fork"
            )

    def begin(self, statement: str, user: FrameType) -> Connection:
        """Take the connection for the thread of ``user``, the frame of a ``with``, and begin a transaction on it."""
        self.check()  # before the lock, which a forked child may have inherited locked
        if self.apart and get_ident() in self.apart:
            raise UsageError(
                f"{self.path}: a transaction() is open in this thread, which this call would wait for; "
                "use the connection that it gives, or call this outside of it"
            )
        if not self._lock.acquire(timeout=self._busy_s + THREAD_GRACE_S):
            raise BackendUnavailable(
                f"{self.path}: another thread of this process has kept the connection for too long"
            )
        try:
            self.check()
            self._clear_interrupted(user)
            self.connection.execute(statement)
            self._user = user
        except BaseException as error:
            self._lock.release()
            if isinstance(error, apsw.Error):
                self.fail(error)
            raise
        return self.connection

    def _clear_interrupted(self, user: FrameType) -> None:
        """Undo what a block left that an interrupt cut off before its end; a block that still runs is let be."""
        frame = user.f_back if self._user is not None else None
        while frame is not None:
            if frame is self._user:
                raise UsageError(
                    f"the backend of {self.path} was used in the middle of its own transaction, "
                    "as by a signal handler: let the handler set a flag or start a thread"
                )
            frame = frame.f_back
        _roll_back(self.connection)
        if self._user is not None:
            self._user = None
            self._lock.release()

    def end(self, error: BaseException | None) -> None:
        """Commit, or roll back after an error, and let other threads go on."""
        try:
            if error is None:
                self.connection.execute("COMMIT")
        except apsw.Error as failed:
            self.fail(failed, UNKNOWN if isinstance(failed, apsw.IOError) else "")
        finally:
            if self.connection.in_transaction:
                _roll_back(self.connection)
            self._user = None
            self._lock.release()
        if isinstance(error, apsw.Error):
            self.fail(error)

    def hint(self) -> int:
        """Return a number that changes with every write of any connection, this one included."""
        with self.read as connection:
            version = _pragma(connection, "data_version")
            return int(version) << 40 | connection.total_changes()

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # the connection is the parent's
        with self._lock:
            if not self._closed:
                self.connection.close()
            self._closed = True

    def _wait(self, tries: int) -> bool:
        """Wait a moment for another process's write. Called by SQLite; returns whether to try again."""
        now = time.monotonic()
        if tries == 0:
            self._deadline = now + self._busy_s
        if now >= self._deadline:
            return False
        time.sleep(random.uniform(0.25, 1) * min(0.0005 * (tries + 1), PAUSE_MAX_S))  # noqa: S311 - an uneven pause is no secret
        return True

    def fail(self, error: apsw.Error, when: str = "") -> NoReturn:
        """Raise what an error of SQLite means for the user."""
        if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:  # how a full disk shows while opening
            error = apsw.FullError(str(error))
        for kind, meaning, text in _MEANINGS:
            if isinstance(error, kind):
                raise meaning(f"{self.path}: {text.format(busy_s=self._busy_s)}{when} ({error})") from error
        raise BackendError(f"{self.path}: unexpected SQLite error {type(error).__name__}{when} ({error})") from error


class Transaction:
    """One kind of transaction on a database, as a reusable context manager."""

    __slots__ = ("_begin", "_database")

    def __init__(self, database: Database, begin: str) -> None:
        self._database, self._begin = database, begin

    def __enter__(self) -> Connection:
        return self._database.begin(self._begin, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._database.end(error)


_MEANINGS: Final[tuple[tuple[type[apsw.Error], type[BackendError], str], ...]] = (
    (apsw.BusyError, BackendUnavailable, "another process kept it locked for {busy_s:g} s; find what holds it open"),
    (apsw.LockedError, BackendUnavailable, "another connection of this process keeps it locked"),
    (apsw.ProtocolError, BackendUnavailable, "its locks cannot be had; put it on a local disk"),
    (apsw.FullError, StorageFull, "the disk is full; nothing of this write was kept; free some space and go on"),
    (apsw.ReadOnlyError, BackendReadOnly, "it cannot be written; check the mode of the file and of its directory"),
    (apsw.PermissionsError, BackendReadOnly, "access is denied; check the mode of the file and of its directory"),
    (apsw.CantOpenError, BackendUnavailable, "it cannot be opened; the file and its directory must be writable"),
    (apsw.NotADBError, DatabaseCorrupt, "this is not an SQLite database; give another path, or restore a backup"),
    (apsw.CorruptError, DatabaseCorrupt, "the file is damaged; keep a copy of it and restore a backup"),
    (apsw.ConstraintError, NotAdmitted, "a row breaks a constraint of the schema"),
    (apsw.IOError, BackendUnavailable, "reading or writing failed; check the disk"),
)


def migration(name: str) -> str:
    """Return the text of one migration."""
    text = pkgutil.get_data(__package__ or "stepwell.backend", f"sql/{name}")
    assert text is not None, name
    return text.decode()


def _pragma(connection: Connection, name: str) -> Any:
    row = connection.execute(f"PRAGMA {name}").fetchone()
    return row[0] if row is not None else None


def _roll_back(connection: Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def refuse_sqlite3(given: object, taker: str) -> None:
    """Refuse a connection of the standard library with the reason."""
    if any(kind.__module__ == "sqlite3" for kind in type(given).__mro__):
        wanted = "an apsw.Connection" if taker.endswith("=") else "a path"
        raise OptionError(
            f"{taker} takes {wanted}, not a sqlite3 connection: two SQLite libraries on one file in one process "
            "break each other's locks; use backend.connect() for a connection beside it"
        )


def checked_path(path: object) -> str:
    """Return the path as text, or refuse what is not a plain file path."""
    refuse_sqlite3(path, "SqliteBackend")
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"SqliteBackend takes a path, not {type(path).__name__}")
    text = os.fspath(cast("str | os.PathLike[str]", path))
    _refuse_url(text)
    if type(text) is not str or not text or "\0" in text or text.startswith((":memory:", "file:")):
        raise OptionError(f"SqliteBackend takes a plain file path, not {text!r}; InMemoryBackend() needs no file")
    return text


def _refuse_url(text: str | bytes) -> None:
    """Refuse what names a server before it is taken for a file, and repeat nothing of it: it may hold a password."""
    url = _SERVER.match(text) if isinstance(text, str) else None
    if url is None:
        return
    scheme = (url[1] or url[2] or "").lower()
    what = f"a {scheme}: URL" if scheme else "what names a server"
    mend = "PostgresBackend(dsn) takes that" if scheme in ("postgres", "postgresql", "") else "open_backend(url) does"
    raise OptionError(f"SqliteBackend takes a file's path, not {what}; {mend}")


_SERVER: Final = re.compile(
    r"([a-z][a-z0-9+.-]{1,20}):/|(sqlite|postgres|postgresql):|(?:[^\\/:]{2,})?:.*@|[^:]*://|.*\b(?:password|dbname)\s*=",
    re.IGNORECASE | re.DOTALL,
)


def _check_library() -> None:
    if tuple(int(part) for part in apsw.sqlite_lib_version().split(".")[:3]) < SQLITE_LEAST:
        raise Unsupported(f"apsw brings SQLite {apsw.sqlite_lib_version()}, which can damage files; upgrade apsw")


def _check_place(path: str) -> None:
    """Refuse a path that SQLite would only call "unable to open database file"."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise BackendUnavailable(f"{path}: there is no directory {parent}; create it first")
    if os.path.isdir(path):
        example = os.path.join(path, "stepwell.db")
        raise BackendUnavailable(f"{path} is a directory; name a file in it, such as {example}")


def _create_private(path: str) -> None:
    """Create a missing file for its owner only; SQLite gives the files beside it the same mode.

    ``mknod`` is used where it works because it opens nothing: closing a file drops every lock this process has on it.
    """
    try:
        if sys.platform == "linux":
            os.mknod(path, 0o600 | stat.S_IFREG)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        kind = BackendReadOnly if isinstance(error, PermissionError) else BackendUnavailable
        raise kind(f"{path} cannot be created: {error.strerror}; check the directory's mode and the disk") from error
