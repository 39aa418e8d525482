"""Where bodies run: the caller's thread, our threads, one private loop, the caller's loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    InMemoryBackend,
    InProcessRunner,
    parallel,
    task,
    task_context,
    workflow,
)

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


@task
def here(x: int) -> int:
    return threading.get_ident()


@task
async def on_a_loop(x: int) -> int:
    return threading.get_ident()


@task(run_in="inline")
def inline(x: int) -> int:
    return threading.get_ident()


@task(timeout="1h")
def bounded(x: int) -> int:
    return threading.get_ident()


@task
def colour(x: int) -> str:
    return COLOUR.get()


@task
async def colour_later(x: int) -> str:
    return COLOUR.get()


@workflow
def chain_here(x: int) -> list[int]:
    a = here(x)
    b = inline(a)
    return [a, b, here(b)]


@workflow
async def chain_on_a_loop(x: int) -> list[int]:
    a = await on_a_loop(x)
    return [a, await on_a_loop(a)]


@workflow
def everywhere(x: int) -> list[int]:
    return [here(x), inline(x), bounded(x)]


@workflow
async def colours(x: int) -> list[str]:
    first = colour(x)
    with parallel():
        second = colour(x)
        third = colour(x)
        fourth = await colour_later(x)
    return [first, second, third, fourth]


def test_a_lone_sync_task_runs_in_the_callers_thread(any_runner: Any) -> None:
    """A chain of sync tasks behaves like function calls: pdb and thread-bound resources work."""
    assert any_runner().run(chain_here, 1) == [threading.get_ident()] * 3


def test_a_task_with_a_timeout_runs_in_a_thread_of_ours(any_runner: Any) -> None:
    """Nobody could stop waiting for the caller's own thread."""
    own, inline_at, bounded_at = any_runner().run(everywhere, 1)
    assert own == inline_at == threading.get_ident() != bounded_at


def test_sync_tasks_of_a_fork_run_at_the_same_time(any_runner: Any) -> None:
    """Three branches meet at a barrier, which they pass only together."""
    barrier = threading.Barrier(3)

    @task
    def meet(x: int) -> int:
        return barrier.wait(20)

    @workflow
    def fork(x: int) -> list[int]:
        with parallel():
            a, b, c = meet(x), meet(x), meet(x)
        return [a, b, c]

    assert sorted(any_runner().run(fork, 1)) == [0, 1, 2]


def test_the_threads_of_a_runner_are_bounded(any_runner: Any) -> None:
    """With one thread the branches of a fork share it, and still all of them run."""

    @workflow
    def fork(x: int) -> list[int]:
        with parallel():
            a, b, c = bounded(x), bounded(x), bounded(x)
        return [a, b, c]

    assert len(set(any_runner(threads=1).run(fork, 1))) == 1


def test_async_tasks_of_a_fork_run_at_the_same_time(any_runner: Any) -> None:
    """Two coroutines wait for each other on one loop."""

    barriers: list[asyncio.Barrier] = []

    @task
    async def meet(x: int) -> int:
        if not barriers:
            barriers.append(asyncio.Barrier(2))
        return await barriers[0].wait()

    @workflow
    async def fork(x: int) -> list[int]:
        with parallel():
            a, b = await meet(x), await meet(x)
        return [a, b]

    assert sorted(any_runner().run(fork, 1)) == [0, 1]


def test_a_sync_runner_keeps_one_private_loop(any_runner: Any) -> None:
    """All async tasks of all runs share one thread, which is not the caller's."""
    runner = any_runner()
    threads = set(runner.run(chain_on_a_loop, 1)) | set(runner.run(chain_on_a_loop, 2))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_private_loop_ends_with_the_runner() -> None:
    """After close() its thread is gone and its loop is closed."""
    loops: list[asyncio.AbstractEventLoop] = []

    @task
    async def note(x: int) -> int:
        loops.append(asyncio.get_running_loop())
        return x

    @workflow
    async def noting(x: int) -> int:
        return await note(x)

    with InProcessRunner() as runner:
        runner.run(noting, 1)
    assert loops[0].is_closed()
    assert "stepwell-loop" not in {thread.name for thread in threading.enumerate()}


def test_a_loop_survives_a_sync_run_that_async_code_made_in_a_thread() -> None:
    """A sync runner may be used beside a running loop, from another thread."""

    async def main() -> list[int]:
        with InProcessRunner() as runner:
            return await asyncio.to_thread(runner.run, chain_on_a_loop, 1)

    assert len(set(asyncio.run(main()))) == 1


def test_an_async_runner_uses_the_callers_loop_and_leaves_it_free() -> None:
    """Async and inline tasks run on the caller's loop; sync ones never block it."""

    @workflow
    async def mixed(x: int) -> list[int]:
        return [await on_a_loop(x), inline(x), here(x)]

    async def main(runner: Any) -> list[int]:
        async with runner:
            return await runner.run(mixed, 1)

    for runner in (
        AsyncInProcessRunner(),
        AsyncInProcessRunner(isolate=True),
        AsyncCheckpointingRunner(InMemoryBackend()),
    ):
        loop_at, inline_at, here_at = asyncio.run(main(runner))
        assert loop_at == inline_at == threading.get_ident() != here_at


def test_an_async_runner_works_on_many_runs_at_once() -> None:
    """Two runs of one runner wait for each other."""
    barriers: list[asyncio.Barrier] = []

    @task
    async def meet(x: int) -> int:
        await barriers[0].wait()
        return x

    @workflow
    async def alone(x: int) -> int:
        return await meet(x)

    async def main(runner: Any) -> list[int]:
        barriers[:] = [asyncio.Barrier(2)]
        async with runner:
            return await asyncio.gather(runner.run(alone, 1), runner.run(alone, 2))

    for runner in (AsyncInProcessRunner(), AsyncCheckpointingRunner(InMemoryBackend())):
        assert asyncio.run(main(runner)) == [1, 2]


def test_one_sync_runner_serves_several_threads(any_runner: Any) -> None:
    """Two callers' runs wait for each other, each in its own thread."""
    barrier = threading.Barrier(2)

    @task
    def meet(x: int) -> int:
        barrier.wait(20)
        return threading.get_ident()

    @workflow
    def alone(x: int) -> int:
        return meet(x)

    runner = any_runner()
    with ThreadPoolExecutor(2) as pool:
        found = [future.result(30) for future in [pool.submit(runner.run, alone, x) for x in (1, 2)]]
    assert len(set(found)) == 2


def test_the_callers_context_variables_are_seen_in_every_kind_of_body(any_runner: Any) -> None:
    """In the caller's thread, in ours, and on the loop."""
    runner = any_runner()
    context = copy_context()
    context.run(COLOUR.set, "blue")
    assert context.run(runner.run, colours, 1) == ["blue"] * 4
    assert runner.run(colours, 2) == ["none"] * 4


def test_bodies_in_threads_do_not_share_what_they_set(any_runner: Any) -> None:
    """Each branch has a copy of the caller's context."""

    @task
    def paint(x: int) -> str:
        before = COLOUR.get()
        COLOUR.set(f"paint {x}")
        return before

    @workflow
    def fork(x: int) -> list[str]:
        with parallel():
            a, b, c = paint(1), paint(2), paint(3)
        return [a, b, c]

    assert any_runner(threads=1).run(fork, 1) == ["none"] * 3


def test_an_async_runner_passes_the_callers_context_on() -> None:
    """Context variables of the awaiting task reach sync and async bodies."""

    async def main(runner: Any) -> list[str]:
        COLOUR.set("green")
        async with runner:
            return await runner.run(colours, 1)

    for runner in (AsyncInProcessRunner(), AsyncCheckpointingRunner(InMemoryBackend())):
        assert asyncio.run(main(runner)) == ["green"] * 4


def test_a_run_inside_a_task_has_its_own_context(any_runner: Any) -> None:
    """A task may use another runner; afterwards it is itself again."""

    @task
    def whoami(x: int) -> str:
        return task_context().path

    @workflow
    def inner(x: int) -> str:
        return whoami(x)

    @task
    def outer_task(x: int) -> list[str]:
        with InProcessRunner() as nested:
            return [task_context().path, nested.run(inner, x), task_context().path]

    @workflow
    def outer(x: int) -> list[str]:
        return outer_task(x)

    assert any_runner().run(outer, 1) == ["outer_task", "whoami", "outer_task"]
    assert task_context(default=None) is None
