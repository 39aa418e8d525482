"""What a workflow means, said in one page: the tree is executed directly, with values, in the order it is written.

It knows no plan, frontier, address or fact. A run of the engine that meets no failure must call the same steps in the
same turns and end with the same value.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from stepwell.flow import nodes as n
from stepwell.flow.plan import Turns
from stepwell.flow.workflow import Workflow

from .hands import chosen, displayed, says, selected, stem, token


class Oracle:
    """``calls`` counts task calls by name and turns, and ``made`` holds what they gave.

    ``late`` says whether a signal with a timeout gets its message.
    """

    def __init__(self, late: str = "message") -> None:
        self.late = late
        self.known: dict[int, Any] = {}
        self.tags: dict[object, str] = {}
        self.calls: Counter[tuple[str, Turns]] = Counter()
        self.made: dict[tuple[str, Turns], object] = {}

    def run(self, workflow: Workflow[Any, Any], given: object = "input") -> object:
        self.known[id(workflow.body)] = given
        return self.body(workflow.body, ())

    def body(self, body: n.Body, turns: Turns) -> object:
        for node in body.nodes:
            self.node(node, turns)
        return self.value(body.output)

    def node(self, node: n.Node, turns: Turns) -> None:
        self.known[id(node)] = getattr(self, type(node).__name__)(node, turns)

    def value(self, source: n.Source | None) -> Any:
        match source:
            case None:
                return None
            case n.Value(node):
                return self.known[id(node)]
            case n.Input(body):
                return self.known[id(body)]
            case n.Select(base, steps):
                return selected(self.value(base), steps)
            case n.Const(value):
                return value
            case n.Display(kind, items, keys):
                return displayed(kind, [self.value(i) for i in items], keys)

    # --- node kinds ---

    def TaskNode(self, node: n.TaskNode, turns: Turns) -> object:
        self.calls[(stem(node.name), turns)] += 1
        args = [self.value(a) for a in node.args]
        kwargs = [(k, self.value(a)) for k, a in node.kwargs.items()]
        made = self.made[(stem(node.name), turns)] = token(node.name, turns, args, kwargs, node.task.options.version)
        if node.task.name == "decider":
            self.tags[made] = says(node.name, turns)
        return made

    def ParallelNode(self, node: n.ParallelNode, turns: Turns) -> object:
        for child in node.children:
            self.node(child, turns)
        return None

    def BranchNode(self, node: n.BranchNode, turns: Turns) -> object:
        return self.body(node.body, turns)

    def RouteNode(self, node: n.RouteNode, turns: Turns) -> object:
        bodies = [body for _, body in node.cases] + ([node.default] if node.default else [])
        return self.body(bodies[chosen(node.name, self.value(node.key), len(bodies))], turns)

    def LoopNode(self, node: n.LoopNode, turns: Turns) -> object:
        value = self.value(node.first)
        for turn in range(1, node.max_iterations + 1):
            self.known[id(node.body)] = value
            value = self.body(node.body, (*turns, turn))
            if self.tags[value] == "done":
                break
        else:
            assert node.on_max == "last", "the grower was asked for loops that end"
        return value

    def DelayNode(self, node: n.DelayNode, turns: Turns) -> object:
        return None

    def SignalNode(self, node: n.SignalNode, turns: Turns) -> object:
        if node.on_timeout is not None and self.late == "timeout":
            return self.body(node.on_timeout, turns)
        return node.signal

    def ChildNode(self, node: n.ChildNode, turns: Turns) -> object:
        self.known[id(node.workflow.body)] = self.value(node.arg)
        return self.body(node.workflow.body, turns)
