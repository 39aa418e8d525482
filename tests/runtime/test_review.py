"""What goes wrong at odd moments: in a heartbeat, between two steps of a turn, in a queue, on the way out."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    CheckpointingRunner,
    Flow,
    InMemoryBackend,
    InProcessRunner,
    Retry,
    SqliteBackend,
    delay,
    parallel,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Message
from stepwell.backend.liveness import lease_clock, this_process
from stepwell.errors import (
    AlreadyRunning,
    BackendUnavailable,
    Closed,
    InstanceHeld,
    InstancePaused,
    LeaseLost,
    UsageError,
    WorkflowCancelled,
)
from stepwell.runtime.room import PLANS_MAX
from stepwell.testing import VirtualClock


class Struck:
    """A store of which each method named in ``on`` goes through a function of the test's, once."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.on = inner, dict[str, Callable[..., Any]]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in self.on:
            return method
        return lambda *args: self.on.pop(name)(method, *args) if name in self.on else method(*args)


@pytest.fixture
def struck(backend: Any) -> Struck:
    return Struck(backend)


@task
def plus(x: int) -> int:
    return x + 1


@workflow
def napping(x: int) -> int:
    delay("1h")
    return plus(x)


@workflow
def asking() -> int:
    return signal("go", int, timeout="30d")


# --- heartbeats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swallows", [False, True])
def test_a_store_that_fails_in_a_heartbeat_is_no_failure_of_the_body(swallows: bool, struck: Struck) -> None:
    """The call ends with the store's error, whatever the body makes of it, and the step runs again."""

    def fails(*args: Any) -> None:
        raise BackendUnavailable("gone")

    @task
    def beats(x: int) -> int:
        try:
            task_context().heartbeat(x)
        except Exception:
            if not swallows:
                raise
        return x

    @workflow
    def beating(x: int) -> int:
        return plus(beats(x))

    with CheckpointingRunner(struck) as runner:
        struck.on["commit"] = fails
        with pytest.raises(BackendUnavailable):
            runner.run(beating, 1, instance_id="i")
        status = runner.client.status("i")
        assert (status.state, status.held_by) == ("running", "")
        assert runner.resume(beating, "i") == 2


def test_an_at_most_once_body_that_is_paused_and_resumed_in_a_heartbeat_is_not_cut_off(runner: Any) -> None:
    """It runs right there, so nothing has interrupted it."""

    @task(delivery="at_most_once")
    def pays(x: int) -> int:
        runner.client.pause("i")
        runner.client.resume("i")
        task_context().heartbeat(1)
        return x

    @workflow
    def paying(x: int) -> int:
        return plus(pays(x))

    assert runner.run(paying, 1, instance_id="i") == 2


def test_a_body_that_is_paused_in_a_heartbeat_keeps_its_instance(runner: Any) -> None:
    """Nobody else takes up the step while its body still runs."""
    others: list[BaseException] = []

    def resumes() -> None:
        try:
            runner.resume(pausing, "i")
        except AlreadyRunning as error:
            others.append(error)

    @task
    def pauses(x: int) -> int:
        runner.client.pause("i")
        task_context().heartbeat(1)
        other = threading.Thread(target=resumes)
        other.start()
        other.join()
        return x

    @workflow
    def pausing(x: int) -> int:
        return plus(pauses(x))

    with pytest.raises(InstancePaused):
        runner.run(pausing, 1, instance_id="i")
    assert len(others) == 1


def test_a_resume_in_a_heartbeat_does_not_shorten_the_backoff(clock: VirtualClock, runner: Any) -> None:
    """A step that is looked at twice is started once."""
    starts: list[float] = []

    @task(retry=Retry(attempts=3, delay="10s", factor=1, jitter=0))
    def flaky(x: int) -> int:
        starts.append(clock.now.timestamp())
        if len(starts) == 1:
            runner.client.pause("i")
            runner.client.resume("i")
            task_context().heartbeat(1)
        if len(starts) < 3:
            raise ValueError
        return x

    @workflow
    def retrying(x: int) -> int:
        return flaky(x)

    assert runner.run(retrying, 1, instance_id="i") == 1
    assert [start - starts[0] for start in starts] == [0, 10, 20]


# --- what has not started yet -------------------------------------------------------------------------------------


def test_a_body_that_waits_for_a_thread_does_not_start_after_a_cancel(any_runner: Any) -> None:
    """No attempt starts once an instance is being cancelled."""
    runner, started, there, go = any_runner(threads=1), list[int](), threading.Event(), threading.Event()

    @task
    def body(x: int) -> int:
        started.append(x)
        assert there.wait(20)
        runner.client.cancel("i")
        assert go.wait(20)
        return x

    @task
    async def lets_go(x: int) -> int:
        there.set()
        try:
            await asyncio.Event().wait()
        finally:
            go.set()
        return x

    @workflow
    async def crowd(x: int) -> int:
        with parallel():
            body(x)
            body(x)
            body(x)
            await lets_go(x)
        return x

    with pytest.raises(WorkflowCancelled):
        runner.run(crowd, 1, instance_id="i")
    assert len(started) == 1


def test_an_async_body_that_is_cancelled_before_its_first_step_is_not_waited_for() -> None:
    """Its coroutine never runs, so it cannot report; the clock stands still, so no grace can end either."""

    @task
    async def never(x: int) -> int:
        return x

    @task(run_in="inline")
    def cancels(x: int) -> int:
        task_context.runner.client.cancel("i")  # type: ignore[attr-defined]
        return x

    @workflow
    async def both(x: int) -> int:
        with parallel():
            await never(x)
            cancels(x)
        return x

    async def main() -> None:
        async with AsyncInProcessRunner(clock=VirtualClock(jump=False)) as runner:
            task_context.runner = runner  # type: ignore[attr-defined]
            with pytest.raises(WorkflowCancelled):
                await runner.run(both, 1, instance_id="i")
        del task_context.runner  # type: ignore[attr-defined]

    asyncio.run(main())


# --- claims -------------------------------------------------------------------------------------------------------


def test_a_resume_that_is_interrupted_gives_its_claim_back(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever strikes after the claim."""

    def interrupts(*args: object) -> None:
        raise KeyboardInterrupt

    runner.start(napping, 1, instance_id="i")
    with monkeypatch.context() as patch:
        patch.setattr("stepwell.runtime.live.frontier_of", interrupts)
        with pytest.raises(KeyboardInterrupt):
            runner.resume(napping, "i")
    assert runner.client.status("i").held_by == ""


def test_recover_passes_over_what_was_deleted_meanwhile(struck: Struck, clock: VirtualClock) -> None:
    """It was listed as paused, and has ended and gone since."""

    def lists(method: Any, where: Any) -> Any:
        page = method(where)
        runner.client.cancel("a")
        struck.inner.delete("a")
        return page

    with CheckpointingRunner(struck, clock=clock) as runner:
        for name in ("a", "b"):
            runner.start(napping, 1, instance_id=name)
            runner.client.pause(name)
        struck.on["list"] = lists
        assert [status.instance_id for status in runner.recover([napping])] == ["b"]


def test_a_message_that_crosses_the_release_is_taken_in(struck: Struck) -> None:
    """A resume that was accepted as the pause was being stored."""
    seen: list[int] = []

    @task
    def pauses(x: int) -> int:
        if not seen:
            runner.client.pause("i")
            struck.on["commit"] = crosses
        seen.append(x)
        return x

    def crosses(method: Any, session: Any, changes: Any) -> Any:
        if changes[0].rest is None:
            struck.on["commit"] = crosses
        else:
            runner.client.resume("i")
        return method(session, changes)

    @workflow
    def pausing(x: int) -> int:
        return plus(pauses(pauses(x)))

    with CheckpointingRunner(struck, poll="1ms") as runner:
        assert runner.run(pausing, 1, instance_id="i") == 2


def test_a_message_of_an_unknown_kind_holds_its_instance_alone(backend: Any, runner: Any) -> None:
    """A later release may have posted it; the runs beside it go on."""
    tick = threading.Event()

    @task
    def posts(x: int) -> int:
        if x == 1:
            backend.post(backend.header("i1").instance, Message("later", "", b"", 0))
            task_context().heartbeat(1)
            assert any(not backend.header("i1").mail or tick.wait(0.002) for _ in range(10_000))  # it has been read
        return x

    @workflow
    def posting(x: int) -> int:
        return plus(posts(x))

    with pytest.raises(InstanceHeld, match="later"):
        runner.run_many(posting, [1, 2], instance_ids=["i1", "i2"])
    assert runner.client.status("i2").state == "completed"


def test_one_instance_that_is_taken_over_does_not_stop_the_others(
    backend: Any, open_runner: Any, clock: VirtualClock
) -> None:
    """The session was lost, and only one of its instances found another holder."""
    first = open_runner(backend)
    thief = backend.open_session(this_process("thief"), 30_000_000)

    @task(run_in="inline")
    def loses(x: int) -> int:
        if x == 1:
            session = first._room.session()
            backend.end_session(session)
            first._room.lost(session)
            backend.claim(thief, "i1")
            backend.commit(thief, [])
        return x

    @workflow
    def losing(x: int) -> int:
        return plus(loses(x))

    with pytest.raises(LeaseLost, match="thief"):
        first.run_many(losing, [1, 2], instance_ids=["i1", "i2"])
    assert (first.client.status("i1").held_by, first.client.status("i2").state) == ("thief", "completed")


def test_a_session_that_was_lost_long_ago_does_not_end_the_new_one(runner: Any) -> None:
    """Two calls hear of the same loss; the second of them when a new session is in use."""
    old = runner._room.session()
    runner._room.lost(old)
    new = runner._room.session()
    runner._room.lost(old)
    assert runner._room.session() == new


def test_a_replaced_runs_late_bodies_are_not_counted_twice(backend: Any, open_runner: Any) -> None:
    """A call that works on more runs must not wait for ever for bodies that ended."""
    first, second, late, counts = open_runner(backend), open_runner(backend), threading.Event(), list[int]()

    @task
    def stops_late(x: int) -> int:
        if x == 1:
            while not task_context().cancelled:
                pass
            late.set()
        if x == 2:
            assert late.wait(20)
        return x

    @task
    def replaces(x: int) -> int:
        if x == 1:
            second.start(replacing, 9, instance_id="i1", on_conflict="terminate_existing")
        return x

    @workflow
    def replacing(x: int) -> int:
        with parallel():
            a = stops_late(x)
            replaces(x)
        return plus(plus(a))

    def counted(method: Any) -> Any:
        def finish(drive: Any, live: Any) -> None:
            method(drive, live)
            counts.append(drive._flights.count)

        return finish

    from stepwell.runtime.drive import Drive

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drive, "_finish", counted(Drive._finish))
        with pytest.raises(WorkflowCancelled):
            first.run_many(replacing, [1, 2], instance_ids=["i1", "i2"])
    assert min(counts) >= 0
    assert first.client.status("i2").state == "completed"


# --- on the way out -----------------------------------------------------------------------------------------------


def test_what_had_ended_when_ctrl_c_came_is_kept(runner: Any) -> None:
    """A payment made at most once is recorded, and only the interrupted one needs a person."""

    @task(run_in="inline", delivery="at_most_once")
    def pays(x: int) -> int:
        return x

    @task(run_in="inline", delivery="at_most_once")
    def struck_down(x: int) -> int:
        raise KeyboardInterrupt

    @workflow
    def paying(x: int) -> int:
        with parallel():
            paid = pays(x)
            struck_down(x)
        return paid

    with pytest.raises(KeyboardInterrupt):
        runner.run(paying, 1, instance_id="i")
    with pytest.raises(InstanceHeld, match="struck_down"):
        runner.resume(paying, "i")


def test_closing_a_runner_in_memory_ends_the_calls_of_other_threads() -> None:
    """A run that waits for a message would wait for ever."""
    runner, errors = InProcessRunner(), list[BaseException]()

    def runs() -> None:
        try:
            runner.run(asking, instance_id="i")
        except Closed as error:
            errors.append(error)

    thread = threading.Thread(target=runs)
    thread.start()
    while runner._room.running_plan("i") is None:
        pass
    runner.close()
    thread.join(20)
    assert len(errors) == 1


def test_closing_a_runner_is_no_failure_of_what_runs_on_its_loop() -> None:
    """The call ends with Closed, not with the body's cancellation."""

    @task
    async def closes(x: int) -> int:
        threading.Thread(target=runner.close).start()
        await asyncio.Event().wait()
        return x

    @workflow
    async def closing(x: int) -> int:
        return await closes(x)

    runner = InProcessRunner()
    with pytest.raises(Closed):
        runner.run(closing, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_runner_is_refused_after_a_fork() -> None:
    """Its threads stayed behind, so a run would wait for them for ever."""
    runner = InProcessRunner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads, which is the point
        child = os.fork()
    if not child:
        try:
            runner.run(Flow("one").then(plus).build(), 1)
        except UsageError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_signal_handler_cannot_tear_a_transaction_apart(tmp_path: Path) -> None:
    """A handler that uses the store in the middle of its write is refused, and the write lands whole."""
    refused: list[str] = []

    def handler(*args: object) -> None:
        try:
            store.header("i")
        except UsageError as error:
            refused.append(str(error))

    def clock() -> int:  # the store reads it inside a transaction
        if strike:
            strike.clear()
            signals.raise_signal(signals.SIGUSR1)
        return lease_clock()

    strike: list[bool] = []
    store = SqliteBackend(tmp_path / "runs.db", lease_clock=clock)
    before = signals.signal(signals.SIGUSR1, handler)
    try:
        session = store.open_session(this_process(), 30_000_000)
        strike.append(True)
        store.renew(session)
    finally:
        signals.signal(signals.SIGUSR1, before)
        store.close()
    assert "signal handler" in refused[0]


def test_a_transaction_whose_end_was_cut_off_blocks_no_other_thread(tmp_path: Path) -> None:
    """Ctrl-C as a block ends leaves the connection taken; the thread's next use mends that."""
    store = SqliteBackend(tmp_path / "runs.db")

    def cut_off() -> None:
        store._database.write.__enter__()

    cut_off()
    assert store.header("i") is None
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(store.header("i")))
    thread.start()
    thread.join(20)
    store.close()
    assert found == [None]


# --- growth -------------------------------------------------------------------------------------------------------


def test_timeouts_of_ended_runs_are_forgotten() -> None:
    """One drive that serves runs for months must not keep every timeout until it passes."""

    async def main() -> int:
        async with AsyncCheckpointingRunner(InMemoryBackend()) as runner:
            lasting = asyncio.create_task(runner.run(asking, instance_id="lasting"))
            for number in range(300):
                run = asyncio.create_task(runner.run(asking, instance_id=f"i{number}"))
                while runner._room.running_plan(f"i{number}") is None:
                    await asyncio.sleep(0)
                await runner.client.signal(f"i{number}", "go", 1)
                assert await run == 1
            assert runner._shared is not None
            drive = runner._shared._drive
            lasting.cancel()
            return len(drive._timers.heap) + len(drive._restless)

    assert asyncio.run(main()) < 150


def test_a_runner_forgets_workflows_that_are_built_without_end() -> None:
    """It keeps as many as a program has at a time."""
    with InProcessRunner() as runner:
        for number in range(PLANS_MAX + 20):
            assert runner.run(Flow(f"made{number}").then(plus).build(), 1) == 2
        assert len(runner._room._prepared) == PLANS_MAX
