"""What workers on one store do together: share work, respect tags, limits and order, and stop as they are asked."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stepwell import (
    Flow,
    InstanceHeld,
    OptionError,
    Permanent,
    PooledWorker,
    Rerun,
    Retry,
    UsageError,
    WorkflowCancelled,
    WorkflowClient,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Want
from stepwell.backend.liveness import this_process
from stepwell.reasons import Offered, Running

from .conftest import Start

LIMIT_S = 30.0


@task
def add(x: int) -> int:
    return x + 1


@task
async def twice(x: int) -> int:
    return x * 2


chain = Flow("chain").then(add).then(twice).then(add, name="again").build()


def met(barrier: threading.Barrier) -> None:
    """Wait for the others at the barrier; who waits in vain fails its test and not the clock."""
    barrier.wait(LIMIT_S)


def until(holds: Callable[[], object]) -> None:
    """Look again and again until something holds."""
    tick, looks = threading.Event(), 0
    while not holds():
        tick.wait(0.002)
        looks += 1
        assert looks < 10_000, "it does not come to hold"


def fan(name: str, width: int, body: Any) -> Any:
    """Return a workflow that runs one body ``width`` times side by side and gathers what came of it."""
    flow = Flow(name).then(lambda x: x, name="begin").fork()
    for number in range(width):
        flow = flow.branch(body, name=f"b{number}")
    return flow.join(lambda parts: parts, name="gather").build()


def test_work_is_done_by_whoever_is_there(client: WorkflowClient, start: Start) -> None:
    """Three workers end what a client starts, each instance once."""
    for name in ("ann", "bob", "cy"):
        start(chain, name=name, concurrency=2)
    ids = [status.instance_id for status in client.start_many(chain, list(range(200)))]
    assert [client.result(each, timeout=LIMIT_S) for each in ids] == [(x + 1) * 2 + 1 for x in range(200)]
    assert client.stuck() == []


def test_branches_of_one_fork_run_on_several_workers(client: WorkflowClient, start: Start) -> None:
    """Two workers that run one body at a time can only meet at a barrier if each runs a branch."""
    barrier = threading.Barrier(2)

    @task
    def meet(x: int) -> int:
        met(barrier)
        return x

    both = fan("both", 2, meet)
    start(both, name="ann", concurrency=1)
    start(both, name="bob", concurrency=1)
    assert client.result(client.start(both, 5).instance_id, timeout=LIMIT_S) == {"b0": 5, "b1": 5}


def test_a_worker_alone_runs_what_it_offered(client: WorkflowClient, start: Start) -> None:
    """A wide fork on one narrow worker loses nothing to the offers it makes."""
    wide = fan("wide", 50, add)
    start(wide, concurrency=2)
    done = client.result(client.start(wide, 1).instance_id, timeout=LIMIT_S)
    assert done == {f"b{number}": 2 for number in range(50)}


def test_errors_retries_and_tags_of_offered_steps_are_as_at_home(client: WorkflowClient, start: Start) -> None:
    """A step that runs for another holder fails, is tried again and fails for good by the same rules."""
    tried: Counter[str] = Counter()

    @task(tags=["gpu"], attempts=3)
    def flaky(x: int) -> int:
        tried["flaky"] += 1
        if task_context().attempt < 3:
            raise OSError("busy")
        return x + 1

    @task(tags=["gpu"])
    def hopeless(x: int) -> int:
        tried["hopeless"] += 1
        raise Permanent("no")

    good = Flow("good").then(add).then(flaky).build()
    bad = Flow("bad").then(add).then(hopeless).build()
    start(good, bad, name="plain")
    start(good, bad, name="gpu", tags=["gpu"])
    assert client.result(client.start(good, 1).instance_id, timeout=LIMIT_S) == 3
    with pytest.raises(Exception, match="no"):
        client.result(client.start(bad, 1).instance_id, timeout=LIMIT_S)
    assert tried == {"flaky": 3, "hopeless": 1}


def test_a_step_runs_only_where_its_tags_are(backend: Any, client: WorkflowClient, start: Start) -> None:
    """Tagged steps go to the worker that has all of their tags, whoever holds the instance."""
    where: dict[str, str] = {}

    @task(tags=["eu", "gpu"])
    def render(x: int) -> int:
        where["render"] = threading.current_thread().name
        return x

    flow = Flow("render").then(add).then(render).then(add, name="after").build()
    start(flow, name="none")
    start(flow, name="half", tags=["eu"])
    instance = client.start(flow, 1).instance_id
    until(lambda: backend.header(instance).offered)
    (told,) = client.explain(instance).reasons
    assert isinstance(told, Offered)
    assert (told.path, told.attempt, told.tags, told.worker in ("none", "half")) == ("render", 1, ("eu", "gpu"), True)
    assert told.text == "render: attempt 1 is offered to workers with tags eu, gpu; none has taken it yet"
    assert not where
    start(flow, name="full", tags=["eu", "gpu", "more"])
    assert client.result(instance, timeout=LIMIT_S) == 3
    assert where


def test_who_runs_a_step_away_from_home_is_told(backend: Any, client: WorkflowClient, start: Start) -> None:
    """Not who holds its instance."""
    begun, over = threading.Event(), threading.Event()

    @task(tags=["gpu"])
    def render(x: int) -> int:
        begun.set()
        over.wait(LIMIT_S)
        return x

    flow = Flow("render").then(render).build()
    start(flow, name="holder")
    instance = client.start(flow, 1).instance_id
    until(lambda: backend.header(instance).held_by == "holder")
    start(flow, name="guest", tags=["gpu"])
    begun.wait(LIMIT_S)
    (told,) = client.explain(instance).reasons
    over.set()
    assert isinstance(told, Running)
    assert (told.path, told.worker) == ("render", "guest")
    assert client.result(instance, timeout=LIMIT_S) == 1


def test_an_at_most_once_step_keeps_its_promise_away_from_home(client: WorkflowClient, start: Start) -> None:
    """Its start is recorded by the holder before anybody may run it."""
    runs: list[int] = []

    @task(tags=["gpu"], delivery="at_most_once")
    def fire(x: int) -> int:
        runs.append(x)
        return x

    flow = Flow("fire").then(add).then(fire).build()
    start(flow, name="plain")
    start(flow, name="gpu", tags=["gpu"])
    instance = client.start(flow, 1).instance_id
    assert client.result(instance, timeout=LIMIT_S) == 2
    assert runs == [2]


def test_a_transaction_comes_home(tmp_path: Any, start: Start, backend: Any, client: WorkflowClient) -> None:
    """A step that wants the store's own transaction is run by its holder, wherever it was first tried."""
    if not backend.capabilities.user_transactions:
        pytest.skip("this store has no transactions for users")
    with backend.connect() as db:
        db.execute("CREATE TABLE effect (x INTEGER)")
    barrier = threading.Barrier(2)
    tried: Counter[str] = Counter()

    @task
    def meet(x: int) -> int:
        met(barrier)
        return x

    @task
    def book(x: int) -> int:
        tried["book"] += 1
        with task_context().transaction() as db:
            db.execute(f"INSERT INTO effect VALUES ({int(x)})")  # noqa: S608  # each store has its own placeholder
        return x

    flow = (
        Flow("book")
        .then(add)
        .fork()
        .branch(meet, name="a")
        .branch(meet, name="b")
        .branch(book, name="c")
        .branch(book, name="d")
        .join(lambda parts: parts, name="gather")
        .build()
    )
    start(flow, name="ann", concurrency=1)
    start(flow, name="bob", concurrency=1)
    assert client.result(client.start(flow, 1).instance_id, timeout=LIMIT_S) == dict.fromkeys("abcd", 2)
    with backend.connect() as db:
        assert db.execute("SELECT count(*) FROM effect").fetchall() == [(2,)]
        db.execute("DROP TABLE effect")


def test_a_cursor_kept_away_from_home_is_there_for_the_next_attempt(client: WorkflowClient, start: Start) -> None:
    """Heartbeats of an offered step reach the instance's journal."""
    seen: list[object] = []

    @task(tags=["gpu"], attempts=2)
    def copy(x: int) -> int:
        seen.append(task_context().cursor)
        if task_context().attempt == 1:
            task_context().heartbeat(7)
            raise OSError("cut")
        return x

    flow = Flow("copy").then(add).then(copy).build()
    start(flow, name="plain")
    start(flow, name="gpu", tags=["gpu"])
    assert client.result(client.start(flow, 1).instance_id, timeout=LIMIT_S) == 2
    assert seen == [None, 7]


def test_a_cancel_reaches_a_step_that_runs_elsewhere(client: WorkflowClient, start: Start) -> None:
    """Whoever runs an offered step is told to stop, and the run ends as cancelled."""
    running, stopped = threading.Event(), threading.Event()

    @task(tags=["gpu"])
    def endless(x: int) -> int:
        running.set()
        while True:
            try:
                task_context().raise_if_cancelled()
            except BaseException:
                stopped.set()
                raise
            stopped.wait(0.001)

    flow = Flow("endless").then(add).then(endless).build()
    start(flow, name="plain")
    start(flow, name="gpu", tags=["gpu"])
    instance = client.start(flow, 1).instance_id
    assert running.wait(LIMIT_S)
    client.cancel(instance)
    with pytest.raises(WorkflowCancelled):
        client.result(instance, timeout=LIMIT_S)
    assert stopped.wait(LIMIT_S)


def test_a_paused_run_starts_nothing_that_is_on_offer(backend: Any, client: WorkflowClient, start: Start) -> None:
    """Offers nobody has taken come back with a pause, and go out again with the resume."""
    ran: list[int] = []

    @task(tags=["gpu"])
    def render(x: int) -> int:
        ran.append(x)
        return x

    @workflow
    def flow(x: int) -> int:
        a = add(x)
        return render(a)

    start(flow, name="plain")
    instance = client.start(flow, 1).instance_id
    until(lambda: backend.header(instance).offered)
    client.pause(instance)
    until(lambda: client.status(instance).state == "paused")
    start(flow, name="gpu", tags=["gpu"])
    assert client.result(client.start(flow, 10).instance_id, timeout=LIMIT_S) == 11
    assert ran == [11]
    client.resume(instance)
    assert client.result(instance, timeout=LIMIT_S) == 2


def test_a_task_that_asks_for_the_end_of_the_process_is_quarantined(client: WorkflowClient, start: Start) -> None:
    """``sys.exit`` in a task counts as a crash of it; the worker and everybody else go on."""
    runs: list[int] = []
    cured = threading.Event()

    @task
    def leave(x: int) -> int:
        if not cured.is_set():
            runs.append(x)
            raise SystemExit(1)
        return x

    flow = Flow("leave").then(leave).build()
    start(flow, chain, max_crashes=3)
    bad, good = client.start(flow, 1).instance_id, client.start(chain, 1).instance_id
    assert client.result(good, timeout=LIMIT_S) == 5
    with pytest.raises(InstanceHeld) as held:
        client.result(bad, timeout=LIMIT_S)
    assert held.value.reason == "quarantined"
    assert len(runs) == 3
    cured.set()
    client.decide(bad, "leave", Rerun())
    assert client.result(bad, timeout=LIMIT_S) == 1


def test_no_more_run_at_once_than_are_allowed(client: WorkflowClient, start: Start) -> None:
    """``max_running`` holds over all workers, for each lane apart; others are not delayed by it."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    @task
    def work(lane: str) -> str:
        with lock:
            now[lane] += 1
            most[lane] = max(most[lane], now[lane])
        threading.Event().wait(0.002)
        with lock:
            now[lane] -= 1
        return lane

    flow = Flow("limited").then(work).build()
    for name in ("ann", "bob"):
        start(flow, chain, name=name, max_running={"limited": 2})
    ids = [client.start(flow, lane, lane=lane).instance_id for lane in ["a", "b"] * 15]
    other = client.start(chain, 1).instance_id
    assert client.result(other, timeout=LIMIT_S) == 5
    for each in ids:
        client.result(each, timeout=LIMIT_S)
    assert all(1 <= most[lane] <= 2 for lane in "ab"), most


def test_urgent_work_goes_first(client: WorkflowClient, start: Start) -> None:
    """With one place, what has a higher priority is done before what was queued earlier."""
    order: list[str] = []

    @task(priority=5)
    def slow(x: int) -> int:
        order.append("slow")
        return x

    @task(priority=1)
    def urgent(x: int) -> int:
        order.append("urgent")
        return x

    low, high = Flow("low").then(slow).build(), Flow("high").then(urgent).build()
    ids = [client.start(low, 1).instance_id for _ in range(3)] + [client.start(high, 1).instance_id for _ in range(3)]
    start(low, high, concurrency=1)
    for each in ids:
        client.result(each, timeout=LIMIT_S)
    assert order.index("urgent") <= 1
    assert order.index("slow") <= 2, "workflows take turns, whatever their priority"


def test_what_a_worker_does_not_know_is_left_alone(client: WorkflowClient, start: Start) -> None:
    """An instance of another workflow stays as it is and delays nobody."""
    foreign = Flow("foreign").then(add).build()
    strange = client.start(foreign, 1).instance_id
    start(chain)
    assert client.result(client.start(chain, 1).instance_id, timeout=LIMIT_S) == 5
    assert client.status(strange).state == "pending"


def test_signals_and_delays_wake_a_worker(client: WorkflowClient, start: Start) -> None:
    """What waits is held by nobody, and goes on when its message comes."""

    @workflow
    def asks(x: int) -> int:
        answer = signal("answer", int)
        return add(answer)

    start(asks)
    instance = client.start(asks, 1).instance_id
    client.signal(instance, "answer", 41)
    assert client.result(instance, timeout=LIMIT_S) == 42


# --- stopping -------------------------------------------------------------------------------------------


def test_draining_lets_what_runs_end_and_gives_the_rest_back(backend: Any, client: WorkflowClient) -> None:
    """The running step is recorded, the next one is not begun, and nobody holds the instance afterwards."""
    began, go_on, after = threading.Event(), threading.Event(), threading.Event()

    @task
    def first(x: int) -> int:
        began.set()
        go_on.wait(LIMIT_S)
        return x + 1

    @task
    def second(x: int) -> int:
        after.set()
        return x + 1

    flow = Flow("two").then(first).then(second).build()
    worker = PooledWorker(backend, [flow], name="ann")
    handle = worker.start()
    instance = client.start(flow, 1).instance_id
    assert began.wait(LIMIT_S)
    handle.shutdown()
    assert handle.health().state == "draining"
    go_on.set()
    handle.join(LIMIT_S)
    assert handle.health().state == "stopped"
    assert not after.is_set()
    assert client.task_result(instance, "first", type=int) == 2
    header = backend.header(instance)
    assert header.session == 0
    with PooledWorker(backend, [flow], name="bob").start():
        assert client.result(instance, timeout=LIMIT_S) == 3


def test_leaving_waits_for_nothing(backend: Any, client: WorkflowClient) -> None:
    """What runs is given back at once, and its late outcome is not taken."""
    began, go_on = threading.Event(), threading.Event()
    runs: list[int] = []

    @task
    def long(x: int) -> int:
        runs.append(x)
        if len(runs) == 1:
            began.set()
            go_on.wait(LIMIT_S)
            return -1
        return x

    flow = Flow("long").then(long).build()
    handle = PooledWorker(backend, [flow], name="ann").start()
    instance = client.start(flow, 1).instance_id
    assert began.wait(LIMIT_S)
    handle.leave()
    handle.join(LIMIT_S)
    with PooledWorker(backend, [flow], name="bob").start():
        assert client.result(instance, timeout=LIMIT_S) == 1
    go_on.set()


def test_a_worker_runs_on_a_loop(backend: Any, client: WorkflowClient) -> None:
    """``run_async`` is awaited, and drains when it is cancelled."""

    async def main() -> int:
        worker = PooledWorker(backend, [chain])
        running = asyncio.create_task(worker.run_async())
        instance = client.start(chain, 1).instance_id
        result = await asyncio.to_thread(client.result, instance, timeout=LIMIT_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert worker.health().state == "stopped"
        return int(str(result))

    assert asyncio.run(main()) == 5


def test_a_worker_runs_once(backend: Any) -> None:
    """What has ended is not begun again."""
    worker = PooledWorker(backend, [chain])
    with worker.start():
        pass
    with pytest.raises(UsageError, match="make another"):
        worker.run()


# --- health ---------------------------------------------------------------------------------------------


def test_health_says_what_a_probe_needs(backend: Any, client: WorkflowClient) -> None:
    """Before, while and after it works, without asking the store."""
    began, go_on = threading.Event(), threading.Event()

    @task
    def hold(x: int) -> int:
        began.set()
        go_on.wait(LIMIT_S)
        return x

    flow = Flow("hold").then(hold).build()
    worker = PooledWorker(backend, [flow], name="ann", tags=["b", "a"], concurrency=3)
    assert (worker.health().state, worker.health().healthy) == ("new", False)
    with worker.start() as handle:
        client.start(flow, 1)
        assert began.wait(LIMIT_S)
        health = handle.health()
        assert (health.name, health.workflows, health.tags, health.concurrency) == ("ann", ("hold",), ("a", "b"), 3)
        assert (health.running, health.held, health.healthy) == (1, 1, True)
        assert health.lease_left_s is not None
        assert 0 < health.lease_left_s <= 24
        go_on.set()
    assert (worker.health().state, worker.health().running) == ("stopped", 0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"tags": "gpu"}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"lease": "10ms"}, "lease"),
        ({"poll": 0}, "poll"),
        ({"max_crashes": 0}, "max_crashes"),
        ({"max_running": {"other": 1}}, "other"),
        ({"max_running": {"chain": 0}}, "max_running"),
    ],
)
def test_wrong_options_are_refused_by_name(backend: Any, options: dict[str, Any], text: str) -> None:
    """Before anything runs."""
    with pytest.raises(OptionError, match=text):
        PooledWorker(backend, [chain], **options)


def test_a_worker_needs_a_backend_and_workflows(backend: Any) -> None:
    """The two mistakes of the first minute."""
    with pytest.raises(UsageError, match="SqliteBackend"):
        PooledWorker("fleet.db", [chain])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one"):
        PooledWorker(backend, [])


def test_what_failed_here_is_left_to_others_first(backend: Any, client: WorkflowClient) -> None:
    """A long backoff names the worker that should not be the first to try again."""

    @task(retry=Retry(attempts=2, delay="1h", jitter=0))
    def flaky(x: int) -> int:
        raise OSError("busy")

    flow = Flow("flaky").then(flaky).build()
    with PooledWorker(backend, [flow], name="ann", poll="20ms").start():
        instance = client.start(flow, 1).instance_id
        until(lambda: client.attempts(instance))
        until(lambda: not backend.header(instance).session)
    found = backend.header(instance)
    assert found.due_us
    taken = {}
    for name in ("ann", "bob"):
        session = backend.open_session(this_process(name), 30_000_000)
        want = Want([found.definition], found.due_us + 1, 1, avoid=name, patience_us=250_000)
        taken[name] = len(backend.claim_due(session, want))
        backend.end_session(session)
    assert taken == {"ann": 0, "bob": 1}
