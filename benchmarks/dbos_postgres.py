"""DBOS on PostgreSQL, and its queue.

Default settings, but a queue is polled every 50 ms instead of every second. To bound the run, a fifth of the others'
instances is started at once, and a tenth goes through a queue. Whoever waits for a result asks every millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peer_dbos
import work
import workers
from dbos import DBOS, DBOSClient, DBOSConfig
from peer_dbos import chain, outcomes_s
from server import Database, connected, cost_each, database, stored_bytes
from work import VALUE, check_value, us_each

FEWER = 10
POLL_S = 0.05
QUEUE = "queue"
_LEFT = "SELECT count(*) FROM dbos.workflow_status WHERE status <> 'SUCCESS'"

seen = DBOS.step()(work.seen)


@DBOS.workflow()
def pooled(value: work.Value) -> work.Value:
    for _ in range(workers.STEPS):
        value = seen(value)
    return value


@DBOS.workflow()
def single(value: work.Value) -> work.Value:
    return seen(value)


@contextmanager
def launched(dsn: str) -> Iterator[None]:
    config: DBOSConfig = {"name": "benchmarks", "system_database_url": dsn, "log_level": "CRITICAL"}
    DBOS(config=config)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


def chain_postgres(steps: int, scratch: Path) -> float:
    with database() as place, launched(place.dsn):
        check_value(chain(VALUE, 10), 10)
        outputs: list[work.Value] = []
        took_us = us_each(lambda: outputs.append(chain(VALUE, steps)), steps)
        check_value(outputs[-1], steps)
        return took_us


def many_postgres(instances: int, scratch: Path) -> float:
    with database() as place, launched(place.dsn):
        chain(VALUE, 10)
        fewer = max(1, instances // peer_dbos.FEWER)
        return fewer / outcomes_s(fewer)


def resume_postgres(steps: int, scratch: Path) -> float:
    """As with SQLite: from the workflow's body starting anew to its first step that had not run."""
    with database() as place, launched(place.dsn):
        return peer_dbos.resumed_ms(steps)


def bytes_postgres(steps: int, scratch: Path) -> float:
    with database() as place, launched(place.dsn):
        chain(VALUE, steps)
        before = stored_bytes(place)
        chain(VALUE, steps)
        return (stored_bytes(place) - before) / steps


def cost_chain_postgres(steps: int, scratch: Path) -> dict[str, float]:
    with database(logged=True) as place, launched(place.dsn):
        chain(VALUE, 10)
        return cost_each(place, lambda: chain(VALUE, steps), steps)


# --- workers --------------------------------------------------------------------------------------


@contextmanager
def serving(place: str, name: str) -> Iterator[None]:
    with launched(place):
        DBOS.register_queue(QUEUE, polling_interval_sec=POLL_S)
        yield


class Submitter:
    def __init__(self, place: Database) -> None:
        with launched(place.dsn):  # makes the tables
            pass
        self._client = DBOSClient(system_database_url=place.dsn)

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.destroy()

    def many(self, instances: int) -> None:
        for _ in range(instances):
            self._client.enqueue({"queue_name": QUEUE, "workflow_name": "pooled"}, VALUE)

    def one(self, name: str) -> None:
        self._client.enqueue({"queue_name": QUEUE, "workflow_name": "single", "workflow_id": name}, VALUE)

    def result(self, name: str) -> None:
        check_value(self._client.retrieve_workflow(name).get_result(polling_interval_sec=0.001), 1)


def _pool(instances: int, number: int) -> dict[str, float]:
    with (
        database() as place,
        Submitter(place) as submitter,
        connected(place.name) as connection,
        workers.working("dbos_postgres", place.dsn, number) as working,
    ):
        fewer = max(1, instances // FEWER)
        return workers.pool(working, fewer, submitter.many, lambda: connection.execute(_LEFT).fetchone()[0] == 0)


def pool_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 1)


def pool_two_postgres(instances: int, scratch: Path) -> dict[str, float]:
    return _pool(instances, 2)


def pickup_postgres(samples: int, scratch: Path) -> dict[str, float]:
    with (
        database() as place,
        Submitter(place) as submitter,
        workers.working("dbos_postgres", place.dsn, 1) as (worker,),
    ):
        time.sleep(2)  # a new queue is seen at the next look for one
        return workers.pickup(worker, samples, submitter.one, submitter.result)
