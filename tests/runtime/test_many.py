"""Many instances in one call: shared commits, separate fates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    CheckpointingRunner,
    InMemoryBackend,
    OptionError,
    WorkflowFailed,
    delay,
    task,
    workflow,
)
from stepwell.testing.faults import FaultyBackend


@task
def step(x: int) -> int:
    if x == 13:
        raise ValueError("thirteen")
    return x + 1


@task
async def later(x: int) -> int:
    return x * 2


@workflow
async def both(x: int) -> int:
    return await later(step(x))


@workflow
def napping(x: int) -> int:
    a = step(x)
    delay("1h")
    return step(a)


def test_outputs_come_in_the_order_of_the_inputs(any_runner: Any) -> None:
    """One instance for each."""
    assert any_runner().run_many(both, list(range(20, 80))) == [(x + 1) * 2 for x in range(20, 80)]


def test_no_inputs_is_no_work(any_runner: Any) -> None:
    """An empty list gives an empty list."""
    assert any_runner().run_many(both, []) == []


def test_one_failure_leaves_the_others_to_end(backend: Any, open_runner: Any) -> None:
    """The call raises it when all have ended; the others' outputs are there."""
    runner = open_runner(backend)
    ids = [f"n{x}" for x in range(20)]
    with pytest.raises(WorkflowFailed, match="thirteen"):
        runner.run_many(both, list(range(20)), instance_ids=ids)
    states = [runner.client.status(name).state for name in ids]
    assert states == ["failed" if x == 13 else "completed" for x in range(20)]
    assert runner.run(both, 5, instance_id="n5") == 12


def test_instances_of_one_call_share_commits() -> None:
    """A hundred instances of two steps take far fewer writes than steps."""
    backend = FaultyBackend(InMemoryBackend(), [])
    with CheckpointingRunner(backend) as runner:
        runner.run_many(both, list(range(20, 120)))
    assert backend.calls["create"] == 1
    assert backend.calls["commit"] < 100


def test_ids_must_match_the_inputs_and_differ(runner: Any) -> None:
    """Both are told before anything runs, and nothing is left claimed."""
    with pytest.raises(OptionError, match="2 inputs and 1 instance_ids"):
        runner.run_many(both, [1, 2], instance_ids=["a"])
    with pytest.raises(AlreadyRunning):
        runner.run_many(both, [1, 2], instance_ids=["a", "a"])
    assert runner.run_many(both, [1, 2], instance_ids=["a", "b"]) == [4, 6]


def test_running_many_again_attaches_to_what_exists(runner: Any) -> None:
    """Finished ones answer at once, a new one runs."""
    assert runner.run_many(both, [1, 2], instance_ids=["a", "b"]) == [4, 6]
    assert runner.run_many(both, [1, 2, 3], instance_ids=["a", "b", "c"]) == [4, 6, 8]


def test_many_delays_pass_together(any_runner: Any, clock: Any) -> None:
    """Fifty instances sleep one hour, not fifty."""
    before = clock.now
    assert any_runner().run_many(napping, list(range(20, 70))) == list(range(22, 72))
    assert (clock.now - before).total_seconds() < 3601


def test_recover_takes_more_than_one_page(backend: Any, open_runner: Any, clock: Any) -> None:
    """Six hundred instances, of which each is reported once."""
    runner = open_runner(backend)
    for x in range(600):
        runner.start(napping, 20, instance_id=f"n{x}")
    clock.advance("2h")
    found = open_runner(backend).recover([napping])
    assert len({s.instance_id for s in found}) == 600 == len(found)
    assert {s.state for s in found} == {"completed"}


def test_the_async_twins_run_many_too() -> None:
    """With the same order."""

    async def main(runner: Any) -> list[int]:
        async with runner:
            return await runner.run_many(both, [1, 2, 3])

    for runner in (AsyncInProcessRunner(), AsyncCheckpointingRunner(InMemoryBackend())):
        assert asyncio.run(main(runner)) == [4, 6, 8]


def test_a_long_loop_is_flat(any_runner: Any) -> None:
    """A thousand turns end, in memory and stored."""
    from stepwell import Again, Done, loop

    @task
    def turn(x: int) -> Again[int] | Done[int]:
        return Again(x + 1) if x < 1000 else Done(x)

    @workflow
    def turning(x: int) -> int:
        return loop(turn, x, max_iterations=2000)

    assert any_runner().run(turning, 1) == 1000
