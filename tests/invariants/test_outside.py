"""A ledger that bodies wrote is compared with the store: a healthy one agrees, and each planted lie is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stepwell import CheckpointingRunner, InMemoryBackend, Retry, branch, inject, parallel, task, task_context, workflow
from stepwell.errors import BackendError
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend
from stepwell.testing.outside import check_ledger


@dataclass(frozen=True)
class Line:
    event: str
    instance: str
    path: str
    attempt: int
    key: str


class Ledger(list[Line]):
    def note(self, event: str) -> None:
        ctx = task_context()
        self.append(Line(event, ctx.instance_id, ctx.path, ctx.attempt, ctx.idempotency_key))


@task(run_in="inline")
def step(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    ledger.note("effect")
    return x + 1


@task(run_in="inline", retry=Retry(attempts=3, delay="1s"))
def shaky(x: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    if task_context().attempt < 3:
        raise OSError("not yet")
    ledger.note("effect")
    return x


@task(run_in="inline")
def add_up(x: int, y: int, *, ledger: Ledger = inject()) -> int:
    ledger.note("start")
    return x + y


@workflow
def both(x: int) -> int:
    a = step(x)
    with parallel():
        with branch("one"):
            b = step(step(a))
        c = shaky(a)
    return step(add_up(b, c))


def played(fault: Fault | None = None) -> tuple[Ledger, InMemoryBackend]:
    """Run it once; with a fault, go on in a second runner."""
    ledger, store = Ledger(), InMemoryBackend()

    def strike() -> None:
        raise BackendError("the disk is on fire")

    for backend in (FaultyBackend(store, [fault] if fault else [], strike), store):
        with CheckpointingRunner(backend, deps={Ledger: ledger}, clock=VirtualClock()) as runner:
            try:
                assert runner.run(both, 1, instance_id="i") == 7
            except BackendError:
                assert fault is not None
    return ledger, store


@pytest.mark.parametrize("nth", [0, 1, 2, 3, 4, 5])
def test_a_healthy_ledger_agrees(nth: int) -> None:
    """Also one with steps that ran twice, because their outcome was not stored."""
    ledger, store = played(Fault("before", "commit", nth) if nth else None)
    report = check_ledger(ledger, store)
    assert report.ok, report
    assert all(report.examined[rule] > 0 for rule in ("S1", "S2", "S7"))


def ran_too_late(lines: Ledger) -> None:
    lines.append(next(line for line in lines if line.path == "step"))


def never_ran(lines: Ledger) -> None:
    lines[:] = [line for line in lines if line.path != "step#2"]


def wrong_attempt_ran(lines: Ledger) -> None:
    lines[:] = [line for line in lines if (line.path, line.attempt) != ("parallel/shaky", 3)]


def effect_without_start(lines: Ledger) -> None:
    lines.insert(0, replace(lines[1], attempt=9))


def key_changed(lines: Ledger) -> None:
    lines[-1] = replace(lines[-1], key="another")


def key_shared(lines: Ledger) -> None:
    other = lines[-1].key
    lines[:] = [replace(line, key=other) if line.path == "step" else line for line in lines]


@pytest.mark.parametrize(
    ("rule", "lie"),
    [
        ("S2", ran_too_late),
        ("S1", never_ran),
        ("S1", wrong_attempt_ran),
        ("S1", effect_without_start),
        ("S7", key_changed),
        ("S7", key_shared),
    ],
)
def test_a_lie_is_seen_by_its_rule_alone(rule: str, lie: Callable[[Any], None]) -> None:
    """The ledger is changed by hand; the store is healthy."""
    ledger, store = played()
    lie(ledger)
    assert check_ledger(ledger, store).rules == {rule}


def test_lines_of_an_unknown_instance_are_told() -> None:
    """A ledger of another store proves nothing."""
    _, store = played()
    report = check_ledger([Line("start", "nobody", "step", 1, "k")], store)
    assert report.rules == {"S6"}
