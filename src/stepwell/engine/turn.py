"""One turn of the engine: what follows from a fact, and what from that, until nothing does.

What is still to be looked at waits on a small stack instead of the call stack: a thousand nodes that complete each
other at once are a loop here, not a recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from stepwell.flow.plan import NONE, Key, Plan, Turns

from . import facts as f
from .frontier import ROOT, Failure, Frontier, Step, address, apply, input_of

NOTHING: Final[tuple[f.Fact, ...]] = ()


class Turn:
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

    def take_kept(self) -> list[Key]:
        """Give kept messages to the signals that have waited for them, oldest to oldest, now that the run goes on.

        Returns the signals that are done with that; what follows is for the caller to decide, all at once.
        """
        taken: list[Key] = []
        for (node, turns), step in [] if self.stopped else list(self.state.steps.items()):
            signal = self.plan.nodes[node].signal
            if signal and step.phase == "parked" and (kept := self.state.inbox.get(signal)):
                self.emit(f.MessageTaken(node, turns, kept[0]))
                taken.append((node, turns))
        return taken

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

    def done_together(self, keys: Sequence[Key]) -> None:
        """Several nodes are done at once."""
        for node, turns in reversed(keys):
            if not self.plan.in_parallel[node]:
                self.done(node, turns)
        self.done_in_parallels([key for key in keys if self.plan.in_parallel[key[0]]])

    def done_in_parallels(self, keys: Sequence[Key]) -> None:
        """Several children of one parallel may be done at once: it closes once, and what waited for them opens once."""
        plan, scopes = self.plan, self.state.scopes
        for parallel, turns in dict.fromkeys((plan.parent[node], turns) for node, turns in keys):
            if not scopes[(parallel, turns)].remaining:
                self.close_parallel(parallel, turns)
        for waiter, turns in dict.fromkeys((w, turns) for node, turns in keys for w in plan.waiters[node]):
            if not scopes[(plan.parent[waiter], turns)].blocked[waiter]:
                self.open(waiter, turns)

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
            self.refuse(loop, turns[:-1], "loop_limit" if tag == "again" else f"loop_value {tag}".rstrip())

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
            self.end_failed()
        elif self.plan.nodes[self.plan.parent[child]].on_error == "wait":
            self.emit(f.ChildFailed(child, turns))
            self.skip_readers(child, turns)
        else:
            self._fail_parallel(self.plan.parent[child], turns)

    def _up_to_parallel(self, node: int, turns: Turns) -> Key:
        while node and not self.plan.in_parallel[node]:
            node = self.plan.parent[node]
        return node, turns[: self.plan.depth[node]]

    def skip_readers(self, child: int, turns: Turns) -> None:
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

    def end_failed(self) -> None:
        first = self.state.failure or Failure(0, (), 0, "unknown")
        self.emit(f.RunEnded("failed", first.address, first.node, first.turns, first.reason))

    def settled(self, step: Step) -> None:
        """A closing step is out of the way; the scope that waited for it may fail now, or the run end."""
        if step.scope != ROOT:
            if not self.state.scopes[step.scope].unsettled and not self._covered(*step.scope):
                self._scope_failed(*step.scope)
        elif not self.state.unsettled:
            if self.state.cancelling:
                self.emit(f.RunEnded("cancelled"))
            else:
                self.end_failed()
