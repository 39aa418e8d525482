"""stepwell's workers: a pool on PostgreSQL or one SQLite file, and an idle worker. Default settings throughout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import work
import workers
from server import Database, connected, cost_each, database, statements
from work import VALUE, Value, check_value

from stepwell import PooledWorker, PostgresBackend, SqliteBackend, WorkflowClient, task, workflow

IDLE = 10  # workers with nothing to do
_LEFT = 'SELECT 1 FROM "stepwell".agenda LIMIT 1'
_LEFT_SQLITE = "SELECT 1 FROM agenda LIMIT 1"

seen = task("seen")(work.seen)


@workflow
def pooled(value: Value) -> Value:
    for _ in range(workers.STEPS):
        value = seen(value)
    return value


@workflow
def single(value: Value) -> Value:
    return seen(value)


def opened(place: str) -> PostgresBackend | SqliteBackend:
    return PostgresBackend(place) if place.startswith("postgresql:") else SqliteBackend(place)


@contextmanager
def serving(place: str, name: str) -> Iterator[None]:
    with opened(place) as backend, PooledWorker(backend, [pooled, single], name=name).start():
        yield


class Submitter:
    """A client that numbers what it starts. It is made before the workers, and makes their tables."""

    def __init__(self, place: str) -> None:
        self._backend = opened(place)
        self.client = WorkflowClient(self._backend)
        self._names = count()

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self._backend.close()

    def many(self, instances: int) -> None:
        names = [f"i{next(self._names)}" for _ in range(instances)]
        self.client.start_many(pooled, [VALUE] * instances, instance_ids=names)

    def one(self, name: str) -> None:
        self.client.start(single, VALUE, instance_id=name)

    def result(self, name: str) -> None:
        check_value(self.client.result(name, single, timeout=60), 1)


@contextmanager
def ended_postgres(place: Database) -> Iterator[Callable[[], bool]]:
    with connected(place.name) as connection:
        yield lambda: connection.execute(_LEFT).fetchone() is None


def _pool_postgres(instances: int, number: int) -> dict[str, float]:
    with (
        database() as place,
        Submitter(place.dsn) as submitter,
        ended_postgres(place) as ended,
        workers.working("fleet", place.dsn, number) as working,
    ):
        return workers.pool(working, instances, submitter.many, ended)


def pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool_postgres(instances, 1)


def pool_two_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool_postgres(instances, 2)


def _pool_sqlite(instances: int, scratch: Path, number: int) -> dict[str, float]:
    place = str(scratch / "stepwell.db")
    with Submitter(place) as submitter, SqliteBackend(place) as backend, ExitStack() as stack:
        connection = backend.connect()
        stack.callback(connection.close)
        working = stack.enter_context(workers.working("fleet", place, number))
        return workers.pool(working, instances, submitter.many, lambda: not connection.execute(_LEFT_SQLITE).fetchall())


def pool_sqlite(instances: int, scratch: Path) -> dict[str, float]:
    return _pool_sqlite(instances, scratch, 1)


def pool_two_sqlite(instances: int, scratch: Path) -> dict[str, float]:
    return _pool_sqlite(instances, scratch, 2)


def _pickup(place: str, samples: int) -> dict[str, float]:
    with Submitter(place) as submitter, workers.working("fleet", place, 1) as (worker,):
        return workers.pickup(worker, samples, submitter.one, submitter.result)


def pickup_postgres(samples: int, scratch: Path) -> dict[str, float]:
    with database() as place:
        return _pickup(place.dsn, samples)


def pickup_sqlite(samples: int, scratch: Path) -> dict[str, float]:
    return _pickup(str(scratch / "stepwell.db"), samples)


def cost_pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    """Statements and bytes of the log for each step in a pool of two workers, the client's included."""
    with (
        database(logged=True) as place,
        Submitter(place.dsn) as submitter,
        ended_postgres(place) as ended,
        workers.working("fleet", place.dsn, 2),
    ):
        units = instances * workers.STEPS
        workers.through(submitter.many, workers.WARM, ended)
        return cost_each(place, lambda: workers.through(submitter.many, instances, ended), units)


def idle_postgres(seconds: int, scratch: Path) -> dict[str, float]:
    """What ten idle workers ask of the server in a second, each with connections of its own, and the CPU they take."""
    with database(logged=True) as place, ExitStack() as stack:
        for number in range(IDLE):
            stack.enter_context(serving(place.dsn, f"idle-{number}"))
        time.sleep(2)  # until they have looked around
        said, used_s = statements(place), time.process_time()
        time.sleep(seconds)
        return {
            "statements": (statements(place) - said) / seconds,
            "cpu": (time.process_time() - used_s) / seconds * 1e3,
        }
