"""What a client reads of a run that was moved to a changed graph: each entry by the graph of its time."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    InstanceConflict,
    InstanceNotFound,
    WorkflowCancelled,
    branch,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.runtime import explaining as why

from .client_worlds import ID, World


@task
def plus(x: int) -> int:
    return x + 1


@task
def other(x: int) -> int:
    return 10 * x


def versions() -> tuple[Any, Any]:
    """Return a workflow and its later form: another branch, in front, gives every step another row; one is renamed."""

    @workflow
    def ordering(x: int) -> int:
        with parallel(), branch("b"):
            plus(x)
            got = signal("answer", int)
        return plus.named("last")(got)

    old = ordering

    @workflow
    def ordering(x: int) -> int:  # type: ignore[no-redef]
        with parallel():
            with branch("a"):
                other(x)
            with branch("b"):
                plus.named("raised", was="plus")(x)
                got = signal("answer", int)
        return plus.named("last")(got)

    return old, ordering


def test_the_past_is_read_by_the_graph_of_its_time(world: World) -> None:
    """Paths and attempts from before the move and after it; a result is found by the name that the step has now."""
    old, new = versions()
    world.runner.start(old, 1, instance_id=ID)
    before = [(e.kind, e.path) for e in world.client.history(ID)]
    assert world.client.move(ID, new).state == "running"
    world.client.signal(ID, "answer", 5)
    assert world.runner.resume(new, ID) == 6
    history = world.client.history(ID)
    assert [(e.kind, e.path) for e in history][: len(before)] == before
    (moved,) = [e for e in history if e.kind == "moved"]
    assert moved.detail == f"from graph {old.fingerprint[:8]}"
    assert [a.path for a in world.client.attempts(ID)] == ["parallel/b/plus", "parallel/a/other", "last"]
    paths = ("parallel/b/raised", "parallel/b/answer", "parallel/a/other", "last")
    assert [world.client.task_result(ID, path) for path in paths] == [2, 5, 10, 6]


def test_a_moved_run_is_explained_and_controlled_by_its_new_graph(world: World) -> None:
    """A client without code finds it by what is stored."""
    old, new = versions()
    world.runner.start(old, 1, instance_id=ID)
    assert world.client.move(ID, new).state == "running"
    assert {type(reason) for reason in world.client.explain(ID).reasons} == {why.NoWorker, why.Ready, why.AwaitsSignal}
    world.client.pause(ID, by="ann")
    world.client.resume(ID)
    world.client.cancel(ID)
    world.client.retry(ID)
    world.client.signal(ID, "answer", 5)
    assert world.runner.resume(new, ID) == 6


def test_a_change_is_previewed_and_not_made(world: World) -> None:
    """Which instances would move, and what keeps the others; nothing is written."""
    old, new = versions()
    world.runner.start(old, 1, instance_id=ID)
    before = world.client.status(ID)
    (fits,) = world.client.preview_change(new)
    assert (fits.instance_id, fits.moves, fits.obstacle) == (ID, True, "")

    @workflow
    def ordering(x: int) -> int:
        return other(signal("answer", int))

    (keeps,) = world.client.preview_change(ordering)
    assert not keeps.moves
    assert keeps.obstacle
    with pytest.raises(InstanceConflict):
        world.client.move(ID, ordering)
    assert world.client.preview_change(old) == []
    assert world.client.status(ID) == before


def test_a_moved_instance_may_be_taken_back(world: World) -> None:
    """As long as nothing is open that the old graph does not have."""

    @workflow
    def waiting(x: int) -> int:
        plus(x)
        return signal("answer", int)

    old = waiting

    @workflow
    def waiting(x: int) -> int:  # type: ignore[no-redef]
        plus(x)
        return other(signal("answer", int))

    world.runner.start(old, 1, instance_id=ID)
    world.client.move(ID, waiting)
    world.client.move(ID, old)
    assert [event.kind for event in world.client.history(ID)].count("moved") == 2
    assert world.client.task_result(ID, "plus") == 2
    world.client.signal(ID, "answer", 5)
    assert world.runner.resume(old, ID) == 5


def test_only_what_can_go_on_is_moved(world: World) -> None:
    """Not what has completed, what is unknown, or what a session works on."""
    with pytest.raises(InstanceNotFound):
        world.client.move(ID, world.flows.quick)
    world.bring("completed")
    with pytest.raises(InstanceConflict):
        world.client.move(ID, world.flows.asking)
    world.client.delete(ID)
    with world.working() as future:

        @workflow
        def blocking(x: int) -> int:
            return other(x)

        with pytest.raises(AlreadyRunning):
            world.client.move(ID, blocking)
        world.client.cancel(ID)
        world.flows.go.set()
        with pytest.raises(WorkflowCancelled):
            future.result(20)
