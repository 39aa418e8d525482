"""Starting instances for others to run, and waiting for their ends."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest

from stepwell import (
    DecodeError,
    EncodeError,
    InputMismatch,
    InstanceConflict,
    InstanceEnded,
    InstanceExists,
    InstanceHeld,
    InstanceNotFound,
    InstancePaused,
    OptionError,
    Record,
    SyncInAsync,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
    inject,
    signal,
    task,
    workflow,
)
from stepwell.runtime.client import WorkflowClient

from .client_worlds import ID, World


@dataclass
class Receipt:
    number: int


class Bank:
    pass


@task
def pays(x: int, bank: Bank = inject()) -> Receipt:
    return Receipt(x)


@workflow
def paying(x: int) -> Receipt:
    return pays(x)


@workflow
def waiting() -> int:
    return signal("answer", int)


# --- start -------------------------------------------------------------------------------------------


def test_a_started_instance_waits_for_whoever_runs_it(world: World) -> None:
    """It is pending and due, held by nobody; a runner's recover takes it up."""
    status = world.client.start(world.flows.quick, 1, instance_id=ID, labels={"team": "a"})
    assert (status.instance_id, status.state, status.held_by, status.labels) == (ID, "pending", "", {"team": "a"})
    world.recover()
    assert world.client.result(ID, world.flows.quick) == 3


def test_starting_needs_no_dependencies(world: World) -> None:
    """Running does, and says so."""
    status = world.client.start(paying, 1)
    assert status.state == "pending"
    with pytest.raises(Exception, match="Bank"):
        world.runner.recover([paying])


def test_a_workflow_without_input_and_a_plain_function_start_alike(world: World) -> None:
    """The first rests at its signal at once; the second is a workflow of one step."""

    def double(x: int) -> int:
        return 2 * x

    assert world.client.start(waiting).state == "waiting"
    assert world.client.start(double, 1, instance_id=ID).workflow == "double"


def test_a_wrong_start_creates_nothing(world: World) -> None:
    """Input, options and ids are checked first."""
    flows: Any = world.flows
    for error, values, options in (
        (UsageError, ("one",), {}),
        (UsageError, (), {}),
        (EncodeError, (object(),), {}),
        (OptionError, (1,), {"on_conflict": "maybe"}),
        (OptionError, (1,), {"labelz": {}}),
        (OptionError, (1,), {"instance_id": ""}),
    ):
        with pytest.raises(error):
            world.client.start(flows.quick, *values, **options)
    with pytest.raises(UsageError, match="runs workflows and tasks"):
        world.client.start(7)  # type: ignore[call-overload]
    assert world.client.count() == 0


def test_an_id_that_exists_is_treated_as_the_policy_says(world: World) -> None:
    """The whole table is the runners' own; these are its corners."""
    world.bring("failed")
    with pytest.raises(InstanceExists):
        world.client.start(world.flows.failing, 1, instance_id=ID, on_conflict="fail")
    with pytest.raises(InputMismatch):
        world.client.start(world.flows.failing, 2, instance_id=ID)
    with pytest.raises(InstanceConflict):
        world.client.start(world.flows.quick, 1, instance_id=ID)
    assert world.client.start(world.flows.failing, 1, instance_id=ID).state == "failed"
    assert world.client.start(world.flows.failing, 1, instance_id=ID, on_conflict="restart_if_failed").run == 1
    assert world.state == "running"
    assert world.client.start(world.flows.failing, 1, instance_id=ID, on_conflict="terminate_existing").run == 2


def test_many_are_started_at_once(world: World) -> None:
    """In order, with labels of their own batch."""
    statuses = world.client.start_many(world.flows.quick, [1, 2, 3], instance_ids=["a", "b", "c"], labels={"n": "1"})
    assert [s.instance_id for s in statuses] == ["a", "b", "c"]
    world.runner.recover([world.flows.quick])
    assert [world.client.result(s.instance_id) for s in statuses] == [3, 4, 5]
    assert world.client.count(labels={"n": "1"}) == 3
    with pytest.raises(OptionError, match="3 inputs and 1 instance_ids"):
        world.client.start_many(world.flows.quick, [1, 2, 3], instance_ids=["d"])
    with pytest.raises(InstanceExists):
        world.client.start_many(world.flows.quick, [1, 2], instance_ids=["a", "e"], on_conflict="fail")


def test_an_instance_may_be_part_of_the_users_own_transaction(world: World) -> None:
    """It is there if and only if that commits; a store without them refuses."""
    backend: Any = world.client._room.backend
    if not backend.capabilities.user_transactions:
        with pytest.raises(OptionError):
            world.client.start(world.flows.quick, 1, connection=object())
        return
    connection = backend.connect()
    for end, found in (("ROLLBACK", 0), ("COMMIT", 1)):
        if world.kind == "sqlite":
            connection.execute("BEGIN IMMEDIATE")  # psycopg begins by itself
        world.client.start(world.flows.quick, 1, instance_id=ID, connection=connection)
        connection.execute(end)
        assert world.client.count() == found
    connection.close()
    world.recover()
    assert world.client.result(ID) == 3


# --- result ---------------------------------------------------------------------------------------------


def test_a_result_is_typed_by_its_workflow(world: World) -> None:
    """Without, it is read as it was stored."""

    @task
    def receipt(x: int) -> Receipt:
        return Receipt(x)

    @workflow
    def receiving(x: int) -> Receipt:
        return receipt(x)

    world.runner.start(receiving, 7, instance_id=ID)
    assert world.client.result(ID, receiving) == Receipt(7)
    plain = world.client.result(ID)
    assert isinstance(plain, Record)
    assert (plain.type_name, plain["number"]) == ("Receipt", 7)


def test_a_result_of_another_workflow_is_refused(world: World) -> None:
    """By name, and, where a workflow of that name returns something else, by type."""
    world.bring("completed")

    @task
    def text(x: int) -> str:
        return str(x)

    @workflow
    def quick(x: int) -> str:
        return text(x)

    with pytest.raises(InstanceConflict, match="belongs to workflow 'quick'"):
        world.client.result(ID, world.flows.asking)
    with pytest.raises(DecodeError, match="cannot be read as str"):
        world.client.result(ID, quick)


def test_nothing_is_a_result(world: World) -> None:
    """A workflow that returns nothing gives None."""

    @workflow
    def nothing() -> None:
        signal("go", int)

    world.client.start(nothing, instance_id=ID)
    world.client.signal(ID, "go", 1)
    world.runner.recover([nothing])
    assert world.client.result(ID) is None
    assert world.client.result(ID, nothing) is None


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("failed", WorkflowFailed),
        ("cancelled", WorkflowCancelled),
        ("held at a step", InstanceHeld),
        ("paused", InstancePaused),
    ],
)
def test_another_end_is_raised(world: World, state: str, error: type[Exception]) -> None:
    """At once; a failure carries the recorded error."""
    world.bring(state)
    with pytest.raises(error) as caught:
        world.client.result(ID)
    if error is WorkflowFailed:
        assert str(caught.value.__cause__) == "OSError: the wire"


def test_a_result_is_not_waited_for_beyond_the_timeout(world: World) -> None:
    """It goes on all the same; a timeout of nothing is a look."""
    world.bring("at a signal")
    for timeout in ("1h", 0):
        with pytest.raises(TimeoutError, match="goes on all the same"):
            world.client.result(ID, timeout=timeout)
    with pytest.raises(InstanceNotFound):
        world.client.result("nobody", timeout=0)
    assert world.state == "waiting"


def test_a_result_is_waited_for(world: World) -> None:
    """Another session brings it about meanwhile."""
    world.bring("at a signal")
    looked = threading.Event()
    room = world.client._room
    room.poll_us = 1_000
    hint = room.backend.hint  # type: ignore[union-attr]

    def look() -> int:
        looked.set()
        return hint()

    room.backend.hint = look  # type: ignore[union-attr, method-assign]
    results: list[object] = []
    waiter = threading.Thread(target=lambda: results.append(world.client.result(ID)))
    waiter.start()
    assert looked.wait(20)
    world.runner.client.signal(ID, "answer", 5)
    world.recover()
    waiter.join(20)
    assert results == [6]


def test_the_store_is_looked_at_only_when_it_was_written_to(world: World) -> None:
    """A poll costs a hint."""
    from stepwell.runtime.waiting import Rest

    world.bring("at a signal")
    backend: Any = world.client._room.backend
    header, looks = backend.header, list[str]()
    backend.header = lambda instance_id: (looks.append(instance_id), header(instance_id))[1]
    rest = Rest(world.client._room, ID, None, None)
    for _ in range(3):
        assert not rest.reached()
    assert looks == [ID]
    world.client.signal(ID, "answer", 5)
    world.recover()
    assert rest.reached()
    assert rest.output() == 6


def test_a_loop_is_not_blocked_by_a_wait(world: World) -> None:
    """The error names the async twin."""
    import asyncio

    async def wait() -> object:
        return world.client.result(ID)

    with pytest.raises(SyncInAsync, match="AsyncWorkflowClient"):
        asyncio.run(wait())


def test_a_client_is_given_a_backend() -> None:
    """Not a path."""
    with pytest.raises(UsageError, match="SqliteBackend"):
        WorkflowClient("orders.db")  # type: ignore[arg-type]


# --- signals that are checked ------------------------------------------------------------------------------


def test_a_payload_is_checked_where_its_type_is_known(world: World) -> None:
    """By the workflow that is given; a client without code lets it through, and the runner holds the instance."""
    world.bring("at a signal")
    with pytest.raises(UsageError, match="'answer' as int"):
        world.client.signal(ID, "answer", "five", workflow=world.flows.asking)
    with pytest.raises(UsageError, match="'answer' as int"):
        WorkflowClient.over(world.runner._room).signal(ID, "answer", "five")
    with pytest.raises(UsageError, match="awaits no signal 'anser'; the signals it awaits: answer"):
        world.client.signal(ID, "anser", 5)
    with pytest.raises(UsageError, match="belongs to workflow 'asking'"):
        world.client.signal(ID, "answer", 5, workflow=world.flows.quick)
    with pytest.raises(EncodeError, match="payload of signal 'answer'"):
        world.client.signal(ID, "answer", object())
    world.client.signal(ID, "answer", "five")
    world.recover()
    assert world.state == "held"


def test_a_signal_with_an_id_counts_once(world: World) -> None:
    """However often it is sent."""
    world.bring("paused")
    for payload in (5, 6):
        world.client.signal(ID, "answer", payload, signal_id="mail-7")
    world.client.resume(ID)
    world.recover()
    assert world.client.result(ID) == 6


def test_a_signal_may_be_sent_again_after_the_end(world: World) -> None:
    """Its sender cannot know; one that never came is refused."""
    world.bring("at a signal")
    world.client.signal(ID, "answer", 5, signal_id="mail-7")
    world.recover()
    assert world.state == "completed"
    world.client.signal(ID, "answer", 5, signal_id="mail-7")
    for options in ({"signal_id": "mail-8"}, {}):
        with pytest.raises(InstanceEnded):
            world.client.signal(ID, "answer", 5, **options)
