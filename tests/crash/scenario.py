"""The run that is killed: every kind of node, with an outside ledger of what its tasks did."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from stepwell import (
    Again,
    ConflictPolicy,
    Done,
    Retry,
    branch,
    delay,
    inject,
    loop,
    parallel,
    route,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Filter
from stepwell.engine import facts as f
from stepwell.runtime.control import Control

from .dying import Ledger, runner_of


@task
def prepare(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.send.signal(task_context().instance_id, "answer", 5, signal_id="one")
    ledger.note("end")
    return x + 1


@task
def shape(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x + 1


@task
def left(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    task_context().heartbeat(x)
    ledger.note("end")
    return x * 2


@task(retry=Retry(attempts=3, delay="10m", jitter=0))
def right(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    if task_context().attempt == 1:
        raise OSError("the first attempt fails")
    return x * 3


@task
async def later(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return x * 5


@task
def merge(a: int, b: int, c: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("end")
    return a + b + c


@task
def size(x: int, *, ledger: Ledger = inject()) -> str:
    ledger.note("start")
    ledger.note("end")
    return "big" if x > 10 else "small"


@task
def turn(x: int, *, ledger: Ledger = inject()) -> Again[int] | Done[int]:
    ledger.note("start")
    ledger.note("end")
    return Again(x + 1) if len(task_context().path) and not task_context().path.startswith("turn[3]") else Done(x)


@workflow
def inner(x: int) -> int:
    return shape(shape(x))


@workflow
async def mixed(x: int) -> list[int]:
    a = shape(prepare(x))
    with parallel():
        with branch("long"):
            long = left(left(a))
        b, c = right(a), await later(a)
    m = merge(long, b, c)
    way = route(size(m), {"big": lambda: shape(m), "small": lambda: left(m)})
    turned = loop(turn, way, max_iterations=5)
    delay("1h")
    answer = signal("answer", int)
    return [merge(turned, answer, inner(answer)), m]


@workflow
def asking(x: int) -> int:
    a = shape(x)
    return merge(a, signal("answer", int), signal("answer", int))


#: when each step may run: a step whose number ends before another's begins must never run after that one began
WHEN: dict[str, tuple[int, int]] = {
    "prepare": (1, 1),
    "shape": (2, 2),
    "parallel/long/left": (3, 3),
    "parallel/long/left#2": (4, 4),
    "parallel/right": (3, 4),
    "parallel/later": (3, 4),
    "merge": (5, 5),
    "size": (6, 6),
    "route/size=big/shape": (7, 7),
    "turn[1]/turn": (8, 8),
    "turn[2]/turn": (9, 9),
    "turn[3]/turn": (10, 10),
    "inner/shape": (11, 11),
    "inner/shape#2": (12, 12),
    "merge#2": (13, 13),
}


# --- the parts of processes ------------------------------------------------------------------------------


def run(backend: Any, ledger: Ledger) -> dict[str, Any]:
    with runner_of(backend, ledger) as runner:
        return {"output": runner.run(mixed, 1, instance_id="i")}


def recover(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """What a restarted script does: recover everything, then ask for its run again."""
    with runner_of(backend, ledger) as runner:
        runner.recover([mixed, asking], wait=True)
        return {"output": runner.run(mixed, 1, instance_id="i")}


def client(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Requests to an instance that nobody holds; each may be repeated after an unclear answer."""
    with runner_of(backend, ledger) as runner:
        if runner.start(asking, 1, instance_id="i").finished:
            return {"output": runner.resume(asking, "i")}
        client: Control = runner.client
        client.pause("i")
        client.signal("i", "answer", 2, signal_id="one")
        client.resume("i")
        client.signal("i", "answer", 3, signal_id="two")
        runner.recover([asking])
        return {"output": runner.resume(asking, "i")}


def lease(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """A body that is busy until the lease has been renewed beside it."""
    renewed = threading.Event()
    renew = backend.renew

    def tell(session: Any) -> None:
        renew(session)
        renewed.set()

    backend.renew = tell

    @task
    def busy(x: int) -> int:
        assert renewed.wait(20)
        return x

    @workflow
    def slow(x: int) -> int:
        return busy(x)

    with runner_of(backend, ledger, lease="1s") as runner:
        return {"output": runner.run(slow, 1, instance_id="i", on_conflict=ConflictPolicy.USE_EXISTING)}


def look(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Report what is stored, for the checks."""
    (header,) = backend.list(Filter())
    outcomes: Counter[str] = Counter()
    for entry in backend.history(header.instance, 0, 10_000):
        for fact in f.decode(entry.facts):
            if isinstance(fact, f.StepDone | f.RouteTaken | f.TimerFired | f.MessageTaken | f.ScopeDone | f.RunEnded):
                outcomes[f"{type(fact).__name__} {fact.node} {fact.turns}"] += 1
    return {
        "state": header.state,
        "held_by": header.held_by,
        "mail": header.mail,
        "stuck": len(backend.stuck(2**62)),
        "twice": [name for name, times in outcomes.items() if times > 1],
    }
