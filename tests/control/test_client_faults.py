"""A store that fails in the middle of a request: all of it is there or nothing, and sending it again does no harm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import pytest

from stepwell import BackendUnavailable, StepwellError
from stepwell.runtime.client import WorkflowClient
from stepwell.testing.faults import Fault, FaultyBackend
from stepwell.types import Complete

from .client_worlds import ID, World

Request = Callable[[WorkflowClient], object]

#: a state, a request that it takes, and the state that this leads to
REQUESTS: Final[dict[str, tuple[str, Request, str]]] = {
    "cancel": ("in a fork", lambda client: client.cancel(ID), "cancelled"),
    "pause": ("in a fork", lambda client: client.pause(ID), "paused"),
    "resume": ("paused", lambda client: client.resume(ID), "waiting"),
    "retry": ("failed", lambda client: client.retry(ID), "running"),
    "signal": ("in a fork", lambda client: client.signal(ID, "answer", 5, signal_id="one"), "waiting"),
    "decide": ("held at a step", lambda client: client.decide(ID, "charge", Complete(5)), "waiting"),
}

FAULTS: Final = [f"{when}:{method}:1" for method in ("load", "plan", "commit", "post") for when in ("before", "after")]


def unavailable() -> None:
    raise BackendUnavailable("the disk is gone for a moment")


def failing(world: World, fault: str) -> WorkflowClient:
    """Return a client over the world's store, which fails once."""
    backend = FaultyBackend(world.backend, [Fault.parse(fault)], unavailable)
    return WorkflowClient(backend, clock=world.clock)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_failed_may_be_sent_again(world: World, name: str, fault: str) -> None:
    """It was done whole or not at all; the second one does the rest, or is told that nothing is left to do."""
    state, request, end = REQUESTS[name]
    world.bring(state)
    before = world.client.status(ID)
    with failing(world, fault) as client:
        try:
            request(client)
        except BackendUnavailable:
            after = world.client.status(ID)
            assert after == before or (fault == "after:commit:1" and after.state == end)
        with suppress(StepwellError):
            request(client)
    assert world.state == end
    kinds = [event.kind for event in world.client.history(ID)]
    assert kinds.count("signal came") == (name == "signal")
    assert len([kind for kind in kinds if kind in ("cancel asked", "resumed", "retried", "decided")]) <= 1


@pytest.mark.parametrize("fault", ["before:post:1", "after:post:1"])
def test_a_posted_signal_whose_answer_was_lost_counts_once(world: World, fault: str) -> None:
    """The id tells that it was posted before."""
    with world.working() as future:
        with failing(world, fault) as client:
            for _ in range(2):
                with suppress(BackendUnavailable):
                    client.signal(ID, "answer", 5, signal_id="one")
        assert world.client.status(ID).pending == ("signal answer",)
        world.flows.go.set()
        assert future.result(20) == 3
