"""stepwell as a contestant. Default settings throughout; SQLite in its default, full durability."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import work
from control import answer_apart, answer_memory, answer_sqlite, client_calls  # noqa: F401  # measured by name
from parked import parked, transactional  # noqa: F401  # measured by name
from work import VALUE, Value, check, check_value, us_each

from stepwell import (
    Again,
    CheckpointingRunner,
    Done,
    InMemoryBackend,
    InProcessRunner,
    SqliteBackend,
    Workflow,
    loop,
    parallel,
    signal,
    task,
    workflow,
)

Flow = Workflow[Value, Any]

step = task(work.step)
step_async = task(work.step_async)
step_inline = task("step_inline", run_in="inline")(work.step)
total = task(work.total)


class Cut(BaseException):
    """Ends a process as Ctrl-C does: not a failure of the task."""


class Switch:
    """What the bodies of this file look at and leave behind."""

    cutting = False
    reached_s = 0.0


@task
def last(value: Value) -> Value:
    if Switch.cutting:
        raise Cut
    Switch.reached_s = time.perf_counter()
    return work.step(value)


# --- the graphs -----------------------------------------------------------------------------------


@cache
def chain(steps: int) -> Flow:
    @workflow(f"chain-{steps}")
    def made(value: Value) -> Value:
        for _ in range(steps):
            value = step(value)
        return value

    return made


@cache
def chain_to_cut(steps: int) -> Flow:
    @workflow(f"cut-{steps}")
    def made(value: Value) -> Value:
        for _ in range(steps):
            value = step(value)
        return last(value)

    return made


@cache
def fork(branches: int, body: Callable[[Value], Value]) -> Flow:
    @workflow(f"fork-{branches}-{getattr(body, 'name', '')}")
    def made(value: Value) -> int:
        with parallel():
            values = [body(value) for _ in range(branches)]
        return total(values)

    return made


@cache
def fork_async(branches: int) -> Flow:
    @workflow(f"fork-{branches}-async")
    async def made(value: Value) -> int:
        with parallel():
            values = [await step_async(value) for _ in range(branches)]
        return total(values)

    return made


@cache
def turns(count: int) -> Flow:
    @task
    def turn(value: Value) -> Again[Value] | Done[Value]:
        value = work.step(value)
        return Again(value) if value["n"] < count else Done(value)

    @workflow(f"loop-{count}")
    def made(value: Value) -> Value:
        return loop(turn, value, max_iterations=count)

    return made


@workflow("awaits")
def awaits(value: Value) -> Value:
    step(value)
    return last(signal("go", dict[str, Any]))


# --- running them ---------------------------------------------------------------------------------


def in_memory() -> InProcessRunner:
    return InProcessRunner()


def on_memory() -> CheckpointingRunner:
    return CheckpointingRunner(InMemoryBackend())


def on_sqlite(scratch: Path) -> CheckpointingRunner:
    return CheckpointingRunner(SqliteBackend(scratch / "stepwell.db"))


def one(runner: AbstractContextManager[Any], flow: Flow, wanted: object, units: int) -> float:
    """Microseconds per unit of one instance at a time; the first one, checked, is the warm-up."""
    with runner as ready:
        check(ready.run(flow, VALUE), wanted)
        return us_each(lambda: ready.run(flow, VALUE), units)


def many(runner: AbstractContextManager[Any], instances: int) -> float:
    """Workflows of four steps per second."""
    with runner as ready:
        for output in ready.run_many(chain(4), [VALUE] * 50):
            check_value(output, 4)
        return instances / work.seconds(lambda: ready.run_many(chain(4), [VALUE] * instances))


def after(steps: int) -> Value:
    return {**VALUE, "n": steps}


def chain_in_memory(steps: int, scratch: Path) -> float:
    return one(in_memory(), chain(steps), after(steps), steps)


def chain_memory(steps: int, scratch: Path) -> float:
    return one(on_memory(), chain(steps), after(steps), steps)


def chain_sqlite(steps: int, scratch: Path) -> float:
    return one(on_sqlite(scratch), chain(steps), after(steps), steps)


chain_sqlite_wal = chain_sqlite


def loop_in_memory(count: int, scratch: Path) -> float:
    return one(in_memory(), turns(count), after(count), count)


def loop_memory(count: int, scratch: Path) -> float:
    return one(on_memory(), turns(count), after(count), count)


def loop_sqlite(count: int, scratch: Path) -> float:
    return one(on_sqlite(scratch), turns(count), after(count), count)


def fork_in_memory(branches: int, scratch: Path) -> float:
    return one(in_memory(), fork(branches, step), branches, branches)


def fork_inline_in_memory(branches: int, scratch: Path) -> float:
    return one(in_memory(), fork(branches, step_inline), branches, branches)


def fork_async_in_memory(branches: int, scratch: Path) -> float:
    return one(in_memory(), fork_async(branches), branches, branches)


def fork_memory(branches: int, scratch: Path) -> float:
    return one(on_memory(), fork(branches, step), branches, branches)


def fork_sqlite(branches: int, scratch: Path) -> float:
    return one(on_sqlite(scratch), fork(branches, step), branches, branches)


def fork_async_sqlite(branches: int, scratch: Path) -> float:
    return one(on_sqlite(scratch), fork_async(branches), branches, branches)


def threads(tasks: int, scratch: Path) -> float:
    return fork_in_memory(tasks, scratch)


def many_in_memory(instances: int, scratch: Path) -> float:
    return many(in_memory(), instances)


def many_memory(instances: int, scratch: Path) -> float:
    return many(on_memory(), instances)


def many_sqlite(instances: int, scratch: Path) -> float:
    return many(on_sqlite(scratch), instances)


# --- going on after a cut -------------------------------------------------------------------------


def resume_memory(steps: int, scratch: Path) -> float:
    """Milliseconds until a new runner has finished a cut instance."""
    backend = InMemoryBackend()
    cut(CheckpointingRunner(backend), steps)
    return resumed_ms(CheckpointingRunner(backend), steps)


def resume_sqlite(steps: int, scratch: Path) -> float:
    """The same in a copy of a file that an earlier process could have left."""
    backend = SqliteBackend(path := scratch / "cut.db", durability="fast")
    cut(CheckpointingRunner(backend), steps)
    backend.close()
    shutil.copy(path, scratch / "stepwell.db")
    return resumed_ms(on_sqlite(scratch), steps)


def cut(runner: AbstractContextManager[Any], steps: int) -> None:
    Switch.cutting = True
    try:
        with runner as ready:
            ready.run(chain_to_cut(steps), VALUE, instance_id="cut")
    except Cut:
        return
    finally:
        Switch.cutting = False
    raise ValueError("wrong result: the run was not cut")


def resumed_ms(runner: AbstractContextManager[Any], steps: int) -> float:
    flow = chain_to_cut(steps)
    with runner as ready:
        took = work.seconds(lambda: ready.resume(flow, "cut"))
        check_value(ready.run(flow, VALUE, instance_id="cut"), steps + 1)
        return took * 1e3


# --- the rest -------------------------------------------------------------------------------------


def bytes_sqlite(steps: int, scratch: Path) -> float:
    """Bytes by which the file grows for each step. The first instance, which also stores the graph, is not counted."""
    more, path = 4, scratch / "stepwell.db"
    backend = SqliteBackend(path, durability="fast")  # the same bytes, sooner
    with CheckpointingRunner(backend) as runner:
        runner.run(chain(steps), VALUE)
        before = _size(backend, path)
        for _ in range(more):
            runner.run(chain(steps), VALUE)
        return (_size(backend, path) - before) / (more * steps)


def _size(backend: SqliteBackend, path: Path) -> int:
    connection = backend.connect()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path.stat().st_size


def signal_memory(count: int, scratch: Path) -> dict[str, float]:
    return _signals(on_memory(), count)


def signal_sqlite(count: int, scratch: Path) -> dict[str, float]:
    return _signals(on_sqlite(scratch), count)


def _signals(runner: CheckpointingRunner, count: int) -> dict[str, float]:
    """Microseconds from sending a signal to a parked instance until its next step runs."""
    with runner:
        names = [f"waits-{i}" for i in range(count)]
        for name in names:
            check(runner.start(awaits, VALUE, instance_id=name).state, "waiting")
        samples = [_signal(runner, name) for name in names]
        return work.percentiles_us(samples[count // 10 :])


def _signal(runner: CheckpointingRunner, name: str) -> float:
    sent = time.perf_counter()
    runner.client.signal(name, "go", VALUE)
    check_value(runner.resume(awaits, name), 1)
    return Switch.reached_s - sent
