"""Starting with an id that exists: every policy against every state it may meet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stepwell import (
    ConflictPolicy,
    InputMismatch,
    InstanceConflict,
    InstanceExists,
    InstanceHeld,
    InstancePaused,
    WorkflowCancelled,
    WorkflowFailed,
    signal,
    task,
    workflow,
)

FAIL, USE, TERMINATE, RESTART = ConflictPolicy


class World:
    """One workflow, first(x) then second(x) then a message; ``second`` fails while ``broken``."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = False

        @task
        def first(x: int) -> int:
            self.calls.append("first")
            return x

        @task
        def second(x: int) -> int:
            self.calls.append("second")
            if self.broken:
                raise OSError("broken")
            return x

        @task
        def last(x: int, y: int) -> int:
            return x + y

        @workflow("world")
        def world(x: int) -> int:
            return last(second(first(x)), signal("go", int))

        self.workflow = world

    def bring(self, runner: Any, state: str) -> None:
        """Make an instance ``i`` in a state."""
        self.broken = state == "failed"
        runner.start(self.workflow, 1, instance_id="i")
        self.broken = False
        if state == "completed":
            runner.client.signal("i", "go", 10)
            runner.recover([self.workflow])
        elif state in ("cancelled", "paused"):
            getattr(runner.client, state[:-2].removesuffix("l") if state == "cancelled" else "pause")("i")
        assert runner.client.status("i").state == state
        self.calls.clear()


STATES = ("waiting", "paused", "completed", "failed", "cancelled")

# what start() answers: a state, an exception, or "new": a fresh run that waits; and which tasks ran
TABLE: dict[tuple[ConflictPolicy, str], tuple[str | type[Exception], list[str]]] = {
    **{(FAIL, state): (InstanceExists, []) for state in STATES},
    **{(USE, state): (state, []) for state in STATES},
    **{(TERMINATE, state): ("new", ["first", "second"]) for state in STATES},
    **{(RESTART, state): (state, []) for state in ("waiting", "paused", "completed")},
    (RESTART, "failed"): ("waiting", ["second"]),
    (RESTART, "cancelled"): ("waiting", []),
}


@pytest.mark.parametrize(("policy", "state"), TABLE, ids=lambda v: str(v))
def test_policy_against_state(policy: ConflictPolicy, state: str, runner: Any) -> None:
    """Whether start() refuses, attaches, begins anew or continues, and what ran again."""
    world = World()
    world.bring(runner, state)
    expected, calls = TABLE[policy, state]
    if not isinstance(expected, str):
        with pytest.raises(expected):
            runner.start(world.workflow, 1, instance_id="i", on_conflict=policy)
        assert runner.client.status("i").state == state
    else:
        status = runner.start(world.workflow, 1, instance_id="i", on_conflict=policy)
        assert (status.state, status.run) == (("waiting", 2) if expected == "new" else (expected, 1))
        assert status.held_by == ""
    assert world.calls == calls


def test_run_raises_or_returns_the_recorded_end(runner: Any) -> None:
    """USE_EXISTING on an ended instance runs nothing."""
    world = World()
    for state, error in (("failed", WorkflowFailed), ("cancelled", WorkflowCancelled), ("paused", InstancePaused)):
        world.bring(runner, state)
        with pytest.raises(error):
            runner.run(world.workflow, 1, instance_id="i")
        runner.start(world.workflow, 1, instance_id="i", on_conflict="terminate_existing")
        runner.client.cancel("i")
        runner._room.backend.delete("i")
    world.bring(runner, "completed")
    assert runner.run(world.workflow, 1, instance_id="i") == 11
    assert world.calls == []


def test_a_restarted_run_ends_well(runner: Any) -> None:
    """The failed step runs again and the run completes with the results it had."""
    world = World()
    world.bring(runner, "failed")
    runner.start(world.workflow, 1, instance_id="i", on_conflict="restart_if_failed")
    runner.client.signal("i", "go", 10)
    assert runner.resume(world.workflow, "i") == 11
    assert world.calls == ["second"]


def test_another_input_is_told_unless_it_may_be_ignored(runner: Any) -> None:
    """Policies that attach compare inputs; the one that replaces does not."""
    world = World()
    world.bring(runner, "waiting")
    for policy in (USE, RESTART):
        with pytest.raises(InputMismatch, match="on_mismatch='ignore'"):
            runner.start(world.workflow, 2, instance_id="i", on_conflict=policy)
        ignored = runner.start(world.workflow, 2, instance_id="i", on_conflict=policy, on_mismatch="ignore")
        assert (ignored.state, ignored.run) == ("waiting", 1)
    assert runner.start(world.workflow, 2, instance_id="i", on_conflict=TERMINATE).run == 2


def test_equal_inputs_are_equal_however_they_are_written(runner: Any) -> None:
    """The comparison is of values: dicts in another order are the same."""

    @task
    def keep(x: dict[str, int]) -> int:
        return len(x)

    @workflow
    def keeping(x: dict[str, int]) -> int:
        return keep(x)

    assert runner.run(keeping, {"a": 1, "b": 2}, instance_id="i") == 2
    assert runner.run(keeping, {"b": 2, "a": 1}, instance_id="i") == 2
    with pytest.raises(InputMismatch):
        runner.run(keeping, {"a": 1}, instance_id="i")


def test_an_id_of_another_workflow_is_refused_under_every_policy(runner: Any) -> None:
    """And left untouched."""
    world = World()
    world.bring(runner, "waiting")

    @task
    def other_task(x: int) -> int:
        raise AssertionError("ran")

    @workflow
    def other(x: int) -> int:
        return other_task(x)

    for policy in (USE, TERMINATE, RESTART):
        with pytest.raises(InstanceConflict, match="'world'"):
            runner.start(other, 1, instance_id="i", on_conflict=policy)
    with pytest.raises(InstanceConflict, match="'world'"):
        runner.resume(other, "i")
    status = runner.client.status("i")
    assert (status.state, status.run, status.held_by) == ("waiting", 1, "")


def changed() -> Any:
    """The workflow ``world`` with one step more."""

    @task
    def first(x: int) -> int:
        raise AssertionError("ran")

    @workflow("world")
    def world(x: int) -> int:
        return first(first(x))

    return world


def test_a_changed_graph_that_does_not_fit_holds_the_instance(runner: Any) -> None:
    """resume says what differs, recover lists it as held, and the code that it fits takes it up again."""
    world = World()
    world.bring(runner, "waiting")
    with pytest.raises(InstanceHeld, match=r"changed.*is not in the new graph"):
        runner.resume(changed(), "i")
    (held,) = runner.recover([changed()])
    assert (held.state, held.held_by) == ("held", "")
    runner.client.signal("i", "go", 10)
    assert runner.resume(world.workflow, "i") == 11


def test_a_changed_graph_does_not_reopen_what_failed(runner: Any) -> None:
    """RESTART_IF_FAILED with other code refuses before it changes anything; the end can still be read."""
    world = World()
    world.bring(runner, "failed")
    with pytest.raises(InstanceConflict, match="cannot go on under the present graph"):
        runner.start(changed(), 1, instance_id="i", on_conflict=RESTART)
    assert runner.client.status("i").state == "failed"
    assert runner.start(changed(), 1, instance_id="i").state == "failed"


def test_a_replaced_run_that_is_being_worked_on_ends_as_cancelled(backend: Any, open_runner: Any) -> None:
    """Its holder cannot write any more; its caller hears of it; the new run is not disturbed."""
    entered, go, finished = threading.Event(), threading.Event(), list[int]()

    @task
    def stops(x: int) -> int:
        if x == 1:
            entered.set()
            assert go.wait(20)
        return x

    @task
    def ends(x: int) -> int:
        finished.append(x)
        return x

    @workflow
    def replaced(x: int) -> int:
        return ends(stops(x))

    first, second = open_runner(backend), open_runner(backend)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(first.run, replaced, 1, instance_id="i")
        assert entered.wait(20)
        assert second.run(replaced, 2, instance_id="i", on_conflict=TERMINATE) == 2
        go.set()
        with pytest.raises(WorkflowCancelled, match="another run has taken its place"):
            future.result(20)
    assert finished == [2]
    status = second.client.status("i")
    assert (status.state, status.run, status.held_by) == ("completed", 2, "")


def test_messages_of_a_replaced_run_are_not_the_new_ones(runner: Any) -> None:
    """Its inbox is emptied with it."""
    world = World()
    world.bring(runner, "waiting")
    runner.client.pause("i")
    runner.client.signal("i", "go", 99)
    assert runner.start(world.workflow, 1, instance_id="i", on_conflict=TERMINATE).state == "waiting"
    runner.client.signal("i", "go", 1)
    assert runner.resume(world.workflow, "i") == 2
