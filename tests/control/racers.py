"""A process that races others for the same ids: ``python racers.py WHO STORE LEDGER``, with a store's path or URL.

It says that it is ready, reads what to race for, and answers with what became of each of its calls. Bodies write a line
to a ledger outside the store as they begin, so what ran is known whatever the store says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepwell import (
    AlreadyRunning,
    CheckpointingRunner,
    InstanceExists,
    SqliteBackend,
    WorkflowCancelled,
    WorkflowFailed,
    task,
    task_context,
    workflow,
)
from stepwell.backend.urls import open_backend

LEDGER = "STEPWELL_RACE_LEDGER"
BROKEN = "broken"  # while a file of this name stands beside the ledger, the second step fails


def note(step: str, x: int) -> None:
    """Append one line; a short write to a file opened for appending is never torn."""
    file = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    context = task_context()
    os.write(file, f"{context.instance_id} {context.run} {step} {x}\n".encode())
    os.close(file)


@task
def marks(x: int) -> int:
    note("marks", x)
    return x


@task
def checks(x: int) -> int:
    note("checks", x)
    if Path(os.environ[LEDGER]).with_name(BROKEN).exists():
        raise OSError("broken")
    return x


@workflow
def race(x: int) -> int:
    return checks(marks(x))


Run = Callable[..., object]


def result(runner: CheckpointingRunner, instance_id: str) -> str:
    """Wait for whoever has it."""
    return f"output {runner.result(race, instance_id)}"


def fails(runner: CheckpointingRunner, who: int, instance_id: str) -> str:
    try:
        return f"output {runner.run(race, who, instance_id=instance_id, on_conflict='fail')}"
    except InstanceExists:
        return "exists"


def uses(runner: CheckpointingRunner, who: int, instance_id: str) -> str:
    try:
        return f"output {runner.run(race, who, instance_id=instance_id, on_mismatch='ignore')}"
    except AlreadyRunning:
        return result(runner, instance_id)


def replaces(runner: CheckpointingRunner, who: int, instance_id: str) -> str:
    try:
        return f"output {runner.run(race, who, instance_id=instance_id, on_conflict='terminate_existing')}"
    except WorkflowCancelled:
        return "cancelled"


def restarts(runner: CheckpointingRunner, who: int, instance_id: str) -> str:
    try:
        return f"output {runner.run(race, 0, instance_id=instance_id, on_conflict='restart_if_failed')}"
    except AlreadyRunning:
        return result(runner, instance_id)


def breaks(runner: CheckpointingRunner, who: int, instance_id: str) -> str:
    """Bring an instance into the state that is to be restarted."""
    try:
        runner.run(race, 0, instance_id=instance_id)
    except WorkflowFailed:
        return "failed"
    return "completed"


HEATS: dict[str, Callable[[CheckpointingRunner, int, str], str]] = {
    "fail": fails,
    "use": uses,
    "terminate": replaces,
    "restart": restarts,
    "break": breaks,
}


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the parent reads it


def opened(store: str) -> Any:
    return open_backend(store) if "://" in store else SqliteBackend(store, durability="fast", busy_timeout="30s")


def main(who: int, store: str, ledger: str) -> None:
    os.environ[LEDGER] = ledger
    with opened(store) as backend, CheckpointingRunner(backend, poll="1ms") as runner:
        say("ready")
        for line in sys.stdin:
            heat, prefix, count = line.split()
            say(json.dumps([HEATS[heat](runner, who, f"{prefix}{n}") for n in range(int(count))]))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
