"""The engine's live state, and :func:`apply`, the only code that changes it.

The frontier holds open steps, the scopes around them, and the addresses of values somebody may still read. Its size
follows what is open, never what has happened. A recovered state is built by the same :func:`apply` from the same facts
as the live one, so the two cannot differ.

Steps that failed or were closed stay here until the run ends well: a retry opens exactly them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.flow.plan import NONE, Key, Plan, Turns
from stepwell.seal import seal, unseal
from stepwell.types import State

from . import facts as f

Phase: TypeAlias = Literal["ready", "began", "parked", "closing", "closed", "failed"]

ROOT: Final[Key] = (0, ())


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One open step.

    Attributes:
        attempt: the number of the current attempt; an event must name it.
        spent: attempts that count against the retry policy.
        due_us: when it may run (ready), when its time is over (parked); 0: now, or never.
        phase: ready to run; began (at most once, recorded); parked for a time or message; closing (must not start, may
            still run); closed (stopped before its end); failed.
        scope: the failing scope that a closing step holds open.
    """

    attempt: int = 1
    spent: int = 0
    due_us: int = 0
    phase: Phase = "ready"
    scope: Key = ROOT


class Scope(msgspec.Struct, array_like=True):
    """One open parallel.

    ``remaining`` counts the children that are neither done nor lost, ``blocked`` the needs of each child that are not
    done; ``lost`` are children that failed or were skipped; ``unsettled`` counts closing steps below it.
    """

    remaining: int
    blocked: dict[int, int] = {}
    failing: bool = False
    lost: list[int] = []
    unsettled: int = 0


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What failed first: the step, and the entry with the error record, or 0 and the engine's reason."""

    node: int
    turns: Turns
    address: int
    reason: str


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Why and by whom a run was paused, cancelled or held. Of a hold, ``by`` is the detail for people."""

    reason: str
    by: str
    node: int = 0
    turns: Turns = ()


class Frontier:
    """The state of one run. Only :func:`apply` changes it.

    Attributes:
        seq: entries so far; the address of the current entry's value.
        steps: open steps in the order they were opened.
        scopes: open parallels.
        turning: the current turn of each open loop.
        values: addresses of values that may still be read.
        tags: ``again`` or ``done`` of values that carry it.
        cursors: addresses of what attempts of open steps kept.
        inbox: addresses of kept messages by name, oldest first.
        stalled: nodes that were done while their scope failed, so that nothing followed.
        ended: the state it ended in, or ``""``.
    """

    __slots__ = (
        "cancelling", "cursors", "ended", "failure", "held", "inbox", "paused", "result", "scopes", "seq", "stalled",
        "started", "steps", "tags", "turning", "unsettled", "values",
    )  # fmt: skip

    def __init__(self) -> None:
        self.seq = 0
        self.started = False
        self.steps: dict[Key, Step] = {}
        self.scopes: dict[Key, Scope] = {}
        self.turning: dict[Key, int] = {}
        self.values: dict[Key, int] = {}
        self.tags: dict[int, str] = {}
        self.inbox: dict[str, list[int]] = {}
        self.cursors: dict[Key, int] = {}
        self.stalled: list[Key] = []
        self.unsettled = 0
        self.cancelling: Request | None = None
        self.paused: Request | None = None
        self.held: Request | None = None
        self.failure: Failure | None = None
        self.ended: State | Literal[""] = ""
        self.result = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frontier) and to_image(self) == to_image(other)

    __hash__ = None  # type: ignore[assignment]  # mutable, compared by content

    def status(self, now: int) -> State:
        """Return the state an observer would name: what could move next decides it."""
        if self.ended:
            return self.ended
        if not self.started:
            return "pending"
        if self.held:
            return "held"
        if any(s.phase == "closing" for s in self.steps.values()):
            return "running"
        if self.paused:
            return "paused"
        busy = any(s.phase == "began" or (s.phase == "ready" and s.due_us <= now) for s in self.steps.values())
        return "running" if busy else "waiting"

    def next_due_us(self) -> int | None:
        """Return when a hand is wanted next: 0 for at once, ``None`` if only a message or a person can move it."""
        if self.ended or self.held:
            return None
        if any(s.phase in ("closing", "began") for s in self.steps.values()):
            return 0
        if self.paused:
            return None
        return min(
            (s.due_us for s in self.steps.values() if s.phase == "ready" or (s.phase == "parked" and s.due_us)),
            default=None,
        )


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
        elif step.phase in ("ready", "began", "closing"):
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
        state.steps[key] = Step(fact.attempt + 1, fact.spent, fact.due_us)
    else:
        state.steps[key] = Step(fact.attempt, fact.spent, 0, "failed")
        _note_failure(state, Failure(fact.node, fact.turns, state.seq, ""))


def _note_failure(state: Frontier, failure: Failure) -> None:
    state.failure = state.failure or failure


def _step_began(plan: Plan, state: Frontier, fact: f.StepBegan) -> None:
    state.seq += 1
    key = fact.node, fact.turns
    state.steps[key] = msgspec.structs.replace(state.steps[key], phase="began")


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
    state.paused = state.held = None
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
    if state.held:
        state.held = None
        return
    state.ended, state.result = "", 0
    state.cancelling = state.failure = None
    state.unsettled = 0
    state.stalled = []
    for scope in state.scopes.values():
        scope.remaining += len(scope.lost)
        scope.failing, scope.lost, scope.unsettled = False, [], 0


def _run_held(plan: Plan, state: Frontier, fact: f.RunHeld) -> None:
    state.seq += 1
    state.held = Request(fact.reason, fact.detail, fact.node, fact.turns)


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
            state.steps[key] = FRESH if fact.attempt == 1 and not fact.due_us else Step(fact.attempt, 0, fact.due_us)
        case "parallel":
            children = plan.nodes[node].children
            blocked = {c: len(plan.nodes[c].needs) for c in children if plan.nodes[c].needs}
            state.scopes[key] = Scope(len(children), blocked)
        case _:
            state.steps[key] = Step(fact.attempt, 0, fact.due_us, "parked")


FRESH: Final = Step()


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
    f.CursorKept: _cursor_kept,
    f.TimerFired: _timer_fired,
    f.MessageKept: _message_kept,
    f.CancelBegun: _cancel_begun,
    f.RunPaused: _run_paused,
    f.RunResumed: _run_resumed,
    f.RunReopened: _run_reopened,
    f.RunHeld: _run_held,
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


# --- images ---------------------------------------------------------------------------------------


class Image(msgspec.Struct, frozen=True, array_like=True, tag="frontier-1"):
    """A frontier as it is stored. A new shape gets a new tag."""

    seq: int
    started: bool
    steps: list[tuple[int, Turns, Step]]
    scopes: list[tuple[int, Turns, Scope]]
    turning: list[tuple[int, Turns, int]]
    values: list[tuple[int, Turns, int]]
    tags: dict[int, str]
    cursors: list[tuple[int, Turns, int]]
    inbox: dict[str, list[int]]
    stalled: list[Key]
    unsettled: int
    cancelling: Request | None
    paused: Request | None
    held: Request | None
    failure: Failure | None
    ended: State | Literal[""]
    result: int


def to_image(state: Frontier) -> bytes:
    """Return the whole state as bytes, to be stored where a load should not read older entries."""
    body = _IMAGE_ENCODER.encode(
        Image(
            state.seq,
            state.started,
            [(*key, step) for key, step in state.steps.items()],
            [(*key, scope) for key, scope in state.scopes.items()],
            [(*key, turn) for key, turn in state.turning.items()],
            [(*key, at) for key, at in state.values.items()],
            state.tags,
            [(*key, at) for key, at in state.cursors.items()],
            state.inbox,
            state.stalled,
            state.unsettled,
            state.cancelling,
            state.paused,
            state.held,
            state.failure,
            state.ended,
            state.result,
        )
    )
    return seal(body)


def from_image(stored: bytes) -> Frontier:
    """Return the state that :func:`to_image` stored. Raises ``msgspec.DecodeError`` for anything else."""
    image = _IMAGE_DECODER.decode(unseal(stored))
    state = Frontier()
    state.seq, state.started, state.unsettled, state.result = image.seq, image.started, image.unsettled, image.result
    state.steps = {(node, turns): step for node, turns, step in image.steps}
    state.scopes = {(node, turns): scope for node, turns, scope in image.scopes}
    state.turning = {(node, turns): turn for node, turns, turn in image.turning}
    state.values = {(node, turns): at for node, turns, at in image.values}
    state.cursors = {(node, turns): at for node, turns, at in image.cursors}
    state.tags, state.inbox, state.stalled = image.tags, image.inbox, image.stalled
    state.cancelling, state.paused, state.held, state.failure = (
        image.cancelling,
        image.paused,
        image.held,
        image.failure,
    )
    state.ended = image.ended
    return state


_IMAGE_ENCODER: Final = msgspec.msgpack.Encoder()
_IMAGE_DECODER: Final = msgspec.msgpack.Decoder(Image)
