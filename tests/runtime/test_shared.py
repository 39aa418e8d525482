"""Runs that await at the same time share one drive: its turns, its commits, and its end."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    BackendError,
    Closed,
    InMemoryBackend,
    InstanceNotFound,
    SqliteBackend,
    WorkflowFailed,
    delay,
    signal,
    task,
    workflow,
)
from stepwell.testing.faults import Fault, FaultyBackend

caller: ContextVar[str] = ContextVar("caller")


@task
async def doubled(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return 2 * x


@task(run_in="inline")
def called_by(x: int) -> str:
    return f"{x} {caller.get()}"


@workflow
async def four(x: int) -> int:
    x = await doubled(x)
    x = await doubled(x)
    x = await doubled(x)
    return await doubled(x)


@workflow
def named(x: int) -> str:
    return called_by(x)


@workflow
async def waiting(x: int) -> int:
    x = signal("go", int)
    return await doubled(x)


async def waits(runner: AsyncCheckpointingRunner, *names: str) -> None:
    """Let the loop go round until these instances wait for their signal."""
    for name in names:
        while not await is_waiting(runner, name):
            await asyncio.sleep(0)


async def is_waiting(runner: AsyncCheckpointingRunner, name: str) -> bool:
    try:
        return (await runner.client.status(name)).state == "waiting"
    except InstanceNotFound:
        return False


def test_many_runs_share_commits() -> None:
    """A hundred runs of four steps need far fewer commits than steps."""
    backend = FaultyBackend(InMemoryBackend(), [])

    async def main() -> list[int]:
        async with AsyncCheckpointingRunner(backend) as runner:
            return await asyncio.gather(*(runner.run(four, x) for x in range(100)))

    assert asyncio.run(main()) == [16 * x for x in range(100)]
    assert backend.calls["commit"] < 100


def test_one_failure_is_its_own() -> None:
    """The others end as they would alone."""

    async def main() -> list[object]:
        async with AsyncCheckpointingRunner(InMemoryBackend()) as runner:
            return await asyncio.gather(*(runner.run(four, x) for x in (1, -1, 2)), return_exceptions=True)

    first, failed, last = asyncio.run(main())
    assert (first, last) == (16, 32)
    assert isinstance(failed, WorkflowFailed)


def test_each_run_keeps_its_callers_context() -> None:
    """Inline bodies see the context variables of whoever awaits their run."""

    async def one(runner: AsyncCheckpointingRunner, name: str) -> str:
        caller.set(name)
        return await runner.run(named, 1)

    async def main() -> list[str]:
        async with AsyncCheckpointingRunner(InMemoryBackend()) as runner:
            return await asyncio.gather(one(runner, "a"), one(runner, "b"))

    assert asyncio.run(main()) == ["1 a", "1 b"]


def test_a_cancelled_caller_leaves_alone(tmp_path: Path) -> None:
    """Its instance is given back and can be resumed; the others go on."""

    async def main() -> tuple[int, int]:
        async with AsyncCheckpointingRunner(SqliteBackend(tmp_path / "runs.db")) as runner:
            left = asyncio.create_task(runner.run(waiting, 1, instance_id="left"))
            stays = asyncio.create_task(runner.run(waiting, 1, instance_id="stays"))
            await waits(runner, "left", "stays")
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            assert (await runner.client.status("left")).held_by == ""
            await runner.client.signal("stays", "go", 3)
            await runner.client.signal("left", "go", 4)
            return await stays, await runner.resume(waiting, "left")

    assert asyncio.run(main()) == (6, 8)


def test_closing_tells_those_who_wait() -> None:
    """Each of them gets Closed; the instances stay resumable."""
    backend = InMemoryBackend()

    async def main() -> list[object]:
        runner = AsyncCheckpointingRunner(backend)
        runs = [asyncio.create_task(runner.run(waiting, 1, instance_id=name)) for name in "ab"]
        await waits(runner, "a", "b")
        await runner.close()
        return await asyncio.gather(*runs, return_exceptions=True)

    assert [type(error) for error in asyncio.run(main())] == [Closed, Closed]
    assert [backend.header(name).held_by for name in "ab"] == ["", ""]  # type: ignore[union-attr]


def test_a_failing_store_is_told_to_all_and_harms_nobody() -> None:
    """Every run that awaits gets the store's error; another runner completes them."""

    def fail() -> NoReturn:
        raise BackendError("no more")

    inner = InMemoryBackend()

    async def main(backend: object) -> list[object]:
        async with AsyncCheckpointingRunner(backend) as runner:  # type: ignore[arg-type]
            names = [runner.run(four, 1, instance_id=name) for name in "abc"]
            return await asyncio.gather(*names, return_exceptions=True)

    faulty = FaultyBackend(inner, [Fault.parse("before:commit:2")], strike=fail)
    assert [type(error) for error in asyncio.run(main(faulty))] == [BackendError] * 3
    assert asyncio.run(main(inner)) == [16, 16, 16]


def test_a_drive_ends_and_another_begins() -> None:
    """Runs one after the other, and on a second loop, all work."""
    runner = AsyncCheckpointingRunner(InMemoryBackend())

    async def main() -> list[int]:
        return [await runner.run(four, x) for x in (1, 2)]

    assert asyncio.run(main()) == [16, 32]
    assert asyncio.run(main()) == [16, 32]
    asyncio.run(runner.close())


@workflow
async def delayed(x: int) -> int:
    delay("10ms")
    return await doubled(x)


def test_a_run_that_joins_a_waiting_drive_does_not_wait_for_it() -> None:
    """The drive is woken when somebody joins."""

    async def main() -> int:
        async with AsyncCheckpointingRunner(InMemoryBackend(), poll="1h") as runner:
            first = asyncio.create_task(runner.run(waiting, 1, instance_id="w"))
            await waits(runner, "w")
            second = await runner.run(delayed, 5)
            await runner.client.signal("w", "go", 1)
            return second + await first

    assert asyncio.run(main()) == 12
