"""Workers of two versions of a workflow on one store: what the older ones can end is left to them while they live."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stepwell import CheckpointingRunner, Flow, PooledWorker, WorkerHandle, WorkflowClient
from stepwell.backend.base import Holder, Session
from stepwell.backend.liveness import this_process
from stepwell.testing.conformance.examiner import dead_holder
from stepwell.testing.faults import FaultyBackend

from .conftest import Start
from .test_worker import LIMIT_S, until


class Code:
    """Two versions of a workflow that does something, waits for ``go`` and does something more."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

    def _noting(self, name: str) -> Callable[[int], int]:
        def body(x: int) -> int:
            self.ran[name] += 1
            return x + 1

        return body

    def old(self) -> Any:
        first, last = self._noting("first"), self._noting("old last")
        return Flow("order").then(first, name="first").signal("go", int).then(last, name="last").build()

    def unfit(self) -> Any:
        """Return a version in which another step stands in the place of the first one."""
        first, last = self._noting("begin"), self._noting("new last")
        return Flow("order").then(first, name="begin").signal("go", int).then(last, name="last").build()

    def fit(self) -> Any:
        """Return a version with a step more at the end."""
        first, last, more = self._noting("first"), self._noting("new last"), self._noting("more")
        flow = Flow("order").then(first, name="first").signal("go", int).then(last, name="last")
        return flow.then(more, name="more").build()


@pytest.fixture
def code() -> Code:
    return Code()


def waiting(client: WorkflowClient, workflow: Any, *instance_ids: str) -> None:
    """Start instances that the workers with their code take to their signal."""
    for each in instance_ids:
        client.start(workflow, 1, instance_id=each)
    for each in instance_ids:
        until(lambda each=each: client.status(each).state == "waiting")


def serving(backend: Any, workflow: Any, holder: Holder | None = None, lease_us: int = 30_000_000) -> Session:
    """Return a session that serves a graph as a worker does, and takes nothing up."""
    session, plan = backend.open_session(holder or this_process("old"), lease_us), workflow.plan
    backend.serve(session, [backend.register(plan.name, plan.fingerprint, plan.to_bytes())])
    return session  # type: ignore[no-any-return]


def stopped(handle: WorkerHandle) -> None:
    handle.shutdown()
    handle.join("30s")


def worked(client: WorkflowClient, workflow: Any, instance_id: str) -> None:
    """Let the worker with this code end an instance of its own, so that it has looked at all that is due."""
    client.start(workflow, 1, instance_id=instance_id)
    client.signal(instance_id, "go", 1)
    client.result(instance_id, workflow, timeout=LIMIT_S)


def test_what_no_longer_fits_is_ended_by_the_old_code(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """While a worker with its code lives, newer ones let an instance be, at rest and when it is due."""
    old, new, ids = code.old(), code.unfit(), [f"order-{number}" for number in range(20)]
    start(old, name="old")
    waiting(client, old, *ids)
    start(new, name="new")
    worked(client, new, "other")
    for each in ids:
        assert client.status(each).state == "waiting"
        client.signal(each, "go", 5)
    assert [client.result(each, old, timeout=LIMIT_S) for each in ids] == [6] * 20
    assert code.ran == {"first": 20, "old last": 20, "begin": 1, "new last": 1}


def test_what_no_longer_fits_is_held_once_the_old_code_is_gone(
    code: Code, client: WorkflowClient, start: Start
) -> None:
    """Nobody has to send it anything for that: people want to know."""
    old, new = code.old(), code.unfit()
    first = start(old, name="old")
    waiting(client, old, "order")
    start(new, name="new")
    worked(client, new, "other")
    assert client.status("order").state == "waiting"
    stopped(first)
    until(lambda: client.status("order").state == "held")
    assert "first" in client.status("order").detail


def test_what_fits_stays_until_the_old_code_is_gone(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """It moves then, by itself, and goes on where it was."""
    old, new = code.old(), code.fit()
    first = start(old, name="old")
    waiting(client, old, "order", "early")
    start(new, name="new")
    worked(client, new, "other")
    client.signal("early", "go", 5)
    assert client.result("early", timeout=LIMIT_S) == 6
    assert backend.header("order").fingerprint == old.fingerprint
    stopped(first)
    until(lambda: backend.header("order").fingerprint == new.fingerprint)
    client.signal("order", "go", 5)
    assert client.result("order", new, timeout=LIMIT_S) == 7
    assert code.ran == {"first": 3, "old last": 1, "new last": 2, "more": 2}


def test_an_old_worker_takes_back_its_hold_as_before(code: Code, client: WorkflowClient, start: Start) -> None:
    """What was held while nobody served its graph goes on when its code is back, beside newer workers."""
    old, new = code.old(), code.unfit()
    first = start(old, name="old")
    waiting(client, old, "order")
    stopped(first)
    start(new, name="new")
    until(lambda: client.status("order").state == "held")
    start(old, name="old again")
    until(lambda: client.status("order").state == "waiting")
    client.signal("order", "go", 5)
    assert client.result("order", old, timeout=LIMIT_S) == 6


def test_a_hold_that_others_look_at_is_looked_at_again(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """Whoever has it when its code comes back may find that it is not for him, and leave it as it was."""
    old, new = code.old(), code.unfit()
    first = start(old, name="old")
    waiting(client, old, "order")
    stopped(first)
    with PooledWorker(backend, [new], name="new", poll="20ms").start():
        until(lambda: client.status("order").state == "held")
    other = backend.open_session(this_process("other"), 30_000_000)
    backend.claim(other, "order")
    handle = start(old, name="old again")
    until(lambda: handle._worker._pool is not None and handle._worker._pool._taken)
    backend.release(other, [backend.header("order").instance])
    until(lambda: client.status("order").state == "waiting")


def test_what_is_due_waits_for_whoever_serves_it(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """A due instance that a newer worker could move is left alone, and is taken up when that session ends."""
    old, new = code.old(), code.fit()
    session = serving(backend, old)
    client.start(old, 1, instance_id="order")
    start(new, name="new")
    worked(client, new, "other")
    assert (backend.header("order").seq, backend.header("order").session) == (1, 0)
    backend.end_session(session)
    until(lambda: client.status("order").state == "waiting")
    assert backend.header("order").fingerprint == new.fingerprint


def test_whoever_comes_later_is_noticed_before_anything_is_moved(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """A newer worker that had nothing to leave out asks again before it takes up an instance of an older graph."""
    old, new = code.old(), code.fit()
    backend.register(old.name, old.fingerprint, old.plan.to_bytes())
    watched = FaultyBackend(backend, [])
    with PooledWorker(watched, [new], name="new", poll="20ms").start():
        worked(client, new, "other")
        assert watched.calls["served"] == 1  # as it began
        session = serving(backend, old)
        client.start(old, 1, instance_id="order")
        until(lambda: watched.calls["served"] > 1 and not backend.header("order").session)
        worked(client, new, "another")
        assert (backend.header("order").seq, backend.header("order").session) == (1, 0)
        backend.end_session(session)
        until(lambda: client.status("order").state == "waiting")


def test_asking_costs_nothing_where_nobody_is_waited_for(backend: Any, code: Code, client: WorkflowClient) -> None:
    """A worker that finds no older graph never asks; one that finds some and nobody who serves them asks once."""
    old, new = code.old(), code.fit()
    counts: list[int] = []
    for workflow in (old, new):
        watched = FaultyBackend(backend, [])
        with PooledWorker(watched, [workflow], name="ann", poll="20ms").start():
            for number in range(5):
                worked(client, workflow, f"{len(counts)}-{number}")
        counts.append(watched.calls.get("served", 0))
    assert counts == [0, 1]


@pytest.mark.parametrize("how", ["dead", "lease over"])
def test_who_is_gone_keeps_nobody_waiting(
    how: str, backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """Neither a process that has died nor one that stands still is waited for longer than its lease."""
    old, new = code.old(), code.fit()
    serving(backend, old, dead_holder()) if how == "dead" else serving(backend, old, lease_us=0)
    client.start(old, 1, instance_id="order")
    start(new, name="new")
    until(lambda: client.status("order").state == "waiting")
    assert backend.header("order").fingerprint == new.fingerprint


def test_a_worker_that_drains_is_not_waited_for(client: WorkflowClient, start: Start) -> None:
    """What it gives back goes on at once elsewhere, however long its last bodies take."""
    began, go_on = threading.Event(), threading.Event()

    def slow(x: int) -> int:
        began.set()
        assert go_on.wait(LIMIT_S)
        return x

    old = Flow("order").then(slow, name="slow").build()

    def quick(x: int) -> int:
        return x * 10

    new = Flow("order").then(quick, name="slow").then(quick, name="more").build()
    first = start(old, name="old", concurrency=1)
    client.start(old, 1, instance_id="held-up")
    assert began.wait(LIMIT_S)
    first.shutdown()
    until(lambda: first.health().state == "draining")
    client.start(old, 2, instance_id="later")
    start(new, name="new")
    assert client.result("later", timeout=LIMIT_S) == 200
    go_on.set()
    assert client.result("held-up", timeout=LIMIT_S) == 1


def test_a_worker_with_both_versions_works_on_both(
    backend: Any, code: Code, client: WorkflowClient, start: Start
) -> None:
    """What it has the code of it leaves to nobody."""
    old, new = code.old(), code.unfit()
    session = serving(backend, old)
    start(old, new, name="both")
    waiting(client, old, "order")
    waiting(client, new, "newer")
    assert backend.header("order").fingerprint == old.fingerprint
    assert code.ran == {"first": 1, "begin": 1}
    backend.end_session(session)


def test_who_asks_for_a_move_gets_it(backend: Any, code: Code, client: WorkflowClient, start: Start) -> None:
    """``client.move`` and ``runner.recover`` are asked for by somebody, and wait for no worker."""
    old, new = code.old(), code.fit()
    start(old, name="old")
    waiting(client, old, "one", "two")
    client.move("one", new)
    assert backend.header("one").fingerprint == new.fingerprint
    with CheckpointingRunner(backend) as runner:
        assert [each.instance_id for each in runner.recover([new])] == ["two"]
    assert backend.header("two").fingerprint == new.fingerprint


def test_it_is_told_who_is_waited_for(
    backend: Any, code: Code, client: WorkflowClient, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Why a due instance stands still is said, and in the log what is left to others, once for each graph."""
    old, new = code.old(), code.fit()
    session = serving(backend, old)
    client.start(old, 1, instance_id="order")
    with caplog.at_level(logging.INFO, "stepwell.runtime"):
        start(new, name="new")
        worked(client, new, "other")
    text = f"it is queued for workers with the code of its graph {old.fingerprint[:8]}, which 1 live worker has"
    assert text in client.explain("order").text
    assert sum("is left to" in record.getMessage() for record in caplog.records) == 1
    backend.end_session(session)
