"""pgqueuer as a contestant: a queue of jobs in PostgreSQL, without workflows.

A workflow of four steps is four jobs, each of which enqueues the next with its own result; that is not one transaction
with its own end, so it promises less. asyncpg as in its quick start, 50 jobs to a batch instead of 10, which is faster.
It stores no results, so there is only a pickup to be measured.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import work
import workers
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from server import connected, cost_each, database
from work import VALUE

BATCH = 50


class Submitter:
    """A connection on a loop in a thread of its own, which the calls wait for."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._connection = self._call(asyncpg.connect(dsn))
        self._queries = Queries(AsyncpgDriver(self._connection))
        self._call(self._queries.install())

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def many(self, instances: int) -> None:
        value = json.dumps(VALUE).encode()
        self._call(self._queries.enqueue(["pooled"] * instances, [value] * instances, [0] * instances))

    def one(self, name: str) -> None:
        self._call(self._queries.enqueue("single", json.dumps(VALUE).encode()))


@contextmanager
def serving(place: str, name: str) -> Iterator[None]:
    ready = threading.Event()
    threading.Thread(target=lambda: asyncio.run(_work(place, ready)), daemon=True).start()
    ready.wait()
    yield


async def _work(dsn: str, ready: threading.Event) -> None:
    driver = AsyncpgDriver(await asyncpg.connect(dsn))
    queue, queries = PgQueuer(driver), Queries(driver)

    @queue.entrypoint("pooled")
    async def pooled(job: Job) -> None:
        value = work.seen(json.loads(job.payload or b""))
        if value["n"] < workers.STEPS:
            await queries.enqueue("pooled", json.dumps(value).encode())

    @queue.entrypoint("single")
    async def single(job: Job) -> None:
        work.seen(json.loads(job.payload or b""))

    ready.set()
    await queue.run(batch_size=BATCH)


def _pool(instances: int, number: int) -> dict[str, float]:
    with (
        database() as place,
        Submitter(place.dsn) as submitter,
        connected(place.name) as connection,
        workers.working("peer_pgqueuer", place.dsn, number) as working,
    ):
        return workers.pool(working, instances, submitter.many, lambda: _is_empty(connection))


def _is_empty(connection: Any) -> bool:
    return connection.execute("SELECT 1 FROM pgqueuer LIMIT 1").fetchone() is None


def pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 1)


def pool_two_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 2)


def pickup_postgres(samples: int, scratch: Path) -> dict[str, float]:
    with (
        database() as place,
        Submitter(place.dsn) as submitter,
        workers.working("peer_pgqueuer", place.dsn, 1) as (worker,),
    ):
        return workers.pickup(worker, samples, submitter.one, None)


def cost_pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    with (
        database(logged=True) as place,
        Submitter(place.dsn) as submitter,
        connected(place.name) as connection,
        workers.working("peer_pgqueuer", place.dsn, 2),
    ):
        workers.through(submitter.many, workers.WARM, lambda: _is_empty(connection))

        def run() -> None:
            workers.through(submitter.many, instances, lambda: _is_empty(connection))

        return cost_each(place, run, instances * workers.STEPS)
