"""Pause, resume and cancel: of a run that works, that waits in a call, and that nobody holds."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    InMemoryBackend,
    InstanceNotFound,
    InstancePaused,
    UsageError,
    WorkflowCancelled,
    delay,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.testing import VirtualClock


@task
def step(x: int) -> int:
    return x + 1


@workflow
def napping(x: int) -> int:
    a = step(x)
    delay("8h")
    return step(a)


@workflow
def asking(x: int) -> int:
    step(x)
    return step(signal("answer", int))


class Blocking:
    """Two steps; the first stops until the test lets it go, in a thread or in the caller's own."""

    def __init__(self, **options: Any) -> None:
        self.entered, self.go, self.calls = threading.Event(), threading.Event(), list[str]()

        @task(**options)
        def stops(x: int) -> int:
            self.calls.append("stops")
            self.entered.set()
            assert self.go.wait(20)
            return x

        @task
        def follows(x: int) -> int:
            self.calls.append("follows")
            return x

        @workflow
        def blocking(x: int) -> int:
            return follows(stops(x))

        self.workflow = blocking


@pytest.mark.parametrize("options", [{}, {"timeout": "1h"}], ids=["caller", "thread"])
def test_cancel_lets_the_running_step_end_and_starts_nothing_more(any_runner: Any, options: dict[str, Any]) -> None:
    """Its result is recorded, the run ends as cancelled and says by whom and why."""
    blocking, runner = Blocking(**options), any_runner()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, blocking.workflow, 1, instance_id="i")
        assert blocking.entered.wait(20)
        runner.client.cancel("i", reason="too late", by="ann")
        blocking.go.set()
        with pytest.raises(WorkflowCancelled, match="by ann: too late"):
            future.result(20)
    assert blocking.calls == ["stops"]


@pytest.mark.parametrize("options", [{}, {"timeout": "1h"}], ids=["caller", "thread"])
def test_pause_lets_the_running_step_end_and_keeps_its_result(
    backend: Any, open_runner: Any, options: dict[str, Any]
) -> None:
    """The call ends as paused; after resume the next step runs with that result."""
    blocking, runner = Blocking(**options), open_runner(backend)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, blocking.workflow, 7, instance_id="i")
        assert blocking.entered.wait(20)
        runner.client.pause("i", reason="lunch", by="bob")
        blocking.go.set()
        with pytest.raises(InstancePaused, match="by bob: lunch"):
            future.result(20)
    assert blocking.calls == ["stops"]
    status = runner.client.status("i")
    assert (status.state, status.held_by) == ("paused", "")
    runner.client.resume("i")
    assert runner.resume(blocking.workflow, "i") == 7
    assert blocking.calls == ["stops", "follows"]


def test_cancel_ends_an_async_body_at_once(any_runner: Any) -> None:
    """Its coroutine is cancelled."""
    runner, seen = any_runner(), list[str]()

    @task
    async def waits(x: int) -> int:
        runner.client.cancel("i")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return x

    @workflow
    async def waiting(x: int) -> int:
        return await waits(x)

    with pytest.raises(WorkflowCancelled):
        runner.run(waiting, 1, instance_id="i")
    assert seen == ["cancelled"]


def test_cancel_waits_for_bodies_that_do_not_stop_no_longer_than_the_grace(
    any_runner: Any, clock: VirtualClock
) -> None:
    """After thirty seconds the run ends without them."""
    runner, go, ticking = any_runner(), threading.Event(), threading.Event()

    @task
    def deaf(x: int) -> int:
        assert ticking.wait(20)
        runner.client.cancel("i")
        assert go.wait(20)
        return x

    @task
    def passes_time(x: int) -> int:
        ticking.set()
        while not noticed.is_set():
            clock.advance("31s")
        return x

    noticed = threading.Event()

    @workflow
    def fork(x: int) -> int:
        with parallel():
            deaf(x)
            passes_time(x)
        return x

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, fork, 1, instance_id="i")
        with pytest.raises(WorkflowCancelled):
            future.result(20)
        noticed.set()
        go.set()


def test_cancel_of_what_nobody_holds_is_done_when_it_returns(runner: Any) -> None:
    """A waiting or paused instance needs no runner to end."""
    for name, prepare in (("a", lambda: None), ("b", lambda: runner.client.pause("b"))):
        runner.start(asking, 1, instance_id=name)
        prepare()
        runner.client.cancel(name, reason="enough")
        status = runner.client.status(name)
        assert (status.state, status.finished) == ("cancelled", True)
        assert "enough" in status.detail
        with pytest.raises(WorkflowCancelled):
            runner.resume(asking, name)


def test_a_call_that_waits_hears_of_a_cancel(any_runner: Any) -> None:
    """It waits for a message that will not come; the cancel ends it."""
    runner, reached = any_runner(), threading.Event()

    @task
    def tells(x: int) -> int:
        reached.set()
        return x

    @workflow
    def waiting(x: int) -> int:
        tells(x)
        return signal("never", int)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, waiting, 1, instance_id="i")
        assert reached.wait(20)
        runner.client.cancel("i")
        with pytest.raises(WorkflowCancelled):
            future.result(20)


def test_pause_loses_no_message(runner: Any) -> None:
    """One that comes meanwhile is there afterwards."""
    runner.start(asking, 1, instance_id="i")
    runner.client.pause("i")
    runner.client.signal("i", "answer", 5)
    assert runner.client.status("i").state == "paused"
    runner.client.resume("i")
    assert runner.resume(asking, "i") == 6


def test_pause_loses_no_time(runner: Any, clock: VirtualClock) -> None:
    """A delay that ended meanwhile is over after the resume; the clock need not move again."""
    runner.start(napping, 1, instance_id="i")
    runner.client.pause("i")
    clock.advance("9h")
    assert [s.state for s in runner.recover([napping])] == ["paused"]
    runner.client.resume("i")
    before = clock.now
    assert runner.resume(napping, "i") == 3
    assert clock.now == before


def test_a_paused_instance_is_nobodys(backend: Any, open_runner: Any) -> None:
    """Looking at it, by resume or recover, does not keep it; so another runner's request is obeyed."""
    first, second = open_runner(backend), open_runner(backend)
    first.start(asking, 1, instance_id="i")
    first.client.pause("i")
    with pytest.raises(InstancePaused):
        first.resume(asking, "i")
    assert first.client.status("i").held_by == ""
    first.recover([asking])
    assert first.client.status("i").held_by == ""
    second.client.resume("i")
    assert second.client.status("i").state == "waiting"


def test_a_request_may_be_repeated(runner: Any) -> None:
    """Asking twice is asking once; a resume of what is not paused changes nothing."""
    runner.start(asking, 1, instance_id="i")
    runner.client.resume("i")
    runner.client.pause("i", reason="first")
    runner.client.pause("i", reason="second")
    assert "first" in runner.client.status("i").detail
    runner.client.resume("i")
    runner.client.resume("i")
    assert runner.client.status("i").state == "waiting"


def test_cancel_beats_pause(runner: Any) -> None:
    """A paused run can be cancelled; a cancelled one cannot be paused."""
    runner.start(asking, 1, instance_id="i")
    runner.client.pause("i")
    runner.client.cancel("i")
    assert runner.client.status("i").state == "cancelled"


def test_requests_from_inside_a_step_take_effect_before_the_next(any_runner: Any) -> None:
    """The call returned, so nothing more starts."""
    runner, started = any_runner(), list[int]()

    @task
    def asks(x: int) -> int:
        runner.client.cancel("i")
        return x

    @task
    def never(x: int) -> int:
        started.append(x)
        return x

    @workflow
    def asking_itself(x: int) -> int:
        return never(asks(x))

    with pytest.raises(WorkflowCancelled):
        runner.run(asking_itself, 1, instance_id="i")
    assert started == []


def test_pausing_in_memory_ends_the_call(any_runner: Any) -> None:
    """Nothing goes on that was paused, whatever the runner."""
    runner = any_runner()

    @task
    def asks(x: int) -> int:
        runner.client.pause("i")
        return x

    @workflow
    def pausing(x: int) -> int:
        return step(asks(x))

    with pytest.raises(InstancePaused):
        runner.run(pausing, 1, instance_id="i")


def test_status_of_an_unknown_instance_is_an_error(any_runner: Any) -> None:
    """As is asking a runner that keeps none."""
    with pytest.raises((InstanceNotFound, UsageError)):
        any_runner().client.status("nobody")


def test_status_says_what_has_become_of_it(runner: Any) -> None:
    """Moments, run, workflow and the failed step in words."""

    @task
    def breaks(x: int) -> int:
        raise OSError("the wire")

    @workflow
    def breaking(x: int) -> int:
        return breaks(x)

    status = runner.start(breaking, 1, instance_id="i", labels={"team": "a"})
    assert (status.state, status.workflow, status.run, status.pending) == ("failed", "breaking", 1, ())
    assert status.finished
    assert status.ended >= status.created
    assert "step breaks failed: OSError: the wire" in status.detail


def test_an_async_run_is_controlled_the_same_way() -> None:
    """From inside its own loop, without blocking it."""

    async def main() -> None:
        async with AsyncCheckpointingRunner(InMemoryBackend(), clock=VirtualClock()) as runner:
            assert (await runner.start(asking, 1, instance_id="i")).state == "waiting"
            await runner.client.signal("i", "answer", 3)
            assert await runner.resume(asking, "i") == 4
            run = asyncio.create_task(runner.run(asking, 1, instance_id="j"))
            await asyncio.sleep(0)
            await runner.client.cancel("j")
            with pytest.raises(WorkflowCancelled):
                await run
            assert [s.state for s in await runner.recover([asking])] == []

    asyncio.run(main())
