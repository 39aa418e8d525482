"""The decisions: what follows from an event. Pure, and the only place that knows what a fork, route or loop does.

:func:`advance` decides one fact at a time and passes each through :func:`~stepwell.engine.frontier.apply` at once, so
that the next decision sees it. What is still to be looked at waits on a small stack instead of the call stack: a
thousand nodes that complete each other at once are a loop here, not a recursion.

The commonest event, a step of a sequence that is followed by another step, takes a short cut at the top of
:func:`_succeeded`; it decides the same facts as the general way (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from stepwell.flow.plan import BODIED, NONE, Key, Plan, Turns
from stepwell.retry import backoff_us

from . import events as e
from . import facts as f
from .frontier import ROOT, Failure, Frontier, Request, Step, address, apply, apply_straight_on, case_of, input_of

NOTHING: Final[tuple[f.Fact, ...]] = ()


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
    turn = _Turn(plan, state, now)
    turn.emit(f.StepDone(node, turns, event.tag))
    if step.phase == "closing":
        turn.settled(step)
    else:
        turn.done(node, turns)
    return turn.finish()


_RUNNABLE: Final = frozenset({"ready", "began", "closing"})


def _straight_on(plan: Plan, node: int, turns: Turns) -> Sequence[f.Fact] | None:
    """Return the two facts of a step that is simply followed by another, built once with the plan outside of loops."""
    known = plan.scratch.get(node, plan)
    if known is plan:
        follower = plan.following[node]
        plain = follower != NONE and plan.kind[follower] in BODIED
        known = plan.scratch[node] = (f.StepDone(node), f.Opened(follower)) if plain else None
    if known is None or not turns:
        return known  # type: ignore[return-value]  # the engine alone writes plan.scratch
    return (f.StepDone(node, turns), f.Opened(plan.following[node], turns))


# --- the general way ----------------------------------------------------------------------------


class _Turn:
    """One call of :func:`advance`: the facts so far, and what is still to be decided (last in, first out).

    What was refused fails only when all else is decided: a retry goes on in many places at once, and a failure in one
    must find the others open, to close them.
    """

    __slots__ = ("facts", "now", "plan", "refused", "state", "todo")

    def __init__(self, plan: Plan, state: Frontier, now: int) -> None:
        self.plan, self.state, self.now = plan, state, now
        self.facts: list[f.Fact] = []
        self.todo: list[tuple[Callable[[int, Turns], None], int, Turns]] = []
        self.refused: list[Key] = []

    def emit(self, fact: f.Fact) -> None:
        apply(self.plan, self.state, fact)
        self.facts.append(fact)

    def finish(self) -> Sequence[f.Fact]:
        while self.todo:
            decide, node, turns = self.todo.pop()
            decide(node, turns)
        for key in self.refused:
            if not self._covered(*key):
                self.failed(*key)
        return self.facts

    def open(self, node: int, turns: Turns) -> None:
        self.todo.append((self._open, node, turns))

    def done(self, node: int, turns: Turns) -> None:
        self.todo.append((self._follow, node, turns))

    def leave(self, sequence: int, turns: Turns) -> None:
        self.todo.append((self._leave, sequence, turns))

    def close_parallel(self, parallel: int, turns: Turns) -> None:
        self.todo.append((self._close_parallel, parallel, turns))

    # --- entering ---

    def _open(self, node: int, turns: Turns) -> None:
        match self.plan.kind[node]:
            case "task" | "pack" | "route":
                self.emit(f.Opened(node, turns))
            case "delay":
                self.emit(f.Opened(node, turns, max(1, self.now + self.plan.nodes[node].duration_us)))
            case "signal":
                self._open_signal(node, turns)
            case "parallel":
                self.emit(f.Opened(node, turns))
                self._open_parallel(node, turns)
            case "loop":
                first = self.plan.nodes[node].first
                self._turn_loop(node, (*turns, 1), address(self.plan, self.state, first, turns))
            case _:
                self._enter(node, turns)

    def _open_signal(self, node: int, turns: Turns) -> None:
        row = self.plan.nodes[node]
        self.emit(f.Opened(node, turns, self.now + row.timeout_us if row.timeout_us else 0))
        if not self.stopped and (kept := self.state.inbox.get(row.signal)):
            self.take(node, turns, kept[0])

    @property
    def stopped(self) -> bool:
        """Whether the run is paused or held: what arrives is kept and moves nothing until it goes on."""
        return bool(self.state.paused or self.state.held)

    def take_kept(self) -> None:
        """Give kept messages to the signals that have waited for them, oldest to oldest, now that the run goes on."""
        for (node, turns), step in list(self.state.steps.items()):
            signal = self.plan.nodes[node].signal
            if signal and step.phase == "parked" and (kept := self.state.inbox.get(signal)):
                self.take(node, turns, kept[0])

    def take(self, node: int, turns: Turns, message: int) -> None:
        self.emit(f.MessageTaken(node, turns, message))
        self.done(node, turns)

    def _open_parallel(self, node: int, turns: Turns) -> None:
        children = self.plan.nodes[node].children
        if not children:
            self._close_parallel(node, turns)
        for child in reversed(children):
            if not self.plan.nodes[child].needs:
                self.open(child, turns)

    def _turn_loop(self, loop: int, turns: Turns, value: int) -> None:
        self.emit(f.Turned(loop, turns, value))
        self._enter(self.plan.nodes[loop].children[0], turns)

    def _enter(self, sequence: int, turns: Turns) -> None:
        children = self.plan.nodes[sequence].children
        first = 1 if input_of(self.plan, sequence) != NONE else 0
        if first < len(children):
            self.open(children[first], turns)
        else:
            self._leave(sequence, turns)

    # --- going on ---

    def _follow(self, node: int, turns: Turns) -> None:
        """A node is done: open the next one, or see whether that finishes what is around it."""
        parent = self.plan.parent[node]
        if self.plan.in_parallel[node]:
            self._follow_parallel(parent, node, turns)
        elif (follower := self.plan.following[node]) != NONE:
            self.open(follower, turns)
        else:
            self._leave(parent, turns)

    def _follow_parallel(self, parallel: int, child: int, turns: Turns) -> None:
        scope = self.state.scopes[(parallel, turns)]
        for waiter in reversed(self.plan.waiters[child]):
            if not scope.blocked[waiter]:
                self.open(waiter, turns)
        if not scope.remaining:
            self._close_parallel(parallel, turns)

    def _close_parallel(self, parallel: int, turns: Turns) -> None:
        if self.state.scopes[(parallel, turns)].lost:
            self._scope_failed(parallel, turns)
        else:
            self.emit(f.ScopeDone(parallel, turns))
            self.done(parallel, turns)

    def _leave(self, sequence: int, turns: Turns) -> None:
        """A sequence is done: its value is that of whatever it stands for."""
        value = address(self.plan, self.state, self.plan.nodes[sequence].output, turns)
        match self.plan.kind[sequence]:
            case "root":
                self.emit(f.RunEnded("completed", value))
            case "turn":
                self._after_turn(self.plan.parent[sequence], turns, value)
            case "case" | "timeout":
                self._scope_done(self.plan.parent[sequence], turns, value)
            case _:
                self._scope_done(sequence, turns, value)

    def _scope_done(self, node: int, turns: Turns, value: int) -> None:
        self.emit(f.ScopeDone(node, turns, value))
        self.done(node, turns)

    def _after_turn(self, loop: int, turns: Turns, value: int) -> None:
        tag, row = self.state.tags.get(value, ""), self.plan.nodes[loop]
        if tag == "again" and turns[-1] < row.max_iterations:
            self._turn_loop(loop, (*turns[:-1], turns[-1] + 1), value)
        elif tag == "done" or (tag == "again" and row.on_max == "last"):
            self._scope_done(loop, turns[:-1], value)
        else:
            self.refuse(loop, turns[:-1], "loop_limit" if tag else "loop_value")

    # --- failing ---

    def refuse(self, node: int, turns: Turns, reason: str) -> None:
        self.emit(f.StepRefused(node, turns, reason))
        self.refused.append((node, turns))

    def _covered(self, node: int, turns: Turns) -> bool:
        """Say whether something around a node is failing already, or the run has ended."""
        scopes, parent, depth = self.state.scopes, self.plan.parent, self.plan.depth
        while (node := parent[node]) > 0:
            scope = scopes.get((node, turns[: depth[node]]))
            if scope and scope.failing:
                return True
        return bool(self.state.ended)

    def failed(self, node: int, turns: Turns) -> None:
        """A step or scope failed for good: the nearest parallel decides, or the run ends."""
        child, turns = self._up_to_parallel(node, turns)
        if child == 0:
            self._end_failed()
        elif self.plan.nodes[self.plan.parent[child]].on_error == "wait":
            self.emit(f.ChildFailed(child, turns))
            self._skip_readers(child, turns)
        else:
            self._fail_parallel(self.plan.parent[child], turns)

    def _up_to_parallel(self, node: int, turns: Turns) -> Key:
        while node and not self.plan.in_parallel[node]:
            node = self.plan.parent[node]
        return node, turns[: self.plan.depth[node]]

    def _skip_readers(self, child: int, turns: Turns) -> None:
        parallel = self.plan.parent[child]
        scope, lost = self.state.scopes[(parallel, turns)], [child]
        while lost:
            for waiter in self.plan.waiters[lost.pop()]:
                if waiter not in scope.lost:
                    self.emit(f.Skipped(waiter, turns))
                    lost.append(waiter)
        if not scope.remaining:
            self._close_parallel(parallel, turns)

    def _fail_parallel(self, parallel: int, turns: Turns) -> None:
        self.emit(f.ScopeFailing(parallel, turns))
        if not self.state.scopes[(parallel, turns)].unsettled:
            self._scope_failed(parallel, turns)

    def _scope_failed(self, parallel: int, turns: Turns) -> None:
        self.emit(f.ScopeFailed(parallel, turns))
        self.failed(parallel, turns)

    def _end_failed(self) -> None:
        first = self.state.failure or Failure(0, (), 0, "unknown")
        self.emit(f.RunEnded("failed", first.address, first.node, first.turns, first.reason))

    def settled(self, step: Step) -> None:
        """A closing step is out of the way; the scope that waited for it may fail now, or the run be cancelled."""
        if step.scope != ROOT:
            if not self.state.scopes[step.scope].unsettled and not self._covered(*step.scope):
                self._scope_failed(*step.scope)
        elif not self.state.unsettled:
            self.emit(f.RunEnded("cancelled"))


# --- one function for each other event ------------------------------------------------------------


def _start(plan: Plan, state: Frontier, event: e.Start, now: int) -> Sequence[f.Fact]:
    if state.started or state.ended:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.RunStarted())
    turn.open(0, ())
    return turn.finish()


def _routed(plan: Plan, state: Frontier, event: e.Succeeded, now: int) -> Sequence[f.Fact]:
    case = case_of(plan, event.node, event.tag)
    if case == NONE:
        return NOTHING
    turn = _Turn(plan, state, now)
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
    turn = _Turn(plan, state, now)
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
    if step is None or step.attempt != event.attempt or step.phase != "ready":
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.StepBegan(event.node, event.turns, event.attempt))
    return turn.finish()


def _beat(plan: Plan, state: Frontier, event: e.Beat, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.attempt != event.attempt or step.phase not in _RUNNABLE or plan.kind[event.node] != "task":
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.CursorKept(event.node, event.turns))
    return turn.finish()


def _cut_off(plan: Plan, state: Frontier, event: e.CutOff, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.attempt != event.attempt or step.phase != "began" or state.held:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.RunHeld("interrupted", plan.path(event.node, event.turns), event.node, event.turns))
    return turn.finish()


def _fired(plan: Plan, state: Frontier, event: e.Fired, now: int) -> Sequence[f.Fact]:
    step = state.steps.get((event.node, event.turns))
    if step is None or step.phase != "parked" or not 0 < step.due_us <= now or state.paused or state.held:
        return NOTHING
    turn = _Turn(plan, state, now)
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
    turn = _Turn(plan, state, now)
    turn.emit(f.MessageKept(event.name))
    waiting = (k for k, s in state.steps.items() if s.phase == "parked" and plan.nodes[k[0]].signal == event.name)
    if not turn.stopped and event.name in plan.signals and (first := next(waiting, None)):
        turn.take(*first, state.inbox[event.name][0])
    return turn.finish()


def _cancel_asked(plan: Plan, state: Frontier, event: e.CancelAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.cancelling:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.CancelBegun(event.reason, event.by))
    if not state.unsettled:
        turn.emit(f.RunEnded("cancelled"))
    return turn.finish()


def _pause_asked(plan: Plan, state: Frontier, event: e.PauseAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.cancelling or state.paused or state.held:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.RunPaused(event.reason, event.by))
    return turn.finish()


def _resume_asked(plan: Plan, state: Frontier, event: e.ResumeAsked, now: int) -> Sequence[f.Fact]:
    if not state.paused:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.RunResumed(event.by))
    if not turn.stopped:
        turn.take_kept()
    return turn.finish()


def _hold_asked(plan: Plan, state: Frontier, event: e.HoldAsked, now: int) -> Sequence[f.Fact]:
    if state.ended or state.held:
        return NOTHING
    turn = _Turn(plan, state, now)
    turn.emit(f.RunHeld(event.reason, event.detail, event.node, event.turns))
    return turn.finish()


def _retry_asked(plan: Plan, state: Frontier, event: e.RetryAsked, now: int) -> Sequence[f.Fact]:
    """Open again what failed or was closed, and go on from what was done while its scope failed."""
    if state.held:
        return _let_go(plan, state, state.held, event, now)
    if state.ended not in ("failed", "cancelled"):
        return NOTHING
    turn = _Turn(plan, state, now)
    done = list(state.stalled)
    turn.emit(f.RunReopened(event.by))
    for (node, turns), step in list(state.steps.items()):
        if step.phase in ("failed", "closed") and _reopen(turn, node, turns, step):
            done.append((node, turns))
    for node, turns in reversed(done):
        _go_on(turn, node, turns)
    _go_on_in_parallels(turn, [key for key in done if plan.in_parallel[key[0]]])
    return turn.finish()


def _let_go(plan: Plan, state: Frontier, held: Request, event: e.RetryAsked, now: int) -> Sequence[f.Fact]:
    """Go on after a hold. Only the begun step that it names runs again: nobody has decided about any other."""
    turn = _Turn(plan, state, now)
    turn.emit(f.RunReopened(event.by))
    step = state.steps.get((held.node, held.turns))
    if step and step.phase == "began":
        _reopen(turn, held.node, held.turns, step)
    if not turn.stopped:
        turn.take_kept()
    return turn.finish()


def _reopen(turn: _Turn, node: int, turns: Turns, step: Step) -> bool:
    """Open a step again; say whether it is done with that, because a message for it is kept."""
    row, due_us = turn.plan.nodes[node], 0
    if row.kind == "delay":
        due_us = step.due_us
    elif row.kind == "signal" and row.timeout_us:
        due_us = step.due_us if step.phase == "closed" else turn.now + row.timeout_us
    turn.emit(f.Opened(node, turns, due_us, step.attempt + 1))
    kept = turn.state.inbox.get(row.signal) if row.kind == "signal" else None
    if not kept:
        return False
    turn.emit(f.MessageTaken(node, turns, kept[0]))
    return True


def _go_on(turn: _Turn, node: int, turns: Turns) -> None:
    match turn.plan.kind[node]:
        case "case":
            turn.open(node, turns)
        case "turn":
            turn.leave(node, turns)
        case _:
            if not turn.plan.in_parallel[node]:
                turn.done(node, turns)


def _go_on_in_parallels(turn: _Turn, done: Sequence[Key]) -> None:
    """Several children of one parallel may be done at once: what waited for them opens once, and it closes once."""
    plan, state = turn.plan, turn.state
    for parallel, turns in dict.fromkeys((plan.parent[node], turns) for node, turns in done):
        if not state.scopes[(parallel, turns)].remaining:
            turn.close_parallel(parallel, turns)
    for waiter, turns in dict.fromkeys((w, turns) for node, turns in done for w in plan.waiters[node]):
        if not state.scopes[(plan.parent[waiter], turns)].blocked[waiter]:
            turn.open(waiter, turns)


def _settled_event(plan: Plan, state: Frontier, event: e.Settled, now: int) -> Sequence[f.Fact]:
    closing = [
        (key, state.steps[key]) for key in event.steps if key in state.steps and state.steps[key].phase == "closing"
    ]
    if not closing:
        return NOTHING
    turn = _Turn(plan, state, now)
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
    e.RetryAsked: _retry_asked,
    e.HoldAsked: _hold_asked,
    e.Settled: _settled_event,
}
