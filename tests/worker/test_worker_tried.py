"""Steps whose start was recorded, as they may have killed a process: what becomes of them when they change hands."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from stepwell import CheckpointingRunner, Flow, PooledWorker, WorkflowClient, task, task_context
from stepwell.backend.base import LOST, Change, Message
from stepwell.backend.liveness import this_process
from stepwell.engine import events as e
from stepwell.engine.frontier import ROOT
from stepwell.flow.plan import Key
from stepwell.runtime.live import Live, frontier_of
from stepwell.runtime.offered import ref
from stepwell.testing.conformance.examiner import dead_holder

from .conftest import Start
from .test_worker import LIMIT_S, until

LEASE_US = 30_000_000


def try_first(backend: Any, client: WorkflowClient, flow: Any, x: int, *, lost: bool = False) -> str:
    """Start an instance, record that its first step is tried, and give it back or, ``lost``, die."""
    instance_id = client.start(flow, x).instance_id
    session = backend.open_session(dead_holder() if lost else this_process("before"), LEASE_US)
    loaded = backend.claim(session, instance_id)
    state = frontier_of(flow.plan, loaded)
    ((node, turns),) = state.steps
    rows = Live.rows(flow.plan, state, [e.Begun(node, turns, 1)], loaded.header.updated_us)
    assert backend.commit(session, [Change(loaded.header.instance, loaded.header.seq, rows)]) == ["done"]
    if not lost:
        backend.end_session(session)
    return instance_id


@pytest.mark.parametrize(("lost", "outcomes"), [(False, ["succeeded"]), (True, ["crashed", "succeeded"])])
def test_a_tried_step_has_crashed_only_if_its_session_was_lost(
    backend: Any, client: WorkflowClient, start: Start, lost: bool, outcomes: list[str]
) -> None:
    """Whoever gives an instance back, as a drain or Ctrl-C does, leaves the attempt to the next one."""

    @task
    def work(x: int) -> int:
        return x + 1

    flow = Flow("work").then(work).build()
    instance = try_first(backend, client, flow, 1, lost=lost)
    start(flow, name="ann")
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert [attempt.outcome for attempt in client.attempts(instance)] == outcomes


def test_a_pause_keeps_a_tried_step_until_the_run_is_resumed(
    backend: Any, client: WorkflowClient, start: Start
) -> None:
    """It need not begin, and the pause makes no crash of it."""
    runs = list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        return x + 1

    flow = Flow("work").then(work).build()
    instance, other = try_first(backend, client, flow, 1), client.start(flow, 2).instance_id
    client.pause(instance)
    start(flow, name="ann")
    assert client.result(other, timeout=LIMIT_S) == 3
    assert (runs, client.status(instance).state) == ([2], "paused")
    client.resume(instance)
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert [attempt.outcome for attempt in client.attempts(instance)] == ["succeeded"]


def test_a_drain_gives_back_what_is_only_tried(backend: Any, client: WorkflowClient) -> None:
    """Of two that were tried before, one runs at a time; the other one does not begin any more."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).build()
    instances = [try_first(backend, client, flow, x) for x in (0, 1)]
    worker = PooledWorker(backend, [flow], name="ann", poll="20ms")
    handle = worker.start()
    assert began.wait(LIMIT_S)
    until(lambda: handle.health().held == 2)
    handle.shutdown()
    go_on.set()
    handle.join(LIMIT_S)
    assert len(runs) == 1
    assert [backend.header(each).session for each in instances] == [0, 0]
    with PooledWorker(backend, [flow], name="bob", poll="20ms").start():
        assert [client.result(each, timeout=LIMIT_S) for each in instances] == [1, 2]
    assert [attempt.outcome for each in instances for attempt in client.attempts(each)] == ["succeeded"] * 2


def lost(backend: Any, instance_id: str, key: Key) -> None:
    """Tell the holder that the first attempt of a step was lost by somebody else."""
    instance = backend.header(instance_id).instance
    assert backend.post(instance, Message(LOST, "", ref(*key, 1), backend.header(instance_id).updated_us)) == "posted"


def test_the_loss_of_what_runs_here_changes_nothing(backend: Any, client: WorkflowClient, start: Start) -> None:
    """It was on offer once, and whoever had it then is gone; here it runs on and is recorded."""
    known, runs = threading.Event(), Counter[int]()
    instance = ""

    @task
    def work(x: int) -> int:
        runs[x] += 1
        assert known.wait(LIMIT_S)
        if runs[x] == 1:
            lost(backend, instance, flow.plan.find("work") or ROOT)
            until(lambda: not backend.header(instance).mail)
        return x + 1

    flow = Flow("work").then(work).build()
    start(flow, name="ann")
    instance = client.start(flow, 1).instance_id
    known.set()
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert (runs[1], [attempt.outcome for attempt in client.attempts(instance)]) == (1, ["succeeded"])


def test_the_loss_of_what_runs_in_the_driving_thread_changes_nothing(backend: Any, client: WorkflowClient) -> None:
    """Its heartbeat reads the message."""
    runs = Counter[int]()

    @task
    def work(x: int) -> int:
        runs[x] += 1
        lost(backend, "i", flow.plan.find("work") or ROOT)
        task_context().heartbeat(x)
        return x + 1

    flow = Flow("work").then(work).build()
    with CheckpointingRunner(backend) as runner:
        assert runner.run(flow, 1, instance_id="i") == 2
    assert (runs[1], [attempt.outcome for attempt in client.attempts("i")]) == (1, ["succeeded"])


def test_a_pause_reaches_a_tried_step_that_waits_for_its_turn(backend: Any, client: WorkflowClient) -> None:
    """It does not begin, and the instance is given back."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).build()
    instances = [try_first(backend, client, flow, x) for x in (0, 1)]
    with PooledWorker(backend, [flow], name="ann", poll="20ms").start() as handle:
        assert began.wait(LIMIT_S)
        until(lambda: handle.health().held == 2)
        (first,) = runs
        client.pause(instances[1 - first])
        until(lambda: not backend.header(instances[1 - first]).mail)
        go_on.set()
        assert client.result(instances[first], timeout=LIMIT_S) == first + 1
        until(lambda: not backend.header(instances[1 - first]).session)
        assert (runs, client.status(instances[1 - first]).state) == ([first], "paused")
        client.resume(instances[1 - first])
        assert client.result(instances[1 - first], timeout=LIMIT_S) == 2 - first
    assert [attempt.outcome for each in instances for attempt in client.attempts(each)] == ["succeeded"] * 2
