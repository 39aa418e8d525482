"""The floor: the same bodies in a bare loop, and the same rows written with the driver alone.

The rows are recorded from a stepwell run and written again with APSW, already encoded, in a file that stepwell made:
same tables, indexes, pragmas and commits, no engine. It is a floor for this layout and this pattern of commits, not for
every conceivable one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import ours
import work
from work import VALUE, Value, check, check_value, us_each

from stepwell import CheckpointingRunner, SqliteBackend

if TYPE_CHECKING:
    import apsw


GROUP = 500  # rows to a commit where there are many: what a turn of stepwell takes at most

_APPEND = "INSERT INTO journal (instance, seq, at_us, took_us, facts, output) VALUES (?, ?, ?, ?, ?, ?)"
_AGENDA = "INSERT INTO agenda (instance, definition, due_us, session) VALUES (?, ?, 0, 1)"
_END = "DELETE FROM agenda WHERE instance = ?"
_REST = (
    "UPDATE instance SET state = ?, updated_us = ?, ended_us = ?, result_seq = ?, image_seq = ?, image = ? WHERE id = ?"
)
_READ = "SELECT seq, facts, NULL, at_us, took_us FROM journal WHERE instance = ? AND seq > 0 ORDER BY seq"

Statement = tuple[str, list[tuple[Any, ...]]]
Commit = list[Statement]


class Recorded(NamedTuple):
    """What a run left in its file: whole rows, by column name for the instances."""

    instances: list[dict[str, Any]]
    journal: list[tuple[Any, ...]]


# --- without a store ------------------------------------------------------------------------------


def chain_in_memory(steps: int, scratch: Path) -> float:
    bodies = [work.step] * steps

    def run() -> Value:
        value = VALUE
        for body in bodies:
            value = body(value)
        return value

    check_value(run(), steps)
    return us_each(run, steps)


loop_in_memory = chain_in_memory


def fork_in_memory(branches: int, scratch: Path) -> float:
    bodies = [work.step] * branches

    def run() -> int:
        return work.total([body(VALUE) for body in bodies])

    check(run(), branches)
    return us_each(run, branches)


fork_inline_in_memory = fork_in_memory


def fork_async_in_memory(branches: int, scratch: Path) -> float:
    """``asyncio.gather`` on a loop that is there already, as stepwell's is."""
    import asyncio

    async def run() -> int:
        return work.total(await asyncio.gather(*[work.step_async(VALUE) for _ in range(branches)]))

    with asyncio.Runner() as runner:
        check(runner.run(run()), branches)
        return us_each(lambda: runner.run(run()), branches)


def threads(tasks: int, scratch: Path) -> float:
    """A ``ThreadPoolExecutor`` of stepwell's default width, one submit for each task."""
    with ThreadPoolExecutor(32) as pool:
        check(work.total(list(pool.map(work.step, [VALUE] * tasks))), tasks)
        return us_each(lambda: list(pool.map(work.step, [VALUE] * tasks)), tasks)


def many_in_memory(instances: int, scratch: Path) -> float:
    def run() -> None:
        for _ in range(instances):
            value = VALUE
            for _ in range(4):
                value = work.step(value)

    return instances / work.seconds(run)


# --- writing a recorded run again -----------------------------------------------------------------


def record(run: Callable[[CheckpointingRunner], object]) -> Recorded:
    """Return the rows of a run of stepwell."""
    with TemporaryDirectory() as folder:
        backend = SqliteBackend(Path(folder) / "recorded.db", durability="fast")
        with CheckpointingRunner(backend) as runner:
            run(runner)
        connection = backend.connect()
        names = [row[1] for row in connection.execute("PRAGMA table_info(instance)")]
        instances = [dict(zip(names, row, strict=True)) for row in connection.execute("SELECT * FROM instance")]
        columns = "instance, seq, at_us, took_us, facts, output"
        journal = connection.execute(f"SELECT {columns} FROM journal ORDER BY seq, instance").fetchall()  # noqa: S608 - columns of our own schema
        connection.close()
        backend.close()
        return Recorded(instances, journal)


@cache
def recorded_one(flow: ours.Flow) -> Recorded:
    return record(lambda runner: runner.run(flow, VALUE))


@cache
def recorded_many(instances: int) -> Recorded:
    return record(lambda runner: runner.run_many(ours.chain(4), [VALUE] * instances))


def commits_of(recorded: Recorded, group: int, first_id: int = 0) -> list[Commit]:
    """Return the transactions of a run: the creation of everything, then its rows by ``group``, ends with the last."""
    moved = [(row[0] + first_id, *row[1:]) for row in recorded.journal]
    ends = {row["id"] + first_id: row for row in recorded.instances}
    last = {row[0]: row[1] for row in moved}  # rows come in the order of seq
    commits = [_creation(ends, [row for row in moved if row[1] == 1])]
    rows = [row for row in moved if row[1] > 1]
    for start in range(0, len(rows), group):
        part = rows[start : start + group]
        ended = [(row[0], ends[row[0]]) for row in part if row[1] == last[row[0]]]
        commits.append([(_APPEND, part), *(_ending(ended) if ended else [])])
    return commits


def _creation(instances: dict[int, dict[str, Any]], firsts: list[tuple[Any, ...]]) -> Commit:
    fresh = {"state": "running", "ended_us": None, "result_seq": 0, "image_seq": 0, "image": None}
    created = [
        {**row, **fresh, "id": number, "instance_id": f"{row['instance_id']}-{number}"}
        for number, row in instances.items()
    ]
    names = list(created[0])
    insert = f"INSERT INTO instance ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - columns of our own schema
    agenda = [(number, row["definition"]) for number, row in instances.items()]
    return [(insert, [tuple(row.values()) for row in created]), (_APPEND, firsts), (_AGENDA, agenda)]


def _ending(ended: Iterable[tuple[int, dict[str, Any]]]) -> list[Statement]:
    rests = [
        (*(row[name] for name in ("state", "updated_us", "ended_us", "result_seq", "image_seq", "image")), number)
        for number, row in ended
    ]
    return [(_REST, rests), (_END, [(rest[-1],) for rest in rests])]


@contextmanager
def connected(scratch: Path) -> Iterator[apsw.Connection]:
    """A connection with stepwell's pragmas to a file with stepwell's tables."""
    backend = SqliteBackend(scratch / "raw.db")
    connection = backend.connect()
    backend.close()
    try:
        yield connection
    finally:
        connection.close()


def write(connection: apsw.Connection, commits: Sequence[Commit]) -> None:
    for commit in commits:
        connection.execute("BEGIN IMMEDIATE")
        for statement, rows in commit:
            if len(rows) == 1:
                connection.execute(statement, rows[0])
            else:
                connection.executemany(statement, rows)
        connection.execute("COMMIT")


def _written_us(recorded: Recorded, group: int, units: int, scratch: Path) -> float:
    """Microseconds per unit of writing a run again and again, after a short one as a warm-up."""
    size = max(row["id"] for row in recorded.instances)
    with connected(scratch) as connection:
        fresh = (commits_of(recorded, group, number * size) for number in count(1))
        write(connection, commits_of(recorded_one(ours.chain(10)), 1))
        calls, took = 0, 0.0
        while took < work.LEAST_S:  # the rows are made outside the timed part
            commits = next(fresh)
            took += work.seconds(lambda commits=commits: write(connection, commits))  # type: ignore[misc]
            calls += 1
        return took / calls / units * 1e6


def chain_sqlite(steps: int, scratch: Path) -> float:
    return _written_us(recorded_one(ours.chain(steps)), 1, steps, scratch)


chain_sqlite_wal = chain_sqlite


def loop_sqlite(turns: int, scratch: Path) -> float:
    return _written_us(recorded_one(ours.turns(turns)), 1, turns, scratch)


def fork_sqlite(branches: int, scratch: Path) -> float:
    return _written_us(recorded_one(ours.fork(branches, ours.step)), GROUP, branches, scratch)


fork_async_sqlite = fork_sqlite


def many_sqlite(instances: int, scratch: Path) -> float:
    recorded = recorded_many(instances)
    with connected(scratch) as connection:
        write(connection, commits_of(recorded_many(50), GROUP, 10 * instances))
        commits = commits_of(recorded, GROUP)
        return instances / work.seconds(lambda: write(connection, commits))


def resume_sqlite(steps: int, scratch: Path) -> float:
    """Milliseconds to read so many steps back and commit one more."""
    recorded = recorded_one(ours.chain(steps + 1))
    commits = commits_of(recorded, 1)
    with connected(scratch) as connection:
        write(connection, [[statement for commit in commits[:-1] for statement in commit]])
    with connected(scratch) as connection:

        def resume() -> None:
            check(len(connection.execute(_READ, (1,)).fetchall()), len(recorded.journal) - 1)
            write(connection, commits[-1:])

        return work.seconds(resume) * 1e3


def bytes_sqlite(steps: int, scratch: Path) -> float:
    """Bytes of facts and output alone, without keys, index and pages."""
    journal = recorded_one(ours.chain(steps)).journal
    return sum(len(row[4]) + len(row[5] or b"") for row in journal) / steps
