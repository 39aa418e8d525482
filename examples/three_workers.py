"""Three workers share the instances of one store; one of them dies, and nobody has to do anything about it.

Run ``python examples/three_workers.py``. The workers are processes of their own; the first one kills itself
(``os._exit``, no clean-up) in its third picture. What it held is taken up by the others, what it had recorded is kept.
With ``STEPWELL_DB=postgresql://…`` the store is that database, and the workers may be on as many machines; without it,
it is a SQLite file, which all processes of one machine may share.
"""

import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stepwell import PooledWorker, PostgresBackend, SqliteBackend, WorkflowClient, inject, parallel, task, workflow

PICTURES = 30
NAMES = ("ada", "grace", "linus")
DIES_IN_PICTURE = 3


@dataclass
class Me:
    """Which worker a task runs in, for the story; a real one would be given its connections like this."""

    name: str
    dies: bool
    begun: int = 0


@task
def develop(picture: str, *, me: Me = inject()) -> str:
    me.begun += 1
    time.sleep(0.05)  # stands for work
    if me.dies and me.begun >= DIES_IN_PICTURE:
        print(f"  {me.name}: in the middle of a picture the power goes", flush=True)
        os._exit(9)
    return me.name


@task
def frame(picture: str) -> str:
    return f"frame for {picture}"


@task
def hang(picture: str, developed_by: str, frame: str) -> str:
    return developed_by


@workflow
def exhibit(picture: str) -> str:
    with parallel():
        by = develop(picture)
        around = frame(picture)
    return hang(picture, by, around)


def open_store(url: str) -> SqliteBackend | PostgresBackend:
    return PostgresBackend(url) if url.startswith("postgres") else SqliteBackend(url.removeprefix("sqlite:"))


def work(url: str, name: str) -> None:
    """One worker: until SIGTERM, which lets it end what it has begun."""
    logging.basicConfig(stream=sys.stdout, format=f"  {name}: %(message)s")
    with closing(open_store(url)) as store:
        me = Me(name, dies=name == NAMES[0])
        worker = PooledWorker(store, [exhibit], concurrency=2, name=name, poll="50ms", deps={Me: me})
        print(f"  {name}: I am ready", flush=True)
        worker.run()
        print(f"  {name}: I have ended what I had begun", flush=True)


def start_worker(url: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", name, url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this very file
    assert process.stdout is not None
    print(process.stdout.readline(), end="")
    return process


def main(url: str) -> None:
    labels = {"batch": secrets.token_hex(4)}  # the database may hold others
    pictures = [f"picture {number}" for number in range(1, PICTURES + 1)]
    workers = [start_worker(url, name) for name in NAMES]
    with closing(open_store(url)) as store, WorkflowClient(store) as client:
        begun = client.start_many(exhibit, pictures, labels=labels)
        print(f"{len(begun)} instances were started")
        by = Counter(client.result(each.instance_id, exhibit, timeout="60s") for each in begun)
        print(f"{client.count(state='completed', labels=labels)} are completed; none is lost, and nobody was asked")
        print("developed by", ", ".join(f"{name}: {by[name]}" for name in NAMES))
    for name, process in zip(NAMES, workers, strict=True):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        told, _ = process.communicate()
        print(f"{told}{name} ended with exit status {process.returncode}")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(url=sys.argv[3], name=sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(os.environ.get("STEPWELL_DB") or f"sqlite:{Path(folder, 'pictures.db')}")
