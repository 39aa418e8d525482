"""One holder at a time, and how another one comes to hold."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    Closed,
    InMemoryBackend,
    InProcessRunner,
    InstanceNotFound,
    LeaseLost,
    OptionError,
    SqliteBackend,
    SyncInAsync,
    UsageError,
    WorkflowCancelled,
    task,
    task_context,
    workflow,
)

from ..stores import open_store, url_of  # noqa: TID252 - the tests are not installed
from . import children


@task
def step(x: int) -> int:
    return x + 1


@workflow
def chain(x: int) -> int:
    return step(step(x))


class Blocking:
    """A workflow whose first step stops until the test lets it go."""

    def __init__(self) -> None:
        self.entered, self.go, self.calls = threading.Event(), threading.Event(), list[int]()

        @task
        def stops(x: int) -> int:
            self.calls.append(x)
            self.entered.set()
            assert self.go.wait(20)
            return x + 1

        @workflow
        def blocking(x: int) -> int:
            return step(stops(x))

        self.workflow = blocking


def test_two_runners_cannot_work_on_one_instance(backend: Any, open_runner: Any) -> None:
    """The second is told who holds it, and the first is not disturbed."""
    blocking, first, second = Blocking(), open_runner(backend), open_runner(backend)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(first.run, blocking.workflow, 1, instance_id="i")
        assert blocking.entered.wait(20)
        for attempt in (
            lambda: second.resume(blocking.workflow, "i"),
            lambda: second.run(blocking.workflow, 1, instance_id="i"),
        ):
            with pytest.raises(AlreadyRunning, match="works on it"):
                attempt()
        assert second.recover([blocking.workflow]) == []
        blocking.go.set()
        assert future.result(20) == 3
    assert blocking.calls == [1]


def test_two_threads_of_one_runner_cannot_either(any_runner: Any) -> None:
    """The second call is refused; the runner itself knows."""
    blocking, runner = Blocking(), any_runner()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, blocking.workflow, 1, instance_id="i")
        assert blocking.entered.wait(20)
        with pytest.raises(AlreadyRunning):
            runner.run(blocking.workflow, 1, instance_id="i")
        blocking.go.set()
        assert future.result(20) == 3


def test_a_refused_call_gives_back_nothing_that_is_not_its_own(any_runner: Any) -> None:
    """After the refusal the first call's instance is still known as running."""
    blocking, runner = Blocking(), any_runner()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, blocking.workflow, 1, instance_id="i")
        assert blocking.entered.wait(20)
        for _ in range(2):
            with pytest.raises(AlreadyRunning):
                runner.run(blocking.workflow, 1, instance_id="i")
        runner.client.cancel("i")
        blocking.go.set()
        with pytest.raises(WorkflowCancelled):
            future.result(20)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"], indirect=True)
def test_a_killed_process_is_followed_at_once(kind: str, tmp_path: Path) -> None:
    """While it lives its instance is its own; after kill -9 the next process goes on without waiting for the lease."""
    path = tmp_path / "runs.db"
    child = subprocess.Popen(  # our own script
        [sys.executable, children.__file__, "holding", url_of(kind, path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(2)] == ["began", "holding"]
        backend = open_store(kind, path)
        with CheckpointingRunner(backend) as runner:
            with pytest.raises(AlreadyRunning, match=str(child.pid)):
                runner.resume(children.holding, "child")
            child.kill()
            child.wait()
            assert backend.header("child").held_by == ""  # type: ignore[union-attr]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115  # closed below
                patch.setattr(children, "say", lambda text: None)
                assert runner.resume(children.holding, "child") == 4
                sys.stdin.close()
        assert not backend.stuck(0)
        backend.close()


def test_a_taken_over_session_cannot_write(tmp_path: Path) -> None:
    """Its lease ran out while a body was busy; another runner finished the run; its own late commit changes nothing."""
    now = [0]

    def over() -> int:
        return now[0]

    for backend in (InMemoryBackend(lease_clock=over), SqliteBackend(tmp_path / "leases.db", lease_clock=over)):
        calls: list[str] = []

        @task
        def slow(x: int) -> int:
            calls.append("slow")  # noqa: B023  # run within this turn of the loop
            if len(calls) == 1:  # noqa: B023  # as above
                now[0] += 31_000_000
                assert other.resume(overtaken, "i") == 3
            return x + 1

        @workflow
        def overtaken(x: int) -> int:
            return step(slow(x))

        with CheckpointingRunner(backend) as first, CheckpointingRunner(backend) as other:
            with pytest.raises(LeaseLost):
                first.run(overtaken, 1, instance_id="i")
            before = backend.header("i")
            assert first.run(overtaken, 1, instance_id="i") == 3
            assert backend.header("i") == before
        assert calls == ["slow", "slow"]
        backend.close()


def test_a_task_cannot_swallow_the_loss_of_its_lease() -> None:
    """A heartbeat raises it, and `except Exception` lets it through."""
    now, seen = [0], list[str]()
    backend = InMemoryBackend(lease_clock=lambda: now[0])

    @task
    def careless(x: int) -> int:
        if task_context().cursor is None:
            task_context().heartbeat(1)
            now[0] += 31_000_000
            assert other.resume(alone, "i") == 1
            try:
                task_context().heartbeat(2)
            except Exception:  # noqa: BLE001  # carelessness is the point
                seen.append("swallowed")
        return x

    @workflow
    def alone(x: int) -> int:
        return careless(x)

    with CheckpointingRunner(backend) as first, CheckpointingRunner(backend) as other, pytest.raises(LeaseLost):
        first.run(alone, 1, instance_id="i")
    assert seen == []


def test_a_sync_runner_in_a_running_loop_names_its_twin(backend: Any, open_runner: Any) -> None:
    """It would block the loop, so it refuses before anything is done."""

    async def main(runner: Any) -> None:
        runner.run(chain, 1, instance_id="i")

    for runner, twin in (
        (open_runner(backend), "AsyncCheckpointingRunner"),
        (InProcessRunner(), "AsyncInProcessRunner"),
    ):
        with pytest.raises(SyncInAsync, match=twin), runner:
            asyncio.run(main(runner))
    with pytest.raises(InstanceNotFound):
        open_runner(backend).client.status("i")


def test_a_closed_runner_says_so(any_runner: Any) -> None:
    """Closing twice does nothing; using it afterwards is the caller's mistake."""
    runner = any_runner()
    assert runner.run(chain, 1) == 3
    runner.close()
    runner.close()
    with pytest.raises(Closed, match="closed"):
        runner.run(chain, 1)


def test_a_closed_async_runner_says_so() -> None:
    """The same under the async twins."""

    async def main() -> None:
        runner = AsyncCheckpointingRunner(InMemoryBackend())
        assert await runner.run(chain, 1) == 3
        await runner.close()
        await runner.close()
        with pytest.raises(Closed):
            await runner.run(chain, 1)

    asyncio.run(main())


def test_closing_a_runner_ends_what_it_runs_without_a_loss(backend: Any, open_runner: Any) -> None:
    """Closed by another thread in the middle of a body, the call ends with Closed, and another runner goes on."""
    blocking, runner = Blocking(), open_runner(backend)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, blocking.workflow, 1, instance_id="i")
        assert blocking.entered.wait(20)
        runner.close()
        blocking.go.set()
        with pytest.raises(Closed):
            future.result(20)
    assert open_runner(backend).resume(blocking.workflow, "i") == 3
    assert not backend.stuck(0)


def test_closing_gives_every_claim_back(backend: Any, open_runner: Any) -> None:
    """No session is left behind."""
    runner = open_runner(backend)
    runner.run(chain, 1, instance_id="i")
    runner.close()
    assert backend.header("i").held_by == ""


def test_options_of_a_runner_are_checked() -> None:
    """With the option's name."""
    for options in ({"lease": "10ms"}, {"poll": 0}, {"lease": "soon"}):
        with pytest.raises(OptionError, match=next(iter(options))):
            CheckpointingRunner(InMemoryBackend(), **options)  # type: ignore[arg-type]


def test_unknown_options_of_a_call_are_refused(runner: Any) -> None:
    """Before anything is created."""
    for options in ({"instance": "i"}, {"on_conflict": "maybe"}, {"on_mismatch": "perhaps"}):
        with pytest.raises((OptionError, TypeError), match=next(iter(options))):
            runner.run(chain, 1, **options)


def test_a_missing_or_needless_input_is_told(any_runner: Any) -> None:
    """With the workflow's name and place."""

    @workflow
    def without() -> int:
        return step(1)

    runner = any_runner()
    with pytest.raises(UsageError, match="'chain' takes an input"):
        runner.run(chain)
    with pytest.raises(UsageError, match="'without' takes no input"):
        runner.run(without, 1)
    assert runner.run(without) == 2


def test_an_async_runner_refuses_a_second_call_for_one_instance() -> None:
    """As its twin does."""

    async def main() -> None:
        gate = asyncio.Event()

        @task
        async def stops(x: int) -> int:
            await gate.wait()
            return x

        @workflow
        async def waiting(x: int) -> int:
            return await stops(x)

        async with AsyncCheckpointingRunner(InMemoryBackend()) as runner:
            run = asyncio.create_task(runner.run(waiting, 1, instance_id="i"))
            await asyncio.sleep(0)
            with pytest.raises(AlreadyRunning):
                await runner.resume(waiting, "i")
            gate.set()
            assert await run == 1

    asyncio.run(main())


def test_a_runner_that_has_opened_a_new_session_leaves_alone_what_another_took(backend: Any, open_runner: Any) -> None:
    """Its pacemaker saw the loss and the next write opens a session; the step must not run here again."""
    first, other, calls = open_runner(backend), open_runner(backend), list[str]()

    @task
    def slow(x: int) -> int:
        calls.append("slow")
        if len(calls) == 1:
            backend.end_session(first._room.session())
            first._room._lease.lost = True
            assert backend.claim(other._room.session(), "i").header.session == other._room.session().id
        return x + 1

    @workflow
    def overtaken(x: int) -> int:
        return step(slow(x))

    with pytest.raises(LeaseLost, match="taken over"):
        first.run(overtaken, 1, instance_id="i")
    assert calls == ["slow"]
    assert other.resume(overtaken, "i") == 3
