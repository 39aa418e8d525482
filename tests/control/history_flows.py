"""The workflows of the random histories, each in the versions that it has had, and the ledger their bodies write.

Every body runs in the caller's thread, so one clock and one order hold for all stores that a history is told to.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from stepwell import (
    Again,
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


class Ledger:
    """What ran. ``broken``: tasks that may fail do; ``cut``: the power fails in the middle of a charge."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str, int]] = []
        self.broken = self.cut = False

    def note(self) -> None:
        """Note that a body runs; threads may do so at once."""
        context = task_context()
        self.calls.append((context.instance_id, context.run, context.path, context.attempt))

    @property
    def ran(self) -> Counter[tuple[str, int, str, int]]:
        """How often each attempt's body has run, by instance id, run, path and attempt."""
        return Counter(self.calls)


class PowerFails(SystemExit):
    """Ends a body as the end of its process would."""


@task(run_in="inline")
def plus(x: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    return x + 1


@task(run_in="inline")
def minus(x: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    return x - 1


@task(run_in="inline")
def adds(x: int, y: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    return x + y


@task(run_in="inline")
def breaks(x: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    if ledger.broken:
        raise OSError("the wire")
    return x + 1


@task(run_in="inline", retry=Retry(3, delay="1h", jitter=0))
def flaky(x: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    if ledger.broken:
        raise OSError("the wire") from ValueError("deep")
    return x + 1


@task(run_in="inline", delivery="at_most_once")
def charge(x: int, ledger: Ledger = inject()) -> int:
    ledger.note()
    if ledger.cut:
        raise PowerFails("the power fails here")
    return x + 1


@task(run_in="inline")
def counts(x: int, ledger: Ledger = inject()) -> Again[int] | Done[int]:
    ledger.note()
    return Again(x + 1) if x < 3 else Done(x)


@task(run_in="inline")
def parity(x: int, ledger: Ledger = inject()) -> str:
    ledger.note()
    return "even" if x % 2 == 0 else "odd"


@workflow
def chain(x: int) -> int:
    return plus(breaks(plus(x)))


@workflow
def forking(x: int) -> int:
    with parallel():
        with branch("nap"):
            delay("8h")
        with branch("ask"):
            got = signal("answer", int)
        with branch("try"):
            tried = flaky(x)
    return adds(got, tried)


@workflow
def turn(x: int) -> Again[int] | Done[int]:
    signal("answer", int)
    return counts(x)


@workflow
def looping(x: int) -> int:
    return plus(loop(turn, x, max_iterations=2))


@workflow
def asking(x: int) -> int:
    plus(x)
    got = signal("answer", int, timeout="2h")
    return plus(got)


@workflow
def escalating(x: int) -> int:
    got = signal("answer", int, timeout="2h", on_timeout=lambda: breaks(x))
    return minus(got)


@workflow
def missing(x: int) -> int:
    got = signal("answer", int, timeout="2h", on_timeout=lambda: minus(x))
    signal("end", int)
    return plus(got)


@workflow
def napping(x: int) -> int:
    a = plus(x)
    delay("8h")
    return plus(a)


@workflow
def charging(x: int) -> int:
    a = charge(x)
    signal("answer", int)
    return plus(a)


@workflow
def routing(x: int) -> int:
    return route(parity(x), {"even": lambda: flaky(x), "odd": lambda: signal("other", int)}, default=lambda: plus(x))


@workflow
def inner(x: int) -> int:
    delay("1h")
    return breaks(x)


@workflow
def nesting(x: int) -> int:
    return plus(inner(charge(x)))


def later_versions() -> list[Any]:
    """The same names with other graphs: one step more at the end, another first step, a step less."""

    @workflow
    def napping(x: int) -> int:
        a = plus(x)
        delay("8h")
        return plus(plus(a))

    @workflow
    def asking(x: int) -> int:
        minus(x)
        got = signal("answer", int, timeout="2h")
        return plus(got)

    @workflow
    def chain(x: int) -> int:
        return breaks(plus(x))

    @workflow
    def looping(x: int) -> int:
        return minus(plus(loop(turn, x, max_iterations=2)))

    return [chain, forking, looping, asking, escalating, missing, napping, charging, routing, nesting]


FIRST: Final[list[Any]] = [chain, forking, looping, asking, escalating, missing, napping, charging, routing, nesting]
SECOND: Final[list[Any]] = later_versions()
VERSIONS: Final = (FIRST, SECOND)
CHANGED: Final[list[Any]] = [each for each in SECOND if each not in FIRST]

PATHS: Final = (
    "plus", "breaks", "charge", "answer", "parallel/try/flaky", "turn[1]/turn/counts", "turn/turn/counts", "turn",
    "inner", "inner/breaks", "route", "nonsense",
)  # fmt: skip
