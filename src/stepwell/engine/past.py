"""What the facts of a run say has happened: the part of the past that its present still stands on.

The frontier forgets what nobody reads any more, so what is finished is read from the facts, from the first. Only the
current turn of each loop counts; earlier turns are past and bind nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepwell.flow.plan import Key, Plan, Turns

from . import facts as f
from .frontier import Frontier
from .moved import renumbering


class Past:
    """A run's outcomes by key, in terms of the graph it is on now.

    Attributes:
        seq: entries read; the address of the last one's value.
        started: the address of the input, 0: the run has not started.
        done: addresses of the values of what is done.
        decided: those of what a person completed: done, or of a route only that its case is chosen. Which of the two it
            is, the facts do not say.
        turned: the last turn of each loop that was entered, and the address of the value it was entered with.
        cases: the case that each route took.
        fired: signals whose time was over and that went on with what follows then.
        tags: ``again`` or ``done`` of values that carry it and were not yet looked at.
    """

    def __init__(self, history: Iterable[Sequence[f.Fact]]) -> None:
        self.seq = self.started = 0
        self.done: dict[Key, int] = {}
        self.decided: dict[Key, int] = {}
        self.turned: dict[Key, tuple[int, int]] = {}
        self.cases: dict[Key, str] = {}
        self.fired: set[Key] = set()
        self.tags: dict[int, str] = {}
        for facts in history:
            self.seq += 1
            for fact in facts:
                self._read(fact)

    def _read(self, fact: f.Fact) -> None:
        match fact:
            case f.RunStarted():
                self.started = self.seq
            case f.StepDone(node, turns, tag):
                self._outcome(self.done, (node, turns), tag)
            case f.HoldDecided(node, turns, "complete", tag):
                self.cases[(node, turns)] = tag
                self._outcome(self.decided, (node, turns), tag)
            case f.RouteTaken(node, turns, case):
                self.cases[(node, turns)] = case
            case f.TimerFired(node, turns):
                self.fired.add((node, turns))
            case f.Opened(node, turns) | f.StepRefused(node, turns):
                self.fired.discard((node, turns))
            case f.MessageTaken(node, turns, address):
                self.done[(node, turns)] = address
            case f.Turned(node, turns, address):
                self._turn((node, turns[:-1]), turns[-1], address)
            case f.ScopeDone(node, turns, address):
                self._scope_done((node, turns), address)
            case f.RunMoved():
                self._renumber(fact)
            case _:
                return

    def _outcome(self, done: dict[Key, int], key: Key, tag: str) -> None:
        done[key] = self.seq
        if tag:
            self.tags[self.seq] = tag

    def _turn(self, loop: Key, turn: int, address: int) -> None:
        self.turned[loop] = turn, address
        if turn > 1:
            self.tags.pop(address, None)

    def _scope_done(self, key: Key, address: int) -> None:
        self.done[key] = address
        if key in self.turned:
            self.tags.pop(address, None)

    def _renumber(self, fact: f.RunMoved) -> None:
        row = renumbering(fact.rows)
        self.done = {(row[n], t): at for (n, t), at in self.done.items() if n in row}
        self.decided = {(row[n], t): at for (n, t), at in self.decided.items() if n in row}
        self.turned = {(row[n], t): turn for (n, t), turn in self.turned.items() if n in row}
        self.cases = {(row[n], t): case for (n, t), case in self.cases.items() if n in row}
        self.fired = {(row[n], t) for n, t in self.fired if n in row}


class Standing:
    """Where a run stands, row by row: each row has at most one key in the current turns.

    Attributes:
        at: the turns around a row, ``None`` where a loop around it has not been entered.
        done: the address of the value of each row that is done; of a place for an input, once it is entered.
        touched: rows that are done or open, and those around them.
    """

    def __init__(self, plan: Plan, state: Frontier, past: Past) -> None:
        self.plan, self.past = plan, past
        self.at: list[Turns | None] = []
        self.done: dict[int, int] = {}
        self.touched: set[int] = set()
        open_now = {*state.steps, *state.scopes, *state.turning, *state.stalled}
        for row in range(len(plan.nodes)):
            self.at.append(turns := self._turns(row))
            if turns is not None:
                self._see(row, (row, turns), open_now)
        self._look_around()

    def _turns(self, row: int) -> Turns | None:
        parent = self.plan.parent[row]
        around = self.at[parent] if parent >= 0 else ()
        if around is None or self.plan.kind[row] != "turn":
            return around
        entered = self.past.turned.get((parent, around))
        return (*around, entered[0]) if entered else None

    def _see(self, row: int, key: Key, open_now: set[Key]) -> None:
        past, kind = self.past, self.plan.kind[row]
        if key in past.done:
            self.done[row] = past.done[key]
        elif key in past.decided and kind != "route":
            self.done[row] = past.decided[key]
        elif key in past.fired and kind == "delay":
            self.done[row] = 0
        if row in self.done or key in open_now or key in past.turned or self._is_entered(row, key):
            self.touched.add(row)

    def _is_entered(self, row: int, key: Key) -> bool:
        """Say whether a part of its parent was entered, of the kinds that leave no fact of their own."""
        parent = self.plan.parent[row], key[1]
        match self.plan.kind[row]:
            case "root":
                return self.past.started > 0
            case "case":
                return self.past.cases.get(parent) == self.plan.nodes[row].name
            case "timeout":
                return parent in self.past.fired
            case "turn":
                return True
            case _:
                return False

    def _look_around(self) -> None:
        """What is around something that was entered was entered too; its place for an input then has its value."""
        plan = self.plan
        for row in range(len(plan.nodes) - 1, 0, -1):
            if row in self.touched:
                self.touched.add(plan.parent[row])
        for row in range(1, len(plan.nodes)):
            parent, kind = plan.parent[row], plan.kind[row]
            if kind == "input" and parent in self.touched:
                self.touched.add(row)
                self.done[row] = self._input(parent)
            elif kind in ("case", "turn", "timeout") and row in self.touched and parent in self.done:
                self.done[row] = self.done[parent]

    def _input(self, sequence: int) -> int:
        loop, turns = self.plan.parent[sequence], self.at[sequence]
        return self.past.turned[(loop, turns[:-1])][1] if turns else self.past.started
