"""What is counted, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    Retry,
    WorkflowClient,
    WorkflowFailed,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.testing import VirtualClock

from .seen import Seen


@task(retry=Retry(attempts=2, delay="3s", jitter=0))
def twice(x: int) -> int:
    if task_context().attempt == 1:
        raise ValueError
    return x


@workflow
def counting(x: int) -> int:
    return twice(x)


@workflow
def waiting(x: int) -> bool:
    twice(x)
    return signal("go", bool)


@task
def never(x: int) -> int:
    raise ValueError


def values(seen: Seen, name: str) -> dict[Any, Any]:
    """Return a metric's value (of a histogram: how many, how much) by its attributes."""
    found = {}
    for point in seen.points(name):
        key = tuple(str(value) for value in point.attributes.values())
        found[key] = point.value if hasattr(point, "value") else (point.count, point.sum)
    return found


def test_attempts_are_counted_by_outcome(seen: Seen) -> None:
    """And by workflow and task; so are runs by their end."""
    with InProcessRunner(clock=VirtualClock()) as runner:
        runner.run(counting, 1)
        with pytest.raises(WorkflowFailed):
            runner.run(never, 1)
    assert values(seen, "stepwell.attempts") == {
        ("counting", "twice", "failed"): 1,
        ("counting", "twice", "succeeded"): 1,
        ("never", "never", "failed"): 1,
    }
    assert values(seen, "stepwell.runs") == {("counting", "completed"): 1, ("never", "failed"): 1}


def test_durations_are_measured(seen: Seen) -> None:
    """Once for each attempt, in seconds."""
    with InProcessRunner(clock=VirtualClock()) as runner:
        runner.run(counting, 1)
    ((count, total),) = values(seen, "stepwell.attempt.duration").values()
    assert count == 2
    assert 0 < total < 60


def test_the_wait_begins_when_a_step_is_ready_or_due(seen: Seen) -> None:
    """A client's start waits for a worker; a backoff is no wait."""
    clock, backend = VirtualClock(), InMemoryBackend()
    with WorkflowClient(backend, clock=clock) as client, CheckpointingRunner(backend, clock=clock) as runner:
        client.start(counting, 1, instance_id="a")
        clock.advance(100)
        assert runner.resume(counting, "a") == 1
    ((count, total),) = values(seen, "stepwell.queue_wait").values()
    assert count == 2
    assert 100 <= total < 101


def test_open_claims_go_up_and_down(seen: Seen) -> None:
    """What rests is not worked on."""
    during: list[Any] = []

    @task
    def looking(x: int) -> int:
        during.append(values(seen, "stepwell.open_claims"))
        return x

    @workflow
    def claiming(x: int) -> bool:
        looking(x)
        return signal("go", bool)

    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.start(claiming, 1)
    assert during == [{("claiming",): 1}]
    assert values(seen, "stepwell.open_claims") == {("claiming",): 0}
