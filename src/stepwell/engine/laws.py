"""What must hold of every state of every run, stated so that it can be checked.

A law is a function over a :class:`View`, which finds out where a run stands from its open steps, scopes and stalled
nodes alone: which nodes are entered and not left, and which are done. The counters and values of the frontier are then
compared with that. Nothing here is shared with the code that keeps them, so a slip there cannot hide itself.

Checking costs time in proportion to the plan; tests and a debug switch pay it, runs do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, get_args

from stepwell.flow.plan import BODIED, NONE, SEQUENCES, Key, Plan, Turns, reads

from . import facts as f
from .frontier import ROOT, Frontier, Scope, apply, from_image, to_image

LIVE: Final = frozenset({"ready", "began", "tried", "parked", "closing"})
STARTABLE: Final = LIVE - {"closing"}
HEADS: Final = get_args(f.Head)


class LawBroken(Exception):
    """A state that must not exist. A bug of the engine, never of a workflow."""

    def __init__(self, law: str, detail: str) -> None:
        super().__init__(f"{law}: {detail}")
        self.law = law
        self.detail = detail


def check(plan: Plan, state: Frontier) -> None:
    """Raise :class:`LawBroken` unless every law holds of ``state``."""
    view = View(plan, state)
    for law in LAWS:
        law(view)


def check_step(plan: Plan, before: bytes, facts: Sequence[f.Fact], after: Frontier) -> None:
    """Raise :class:`LawBroken` unless ``facts`` are one journal entry that leads from image ``before`` to ``after``."""
    state = from_image(before)
    if not facts:
        _hold(to_image(after) == before, "ignored", "an event without facts changed the state")
        return
    heads = [isinstance(fact, HEADS) for fact in facts]
    _hold(heads[0] and sum(heads) == 1, "one_head", f"an entry is one head and its consequences: {_names(facts)}")
    _hold(after.seq == state.seq + 1, "seq", f"an entry raises seq by one, not from {state.seq} to {after.seq}")
    for fact in facts:
        _check_fact(plan, state, fact)
        apply(plan, state, fact)
    _hold(state == after, "recovery", f"{_names(facts)} lead to another state when folded")


def _check_fact(plan: Plan, state: Frontier, fact: f.Fact) -> None:
    """What may be decided in a state; the laws say what the state may be afterwards."""
    _hold(not state.ended or type(fact) in (f.RunReopened, f.RunMoved), "ended", f"{fact} after the end")
    match fact:
        case f.HoldDecided(node, turns):
            held = state.held
            _hold(held is not None and (held.node, held.turns) == (node, turns), "held", f"{fact} of {held}")
        case f.RunMoved():
            _check_move(plan, state, fact)
        case f.Turned(node, turns):
            _hold(turns[-1] <= plan.nodes[node].max_iterations, "turning_in_range", f"{fact} is one too many")
        case f.MessageTaken(node, turns, address):
            name = plan.nodes[node].signal
            waits = [k for k, s in state.steps.items() if s.phase == "parked" and plan.nodes[k[0]].signal == name]
            _hold(
                waits[0] == (node, turns), "fifo", f"an older signal waits for {name!r} than {plan.path(node, turns)!r}"
            )
            _hold(state.inbox[name][0] == address, "fifo", f"an older message {name!r} is kept than {address}")
        case f.TimerFired(node, turns):
            _hold(not (state.paused or state.held), "paused", f"{plan.path(node, turns)!r} fired in a stopped run")
        case f.AttemptFailed(node, turns, _, due_us, spent):
            allowed = plan.retry[node].attempts
            _hold(spent <= allowed and (due_us < 0 or spent < allowed), "attempts", f"{fact} of {allowed}")
        case f.StepBegan() | f.StepTried():
            _check_start(plan, state, fact)
        case f.StepCrashed() | f.RunHeld("quarantined" | "interrupted"):
            _check_crash(plan, state, fact)
        case f.ScopeFailing(node):
            _hold(plan.nodes[node].on_error == "cancel", "on_error", f"{fact} in a waiting parallel")
        case f.ChildFailed(node) | f.Skipped(node):
            _hold(plan.nodes[plan.parent[node]].on_error == "wait", "on_error", f"{fact} in a cancelling parallel")
        case _:
            return


def _check_start(plan: Plan, state: Frontier, fact: f.StepBegan | f.StepTried) -> None:
    """A start is recorded once, as the plan of that moment says; one that may start again may yet begin for good."""
    step, once = state.steps[(fact.node, fact.turns)], plan.nodes[fact.node].delivery == "at_most_once"
    _hold(isinstance(fact, f.StepBegan) == once, "starts", f"{fact} of a step that is {plan.nodes[fact.node].delivery}")
    _hold(step.phase == "ready" or (once and step.phase == "tried"), "starts", f"{fact} of {step}")


def _check_crash(plan: Plan, state: Frontier, fact: f.StepCrashed | f.RunHeld) -> None:
    """What crashed may start again and could have been running; crashes are counted one by one."""
    step, path = state.steps.get((fact.node, fact.turns)), plan.path(fact.node, fact.turns)
    if isinstance(fact, f.RunHeld) and fact.reason == "interrupted":
        _hold(step is not None and step.phase == "began", "crashes", f"{path!r} was interrupted and was {step}")
        return
    _hold(step is not None and step.phase in ("ready", "tried"), "crashes", f"{path!r} crashed and was {step}")
    assert step is not None
    unbegun = step.phase == "ready" and plan.nodes[fact.node].delivery == "at_most_once"
    _hold(not unbegun, "crashes", f"{path!r} had not begun")
    if isinstance(fact, f.StepCrashed):
        _hold((fact.attempt, fact.crashes) == (step.attempt, step.crashes + 1), "crashes", f"{fact} of {step}")


def _check_move(plan: Plan, state: Frontier, fact: f.RunMoved) -> None:
    """A move keeps what is open, each in a row of its own, and leads to the graph that it names."""
    _hold(state.ended != "completed" and fact.target == plan.fingerprint, "moves", f"{fact.target} is not this graph")
    row = {old + i: new + i for old, new, count in fact.rows for i in range(count)}
    _hold(len(set(row.values())) == len(row), "moves", "two rows became one")
    kept = {key[0] for key in (*state.steps, *state.scopes, *state.turning, *state.stalled)} <= row.keys()
    _hold(kept, "moves", "something open was left behind")
    open_scopes = {(row[node], turns) for node, turns in state.scopes}
    _hold({(node, turns) for node, turns, _ in fact.scopes} == open_scopes, "moves", "other parallels are open")


def _names(facts: Sequence[f.Fact]) -> str:
    return ", ".join(type(fact).__name__ for fact in facts)


def _hold(truth: bool, law: str, detail: str) -> None:
    if not truth:
        raise LawBroken(law, detail)


# --- where a run stands ------------------------------------------------------------------


class View:
    """Where a run stands.

    Attributes:
        open: nodes that were entered and not left, with everything around them.
        inside: for each open node, its open children.
        stopped_after: for each sequence that stopped between two children, the one that is done.
        stalled: nodes that were done while something around them failed, so that nothing followed.
    """

    def __init__(self, plan: Plan, state: Frontier) -> None:
        self.plan, self.state = plan, state
        self.open: set[Key] = set()
        self.inside: dict[Key, set[int]] = {}
        self.stopped_after: dict[Key, int] = {}
        self.stalled = set(state.stalled)
        self.pending = set(state.pending)
        for key in (*state.steps, *state.scopes, *state.turning):
            self._mark(key)
        for key in state.stalled:
            self._mark_stalled(*key)

    def _mark_stalled(self, node: int, turns: Turns) -> None:
        if self.plan.kind[node] in ("case", "turn"):
            self._mark((node, turns))
            return
        parent = self.around(node, turns)
        self._mark(parent)
        if self.plan.kind[parent[0]] in SEQUENCES:
            self.stopped_after[parent] = node

    def _mark(self, key: Key) -> None:
        while key not in self.open:
            self.open.add(key)
            if key[0] == 0:
                return
            parent = self.around(*key)
            self.inside.setdefault(parent, set()).add(key[0])
            key = parent

    def around(self, node: int, turns: Turns) -> Key:
        """Return what a node stands in, as seen from ``turns``."""
        parent = self.plan.parent[node]
        return parent, turns[: self.plan.depth[parent]]

    def passed(self, sequence: Key) -> int:
        """Return how many children of an open sequence are done."""
        children = self.plan.nodes[sequence[0]].children
        if sequence in self.stopped_after:
            return children.index(self.stopped_after[sequence]) + 1
        if inside := self.inside.get(sequence):
            return min(children.index(child) for child in inside)
        return len(children) if self.plan.kind[sequence[0]] == "turn" else 0

    def done(self, node: int, turns: Turns) -> bool:
        """Say whether a node is done in these turns; what is around it may be done as well."""
        while node:
            parent = self.around(node, turns)
            if parent in self.open:
                return self._done_in(parent, node)
            node, turns = parent
        return False

    def _done_in(self, parent: Key, child: int) -> bool:
        if self.plan.kind[parent[0]] in SEQUENCES:
            return self.plan.nodes[parent[0]].children.index(child) < self.passed(parent)
        if self.plan.kind[parent[0]] == "parallel" and parent in self.state.scopes:
            return child not in self.inside.get(parent, ()) and child not in self.waiting(parent)
        return False

    def waiting(self, parallel: Key) -> set[int]:
        """Return the children of an open parallel that have not begun."""
        blocked, turns = self.state.scopes[parallel].blocked, parallel[1]
        return {
            child
            for child in self.plan.nodes[parallel[0]].children
            if blocked.get(child, 0)
            or (child, turns) in self.pending
            or any((need, turns) in self.stalled for need in self.plan.nodes[child].needs)
        }

    def text(self, key: Key) -> str:
        """Return a key for people."""
        return f"{self.plan.path(*key)!r} ({self.plan.kind[key[0]]} {key[0]}, turns {key[1]})"


Law: TypeAlias = Callable[[View], None]


# --- the shape of what is open -----------------------------------------------------------


def turns_match_depth(view: View) -> None:
    """Everything that is kept by key has as many turns as there are loops around it."""
    state = view.state
    for node, turns in _keys(state):
        _hold(len(turns) == view.plan.depth[node], "turns_match_depth", view.text((node, turns)))


def _keys(state: Frontier) -> Iterator[Key]:
    for keys in (state.steps, state.scopes, state.turning, state.values, state.cursors, state.stalled, state.pending):
        yield from keys


def phases_fit_kinds(view: View) -> None:
    """Bodies are ready, begun, tried or closing; delays and signals are parked; a delay has a moment."""
    for key, step in view.state.steps.items():
        kind = view.plan.kind[key[0]]
        _hold(kind in BODIED or kind in ("delay", "signal"), "phases_fit_kinds", f"{view.text(key)} is no step")
        own = {"closed", "failed"} | ({"ready", "began", "tried", "closing"} if kind in BODIED else {"parked"})
        _hold(
            step.phase in own and (step.phase != "failed" or kind != "delay"),
            "phases_fit_kinds",
            f"{view.text(key)} is {step.phase}",
        )
        _hold(kind != "delay" or step.due_us > 0, "phases_fit_kinds", f"{view.text(key)} waits for no moment")
        _hold(step.attempt >= 1 and 0 <= step.spent < step.attempt + 1, "phases_fit_kinds", f"{view.text(key)}: {step}")


def crashes_are_attempts(view: View) -> None:
    """Each crash was an attempt of its own that counted for nothing else, of a body that has not failed."""
    for key, step in view.state.steps.items():
        fits = not step.crashes or (0 < step.crashes < step.attempt - step.spent and step.phase not in _NO_CRASH)
        _hold(fits, "crashes_are_attempts", f"{view.text(key)}: {step}")


_NO_CRASH: Final = frozenset({"parked", "failed"})


def open_things_nest(view: View) -> None:
    """Around whatever is open, parallels have a scope and loops are in the turn that the key says."""
    for node, turns in view.open:
        if view.plan.kind[node] == "parallel":
            _hold((node, turns) in view.state.scopes, "open_things_nest", f"{view.text((node, turns))} has no scope")
        if view.plan.kind[node] == "turn":
            turn = view.state.turning.get(view.around(node, turns))
            _hold(turn == turns[-1], "open_things_nest", f"{view.text((node, turns))} is open in turn {turn}")


def one_line(view: View) -> None:
    """A sequence, route, loop or signal has at most one open child, and no open step has something open below it."""
    for key, inside in view.inside.items():
        if view.plan.kind[key[0]] != "parallel":
            _hold(len(inside) == 1, "one_line", f"{view.text(key)} has {len(inside)} open children")
            _hold(key not in view.stopped_after, "one_line", f"{view.text(key)} has stopped and goes on")
        _hold(key not in view.state.steps, "one_line", f"{view.text(key)} is a step and has something open below it")


def stalled_once(view: View) -> None:
    """A stalled node is noted once, is done, and stands where something failed or was cancelled."""
    for key, count in Counter(view.state.stalled).items():
        _hold(count == 1 and key not in view.state.steps, "stalled_once", view.text(key))
        stopped = (
            view.plan.kind[key[0]] == "turn"
            or view.state.stopping
            or any(scope.failing for scope in _scopes_around(view, key))
        )
        _hold(bool(stopped), "stalled_once", f"{view.text(key)} stalled where nothing failed")


def pending_where_stopped(view: View) -> None:
    """A pending child is noted once, has not begun, needs nothing that is not done, and stands where all stopped."""
    for (node, turns), count in Counter(view.state.pending).items():
        key, parallel = (node, turns), view.around(node, turns)
        _hold(count == 1 and key not in view.open, "pending_where_stopped", f"{view.text(key)} has begun")
        needs = view.plan.nodes[node].needs
        fits = parallel in view.state.scopes and all(view.done(need, turns) for need in needs)
        _hold(fits and not view.stalled & {(need, turns) for need in needs}, "pending_where_stopped", view.text(key))
        failing = any(scope.failing for scope in _scopes_around(view, key))
        _hold(failing or view.state.stopping, "pending_where_stopped", f"{view.text(key)} could start")


def _scopes_around(view: View, key: Key) -> Iterator[Scope]:
    while key[0]:
        key = view.around(*key)
        if key in view.state.scopes:
            yield view.state.scopes[key]


def turning_in_range(view: View) -> None:
    """An open loop is in a turn, and something is open in it; that it is not one too many is checked as it begins."""
    for (loop, turns), turn in view.state.turning.items():
        key = loop, turns
        _hold(turn >= 1, "turning_in_range", f"{view.text(key)}: turn {turn}")
        _hold(
            (view.plan.nodes[loop].children[0], (*turns, turn)) in view.open,
            "turning_in_range",
            f"{view.text(key)} is empty",
        )


# --- beginning and end -------------------------------------------------------------------


def no_limbo(view: View) -> None:
    """A started run that has not ended has a step that the hands, the clock, a message or a person can move."""
    state = view.state
    if state.started and not state.ended:
        _hold(
            any(s.phase in LIVE for s in state.steps.values()), "no_limbo", "nothing is open and the run has not ended"
        )
    if not state.started:
        _hold(not view.open and not state.values, "no_limbo", "something is open and the run has not started")


def ended_is_quiet(view: View) -> None:
    """An ended run has no step that could move; a completed one keeps nothing, a failed one its failure."""
    state = view.state
    if not state.ended:
        _hold(state.result == 0, "ended_is_quiet", "a result before the end")
        return
    for key, step in state.steps.items():
        _hold(step.phase not in LIVE, "ended_is_quiet", f"{view.text(key)} is {step.phase} after the end")
    _hold(
        not (state.paused or state.held or state.unsettled),
        "ended_is_quiet",
        "an ended run is paused, held or unsettled",
    )
    if state.ended == "completed":
        left = view.open or state.values or state.tags or state.cursors or state.failure or state.cancelling
        _hold(not left, "ended_is_quiet", f"a completed run keeps {left}")
    elif state.ended == "failed":
        _hold(state.failure is not None, "ended_is_quiet", "failed without a failure")
    else:
        _hold(state.cancelling is not None, "ended_is_quiet", "cancelled without a request")


def failure_is_noted(view: View) -> None:
    """A failure is noted if and only if a step failed, a loop was refused or a person failed the run; it names one."""
    state = view.state
    failed = {key for key, step in state.steps.items() if step.phase == "failed"}
    failed |= {view.around(*key) for key in state.stalled if view.plan.kind[key[0]] == "turn"}
    failed |= {ROOT} if state.failure and state.failure.node == 0 else set()
    if state.failure is None:
        _hold(not failed, "failure_is_noted", f"{failed} failed and nothing is noted")
    else:
        key = state.failure.node, state.failure.turns
        _hold(key in failed, "failure_is_noted", f"{view.text(key)} is noted and did not fail")


# --- counters ----------------------------------------------------------------------------


def scopes_count_children(view: View) -> None:
    """``remaining`` counts children neither done nor lost, ``blocked`` needs that are not done; none is lost twice."""
    for key, scope in view.state.scopes.items():
        row = view.plan.nodes[key[0]]
        undone = {c for c in row.children if not view.done(c, key[1])}
        lost = set(scope.lost)
        _hold(
            len(lost) == len(scope.lost) and lost <= undone,
            "scopes_count_children",
            f"{view.text(key)} lost {scope.lost}",
        )
        _hold(
            scope.remaining == len(undone - lost),
            "scopes_count_children",
            f"{view.text(key)}: {scope}, undone {undone}",
        )
        needs = {
            c: sum(n in undone for n in view.plan.nodes[c].needs) for c in row.children if view.plan.nodes[c].needs
        }
        _hold(
            scope.blocked == needs,
            "scopes_count_children",
            f"{view.text(key)} is blocked by {scope.blocked}, not {needs}",
        )


def scopes_go_on(view: View) -> None:
    """An open parallel with nothing open below it is failing, or stopped because something around it is."""
    for key, scope in view.state.scopes.items():
        around = any(s.failing for s in _scopes_around(view, key))
        stopped = scope.failing or around or view.state.stopping
        _hold(stopped or scope.remaining > 0, "scopes_go_on", f"{view.text(key)} has nothing left to wait for")
        _hold(stopped or bool(view.inside.get(key)), "scopes_go_on", f"{view.text(key)} has nothing open")


def needs_come_first(view: View) -> None:
    """A child of a parallel is open only when the siblings it needs are done."""
    for key in view.open:
        if view.plan.in_parallel[key[0]]:
            missing = [n for n in view.plan.nodes[key[0]].needs if not view.done(n, key[1])]
            _hold(not missing, "needs_come_first", f"{view.text(key)} is open before {missing}")


def stopping_has_a_cause(view: View) -> None:
    """A run is stopping exactly if it was cancelled, or failed by a person."""
    state = view.state
    by_decision = state.failure is not None and state.failure.node == 0
    _hold(state.stopping == (state.cancelling is not None or by_decision), "stopping_has_a_cause", "it is not said why")


def unsettled_counts_closing(view: View) -> None:
    """Each scope, and the run itself, counts the closing steps that name it; they stand below it and it is failing."""
    state = view.state
    closing = Counter(step.scope for step in state.steps.values() if step.phase == "closing")
    for key, scope in state.scopes.items():
        _hold(scope.unsettled == closing[key], "unsettled_counts_closing", f"{view.text(key)} counts {scope.unsettled}")
        _hold(scope.failing or not closing[key], "unsettled_counts_closing", f"{view.text(key)} is not failing")
    _hold(state.unsettled == closing[ROOT], "unsettled_counts_closing", f"the run counts {state.unsettled}")
    _hold(not closing[ROOT] or state.stopping, "unsettled_counts_closing", "closing in a run that goes on")
    _hold(closing.keys() <= {ROOT, *state.scopes}, "unsettled_counts_closing", f"no such scope: {closing}")
    for key, step in state.steps.items():
        _hold(step.phase == "closing" or step.scope == ROOT, "unsettled_counts_closing", f"{view.text(key)}: {step}")


def nothing_starts_where_it_failed(view: View) -> None:
    """Below a failing scope, and anywhere in a stopping run, no step may start and no timer or message is awaited."""
    for key, step in view.state.steps.items():
        stopped = view.state.stopping or any(s.failing for s in _scopes_around(view, key))
        _hold(
            not (stopped and step.phase in STARTABLE),
            "nothing_starts_where_it_failed",
            f"{view.text(key)} is {step.phase}",
        )


# --- values and messages -----------------------------------------------------------------


def needed_values_are_there(view: View) -> None:
    """Whoever may still be bound, entered or left finds every value it reads that is there to be read."""
    for reader, turns, read in _future_reads(view):
        key = read, turns[: view.plan.depth[read]]
        _hold(
            key in view.state.values or not view.done(*key),
            "needed_values_are_there",
            f"{view.plan.path(reader)!r} reads {view.text(key)}",
        )


def _future_reads(view: View) -> Iterator[tuple[int, Turns, int]]:
    """Yield (reader, turns, node read) for all that may still read; nodes inside what has not begun are not done."""
    plan = view.plan
    for node, turns in view.open:
        row = plan.nodes[node]
        if (node, turns) in view.state.steps:
            yield from ((node, turns, read) for read in reads(row))
        elif row.kind in SEQUENCES:
            later = row.children[view.passed((node, turns)) :]
            yield from _reads_below(view, [c for c in later if c not in view.inside.get((node, turns), ())], turns)
            if row.output != NONE:
                yield node, turns, row.output
        elif row.kind == "parallel":
            yield from _reads_below(view, view.waiting((node, turns)), turns)
        elif row.kind == "loop":
            yield from _reads_below(view, row.children, turns)


def _reads_below(view: View, tops: Iterable[int], turns: Turns) -> Iterator[tuple[int, Turns, int]]:
    """Yield what nodes that have not begun will read from outside of loops that have not begun."""
    todo = list(tops)
    while todo:
        node = todo.pop()
        row = view.plan.nodes[node]
        todo.extend(row.children)
        yield from ((node, turns, read) for read in reads(row) if view.plan.depth[read] <= len(turns))


def unneeded_values_are_gone(view: View) -> None:
    """A value is kept exactly while it exists and its last reader's place in the scope that they share is not done.

    So the size of a frontier follows from what is open, and not from what has happened.
    """
    kept = set(view.state.values)
    wanted: set[Key] = set() if view.state.ended == "completed" else set(_live_values(view))
    _hold(not kept - wanted, "unneeded_values_are_gone", f"nobody reads {[view.text(k) for k in kept - wanted]}")
    _hold(not wanted - kept, "unneeded_values_are_gone", f"lost are {[view.text(k) for k in wanted - kept]}")


def _live_values(view: View) -> Iterator[Key]:
    readers: dict[int, list[int]] = {}
    for index, row in enumerate(view.plan.nodes):
        for read in reads(row):
            readers.setdefault(read, []).append(index)
    seen = {turns[:length] for _, turns in view.open for length in range(len(turns) + 1)}
    for value, who in readers.items():
        for turns in seen:
            if (
                len(turns) == view.plan.depth[value]
                and view.done(value, turns)
                and any(_may_read(view, r, value, turns) for r in who)
            ):
                yield value, turns


def _may_read(view: View, reader: int, value: int, turns: Turns) -> bool:
    plan, above = view.plan, set(_upwards(view.plan, value))
    if reader in above:
        return (reader, turns[: plan.depth[reader]]) in view.open
    while plan.parent[reader] not in above:
        reader = plan.parent[reader]
    scope = view.around(reader, turns)
    return scope in view.open and (
        plan.kind[scope[0]] == "parallel" or not view.done(reader, turns[: plan.depth[reader]])
    )


def _upwards(plan: Plan, node: int) -> Iterator[int]:
    while node != NONE:
        yield node
        node = plan.parent[node]


def addresses_exist(view: View) -> None:
    """Every address is that of an entry of this run, or 0."""
    state = view.state
    messages = [at for kept in state.inbox.values() for at in kept]
    addresses = [
        *state.values.values(),
        *state.tags,
        *state.cursors.values(),
        *messages,
        state.result,
        state.failure.address if state.failure else 0,
    ]
    _hold(all(0 <= at <= state.seq for at in addresses), "addresses_exist", f"{addresses} with seq {state.seq}")
    _hold(0 not in messages and len(set(messages)) == len(messages), "addresses_exist", f"messages at {messages}")


def tags_have_values(view: View) -> None:
    """A tag is kept only for a value that is kept."""
    left = set(view.state.tags) - set(view.state.values.values())
    _hold(not left, "tags_have_values", f"tags at {left}")


def cursors_have_steps(view: View) -> None:
    """A cursor is kept only for a task that is open."""
    left = [
        view.text(key) for key in view.state.cursors if key not in view.state.steps or view.plan.kind[key[0]] != "task"
    ]
    _hold(not left, "cursors_have_steps", f"cursors of {left}")


def messages_are_taken(view: View) -> None:
    """No signal of a run that goes on waits while a message for it is kept; kept messages are in order, and no name is
    kept without one.
    """
    state = view.state
    for key, step in state.steps.items():
        stopped = state.paused or state.held
        if step.phase == "parked" and view.plan.kind[key[0]] == "signal" and not stopped:
            _hold(
                view.plan.nodes[key[0]].signal not in state.inbox, "messages_are_taken", f"{view.text(key)} still waits"
            )
    for name, kept in state.inbox.items():
        _hold(bool(kept) and kept == sorted(kept), "messages_are_taken", f"{name!r} kept {kept}")


LAWS: Final[tuple[Law, ...]] = (
    turns_match_depth, phases_fit_kinds, crashes_are_attempts, open_things_nest, one_line, stalled_once,
    pending_where_stopped, turning_in_range,
    no_limbo, ended_is_quiet, failure_is_noted, stopping_has_a_cause,
    scopes_count_children, scopes_go_on, needs_come_first, unsettled_counts_closing, nothing_starts_where_it_failed,
    needed_values_are_there, unneeded_values_are_gone, addresses_exist, tags_have_values, cursors_have_steps,
    messages_are_taken,
)  # fmt: skip
