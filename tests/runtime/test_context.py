"""What a task learns about itself, and what it can leave for its next attempt."""

from __future__ import annotations

import threading
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import pytest

from stepwell import (
    Again,
    Done,
    InMemoryBackend,
    NoTaskContext,
    Retry,
    StepCancelled,
    TaskContext,
    WorkflowCancelled,
    loop,
    parallel,
    task,
    task_context,
    workflow,
)
from stepwell.testing import VirtualClock


def described() -> dict[str, Any]:
    ctx = task_context()
    return {
        "id": ctx.instance_id,
        "path": ctx.path,
        "attempt": ctx.attempt,
        "run": ctx.run,
        "team": ctx.metadata["team"],
    }


@task
def plain(x: int) -> dict[str, Any]:
    return described()


@task(run_in="inline")
def inline(x: int) -> dict[str, Any]:
    return described()


@task
async def later(x: int) -> dict[str, Any]:
    return described()


@workflow("described", metadata={"team": "search"})
async def everywhere(x: int) -> list[dict[str, Any]]:
    first = plain(x)
    with parallel():
        a, b, c = plain(x), inline(x), await later(x)
    return [first, a, b, c]


def test_every_kind_of_body_knows_where_it_stands(any_runner: Any) -> None:
    """Instance, path, attempt, run and metadata, in the caller's thread, in ours, inline and on the loop."""
    found = any_runner().run(everywhere, 1, instance_id="one")
    assert [each["path"] for each in found] == ["plain", "parallel/plain", "parallel/inline", "parallel/later"]
    assert {(each["id"], each["attempt"], each["run"], each["team"]) for each in found} == {("one", 1, 1, "search")}


def test_there_is_no_context_outside_a_task() -> None:
    """It raises and says what to do; with a default it answers that."""
    with pytest.raises(NoTaskContext, match="default=None"):
        task_context()
    assert task_context(default=None) is None


def test_a_copied_context_reaches_the_threads_of_a_task(any_runner: Any) -> None:
    """A thread that a task starts sees it if the context was copied, and not otherwise."""

    @task
    def starts_threads(x: int) -> list[str]:
        found: list[str] = []

        def note() -> None:
            ctx: TaskContext | None = task_context(default=None)
            found.append(ctx.path if ctx else "none")

        for target, args in ((copy_context().run, (note,)), (note, ())):
            thread = threading.Thread(target=target, args=args)
            thread.start()
            thread.join()
        return found

    @workflow
    def threaded(x: int) -> list[str]:
        return starts_threads(x)

    assert any_runner().run(threaded, 1) == ["starts_threads", "none"]


def test_the_deadline_is_the_start_plus_the_timeout(any_runner: Any, clock: VirtualClock) -> None:
    """In UTC by the runner's clock; None without a timeout."""

    @task(timeout="2h")
    def bounded(x: int) -> bool:
        return task_context().deadline == clock.now + timedelta(hours=2)

    @task
    def unbounded(x: int) -> bool:
        return task_context().deadline is None

    @workflow
    def both(x: int) -> list[bool]:
        return [bounded(x), unbounded(x)]

    assert any_runner().run(both, 1) == [True, True]


def test_the_logger_names_instance_path_and_attempt(any_runner: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A record made through the context can be found again."""

    @task
    def speak(x: int) -> int:
        task_context().logger.warning("hello")
        return x

    @workflow
    def speaking(x: int) -> int:
        return speak(x)

    any_runner().run(speaking, 1, instance_id="talk")
    (record,) = caplog.records
    assert (record.instance, record.path, record.attempt) == ("talk", "speak", 1)  # type: ignore[attr-defined]


# --- the idempotency key ------------------------------------------------------------------------


def test_a_key_is_the_same_for_every_attempt_and_after_a_restart(backend: Any, open_runner: Any) -> None:
    """Two failed attempts, one cut off by Ctrl-C, and a success in another runner: one key."""
    keys: list[str] = []

    @task(retry=Retry(attempts=5, delay=0))
    def unsteady(x: int) -> str:
        keys.append(task_context().idempotency_key)
        if len(keys) < 3:
            raise OSError("not yet")
        if len(keys) == 3:
            raise KeyboardInterrupt
        return keys[-1]

    @workflow
    def steady(x: int) -> str:
        return unsteady(x)

    with pytest.raises(KeyboardInterrupt):
        open_runner(backend).run(steady, 1, instance_id="k")
    assert open_runner(backend).resume(steady, "k") == keys[0]
    assert keys == [keys[0]] * 4
    assert len(keys[0]) == 32


def test_keys_differ_between_steps_turns_instances_runs_and_stores(backend: Any, open_runner: Any) -> None:
    """No two of them are the same outside call."""
    keys: list[str] = []

    @task
    def note(x: int) -> int:
        keys.append(task_context().idempotency_key)
        return x

    @task
    def turn(x: int) -> Again[int] | Done[int]:
        keys.append(task_context().idempotency_key)
        return Again(x + 1) if x < 3 else Done(x)

    @workflow
    def noting(x: int) -> int:
        note(x)
        note(x)
        with parallel():
            note(x)
            note(x)
        return loop(turn, x)

    runner = open_runner(backend)
    runner.run(noting, 1, instance_id="a")
    runner.run(noting, 1, instance_id="b")
    runner.run(noting, 1, instance_id="a", on_conflict="terminate_existing")
    open_runner(InMemoryBackend()).run(noting, 1, instance_id="a")
    assert len(keys) == 4 * 7 == len(set(keys))


# --- cursors ------------------------------------------------------------------------------------------


def test_a_cursor_survives_a_failed_attempt(any_runner: Any) -> None:
    """What an attempt kept by heartbeat() is the next one's cursor."""
    found: list[object] = []

    @task(retry=Retry(attempts=3, delay=0))
    def pages(x: int) -> int:
        ctx = task_context()
        found.append(ctx.cursor)
        ctx.heartbeat({"page": len(found)})
        if len(found) < 3:
            raise OSError("cut")
        return x

    @workflow
    def paging(x: int) -> int:
        return pages(x)

    any_runner().run(paging, 1)
    assert found == [None, {"page": 1}, {"page": 2}]


def test_a_cursor_survives_in_every_kind_of_body(any_runner: Any) -> None:
    """Also where the heartbeat comes from a thread or from the loop."""
    found: list[object] = []

    def attempt() -> int:
        ctx = task_context()
        found.append(ctx.cursor)
        if ctx.attempt == 1:
            ctx.heartbeat(7)
            raise OSError("cut")
        return 1

    retry = Retry(attempts=2, delay=0)
    threaded = task("threaded", retry=retry, timeout="1h")(lambda x: attempt())

    @task(retry=retry)
    async def looped(x: int) -> int:
        return attempt()

    @workflow
    async def paging(x: int) -> list[Any]:
        return [threaded(x), await looped(x)]

    any_runner().run(paging, 1)
    assert found == [None, 7, None, 7]


def test_a_cursor_survives_the_end_of_the_runner(backend: Any, open_runner: Any) -> None:
    """It is stored when heartbeat() returns in the caller's thread."""
    found: list[object] = []

    @task
    def pages(x: int) -> int:
        ctx = task_context()
        found.append(ctx.cursor)
        if len(found) == 1:
            ctx.heartbeat("page 5")
            raise KeyboardInterrupt
        return x

    @workflow
    def paging(x: int) -> int:
        return pages(x)

    with pytest.raises(KeyboardInterrupt):
        open_runner(backend).run(paging, 1, instance_id="p")
    open_runner(backend).resume(paging, "p")
    assert found == [None, "page 5"]


def test_a_cursor_belongs_to_one_step(any_runner: Any) -> None:
    """The next step, also one of the same task, begins without."""

    @task
    def keeps(x: int) -> object:
        before = task_context().cursor
        task_context().heartbeat(x)
        return before

    @workflow
    def two(x: int) -> list[object]:
        return [keeps(x), keeps(x)]

    assert any_runner().run(two, 1) == [None, None]


# --- being cancelled -----------------------------------------------------------------------------------


def test_a_heartbeat_hears_of_a_cancel(any_runner: Any) -> None:
    """In the caller's thread too, where nothing else could look."""
    heard: list[bool] = []
    runner = any_runner()

    @task
    def cancels_itself(x: int) -> int:
        ctx = task_context()
        ctx.raise_if_cancelled()
        runner.client.cancel("c", reason="enough")
        try:
            ctx.heartbeat(1)
        except StepCancelled:
            heard.append(ctx.cancelled)
            raise
        return x

    @task
    def never(x: int) -> int:
        raise AssertionError("a step after the cancel was started")

    @workflow
    def cancelling(x: int) -> int:
        return never(cancels_itself(x))

    with pytest.raises(WorkflowCancelled, match="enough"):
        runner.run(cancelling, 1, instance_id="c")
    assert heard == [True]


def test_a_thread_can_ask_whether_it_should_stop(any_runner: Any) -> None:
    """raise_if_cancelled() raises in a running thread once a cancel was taken in."""
    runner = any_runner()

    @task(timeout="1h")
    def spins(x: int) -> int:
        runner.client.cancel("c")
        while True:
            task_context().raise_if_cancelled()

    @workflow
    def spinning(x: int) -> int:
        return spins(x)

    with pytest.raises(WorkflowCancelled):
        runner.run(spinning, 1, instance_id="c")
