"""What is asked of instances from outside, by somebody who repeats what they do not know to have arrived.

``setup_…`` is played undisturbed before, ``…`` is what dies, and ``again_…`` is another process after it: it looks how
things stand, as a person would, asks again where that is needed, and goes on with everything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stepwell import (
    Complete,
    ConflictPolicy,
    Fail,
    InstanceExists,
    InstanceNotFound,
    InstancePaused,
    Rerun,
    WorkflowCancelled,
    WorkflowClient,
    WorkflowFailed,
    inject,
    signal,
    task,
    task_context,
    workflow,
)

from .dying import Ledger, runner_of

DYING = 10  # the number of the process that dies; those before it have set things up


@task
def first(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + 1


@task
def fragile(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    if ledger.process < DYING:
        raise ValueError("not mended yet")
    ledger.note("end")
    return x * 2


@task(delivery="at_most_once")
def charge(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x * 5


@task
def asks(x: int, *, ledger: Ledger = inject()) -> int:
    """Send a request to its own instance from outside; the sender knows that it has arrived before the body ends."""
    ledger.note("start")
    client, me = ledger.send, task_context().instance_id
    (lambda: client.pause(me), lambda: client.cancel(me), lambda: client.signal(me, "answer", 5, signal_id="one"))[x]()
    ledger.note("asked")
    ledger.note("end")
    return x


@task
def last(x: int, y: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + y


@workflow
def failing(x: int) -> int:
    a = first(x)
    return last(fragile(a), a)


@workflow
def awaiting(x: int) -> int:
    return last(first(x), signal("answer", int))


@workflow
def paying(x: int) -> int:
    a = first(x)
    return last(charge(a), a)


@workflow
def asking(x: int) -> int:
    a = asks(x)
    return last(a, a)


@workflow
def told(x: int) -> int:
    return last(asks(x), signal("answer", int))


@workflow
def short(x: int) -> int:
    return first(x)


ALL = [failing, awaiting, paying, asking, told, short]


@contextmanager
def whatever_the_end():  # type: ignore[no-untyped-def]
    """What a run comes to is read from the store; here it is only brought there."""
    with suppress(WorkflowFailed, WorkflowCancelled, InstancePaused):
        yield


def _goes_on(backend: Any, ledger: Ledger, ask: Callable[[WorkflowClient], object]) -> dict[str, Any]:
    """Ask; whoever does not die in that recovers everything, and tells how the instance stands after it."""
    with runner_of(backend, ledger) as runner:
        ask(runner.client)
        if ledger.process == DYING:
            return {}
        runner.recover(ALL, wait=True)
        return {"state": runner.client.status("i").state}


def _state(client: WorkflowClient, instance_id: str = "i") -> str:
    try:
        return client.status(instance_id).state
    except InstanceNotFound:
        return ""


# --- what was there before -----------------------------------------------------------------------------------


def setup_failed(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner, whatever_the_end():
        runner.run(failing, 1, instance_id="i")
    return {}


def setup_waiting(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"state": runner.start(awaiting, 1, instance_id="i").state}


def setup_cancelled(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        runner.start(awaiting, 1, instance_id="i")
        runner.client.cancel("i")
    return {}


def setup_busy(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Dies in a body, so the next process meets a holder that is dead."""
    with runner_of(backend, ledger) as runner:
        runner.run(awaiting, 1, instance_id="i")
    return {}


def setup_charging(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Dies in the step that may run once."""
    with runner_of(backend, ledger) as runner:
        runner.run(paying, 1, instance_id="i")
    return {}


def setup_held(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _goes_on(backend, ledger, lambda client: None)


def setup_many(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Three that have ended one after the other, and one that has not."""
    with runner_of(backend, ledger) as runner:
        for name in "abc":
            runner.run(short, 1, instance_id=name, labels={"batch": "july"})
            runner._room.clock.advance("1s")
        runner.start(awaiting, 1, instance_id="i")
        runner.client.pause("i")
        runner.client.signal("i", "answer", 5, signal_id="one")
    return {}


def setup_snapshot(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Take one from a store that is not the one it will be restored into."""
    from stepwell import SqliteBackend

    with SqliteBackend(f"{ledger.path}.source") as source:
        setup_waiting(source, ledger)
        with WorkflowClient(source) as client:
            client.pause("i")
            client.signal("i", "answer", 5, signal_id="one")
            Path(_snapshot(ledger)).write_bytes(client.snapshot("i"))
    return {}


def _snapshot(ledger: Ledger) -> Path:
    return Path(ledger.path).with_name("taken.snapshot")


# --- retry ---------------------------------------------------------------------------------------------------


def retry(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _goes_on(backend, ledger, _retry)


def _retry(client: WorkflowClient) -> None:
    if _state(client) in ("failed", "cancelled"):
        client.retry("i", by="ann")
    if client.status("i").workflow == awaiting.name and not client.status("i").finished:
        client.signal("i", "answer", 5, signal_id="one")


# --- decide --------------------------------------------------------------------------------------------------


def rerun(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _decide(backend, ledger, Rerun())


def complete(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _decide(backend, ledger, Complete(70))


def fail(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _decide(backend, ledger, Fail("the bank has no such payment"))


def _decide(backend: Any, ledger: Ledger, decision: Any) -> dict[str, Any]:
    """A step that was cut off once more is held once more, and decided once more."""
    with runner_of(backend, ledger) as runner:
        if ledger.process != DYING:
            runner.recover(ALL)
        if runner.client.status("i").state == "held":
            runner.client.decide("i", "charge", decision, by="ann")
        with whatever_the_end():
            runner.resume(paying, "i")
        return {"state": runner.client.status("i").state}


def pay(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"output": runner.run(paying, 1, instance_id="i")}


def again_pay(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """If the payment was cut off, a person says that it was made."""
    with runner_of(backend, ledger) as runner:
        status = runner.start(paying, 1, instance_id="i")
        if status.state == "held":
            runner.client.decide("i", "charge", Complete(10))
        return {"output": runner.resume(paying, "i"), "was": status.state}


# --- requests to what nobody holds ---------------------------------------------------------------------------


def cancel(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _goes_on(backend, ledger, lambda client: client.status("i").finished or client.cancel("i", reason="no"))


def pause_and_resume(backend: Any, ledger: Ledger) -> dict[str, Any]:
    def ask(client: WorkflowClient) -> None:
        if not client.status("i").finished:
            client.pause("i", by="ann")
            client.signal("i", "answer", 5, signal_id="one")
            client.resume("i", by="ann")

    return _goes_on(backend, ledger, ask)


# --- requests that wait in an inbox when the holder dies -----------------------------------------------------


def ask_pause(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _ask(backend, ledger, asking, 0)


def ask_cancel(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _ask(backend, ledger, asking, 1)


def ask_signal(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _ask(backend, ledger, told, 2)


def again_pause(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """A body that was cut off after it had asked asks once more when it runs again."""
    rested = ask_pause(backend, ledger)
    with runner_of(backend, ledger) as runner, WorkflowClient(backend) as ledger.send:
        while runner.client.status("i").state == "paused":
            runner.client.resume("i")
            runner.recover(ALL)
    return rested


def _ask(backend: Any, ledger: Ledger, flow: Any, x: int) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner, WorkflowClient(backend) as ledger.send:
        with whatever_the_end():
            runner.run(flow, x, instance_id="i")
        return {"rested": runner.client.status("i").state}


# --- starts --------------------------------------------------------------------------------------------------


def replace(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """As a runner does it: it holds the new run."""
    with runner_of(backend, ledger) as runner:
        if _run_of(runner.client) == 1:
            runner.start(awaiting, 2, instance_id="i", on_conflict=ConflictPolicy.TERMINATE_EXISTING)
    return _answered(backend, ledger)


def replace_unheld(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """As a client does it: whoever runs the workflow next takes the new run up."""
    with WorkflowClient(backend) as client:
        if _run_of(client) == 1:
            client.start(awaiting, 2, instance_id="i", on_conflict=ConflictPolicy.TERMINATE_EXISTING)
    return _answered(backend, ledger)


def _run_of(client: WorkflowClient) -> int:
    return client.status("i").run


def _answered(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _goes_on(
        backend, ledger, lambda client: client.status("i").finished or client.signal("i", "answer", 5, signal_id="one")
    )


def restart(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"output": runner.run(failing, 1, instance_id="i", on_conflict=ConflictPolicy.RESTART_IF_FAILED)}


def restart_unheld(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with WorkflowClient(backend) as client:
        client.start(failing, 1, instance_id="i", on_conflict=ConflictPolicy.RESTART_IF_FAILED)
    return _goes_on(backend, ledger, lambda client: None)


def start_one(backend: Any, ledger: Ledger) -> dict[str, Any]:
    return _goes_on(backend, ledger, lambda client: client.start(failing, 1, instance_id="i", labels={"batch": "july"}))


def start_many(backend: Any, ledger: Ledger) -> dict[str, Any]:
    def ask(client: WorkflowClient) -> None:
        client.start_many(failing, [1, 1, 1], instance_ids=["i", "j", "k"], labels={"batch": "july"})

    return _goes_on(backend, ledger, ask)


# --- upkeep --------------------------------------------------------------------------------------------------


def remove(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with WorkflowClient(backend) as client:
        with suppress(InstanceNotFound):
            client.delete("b")
        client.purge(keep=1)
    return {}


def restore(backend: Any, ledger: Ledger) -> dict[str, Any]:
    def ask(client: WorkflowClient) -> None:
        with suppress(InstanceExists):
            client.restore(_snapshot(ledger).read_bytes())
        client.status("i").finished or client.resume("i")

    return _goes_on(backend, ledger, ask)
