"""SqliteBackend inside a transaction of the user's: which connections it takes, and what locks and errors do to it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from stepwell.backend import sqlite_joined
from stepwell.backend.base import Change, Created, Creation, Filter, Joined
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.errors import BackendReadOnly, BackendUnavailable, Closed, OptionError, StorageFull, UsageError
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    creation,
    dump,
    entries,
    header_of,
    seqs,
    session_of,
    signal,
    start,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def backend(path: Path) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(path, busy_timeout="0s")
    yield backend
    backend.close()


@pytest.fixture
def connection(backend: SqliteBackend) -> Iterator[apsw.Connection]:
    connection = backend.connect()
    connection.execute("CREATE TABLE orders (name TEXT)")
    yield connection
    connection.close()


def orders(connection: apsw.Connection) -> list[object]:
    return [name for (name,) in connection.execute("SELECT name FROM main.orders ORDER BY rowid")]


# --- what it is for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "landed"), [("COMMIT", True), ("ROLLBACK", False)])
def test_a_row_and_an_instance_land_together(
    backend: SqliteBackend, connection: apsw.Connection, end: str, landed: bool
) -> None:
    """The user's own table and the store, in one transaction."""
    made = creation(backend)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO orders VALUES ('o-1')")
    backend.within(connection).create(None, [made])
    connection.execute(end)
    assert (orders(connection), backend.count(Filter())) == ((["o-1"], 1) if landed else ([], 0))


def test_without_a_transaction_each_method_is_one(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """It commits what it began, and only that; a failure rolls that back."""
    joined, made = backend.within(connection), creation(backend)
    joined.create(None, [made])
    assert not connection.in_transaction
    assert header_of(backend).seq == 1
    with pytest.raises(OptionError):
        joined.create(None, [replace(made, instance_id="b", definition=99)])
    assert not connection.in_transaction


def test_the_user_s_savepoints_are_their_own(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """One of the same name, around and inside: each is the user's to release or to roll back."""
    made = creation(backend)
    connection.execute("SAVEPOINT stepwell; INSERT INTO orders VALUES ('kept')")
    joined = backend.within(connection)
    joined.create(None, [made])
    connection.execute("SAVEPOINT stepwell; INSERT INTO orders VALUES ('dropped')")
    joined.create(None, [replace(made, instance_id="dropped")])
    connection.execute("ROLLBACK TO stepwell; RELEASE stepwell; RELEASE stepwell")
    assert not connection.in_transaction
    assert (orders(connection), [header.instance_id for header in backend.list(Filter())]) == (["kept"], ["a"])


def test_a_savepoint_that_was_not_begun_is_not_rolled_back(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """A lock that cannot be had leaves the user's savepoint alone, whatever its name."""
    made, other = creation(backend), backend.connect()
    connection.execute("CREATE TEMP TABLE notes (text)")
    connection.execute("BEGIN; SAVEPOINT stepwell; INSERT INTO notes VALUES ('kept')")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable):
        backend.within(connection).create(None, [made])
    other.close()
    assert connection.execute("SELECT text FROM notes").fetchall() == [("kept",)]
    connection.execute("RELEASE stepwell; COMMIT")


def test_its_own_connection_is_not_touched(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """A write of the backend's own would wait for the user's transaction, and the user for it."""
    made = creation(backend)
    connection.execute("BEGIN IMMEDIATE")
    backend._database.connection.exec_trace = _refuse  # type: ignore[attr-defined]
    joined = backend.within(connection)
    number = joined.register("inside", "inside", b"plan")
    (created,) = joined.create(None, [replace(made, definition=number)])
    assert isinstance(created, Created)
    joined.commit(None, [change(created.header, rest=WAITING)])
    assert (joined.load("a") is None, joined.values(created.header.instance, [2])) == (False, {2: b"out"})
    assert joined.plan("inside", "inside") == b"plan"
    backend._database.connection.exec_trace = None  # type: ignore[attr-defined]
    connection.execute("ROLLBACK")


def _refuse(*_: object) -> bool:
    raise AssertionError("the backend's own connection was used")


Step = Callable[[Joined, Creation], object]

STEPS: tuple[Step, ...] = (
    lambda store, made: store.create(None, [made]),
    lambda store, made: store.create(None, [replace(made, instance_id="b", labels={"k": "v"}), made]),
    lambda store, _: store.register("late", "late", b"plan"),
    lambda store, _: _advance(store, "a", None),
    lambda store, _: _advance(store, "b", WAITING),
    lambda store, _: _advance(store, "a", COMPLETED),
    lambda store, _: store.commit(None, [Change(77, 0, entries(1))]),
    lambda store, made: store.create(None, [replace(made, instance_id="c", messages=[signal(message_id="m")])]),
)


def _advance(store: Joined, instance_id: str, rest: object) -> object:
    header = store.header(instance_id)
    return store.commit(None, [change(header, rest=rest)]) if header is not None else None  # type: ignore[arg-type]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(STEPS), max_size=8), st.booleans())
def test_inside_and_outside_are_the_same(steps: list[Step], keep: bool) -> None:
    """Any operations inside a transaction that is committed do what they do without one; rolled back, nothing."""
    with tempfile.TemporaryDirectory() as folder:
        backend = SqliteBackend(Path(folder) / "store.db", durability="fast", busy_timeout="1s")
        direct = SqliteBackend(Path(folder) / "direct.db", durability="fast")
        made = [creation(store) for store in (backend, direct)]
        connection = backend.connect()
        connection.execute("BEGIN IMMEDIATE")
        inside = [step(backend.within(connection), made[0]) for step in steps]
        connection.execute("COMMIT" if keep else "ROLLBACK")
        outside = [step(direct, made[1]) for step in steps] if keep else []
        assert dump(backend) == dump(direct)
        assert inside == outside or not keep
        for each in (connection, backend, direct):
            each.close()


# --- what is taken ------------------------------------------------------------------------------------


def test_a_sqlite3_connection_is_refused_with_the_reason(backend: SqliteBackend, path: Path) -> None:
    """One of a subclass too: what counts is whose library it is."""

    class Mine(sqlite3.Connection):
        pass

    for theirs in (sqlite3.connect(":memory:"), sqlite3.connect(":memory:", factory=Mine)):
        with pytest.raises(OptionError, match=r"two SQLite libraries.*backend\.connect\(\)"):
            backend.within(theirs)
        theirs.close()


@pytest.mark.parametrize("wrong", [None, "store.db", 7])
def test_what_is_no_connection_is_named(backend: SqliteBackend, wrong: object) -> None:
    """With its type and where to get one."""
    with pytest.raises(OptionError, match=rf"backend\.connect\(\).*not {type(wrong).__name__}"):
        backend.within(wrong)


def test_another_file_is_refused(backend: SqliteBackend, tmp_path: Path) -> None:
    """A store of its own, a database in memory, and a copy of the same store."""
    shutil.copy(tmp_path / "store.db", tmp_path / "copy.db")
    SqliteBackend(tmp_path / "other.db").close()
    for name in (str(tmp_path / "other.db"), str(tmp_path / "copy.db"), ":memory:", ""):
        theirs = apsw.Connection(name)
        with pytest.raises(OptionError, match=r"one transaction needs one file"):
            backend.within(theirs)
        theirs.close()


def test_a_file_in_the_place_of_ours_is_refused(backend: SqliteBackend, path: Path) -> None:
    """It has the right name and is another store."""
    for file in path.parent.iterdir():
        file.rename(file.with_name("moved-" + file.name))
    SqliteBackend(path).close()
    theirs = apsw.Connection(str(path))
    with pytest.raises(OptionError, match="not the file any more"):
        backend.within(theirs).header("a")
    theirs.close()


def test_the_same_file_by_another_name_is_taken(backend: SqliteBackend, path: Path, tmp_path: Path) -> None:
    """A symbolic link leads to the same file; what counts is the file."""
    (tmp_path / "link.db").symlink_to(path)
    theirs = apsw.Connection(str(tmp_path / "link.db"))
    assert backend.within(theirs).header("a") is None
    theirs.close()


def test_a_relative_path_means_what_it_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend was opened by a relative path, and the program has changed its directory since."""
    monkeypatch.chdir(tmp_path)
    backend = SqliteBackend("store.db")
    theirs = backend.connect()
    monkeypatch.chdir(os.sep)
    assert backend.within(theirs).header("a") is None
    theirs.close()
    backend.close()


def test_a_connection_that_only_reads_is_refused(backend: SqliteBackend, path: Path) -> None:
    """It could not keep what it is given."""
    theirs = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    with pytest.raises(BackendReadOnly, match=r"backend\.connect\(\)"):
        backend.within(theirs)
    theirs.close()


def test_a_connection_that_keeps_less_is_refused(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """A step is as durable as the backend promises, in whosever transaction."""
    connection.execute("PRAGMA synchronous = NORMAL")
    with pytest.raises(OptionError, match="power cut"):
        backend.within(connection)


@pytest.mark.parametrize("kind", ["TABLE session (x)", "VIEW Journal AS SELECT 1"])
def test_a_temporary_table_in_front_of_ours_is_refused(
    backend: SqliteBackend, connection: apsw.Connection, kind: str
) -> None:
    """Our statements would read and write it instead of the stored one."""
    connection.execute(f"CREATE TEMP {kind}")
    with pytest.raises(OptionError, match="hides the stored one"):
        backend.within(connection).header("a")
    assert not connection.in_transaction


def test_a_closed_connection_or_backend_says_so(backend: SqliteBackend) -> None:
    """Each is the caller's mistake."""
    theirs, open_one = backend.connect(), backend.connect()
    theirs.close()
    with pytest.raises(OptionError, match="is closed"):
        backend.within(theirs)
    joined = backend.within(open_one)
    backend.close()
    with pytest.raises(Closed):
        joined.header("a")
    with pytest.raises(Closed):
        backend.within(open_one)
    open_one.close()


def test_a_forked_child_is_told(
    backend: SqliteBackend, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection does not survive a fork, whoever made it."""
    joined = backend.within(connection)
    with monkeypatch.context() as child:
        child.setattr(sqlite_joined.os, "getpid", lambda: -1)
        with pytest.raises(UsageError, match="after the fork"):
            joined.header("a")


def test_memory_names_what_to_use_instead(connection: apsw.Connection) -> None:
    """There is no transaction of a store without a database."""
    with pytest.raises(OptionError, match=r"SqliteBackend\(path\)"):
        InMemoryBackend().within(connection)


def test_what_the_connection_does_with_rows_is_kept_from_ours(
    backend: SqliteBackend, connection: apsw.Connection
) -> None:
    """Row tracers and converters of the user's see the user's rows only."""
    header = start(backend, None)
    connection.row_trace = lambda _, row: "traced"
    connection.convert_jsonb = lambda *_: "converted"
    connection.convert_binding = lambda *_: "bound"
    joined = backend.within(connection)
    jsonb = b"\x0c"  # happens to be an empty JSONB object
    joined.commit(None, [Change(header.instance, 1, [replace(entries(2)[0], output=jsonb)])])
    assert joined.values(header.instance, [2]) == {2: jsonb}
    assert connection.execute("SELECT 1").fetchone() == "traced"


# --- locks and errors ---------------------------------------------------------------------------------


def test_a_transaction_too_old_to_write_says_how_to_begin(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """It read, somebody else wrote: SQLite cannot give it the lock any more."""
    made = creation(backend)
    connection.execute("BEGIN")
    assert orders(connection) == []
    start(backend, None, "meanwhile")
    with pytest.raises(BackendUnavailable, match="BEGIN IMMEDIATE"):
        backend.within(connection).create(None, [made])
    assert connection.in_transaction
    connection.execute("ROLLBACK")


def test_a_transaction_that_has_read_cannot_wait(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """Another writer holds the lock now; the message says how to begin."""
    made, other = creation(backend), backend.connect()
    connection.execute("BEGIN")
    assert orders(connection) == []
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match=r"another connection is writing.*BEGIN IMMEDIATE"):
        backend.within(connection).create(None, [made])
    other.execute("ROLLBACK")
    other.close()
    backend.within(connection).create(None, [made])
    connection.execute("COMMIT")
    assert header_of(backend).seq == 1


@pytest.mark.parametrize("begin", ["BEGIN", ""])
def test_a_transaction_that_has_not_read_waits(backend: SqliteBackend, connection: apsw.Connection, begin: str) -> None:
    """A plain BEGIN that has done nothing yet, or none: the connection's own busy handler is asked."""
    made, other, asked = creation(backend), backend.connect(), []
    other.execute("BEGIN IMMEDIATE")

    def busy(tries: int) -> bool:
        asked.append(tries)
        other.execute("ROLLBACK")
        return True

    connection.set_busy_handler(busy)
    connection.execute(begin)
    backend.within(connection).create(None, [made])
    if begin:
        connection.execute("COMMIT")
    other.close()
    assert (asked, header_of(backend).seq) == ([0], 1)


def test_a_lock_that_stays_is_named(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """Without a transaction it is the connection's busy timeout that ran out."""
    made, other = creation(backend), backend.connect()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match="set_busy_timeout"):
        backend.within(connection).create(None, [made])
    other.execute("ROLLBACK")
    other.close()


def test_reading_inside_takes_no_write_lock(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """Others may write while the user only looks."""
    start(backend, None)
    connection.execute("BEGIN")
    assert backend.within(connection).header("a") is not None
    start(backend, None, "b")
    connection.execute("COMMIT")


def test_a_full_disk_inside_keeps_the_user_informed(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """The error says whether SQLite has ended the user's transaction, and nothing of the write is kept."""
    header = start(backend, None)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()  # type: ignore[misc]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO orders VALUES ('mine')")
    with pytest.raises(StorageFull) as caught:
        backend.within(connection).commit(None, [Change(header.instance, 1, entries(2, output=b"x" * 1_000_000))])
    assert ("rolled back the whole" in str(caught.value)) is not connection.in_transaction
    if connection.in_transaction:
        connection.execute("COMMIT")
    assert seqs(backend, header) == [1]


def test_whatever_fails_inside_leaves_the_transaction_as_it_was(
    backend: SqliteBackend, connection: apsw.Connection
) -> None:
    """An error before the n-th statement, for every n: the user's row is there, and nothing of ours."""
    ann = session_of(backend)
    headers = [start(backend, ann, name) for name in "ab"]
    made = [creation(backend, "new", count=2), replace(creation(backend, "newer"), labels={"k": "v"})]
    changes = [change(headers[0], count=2), change(headers[1], rest=COMPLETED)]
    before, nth = dump(backend), 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO orders VALUES ('mine')")
    joined = backend.within(connection)
    for action in (lambda: joined.create(ann, made), lambda: joined.commit(ann, changes)):
        while _fails_at(nth, connection, action):
            assert connection.in_transaction
            nth += 1
        assert nth > 3
        nth = 1
    assert orders(connection) == ["mine"]
    assert dump(backend) == before
    connection.execute("COMMIT")
    assert [header.seq for header in backend.list(Filter())] == [1, 2, 2, 3]


def _fails_at(nth: int, connection: apsw.Connection, action: Callable[[], object]) -> bool:
    """Run an action with an interrupt before its n-th statement; return whether it came that far."""
    seen = 0

    def trace(_: object, statement: str, __: object) -> bool:
        nonlocal seen
        seen += 1
        if seen == nth and not statement.startswith(("ROLLBACK", "RELEASE")):
            raise KeyboardInterrupt
        return True

    connection.exec_trace = trace
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        connection.exec_trace = None
    return False


def test_the_times_of_rows_are_the_callers(backend: SqliteBackend, connection: apsw.Connection) -> None:
    """What was made inside is read outside as it was given."""
    made = creation(backend)
    backend.within(connection).create(None, [made])
    assert (header_of(backend).created_us, header_of(backend).due_us) == (T0, T0)
