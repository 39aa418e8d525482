"""Every write of SqliteBackend is all or nothing, wherever an error or the death of the process cuts it off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from stepwell.backend.base import Change, Filter, Session, Want
from stepwell.backend.liveness import this_process
from stepwell.backend.sqlite import SqliteBackend
from stepwell.errors import BackendError
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    claim_offers,
    create,
    creation,
    definition_of,
    dump,
    header_of,
    offer,
    outcome,
    session_of,
    signal,
    start,
)

Action = Callable[[SqliteBackend, Session], object]


def commit_steps(backend: SqliteBackend, ann: Session) -> object:
    a, b = (backend.header(name) for name in "ab")
    assert a is not None
    assert b is not None
    taken = [message.id for message in backend.mail(ann).get(b.instance, ())]
    return backend.commit(ann, [change(a, count=2), change(b, rest=WAITING, taken=taken)])


def commit_with_a_conflict(backend: SqliteBackend, ann: Session) -> object:
    a, b = (backend.header(name) for name in "ab")
    assert a is not None
    assert b is not None
    return backend.commit(ann, [change(a, base=9), Change(b.instance, b.seq, [], (), COMPLETED), change(a, count=2)])


def commit_as_client(backend: SqliteBackend, _: Session) -> object:
    free = backend.header("free")
    assert free is not None
    return backend.commit(None, [replace(change(free, rest=WAITING), message_ids=["m"])])


def create_some(backend: SqliteBackend, ann: Session) -> object:
    old = backend.header("b")
    assert old is not None
    replacing = replace(creation(backend, "b"), replacing=change(old, rest=COMPLETED))
    return backend.create(ann, [creation(backend, "new"), replacing, creation(backend, "newer", count=2)])


def restore_some(backend: SqliteBackend, _: Session) -> object:
    made = replace(creation(backend, "restored", count=2), origin="elsewhere", run=3, labels={"k": "v", "l": "w"})
    inbox = replace(made, messages=[signal(message_id="m"), signal()], message_ids=["k"], claim=False)
    return backend.create(None, [inbox, replace(made, instance_id="failed", state="failed", ended_us=T0)])


def post(backend: SqliteBackend, _: Session) -> object:
    a = backend.header("a")
    assert a is not None
    return backend.post(a.instance, signal(message_id="n"))


def claim_due(backend: SqliteBackend, ann: Session) -> object:
    return backend.claim_due(ann, Want([definition_of(backend)], T0, 10))


def take_over(backend: SqliteBackend, ann: Session) -> object:
    """End a session that is over, with its instances and offers, while claiming what that frees."""
    return backend.claim_due(ann, Want([definition_of(backend)], T0, 10, most={definition_of(backend): 9}))


def offer_some(backend: SqliteBackend, ann: Session) -> object:
    a, b = (backend.header(name) for name in "ab")
    assert a is not None
    assert b is not None
    return backend.offer(ann, {a.instance: [offer(b"x"), offer(b"y", tags=["eu"])], b.instance: [offer(b"x")]})


def claim_some_offers(backend: SqliteBackend, ann: Session) -> object:
    return claim_offers(backend, ann, limit=2)


def settle_some(backend: SqliteBackend, ann: Session) -> object:
    return backend.settle(ann, [(1, outcome()), (2, replace(outcome(), message_id="n")), (99, outcome())])


def hand_back_some(backend: SqliteBackend, ann: Session) -> object:
    return backend.hand_back(ann, [1, 2])


def call_off_some(backend: SqliteBackend, ann: Session) -> object:
    a = backend.header("a")
    assert a is not None
    return backend.call_off(ann, a.instance, [b"free", b"mine"], stop=True)


def end_with_offers(backend: SqliteBackend, ann: Session) -> object:
    a = backend.header("a")
    assert a is not None
    return backend.commit(ann, [change(a, rest=COMPLETED)])


def end_session(backend: SqliteBackend, ann: Session) -> object:
    return backend.end_session(ann)


def purge(backend: SqliteBackend, _: Session) -> object:
    return backend.purge(10**18, 1, 10)


TABLES = ("instance", "journal", "agenda", "inbox", "received", "label", "offer")

ACTIONS: tuple[Action, ...] = (
    commit_steps,
    commit_with_a_conflict,
    commit_as_client,
    create_some,
    restore_some,
    post,
    claim_due,
    take_over,
    offer_some,
    claim_some_offers,
    settle_some,
    hand_back_some,
    call_off_some,
    end_with_offers,
    end_session,
    purge,
)


def prepare(path: Path) -> tuple[SqliteBackend, Session]:
    """Make a store with held, free and ended instances, a message, offers of each kind, and a session that is over."""
    backend = SqliteBackend(path, durability="fast")
    ann = session_of(backend)
    start(backend, ann, "a")
    header = start(backend, ann, "b")
    backend.post(header.instance, signal())
    start(backend, None, "free")
    ended = create(backend, None, replace(creation(backend, "ended"), labels={"k": "v"}))
    backend.commit(None, [change(ended, rest=COMPLETED)])
    made = [offer(b"mine", 1), offer(b"mine too", 2), offer(b"lost", 3, lives=1), offer(b"free", 4)]
    backend.offer(ann, {header_of(backend).instance: made})
    claim_offers(backend, ann, limit=2)
    backend.call_off(ann, header_of(backend).instance, [b"mine too"], stop=True)
    late = backend.open_session(this_process("late"), -1)
    claim_offers(backend, late, limit=1)
    start(backend, late, "late")
    return backend, ann


def everything(backend: SqliteBackend) -> list[object]:
    """Return all that can be seen, and the offers row by row."""
    return [*dump(backend), *backend._database.connection.execute("SELECT * FROM offer").fetchall()]


def test_nothing_is_left_of_what_was_removed(tmp_path: Path) -> None:
    """Every table that has rows of instances is empty again, earlier runs included."""
    backend, ann = prepare(tmp_path / "store.db")
    restore_some(backend, ann)
    create_some(backend, ann)
    for header in backend.list(Filter(unfinished=True)):
        holder = ann if header.session else None
        backend.commit(holder, [change(header, rest=COMPLETED)])
    while backend.purge(None, 0, 2):
        pass
    rows = {table: backend._database.connection.execute(f"SELECT count(*) FROM {table}").fetchall() for table in TABLES}  # noqa: S608
    assert set(map(str, rows.values())) == {"[(0,)]"}
    backend.close()


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_a_write_that_fails_at_any_statement_changes_nothing(action: Action, tmp_path: Path) -> None:
    """An error before the n-th statement, for every n, leaves all rows as they were and the backend usable."""
    backend, ann = prepare(tmp_path / "store.db")
    before = everything(backend)
    nth = 1
    while fails_at(nth, backend, lambda: action(backend, ann)):
        assert everything(backend) == before
        nth += 1
    assert nth > 3
    assert everything(backend) != before
    backend.close()


def fails_at(nth: int, backend: SqliteBackend, action: Callable[[], object]) -> bool:
    """Run an action with an error before its n-th statement; return whether it came that far."""
    seen = 0

    def trace(_: object, statement: str, __: object) -> bool:
        nonlocal seen
        seen += 1
        if seen == nth and statement != "ROLLBACK":
            raise apsw.FullError("no space at this statement")
        return True

    backend._database.connection.exec_trace = trace  # type: ignore[attr-defined]
    try:
        action()
    except BackendError:
        return True
    finally:
        backend._database.connection.exec_trace = None  # type: ignore[attr-defined]
    return False


# Forked children die at every statement in turn. They are made by a fresh interpreter that has only one thread.
_CHILDREN = """
import os, sys
from pathlib import Path
import apsw
from stepwell.backend.sqlite import SqliteBackend
from stepwell.testing.sample import *

def in_child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def die_at(nth):
    seen = 0
    def trace(_, statement, __):
        nonlocal seen
        seen += 1
        if seen == nth:
            os._exit(77)
        return True
    return trace
"""

_MIGRATION = """
def opened(path, nth=None):
    if nth:
        trace = die_at(nth)
        apsw.connection_hooks.append(lambda connection: setattr(connection, "exec_trace", trace))
    backend = SqliteBackend(path)
    start(backend, None)

nth, died = 0, 77
while died == 77:
    nth += 1
    path = Path(sys.argv[1]) / f"{nth}.db"
    died = code(in_child(lambda: opened(path, nth)))
    if died == 77:
        assert code(in_child(lambda: opened(path))) == 0, nth
assert died == 0
print(nth - 1)
"""

_FIRST_OPENING = """
def opened(path, gate):
    os.read(gate, 1)
    backend = SqliteBackend(path)
    os.write(1, backend.backend_id.encode() + b" ")  # in one piece, beside those of the others

for turn in range(4):
    gate, door = os.pipe()
    path = Path(sys.argv[1]) / f"{turn}.db"
    children = [in_child(lambda: opened(path, gate)) for _ in range(8)]
    os.write(door, b"12345678")
    assert [code(pid) for pid in children] == [0] * 8
"""

_COMMIT = """
def commit(path, number, nth):
    backend = SqliteBackend(path, durability="fast")
    backend._database.connection.exec_trace = die_at(nth)
    header = header_of(backend)
    backend.commit(None, [change(header, count=2, rest=RUNNING)])

path = Path(sys.argv[1]) / "store.db"
first = SqliteBackend(path, durability="fast")
header = start(first, None)
first.close()
nth, died, seq = 0, 77, 1
while died == 77:
    nth += 1
    died = code(in_child(lambda: commit(path, header.instance, nth)))
    backend = SqliteBackend(path, durability="fast")
    found = header_of(backend)
    backend.close()
    assert (found.seq, found.state) == ((1, "pending") if died == 77 else (3, "running")), nth
assert died == 0
print(nth - 1)
"""


def run(script: str, tmp_path: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILDREN + script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_migration_killed_at_any_statement_can_be_run_again(tmp_path: Path) -> None:
    """A process that dies while it makes a new file leaves one that the next process can use."""
    (points,) = run(_MIGRATION, tmp_path)
    assert int(points) > 20


def test_a_commit_killed_at_any_statement_is_all_or_nothing(tmp_path: Path) -> None:
    """A process that dies before the end of the commit has written nothing, after it everything."""
    (points,) = run(_COMMIT, tmp_path)
    assert int(points) > 5


def test_eight_processes_can_make_the_same_file(tmp_path: Path) -> None:
    """Those who open a new file at the same moment all succeed, on one store."""
    ids = run(_FIRST_OPENING, tmp_path)
    assert len(ids) == 32
    assert sorted(ids.count(each) for each in set(ids)) == [8] * 4
