"""DBOS as a contestant, on SQLite, with its default settings; only its log is turned down.

By default its file is in rollback-journal mode with ``synchronous=FULL``, which flushes more often for each commit than
a WAL does. ``chain_sqlite_wal`` sets the file to WAL beforehand, as its users can. It looks for a message once a second
by default; for the signals alone that is set to the least it allows, 1 ms. Workflows and steps are sync, as in its
quick start, but for the fork: parallel steps need ``asyncio.gather``. It is launched anew for each measurement and shut
down after it, so that its background threads run in nobody else's time.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import work
from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos import error as errors
from work import VALUE, Value, check, check_value, us_each

FEWER = 5  # so many times fewer instances at once than the others, to bound the run

step = DBOS.step()(work.step)
step_async = DBOS.step()(work.step_async)
total = DBOS.step()(work.total)


class Switch:
    cutting = False
    began_s = reached_s = 0.0


@DBOS.step()
def last(value: Value) -> Value:
    Switch.reached_s = time.perf_counter()
    return work.step(value)


@DBOS.workflow()
def chain(value: Value, steps: int) -> Value:
    for _ in range(steps):
        value = step(value)
    return value


@DBOS.workflow()
async def fork(value: Value, branches: int) -> int:
    return total(await asyncio.gather(*[step_async(value) for _ in range(branches)]))


@DBOS.workflow()
def chain_to_cut(value: Value, steps: int) -> Value:
    Switch.began_s = time.perf_counter()
    for _ in range(steps):
        value = step(value)
    if Switch.cutting:
        _outside(lambda: DBOS.cancel_workflow("cut"))
    return last(value)


@DBOS.workflow()
def awaits(value: Value) -> Value:
    step(value)
    return last(DBOS.recv("go", timeout_seconds=60))


def _outside(call: object) -> None:
    """Call something on a thread that is not part of the workflow, so that it is not one of its steps."""
    thread = threading.Thread(target=call)  # type: ignore[arg-type]
    thread.start()
    thread.join()


@contextmanager
def launched(scratch: Path, *, wal: bool = False, poll_s: float = 1.0) -> Iterator[Path]:
    path = scratch / "dbos.sqlite"
    if wal:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    config: DBOSConfig = {
        "name": "benchmarks",
        "system_database_url": f"sqlite:///{path}",
        "log_level": "CRITICAL",
        "notification_listener_polling_interval_sec": poll_s,
    }
    DBOS(config=config)
    DBOS.launch()
    try:
        chain(VALUE, 10)
        yield path
    finally:
        DBOS.destroy()


def _chain(steps: int, scratch: Path, *, wal: bool) -> float:
    with launched(scratch, wal=wal):
        outputs: list[Value] = []
        took = us_each(lambda: outputs.append(chain(VALUE, steps)), steps)
        check_value(outputs[-1], steps)
        return took


def chain_sqlite(steps: int, scratch: Path) -> float:
    return _chain(steps, scratch, wal=False)


def chain_sqlite_wal(steps: int, scratch: Path) -> float:
    return _chain(steps, scratch, wal=True)


def fork_async_sqlite(branches: int, scratch: Path) -> float:
    with launched(scratch):
        return asyncio.run(_fork(branches)) / branches * 1e6


async def _fork(branches: int) -> float:
    check(await fork(VALUE, 10), 10)
    began = time.perf_counter()
    check(await fork(VALUE, branches), branches)
    return time.perf_counter() - began


def many_sqlite(instances: int, scratch: Path) -> float:
    """Workflows of four steps per second, of which a fifth of the others' number is started at once."""
    count = max(1, instances // FEWER)
    with launched(scratch):
        return count / outcomes_s(count)


def outcomes_s(count: int) -> float:
    """Return the seconds in which so many workflows of four steps, started at once, end."""
    began = time.perf_counter()
    handles = [DBOS.start_workflow(chain, VALUE, 4) for _ in range(count)]
    outputs = [handle.get_result() for handle in handles]
    took = time.perf_counter() - began
    for output in outputs:
        check_value(output, 4)
    return took


def resume_sqlite(steps: int, scratch: Path) -> float:
    """Milliseconds from the workflow's body starting anew to its first step that had not run.

    The wait until a queue thread picks the resumed workflow up, a poll of one second, is not counted.
    """
    with launched(scratch):
        return resumed_ms(steps)


def resumed_ms(steps: int) -> float:
    _cut(steps)
    check_value(DBOS.resume_workflow("cut").get_result(), steps + 1)
    return (Switch.reached_s - Switch.began_s) * 1e3


def _cut(steps: int) -> None:
    Switch.cutting = True
    try:
        with SetWorkflowID("cut"):
            chain_to_cut(VALUE, steps)
    except (errors.DBOSWorkflowCancelledError, errors.DBOSAwaitedWorkflowCancelledError):
        return
    finally:
        Switch.cutting = False
    raise ValueError("wrong result: the run was not cut")


def bytes_sqlite(steps: int, scratch: Path) -> float:
    """Bytes by which the file grows for each step."""
    more = 2
    with launched(scratch) as path:
        chain(VALUE, steps)
        before = path.stat().st_size
        for _ in range(more):
            chain(VALUE, steps)
        return (path.stat().st_size - before) / (more * steps)


def signal_sqlite(count: int, scratch: Path) -> dict[str, float]:
    """Microseconds from sending a message to a waiting workflow until its next step runs. It waits in a thread."""
    with launched(scratch, poll_s=0.001):
        samples = [_signal(f"waits-{number}") for number in range(count)]
    return work.percentiles_us(samples[count // 10 :])


def _signal(name: str) -> float:
    with SetWorkflowID(name):
        handle = DBOS.start_workflow(awaits, VALUE)
    time.sleep(0.05)  # until it waits
    sent = time.perf_counter()
    DBOS.send(name, VALUE, "go")
    check_value(handle.get_result(), 1)
    return Switch.reached_s - sent
