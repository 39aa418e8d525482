"""A program that traces a run and is killed in the middle of it: started by tests, once for each of its lives.

Usage: dying.py <file> <what> [<step that kills>]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from opentelemetry import trace

from stepwell import (
    CheckpointingRunner,
    Retry,
    SqliteBackend,
    WorkflowClient,
    init_tracing,
    parallel,
    shutdown_tracing,
    task,
    task_context,
    workflow,
)
from stepwell import signal as awaited
from stepwell.observe import provider

TRACER = trace.get_tracer("user")
FILE, WHAT, KILLER = Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""


def die(name: str) -> None:
    """Leave no time for anything; what the first step itself has told is below a span that nobody has told yet."""
    if name == KILLER:
        if name == "first":
            with TRACER.start_as_current_span("almost first"):
                pass
            trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGKILL)


@task
def first(x: int) -> int:
    die("first")
    with TRACER.start_as_current_span("inside first"):
        pass
    return x + 1


@task(retry=Retry(attempts=3, delay=0))
def second(x: int) -> int:
    die("second")
    if task_context().attempt == 1:
        raise OSError("no route")
    return x + 1


@task
async def third(x: int) -> int:
    die("third")
    with TRACER.start_as_current_span("inside third"):
        pass
    return x + 1


@task
def left(x: int) -> int:
    return x


@task(run_in="process")
def right(x: int) -> int:
    with TRACER.start_as_current_span("inside right"):
        return x


@task
def last(a: int, b: int, go: bool) -> int:
    die("last")
    return a + b if go else 0


@workflow
async def longest(x: int) -> int:
    y = await third(second(first(x)))
    with parallel():
        a = left(y)
        b = right(y)
    go = awaited("go", bool)
    return last(a, b, go)


def main() -> None:
    provider.PATIENCE_S = provider.CREDIT_S = 60.0  # on a busy machine as well
    init_tracing(service_name=WHAT)
    with SqliteBackend(FILE) as backend:
        if WHAT == "start":
            with WorkflowClient(backend) as client, TRACER.start_as_current_span("request"):
                client.start(longest, 1, instance_id="one")
        elif WHAT == "signal":
            with WorkflowClient(backend) as client, TRACER.start_as_current_span("approval"):
                client.signal("one", "go", True)
        else:
            with CheckpointingRunner(backend) as runner:
                runner.recover([longest])
    shutdown_tracing()


if __name__ == "__main__":
    main()
