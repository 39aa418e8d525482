""":func:`apply`, the only code that changes a run's state.

A recovered state is built by the same :func:`apply` from the same facts as the live one, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from stepwell.flow.plan import NONE, Key, Plan, Turns

from . import facts as f
from .moved import run_moved
from .state import FRESH, ROOT, Failure, Frontier, Phase, Request, Scope, Step, from_image, to_image

__all__ = [
    "ROOT", "Failure", "Frontier", "Phase", "Request", "Scope", "Step", "address", "apply", "apply_straight_on",
    "case_of", "fold", "from_image", "input_of", "to_image",
]  # fmt: skip


def address(plan: Plan, state: Frontier, node: int, turns: Turns) -> int:
    """Return the address of a node's value as seen from inside ``turns``; 0 is None."""
    return state.values[(node, turns[: plan.depth[node]])] if node != NONE else 0


def fold(plan: Plan, state: Frontier, facts: Iterable[f.Fact]) -> Frontier:
    """Apply stored facts to ``state`` and return it: this, and nothing else, is recovery."""
    for fact in facts:
        apply(plan, state, fact)
    return state


def apply(plan: Plan, state: Frontier, fact: f.Fact) -> None:
    """Change ``state`` by what was decided. Every stored fact applies."""
    _APPLY[type(fact)](plan, state, fact)


# --- completion -----------------------------------------------------------------------------


def _complete(plan: Plan, state: Frontier, node: int, turns: Turns, value: int) -> None:
    """Bind a node's value, forget those it read last, and count it in its parallel."""
    if plan.used[node]:
        state.values[(node, turns)] = value
    if state.cursors:
        state.cursors.pop((node, turns), None)
    for dead in plan.drops[node]:
        _forget(plan, state, dead, turns)
    if plan.in_parallel[node]:
        scope = state.scopes[(plan.parent[node], turns)]
        scope.remaining -= 1
        for waiter in plan.waiters[node]:
            scope.blocked[waiter] -= 1


def _forget(plan: Plan, state: Frontier, node: int, turns: Turns) -> None:
    at = state.values.pop((node, turns[: plan.depth[node]]), 0)
    if at in state.tags and at not in state.values.values():
        del state.tags[at]


def _settle(state: Frontier, step: Step) -> None:
    if step.phase != "closing":
        return
    if step.scope == ROOT:
        state.unsettled -= 1
    else:
        state.scopes[step.scope].unsettled -= 1


def _below(plan: Plan, top: int, top_turns: Turns, keys: Iterable[Key]) -> Iterator[Key]:
    for node, turns in keys:
        if turns[: len(top_turns)] != top_turns:
            continue
        up = node
        while up > top:  # parents always stand before their children in the table
            up = plan.parent[up]
        if up == top:
            yield node, turns


def _close_below(plan: Plan, state: Frontier, top: Key) -> int:
    """Stop what is open below ``top`` and return how many steps must settle first."""
    unsettled = 0
    for key in list(_below(plan, *top, state.steps)):
        step = state.steps[key]
        if step.phase == "parked":
            state.steps[key] = msgspec.structs.replace(step, phase="closed")
        elif step.phase in ("ready", "began", "tried", "closing"):
            state.steps[key] = msgspec.structs.replace(step, phase="closing", scope=top)
            unsettled += 1
    return unsettled


# --- one function for each fact ----------------------------------------------------------------


def _run_started(plan: Plan, state: Frontier, fact: f.RunStarted) -> None:
    state.seq += 1
    state.started = True
    entrance = input_of(plan, 0)
    if entrance != NONE and plan.used[entrance]:
        state.values[(entrance, ())] = state.seq


def input_of(plan: Plan, sequence: int) -> int:
    """Return the place for the value a root or turn is entered with, or ``NONE``."""
    first = plan.nodes[sequence].children[:1]
    return first[0] if first and plan.kind[first[0]] == "input" else NONE


def _step_done(plan: Plan, state: Frontier, fact: f.StepDone) -> None:
    state.seq = seq = state.seq + 1
    node, turns = key = fact.node, fact.turns
    step = state.steps.pop(key)
    if fact.tag and plan.used[node]:
        state.tags[seq] = fact.tag
    _complete(plan, state, node, turns, seq)
    if step.phase == "closing":
        _settle(state, step)
        state.stalled.append(key)


def apply_straight_on(plan: Plan, state: Frontier, done: Key, opened: Key) -> None:
    """Apply at once the two facts of a step that is followed by another: StepDone without a tag, Opened.

    It does what :func:`apply` does with them, for the commonest step of all; a recovery from the same facts proves it.
    """
    node, turns = done
    state.seq = seq = state.seq + 1
    del state.steps[done]
    if plan.used[node]:
        state.values[done] = seq
    if state.cursors:
        state.cursors.pop(done, None)
    for dead in plan.drops[node]:
        if turns or state.tags:
            _forget(plan, state, dead, turns)
        else:
            state.values.pop((dead, turns), None)
    state.steps[opened] = FRESH


def _attempt_failed(plan: Plan, state: Frontier, fact: f.AttemptFailed) -> None:
    state.seq += 1
    key = fact.node, fact.turns
    step = state.steps[key]
    _settle(state, step)
    if fact.due_us >= 0:
        state.steps[key] = Step(fact.attempt + 1, fact.spent, fact.due_us, path=step.path)
    else:
        state.steps[key] = Step(fact.attempt, fact.spent, 0, "failed", path=step.path)
        _note_failure(state, Failure(fact.node, fact.turns, state.seq, ""))


def _note_failure(state: Frontier, failure: Failure) -> None:
    state.failure = state.failure or failure


def _step_began(plan: Plan, state: Frontier, fact: f.StepBegan | f.StepTried) -> None:
    state.seq += 1
    key, phase = (fact.node, fact.turns), "began" if isinstance(fact, f.StepBegan) else "tried"
    state.steps[key] = msgspec.structs.replace(state.steps[key], phase=phase)


def _step_crashed(plan: Plan, state: Frontier, fact: f.StepCrashed) -> None:
    state.seq += 1
    key = fact.node, fact.turns
    step = state.steps[key]
    state.steps[key] = Step(fact.attempt + 1, step.spent, path=step.path, crashes=fact.crashes)


def _cursor_kept(plan: Plan, state: Frontier, fact: f.CursorKept) -> None:
    state.seq += 1
    state.cursors[(fact.node, fact.turns)] = state.seq


def _timer_fired(plan: Plan, state: Frontier, fact: f.TimerFired) -> None:
    state.seq += 1
    state.steps.pop((fact.node, fact.turns))
    if plan.kind[fact.node] == "delay":
        _complete(plan, state, fact.node, fact.turns, 0)


def _message_kept(plan: Plan, state: Frontier, fact: f.MessageKept) -> None:
    state.seq += 1
    state.inbox.setdefault(fact.name, []).append(state.seq)


def _cancel_begun(plan: Plan, state: Frontier, fact: f.CancelBegun) -> None:
    state.seq += 1
    state.cancelling = Request(fact.reason, fact.by)
    _stop_all(plan, state)


def _stop_all(plan: Plan, state: Frontier) -> None:
    state.paused = state.held = None
    state.stopping = True
    for scope in state.scopes.values():
        scope.unsettled = 0
    state.unsettled = _close_below(plan, state, ROOT)


def _run_paused(plan: Plan, state: Frontier, fact: f.RunPaused) -> None:
    state.seq += 1
    state.paused = Request(fact.reason, fact.by)


def _run_resumed(plan: Plan, state: Frontier, fact: f.RunResumed) -> None:
    state.seq += 1
    state.paused = None


def _run_reopened(plan: Plan, state: Frontier, fact: f.RunReopened) -> None:
    state.seq += 1
    if state.held:  # as holds were ended before there was HoldDecided
        state.held = None
        return
    state.ended, state.result = "", 0
    state.cancelling = state.failure = None
    state.stopping = False
    state.unsettled = 0
    state.stalled, state.pending = [], []
    for scope in state.scopes.values():
        scope.remaining += len(scope.lost)
        scope.failing, scope.lost, scope.unsettled = False, [], 0


def _run_held(plan: Plan, state: Frontier, fact: f.RunHeld) -> None:
    state.seq += 1
    state.held = Request(fact.reason, fact.detail, fact.node, fact.turns)


def _hold_decided(plan: Plan, state: Frontier, fact: f.HoldDecided) -> None:
    """Do what the fact of a step's own outcome does."""
    state.held = None
    node, turns = key = fact.node, fact.turns
    if fact.kind == "rerun":
        state.seq += 1
    elif fact.kind == "complete" and plan.kind[node] == "route":
        _route_taken(plan, state, f.RouteTaken(node, turns, fact.tag))
    elif fact.kind == "complete":
        _step_done(plan, state, f.StepDone(node, turns, fact.tag))
    elif node:
        step = state.steps[key]
        _attempt_failed(plan, state, f.AttemptFailed(node, turns, step.attempt, -1, step.spent))
    else:
        state.seq += 1
        state.failure = Failure(0, (), state.seq, "")
        _stop_all(plan, state)


def _steps_settled(plan: Plan, state: Frontier, fact: f.StepsSettled) -> None:
    state.seq += 1
    for key in fact.steps:
        step = state.steps[key]
        _settle(state, step)
        state.steps[key] = msgspec.structs.replace(step, phase="closed", scope=ROOT)


def _route_taken(plan: Plan, state: Frontier, fact: f.RouteTaken) -> None:
    state.seq += 1
    step = state.steps.pop((fact.node, fact.turns))
    _settle(state, step)
    if step.phase == "closing":
        state.stalled.append((case_of(plan, fact.node, fact.case), fact.turns))


def case_of(plan: Plan, route: int, name: str) -> int:
    """Return the case of a route with this name, or ``NONE``."""
    return next((c for c in plan.nodes[route].children if plan.nodes[c].name == name), NONE)


def _opened(plan: Plan, state: Frontier, fact: f.Opened) -> None:
    node, key = fact.node, (fact.node, fact.turns)
    match plan.kind[node]:
        case "task" | "pack" | "route":
            state.steps[key] = FRESH if fact.attempt == 1 and not fact.due_us else _again(state.steps.get(key), fact)
        case "parallel":
            children = plan.nodes[node].children
            blocked = {c: len(plan.nodes[c].needs) for c in children if plan.nodes[c].needs}
            state.scopes[key] = Scope(len(children), blocked)
        case _:
            state.steps[key] = Step(fact.attempt, 0, fact.due_us, "parked")


def _again(before: Step | None, fact: f.Opened) -> Step:
    return Step(fact.attempt, 0, fact.due_us, path=before.path if before else "")


def _message_taken(plan: Plan, state: Frontier, fact: f.MessageTaken) -> None:
    del state.steps[(fact.node, fact.turns)]
    name = plan.nodes[fact.node].signal
    kept = state.inbox[name]
    kept.remove(fact.address)
    if not kept:
        del state.inbox[name]
    _complete(plan, state, fact.node, fact.turns, fact.address)


def _turned(plan: Plan, state: Frontier, fact: f.Turned) -> None:
    turns, turn = fact.turns[:-1], fact.turns[-1]
    body = plan.nodes[fact.node].children[0]
    entrance = input_of(plan, body)
    if entrance != NONE and plan.used[entrance]:
        state.values[(entrance, fact.turns)] = fact.address
    if turn > 1:
        for dead in plan.drops[body]:
            _forget(plan, state, dead, (*turns, turn - 1))
        state.tags.pop(fact.address, None)
    state.turning[(fact.node, turns)] = turn


def _scope_done(plan: Plan, state: Frontier, fact: f.ScopeDone) -> None:
    node, turns = key = fact.node, fact.turns
    kind = plan.kind[node]
    if kind == "parallel":
        del state.scopes[key]
    elif kind == "loop":
        _leave_loop(plan, state, fact)
    _complete(plan, state, node, turns, fact.address)


def _leave_loop(plan: Plan, state: Frontier, fact: f.ScopeDone) -> None:
    last = (*fact.turns, state.turning.pop((fact.node, fact.turns)))
    for dead in plan.drops[plan.nodes[fact.node].children[0]]:
        _forget(plan, state, dead, last)
    state.tags.pop(fact.address, None)


def _step_refused(plan: Plan, state: Frontier, fact: f.StepRefused) -> None:
    key = fact.node, fact.turns
    if plan.kind[fact.node] == "signal":
        state.steps[key] = Step(1, 0, 0, "failed")
    else:
        state.stalled.append((plan.nodes[fact.node].children[0], (*fact.turns, state.turning[key])))
    _note_failure(state, Failure(fact.node, fact.turns, 0, fact.reason))


def _child_lost(plan: Plan, state: Frontier, fact: f.ChildFailed | f.Skipped) -> None:
    scope = state.scopes[(plan.parent[fact.node], fact.turns)]
    scope.remaining -= 1
    scope.lost.append(fact.node)


def _scope_failing(plan: Plan, state: Frontier, fact: f.ScopeFailing) -> None:
    key = fact.node, fact.turns
    for inner in _below(plan, *key, state.scopes):
        state.scopes[inner].unsettled = 0
    scope = state.scopes[key]
    scope.failing = True
    scope.unsettled = _close_below(plan, state, key)


def _scope_failed(plan: Plan, state: Frontier, fact: f.ScopeFailed) -> None:
    state.scopes[(fact.node, fact.turns)].failing = True


def _run_ended(plan: Plan, state: Frontier, fact: f.RunEnded) -> None:
    state.ended = fact.state
    state.result = fact.address
    state.paused = state.held = None
    if fact.state == "completed":
        state.values.clear()
        state.tags.clear()


_APPLY: Final[dict[type, Callable[..., None]]] = {
    f.RunStarted: _run_started,
    f.StepDone: _step_done,
    f.AttemptFailed: _attempt_failed,
    f.StepBegan: _step_began,
    f.StepTried: _step_began,
    f.StepCrashed: _step_crashed,
    f.CursorKept: _cursor_kept,
    f.TimerFired: _timer_fired,
    f.MessageKept: _message_kept,
    f.MessageTraced: _message_kept,
    f.CancelBegun: _cancel_begun,
    f.RunPaused: _run_paused,
    f.RunResumed: _run_resumed,
    f.RunReopened: _run_reopened,
    f.RunHeld: _run_held,
    f.HoldDecided: _hold_decided,
    f.RunMoved: run_moved,
    f.StepsSettled: _steps_settled,
    f.RouteTaken: _route_taken,
    f.Opened: _opened,
    f.MessageTaken: _message_taken,
    f.Turned: _turned,
    f.ScopeDone: _scope_done,
    f.StepRefused: _step_refused,
    f.ChildFailed: _child_lost,
    f.Skipped: _child_lost,
    f.ScopeFailing: _scope_failing,
    f.ScopeFailed: _scope_failed,
    f.RunEnded: _run_ended,
}
