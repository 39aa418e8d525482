"""What the random histories and the races have found, each as small as it gets."""

from __future__ import annotations

import pytest

from stepwell import InstanceNotFound, delay, task, workflow
from stepwell.runtime import drive
from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock

from .client_worlds import ID, World
from .races import Interrupted


@task(run_in="inline")
def same(x: int) -> int:
    return x


@task(run_in="inline")
def str_of(x: int) -> str:
    return str(x)


@workflow
def napping(x: int) -> int:
    kept = same(x)
    delay("8h")
    return kept


def test_what_was_updated_last_is_shown_however_commits_fall(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rest that is written behind its entries, as others were still at work, shows the time of the last entry."""
    monkeypatch.setattr(drive, "TURN_NS", -1)  # each step is a commit
    for each in ("a", "b"):
        world.client.start(napping, 1, instance_id=each)
    world.clock.advance("1h")
    world.runner.recover([napping])
    for each in ("a", "b"):
        assert world.client.status(each).updated == world.client.history(each)[-1].at


def test_a_message_to_what_is_deleted_meanwhile(world: World) -> None:
    """Sending an accepted message again is no error as long as there is the instance; then it is not found."""
    world.begin("asking")
    world.client.signal(ID, "answer", 1, signal_id="s")
    world.client.cancel(ID)
    store = Interrupted(world.backend)
    store.at, store.then = 2, lambda: world.client.delete(ID)
    with WorkflowClient(store, clock=VirtualClock()) as client, pytest.raises(InstanceNotFound):
        client.signal(ID, "answer", 1, signal_id="s")


@pytest.mark.parametrize("by", ["runner", "client"])
def test_a_cancel_that_came_too_late_does_not_end_what_is_restarted(world: World, by: str) -> None:
    """Reopened by a policy or by a retry: what the failed run has left unread is past, but for signals."""

    @task(run_in="inline")
    def fails_first(x: int) -> int:
        if world.flows.broken:
            world.client.cancel(ID)
            raise OSError("the wire")
        return x

    @workflow
    def failing(x: int) -> int:
        return fails_first(x)

    world.runner.start(failing, 1, instance_id=ID)
    assert (world.state, world.client.status(ID).pending) == ("failed", ("cancel",))
    world.flows.broken = False
    starter = world.runner if by == "runner" else world.client
    starter.start(failing, 1, instance_id=ID, on_conflict="restart_if_failed")
    world.runner.recover([failing])
    assert world.state == "completed"


def test_a_hold_that_is_lifted_goes_on_in_the_same_recover(world: World) -> None:
    """Once the code that a changed graph waited for is back, one call takes the instance up and goes on with it."""

    @workflow
    def changing(x: int) -> int:
        return same(x)

    before = changing

    @workflow("changing")
    def after(x: int) -> str:
        return str_of(x)

    world.runner._room.prepare(before)
    world.client.start(before, 1, instance_id=ID)
    world.runner.recover([after])
    assert world.state == "held"
    world.runner.recover([before])
    assert world.state == "completed"
