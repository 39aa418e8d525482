"""Waiting for the end of an instance that somebody else works on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    InMemoryBackend,
    InstanceConflict,
    InstanceNotFound,
    WorkflowFailed,
    delay,
    signal,
    task,
    workflow,
)
from stepwell.testing import VirtualClock


@task
def halved(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x // 2


@workflow
def awaiting() -> int:
    return halved(signal("x", int))


@workflow
def resting(x: int) -> int:
    delay("1h")
    return halved(x)


@workflow
def other(x: int) -> int:
    return halved(x)


def test_a_result_is_waited_for() -> None:
    """The waiting caller gets what the working one got."""
    with CheckpointingRunner(InMemoryBackend(), poll="1ms") as runner:
        runner.start(awaiting, instance_id="a")
        worker = threading.Thread(target=runner.resume, args=(awaiting, "a"))
        worker.start()
        runner.client.signal("a", "x", 8)
        assert runner.result(awaiting, "a") == 4
        worker.join()


def test_a_result_is_waited_for_on_a_loop() -> None:
    """The async twin gives the loop away meanwhile."""

    async def main() -> list[int]:
        async with AsyncCheckpointingRunner(InMemoryBackend(), poll="1ms") as runner:
            await runner.start(awaiting, instance_id="a")
            await runner.client.signal("a", "x", 8)
            return await asyncio.gather(runner.result(awaiting, "a"), runner.resume(awaiting, "a"))

    assert asyncio.run(main()) == [4, 4]


def test_a_failure_is_raised() -> None:
    """As run() would."""
    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.start(other, 3, instance_id="a")
        with pytest.raises(WorkflowFailed, match="ValueError: 3"):
            runner.result(other, "a")


def test_the_wait_has_an_end() -> None:
    """After the timeout the instance goes on, and the caller knows."""
    with CheckpointingRunner(InMemoryBackend(), clock=VirtualClock()) as runner:
        assert runner.start(resting, 8, instance_id="a").state == "waiting"
        with pytest.raises(TimeoutError, match="'a' has not come to rest"):
            runner.result(resting, "a", timeout="10s")


def test_only_known_instances_have_a_result() -> None:
    """An unknown id and another workflow's are told at once."""
    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.start(other, 2, instance_id="a")
        with pytest.raises(InstanceNotFound, match="'b'"):
            runner.result(other, "b")
        with pytest.raises(InstanceConflict, match="'other'"):
            runner.result(resting, "a")


def test_an_instance_that_begins_with_a_wait_is_created_waiting() -> None:
    """Its due time is stored with it, so a crash right after the start loses nothing."""
    clock, backend = VirtualClock(), InMemoryBackend()
    with CheckpointingRunner(backend, clock=clock) as runner:
        status = runner.start(resting, 8, instance_id="a")
        assert (status.state, status.held_by) == ("waiting", "")
        assert status.due is not None
        assert (status.due - status.created).total_seconds() == 3600


def plainly_halved(x: int) -> int:
    return x // 2


@pytest.mark.parametrize("runnable", [halved, plainly_halved])
def test_a_result_of_a_single_task_or_function(runnable: Any) -> None:
    """What can be run by itself can be asked for by itself, on either kind of runner."""
    store = InMemoryBackend()
    with CheckpointingRunner(store) as runner:
        assert runner.run(runnable, 8, instance_id="a") == runner.result(runnable, "a") == 4

    async def on_a_loop() -> object:
        async with AsyncCheckpointingRunner(store) as runner:
            return await runner.result(runnable, "a")

    assert asyncio.run(on_a_loop()) == 4
