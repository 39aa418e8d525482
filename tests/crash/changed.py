"""A workflow whose code was edited while an instance was under way: the second version fits, the third does not."""

from __future__ import annotations

from typing import Any

from stepwell import ConflictPolicy, inject, signal, task, workflow

from .dying import Ledger, runner_of
from .requested import DYING, whatever_the_end


@task
def one(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + 1


@task
def two(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    if x < 0 and ledger.process < DYING:
        raise ValueError("not mended yet")
    ledger.note("end")
    return x * 2


@task
def added(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + 100


@task
def last(x: int, y: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + y


def old() -> Any:
    @workflow
    def ordering(x: int) -> int:
        b = two(one(x))
        return last(b, signal("answer", int))

    return ordering


def new() -> Any:
    """A step more, behind what is open; it pushes the last one to another number."""

    @workflow
    def ordering(x: int) -> int:
        b = two(one(x))
        return last(b, added(signal("answer", int)))

    return ordering


def unfit() -> Any:
    """What is done already reads another value now."""

    @workflow
    def ordering(x: int) -> int:
        a = added(x)
        return last(two(one(a)), signal("answer", int))

    return ordering


def setup_waiting(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"state": runner.start(old(), 1, instance_id="i").state}


def setup_busy(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Dies in the second step's body."""
    with runner_of(backend, ledger) as runner:
        runner.run(old(), 1, instance_id="i")
    return {}


def setup_failed(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner, whatever_the_end():
        runner.run(old(), -5, instance_id="i")
    return {}


def move(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """What a restarted script with new code does."""
    with runner_of(backend, ledger) as runner:
        runner.start(new(), 1, instance_id="i")
        return _answered(runner, ledger, new())


def move_by_client(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        if not runner.client.status("i").finished:
            runner.client.move("i", new())
        return _answered(runner, ledger, new())


def move_and_restart(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        runner.start(new(), -5, instance_id="i", on_conflict=ConflictPolicy.RESTART_IF_FAILED)
        return _answered(runner, ledger, new())


def hold(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        runner.start(unfit(), 1, instance_id="i")
        return {"rested": runner.client.status("i").state}


def again_hold(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """The code that does not fit finds it held; the one that does, brought back, goes on with it."""
    rested = hold(backend, ledger)
    with runner_of(backend, ledger) as runner:
        runner.start(old(), 1, instance_id="i")
        return rested | _answered(runner, ledger, old())


def lift(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        runner.start(old(), 1, instance_id="i")
        return _answered(runner, ledger, old())


def _answered(runner: Any, ledger: Ledger, flow: Any) -> dict[str, Any]:
    """Bring the run to its end, which is not what the process that dies is about."""
    if ledger.process == DYING:
        return {}
    if not runner.client.status("i").finished:
        runner.client.signal("i", "answer", 5, signal_id="one")
    return {"output": runner.resume(flow, "i")}
