"""What a worker does when its store is out of reach, loses replies, or has given its instances to others."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from stepwell import (
    BackendUnavailable,
    Flow,
    PooledWorker,
    SqliteBackend,
    StepCancelled,
    WorkflowClient,
    task,
    task_context,
)
from stepwell.backend.base import Offered, Want
from stepwell.backend.liveness import this_process
from stepwell.runtime import transaction
from stepwell.testing.faults import Fault, FaultyBackend

from .conftest import Start
from .test_worker import LIMIT_S, add, fan, until


def unreachable() -> NoReturn:
    raise BackendUnavailable("the store was out of reach, and the outcome is unknown")


class Dark:
    """A switch that makes every call of a store fail."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.on = backend, threading.Event()
        self.refused: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found) or name in ("watch", "hint", "close"):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.on.is_set():
                self.refused[name] += 1
                unreachable()
            return found(*args, **kwargs)

        return call


METHODS = [
    "open_session", "register", "claim_due", "claim_offers", "next_due", "commit", "offer", "settle", "mail", "values",
    "end_session", "list",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_call_or_reply_costs_nothing(
    method: str, when: str, backend: Any, client: WorkflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The call is made again; what had taken effect is not done twice, and no recorded body runs again."""
    runs: Counter[int] = Counter()

    @task(tags=["gpu"])
    def work(x: int) -> int:
        runs[x] += 1
        return x + 1

    flow = fan("work", 6, work)
    faults = [Fault(when, method, nth) for nth in (1, 2)]  # type: ignore[arg-type]
    shaky = FaultyBackend(backend, faults, strike=unreachable)
    with (
        PooledWorker(shaky, [flow], name="shaky", concurrency=2, poll="20ms").start(),
        PooledWorker(backend, [flow], name="steady", concurrency=2, poll="20ms", tags=["gpu"]).start(),
    ):
        ids = [client.start(flow, x * 100).instance_id for x in range(3)]
        for x, each in enumerate(ids):
            assert client.result(each, timeout=LIMIT_S) == {f"b{number}": x * 100 + 1 for number in range(6)}
    assert runs == {0: 6, 100: 6, 200: 6}
    assert client.stuck() == []


def test_an_outage_is_waited_out(backend: Any, client: WorkflowClient, caplog: pytest.LogCaptureFixture) -> None:
    """A body that ends while the store is away is recorded when it is back, and does not run again."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).then(add).build()
    dark = Dark(backend)
    worker = PooledWorker(dark, [flow], name="ann", poll="20ms")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING), worker.start() as handle:
        instance = client.start(flow, 1).instance_id
        assert began.wait(LIMIT_S)
        dark.on.set()
        go_on.set()
        until(lambda: dark.refused.total() >= 3)
        health = handle.health()
        assert not health.healthy
        assert "out of reach" in health.trouble
        dark.on.clear()
        assert client.result(instance, timeout=LIMIT_S) == 3
        until(lambda: handle.health().healthy)
    assert runs == [1]
    told = [record.getMessage() for record in caplog.records if "store" in record.getMessage()]
    assert len(told) == 2, told


def test_an_outage_at_the_begin_of_a_transaction_is_waited_out_too(
    backend: Any, client: WorkflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body runs again once the store answers; no attempt is used up, and the worker goes on."""
    if not backend.capabilities.user_transactions:
        pytest.skip("this store has no transactions for users")
    runs: list[int] = []
    opened = transaction.opened

    def refused_once(store: Any) -> Any:
        if len(runs) == 1:
            unreachable()
        return opened(store)

    monkeypatch.setattr(transaction, "opened", refused_once)

    @task
    def work(x: int) -> int:
        runs.append(task_context().attempt)
        with task_context().transaction():
            return x + 1

    flow = Flow("work").then(work).build()
    with PooledWorker(backend, [flow], name="ann", poll="20ms").start():
        instance = client.start(flow, 1).instance_id
        assert client.result(instance, timeout=LIMIT_S) == 2
    assert runs == [1, 1]


class Forgetful:
    """A store that forgets the claims on instances before the first call of a method, as a server that crashes may."""

    def __init__(self, backend: Any, method: str) -> None:
        self._backend, self._method = backend, method
        self.calls: Counter[str] = Counter()
        self.released: list[int] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            self.released += args[1] if name == "release" else []
            if name == self._method and self.calls[name] == 1:
                self._backend.release(args[0], self._backend.holdings(args[0])[0])
            return found(*args, **kwargs)

        return call


def test_a_claim_that_the_store_has_forgotten_is_made_again_and_kept(backend: Any, client: WorkflowClient) -> None:
    """Whoever comes upon an instance of its own as a free one does not give it to others."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).build()
    store = Forgetful(backend, "nothing")
    with PooledWorker(store, [flow], name="ann", poll="20ms").start() as handle:  # type: ignore[arg-type]
        instance = client.start(flow, 1).instance_id
        assert began.wait(LIMIT_S)
        session = handle._worker._room.session()
        backend.release(session, backend.holdings(session)[0])
        looks = store.calls["claim_due"]
        until(lambda: store.calls["claim_due"] >= looks + 3)
        assert backend.header(instance).session == session.id
        go_on.set()
        assert client.result(instance, timeout=LIMIT_S) == 2
    assert (runs, store.released) == ([1], [])


def test_what_was_put_up_under_a_forgotten_claim_is_not_away(backend: Any, client: WorkflowClient) -> None:
    """It is not on offer, so the only worker there is runs it."""
    offered, runs = threading.Event(), Counter[int]()

    @task
    def work(x: int) -> int:
        runs[x] += 1
        offered.wait(LIMIT_S)
        return x + 1

    flow = fan("work", 8, work)
    store = Forgetful(backend, "offer")
    with PooledWorker(store, [flow], name="ann", concurrency=2, poll="20ms").start():  # type: ignore[arg-type]
        instance = client.start(flow, 1).instance_id
        until(lambda: store.calls["offer"])
        offered.set()
        assert client.result(instance, timeout=LIMIT_S) == {f"b{number}": 2 for number in range(8)}
    assert runs == {1: 8}


def test_a_guest_that_is_stopped_does_not_answer_for_the_one_after_it(
    backend: Any, client: WorkflowClient, start: Start
) -> None:
    """Its claim was forgotten, so it was told to stop; the same worker has claimed the step again before it does."""
    began, told, runs, tick = threading.Event(), threading.Event(), list[int](), threading.Event()

    @task(tags=["gpu"])
    def work(x: int) -> int:
        runs.append(x)
        if len(runs) > 1:
            return x + 1
        began.set()
        try:
            while not tick.wait(0.002):
                task_context().raise_if_cancelled()
        except StepCancelled:
            told.set()
            until(lambda: backend.holdings(room.session())[1] or len(runs) > 1)
            raise
        return 0

    flow = Flow("work").then(work).build()
    start(flow, name="ann")
    instance = client.start(flow, 1).instance_id
    until(lambda: backend.header(instance).offered)
    room = start(flow, name="bob", tags=["gpu"])._worker._room
    assert began.wait(LIMIT_S)
    other = backend.open_session(this_process("other"), 30_000_000)
    want = Want(list(backend.next_due(["work"])["work"]), 2**62, 1, ("gpu",))

    def taken_away() -> Sequence[Offered]:
        backend.hand_back(room.session(), backend.holdings(room.session())[1])
        found: Sequence[Offered] = backend.claim_offers(other, want)
        return found

    until(taken_away)
    assert told.wait(LIMIT_S)
    backend.end_session(other)
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert runs == [1, 1]


def test_a_guest_that_is_left_in_its_only_start_does_not_start_again(
    backend: Any, client: WorkflowClient, start: Start
) -> None:
    """Its worker ends its session well, but the body has begun: the instance is held, as if it had run at home."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task(tags=["gpu"], delivery="at_most_once")
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).build()
    start(flow, name="ann")
    instance = client.start(flow, 1).instance_id
    until(lambda: backend.header(instance).offered)
    bob = start(flow, name="bob", tags=["gpu"])
    assert began.wait(LIMIT_S)
    bob.leave()
    bob.join(LIMIT_S)
    start(flow, name="cy", tags=["gpu"])
    until(lambda: client.status(instance).state == "held")
    go_on.set()
    assert runs == [1]


def test_a_lost_session_costs_the_running_step_alone(backend: Any, client: WorkflowClient, start: Start) -> None:
    """Another one has taken over: the late outcome is refused, and the worker goes on with a session of its own."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        if len(runs) == 1:
            began.set()
            go_on.wait(LIMIT_S)
            return -1
        return x + 1

    flow = Flow("work").then(work).build()
    handle = start(flow, name="ann")
    instance = client.start(flow, 1).instance_id
    assert began.wait(LIMIT_S)
    room = handle._worker._room
    assert room.lease is not None
    other = backend.open_session(this_process("other"), 30_000_000)
    backend.end_session(room.lease.session)  # as a takeover would
    assert backend.claim(other, instance).header.held_by == "other"
    go_on.set()
    until(lambda: room.lease is not None and room.lease.session.id > other.id)
    backend.end_session(other)
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert runs == [1, 1]
    assert client.result(client.start(flow, 5).instance_id, timeout=LIMIT_S) == 6


def test_late_word_of_a_lost_lease_does_not_concern_the_next_session(
    backend: Any, client: WorkflowClient, start: Start
) -> None:
    """Both who reckons and who renews tell of a loss; the second time other bodies run, which go on."""
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task
    def work(x: int) -> int:
        runs.append(x)
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    flow = Flow("work").then(work).build()
    handle = start(flow, name="ann")
    room = handle._worker._room
    before = room.session()
    backend.end_session(before)
    until(lambda: room.lease is not None and room.lease.session != before)
    instance = client.start(flow, 1).instance_id
    assert began.wait(LIMIT_S)
    room._lease_lost(before, "another session has taken over")
    until(lambda: handle._worker._mailbox.empty())
    go_on.set()
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert runs == [1]


def test_a_lease_that_cannot_be_renewed_is_given_up_in_time(
    backend: Any, client: WorkflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """After four fifths of the lease the bodies are told to stop, though the store has said nothing."""
    began, stopped = threading.Event(), threading.Event()

    @task
    def work(x: int) -> int:
        if stopped.is_set():
            return x
        began.set()
        while True:
            try:
                task_context().raise_if_cancelled()
            except BaseException:
                stopped.set()
                raise
            stopped.wait(0.002)

    flow = Flow("work").then(work).build()
    dark = Dark(backend)
    worker = PooledWorker(dark, [flow], name="ann", poll="20ms", lease="1s")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING), worker.start():
        instance = client.start(flow, 1).instance_id
        assert began.wait(LIMIT_S)
        dark.on.set()
        assert stopped.wait(LIMIT_S)
        dark.on.clear()
        assert client.result(instance, timeout=LIMIT_S) == 1
    assert any("in time" in record.getMessage() for record in caplog.records)


def test_a_damaged_instance_delays_nobody(backend: Any, client: WorkflowClient, start: Start) -> None:
    """It is reported once, and the others are worked on."""
    flow = Flow("work").then(add).build()
    bad = client.start(flow, 1)
    damage(backend, bad.instance_id)
    start(flow, concurrency=1)
    assert client.result(client.start(flow, 1).instance_id, timeout=LIMIT_S) == 2


test_a_damaged_instance_delays_nobody = pytest.mark.broken_store(test_a_damaged_instance_delays_nobody)


def damage(backend: Any, instance_id: str) -> None:
    """Spoil the journal of an instance behind the store's back."""
    number = backend.header(instance_id).instance
    if backend.capabilities.user_transactions:
        bad, table = (
            ("x'00ff'", "journal")
            if isinstance(backend, SqliteBackend)
            else (r"'\x00ff'", f'"{backend._server.place.schema}".journal')
        )
        with backend.connect() as db:
            db.execute(f"UPDATE {table} SET facts = {bad} WHERE instance = {int(number)}")  # noqa: S608
        return
    from msgspec.structs import replace

    journal: list[Any] = backend._runs[number].journal
    journal[:] = [replace(entry, facts=b"\x00\xff") for entry in journal]


def test_nothing_is_logged_while_all_is_well(
    client: WorkflowClient, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is silent above DEBUG on the happy path."""
    flow = fan("wide", 20, add)
    with caplog.at_level(logging.DEBUG):
        start(flow, concurrency=2, name="ann")
        start(flow, concurrency=2, name="bob")
        assert client.result(client.start(flow, 1).instance_id, timeout=LIMIT_S)
    loud: Sequence[str] = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert loud == []
    assert any("ann serves wide" in record.getMessage() for record in caplog.records)
