"""Which messages let a step go: told to those who trace a run, and to nobody else.

An entry may take several messages and open several steps, some of which follow from something else. So the plan is
asked which signals stand directly before a step, with no step in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stepwell.flow.plan import Key, Plan, ordered_children

from . import facts as f


def signals_before(plan: Plan, node: int) -> frozenset[int]:
    """Return the signals after which a step may be the next to run."""
    return frozenset(_Search(plan).before(node)) if plan.signals else frozenset()


def let_go(plan: Plan, facts: Iterable[f.Fact]) -> dict[Key, list[int]]:
    """Return for the steps that one entry opens the addresses of the messages that let them go."""
    taken: dict[int, int] = {}
    found: dict[Key, list[int]] = {}
    for fact in facts:
        if isinstance(fact, f.MessageTaken):
            taken[fact.node] = fact.address
        elif taken and isinstance(fact, f.Opened) and plan.bodied[fact.node]:
            addresses = [taken[signal] for signal in sorted(signals_before(plan, fact.node) & taken.keys())]
            if addresses:
                found[fact.node, fact.turns] = addresses
    return found


class _Search:
    """Walks back from a step, through whatever is done as soon as something else is."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seen: set[tuple[str, int]] = set()

    def before(self, node: int) -> Iterator[int]:
        """Yield the signals that may be the last thing done before a node is entered."""
        plan, parent = self._plan, self._plan.parent[node]
        if parent < 0 or not self._is_new("before", node):
            return
        siblings = plan.nodes[node].needs if plan.in_parallel[node] else self._previous(node)
        for sibling in siblings:
            yield from self._ends(sibling)
        if not siblings:
            yield from self._entrance(parent)

    def _previous(self, node: int) -> list[int]:
        line = ordered_children(self._plan.nodes, self._plan.parent[node])
        return line[line.index(node) - 1 : line.index(node)] if node in line[1:] else []

    def _entrance(self, around: int) -> Iterator[int]:
        """Yield what may be the last thing done before something begins at its first child."""
        match self._plan.kind[around]:
            case "root" | "case" | "timeout":  # it begins after a start, a route's key or a timer
                return
            case "turn":
                yield from self.before(self._plan.parent[around])
                yield from self._ends(around)
            case _:
                yield from self.before(around)

    def _ends(self, node: int) -> Iterator[int]:
        """Yield the signals that a node may end with."""
        if not self._is_new("ends", node):
            return
        children = ordered_children(self._plan.nodes, node)
        match self._plan.kind[node]:
            case "signal":
                yield node
            case "task" | "pack" | "delay" | "input":
                return
            case "parallel" | "route" | "loop":
                pass
            case _:  # a sequence
                children = children[-1:]
                if not children:
                    yield from self._entrance(node)
        for child in children:
            yield from self._ends(child)

    def _is_new(self, what: str, node: int) -> bool:
        fresh = (what, node) not in self._seen
        self._seen.add((what, node))
        return fresh
