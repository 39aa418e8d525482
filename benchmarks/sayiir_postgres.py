"""sayiir on PostgreSQL, and its workers.

Many instances run in eight threads with an engine each, since its calls wait without the interpreter's lock. Its worker
runs one task for each poll, which is set to 1 ms instead of 5 s; to bound the run, a pool gets a tenth of the others'
instances. Its client cannot wait for a result, so it asks every millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import peer_sayiir
import work
import workers
from peer_sayiir import Durable, after, chain
from sayiir import Flow, PostgresBackend, Worker, WorkflowClient, task
from server import Database, connected, cost_each, database, stored_bytes
from work import VALUE, check, check_value, us_each

FEWER, THREADS = 10, 8
_LEFT = "SELECT count(*) FROM sayiir_workflow_snapshots WHERE status <> 'Completed'"

seen = task(work.seen)


def _flow(name: str, steps: int) -> object:
    flow = Flow(name)
    for number in range(steps):
        flow = flow.then(seen, name=f"{name}-{number}")
    return flow.build()


POOLED, SINGLE = _flow("pooled", workers.STEPS), _flow("single", 1)


def chain_postgres(steps: int, scratch: Path) -> float:
    with database() as place:
        backend = PostgresBackend(place.url)
        check(Durable(chain(10), backend, "warm").run(), after(10))
        durable, outputs = Durable(chain(steps), backend), []
        took_us = us_each(lambda: outputs.append(durable.run()), steps)
        check(outputs[-1], after(steps))
        return took_us


def many_postgres(instances: int, scratch: Path) -> float:
    with database() as place, ThreadPoolExecutor(THREADS) as threads:
        backend = PostgresBackend(place.url)
        engines = [Durable(chain(4), backend, f"engine-{number}") for number in range(THREADS)]
        turns = [engines[number % THREADS] for number in range(instances)]
        for engine in engines:
            check_value(engine.run(), 4)
        return instances / work.seconds(lambda: list(threads.map(Durable.run, turns)))


def resume_postgres(steps: int, scratch: Path) -> float:
    with database() as place:
        return peer_sayiir.resumed_ms(steps, PostgresBackend(place.url))


def bytes_postgres(steps: int, scratch: Path) -> float:
    with database() as place:
        durable = Durable(chain(steps), PostgresBackend(place.url))
        durable.run()
        before = stored_bytes(place)
        durable.run()
        return (stored_bytes(place) - before) / steps


def cost_chain_postgres(steps: int, scratch: Path) -> dict[str, float]:
    with database(logged=True) as place:
        durable = Durable(chain(steps), PostgresBackend(place.url))
        Durable(chain(10), PostgresBackend(place.url), "warm").run()
        return cost_each(place, durable.run, steps)


# --- workers --------------------------------------------------------------------------------------


class Submitter:
    def __init__(self, place: Database) -> None:
        self._client = WorkflowClient(PostgresBackend(place.url))
        self._names = count()

    def many(self, instances: int) -> None:
        for _ in range(instances):
            self._client.submit(POOLED, f"i{next(self._names)}", VALUE)

    def one(self, name: str) -> None:
        self._client.submit(SINGLE, name, VALUE)

    def result(self, name: str) -> None:
        while not (status := self._client.status(name)).is_completed():
            check(status.is_failed(), False)
            time.sleep(0.001)


@contextmanager
def serving(place: str, name: str) -> Iterator[None]:
    handle = Worker(name, PostgresBackend(place), poll_interval=0.001).start([POOLED, SINGLE])
    yield
    handle.shutdown()
    handle.join()


def _pool(instances: int, number: int) -> dict[str, float]:
    with database() as place, connected(place.name) as connection:
        submitter = Submitter(place)
        with workers.working("sayiir_postgres", place.url, number) as working:
            fewer = max(1, instances // FEWER)
            return workers.pool(working, fewer, submitter.many, lambda: connection.execute(_LEFT).fetchone()[0] == 0)


def pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 1)


def pool_two_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 2)


def pickup_postgres(samples: int, scratch: Path) -> dict[str, float]:
    with database() as place:
        submitter = Submitter(place)
        with workers.working("sayiir_postgres", place.url, 1) as (worker,):
            return workers.pickup(worker, samples, submitter.one, submitter.result)
