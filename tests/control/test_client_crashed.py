"""What a client says of a step in which processes died, and how a quarantine is ended."""

from __future__ import annotations

import pytest

import stepwell.reasons as why
from stepwell import (
    BackendUnavailable,
    CheckpointingRunner,
    InMemoryBackend,
    InstanceHeld,
    UsageError,
    WorkflowClient,
    WorkflowFailed,
    task,
    workflow,
)
from stepwell.backend.base import Want
from stepwell.backend.liveness import this_process
from stepwell.engine import events as e
from stepwell.engine.frontier import Frontier
from stepwell.runtime.live import Live, frontier_of
from stepwell.runtime.outside import left_at_rest
from stepwell.testing.conformance.examiner import dead_holder
from stepwell.testing.faults import Fault, FaultyBackend
from stepwell.types import Complete, Decision, Fail, Rerun

from .client_worlds import ID, World

LIMIT = 3


def told(world: World, *events: e.Event) -> Frontier:
    """Write what a runner would, and leave the instance."""
    loaded, plan = world.backend.load(ID), world.flows.quick.plan
    state, now = frontier_of(plan, loaded), world.clock.now_us()
    rows = Live.rows(plan, state, events, now)
    assert world.backend.commit(None, [left_at_rest(loaded, state, rows, now)]) == ["done"]
    return state


def die(world: World, times: int) -> None:
    """Let so many processes die in the first step of ``quick``, a second after each began."""
    world.client.start(world.flows.quick, 1, instance_id=ID)
    for _ in range(times):
        node, turns = world.flows.quick.plan.find("plus") or (0, ())
        loaded = world.backend.load(ID)
        attempt = frontier_of(world.flows.quick.plan, loaded).steps[(node, turns)].attempt
        told(world, e.Begun(node, turns, attempt))
        world.clock.advance("1s")
        told(world, e.CutOff(node, turns, attempt, LIMIT))


def lose(world: World) -> None:
    """Let a process take the instance up and die, and another one notice."""
    world.backend.claim(world.backend.open_session(dead_holder(), 30_000_000), ID)
    passing = world.backend.open_session(this_process(), 30_000_000)
    world.backend.claim_due(passing, Want([], 0, 0))
    world.backend.end_session(passing)


def test_a_quarantine_says_which_step_how_often_and_what_to_do(world: World) -> None:
    """In the status, in the explanation, and as an error."""
    die(world, LIMIT)
    text = (
        "it is held (quarantined) at plus: 3 processes in a row died in it; find out what ends its processes and say "
        "Rerun(), or say Complete(value) or Fail(reason), by client.decide(id, 'plus', …)"
    )
    (reason,) = world.client.explain(ID).reasons
    assert isinstance(reason, why.Held)
    assert (reason.reason, reason.path, reason.crashes) == ("quarantined", "plus", LIMIT)
    assert reason.detail == "3 processes in a row died in it"
    assert reason.text.startswith(text)
    status = world.client.status(ID)
    assert status.state == "held"
    assert status.detail.startswith(text)
    with pytest.raises(InstanceHeld, match="3 processes in a row died in it") as caught:
        world.runner.resume(world.flows.quick, ID)
    assert caught.value.reason == "quarantined"
    with pytest.raises(UsageError, match="3 processes in a row died in it; the decision must be about 'plus'"):
        world.client.decide(ID, "answer", Rerun())


@pytest.mark.parametrize("decision", [Rerun(), Complete(2), Fail("no")], ids=["rerun", "complete", "fail"])
def test_a_decision_ends_a_quarantine(world: World, decision: Decision) -> None:
    """By another try, by a value or by an error."""
    die(world, LIMIT)
    world.client.decide(ID, "plus", decision, by="ann")
    if isinstance(decision, Fail):
        with pytest.raises(WorkflowFailed, match="step plus failed"):
            world.client.result(ID)
    else:
        assert world.runner.resume(world.flows.quick, ID) == 3


def test_attempts_in_which_the_process_died_are_listed_as_such(world: World) -> None:
    """With the moments of start and loss, and no error: nobody was left to write one."""
    die(world, LIMIT)
    world.client.decide(ID, "plus", Rerun())
    world.runner.resume(world.flows.quick, ID)
    found = world.client.attempts(ID, "plus")
    assert [(a.number, a.outcome) for a in found] == [(n, "crashed") for n in (1, 2, 3)] + [(4, "succeeded")]
    for attempt in found[:LIMIT]:
        assert (attempt.error, attempt.took, attempt.retry_due) == (None, None, None)
        assert attempt.began is not None
        assert (attempt.ended - attempt.began).total_seconds() == 1


def test_the_history_counts_the_dead(world: World) -> None:
    """Each start and each crash, by its attempt."""
    die(world, LIMIT)
    last = [
        (event.kind, event.attempt, event.detail) for event in world.client.history(ID) if event.path and event.seq > 1
    ]
    assert last == [
        ("begun", 1, ""),
        ("crashed", 1, "its process died; 1 in a row"),
        ("begun", 2, ""),
        ("crashed", 2, "its process died; 2 in a row"),
        ("begun", 3, ""),
        ("held", 3, "quarantined: plus"),
    ]
    assert "plus  crashed (1): its process died" in str([*map(str, world.client.history(ID))])


def test_a_step_that_may_try_again_says_what_it_has_cost(world: World) -> None:
    """While nobody works on it, tried or not; and once the process that tried it is gone as well."""
    die(world, 2)
    assert world.client.explain(ID).reasons == (why.NoWorker("quick"), why.Ready("plus", 3, 2))
    assert "ready to start; 2 processes in a row died in it before" in world.client.explain(ID).text
    node, turns = world.flows.quick.plan.find("plus") or (0, ())
    told(world, e.Begun(node, turns, 3))
    assert world.client.explain(ID).reasons == (why.NoWorker("quick"), why.Ready("plus", 3, 2))
    lose(world)
    assert world.client.explain(ID).reasons == (why.NoWorker("quick"), why.Crashed("plus", 3, 2))
    assert "the process that ran attempt 3 is gone; 2 processes in a row died" in world.client.explain(ID).text


def test_a_step_in_a_live_process_says_what_it_has_cost(world: World) -> None:
    """It names the process that tries it now."""
    die(world, 1)
    session = world.backend.open_session(this_process(), 30_000_000)
    world.backend.claim(session, ID)
    (reason,) = world.client.explain(ID).reasons
    assert isinstance(reason, why.Running)
    assert (reason.attempt, reason.crashes) == (2, 1)
    assert "a process died in it before" in reason.text
    world.backend.end_session(session)


def test_a_step_that_has_recovered_owes_nothing(world: World) -> None:
    """What comes after it is as fresh as ever, and the run completes."""
    die(world, 2)
    assert world.runner.resume(world.flows.quick, ID) == 3
    assert world.client.explain(ID).reasons == ()


def test_what_was_begun_and_cut_off_is_not_said_to_be_pending() -> None:
    """A holder that dies before it has left the instance leaves the row as it was created."""

    @task
    def count(n: int) -> int:
        return n + 1

    @workflow
    def twice(n: int) -> int:
        return count(count(n))

    def strike() -> None:
        raise BackendUnavailable("the test says so")

    store = InMemoryBackend()
    client = WorkflowClient(store)
    client.start(twice, 1, instance_id=ID)
    assert client.explain(ID).state == "pending"
    faults = [Fault("before", "commit", number) for number in range(2, 10)]
    with pytest.raises(BackendUnavailable), CheckpointingRunner(FaultyBackend(store, faults, strike)) as runner:
        runner.recover([twice])
    assert [each.path for each in client.attempts(ID)] == ["count"]
    assert client.explain(ID).state == "running"
