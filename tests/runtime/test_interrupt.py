"""Ctrl-C, SystemExit and cancellation: they end the call at once, are nobody's failure, and cost no progress."""

from __future__ import annotations

import asyncio
import signal as signals
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    InMemoryBackend,
    SqliteBackend,
    parallel,
    task,
    workflow,
)
from stepwell.backend.base import Filter
from stepwell.testing import VirtualClock

from . import children


class Once:
    """Raises on the first call only."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            raise self.error


def test_ctrl_c_in_the_callers_thread_leaves_the_instance_resumable(backend: Any, open_runner: Any) -> None:
    """The step before is kept, the step itself runs again, and nobody holds the instance meanwhile."""
    once, firsts = Once(KeyboardInterrupt()), list[int]()

    @task
    def first(x: int) -> int:
        firsts.append(x)
        return x + 1

    @task
    def second(x: int) -> int:
        once()
        return x * 10

    @workflow
    def two(x: int) -> int:
        return second(first(x))

    runner = open_runner(backend)
    with pytest.raises(KeyboardInterrupt):
        runner.run(two, 1, instance_id="i")
    assert runner.client.status("i").held_by == ""
    assert open_runner(backend).resume(two, "i") == 20
    assert (firsts, once.calls) == ([1], 2)
    assert not backend.stuck(0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_process_ends_the_call_from_a_thread_too(
    error: BaseException, backend: Any, open_runner: Any
) -> None:
    """It is raised in the caller's thread, and is no attempt's failure."""
    once = Once(error)

    @task
    def fine(x: int) -> int:
        return x

    @task
    def ends(x: int) -> int:
        once()
        return x

    @workflow
    def fork(x: int) -> list[int]:
        with parallel():
            a, b = fine(x), ends(x)
        return [a, b]

    with pytest.raises(type(error)):
        open_runner(backend).run(fork, 1, instance_id="i")
    assert open_runner(backend).resume(fork, "i") == [1, 1]


def test_what_ends_a_process_ends_the_call_from_the_loop_too(backend: Any, open_runner: Any) -> None:
    """SystemExit in an async task under a sync runner."""
    once = Once(SystemExit(3))

    @task
    async def ends(x: int) -> int:
        once()
        return x

    @workflow
    async def alone(x: int) -> int:
        return await ends(x)

    runner = open_runner(backend)
    with pytest.raises(SystemExit):
        runner.run(alone, 1, instance_id="i")
    assert runner.resume(alone, "i") == 1


def test_an_inline_task_that_swallows_exceptions_cannot_swallow_ctrl_c(backend: Any, open_runner: Any) -> None:
    """KeyboardInterrupt is not an Exception, and stepwell does not make it one."""
    once = Once(KeyboardInterrupt())

    @task(run_in="inline", attempts=9)
    def careless(x: int) -> int:
        try:
            once()
        except Exception:  # noqa: BLE001  # carelessness is the point
            return -1
        return x

    @workflow
    def alone(x: int) -> int:
        return careless(x)

    with pytest.raises(KeyboardInterrupt):
        open_runner(backend).run(alone, 1, instance_id="i")
    assert once.calls == 1


def test_cancelling_an_awaited_run_leaves_the_instance_resumable(clock: VirtualClock) -> None:
    """The body is cancelled, its attempt is not spent, and the claim is given back."""
    backend, started, seen = InMemoryBackend(), list[int](), list[str]()

    @task
    async def slow(x: int) -> int:
        started.append(x)
        if len(started) == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
        return x

    @workflow
    async def alone(x: int) -> int:
        return await slow(x)

    async def main() -> None:
        async with AsyncCheckpointingRunner(backend, clock=clock) as runner:
            run = asyncio.create_task(runner.run(alone, 1, instance_id="i"))
            while not started:
                await asyncio.sleep(0)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert (await runner.client.status("i")).held_by == ""
            assert await runner.resume(alone, "i") == 1

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_a_real_ctrl_c_ends_a_process_that_waits_for_a_delay(tmp_path: Path) -> None:
    """SIGINT while the call waits for thirty days: it ends at once, and another process goes on."""
    path = tmp_path / "runs.db"
    child = subprocess.Popen(  # our own script
        [sys.executable, children.__file__, "napping", str(path)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(2)] == ["began", "waiting"]
        child.send_signal(signals.SIGINT)
        assert child.stdout.read().split() == ["interrupted"]
    assert child.returncode == 0
    backend = SqliteBackend(path)
    (left,) = backend.list(Filter())
    assert (left.state, left.held_by) == ("waiting", "")
    assert not backend.stuck(0)
    with CheckpointingRunner(backend, clock=VirtualClock()) as runner:
        assert runner.resume(children.napping, "child") == 3
    backend.close()


def test_threads_that_still_run_never_delay_the_exit(tmp_path: Path) -> None:
    """A body that never returns is left behind with its process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import threading\n"
        "from stepwell import InProcessRunner, parallel, task, workflow\n"
        "@task\ndef never(x: int) -> int:\n    threading.Event().wait()\n    return x\n"
        "@task\ndef ends(x: int) -> int:\n    raise KeyboardInterrupt\n"
        "@workflow\ndef fork(x: int) -> int:\n    with parallel():\n        never(x)\n        ends(x)\n    return x\n"
        "try:\n    with InProcessRunner() as runner:\n        runner.run(fork, 1)\n"
        "except KeyboardInterrupt:\n    print('left')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("left\n", "", 0)


def test_a_runner_that_was_interrupted_can_be_used_again(any_runner: Any) -> None:
    """Nothing of the call is left in it."""
    once = Once(KeyboardInterrupt())
    gate = threading.Event()

    @task
    def held(x: int) -> int:
        assert gate.wait(20)
        return x

    @task
    def ends(x: int) -> int:
        once()
        gate.set()
        return x

    @workflow
    def fork(x: int) -> list[int]:
        with parallel():
            a, b = held(x), ends(x)
        return [a, b]

    runner = any_runner()
    with pytest.raises(KeyboardInterrupt):
        runner.run(fork, 1, instance_id="first")
    assert runner.run(fork, 2, instance_id="second") == [2, 2]
