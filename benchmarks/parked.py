"""stepwell beside many waiting instances in one SQLite file: what they cost, and what they do to those that go on."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import work
from control import DELAY_S, answered, child, naps, sleeps
from work import VALUE, check, percentiles_us

from stepwell import CheckpointingRunner, SqliteBackend, WorkflowClient, task, task_context, workflow

BATCH, SAMPLES = 1_000, 40


def parked(instances: int, scratch: Path) -> dict[str, float]:
    """All figures beside so many that wait for a signal, and a hundredth of that which wait for a day.

    ``create``: microseconds for each, in batches of 1 000. ``bytes``: of the file, for each. ``recover``: milliseconds
    of a runner in a new process that finds nothing due, and ``mib``, what its memory grows by. ``p50`` and ``p99``:
    from a signal, ``timer_p50`` and ``timer_p99`` from the due time, until the next step runs in another process
    that serves them all. ``run`` and ``resume``: microseconds of a chain of one step, and of the rest of one that got
    its message.
    """
    path = scratch / "parked.db"
    backend = SqliteBackend(path)
    with WorkflowClient(backend) as client:
        client.start(answered, VALUE, instance_id="one")  # the graph is stored, and something is left to serve
        before, began_s = _size(backend, path), time.monotonic()
        _park(client, instances)
        took_s = time.monotonic() - began_s
        grown = _size(backend, path) - before
        each = max(instances, 1)
        found = {"create": took_s / each * 1e6, "bytes": grown / each} if instances else {}
        with child(path, "recover") as lines:
            answer = json.loads(next(lines))
        found |= {"recover": answer["ms"], "mib": answer["mib"]}
        with child(path, "serve") as lines:
            found |= percentiles_us(_answers(client, lines))
            timers = percentiles_us(_timers(client, lines))
        found |= {f"timer_{name}": us for name, us in timers.items()}
    found["run"] = _runs(backend)
    found["resume"] = _resumes(backend)
    backend.close()
    return found


def _park(client: WorkflowClient, instances: int) -> None:
    for first in range(0, instances, BATCH):
        client.start_many(answered, [VALUE] * min(BATCH, instances - first))
    if instances:
        client.start_many(sleeps, [VALUE] * (instances // 100))


def _size(backend: SqliteBackend, path: Path) -> int:
    connection = backend.connect()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path.stat().st_size


def _answers(client: WorkflowClient, lines: Iterator[str]) -> list[float]:
    """Seconds from each signal to the next step; the first one, at which the other process starts, does not count."""
    samples: list[float] = []
    for number in range(SAMPLES + 1):
        client.start(answered, VALUE, instance_id=f"answered-{number}")
        time.sleep(random.uniform(0.01, 0.07))  # noqa: S311  # any time between two looks
        sent_s = time.monotonic()
        client.signal(f"answered-{number}", "go", VALUE)
        name, reached_s, _ = json.loads(next(lines))
        check(name, f"answered-{number}")
        samples.append(reached_s - sent_s)
    return samples[1:]


def _timers(client: WorkflowClient, lines: Iterator[str]) -> list[float]:
    """Seconds from each due time to the next step."""
    due_s: dict[str, float] = {}
    for number in range(SAMPLES):
        status = client.start(naps, VALUE, instance_id=f"naps-{number}")
        assert status.due is not None
        due_s[status.instance_id] = status.due.timestamp()
        time.sleep(DELAY_S / 10)
    told = [json.loads(next(lines)) for _ in range(SAMPLES)]
    return [ran_s - due_s[name] for name, _, ran_s in told]


plain = task("plain")(work.step)


@workflow
def single(value: dict[str, Any]) -> dict[str, Any]:
    return plain(value)


def _runs(backend: SqliteBackend) -> float:
    with CheckpointingRunner(backend) as runner:
        runner.run(single, VALUE)
        return work.us_each(lambda: runner.run(single, VALUE), 1)


def _resumes(backend: SqliteBackend) -> float:
    """Microseconds in which an instance that has got its message is claimed by its id and run to its end."""
    names = [f"resumed-{number}" for number in range(SAMPLES)]
    with CheckpointingRunner(backend) as runner:
        runner.client.start_many(answered, [VALUE] * SAMPLES, instance_ids=names)
        for name in names:
            runner.client.signal(name, "go", VALUE)
        return work.seconds(lambda: [runner.resume(answered, name) for name in names]) / SAMPLES * 1e6


# --- a transaction of the user's own ---------------------------------------------------------------


@task
def books(value: dict[str, Any]) -> dict[str, Any]:
    with task_context().transaction() as db:
        db.execute("INSERT INTO booked (n) VALUES (?)", (value["n"],))
        return work.step(value)


def _chain_of(name: str, body: Any, steps: int) -> Any:
    @workflow(f"{name}-{steps}")
    def made(value: dict[str, Any]) -> dict[str, Any]:
        for _ in range(steps):
            value = body(value)
        return value

    return made


def transactional(steps: int, scratch: Path) -> dict[str, float]:
    """Microseconds of a plain step, and of one that writes a row of the user's in the step's own transaction."""
    backend = SqliteBackend(scratch / "stepwell.db")
    connection = backend.connect()
    connection.execute("CREATE TABLE booked (n INTEGER NOT NULL)")
    connection.close()
    with CheckpointingRunner(backend) as runner:
        found: dict[str, float] = {}
        for name, body in (("plain", plain), ("own", books)):
            flow = _chain_of(name, body, steps)
            check(runner.run(flow, VALUE)["n"], steps)
            found[name] = work.us_each(lambda flow=flow: runner.run(flow, VALUE), steps)  # type: ignore[misc]
        return found
