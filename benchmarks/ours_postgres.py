"""stepwell on PostgreSQL in one process. Default settings: full durability. How its workers do is in ``fleet``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Literal

import ours
import work
from control import answered
from fleet import single
from ours import chain
from server import Database, cost_each, database, stored_bytes
from work import VALUE

from stepwell import CheckpointingRunner, PostgresBackend, WorkflowClient
from stepwell.backend.base import Loaded, Session, Want
from stepwell.backend.liveness import this_process

BATCH = 1_000
TRIES = 200
CLAIM = 32  # a worker's concurrency by default
HOUR_US = 3_600_000_000


@contextmanager
def runner(place: Database, durability: Literal["full", "fast"] = "full") -> Iterator[CheckpointingRunner]:
    with PostgresBackend(place.dsn, durability=durability) as backend, CheckpointingRunner(backend) as made:
        yield made


def chain_postgres(steps: int, scratch: Path) -> float:
    with database() as place:
        return ours.one(runner(place), chain(steps), ours.after(steps), steps)


def many_postgres(instances: int, scratch: Path) -> float:
    with database() as place:
        return ours.many(runner(place), instances)


def resume_postgres(steps: int, scratch: Path) -> float:
    """Milliseconds until a new runner has finished a cut instance; its connections are open and in use."""
    with database() as place, runner(place) as resuming:
        ours.cut(runner(place, "fast"), steps)
        resuming.run(chain(4), VALUE, instance_id="warm")
        resuming.resume(chain(4), "warm")  # each of its connections is made when it is first needed
        return ours.resumed_ms(nullcontext(resuming), steps)


def bytes_postgres(steps: int, scratch: Path) -> float:
    """Bytes by which tables and indexes grow for each step. The first instance is not counted."""
    more = 4
    with database() as place, runner(place) as running:
        running.run(chain(steps), VALUE)
        before = stored_bytes(place)
        for _ in range(more):
            running.run(chain(steps), VALUE)
        return (stored_bytes(place) - before) / (more * steps)


def cost_chain_postgres(steps: int, scratch: Path) -> dict[str, float]:
    with database(logged=True) as place, runner(place) as running:
        running.run(chain(steps), VALUE)
        return cost_each(place, lambda: running.run(chain(steps), VALUE), steps)


def cost_many_postgres(instances: int, scratch: Path) -> dict[str, float]:
    with database(logged=True) as place, runner(place) as running:
        running.run_many(chain(4), [VALUE] * 50)
        return cost_each(place, lambda: running.run_many(chain(4), [VALUE] * instances), 4 * instances)


# --- claims ---------------------------------------------------------------------------------------


def claim_postgres(waiting: int, scratch: Path) -> dict[str, float]:
    """Microseconds of a claim beside so many instances that wait for a signal: nothing is due, and one is."""
    with database() as place, PostgresBackend(place.dsn) as backend, WorkflowClient(backend) as client:
        for first in range(0, waiting, BATCH):
            client.start_many(answered, [VALUE] * min(BATCH, waiting - first))
        client.start(single, VALUE)
        session = backend.open_session(this_process("claims"), HOUR_US)
        definitions = [number for graphs in backend.next_due(["answered", "single"]).values() for number in graphs]
        (due,) = _claim(backend, session, definitions)
        number = due.header.instance
        nothing = [work.seconds(lambda: _claim(backend, session, definitions)) for _ in range(TRIES)]
        one: list[float] = []
        for _ in range(TRIES):
            backend.release(session, [number])
            one.append(work.seconds(lambda: _claim(backend, session, definitions)))
        return {"nothing": median(nothing) * 1e6, "one": median(one) * 1e6}


def _claim(backend: PostgresBackend, session: Session, definitions: list[int]) -> Sequence[Loaded]:
    now_us = time.time_ns() // 1_000
    return backend.claim_due(session, Want(definitions, now_us, CLAIM))
