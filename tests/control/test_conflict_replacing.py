"""A run that is replaced while somebody works on it: the old call hears of it at once, and the new run is its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    InputMismatch,
    InstanceConflict,
    InstanceDamaged,
    InstanceExists,
    SqliteBackend,
    UsageError,
    WorkflowCancelled,
    delay,
    parallel,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.runtime.clock import SystemClock, Wait
from stepwell.runtime.starting import Start, start_of, start_unheld
from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed

TERMINATE = "terminate_existing"


@pytest.fixture
def backend(kind: str, tmp_path: Path) -> Iterator[Any]:
    made = open_store(kind, tmp_path / "runs.db")
    yield made
    assert not made.stuck(0)
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Other threads; they are waited for after the runners are closed, so that a call that hears nothing ends too."""
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def open_runner(backend: Any, pool: ThreadPoolExecutor) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(CheckpointingRunner(backend, **options))


class Watched(SystemClock):
    """Lets a test see that a call waits."""

    def __init__(self) -> None:
        self.waiting = threading.Event()

    def timeout_s(self, wait: Wait) -> float | None:
        if not wait.busy:
            self.waiting.set()
        return super().timeout_s(wait)


class Gate:
    """Bodies that stop for input 1 until the test lets them go."""

    def __init__(self, bodies: int = 1) -> None:
        self.entered, self.go, self.ended = threading.Semaphore(0), threading.Event(), list[int]()

        @task
        def stops(x: int) -> int:
            if x == 1:
                self.entered.release()
                assert self.go.wait(20)
            return x

        @task
        def ends(x: int) -> int:
            self.ended.append(x)
            return x

        @workflow
        def alone(x: int) -> int:
            return ends(stops(x))

        @workflow
        def side_by_side(x: int) -> int:
            with parallel():
                stops(x)
                b = stops(x)
            return ends(b)

        self.workflow = alone if bodies == 1 else side_by_side
        self.bodies = bodies

    def wait_until_entered(self) -> None:
        for _ in range(self.bodies):
            assert self.entered.acquire(timeout=20)


@workflow
def asking(x: int) -> int:
    return signal("answer", int)


def start_through(door: str, runner: Any, value: int, **options: Any) -> Any:
    """Start by a runner or without holding; return the status or the header."""
    if door == "start":
        return runner.start(asking, value, instance_id="i", **options)
    room = runner._room
    (header,) = start_unheld(room, room.prepare(asking), [start_of(value, {"instance_id": "i", **options})])
    return header


def status_of(runner: Any) -> tuple[str, int, str]:
    status = runner.client.status("i")
    return status.state, status.run, status.held_by


# --- by the same runner -----------------------------------------------------------------------------------


def test_a_run_in_its_callers_thread_is_replaced_by_another_thread(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """The new run does not wait for the old body; whose late result moves nothing."""
    gate, runner = Gate(), open_runner()
    old = pool.submit(runner.run, gate.workflow, 1, instance_id="i")
    gate.wait_until_entered()
    assert runner.run(gate.workflow, 2, instance_id="i", on_conflict=TERMINATE) == 2
    gate.go.set()
    with pytest.raises(WorkflowCancelled, match="another run has taken its place"):
        old.result(20)
    assert gate.ended == [2]
    assert status_of(runner) == ("completed", 2, "")


def test_a_run_with_bodies_in_threads_hears_of_it_before_they_end(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """The old call returns although its bodies still run."""
    gate, runner = Gate(bodies=2), open_runner()
    old = pool.submit(runner.run, gate.workflow, 1, instance_id="i")
    gate.wait_until_entered()
    try:
        assert runner.run(gate.workflow, 2, instance_id="i", on_conflict=TERMINATE) == 2
        with pytest.raises(WorkflowCancelled):
            old.result(20)
    finally:
        gate.go.set()
    assert gate.ended == [2]
    assert status_of(runner) == ("completed", 2, "")


def test_a_waiting_run_hears_of_it_without_a_poll(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """Its mailbox is what wakes it: the runner looks for news of others once an hour."""
    clock = Watched()
    runner = open_runner(clock=clock, poll="1h")
    old = pool.submit(runner.run, asking, 1, instance_id="i")
    assert clock.waiting.wait(20)
    assert runner.start(asking, 2, instance_id="i", on_conflict=TERMINATE).run == 2
    with pytest.raises(WorkflowCancelled):
        old.result(20)
    assert status_of(runner) == ("waiting", 2, "")


def test_a_waiting_run_hears_of_a_client_of_the_same_runner(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """Nobody holds the new run; the old call still returns at once."""
    clock = Watched()
    runner = open_runner(clock=clock, poll="1h")
    room = runner._room
    old = pool.submit(runner.run, asking, 1, instance_id="i")
    assert clock.waiting.wait(20)
    start = start_of(2, {"instance_id": "i", "on_conflict": TERMINATE})
    (header,) = start_unheld(room, room.prepare(asking), [start])
    assert (header.run, header.session) == (2, 0)
    with pytest.raises(WorkflowCancelled):
        old.result(20)


def test_the_new_run_is_known_as_running_after_the_old_call_left(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """The old call's leaving does not strike out the new one, so a third is still refused."""
    first, second, runner = Gate(), Gate(), open_runner()
    old = pool.submit(runner.run, first.workflow, 1, instance_id="i")
    first.wait_until_entered()
    new = pool.submit(runner.run, second.workflow, 1, instance_id="i", on_conflict=TERMINATE)
    second.wait_until_entered()
    first.go.set()
    with pytest.raises(WorkflowCancelled):
        old.result(20)
    with pytest.raises(AlreadyRunning):
        runner.resume(second.workflow, "i")
    second.go.set()
    assert new.result(20) == 1


def test_another_policy_does_not_disturb_a_run_of_the_same_runner(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """FAIL says that it exists, the others that it is running; the run itself hears nothing."""
    gate, runner = Gate(), open_runner()
    run = pool.submit(runner.run, gate.workflow, 1, instance_id="i")
    gate.wait_until_entered()
    with pytest.raises(InstanceExists):
        runner.run(gate.workflow, 1, instance_id="i", on_conflict="fail")
    for policy in ("use_existing", "restart_if_failed"):
        with pytest.raises(AlreadyRunning):
            runner.run(gate.workflow, 1, instance_id="i", on_conflict=policy)
    gate.go.set()
    assert run.result(20) == 1


def test_a_refused_start_gives_back_what_the_same_call_created(open_runner: Any, backend: Any) -> None:
    """One of three ids is another workflow's; the other two can be run by anybody at once."""
    gate, runner = Gate(), open_runner()
    runner.start(asking, 1, instance_id="b")
    with pytest.raises(InstanceConflict):
        runner.run_many(gate.workflow, [2, 3, 4], instance_ids=["a", "b", "c"])
    assert [backend.header(i).held_by for i in ("a", "b", "c")] == ["", "", ""]
    assert open_runner().run_many(gate.workflow, [2, 4], instance_ids=["a", "c"]) == [2, 4]


def test_nobody_gets_in_between_the_store_and_the_room(
    backend: Any, open_runner: Any, pool: ThreadPoolExecutor
) -> None:
    """While a run is created, claimed or given back, no other call of the runner may look which runs it works on."""
    runner, free = open_runner(), list[bool]()

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(backend, name)

        def watching(*args: Any) -> Any:
            if free_now := pool.submit(runner._room.entering.acquire, False).result(20):
                pool.submit(runner._room.entering.release)
            free.append(free_now)
            return method(*args)

        return watching

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "claim", "release", "claim_due"):
            patch.setattr(backend, name, watched(name))
        runner.start(asking, 1, instance_id="i")
        runner.start(asking, 1, instance_id="i")
        before = len(free)
        runner.recover([asking])
    assert before == 5
    assert free == [False] * len(free) != [False] * before


def test_a_call_that_leaves_does_not_free_what_the_next_one_took_up(
    backend: Any, open_runner: Any, pool: ThreadPoolExecutor
) -> None:
    """The next call claims with the same session, between the first one's leaving and its release."""
    clock = Watched()
    runner = open_runner(clock=clock, poll="1h")
    leave, next_calls = runner._room.leave, list[Any]()

    def leaving(live: Any) -> None:
        leave(live)
        if not next_calls:
            next_calls.append(pool.submit(runner.run, asking, 1, instance_id="i"))
            assert clock.waiting.wait(20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._room, "leave", leaving)
        runner.start(asking, 1, instance_id="i")
    assert backend.header("i").held_by != ""
    runner.client.signal("i", "answer", 3)
    assert next_calls[0].result(20) == 3


@pytest.mark.broken_store
def test_an_instance_that_is_lost_with_something_unwritten_is_not_held(tmp_path: Path) -> None:
    """Nothing more is committed for it, so nobody claims it by a commit."""

    @task(delivery="at_most_once")
    def once(x: int) -> int:
        return x

    @task
    def step(x: int) -> int:
        return x

    @workflow
    def losing(x: int) -> int:
        a = step(x)
        b = step(a)
        y = signal("answer", int)
        with parallel():
            once(y)
            step(b)
        return step(a)

    with SqliteBackend(tmp_path / "runs.db") as backend, CheckpointingRunner(backend) as runner:
        runner.start(losing, 1, instance_id="i")
        backend.connect().execute("UPDATE journal SET output = NULL WHERE seq = 3")
        runner.client.signal("i", "answer", 1)
        with pytest.raises(InstanceDamaged):
            runner.run(losing, 1, instance_id="i")
        assert backend.header("i").held_by == ""  # type: ignore[union-attr]


# --- by awaiting runs of one loop -------------------------------------------------------------------------


def test_an_awaiting_run_is_replaced_by_another_one_of_its_loop(backend: Any) -> None:
    """Both share a drive; the old coroutine is cancelled and its caller hears why, the new one goes on."""
    cancelled: list[int] = []

    @task
    async def stops(x: int) -> int:
        if x == 1:
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(x)
                raise
        return x

    @workflow
    async def stopping(x: int) -> int:
        return await stops(x)

    async def main() -> None:
        nonlocal entered
        entered = asyncio.Event()
        async with asyncio.timeout(20), AsyncCheckpointingRunner(backend) as runner:
            old = asyncio.create_task(runner.run(stopping, 1, instance_id="i"))
            other = asyncio.create_task(runner.run(asking, 1, instance_id="bystander"))
            await entered.wait()
            assert await runner.run(stopping, 2, instance_id="i", on_conflict=TERMINATE) == 2
            with pytest.raises(WorkflowCancelled, match="another run has taken its place"):
                await old
            await runner.client.signal("bystander", "answer", 7)
            assert await other == 7

    entered: asyncio.Event
    asyncio.run(main())
    assert cancelled == [1]
    assert (backend.header("i").state, backend.header("i").run) == ("completed", 2)


def test_each_of_a_row_of_awaiting_runs_gives_way_to_the_next(backend: Any) -> None:
    """Ten callers replace one another in one drive; nine hear of it and the last one has the instance."""

    async def main() -> list[object]:
        async with asyncio.timeout(20), AsyncCheckpointingRunner(backend) as runner:
            runs = [
                asyncio.create_task(runner.run(asking, n, instance_id="i", on_conflict=TERMINATE)) for n in range(10)
            ]
            while backend.header("i") is None or backend.header("i").run < 10:
                await asyncio.sleep(0)
            await runner.client.signal("i", "answer", 99)
            return await asyncio.gather(*runs, return_exceptions=True)

    *old, last = asyncio.run(main())
    assert [type(each) for each in old] == [WorkflowCancelled] * 9
    assert last == 99


# --- by another runner ------------------------------------------------------------------------------------


def test_a_waiting_run_hears_of_another_runner(open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """It has nothing to commit, so it has to look: once the store says that somebody has written."""
    clock = Watched()
    first, second = open_runner(clock=clock, poll="1ms"), open_runner()
    old = pool.submit(first.run, asking, 1, instance_id="i")
    assert clock.waiting.wait(20)
    assert second.start(asking, 2, instance_id="i", on_conflict=TERMINATE).run == 2
    with pytest.raises(WorkflowCancelled, match="another run has taken its place"):
        old.result(20)
    assert status_of(second) == ("waiting", 2, "")


def test_the_new_run_is_not_taken_by_who_lost_the_old(backend: Any, open_runner: Any, pool: ThreadPoolExecutor) -> None:
    """The old holder finds a run that nobody holds, and leaves it alone."""
    gate, first = Gate(), open_runner()
    room = open_runner()._room
    old = pool.submit(first.run, gate.workflow, 1, instance_id="i")
    gate.wait_until_entered()
    start = start_of(2, {"instance_id": "i", "on_conflict": TERMINATE})
    (created,) = start_unheld(room, room.prepare(gate.workflow), [start])
    gate.go.set()
    with pytest.raises(WorkflowCancelled):
        old.result(20)
    assert backend.header("i") == created


def test_a_runner_that_still_works_on_a_replaced_run_takes_up_the_new_one(
    open_runner: Any, pool: ThreadPoolExecutor
) -> None:
    """What it works on under this id is not what the id stands for any more."""
    gate, first, second = Gate(), open_runner(), open_runner()
    old = pool.submit(first.run, gate.workflow, 1, instance_id="i")
    gate.wait_until_entered()
    assert second.run(gate.workflow, 2, instance_id="i", on_conflict=TERMINATE) == 2
    assert first.run(gate.workflow, 2, instance_id="i") == first.resume(gate.workflow, "i") == 2
    gate.go.set()
    with pytest.raises(WorkflowCancelled):
        old.result(20)


@pytest.mark.parametrize(
    ("policy", "door", "method"),
    [
        ("use_existing", "start", "claim"),
        ("restart_if_failed", "start", "claim"),
        ("restart_if_failed", "client", "load"),
    ],
)
def test_an_input_is_compared_with_that_of_the_run_which_is_acted_on(
    policy: str, door: str, method: str, backend: Any, open_runner: Any
) -> None:
    """The run is replaced, with another input, after the policy was decided and before it is carried out."""
    runner, other = open_runner(), open_runner()
    done = getattr(backend, method)
    ended = policy == "restart_if_failed"

    def begin(by: Any, value: int) -> None:
        by.start(asking, value, instance_id="i", on_conflict=TERMINATE)
        if ended:
            by.client.cancel("i")

    begin(runner, 1)

    def after_another(*args: Any) -> Any:
        patch.undo()
        begin(other, 2)
        return done(*args)

    patch = pytest.MonkeyPatch()
    patch.setattr(backend, method, after_another)
    with patch.context(), pytest.raises(InputMismatch):
        start_through(door, runner, 1, on_conflict=policy)
    assert status_of(runner) == ("cancelled" if ended else "waiting", 2, "")


@pytest.mark.parametrize("door", ["start", "client"])
def test_an_id_that_was_deleted_and_taken_meanwhile_is_not_replaced(door: str, backend: Any, open_runner: Any) -> None:
    """It belongs to another workflow by the time that the old run is to be ended."""
    runner, load = open_runner(), backend.load
    room = runner._room
    runner.start(asking, 1, instance_id="i")
    runner.client.cancel("i")

    def after_another(instance_id: str) -> Any:
        patch.undo()
        backend.delete("i")
        start_unheld(room, room.prepare(napping), [Start(1, "i")])
        return load(instance_id)

    patch = pytest.MonkeyPatch()
    patch.setattr(backend, "load", after_another)
    with patch.context(), pytest.raises(InstanceConflict, match="'napping'"):
        start_through(door, runner, 1, on_conflict=TERMINATE)
    assert (backend.header("i").workflow, backend.header("i").run) == ("napping", 1)


@pytest.mark.parametrize("policy", ["use_existing", "restart_if_failed", TERMINATE])
@pytest.mark.parametrize("door", ["start", "client"])
def test_an_id_that_was_deleted_meanwhile_is_created(policy: str, door: str, backend: Any, open_runner: Any) -> None:
    """The call was on its way to a run that is gone."""
    runner, create = open_runner(), backend.create
    runner.start(asking, 1, instance_id="i")
    runner.client.cancel("i")

    def before_its_end(*args: Any) -> Any:
        patch.undo()
        answers = create(*args)
        backend.delete("i")
        return answers

    patch = pytest.MonkeyPatch()
    patch.setattr(backend, "create", before_its_end)
    left = start_through(door, runner, 1, on_conflict=policy)
    attached = door == "client" and policy == "use_existing"  # it asks the store only once
    assert (left.run, left.state) == (1, "cancelled" if attached else "waiting")


@pytest.mark.broken_store
def test_a_run_that_cannot_be_read_can_be_replaced(tmp_path: Path) -> None:
    """Nothing else would get rid of it: it cannot be resumed, cancelled or deleted."""
    with SqliteBackend(tmp_path / "runs.db") as backend, CheckpointingRunner(backend) as runner:
        runner.start(asking, 1, instance_id="i")
        number = backend.header("i").instance  # type: ignore[union-attr]
        backend.connect().execute("UPDATE instance SET image = x'00' WHERE id = ?", (number,))
        status = runner.start(asking, 1, instance_id="i", on_conflict=TERMINATE)
        assert (status.state, status.run) == ("waiting", 2)
        ((state, replaced),) = backend.connect().execute("SELECT state, replaced FROM instance WHERE run = 1")
        assert (state, replaced) == ("cancelled", 1)


# --- without a drive --------------------------------------------------------------------------------------


@task
def asked(x: int) -> int:
    assert task_context().run == 1
    return x


@workflow
def napping(x: int) -> int:
    delay("1h")
    return asked(x)


def test_unheld_instances_are_due_at_once_or_when_their_first_wait_ends(backend: Any, open_runner: Any) -> None:
    """Whoever claims what is due finds them; nothing has run."""
    runner = open_runner(clock=(clock := VirtualClock(jump=False)))
    room = runner._room
    (now,) = start_unheld(room, room.prepare(asking_first := Gate().workflow), [Start(2, "now", labels={"a": "b"})])
    (later,) = start_unheld(room, room.prepare(napping), [Start(3, "later")])
    assert (now.state, now.session, now.labels) == ("pending", 0, {"a": "b"})
    assert now.due_us is not None
    assert now.due_us <= clock.now_us()
    assert (later.state, later.due_us) == ("waiting", clock.now_us() + 3_600_000_000)
    assert [s.state for s in runner.recover([asking_first, napping])] == ["completed"]
    clock.advance("1h")
    assert [s.state for s in runner.recover([napping])] == ["completed"]


def test_many_unheld_instances_are_one_transaction(backend: Any, open_runner: Any) -> None:
    """Made ids differ, an id given twice is one instance, and one creation is asked for."""
    room = open_runner()._room
    asked_for: list[int] = []
    create = backend.create

    def counting(session: Any, creations: Any) -> Any:
        asked_for.append(len(creations))
        return create(session, creations)

    prepared = room.prepare(asking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "create", counting)
        headers = start_unheld(room, prepared, [Start(1), Start(2), Start(3, "i"), Start(3, "i")])
    assert asked_for == [4]
    assert len({header.instance for header in headers}) == 3
    assert headers[2] == headers[3]


@pytest.mark.parametrize("policy", [TERMINATE, "restart_if_failed"])
def test_a_transaction_of_the_users_own_replaces_and_reopens_nothing(policy: str, open_runner: Any) -> None:
    """It is refused before anything is written, with the reason."""
    room = open_runner()._room

    class Untouched:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was called")

    within: Any = Untouched()
    with pytest.raises(UsageError, match=f"'{policy}' cannot be part of your own transaction"):
        start_unheld(room, room.prepare(asking, register=False), [Start(1, "i", policy)], within)


def test_a_start_lands_with_the_users_transaction_or_not_at_all(tmp_path: Path) -> None:
    """The plan is registered with it, too; what exists is judged by what the transaction sees."""
    with SqliteBackend(tmp_path / "runs.db") as backend, CheckpointingRunner(backend) as runner:
        room, connection = runner._room, backend.connect()
        prepared = room.prepare(asking, register=False)
        connection.execute("BEGIN IMMEDIATE")
        start_unheld(room, prepared, [Start(1, "i")], backend.within(connection))
        connection.execute("ROLLBACK")
        assert backend.header("i") is None
        assert backend.plan(prepared.plan.fingerprint, "asking") is None
        connection.execute("BEGIN IMMEDIATE")
        for policy in (None, "use_existing"):
            (header,) = start_unheld(room, prepared, [Start(1, "i", policy)], backend.within(connection))
        with pytest.raises(InstanceExists):
            start_unheld(room, prepared, [Start(1, "i", "fail")], backend.within(connection))
        connection.execute("COMMIT")
        assert backend.header("i") == header
        runner.client.signal("i", "answer", 5)
        assert runner.run(asking, 1, instance_id="i") == 5
        connection.close()
