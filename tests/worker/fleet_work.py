"""Workflows for workers in processes of their own: ``python fleet_work.py DATABASE [--lease …] [--name …]``.

Each body writes one line to the ledger as it begins: what, with which value, in which process.
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

from stepwell import Flow, PooledWorker, SqliteBackend, task

WIDTH = 24


def note(what: str, x: int) -> None:
    line = f"{what} {x} {os.getpid()}\n".encode()
    ledger = os.open(os.environ["FLEET_LEDGER"], os.O_WRONLY | os.O_APPEND)
    os.write(ledger, line)
    os.close(ledger)


def pause() -> None:
    threading.Event().wait(0.02)


@task
def begin(x: int) -> int:
    note("begin", x)
    return x


@task("slow")
def waits(x: int) -> int:
    """Work until the test says otherwise."""
    note("slow", x)
    go = Path(os.environ["FLEET_LEDGER"] + ".go")
    while not go.exists():
        pause()
    return x


@task
def end(x: int) -> int:
    note("end", x)
    return x + 1


@task
def branch(x: int) -> int:
    note("branch", x)
    pause()
    return x


@task
def step(x: int) -> int:
    return x + 1


slow = Flow("slow").then(begin).then(waits).then(end).build()
steps = Flow("steps").then(step).then(step, name="more").build()
_wide = Flow("fan").then(step).fork()
for _number in range(WIDTH):
    _wide = _wide.branch(branch, name=f"b{_number}")
fan = _wide.join(lambda parts: parts, name="gather").build()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("file")
    options.add_argument("--lease", default="30s")
    options.add_argument("--name", default="")
    given = options.parse_args()
    with SqliteBackend(given.file, durability="fast") as backend:
        worker = PooledWorker(backend, [slow, steps, fan], concurrency=4, lease=given.lease, name=given.name)
        print("ready", flush=True)  # noqa: T201  # the parent reads it
        worker.run()


if __name__ == "__main__":
    main()
