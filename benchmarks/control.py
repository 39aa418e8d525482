"""stepwell under control: what a message, a look, a request and a transaction of the user's own cost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import work
from work import VALUE, Value, check, percentiles_us, us_each

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    SqliteBackend,
    Workflow,
    WorkflowClient,
    delay,
    signal,
    task,
    task_context,
    workflow,
)

DELAY_S = 0.3
PAGE = 100


class Reached:
    """When the step after a wait ran; the monotonic clock is the same in all processes."""

    at_s = 0.0
    tell: Callable[[str], None] | None = None


@task
def after(value: Value) -> Value:
    Reached.at_s = time.monotonic()
    if Reached.tell is not None:
        Reached.tell(json.dumps([task_context().instance_id, Reached.at_s, time.time()]))
    return work.step(value)


@task
def fails(value: Value) -> Value:
    raise ValueError("as it should")


@workflow
def answered(value: Value) -> Value:
    return after(signal("go", dict[str, Any]))


@workflow
def naps(value: Value) -> Value:
    delay(DELAY_S)
    return after(value)


@workflow
def sleeps(value: Value) -> Value:
    delay("30d")
    return after(value)


@workflow
def failing(value: Value) -> Value:
    return fails(value)


def edited() -> Workflow[Value, Value]:
    """The workflow ``answered`` with a step more."""

    @workflow("answered")
    def made(value: Value) -> Value:
        return after(after(signal("go", dict[str, Any])))

    return made


# --- a message for a run that waits ----------------------------------------------------------------


def answer_memory(count: int, scratch: Path) -> dict[str, float]:
    return _answer_here(CheckpointingRunner(InMemoryBackend()), count)


def answer_sqlite(count: int, scratch: Path) -> dict[str, float]:
    return _answer_here(CheckpointingRunner(SqliteBackend(scratch / "stepwell.db")), count)


def _answer_here(runner: CheckpointingRunner, count: int) -> dict[str, float]:
    """Percentiles from ``client.signal`` to the next step of a ``run`` that waits in another thread."""
    with runner:
        return percentiles_us([_answer_thread(runner, f"i{number}") for number in range(count)])


def _answer_thread(runner: CheckpointingRunner, name: str) -> float:
    thread = threading.Thread(target=lambda: runner.run(answered, VALUE, instance_id=name))
    thread.start()
    sent_s = _send(runner.client, name)
    thread.join()
    return Reached.at_s - sent_s


def _send(client: Any, name: str) -> float:
    """Send what an instance waits for, as soon as a process waits with it, at any time between two of its looks."""
    while not (status := _status(client, name)) or not status.held_by or status.state != "waiting":
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.06))  # noqa: S311  # any time between two looks
    sent_s = time.monotonic()
    client.signal(name, "go", VALUE)
    return sent_s


def _status(client: Any, name: str) -> Any:
    found = [status for status in client.list(limit=1) if status.instance_id == name]
    return found[0] if found else None


def answer_apart(count: int, scratch: Path) -> dict[str, float]:
    """The same from one process to another, with the default poll."""
    path = scratch / "stepwell.db"
    backend = SqliteBackend(path)
    with child(path, "run", count) as lines, WorkflowClient(backend) as client:
        samples: list[float] = []
        for number in range(count):
            sent_s = _send(client, f"i{number}")
            name, reached_s, _ = json.loads(next(lines))
            check(name, f"i{number}")
            samples.append(reached_s - sent_s)
    backend.close()
    return percentiles_us(samples)


# --- a client's calls ------------------------------------------------------------------------------


def client_calls(instances: int, scratch: Path) -> dict[str, float]:
    """Microseconds of each call beside so many waiting instances; ``preview`` is for each of those."""
    backend = SqliteBackend(scratch / "stepwell.db")
    with CheckpointingRunner(backend) as runner, WorkflowClient(backend) as client:
        client.start_many(answered, [VALUE] * instances, instance_ids=[f"i{n}" for n in range(instances)])
        runner.start(failing, VALUE, instance_id="failed")
        check(len(client.list(limit=PAGE)), PAGE)
        check(len(client.preview_change(edited())), instances)

        def again() -> None:
            client.retry("failed")
            runner.recover([failing])

        retry_us = us_each(again, 1) - us_each(lambda: runner.recover([failing]), 1)
        return {
            "status": us_each(lambda: client.status("i7"), 1),
            "explain": us_each(lambda: client.explain("i7"), 1),
            "list": us_each(lambda: client.list(limit=PAGE), 1),
            "pause": us_each(lambda: (client.pause("i7"), client.resume("i7")), 2),
            "retry": retry_us,
            "preview": us_each(lambda: client.preview_change(edited()), instances),
        }


# --- running it apart ------------------------------------------------------------------------------


@contextmanager
def child(path: Path, part: str, count: int = 0) -> Iterator[Iterator[str]]:
    """Do a part in a process of its own; yields the lines it says."""
    command = [sys.executable, __file__, str(path), part, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # this very file
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.kill()


def main(path: str, part: str, count: str) -> None:
    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    Reached.tell = tell
    with CheckpointingRunner(SqliteBackend(path)) as runner:
        if part == "run":
            for number in range(int(count)):
                runner.run(answered, VALUE, instance_id=f"i{number}")
        elif part == "serve":
            runner.recover([answered, naps, sleeps], wait=True)
        else:
            before, began_s = memory_mib(), time.monotonic()
            runner.recover([answered, naps, sleeps])
            tell(json.dumps({"ms": (time.monotonic() - began_s) * 1e3, "mib": memory_mib() - before}))


def memory_mib() -> float:
    """Return how much memory this process has, 0 where that cannot be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**20


if __name__ == "__main__":
    import control  # so that tasks and switches are the importable ones

    control.main(*sys.argv[1:])
