"""Every request to an instance in every state, as one table: what it leads to, or how it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

import stepwell
from stepwell import (
    InstanceHeld,
    InstanceNotFound,
    InstancePaused,
    Permanent,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
    signal,
    task,
    workflow,
)
from stepwell.runtime.client import WorkflowClient
from stepwell.types import Fail, Rerun

from .client_worlds import ID, STATES, World

REQUESTS: Final[dict[str, Callable[[WorkflowClient], object]]] = {
    "cancel": lambda client: client.cancel(ID, reason="why", by="ann"),
    "pause": lambda client: client.pause(ID, reason="why", by="ann"),
    "resume": lambda client: client.resume(ID, by="ann"),
    "retry": lambda client: client.retry(ID, by="ann"),
    "signal": lambda client: client.signal(ID, "answer", 5),
    "rerun": lambda client: client.decide(ID, "charge", Rerun(), by="ann"),
    "fail": lambda client: client.decide(ID, "", Fail("why"), by="ann"),
}

USAGE, ENDED = "UsageError", "InstanceEnded"

#: the state that an instance is left in, or the error that refuses the request and leaves it as it was
TABLE: Final[dict[str, tuple[str, str, str, str, str, str, str]]] = {
    # state:           cancel       pause     resume     retry    signal     rerun      fail
    "pending":        ("cancelled", "paused", "pending", USAGE, "running", USAGE, USAGE),
    "in a delay":     ("cancelled", "paused", "waiting", USAGE, USAGE, USAGE, USAGE),
    "at a signal":    ("cancelled", "paused", "waiting", USAGE, "running", USAGE, USAGE),
    "in a backoff":   ("cancelled", "paused", "waiting", USAGE, USAGE, USAGE, USAGE),
    "in a fork":      ("cancelled", "paused", "waiting", USAGE, "waiting", USAGE, USAGE),
    "in a loop":      ("cancelled", "paused", "waiting", USAGE, "running", USAGE, USAGE),
    "paused":         ("cancelled", "paused", "waiting", USAGE, "paused", USAGE, USAGE),
    "held at a step": ("cancelled", USAGE, USAGE, USAGE, "held", "running", USAGE),
    "held itself":    ("cancelled", USAGE, USAGE, USAGE, "held", USAGE, "failed"),
    "completed":      (ENDED, ENDED, ENDED, ENDED, ENDED, ENDED, ENDED),
    "failed":         (ENDED, ENDED, ENDED, "running", ENDED, ENDED, ENDED),
    "cancelled":      (ENDED, ENDED, ENDED, "waiting", ENDED, ENDED, ENDED),
}  # fmt: skip

#: of an instance whose body another session runs: what is pending then, and how it stands when the body has ended
WORKING: Final[dict[str, tuple[str, str]]] = {
    "cancel": ("cancel", "cancelled"),
    "pause": ("pause", "paused"),
    "resume": ("resume", "completed"),
    "signal": ("signal answer", "completed"),
}

CELLS: Final = [(state, request) for state in STATES for request in REQUESTS]


@pytest.mark.parametrize(("state", "request_"), CELLS, ids=[f"{s}, {r}" for s, r in CELLS])
def test_a_request_leads_where_the_table_says(world: World, state: str, request_: str) -> None:
    """Nobody holds the instance, so what was asked is done when the call returns; a refusal changes nothing."""
    world.bring(state)
    before, expected = world.client.status(ID), TABLE[state][list(REQUESTS).index(request_)]
    if hasattr(stepwell, expected):
        with pytest.raises(getattr(stepwell, expected)):
            REQUESTS[request_](world.client)
        assert world.client.status(ID) == before
    else:
        REQUESTS[request_](world.client)
        assert world.state == expected
    assert world.client.stuck() == []


@pytest.mark.parametrize("request_", WORKING)
def test_a_request_to_a_working_session_is_pending_until_its_turn(world: World, request_: str) -> None:
    """It shows as pending while the body runs; when that has ended it is obeyed."""
    pending, end = WORKING[request_]
    with world.working() as future:
        REQUESTS[request_](world.client)
        status = world.client.status(ID)
        assert (status.state, status.pending) == ("running", (pending,))
        assert status.held_by
        assert world.client.explain(ID).pending == (pending,)
        if request_ == "resume":
            world.client.signal(ID, "answer", 5)
        world.flows.go.set()
        if end == "completed":
            assert future.result(20) == 3
        else:
            with pytest.raises((WorkflowCancelled, InstancePaused), match="by ann: why"):
                future.result(20)
    assert (world.state, world.client.status(ID).pending) == (end, ())


FLOWS: Final = ("napping", "asking", "retrying", "forking", "looping")


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    ("request_", "error", "state"), [("cancel", WorkflowCancelled, "cancelled"), ("pause", InstancePaused, "paused")]
)
def test_a_session_that_waits_wakes_for_a_request(
    world: World, flow: str, request_: str, error: type[Exception], state: str
) -> None:
    """For a delay, a signal or a backoff, in a fork or a loop."""
    with world.waiting(flow) as future:
        assert world.client.status(ID).held_by
        REQUESTS[request_](world.client)
        with pytest.raises(error, match="by ann: why"):
            future.result(20)
        assert (world.state, world.client.status(ID).held_by) == (state, "")


@pytest.mark.parametrize("flow", FLOWS)
def test_a_session_that_waits_is_not_retried_and_has_nothing_to_resume(world: World, flow: str) -> None:
    """It waits on."""
    with world.waiting(flow) as future:
        seq = world.client.status(ID).seq
        world.client.resume(ID)
        with pytest.raises(UsageError, match=r"client\.explain"):
            world.client.retry(ID)
        assert (world.state, world.client.status(ID).seq, future.done()) == ("waiting", seq, False)


@pytest.mark.parametrize("request_", ["retry", "rerun", "fail"])
def test_what_is_going_on_is_neither_retried_nor_decided(world: World, request_: str) -> None:
    """The holder is not even asked."""
    with world.working() as future:
        with pytest.raises(UsageError):
            REQUESTS[request_](world.client)
        assert world.client.status(ID).pending == ()
        world.client.cancel(ID)
        world.flows.go.set()
        with pytest.raises(WorkflowCancelled):
            future.result(20)


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_unknown_instance_is_an_error(world: World, request_: str) -> None:
    """Whatever is asked of it."""
    with pytest.raises(InstanceNotFound):
        REQUESTS[request_](world.client)


# --- who and why -------------------------------------------------------------------------------------


def asked(world: World, kind: str) -> str:
    """Return the detail of the one event of this kind."""
    (event,) = [event for event in world.client.history(ID) if event.kind == kind]
    return event.detail


def test_reason_and_actor_of_every_request_are_kept(world: World) -> None:
    """In the history, and in the detail of the state that it led to."""
    world.bring("at a signal")
    world.client.pause(ID, reason="stock-taking", by="ann")
    assert "by ann: stock-taking" in world.client.status(ID).detail
    world.client.resume(ID, by="bob")
    world.client.cancel(ID, reason="too late", by="cem")
    assert "by cem: too late" in world.client.status(ID).detail
    world.client.retry(ID, by="dan")
    assert [asked(world, kind) for kind in ("paused", "resumed", "cancel asked", "retried")] == [
        "by ann: stock-taking",
        "by bob",
        "by cem: too late",
        "by dan",
    ]


def test_words_are_stored_whatever_they_hold(world: World) -> None:
    """No text of a person can harm the store; too long a one is refused."""
    world.bring("at a signal")
    world.client.pause(ID, reason="\ud800 \0 \N{SNOWMAN}", by="'; drop table instance --")
    assert "\N{SNOWMAN}" in world.client.status(ID).detail
    with pytest.raises(stepwell.OptionError, match="4000"):
        world.client.cancel(ID, reason="x" * 4001)
    with pytest.raises(stepwell.OptionError, match="must be a str"):
        world.client.cancel(ID, by=7)  # type: ignore[arg-type]


def test_a_refusal_says_what_to_do_instead(world: World) -> None:
    """A retry of what is held, paused, waiting or completed."""
    says: dict[str, str] = {}
    for state in ("held at a step", "paused", "in a delay", "completed"):
        world.bring(state)
        with pytest.raises((UsageError, stepwell.InstanceEnded)) as caught:
            world.client.retry(ID)
        says[state] = str(caught.value)
        if state != "completed":
            world.client.cancel(ID)
        world.client.delete(ID)
    for state, mend in (
        ("held at a step", "client.decide"),
        ("paused", "client.resume"),
        ("in a delay", "client.explain"),
        ("completed", "terminate_existing"),
    ):
        assert mend in says[state]


# --- what is kept ----------------------------------------------------------------------------------------


def test_pausing_loses_neither_timer_nor_signal(world: World) -> None:
    """In a fork that waits for a delay, a signal and a backoff at once; all of them count after the resume."""
    world.bring("in a fork")
    due = world.client.status(ID).due
    world.client.pause(ID)
    world.client.signal(ID, "answer", 5)
    world.clock.advance("9h")
    world.flows.broken = False
    assert (world.state, world.client.status(ID).due) == ("paused", None)
    world.client.resume(ID)
    assert world.client.status(ID).due == due
    now = world.clock.now
    assert world.runner.resume(world.flows.forking, ID) == 6
    assert world.clock.now == now


def test_a_retry_keeps_results_and_unread_signals(world: World) -> None:
    """What came before the failure counts; finished steps do not run again."""
    world.client.start(world.flows.failing, 1, instance_id=ID)
    world.client.signal(ID, "answer", 5)
    world.recover()
    assert world.state == "failed"
    world.flows.broken = False
    world.client.retry(ID)
    assert world.runner.resume(world.flows.failing, ID) == 3
    outcomes = [(a.path, a.number, a.outcome) for a in world.client.attempts(ID)]
    assert outcomes == [("plus", 1, "succeeded"), ("breaks", 1, "failed"), ("breaks", 2, "succeeded")]


def test_of_an_ended_runs_unread_messages_a_retry_takes_the_signals_alone(world: World) -> None:
    """A cancel that crossed with the end was about the life that is over; a signal is not lost."""
    flows = world.flows

    @task
    def fails_late(x: int) -> int:
        if flows.broken:
            for ask in (world.client.cancel, world.client.pause):
                ask(ID)
            world.client.signal(ID, "answer", 5)
            raise Permanent("after all")
        return x

    @workflow
    def crossing(x: int) -> int:
        fails_late(x)
        return signal("answer", int)

    backend, mail = world.backend, world.backend.mail
    backend.mail = lambda session: {}  # the holder does not look before it ends
    with pytest.raises(WorkflowFailed):
        world.runner.run(crossing, 1, instance_id=ID)
    backend.mail = mail
    assert world.client.status(ID).pending == ("cancel", "pause", "signal answer")
    flows.broken = False
    world.client.retry(ID)
    assert world.client.status(ID).pending == ()
    assert world.runner.resume(crossing, ID) == 5


def test_cancel_beats_pause_and_pause_beats_resume(world: World) -> None:
    """In whatever order they reach a session that works."""
    for requests, end in ((("pause", "cancel", "resume"), WorkflowCancelled), (("resume", "pause"), InstancePaused)):
        with world.working() as future:
            for request in requests:
                REQUESTS[request](world.client)
            world.flows.go.set()
            with pytest.raises(end):
                future.result(20)
        if end is InstancePaused:
            world.client.cancel(ID)
        world.client.delete(ID)
        world.flows.entered.clear()
        world.flows.go.clear()


def test_requests_that_cross_are_both_taken_in(world: World) -> None:
    """Another client writes between the load and the commit of this one: it looks again."""
    world.bring("at a signal")
    backend: Any = world.client._room.backend
    load, crossed = backend.load, list[str]()

    def load_and_be_overtaken(instance_id: str) -> Any:
        loaded = load(instance_id)
        if not crossed:
            crossed.append("once")
            WorkflowClient.over(world.client._room).signal(ID, "answer", 5)
        return loaded

    backend.load = load_and_be_overtaken
    world.client.pause(ID, by="ann")
    backend.load = load
    assert [e.kind for e in world.client.history(ID) if e.kind in ("signal came", "paused")] == [
        "signal came",
        "paused",
    ]
    assert world.state == "paused"


# --- what is said ----------------------------------------------------------------------------------------------


def test_details_name_the_way_out(world: World) -> None:
    """A held instance mentions decide, a failed one retry, a paused one resume."""
    for state, mend in (
        ("held at a step", "client.decide(id, 'charge', …)"),
        ("held itself", "client.decide(id, '', …)"),
        ("failed", "client.retry()"),
        ("cancelled", "client.retry()"),
        ("paused", "client.resume()"),
    ):
        world.flows.broken = True
        world.bring(state)
        assert mend in world.client.status(ID).detail
        if state not in ("failed", "cancelled"):
            world.client.cancel(ID)
        world.client.delete(ID)


def test_a_held_run_says_so_to_its_caller(world: World) -> None:
    """With the decision it waits for."""
    world.bring("held at a step")
    with pytest.raises(InstanceHeld, match=r"held \(interrupted\) at charge; nobody knows.*client\.decide"):
        world.client.result(ID)
