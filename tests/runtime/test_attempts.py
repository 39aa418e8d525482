"""Attempts: how many, how long after one another, and how long each may take."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    InMemoryBackend,
    Permanent,
    RecordedError,
    Retry,
    RetryAfter,
    TaskTimeout,
    WorkflowFailed,
    parallel,
    task,
    workflow,
)
from stepwell.testing import VirtualClock


class Refused(Exception):
    pass


class Failing:
    """A task that raises what it is given, one after the other, and notes when it was called."""

    def __init__(self, clock: VirtualClock, *errors: BaseException, **options: Any) -> None:
        self.at: list[datetime] = []
        errors_left = list(errors)

        @task(**options)
        def failing(x: int) -> int:
            self.at.append(clock.now)
            if errors_left:
                raise errors_left.pop(0)
            return x

        @workflow
        def alone(x: int) -> int:
            return failing(x)

        self.workflow = alone

    @property
    def waits(self) -> list[float]:
        return [(b - a).total_seconds() for a, b in zip(self.at, self.at[1:], strict=False)]


def errors(count: int) -> list[OSError]:
    return [OSError(f"number {i}") for i in range(1, count + 1)]


def test_a_task_without_retry_is_tried_once(any_runner: Any, clock: VirtualClock) -> None:
    """Its first error fails the run."""
    failing = Failing(clock, *errors(1))
    with pytest.raises(WorkflowFailed, match="number 1"):
        any_runner().run(failing.workflow, 1)
    assert len(failing.at) == 1


def test_waits_grow_by_the_factor_up_to_the_longest(any_runner: Any, clock: VirtualClock) -> None:
    """delay, factor and max_delay, exactly, where no jitter is asked for."""
    failing = Failing(clock, *errors(5), retry=Retry(attempts=6, delay="1m", factor=3, max_delay="10m", jitter=0))
    assert any_runner().run(failing.workflow, 5) == 5
    assert failing.waits == [60, 180, 540, 600, 600]


def test_jitter_shortens_a_wait_by_at_most_its_share(any_runner: Any, clock: VirtualClock) -> None:
    """With 0.5 every wait lies between half and all of the delay."""
    failing = Failing(clock, *errors(8), retry=Retry(attempts=9, delay="1h", factor=1, jitter=0.5))
    any_runner().run(failing.workflow, 1)
    assert all(1800 <= wait <= 3600 for wait in failing.waits)
    assert len(set(failing.waits)) > 1


def test_the_last_error_fails_the_run(any_runner: Any, clock: VirtualClock) -> None:
    """attempts= counts tries in all."""
    failing = Failing(clock, *errors(5), attempts=3)
    with pytest.raises(WorkflowFailed, match="number 3"):
        any_runner().run(failing.workflow, 1)
    assert len(failing.at) == 3


def test_on_and_unless_choose_what_is_tried_again(any_runner: Any, clock: VirtualClock) -> None:
    """unless= outranks on=."""
    policy = Retry(attempts=9, delay=0, on=(OSError, Refused), unless=(Refused,))
    for fatal in (ValueError("other"), Refused("named")):
        failing = Failing(clock, OSError("again"), fatal, retry=policy)
        with pytest.raises(WorkflowFailed) as caught:
            any_runner().run(failing.workflow, 1)
        assert type(caught.value.__cause__) is type(fatal)
        assert len(failing.at) == 2


def test_permanent_ends_it_at_once(any_runner: Any, clock: VirtualClock) -> None:
    """Whatever the policy says."""
    failing = Failing(clock, Permanent("never"), attempts=9)
    with pytest.raises(WorkflowFailed, match="never"):
        any_runner().run(failing.workflow, 1)
    assert len(failing.at) == 1


def test_retry_after_waits_as_asked_and_uses_up_no_attempt(any_runner: Any, clock: VirtualClock) -> None:
    """A task with two attempts may ask for a wait three times and still fail once."""
    policy = Retry(attempts=2, delay="1s", jitter=0)
    failing = Failing(clock, RetryAfter(60), RetryAfter(120), OSError("real"), RetryAfter(7), retry=policy)
    assert any_runner().run(failing.workflow, 4) == 4
    assert failing.waits == [60, 120, 1, 7]


def test_retry_after_works_without_a_policy(any_runner: Any, clock: VirtualClock) -> None:
    """It is the task that asks."""
    failing = Failing(clock, RetryAfter(30))
    assert any_runner().run(failing.workflow, 4) == 4
    assert failing.waits == [30]


def test_a_backoff_goes_on_with_what_is_left_of_it_after_a_restart(
    backend: Any, open_runner: Any, clock: VirtualClock
) -> None:
    """The due time is stored, not the wait."""
    failing = Failing(clock, *errors(1), retry=Retry(attempts=2, delay="1h", jitter=0))
    status = open_runner(backend).start(failing.workflow, 1, instance_id="b")
    assert (status.state, status.due) == ("waiting", failing.at[0] + timedelta(hours=1))
    clock.advance("40m")
    assert open_runner(backend).resume(failing.workflow, "b") == 1
    assert failing.waits == [3600]


def test_spent_attempts_are_remembered_after_a_restart(backend: Any, open_runner: Any, clock: VirtualClock) -> None:
    """Restarting does not give a task its attempts back."""
    failing = Failing(clock, *errors(9), retry=Retry(attempts=3, delay="1h", jitter=0))
    open_runner(backend).start(failing.workflow, 1, instance_id="b")
    with pytest.raises(WorkflowFailed, match="number 3"):
        open_runner(backend).resume(failing.workflow, "b")


def test_an_attempt_cut_off_by_ctrl_c_is_not_spent(backend: Any, open_runner: Any, clock: VirtualClock) -> None:
    """Ctrl-C and SystemExit are nobody's failure."""
    for stop in (KeyboardInterrupt(), SystemExit(3)):
        failing = Failing(clock, stop)
        with pytest.raises(type(stop)):
            open_runner(backend).run(failing.workflow, 1, instance_id=type(stop).__name__)
        assert open_runner(backend).resume(failing.workflow, type(stop).__name__) == 1


# --- timeouts ---------------------------------------------------------------------------------------


def test_a_thread_that_runs_too_long_is_left_behind_and_its_late_result_refused(
    any_runner: Any, clock: VirtualClock
) -> None:
    """The second attempt's result counts, also where the first one's comes in before it."""
    first_returns, first_returned = threading.Event(), threading.Event()
    calls: list[int] = []

    @task(timeout="10s", retry=Retry(attempts=2, delay=0))
    def slow(x: int) -> str:
        calls.append(x)
        if len(calls) == 1:
            clock.advance("11s")
            assert first_returns.wait(20)
            first_returned.set()
            return "late"
        first_returns.set()
        assert first_returned.wait(20)
        return "in time"

    @workflow
    def hurried(x: int) -> str:
        return slow(x)

    assert any_runner().run(hurried, 1) == "in time"
    assert len(calls) == 2


def test_what_a_left_behind_thread_raises_late_is_nobodys(any_runner: Any, clock: VirtualClock) -> None:
    """Not even SystemExit, which from a live attempt would end the call."""
    first_raises, calls = threading.Event(), list[int]()

    @task(timeout="10s", retry=Retry(attempts=2, delay=0))
    def slow(x: int) -> str:
        calls.append(x)
        if len(calls) == 1:
            clock.advance("11s")
            assert first_raises.wait(20)
            raise SystemExit(1)
        first_raises.set()
        return "in time"

    @task
    def last(x: str) -> str:
        return x + ", and gone on"

    @workflow
    def hurried(x: int) -> str:
        return last(slow(x))

    assert any_runner().run(hurried, 1) == "in time, and gone on"


def test_a_timeout_is_a_failed_attempt(any_runner: Any, clock: VirtualClock) -> None:
    """With attempts used up it fails the run as TaskTimeout, naming task, time and path."""
    released = threading.Event()

    @task(timeout="1.5s", retry=Retry(attempts=2, delay=0))
    def slow(x: int) -> int:
        clock.advance("2s")
        assert released.wait(20)
        return x

    @workflow
    def hurried(x: int) -> int:
        return slow(x)

    with pytest.raises(WorkflowFailed, match=r"'slow' ran longer than its timeout of 1500ms at slow") as caught:
        any_runner().run(hurried, 1)
    released.set()
    assert isinstance(caught.value.__cause__, TaskTimeout)


def test_a_timeout_is_told_the_body(any_runner: Any, clock: VirtualClock) -> None:
    """A thread that asks is told to stop; so nobody has to kill it."""
    from stepwell import StepCancelled, task_context

    stopped = threading.Event()

    @task(timeout="10s")
    def spins(x: int) -> int:
        clock.advance("11s")
        try:
            while True:
                task_context().raise_if_cancelled()
        except StepCancelled:
            stopped.set()
            raise

    @workflow
    def hurried(x: int) -> int:
        return spins(x)

    with pytest.raises(WorkflowFailed, match="longer than its timeout"):
        any_runner().run(hurried, 1)
    assert stopped.wait(20)


def test_an_async_body_that_runs_too_long_is_cancelled(any_runner: Any, clock: VirtualClock) -> None:
    """It sees the cancellation, and its retry runs."""
    ended: list[str] = []

    @task(timeout="10s", retry=Retry(attempts=2, delay=0))
    async def slow(x: int) -> int:
        if ended:
            return x
        try:
            clock.advance("11s")
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return 0

    @workflow
    async def hurried(x: int) -> int:
        return await slow(x)

    assert any_runner().run(hurried, 9) == 9
    assert ended == ["cancelled"]


def test_an_async_runner_times_out_on_its_own_loop(clock: VirtualClock) -> None:
    """The same under the async twins."""

    @task(timeout="10s")
    async def slow(x: int) -> int:
        clock.advance("11s")
        await asyncio.Event().wait()
        return x

    @workflow
    async def hurried(x: int) -> int:
        return await slow(x)

    async def main(runner: Any) -> None:
        async with runner:
            with pytest.raises(WorkflowFailed, match="longer than its timeout"):
                await runner.run(hurried, 1)

    for runner in (AsyncInProcessRunner(clock=clock), AsyncCheckpointingRunner(InMemoryBackend(), clock=clock)):
        asyncio.run(main(runner))


def test_a_body_that_cancels_itself_has_failed(any_runner: Any) -> None:
    """asyncio.CancelledError out of a task that nobody cancelled is that task's error, not the runner's end."""

    @task
    async def gives_up(x: int) -> int:
        raise asyncio.CancelledError("on its own")

    @workflow
    async def giving_up(x: int) -> int:
        return await gives_up(x)

    with pytest.raises(WorkflowFailed, match="cancelled from inside"):
        any_runner().run(giving_up, 1)


# --- forks -----------------------------------------------------------------------------------------------


def test_the_first_failure_keeps_what_has_not_started_from_starting(any_runner: Any) -> None:
    """With one thread the second branch waits its turn, which never comes; what ran is settled first."""
    started: list[str] = []

    @task
    def fails(x: int) -> int:
        started.append("fails")
        raise Refused("no")

    @task
    def slow_start(x: int) -> int:
        return x

    @task
    def after(x: int) -> int:
        started.append("after")
        return x

    @workflow
    def fork(x: int) -> int:
        with parallel():
            fails(x)
            waiting = slow_start(x)
            after(after(waiting))
        return x

    with pytest.raises(WorkflowFailed) as caught:
        any_runner(threads=1).run(fork, 1)
    assert isinstance(caught.value.__cause__, Refused | RecordedError)
    assert started == ["fails"]


def test_on_error_wait_runs_all_and_skips_what_reads_the_failed_one(any_runner: Any) -> None:
    """The parallel fails when everything that can run has run."""
    started: list[str] = []

    @task
    def fails(x: int) -> int:
        raise Refused("no")

    @task
    def works(x: int, name: str) -> int:
        started.append(name)
        return x

    @workflow
    def fork(x: int) -> int:
        with parallel(on_error="wait"):
            works(fails(x), "reader")
            works(works(x, "first"), "second")
        return x

    with pytest.raises(WorkflowFailed, match="Refused: no"):
        any_runner().run(fork, 1)
    assert sorted(started) == ["first", "second"]
