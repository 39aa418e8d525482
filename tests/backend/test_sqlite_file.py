"""One SQLite file: how it is made and opened, what is refused, and what a full disk or a lock does."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from stepwell.backend import queries, sqlite_file
from stepwell.backend.base import Change, Filter, Want
from stepwell.backend.sqlite import SqliteBackend
from stepwell.codec import MsgpackCodec
from stepwell.errors import (
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    DatabaseCorrupt,
    OptionError,
    SchemaTooNew,
    StorageFull,
    Unsupported,
    UsageError,
)
from stepwell.testing.sample import RUNNING, T0, change, creation, entries, header_of, seqs, session_of, signal, start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def backend(path: Path) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(path, busy_timeout="0s")
    yield backend
    backend.close()


def pragma(connection: apsw.Connection, name: str) -> object:
    (value,) = next(connection.execute(f"PRAGMA {name}"))
    return value


def make(path: Path, *statements: str) -> None:
    """Make an SQLite file that is not ours, or change one that is."""
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_files_are_for_their_owner_only(path: Path) -> None:
    """The file and the two beside it have mode 0600 whatever the umask is."""
    before = os.umask(0)
    try:
        backend = SqliteBackend(path)
        start(backend, None)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    backend.close()
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_an_existing_file_keeps_its_mode(path: Path) -> None:
    """Whoever shared it on purpose is not overruled."""
    path.touch(0o660)
    path.chmod(0o660)
    SqliteBackend(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("fast", 1)])
def test_durability_is_what_the_connection_says(path: Path, durability: str, synchronous: int) -> None:
    """WAL always; every commit flushed at "full"."""
    backend = SqliteBackend(path, durability=durability)  # type: ignore[arg-type]
    connections = (backend._database.connection, backend.connect())
    for connection in connections:
        assert [pragma(connection, name) for name in ("journal_mode", "synchronous")] == ["wal", synchronous]  # type: ignore[arg-type]
    connections[1].close()
    backend.close()


def test_a_pragma_that_does_not_hold_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be as durable as was asked for is not opened."""
    monkeypatch.setitem(sqlite_file._PRAGMAS, "full", {"journal_mode": "flying"})
    with pytest.raises(BackendUnavailable, match="journal_mode"):
        SqliteBackend(path)


def test_an_old_library_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that can damage a WAL file are not trusted with one."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(Unsupported, match=r"3\.51\.2"):
        SqliteBackend(path)
    assert not path.exists()


def test_a_reopened_store_is_the_same(path: Path) -> None:
    """Its id, its codec and its rows are those of the file."""
    first = SqliteBackend(path)
    header = start(first, None)
    first.close()
    second = SqliteBackend(path)
    assert (second.backend_id, second.codec_id) == (first.backend_id, first.codec_id)
    assert header_of(second) == header
    second.close()


def test_two_stores_have_two_ids(tmp_path: Path) -> None:
    """The id is drawn at random when a file is made."""
    backends = [SqliteBackend(tmp_path / name) for name in ("a.db", "b.db")]
    assert backends[0].backend_id != backends[1].backend_id
    for backend in backends:
        backend.close()


def test_the_codec_is_that_of_the_file(path: Path) -> None:
    """Without ``codec=`` a store is opened with the codec it was made with; another one is refused."""
    SqliteBackend(path, codec=MsgpackCodec()).close()
    backend = SqliteBackend(path)
    assert isinstance(backend.codec, MsgpackCodec)
    backend.close()
    from stepwell.codec import JsonCodec

    with pytest.raises(OptionError, match="JsonCodec"):
        SqliteBackend(path, codec=JsonCodec())


def test_the_file_says_whose_it_is(backend: SqliteBackend) -> None:
    """``file`` and other tools can tell by the application id."""
    connection = backend.connect()
    assert pragma(connection, "application_id") == sqlite_file.APPLICATION_ID
    connection.close()


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", ":memory:", "file:x.db?mode=ro", "a\0b", b"bytes.db", 7, None])
def test_what_is_no_path_is_refused(wrong: object) -> None:
    """A plain path, and nothing that SQLite would read otherwise."""
    with pytest.raises(OptionError):
        SqliteBackend(wrong)  # type: ignore[arg-type]


def test_a_sqlite3_connection_is_refused_with_the_reason(path: Path) -> None:
    """Two SQLite libraries on one file in one process break its locks."""
    connection = sqlite3.connect(path)
    with pytest.raises(OptionError, match="two SQLite libraries"):
        SqliteBackend(connection)  # type: ignore[arg-type]
    connection.close()


def test_an_unknown_durability_is_refused(path: Path) -> None:
    """The two words there are stand in the message."""
    with pytest.raises(OptionError, match='"full" or "fast"'):
        SqliteBackend(path, durability="safe")  # type: ignore[arg-type]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """It is not created behind the user's back."""
    with pytest.raises(BackendUnavailable, match=r"no directory .*nowhere"):
        SqliteBackend(tmp_path / "nowhere" / "store.db")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    """The message proposes a name inside."""
    with pytest.raises(BackendUnavailable, match=r"is a directory; name a file in it, such as .*stepwell\.db"):
        SqliteBackend(tmp_path)


def test_what_is_no_database_is_left_alone(path: Path) -> None:
    """A file of something else is refused and keeps its bytes."""
    path.write_bytes(b"not a database, but long enough to look like one" * 99)
    before = path.read_bytes()
    with pytest.raises(DatabaseCorrupt, match=r"store\.db.*not an SQLite database"):
        SqliteBackend(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 3"]
)
def test_a_foreign_database_is_left_alone(path: Path, statement: str) -> None:
    """Another application's file is refused and not even turned to WAL."""
    make(path, statement)
    before = path.read_bytes()
    with pytest.raises(BackendUnavailable, match="another application"):
        SqliteBackend(path)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    """Somebody's ``touch`` is no obstacle."""
    path.touch()
    SqliteBackend(path).close()


def test_a_newer_schema_is_refused(path: Path) -> None:
    """And the message says to upgrade."""
    SqliteBackend(path).close()
    make(path, "PRAGMA user_version = 99")
    with pytest.raises(SchemaTooNew, match=r"schema 99.*upgrade"):
        SqliteBackend(path)


def test_a_damaged_file_is_named(path: Path) -> None:
    """Damage met while reading is an error of the store, not of an instance."""
    backend = SqliteBackend(path)
    backend.create(None, [creation(backend, str(number)) for number in range(500)])
    backend.close()
    damaged = bytearray(path.read_bytes())
    damaged[8192:] = b"\xff" * (len(damaged) - 8192)
    path.write_bytes(damaged)
    with pytest.raises(DatabaseCorrupt, match=r"store\.db"):
        _list_all(path)


def _list_all(path: Path) -> None:
    backend = SqliteBackend(path)
    try:
        backend.list(Filter())
    finally:
        backend.close()


def test_a_connection_that_cannot_write_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite opens a file that may only be read without a word; we do not."""
    SqliteBackend(path).close()
    monkeypatch.setattr(apsw, "SQLITE_OPEN_READWRITE", apsw.SQLITE_OPEN_READONLY)
    with pytest.raises(BackendReadOnly, match="owner or mode"):
        SqliteBackend(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for the superuser")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    """A file that cannot be created says why."""
    tmp_path.chmod(0o500)
    with pytest.raises(BackendReadOnly, match="cannot be created"):
        SqliteBackend(tmp_path / "store.db")


def test_another_process_after_a_fork_is_refused(backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that inherited the backend is told to make its own, and closing it there closes nothing."""
    with monkeypatch.context() as child:
        child.setattr(sqlite_file.os, "getpid", lambda: -1)
        with pytest.raises(UsageError, match="after the fork"):
            backend.header("a")
        backend.close()
    assert backend._database.connection.in_transaction is False


# --- locks ----------------------------------------------------------------------------------------------


def test_a_lock_that_stays_names_the_file(backend: SqliteBackend) -> None:
    """Past the bound the error is ours; the backend is usable afterwards."""
    other = backend.connect()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match=r"store\.db: another process kept it locked"):
        start(backend, None)
    other.execute("ROLLBACK")
    start(backend, None)
    other.close()


def test_a_lock_that_goes_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the bound nobody notices that another process was writing."""
    backend = SqliteBackend(path)
    other = backend.connect()
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite_file.time, "sleep", lambda _: other.execute("ROLLBACK"))
    assert start(backend, None).run == 1
    other.close()
    backend.close()


def test_readers_do_not_wait_for_a_writer(backend: SqliteBackend) -> None:
    """They see what was committed."""
    header = start(backend, None)
    other = backend.connect()
    other.execute("BEGIN IMMEDIATE")
    assert header_of(backend) == header
    other.execute("ROLLBACK")
    other.close()


def test_an_open_transaction_left_by_an_interrupt_is_rolled_back(backend: SqliteBackend) -> None:
    """Ctrl-C between a block's end and its commit costs that write and nothing more."""
    backend._database.connection.execute("BEGIN IMMEDIATE")
    backend._database.connection.execute("DELETE FROM meta")
    start(backend, None)
    assert backend._identity()[0] == backend.backend_id


def _delete_meta(backend: SqliteBackend, error: BaseException) -> None:
    with backend._database.write as db:
        db.execute("DELETE FROM meta")
        raise error


def test_an_interrupt_rolls_back(backend: SqliteBackend) -> None:
    """Whatever leaves the block, nothing is half written."""
    with pytest.raises(KeyboardInterrupt):
        _delete_meta(backend, KeyboardInterrupt())
    assert backend._identity()[0] == backend.backend_id


# --- errors -----------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_nothing_of_the_write(backend: SqliteBackend) -> None:
    """The error is named, no change of the batch landed, and with space again everything works."""
    ann = session_of(backend)
    headers = [start(backend, ann, name) for name in "ab"]
    connection = backend._database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone() or (0,)
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    large = [change(headers[0]), Change(headers[1].instance, 1, entries(2, output=b"x" * 1_000_000))]
    with pytest.raises(StorageFull, match=r"store\.db: the disk is full"):
        backend.commit(ann, large)
    assert [seqs(backend, header) for header in headers] == [[1], [1]]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert backend.commit(ann, large) == ["done", "done"]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (apsw.BusyError, BackendUnavailable),
        (apsw.LockedError, BackendUnavailable),
        (apsw.ProtocolError, BackendUnavailable),
        (apsw.FullError, StorageFull),
        (apsw.ReadOnlyError, BackendReadOnly),
        (apsw.PermissionsError, BackendReadOnly),
        (apsw.CantOpenError, BackendUnavailable),
        (apsw.NotADBError, DatabaseCorrupt),
        (apsw.CorruptError, DatabaseCorrupt),
        (apsw.IOError, BackendUnavailable),
        (apsw.SQLError, BackendError),
        (apsw.InterruptError, BackendError),
    ],
)
def test_every_error_of_sqlite_has_a_meaning(
    backend: SqliteBackend, error: type[apsw.Error], meaning: type[BackendError]
) -> None:
    """What leaves a transaction is ours, names the file, and has the cause attached."""
    with pytest.raises(BackendError, match=r"store\.db") as caught:
        _delete_meta(backend, error("what SQLite said"))
    assert type(caught.value) is meaning
    assert isinstance(caught.value.__cause__, error)


def test_a_full_disk_while_opening_is_named(backend: SqliteBackend) -> None:
    """SQLite calls it an I/O error when the file of shared memory cannot grow."""
    with pytest.raises(StorageFull, match="the disk is full"):
        _delete_meta(backend, apsw.exception_for(apsw.SQLITE_IOERR_SHMSIZE))


def test_a_commit_that_fails_in_the_disk_is_unknown(backend: SqliteBackend) -> None:
    """After an I/O error of the commit itself nobody knows, and the message says so."""
    ann, connection = session_of(backend), backend._database.connection
    connection.exec_trace = _failing_at("COMMIT", apsw.IOError)  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match="whether this write landed is not known"):
        backend.end_session(ann)
    connection.exec_trace = None  # type: ignore[attr-defined]
    start(backend, None)


def _failing_at(start: str, error: type[Exception]) -> Callable[[object, str, object], bool]:
    def trace(_: object, statement: str, __: object) -> bool:
        if statement.startswith(start):
            raise error("at this statement")
        return True

    return trace


# --- what it costs ------------------------------------------------------------------------------------------


def test_a_step_is_four_statements(backend: SqliteBackend) -> None:
    """Begin, insert, admission, commit: a step touches one row, however many instances there are."""
    ann = session_of(backend)
    header = start(backend, ann)
    assert _statements(backend, lambda: backend.commit(ann, [change(header)])) == [
        "BEGIN IMMEDIATE",
        "INSERT INTO journal",
        "SELECT count(*)",
        "COMMIT",
    ]


def test_an_idle_poll_takes_no_write_lock(backend: SqliteBackend) -> None:
    """Looking for work when there is none never begins a write."""
    ann = session_of(backend)
    statements = _statements(backend, lambda: backend.claim_due(ann, Want([1], T0, 10)))
    assert statements[0] == "BEGIN"
    assert "BEGIN IMMEDIATE" not in statements


def _statements(backend: SqliteBackend, action: Callable[[], object]) -> list[str]:
    """Return the first words of every statement that an action runs."""
    seen: list[str] = []

    def trace(_: object, statement: str, __: object) -> bool:
        words = statement.split()
        seen.append(" ".join(words[:3] if words[0] == "INSERT" else words[:2]))
        return True

    backend._database.connection.exec_trace = trace  # type: ignore[attr-defined]
    action()
    backend._database.connection.exec_trace = None  # type: ignore[attr-defined]
    return seen


def test_a_step_is_at_most_300_bytes_on_disk(backend: SqliteBackend, path: Path) -> None:
    """With 12 bytes of facts and an output of 200, index and page overhead included."""
    ann, steps = session_of(backend), 2_000
    header = start(backend, ann)

    def size() -> int:
        backend._database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return path.stat().st_size

    before = size()
    step = entries(2, steps, output=b"x" * 200)
    backend.commit(ann, [Change(header.instance, 1, step)])
    assert (size() - before) / steps <= 300


def test_a_waiting_instance_is_not_looked_at(backend: SqliteBackend) -> None:
    """Claims walk an index of what is free and due, so parked instances cost nothing."""
    plan = backend._database.connection.execute(f"EXPLAIN QUERY PLAN {queries.DUE}", (1, T0, "", 0, 9)).fetchall()
    assert len(plan) == 1
    assert plan[0][3].startswith("SEARCH agenda USING INDEX agenda_due (definition=?")


def test_apsw_is_loaded_with_the_first_backend_only() -> None:
    """Importing the module does not load SQLite."""
    text = "import sys, stepwell.backend.sqlite; sys.exit('apsw' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


def test_a_session_of_an_earlier_boot_is_over(backend: SqliteBackend) -> None:
    """Its lease was counted by a clock that began again."""
    if not backend._boot_id:
        pytest.skip("this system does not tell one boot from another")
    start(backend, session_of(backend))
    backend._database.connection.execute("UPDATE session SET lease_boot = 'an earlier boot'")
    assert header_of(backend).session == 0


def test_messages_and_images_are_bound_not_spliced(backend: SqliteBackend) -> None:
    """Text that looks like SQL is text."""
    ann = session_of(backend)
    header = start(backend, ann, "'; DROP TABLE instance; --")
    backend.post(header.instance, signal("'; DROP TABLE inbox; --"))
    backend.commit(ann, [change(header, rest=RUNNING)])
    assert header_of(backend, "'; DROP TABLE instance; --").mail == 1
