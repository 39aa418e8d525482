"""The decisions: what follows from an event. Pure, and the only place that knows what a fork, route or loop does.

:func:`advance` decides one fact at a time and passes each through :func:`~stepwell.engine.frontier.apply` at once, so
that the next decision sees it; :mod:`.turn` decides what follows from what. What people decide is in
:mod:`.deciding`.

The commonest event, a step of a sequence that is followed by another step, takes a short cut at the top of
:func:`_succeeded`; it decides the same facts as the general way (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from stepwell.flow.plan import BODIED, NONE, Plan, Turns
from stepwell.retry import backoff_us

from . import events as e
from . import facts as f
from .deciding import decided, move_asked, retry_asked
from .frontier import Frontier, Step, apply, apply_straight_on, case_of
from .turn import NOTHING, Turn


def advance(plan: Plan, state: Frontier, event: e.Event, now: int) -> Sequence[f.Fact]:
    """Decide what follows from ``event``, change ``state`` accordingly, and return the facts.

    Args:
        plan: the compiled workflow.
        state: owned by this call; throw it away if the facts cannot be stored.
        event: what happened. Repeated, late and unknown events give no facts.
        now: wall clock in microseconds.
    """
    return _DECIDE[type(event)](plan, state, event, now)


# --- the short cut -----------------------------------------------------------------------


def _succeeded(plan: Plan, state: Frontier, event: e.Succeeded, now: int) -> Sequence[f.Fact]:
    node, turns = key = event.node, event.turns
    step = state.steps.get(key)
    if step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE:
        return NOTHING
    if plan.kind[node] == "route":
        return _routed(plan, state, event, now)
    if step.phase == "ready" and not event.tag and (facts := _straight_on(plan, node, turns)):
        apply_straight_on(plan, state, key, (plan.following[node], turns))
        return facts
    turn = Turn(plan, state, now)
    turn.emit(f.StepDone(node, turns, event.tag))
    if step.phase == "closing":
        turn.settled(step)
    else:
        turn.done(node, turns)
    return turn.finish()


_RUNNABLE: Final = frozenset({"ready", "began", "tried", "closing"})


def _straight_on(plan: Plan, node: int, turns: Turns) -> Sequence[f.Fact] | None:
    """Return the two facts of a step that is simply followed by another, built once with the plan outside of loops."""
    known = plan.scratch.get(node, plan)
    if known is plan:
        follower = plan.following[node]
        plain = follower != NONE and plan.kind[follower] in BODIED
        known = plan.scratch[node] = f.Fixed.of(f.StepDone(node), f.Opened(follower)) if plain else None
    if known is None or not turns:
        return known  # type: ignore[return-value]  # the engine alone writes plan.scratch
    return (f.StepDone(node, turns), f.Opened(plan.following[node], turns))


# --- one function for each other event ------------------------------------------------------------


def _start(plan: Plan, state: Frontier, event: e.Start, now: int) -> Sequence[f.Fact]:
    if state.started or state.ended:
        return NOTHING
    if known := _plain_start(plan):
        for fact in known:
            apply(plan, state, fact)
        return known
    turn = Turn(plan, state, now)
    turn.emit(f.RunStarted())
    turn.open(0, ())
    return turn.finish()


def _plain_start(plan: Plan) -> f.Fixed | None:
    """Return the facts of a run that simply begins with a step, built once with the plan."""
    known = plan.scratch.get(NONE, plan)
    if known is plan:
        first = next((child for child in plan.nodes[0].children if plan.kind[child] != "input"), 0)
        plain = plan.kind[first] in BODIED
        known = plan.scratch[NONE] = f.Fixed.of(f.RunStarted(), f.Opened(first)) if plain else None
    return known  # type: ignore[return-value]  # the engine alone writes plan.scratch


def _routed(plan: Plan, state: Frontier, event: e.Succeeded, now: int) -> Sequence[f.Fact]:
    case = case_of(plan, event.node, event.tag)
    if case == NONE:
        return NOTHING
    turn = Turn(plan, state, now)
    step = state.steps[(event.node, event.turns)]
    turn.emit(f.RouteTaken(event.node, event.turns, event.tag))
    if step.phase == "closing":
        turn.settled(step)
    else:
        turn.open(case, event.turns)
    return turn.finish()


def _errored(plan: Plan, state: Frontier, event: e.Errored, now: int) -> Sequence[f.Fact]:
    key = event.node, event.turns
    step = state.steps.get(key)
    if step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE:
        return NOTHING
    due_us, spent = _next_attempt(plan, step, event, now)
    turn = Turn(plan, state, now)
    turn.emit(f.AttemptFailed(event.node, event.turns, event.attempt, due_us, spent))
    if step.phase == "closing":
        turn.settled(step)
    elif due_us < 0:
        turn.failed(event.node, event.turns)
    return turn.finish()


def _next_attempt(plan: Plan, step: Step, event: e.Errored, now: int) -> tuple[int, int]:
    """Return when the next attempt is due (-1: none follows) and how many attempts are spent by then."""
    policy, spent = plan.retry[event.node], step.spent + (event.after_us < 0)
    if step.phase == "closing":
        return -1, spent
    if event.after_us >= 0:
        return now + event.after_us, spent
    if not event.retryable or spent >= policy.attempts:
        return -1, spent
    return now + backoff_us(
        spent, policy.delay_us, policy.factor, policy.max_delay_us, policy.jitter, event.draw
    ), spent


def _begun(plan: Plan, state: Frontier, event: e.Begun, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.attempt != event.attempt:
        return NOTHING
    once = plan.nodes[event.node].delivery == "at_most_once"
    if step.phase != "ready" and not (once and step.phase == "tried"):  # it was tuned, and only now starts but once
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit((f.StepBegan if once else f.StepTried)(event.node, event.turns, event.attempt))
    return turn.finish()


def _beat(plan: Plan, state: Frontier, event: e.Beat, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE or plan.kind[event.node] != "task":
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.CursorKept(event.node, event.turns))
    return turn.finish()


def _cut_off(plan: Plan, state: Frontier, event: e.CutOff, now: int) -> Sequence[f.Fact]:
    step = state.steps.get(key := (event.node, event.turns))
    if step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE:
        return NOTHING
    if step.phase == "closing":
        return _settled_event(plan, state, e.Settled((key,)), now)
    if (fact := _after_crash(plan, state, event, step)) is None:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(fact)
    return turn.finish()


def _after_crash(plan: Plan, state: Frontier, event: e.CutOff, step: Step) -> f.Fact | None:
    """Return what becomes of a step whose process died; ``None``: nothing, or nothing while the run is held."""
    node, turns = key = event.node, event.turns
    once, crashes, held = step.phase == "began", step.crashes + 1, state.held  # as it began, whatever the plan says now
    unbegun = step.phase == "ready" and plan.nodes[node].delivery == "at_most_once"
    if unbegun or (held and (held.node, held.turns) == key):
        return None  # it has not begun, or waits for a person
    if not once and crashes < event.limit:
        return f.StepCrashed(node, turns, event.attempt, crashes)
    if held:
        return None
    return f.RunHeld("interrupted" if once else "quarantined", plan.path(node, turns), node, turns)


def _fired(plan: Plan, state: Frontier, event: e.Fired, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.phase != "parked" or not 0 < step.due_us <= now or state.paused or state.held:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.TimerFired(event.node, event.turns))
    if plan.kind[event.node] == "delay":
        turn.done(event.node, event.turns)
    elif plan.nodes[event.node].children:
        turn.open(plan.nodes[event.node].children[0], event.turns)
    else:
        turn.refuse(event.node, event.turns, "signal_timeout")
    return turn.finish()


def _signalled(plan: Plan, state: Frontier, event: e.Signalled, now: int) -> Sequence[f.Fact]:
    if state.ended:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.MessageTraced(event.name, event.trace) if event.trace else f.MessageKept(event.name))
    waiting = (k for k, s in state.steps.items() if s.phase == "parked" and plan.nodes[k[0]].signal == event.name)
    if not turn.stopped and event.name in plan.signals and (first := next(waiting, None)):
        turn.take(*first, state.inbox[event.name][0])
    return turn.finish()


def _cancel_asked(plan: Plan, state: Frontier, event: e.CancelAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.cancelling:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.CancelBegun(event.reason, event.by))
    if not state.unsettled:
        turn.emit(f.RunEnded("cancelled"))
    return turn.finish()


def _pause_asked(plan: Plan, state: Frontier, event: e.PauseAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.cancelling or state.paused or state.held:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.RunPaused(event.reason, event.by))
    return turn.finish()


def _resume_asked(plan: Plan, state: Frontier, event: e.ResumeAsked, now: int) -> Sequence[f.Fact]:
    if not state.paused:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.RunResumed(event.by))
    turn.done_together(turn.take_kept())
    return turn.finish()


def _hold_asked(plan: Plan, state: Frontier, event: e.HoldAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.held:
        return NOTHING
    step = state.steps.get((event.node, event.turns)) if event.attempt else None
    if event.attempt and (step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE):
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.RunHeld(event.reason, event.detail, event.node, event.turns))
    return turn.finish()


def _settled_event(plan: Plan, state: Frontier, event: e.Settled, now: int) -> Sequence[f.Fact]:
    closing = [
        (key, state.steps[key]) for key in event.steps if key in state.steps and state.steps[key].phase == "closing"
    ]
    if not closing:
        return NOTHING
    turn = Turn(plan, state, now)
    turn.emit(f.StepsSettled(tuple(key for key, _ in closing)))
    for scope in dict.fromkeys(step.scope for _, step in closing):
        turn.settled(msgspec.structs.replace(closing[0][1], scope=scope))
    return turn.finish()


_DECIDE: Final[dict[type, Callable[..., Sequence[f.Fact]]]] = {
    e.Start: _start,
    e.Succeeded: _succeeded,
    e.Errored: _errored,
    e.Begun: _begun,
    e.Beat: _beat,
    e.CutOff: _cut_off,
    e.Fired: _fired,
    e.Signalled: _signalled,
    e.CancelAsked: _cancel_asked,
    e.PauseAsked: _pause_asked,
    e.ResumeAsked: _resume_asked,
    e.RetryAsked: retry_asked,
    e.HoldAsked: _hold_asked,
    e.Decided: decided,
    e.MoveAsked: move_asked,
    e.Settled: _settled_event,
}
