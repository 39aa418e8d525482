"""Ended instances go when a runner is told how long they are kept; what has not ended never does."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from stepwell import CheckpointingRunner, InMemoryBackend, signal, task, workflow
from stepwell.errors import BackendUnavailable, Closed, OptionError
from stepwell.runtime.upkeep import BATCH, Purger, Retention
from stepwell.testing import VirtualClock


def never() -> bool:
    return False


@task
def plain(x: int) -> int:
    return x


@workflow
def asking(x: int) -> int:
    signal("answer", int)
    return plain(x)


def left(runner: Any) -> set[str]:
    return {status.instance_id for status in runner.client.list()}


def test_what_is_older_goes_and_what_has_not_ended_stays(backend: Any, runner: Any, clock: VirtualClock) -> None:
    """By the time of the end, not of the start."""
    runner.start(asking, 1, instance_id="open")
    for name in ("old", "young"):
        runner.run(plain, 1, instance_id=name)
        clock.advance("1d")
    Purger(backend, clock, Retention(age="36h")).beat(9, never)
    assert left(runner) == {"open", "young"}


def test_what_is_beyond_the_number_goes(backend: Any, runner: Any, clock: VirtualClock) -> None:
    """The last to end are kept, in as many transactions as it takes."""
    runner.run_many(plain, list(range(2 * BATCH + 5)), instance_ids=[f"n{i}" for i in range(2 * BATCH + 5)])
    clock.advance("1s")
    for name in ("x", "y"):
        runner.run(plain, 1, instance_id=name)
    Purger(backend, clock, Retention(keep=2)).beat(9, never)
    assert left(runner) == {"x", "y"}


def test_a_purge_leaves_the_rest_to_the_next_beat(backend: Any, runner: Any, clock: VirtualClock) -> None:
    """When its time is over or it is told to stop; then it does not wait for the minute to pass."""
    runner.run_many(plain, list(range(3 * BATCH)))
    purger = Purger(backend, clock, Retention(keep=0))
    purger.beat(9, lambda: True)
    assert runner.client.count() == 2 * BATCH
    purger.beat(-1, never)
    assert runner.client.count() == BATCH


def test_there_is_a_minute_between_two_purges(backend: Any, runner: Any, clock: VirtualClock) -> None:
    """A beat in between does nothing; a clock that was set back does not put it off."""
    purger = Purger(backend, clock, Retention(keep=0))
    for span, there in (("0s", 0), ("59s", 1), ("1s", 0)):
        runner.run(plain, 1)
        clock.advance(span)
        purger.beat(9, never)
        assert runner.client.count() == there
    clock._now_us -= 10**9
    runner.run(plain, 1)
    purger.beat(9, never)
    assert runner.client.count() == 0


def test_an_error_is_logged_once_and_tried_again(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Until it has gone well; then the next one is news again. A closed store is no error."""
    backend, fails = InMemoryBackend(), list[type[Exception]]()

    def purge(*args: Any) -> int:
        if fails:
            raise fails[0]("no disk")
        return 0

    backend.purge = purge  # type: ignore[method-assign]
    purger = Purger(backend, clock, Retention(keep=0))
    for kind, told in ((BackendUnavailable, 1), (BackendUnavailable, 1), (None, 1), (OSError, 2), (Closed, 2)):
        fails[:] = [kind] if kind is not None else []
        purger.beat(9, never)
        clock.advance("1m")
        assert len(caplog.records) == told
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_runner_purges_beside_its_lease() -> None:
    """In the thread that renews it, while the caller's runs a body; the work is not affected."""
    purged = threading.Event()

    @task
    def busy(x: int) -> int:
        assert purged.wait(20)
        return x

    backend = InMemoryBackend()
    seen: list[tuple[Any, ...]] = []

    def purge(*args: Any) -> int:
        seen.append((*args, threading.current_thread().name))
        purged.set()
        return 0

    backend.purge = purge  # type: ignore[method-assign]
    with CheckpointingRunner(backend, lease="1s", retention=Retention(keep=7)) as runner:
        assert runner.run(busy, 3) == 3
    assert seen[0] == (None, 7, BATCH, "stepwell-lease")


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "age=, or keep="), ({"age": "soon"}, "age"), ({"keep": -1}, "keep"), ({"keep": True}, "keep")],
)
def test_a_wrong_retention_is_refused(given: dict[str, Any], said: str) -> None:
    """Where it is made, with what is wrong."""
    with pytest.raises(OptionError, match=said):
        Retention(**given)


def test_a_runner_refuses_what_is_no_retention() -> None:
    """With how to write one."""
    with pytest.raises(OptionError, match="Retention"):
        CheckpointingRunner(InMemoryBackend(), retention="30d")  # type: ignore[arg-type]
