"""Faults planted in how crashes are counted: random walks in which processes die must catch each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, Step
from stepwell.engine.laws import LawBroken
from stepwell.flow.plan import Plan

from .test_laws import crashed
from .test_mutants import SEARCH, Patch, _applying, _deciding, engine, frontier, moved, state_room, turn_room


def _crashing(patch: Patch, **wrong: Callable[[Step, f.StepCrashed], int]) -> None:
    """Let a crash change some fields of the step otherwise."""
    right = frontier._step_crashed

    def applied(plan: Plan, state: Frontier, fact: f.StepCrashed) -> None:
        before = state.steps[(fact.node, fact.turns)]
        right(plan, state, fact)
        changes = {name: change(before, fact) for name, change in wrong.items()}
        key = fact.node, fact.turns
        state.steps[key] = msgspec.structs.replace(state.steps[key], **changes)

    _applying(patch, f.StepCrashed, applied)


def a_crash_counts_against_retries(patch: Patch) -> None:
    _crashing(patch, spent=lambda step, fact: step.spent + 1)


def a_crash_forgives_failures(patch: Patch) -> None:
    _crashing(patch, spent=lambda step, fact: 0)


def a_crash_keeps_the_attempt(patch: Patch) -> None:
    """Whoever comes back from the dead is heard."""
    _crashing(patch, attempt=lambda step, fact: step.attempt)


def crashes_are_not_counted(patch: Patch) -> None:
    _crashing(patch, crashes=lambda step, fact: 0)


def a_failure_forgets_no_crash(patch: Patch) -> None:
    """Crashes that are far apart add up."""
    right = frontier._attempt_failed

    def wrong(plan: Plan, state: Frontier, fact: f.AttemptFailed) -> None:
        key = fact.node, fact.turns
        crashes = state.steps[key].crashes
        right(plan, state, fact)
        state.steps[key] = msgspec.structs.replace(state.steps[key], crashes=crashes)

    _applying(patch, f.AttemptFailed, wrong)


def a_rerun_forgets_no_crash(patch: Patch) -> None:
    def wrong(before: Step | None, fact: f.Opened) -> Step:
        path, crashes = (before.path, before.crashes) if before else ("", 0)
        return Step(fact.attempt, 0, fact.due_us, path=path, crashes=crashes)

    patch.setattr(frontier, "_again", wrong)


def _cut_off(patch: Patch, wrong: Callable[[Plan, Frontier, e.CutOff, Step], f.Fact | None]) -> None:
    patch.setattr(engine, "_after_crash", wrong)


def at_most_once_runs_again_after_a_crash(patch: Patch) -> None:
    def wrong(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
        return f.StepCrashed(event.node, event.turns, event.attempt, step.crashes + 1)

    _cut_off(patch, wrong)


def the_delivery_of_now_decides_about_a_start_that_was(patch: Patch) -> None:
    """Code that was tuned since forgets that a step may have started, or holds the run for one that may be repeated."""
    right = engine._after_crash

    def wrong(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
        if step.phase in ("began", "tried"):
            once = plan.nodes[event.node].delivery == "at_most_once"
            step = msgspec.structs.replace(step, phase="began" if once else "tried")
        return right(plan, state, event, step)  # type: ignore[no-any-return]

    _cut_off(patch, wrong)


def _begun_as(patch: Patch, right_phases: Callable[[bool, str], bool], once_by: Callable[[bool], bool]) -> None:
    def wrong(plan: Plan, state: Frontier, event: e.Begun, now: int) -> Sequence[f.Fact]:
        step = state.steps.get((event.node, event.turns))
        once = plan.nodes[event.node].delivery == "at_most_once"
        if step is None or step.attempt != event.attempt or not right_phases(once, step.phase):
            return ()
        turn = turn_room.Turn(plan, state, now)
        turn.emit((f.StepBegan if once_by(once) else f.StepTried)(event.node, event.turns, event.attempt))
        return turn.finish()  # type: ignore[no-any-return]

    _deciding(patch, e.Begun, wrong)


def every_start_is_the_only_one(patch: Patch) -> None:
    """A crash of what may start again holds the run."""
    _begun_as(patch, lambda once, phase: phase == "ready" or (once and phase == "tried"), lambda once: True)


def every_start_may_be_repeated(patch: Patch) -> None:
    _begun_as(patch, lambda once, phase: phase == "ready", lambda once: False)


def what_was_tried_starts_once_without_a_record(patch: Patch) -> None:
    """Its code was tuned, and the next start is as good as none."""
    _begun_as(patch, lambda once, phase: phase == "ready", lambda once: once)


def the_only_start_may_be_repeated_after_all(patch: Patch) -> None:
    """Its code was tuned, and a second start is recorded over the first."""
    _begun_as(patch, lambda once, phase: phase in ("ready", "began", "tried"), lambda once: once)


def a_late_attempt_holds_the_run(patch: Patch) -> None:
    right = engine._hold_asked

    def wrong(plan: Plan, state: Frontier, event: e.HoldAsked, now: int) -> Sequence[f.Fact]:
        return right(plan, state, msgspec.structs.replace(event, attempt=0), now)  # type: ignore[no-any-return]

    _deciding(patch, e.HoldAsked, wrong)


def quarantined_one_too_late(patch: Patch) -> None:
    _limited(patch, 1)


def quarantined_one_too_early(patch: Patch) -> None:
    _limited(patch, -1)


def _limited(patch: Patch, off: int) -> None:
    right = engine._after_crash

    def wrong(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
        return right(plan, state, msgspec.structs.replace(event, limit=event.limit + off), step)  # type: ignore[no-any-return]

    _cut_off(patch, wrong)


def what_was_given_away_is_not_counted(patch: Patch) -> None:
    right = engine._after_crash

    def wrong(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
        return right(plan, state, event, step) if step.phase != "ready" else None

    _cut_off(patch, wrong)


def a_closing_step_is_started_again(patch: Patch) -> None:
    """A crash in a scope that fails is counted, and what must not start may."""
    right = engine._cut_off

    def wrong(plan: Plan, state: Frontier, event: e.CutOff, now: int) -> Sequence[f.Fact]:
        step = state.steps.get((event.node, event.turns))
        if step is None or step.phase != "closing":
            return right(plan, state, event, now)  # type: ignore[no-any-return]
        turn = turn_room.Turn(plan, state, now)
        turn.emit(f.StepCrashed(event.node, event.turns, step.attempt, step.crashes + 1))
        return turn.finish()  # type: ignore[no-any-return]

    _deciding(patch, e.CutOff, wrong)


def a_held_run_is_held_again(patch: Patch) -> None:
    right = engine._after_crash

    def wrong(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
        held, state.held = state.held, None
        fact: f.Fact | None = right(plan, state, event, step)
        state.held = held
        return fact

    _cut_off(patch, wrong)


def a_move_forgets_crashes(patch: Patch) -> None:
    right = moved._step

    def wrong(plan: Plan, key: Any, step: Step, paths: Any) -> Step:
        return msgspec.structs.replace(right(plan, key, step, paths), crashes=0)

    patch.setattr(moved, "_step", wrong)


def images_forget_crashes(patch: Patch) -> None:
    right = state_room._IMAGE_ENCODER

    class Wrong:
        def encode(self, image: Any) -> bytes:
            steps = [(n, t, msgspec.structs.replace(step, crashes=0)) for n, t, step in image.steps]
            return right.encode(msgspec.structs.replace(image, steps=steps))

    patch.setattr(state_room, "_IMAGE_ENCODER", Wrong())


CRASHING = [
    a_crash_counts_against_retries, a_crash_forgives_failures, a_crash_keeps_the_attempt, crashes_are_not_counted,
    a_failure_forgets_no_crash, a_rerun_forgets_no_crash, at_most_once_runs_again_after_a_crash,
    quarantined_one_too_late, quarantined_one_too_early, what_was_given_away_is_not_counted,
    the_delivery_of_now_decides_about_a_start_that_was, every_start_is_the_only_one, every_start_may_be_repeated,
    what_was_tried_starts_once_without_a_record, the_only_start_may_be_repeated_after_all, a_late_attempt_holds_the_run,
    a_closing_step_is_started_again, a_held_run_is_held_again, a_move_forgets_crashes, images_forget_crashes,
]  # fmt: skip


def search_crashes() -> None:
    for seed in range(SEARCH):
        crashed(seed)


@pytest.mark.parametrize("mutant", CRASHING)
def test_random_walks_alone_catch_a_fault_planted_in_crashes(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """Without the tables."""
    mutant(monkeypatch)
    with pytest.raises((LawBroken, AssertionError, LookupError, ValueError)):
        search_crashes()
