"""S11 and crashes: journals in which processes died, told wrongly in one way each; and one that is told rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepwell import InMemoryBackend
from stepwell.engine import facts as f
from stepwell.testing.invariants import check_store

from . import forge
from .forge import Forge

LIMIT = 3


def died(times: int, *, begun: bool = True) -> Forge:
    """A run of ``line`` in whose first step so many processes have died."""
    made = Forge(forge.line)
    made.write(f.RunStarted(), f.Opened(made.node("a")))
    for crash in range(1, times + 1):
        if begun:
            made.write(f.StepTried(made.node("a"), (), crash))
        made.write(f.StepCrashed(made.node("a"), (), crash, crash))
    return made


def held(made: Forge, path: str = "a") -> InMemoryBackend:
    return made.write(f.RunHeld("quarantined", path, made.node(path), ())).stored()


@pytest.mark.parametrize("begun", [True, False])
def test_crashes_that_are_told_rightly_break_no_rule(begun: bool) -> None:
    """Up to the limit and beyond a decision; the start of a step that was given away is nowhere recorded."""
    made = died(2, begun=begun)
    a, b = made.node("a"), made.node("b")
    made.write(f.RunHeld("quarantined", "a", a, ()))
    made.write(f.HoldDecided(a, (), "rerun", "", ""), f.Opened(a, (), 0, 4))
    made.write(f.StepCrashed(a, (), 4, 1)).write(f.AttemptFailed(a, (), 5, made.at_us, 1))
    made.write(f.StepTried(a, (), 6)).write(f.StepCrashed(a, (), 6, 1)).write(f.StepDone(a), f.Opened(b))
    report = check_store(made.stored(), max_crashes=LIMIT)
    assert report.ok, report


PLANTS: list[Any] = []


def plant(rule: str) -> Callable[[Callable[[], InMemoryBackend]], Callable[[], InMemoryBackend]]:
    def add(make: Callable[[], InMemoryBackend]) -> Callable[[], InMemoryBackend]:
        PLANTS.append(pytest.param(rule, make, id=f"{rule} {make.__name__}"))
        return make

    return add


@plant("S11")
def an_old_attempt_crashes_again() -> InMemoryBackend:
    made = died(1)
    return made.write(f.StepCrashed(made.node("a"), (), 1, 2)).stored()


@plant("S11")
def an_old_attempt_begins_after_its_crash() -> InMemoryBackend:
    made = died(1)
    return made.write(f.StepTried(made.node("a"), (), 1)).stored()


@plant("S11")
def an_old_attempt_fails_after_its_crash() -> InMemoryBackend:
    made = died(1)
    return made.write(f.AttemptFailed(made.node("a"), (), 1, made.at_us, 1)).stored()


@plant("S11")
def a_crash_is_left_out_of_the_count() -> InMemoryBackend:
    made = died(1)
    return made.write(f.StepCrashed(made.node("a"), (), 2, 1)).stored()


@plant("S11")
def a_crash_counts_twice() -> InMemoryBackend:
    made = died(0)
    return made.write(f.StepCrashed(made.node("a"), (), 1, 2)).stored()


@plant("S11")
def crashes_before_a_failure_count_on() -> InMemoryBackend:
    made = died(1)
    a = made.node("a")
    return made.write(f.AttemptFailed(a, (), 2, made.at_us, 1)).write(f.StepCrashed(a, (), 3, 2)).stored()


@plant("S11")
def a_crash_counts_against_the_policy() -> InMemoryBackend:
    made = died(1)
    return made.write(f.AttemptFailed(made.node("a"), (), 2, -1, 2), f.RunEnded("failed", 4, made.node("a"))).stored()


@plant("S11")
def a_start_after_the_last_crash() -> InMemoryBackend:
    return died(LIMIT).stored()


@plant("S11")
def a_quarantine_before_the_last_crash() -> InMemoryBackend:
    return held(died(LIMIT - 2))


@plant("S11")
def a_quarantine_of_what_is_closing() -> InMemoryBackend:
    made = died(LIMIT - 1).write(f.CancelBegun("", ""))
    return held(made)


@plant("S10")
def a_crash_lets_it_start_after_the_cancel() -> InMemoryBackend:
    made = died(0).write(f.CancelBegun("", ""))
    return made.write(f.StepCrashed(made.node("a"), (), 1, 1)).stored()


@plant("S10")
def what_could_not_have_begun_crashes_in_a_pause() -> InMemoryBackend:
    made = died(0).write(f.RunPaused("", ""))
    made.write(f.StepCrashed(made.node("a"), (), 1, 1))  # it ran already
    return made.write(f.StepCrashed(made.node("a"), (), 2, 2)).stored()


@plant("S2")
def what_is_done_crashes() -> InMemoryBackend:
    made = died(0)
    made.write(f.StepDone(made.node("a")), f.Opened(made.node("b")))
    return made.write(f.StepCrashed(made.node("a"), (), 1, 1)).stored()


@plant("S2")
def at_most_once_starts_again_after_a_crash() -> InMemoryBackend:
    made = Forge(forge.paid)
    pay = made.node("pay")
    made.write(f.RunStarted(), f.Opened(pay)).write(f.StepBegan(pay, (), 1))
    return made.write(f.StepCrashed(pay, (), 1, 1)).stored()


@plant("S2")
def at_most_once_is_only_tried() -> InMemoryBackend:
    made = Forge(forge.paid)
    made.write(f.RunStarted(), f.Opened(made.node("pay")))
    return made.write(f.StepTried(made.node("pay"), (), 1)).stored()


@plant("S2")
def one_attempt_is_tried_twice() -> InMemoryBackend:
    made = died(0)
    made.write(f.StepTried(made.node("a"), (), 1))
    return made.write(f.StepTried(made.node("a"), (), 1)).stored()


@plant("S2")
def an_only_start_is_repeated_under_tuned_code() -> InMemoryBackend:
    made = died(0)
    made.write(f.StepBegan(made.node("a"), (), 1))
    return made.write(f.StepCrashed(made.node("a"), (), 1, 1)).stored()


@plant("S2")
def at_most_once_is_quarantined() -> InMemoryBackend:
    made = Forge(forge.paid)
    made.write(f.RunStarted(), f.Opened(made.node("pay"))).write(f.StepBegan(made.node("pay"), (), 1))
    return held(made, "pay")


@plant("S16")
def what_was_never_opened_crashes() -> InMemoryBackend:
    made = died(0)
    return made.write(f.StepCrashed(made.node("b"), (), 1, 1)).stored()


@pytest.mark.broken_store
@pytest.mark.parametrize(("rule", "make"), PLANTS)
def test_a_crash_that_is_told_wrongly_is_reported_by_its_rule_alone(
    rule: str, make: Callable[[], InMemoryBackend]
) -> None:
    """And names the instance."""
    report = check_store(make(), max_crashes=LIMIT)
    assert report.rules == {rule}, report
    assert {violation.instance_id for violation in report.violations} == {"i"}


@pytest.mark.broken_store
def test_a_limit_that_nobody_tells_is_not_held_against_a_store() -> None:
    """Workers may have had another one; what is counted wrongly is seen all the same."""
    assert check_store(died(LIMIT).stored()).ok
    assert check_store(held(died(0))).ok
    assert check_store(a_crash_counts_twice()).rules == {"S11"}
