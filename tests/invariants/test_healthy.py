"""A store in which everything has happened breaks no rule, and every rule had something to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    Again,
    CheckpointingRunner,
    ConflictPolicy,
    Done,
    Retry,
    WorkflowFailed,
    branch,
    delay,
    loop,
    parallel,
    route,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.testing import VirtualClock
from stepwell.testing.invariants import check_store

from ..stores import open_store  # noqa: TID252 - the tests are not installed

RULES = {"S1", "S2", "S5", "S6", "S8", "S9", "S10", "S11", "S12", "S13", "S15", "S16", "L2", "laws"}
"""What :func:`check_store` can see."""


@task
def add(x: int, y: int = 1) -> int:
    return x + y


@task(retry=Retry(attempts=3, delay="1m", jitter=0))
def shaky(x: int) -> int:
    if task_context().attempt < 3:
        raise OSError("not yet")
    return x


@task
def turn(x: int) -> Again[int] | Done[int]:
    task_context().heartbeat(x)
    return Again(x + 1) if x < 8 else Done(x)


@task(delivery="at_most_once")
def once(x: int) -> int:
    return x


@workflow
def inner(x: int) -> int:
    return add(add(x))


@workflow
def everything(x: int) -> int:
    with parallel():
        with branch("long"):
            long = add(add(x))
        short = shaky(x)
        both = add(short, inner(x))
    way = route(add(long, both), {12: lambda: add(short), 13: lambda: add(long)}, default=lambda: inner(x))
    turned = loop(turn, way, max_iterations=20)
    delay("1h")
    answer = signal("answer", int)
    late = signal("late", int, timeout="1h", on_timeout=lambda: add(answer))
    return once(add(turned, late))


def breaking(mended: list[bool]) -> Any:
    @task
    def maybe(x: int) -> int:
        if not mended:
            raise ValueError("broken")
        return x

    @workflow
    def fragile(x: int) -> int:
        with parallel(on_error="cancel"):
            p, q = maybe(x), add(x)
        with parallel(on_error="wait"):
            r, s = add(p), add(q)
        return add(r, s)

    return fragile


def test_a_store_in_which_everything_has_happened_is_healthy(kind: str, tmp_path: Path) -> None:
    """Every kind of node, retries, messages, timeouts, pauses, cancels, failures, and retries of those."""
    clock, mended = VirtualClock(), list[bool]()
    fragile = breaking(mended)
    store = open_store(kind, tmp_path / "all.db", durability="fast")
    with store:
        with CheckpointingRunner(store, clock=clock) as runner:
            client = runner.client
            for name in ("done", "paused", "cancelled", "waiting"):
                runner.start(everything, 1, instance_id=name)
            client.signal("done", "answer", 5, signal_id="a")
            client.signal("done", "answer", 6)
            client.pause("paused")
            client.signal("paused", "answer", 1)
            client.cancel("cancelled")
            for name in ("failed", "mended"):
                with pytest.raises(WorkflowFailed):
                    runner.run(fragile, 1, instance_id=name)
            mended.append(True)
            again = ConflictPolicy.RESTART_IF_FAILED
            assert runner.run(fragile, 1, instance_id="mended", on_conflict=again) == 5
            assert runner.resume(everything, "done") > 0
            client.resume("paused")
            during = check_store(store)
            assert during.ok, during
        report = check_store(store)
    assert report.ok, report
    assert report.instances == 6
    assert report.left_out == 0
    assert {rule for rule in RULES if not report.examined[rule]} == set()
