"""Ending a hold: by doing it again, by a value, by a failure; of steps, loops, routes and of the run itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from stepwell import (
    Again,
    Done,
    InstanceEnded,
    OptionError,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
    branch,
    loop,
    parallel,
    route,
    signal,
    task,
    workflow,
)
from stepwell.backend.base import Message
from stepwell.runtime.client import WorkflowClient
from stepwell.runtime.explaining import Held, Ready
from stepwell.types import Complete, Decision, Fail, Rerun

from .client_worlds import ID, World, hold


@task
def plus(x: int) -> int:
    return x + 1


@task
def counts(x: int) -> Again[int] | Done[int]:
    return Again(x + 1) if x < 3 else Done(x)


@workflow
def looping(x: int) -> int:
    return plus(loop(counts, x, max_iterations=9))


@workflow
def routing(kind: str) -> int:
    cases: Mapping[Any, Any] = {"one": lambda: plus(1), "two": lambda: plus(2)}
    return route(kind, cases, name="which")


@workflow
def line(x: int) -> int:
    return plus(plus(x))


def answered(world: World) -> object:
    world.client.signal(ID, "answer", 1)
    return world.runner.resume(world.flows.charging, ID)


def test_rerun_does_the_step_again(world: World) -> None:
    """As its next attempt, though it was to run at most once: a person has looked."""
    world.bring("held at a step")
    world.flows.broken = False
    world.client.decide(ID, "charge", Rerun(), by="ann")
    assert (world.state, answered(world)) == ("running", 2)
    assert [(a.number, a.outcome) for a in world.client.attempts(ID, "charge")] == [
        (1, "interrupted"),
        (2, "succeeded"),
    ]


def test_complete_gives_the_step_its_result(world: World) -> None:
    """The body does not run again; consumers read the value."""
    world.bring("held at a step")
    world.client.decide(ID, "charge", Complete(41), by="ann")
    assert answered(world) == 41
    assert world.client.task_result(ID, "charge", type=int) == 41
    assert [a.outcome for a in world.client.attempts(ID, "charge")] == ["interrupted", "decided"]


def test_fail_fails_the_step_for_the_reason(world: World) -> None:
    """It reads as a failure of that step, and can be retried like any other."""
    world.bring("held at a step")
    world.client.decide(ID, "charge", Fail("the bank knows of nothing"), by="ann")
    with pytest.raises(WorkflowFailed, match=r"step charge failed: .*the bank knows of nothing") as caught:
        world.client.result(ID)
    assert caught.value.path == "charge"
    assert str(world.client.attempts(ID, "charge")[-1].error) == "Fail: the bank knows of nothing"
    world.flows.broken = False
    world.client.retry(ID)
    assert answered(world) == 2


@pytest.mark.parametrize("decision", [Rerun(), Complete(1), Fail("no")], ids=["rerun", "complete", "fail"])
def test_who_decided_what_is_in_the_history(world: World, decision: Decision) -> None:
    """With the step it was about."""
    world.bring("held at a step")
    world.client.decide(ID, "charge", decision, by="ann")
    (event,) = [event for event in world.client.history(ID) if event.kind == "decided"]
    assert (event.path, event.detail) == ("charge", f"{type(decision).__name__.lower()} by ann")


def test_the_path_must_be_the_held_one(world: World) -> None:
    """Else the error names it, and nothing is decided."""
    world.bring("held at a step")
    for path in ("", "answer", "nowhere"):
        with pytest.raises(UsageError, match="must be about 'charge'"):
            world.client.decide(ID, path, Rerun())
    assert world.state == "held"


def test_what_is_not_held_cannot_be_decided(world: World) -> None:
    """The error says what does move it."""
    world.bring("paused")
    with pytest.raises(UsageError, match=r"not held.*client\.resume"):
        world.client.decide(ID, "", Rerun())
    world.client.cancel(ID)
    with pytest.raises(InstanceEnded, match=r"client\.retry"):
        world.client.decide(ID, "", Rerun())


def test_what_is_no_decision_is_refused(world: World) -> None:
    """A mere value is not one, nor is a value that cannot be stored."""
    world.bring("held at a step")
    with pytest.raises(OptionError, match="not a int"):
        world.client.decide(ID, "charge", 5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="reason must be a str"):
        world.client.decide(ID, "charge", Fail(5))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="cannot be stored"):
        world.client.decide(ID, "charge", Complete(object()))
    assert world.state == "held"


def test_a_value_is_checked_where_its_type_is_known(world: World) -> None:
    """By the workflow that is given, or by a runner's own client; else it is taken on trust."""
    world.bring("held at a step")
    with pytest.raises(UsageError, match="charge returns int"):
        world.client.decide(ID, "charge", Complete("forty"), workflow=world.flows.charging)
    with pytest.raises(UsageError, match="charge returns int"):
        WorkflowClient.over(world.runner._room).decide(ID, "charge", Complete("forty"))
    with pytest.raises(UsageError, match="neither Again nor Done"):
        world.client.decide(ID, "charge", Complete(Done(1)), workflow=world.flows.charging)
    with pytest.raises(UsageError, match="belongs to workflow 'charging', not 'quick'"):
        world.client.decide(ID, "charge", Complete(1), workflow=world.flows.quick)
    world.client.decide(ID, "charge", Complete("forty"))
    assert world.client.task_result(ID, "charge") == "forty"


def test_a_hold_about_the_run_goes_on_or_fails(world: World) -> None:
    """No value completes it."""
    world.bring("held itself")
    with pytest.raises(UsageError, match="about the run itself"):
        world.client.decide(ID, "", Complete(1))
    world.client.decide(ID, "", Rerun())
    assert world.state == "waiting"
    hold(world, "")
    world.client.decide(ID, "", Fail("give it up"))
    with pytest.raises(WorkflowFailed, match="give it up"):
        world.client.result(ID)


def test_in_a_loop_a_value_says_whether_it_goes_on(world: World) -> None:
    """The turn is named by its number."""
    world.client.start(looping, 1, instance_id=ID)
    hold(world, "counts[1]/counts")
    with pytest.raises(UsageError, match="Again"):
        world.client.decide(ID, "counts[1]/counts", Complete(7))
    with pytest.raises(UsageError, match="returns int"):
        world.client.decide(ID, "counts[1]/counts", Complete(Done("x")), workflow=looping)
    world.client.decide(ID, "counts[1]/counts", Complete(Again(7)))
    hold(world, "counts[2]/counts")
    world.client.decide(ID, "counts[2]/counts", Complete(Done(9)), workflow=looping)
    assert world.runner.resume(looping, ID) == 10


def test_a_route_takes_a_case(world: World) -> None:
    """By its name, or by its key where the code is known; an unknown one is refused with the known."""
    world.client.start(routing, "one", instance_id=ID)
    hold(world, "which")
    for workflow_ in (None, routing):
        with pytest.raises(UsageError, match="one of"):
            world.client.decide(ID, "which", Complete("three"), workflow=workflow_)
    world.client.decide(ID, "which", Complete("two"), workflow=routing)
    assert world.runner.resume(routing, ID) == 3


def test_a_finished_step_takes_no_other_result(world: World) -> None:
    """A hold may name a step that is done, after its code has changed; its result stands."""
    world.begin("asking")
    hold(world, "plus", "changed")
    for decision in (Complete(1), Fail("no")):
        with pytest.raises(UsageError, match="takes Rerun"):
            world.client.decide(ID, "plus", decision)
    assert (world.state, world.client.task_result(ID, "plus")) == ("held", 2)


def test_a_hold_keeps_signals(world: World) -> None:
    """One that came meanwhile is taken when the hold ends."""
    world.bring("at a signal")
    hold(world, "")
    world.client.signal(ID, "answer", 5)
    world.client.decide(ID, "", Rerun())
    assert world.runner.resume(world.flows.asking, ID) == 6


def test_a_held_run_can_be_paused_by_nobody_but_cancelled_by_all(world: World) -> None:
    """Cancel is a way out of every hold."""
    world.bring("held at a step")
    with pytest.raises(UsageError, match=r"client\.decide"):
        world.client.pause(ID)
    world.client.cancel(ID, by="ann")
    with pytest.raises(WorkflowCancelled, match="by ann"):
        world.client.result(ID)


def test_two_who_decide_at_once_decide_once(world: World) -> None:
    """The second finds the hold gone, and is told."""
    world.bring("held at a step")
    backend: Any = world.client._room.backend
    commit = backend.commit

    def overtaken(session: Any, changes: Any) -> Any:
        backend.commit = commit
        world.client.decide(ID, "charge", Complete(7))
        return commit(session, changes)

    backend.commit = overtaken
    with pytest.raises(UsageError, match="not held"):
        world.client.decide(ID, "charge", Complete(8))
    assert world.client.task_result(ID, "charge") == 7


def test_a_decision_reaches_a_session_that_still_works(world: World) -> None:
    """The run is held while one of its bodies runs on; the holder takes the decision in and goes on."""
    entered, go, held = threading.Event(), threading.Event(), threading.Event()

    @task(timeout="1h")
    def blocks(x: int) -> int:
        entered.set()
        assert go.wait(20)
        return x + 1

    @workflow
    def working(x: int) -> int:
        return plus(blocks(x))

    commit = world.backend.commit

    def committed(session: Any, changes: Any) -> Any:
        outcomes = commit(session, changes)
        if any(isinstance(reason, Held) for reason in world.client.explain(ID).reasons):
            held.set()
        return outcomes

    ends: list[object] = []
    caller = threading.Thread(target=lambda: ends.append(world.runner.run(working, 1, instance_id=ID)))
    caller.start()
    try:
        assert entered.wait(20)
        world.backend.commit = committed
        header = world.backend.header(ID)
        world.backend.post(header.instance, Message("of a later version", "", None, 0))
        assert held.wait(20)
        assert world.client.status(ID).held_by
        world.client.decide(ID, "", Rerun(), by="ann")
    finally:
        go.set()
        caller.join()
    assert ends == [3]


def test_what_a_hold_kept_back_starts_when_it_ends(world: World) -> None:
    """A step that became ready during the hold, while another body of the same session runs on."""
    gates = {name: (threading.Event(), threading.Event()) for name in ("first", "second")}
    held, recorded, followed = threading.Event(), threading.Event(), threading.Event()

    @task(timeout="1h")
    def blocks(name: str) -> str:
        entered, go = gates[name]
        entered.set()
        assert go.wait(20)
        return name

    @task
    def follows(name: str) -> str:
        followed.set()
        return name

    @workflow
    def working(x: int) -> tuple[str, str]:
        with parallel():
            with branch("a"):
                a = blocks("first")
            with branch("b"):
                b = follows(blocks("second"))
        return a, b

    commit = world.backend.commit

    def committed(session: Any, changes: Any) -> Any:
        outcomes = commit(session, changes)
        reasons = world.client.explain(ID).reasons
        if any(isinstance(reason, Held) for reason in reasons):
            held.set()
        if any(isinstance(reason, Ready) and reason.path.endswith("follows") for reason in reasons):
            recorded.set()
        return outcomes

    ends: list[object] = []
    caller = threading.Thread(target=lambda: ends.append(world.runner.run(working, 1, instance_id=ID)))
    caller.start()
    try:
        assert all(entered.wait(20) for entered, _ in gates.values())
        world.backend.commit = committed
        world.backend.post(world.backend.header(ID).instance, Message("of a later version", "", None, 0))
        assert held.wait(20)
        gates["second"][1].set()
        assert recorded.wait(20)
        world.client.decide(ID, "", Rerun())
        assert followed.wait(20)
    finally:
        for _, go in gates.values():
            go.set()
        caller.join()
    assert ends == [("first", "second")]


def test_an_awaited_signal_may_be_decided_like_a_step(world: World) -> None:
    """A hold that names a waiting signal takes Rerun, which lets it wait on."""

    @workflow
    def waiting() -> int:
        return signal("answer", int)

    world.runner.start(waiting, instance_id=ID)
    hold(world, "answer")
    world.client.decide(ID, "answer", Rerun())
    world.client.signal(ID, "answer", 3)
    assert world.runner.resume(waiting, ID) == 3
