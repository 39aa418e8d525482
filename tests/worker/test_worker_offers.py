"""A step on offer waits for nobody's other work and for no poll, where a worker is free to run it."""

from __future__ import annotations

import threading

from stepwell import Flow, WorkflowClient, task
from stepwell.reasons import Offered

from .conftest import Start
from .test_worker import LIMIT_S, until

TURNS = 1_000


def test_a_stream_of_instances_keeps_no_offer_waiting(client: WorkflowClient, start: Start) -> None:
    """A worker that finds an instance whenever it asks, and ends it at once, helps others all the same."""
    rendered = threading.Event()

    @task(tags=["gpu"])
    def render(x: int) -> int:
        rendered.set()
        return x

    @task(run_in="inline")
    def one_more(turn: int) -> int:
        if turn < TURNS and not rendered.is_set():
            client.start(stream, turn + 1, instance_id=f"turn {turn + 1}")
        return turn

    tagged, stream = Flow("tagged").then(render).build(), Flow("stream").then(one_more).build()
    start(tagged, name="ann", poll="1h")
    film = client.start(tagged, 1).instance_id
    until(lambda: isinstance(client.explain(film).reasons[0], Offered))
    client.start(stream, 0)
    start(tagged, stream, name="bob", tags=["gpu"], poll="1h")
    assert client.result(film, timeout=LIMIT_S) == 1
    assert client.count(workflow="stream") < TURNS


def test_who_is_told_of_an_offer_asks_for_it_whatever_the_last_poll_was(client: WorkflowClient, start: Start) -> None:
    """Every second poll of an idle worker does without offers; what comes after it is no poll."""
    go_on = threading.Event()

    @task
    def prepare(x: int) -> int:
        go_on.wait(LIMIT_S)
        return x

    @task(tags=["gpu"])
    def render(x: int) -> int:
        return x

    flow = Flow("film").then(prepare).then(render).build()
    start(flow, name="ann", poll="1h")
    film = client.start(flow, 1).instance_id
    until(lambda: client.status(film).held_by == "ann")
    bob = start(flow, name="bob", tags=["gpu"], poll="1h")._worker

    def has_polled_without() -> bool:
        pool = bob._pool
        if pool is not None and pool._poll_at and not pool._polls % 2:  # its time has come, and it looks at the clock
            pool._poll_at = 0
            bob._mailbox.put(None)
        return pool is not None and pool._polls % 2 == 1

    until(has_polled_without)
    go_on.set()
    assert client.result(film, timeout=LIMIT_S) == 1
