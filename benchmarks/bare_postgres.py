"""The floor on PostgreSQL: the rows of a recorded run, written with psycopg alone into stepwell's tables.

As with SQLite, values are encoded and arrays are packed beforehand. One row is a prepared INSERT that commits by
itself; many are arrays of 500, in a transaction. The claiming side of a pool is one connection that claims 500
instances, reads their inputs and writes their steps: what a worker of no engine would do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bare
import ours
import psycopg
import work
import workers
from bare import GROUP, Recorded, recorded_many, recorded_one
from psycopg.pq import Format
from server import Database, database
from work import VALUE, check

from stepwell import PostgresBackend
from stepwell.backend.postgres_pack import byteas, int8s
from stepwell.backend.postgres_wire import set_up

_STEP = "INSERT INTO stepwell.journal (instance, seq, at_us, took_us, facts, output) VALUES ($1, $2, $3, $4, $5, $6)"
_STEPS = """
INSERT INTO stepwell.journal (instance, seq, at_us, took_us, facts, output)
SELECT unnest($1::bigint[]), unnest($2::bigint[]), unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::bytea[]),
    unnest($6::bytea[])
"""
_NEW = """
INSERT INTO stepwell.instance (id, instance_id, definition, created_us, updated_us, nonce, run, state, input_digest,
    trace, origin, lane) OVERRIDING SYSTEM VALUE
SELECT unnest($1::bigint[]), unnest($2::bytea[]), 1, 1, 1, 1, 1, 'running', '', '', '', ''
"""
_DUE = """
INSERT INTO stepwell.agenda (instance, definition, due_us, session) SELECT unnest($1::bigint[]), 1, 0, $2::bigint
"""
_REST = """
UPDATE stepwell.instance SET state = 'completed', updated_us = 2, ended_us = 2, result_seq = $2, image_seq = $2
WHERE id = ANY($1)
"""
_END = "DELETE FROM stepwell.agenda WHERE instance = ANY($1)"
_CLAIM = """
WITH due AS (
    SELECT instance FROM stepwell.agenda WHERE definition = 1 AND session IS NULL AND due_us <= $1
    ORDER BY due_us, instance LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE stepwell.agenda a SET session = 1 FROM due WHERE a.instance = due.instance RETURNING a.instance
"""
_READ = (
    "SELECT seq, facts, output, at_us, took_us FROM stepwell.journal WHERE instance = ANY($1) ORDER BY instance, seq"
)

Statement = tuple[str, tuple[Any, ...]]
Commit = list[Statement]


class Raw:
    """A connection of psycopg's that sends what is packed already, and prepares everything."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
        self._cursor = psycopg.RawCursor(self.connection)
        self._cursor.format = Format.BINARY
        set_up(self._cursor)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._cursor.execute(query.encode(), values, binary=True).fetchall()

    def write(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            if len(commit) == 1:
                self._run(*commit[0])
            else:
                with self.connection.transaction():
                    for query, values in commit:
                        self._run(query, values)

    def _run(self, query: str, values: tuple[Any, ...]) -> None:
        self._cursor.execute(query.encode(), values, binary=True)


@contextmanager
def raw(place: Database) -> Iterator[Raw]:
    """A connection to stepwell's tables, which are made."""
    PostgresBackend(place.dsn).close()
    made = Raw(place.dsn)
    try:
        yield made
    finally:
        made.connection.close()


# --- writing a recorded run again -----------------------------------------------------------------


class Run(NamedTuple):
    """The transactions of a run: everything that is created, then the rest by so many rows."""

    creation: Commit
    steps: list[Commit]


def run_of(recorded: Recorded, group: int, first_id: int, session: int | None) -> Run:
    """``session``: who holds what is created."""
    moved = [(row[0] + first_id, *row[1:]) for row in recorded.journal]  # in the order of seq
    ids = sorted({row[0] for row in moved})
    names = [b"raw-%d" % number for number in ids]
    creation = [
        (_NEW, (int8s(ids), byteas(names))),
        _rows([row for row in moved if row[1] == 1]),
        (_DUE, (int8s(ids), session)),
    ]
    rest, last = [row for row in moved if row[1] > 1], moved[-1][1]
    return Run(creation, [_commit(rest[at : at + group], last) for at in range(0, len(rest), group)])


def _rows(rows: Sequence[tuple[Any, ...]]) -> Statement:
    if len(rows) == 1:
        return _STEP, rows[0]
    columns = [*zip(*rows, strict=True)]
    return _STEPS, (*map(int8s, columns[:4]), *map(byteas, columns[4:]))


def _commit(rows: Sequence[tuple[Any, ...]], last: int) -> Commit:
    ended = int8s([row[0] for row in rows if row[1] == last])
    return [_rows(rows), *([(_REST, (ended, last)), (_END, (ended,))] if rows[-1][1] == last else [])]


def chain_postgres(steps: int, scratch: Path) -> float:
    """Microseconds per step of writing a run again and again, after a short one as a warm-up."""
    recorded = recorded_one(ours.chain(steps))
    with database() as place, raw(place) as made:
        calls, took_s = 0, 0.0
        _write(made, run_of(recorded_one(ours.chain(10)), 1, 0, 1))
        while took_s < work.LEAST_S:
            calls += 1
            took_s += _write(made, run_of(recorded, 1, calls, 1))
        return took_s / calls / steps * 1e6


def _write(made: Raw, run: Run) -> float:
    return work.seconds(lambda: made.write([run.creation, *run.steps]))


def many_postgres(instances: int, scratch: Path) -> float:
    with database() as place, raw(place) as made:
        _write(made, run_of(recorded_many(50), GROUP, 10 * instances, 1))
        return instances / _write(made, run_of(recorded_many(instances), GROUP, 0, 1))


def resume_postgres(steps: int, scratch: Path) -> float:
    """Milliseconds to read so many steps back and commit one more."""
    with database() as place, raw(place) as made:
        _write(made, run_of(recorded_one(ours.chain(10)), 1, 10, 1))
        run = run_of(recorded_one(ours.chain(steps + 1)), 1, 0, 1)
        made.write([run.creation, *run.steps[:-1]])

        def resume() -> None:
            check(len(made.rows(_READ, int8s([1]))), len(run.steps))
            made.write(run.steps[-1:])

        check(len(made.rows(_READ, int8s([11]))), 11)
        return work.seconds(resume) * 1e3


bytes_postgres = bare.bytes_sqlite


# --- a pool ---------------------------------------------------------------------------------------


def pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    """Everything is submitted, then claimed and written by one connection; ``drain`` leaves the submitting out."""
    with database() as place, raw(place) as made:
        for first_id, count in ((10 * instances, 50), (0, instances)):
            runs = _by_claim(recorded_many(count), first_id)
            submitted_s = work.seconds(lambda runs=runs: made.write([run.creation for run in runs]))  # type: ignore[misc]
            drained_s = work.seconds(lambda runs=runs: [_work_off(made, run) for run in runs])  # type: ignore[misc]
        return {"": instances / (submitted_s + drained_s), "drain": instances / drained_s}


pool_two_postgres = pool_postgres


def _by_claim(recorded: Recorded, first_id: int) -> list[Run]:
    ids = sorted({row[0] for row in recorded.journal})
    parts = [set(ids[at : at + GROUP]) for at in range(0, len(ids), GROUP)]
    of_part = [Recorded([], [row for row in recorded.journal if row[0] in part]) for part in parts]
    return [run_of(part, GROUP, first_id, None) for part in of_part]


def _work_off(made: Raw, run: Run) -> None:
    claimed = [number for (number,) in made.rows(_CLAIM, 1, GROUP)]
    check(len(made.rows(_READ, int8s(claimed))), len(claimed))
    made.write(run.steps)


def pool_sqlite(instances: int, scratch: Path) -> dict[str, float]:
    """The same on one SQLite file: everything is submitted, then claimed by 500 and written."""
    with bare.connected(scratch) as connection:
        commits = bare.commits_of(recorded_many(instances), GROUP)
        submitted_s = work.seconds(lambda: bare.write(connection, commits[:1]))
        connection.execute("UPDATE agenda SET session = NULL, due_us = 0")

        def drain() -> None:
            for _ in range(0, instances, GROUP):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_CLAIM_SQLITE, (GROUP,)).fetchall()
                connection.execute("COMMIT")
            bare.write(connection, commits[1:])

        drained_s = work.seconds(drain)
    return {"": instances / (submitted_s + drained_s), "drain": instances / drained_s}


pool_two_sqlite = pool_sqlite
_CLAIM_SQLITE = """
UPDATE agenda SET session = 1 WHERE instance IN (
    SELECT instance FROM agenda WHERE session IS NULL AND due_us <= 1 ORDER BY due_us, instance LIMIT ?
) RETURNING instance
"""


# --- an idle worker -------------------------------------------------------------------------------


def pickup_postgres(samples: int, scratch: Path) -> dict[str, float]:
    """From one process to another: a row and a notification, a claim, the step's row and a notification back."""
    _, (_, first), _ = run_of(recorded_one(ours.chain(1)), 1, 0, None).creation
    ids = iter(range(1, samples + 2))
    with database() as place, raw(place) as made, psycopg.connect(place.dsn, autocommit=True) as listening:
        listening.execute("LISTEN done")

        def submit(name: str) -> None:
            one = int8s([number := next(ids)])
            made.write([[(_NEW, (one, byteas([name.encode()]))), (_STEP, (number, *first[1:])), (_DUE, (one, None))]])
            made.rows("SELECT pg_notify('due', '')")

        with workers.working("bare_postgres", place.dsn, 1) as (worker,):
            return workers.pickup(worker, samples, submit, lambda _: next(listening.notifies(timeout=10, stop_after=1)))


@contextmanager
def serving(place: str, name: str) -> Iterator[None]:
    made, listening = Raw(place), psycopg.connect(place, autocommit=True)
    listening.execute("LISTEN due")

    def serve() -> None:
        for _ in listening.notifies():
            for (number,) in made.rows(_CLAIM, 1, GROUP):
                one = int8s([number])
                ((_, _, value, *_),) = made.rows(_READ, one)
                work.seen(VALUE)
                made.write([[(_STEP, (number, 2, 1, 1, b"", value)), (_REST, (one, 2)), (_END, (one,))]])
                made.rows("SELECT pg_notify('done', '')")

    threading.Thread(target=serve, daemon=True).start()
    yield
