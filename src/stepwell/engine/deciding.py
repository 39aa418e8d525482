"""What people decide about a run that has stopped: retry it, end its hold, move it to another graph."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.flow.plan import NONE, Key, Plan, Turns

from . import events as e
from . import facts as f
from .frontier import Frontier, Step, case_of
from .moved import renumbering
from .turn import NOTHING, Turn

# --- retry ---------------------------------------------------------------------------------------


def retry_asked(plan: Plan, state: Frontier, event: e.RetryAsked, now: int) -> Sequence[f.Fact]:
    """Open again what failed or was closed, and go on from what was done while its scope failed."""
    if state.ended not in ("failed", "cancelled"):
        return NOTHING
    turn = Turn(plan, state, now)
    done, pending = list(state.stalled), list(state.pending)
    turn.emit(f.RunReopened(event.by))
    for (node, turns), step in list(state.steps.items()):
        if step.phase in ("failed", "closed") and _reopen(turn, node, turns, step):
            done.append((node, turns))
    for node, turns in reversed(pending):
        turn.open(node, turns)
    for node, turns in reversed(done):
        _go_on(turn, node, turns)
    turn.done_in_parallels([key for key in done if plan.in_parallel[key[0]]])
    return turn.finish()


def _reopen(turn: Turn, node: int, turns: Turns, step: Step) -> bool:
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


def _go_on(turn: Turn, node: int, turns: Turns) -> None:
    match turn.plan.kind[node]:
        case "case":
            turn.open(node, turns)
        case "turn":
            turn.leave(node, turns)
        case _:
            if not turn.plan.in_parallel[node]:
                turn.done(node, turns)


# --- ending a hold -------------------------------------------------------------------------------


def decided(plan: Plan, state: Frontier, event: e.Decided, now: int) -> Sequence[f.Fact]:
    """End a hold. What else is open stays as it was; messages that came in the meantime are taken."""
    held = state.held
    if held is None or (event.node, event.turns) != (held.node, held.turns) or not _makes_sense(plan, state, event):
        return NOTHING
    turn, key = Turn(plan, state, now), (event.node, event.turns)
    step, done = state.steps.get(key), list[Key]()
    turn.emit(f.HoldDecided(event.node, event.turns, event.kind, event.tag, event.by))
    if event.kind == "rerun":
        _rerun(turn, key, step)
    elif step is None:
        _fail_run(turn)
    elif step.phase == "closing":
        turn.settled(step)
    elif event.kind == "fail":
        turn.failed(*key)
    elif plan.kind[event.node] == "route":
        turn.open(case_of(plan, event.node, event.tag), event.turns)
    else:
        done.append(key)
    turn.done_together([*done, *turn.take_kept()])
    return turn.finish()


def _makes_sense(plan: Plan, state: Frontier, event: e.Decided) -> bool:
    if event.kind == "rerun":
        return True
    if event.node == 0:
        return event.kind == "fail"
    step = state.steps.get((event.node, event.turns))
    if step is None or step.phase not in ("ready", "began", "tried", "closing"):
        return False
    return event.kind == "fail" or _may_have(plan, event.node, event.tag)


def _may_have(plan: Plan, node: int, tag: str) -> bool:
    """Say whether a node's outcome may carry ``tag``; what a loop goes on by must say ``again`` or ``done``."""
    match plan.kind[node]:
        case "route":
            return case_of(plan, node, tag) != NONE
        case "task":
            return tag in ("again", "done") or (not tag and not decides_loop(plan, node))
        case _:
            return not tag


def decides_loop(plan: Plan, node: int) -> bool:
    """Say whether a node's value is what a turn yields, itself or through the scopes whose value it is."""
    value = above = node
    while above > 0:
        above = plan.parent[above]
        if plan.nodes[above].output == value:
            if plan.kind[above] == "turn":
                return True
            value = plan.parent[above] if plan.kind[above] in ("case", "timeout") else above
    return False


def _rerun(turn: Turn, key: Key, step: Step | None) -> None:
    if step is not None and step.phase in ("ready", "began", "tried"):
        turn.emit(f.Opened(*key, 0, step.attempt + 1))


def _fail_run(turn: Turn) -> None:
    if not turn.state.unsettled:
        turn.end_failed()


# --- moving to another graph ---------------------------------------------------------------------


def move_asked(plan: Plan, state: Frontier, event: e.MoveAsked, now: int) -> Sequence[f.Fact]:
    """Go on under ``plan``, which is the new graph, while ``state`` is still in terms of the old one."""
    if event.seq != state.seq or event.target != plan.fingerprint or state.ended == "completed":
        return NOTHING
    pending = tuple(_stopped_around(plan, state, event))
    turn = Turn(plan, state, now)
    turn.emit(
        f.RunMoved(event.source, event.target, event.rows, event.scopes, event.values, event.tags, event.paths, pending)
    )
    if state.ended or state.stopping:
        return turn.finish()
    _skip_what_needs_the_lost(turn)
    for node, turns in reversed([key for key in event.ready if key not in pending]):
        turn.open(node, turns)
    turn.done_together(turn.take_kept())
    return turn.finish()


def _stopped_around(plan: Plan, state: Frontier, event: e.MoveAsked) -> list[Key]:
    """Return what is ready below a parallel that fails, or anywhere in a run that has stopped."""
    if state.ended or state.stopping:
        return list(event.ready)
    row = renumbering(event.rows)
    failing = {(row[node], turns) for (node, turns), scope in state.scopes.items() if scope.failing}
    return [key for key in event.ready if any(around in failing for around in _above(plan, *key))]


def _above(plan: Plan, node: int, turns: Turns) -> list[Key]:
    above: list[Key] = []
    while (node := plan.parent[node]) >= 0:
        above.append((node, turns[: plan.depth[node]]))
    return above


def _skip_what_needs_the_lost(turn: Turn) -> None:
    scopes = turn.state.scopes
    failing = {key for key, scope in scopes.items() if scope.failing}
    for key, scope in list(scopes.items()):
        if scope.lost and not failing.intersection((key, *_above(turn.plan, *key))):
            for child in tuple(scope.lost):
                turn.skip_readers(child, key[1])
