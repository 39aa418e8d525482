"""Random edits of random workflows: what an author does to a graph while runs of it are open.

An edit returns another workflow and leaves the given one as it is. It also says which names it concerned, so that an
obstacle that names anything else is seen to be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from stepwell.errors import GraphError
from stepwell.flow import nodes as n
from stepwell.flow.workflow import Workflow

from .graphs import ONCE, RETRIED, Chooser, make_task, workflow

Line: TypeAlias = list[n.Node]


@dataclass
class Edited:
    """``kind`` of the edit, the names that it ``concerns``, and what the author has now."""

    kind: str
    concerns: set[str]
    workflow: Workflow[Any, Any]


@dataclass
class Tree:
    """A body in pieces: all sequences, all parallels, all nodes."""

    bodies: list[n.Body]
    parallels: list[n.ParallelNode]
    nodes: list[n.Node]
    lines: list[Line]


def tree_of(body: n.Body) -> Tree:
    bodies = list(_bodies(body))
    parallels = [p for b in bodies for node in b.nodes for p in _parallels(node)]
    lines = [*(b.nodes for b in bodies), *(p.children for p in parallels)]
    return Tree(bodies, parallels, [node for line in lines for node in line], lines)


def _bodies(body: n.Body) -> Iterator[n.Body]:
    yield body
    for node in body.nodes:
        for inner in _inside(node):
            yield from _bodies(inner)


def _parallels(node: n.Node) -> Iterator[n.ParallelNode]:
    if isinstance(node, n.ParallelNode):
        yield node
        for child in node.children:
            yield from _parallels(child)


def _inside(node: n.Node) -> list[n.Body]:
    match node:
        case n.ParallelNode():
            return [body for child in node.children for body in _inside(child)]
        case n.BranchNode() | n.LoopNode():
            return [node.body]
        case n.RouteNode():
            return [body for _, body in node.cases] + ([node.default] if node.default else [])
        case n.SignalNode():
            return [node.on_timeout] if node.on_timeout else []
        case n.ChildNode():
            return [node.workflow.body]
        case _:
            return []


class _Copier:
    """Copy a tree: nodes and bodies are known by identity, so each is copied once, and its readers read the copy."""

    def __init__(self) -> None:
        self.nodes: dict[int, n.Node] = {}
        self.bodies: dict[int, n.Body] = {}

    def body(self, body: n.Body) -> n.Body:
        made = self.bodies[id(body)] = n.Body(input_type=body.input_type)
        made.nodes = [self.node(node) for node in body.nodes]
        made.output = self.source(body.output) if body.output is not None else None
        return made

    def source(self, source: n.Source) -> n.Source:
        match source:
            case n.Value(node):
                return n.Value(self.nodes[id(node)])
            case n.Input(body):
                return n.Input(self.bodies[id(body)])
            case n.Select(base, steps):
                return n.Select(self.source(base), steps)
            case n.Display(kind, items, keys):
                return n.Display(kind, tuple(self.source(item) for item in items), keys)
            case _:
                return source

    def node(self, node: n.Node) -> n.Node:
        made = self.nodes[id(node)] = self._made(node)
        made.was = node.was
        return made

    def _made(self, node: n.Node) -> n.Node:
        match node:
            case n.TaskNode(name, task, args, kwargs):
                by_name = {key: self.source(source) for key, source in kwargs.items()}
                return n.TaskNode(name, task, tuple(self.source(source) for source in args), by_name)
            case n.ParallelNode(name, children, on_error):
                return n.ParallelNode(name, [self.node(child) for child in children], on_error)
            case n.BranchNode(name, body):
                return n.BranchNode(name, self.body(body))
            case n.RouteNode(name, key, label, cases, default):
                copied = [(value, self.body(body)) for value, body in cases]
                return n.RouteNode(name, self.source(key), label, copied, self.body(default) if default else None)
            case n.LoopNode(name, first, body, most, on_max):
                return n.LoopNode(name, self.source(first), self.body(body), most, on_max)
            case n.DelayNode(name, duration_us):
                return n.DelayNode(name, duration_us)
            case n.SignalNode(name, signal, payload, timeout_us, on_timeout):
                after = self.body(on_timeout) if on_timeout else None
                return n.SignalNode(name, signal, payload, timeout_us, after)
            case n.ChildNode(name, child, arg):
                inner = workflow(self.body(child.body), child.name, child.has_input)
                return n.ChildNode(name, inner, self.source(arg) if arg is not None else None)


# --- edits: each changes the tree and returns the names that it concerns, nothing where it does not apply -----------


def _new(choose: Chooser, *reads: n.Source) -> n.TaskNode:
    return n.TaskNode(f"new{choose.number(0, 99_999)}", make_task("plain"), reads, {})


def append(tree: Tree, choose: Chooser) -> set[str]:
    body = choose.pick(tree.bodies)
    made = _new(choose, *(n.Value(node) for node in body.nodes[-1:] if not isinstance(node, n.DelayNode)))
    body.nodes.append(made)
    return {made.name}


def append_at_the_end(tree: Tree, choose: Chooser) -> set[str]:
    body, made = tree.bodies[0], _new(choose)
    earlier = [v for node in body.nodes for v in _values(node)]
    made.args = tuple(choose.pick(earlier) for _ in range(min(2, len(earlier))))
    body.nodes.append(made)
    return {made.name}


def _values(node: n.Node) -> list[n.Source]:
    """Return what is known behind a node: a branch lets out what is in it."""
    own: list[n.Source] = [] if isinstance(node, n.DelayNode) else [n.Value(node)]
    if isinstance(node, n.ParallelNode):
        return own + [value for child in node.children for value in _values(child)]
    if isinstance(node, n.BranchNode):
        return own + [value for inner in node.body.nodes for value in _values(inner)]
    return own


def yield_another(tree: Tree, choose: Chooser) -> set[str]:
    """The workflow yields a value that is known at its end and that nobody may have read before."""
    body = tree.bodies[0]
    body.output = n.Display("list", tuple(v for node in body.nodes for v in _values(node))[:9])
    return {"result"}


def insert(tree: Tree, choose: Chooser) -> set[str]:
    body, made = choose.pick(tree.bodies), _new(choose)
    body.nodes.insert(choose.number(0, len(body.nodes)), made)
    return {made.name}


def remove(tree: Tree, choose: Chooser) -> set[str]:
    """Remove a node that nobody reads."""
    line = choose.pick([line for line in tree.lines if line])
    gone = choose.pick(line)
    line.remove(gone)
    return {gone.name}


def rename(tree: Tree, choose: Chooser) -> set[str]:
    node = choose.pick(tree.nodes)
    old = node.name
    node.name = f"{old}~{choose.number(1, 9)}"
    return {old, node.name}


def rename_with_was(tree: Tree, choose: Chooser) -> set[str]:
    node = choose.pick(tree.nodes)
    old, node.was = node.name, node.name
    node.name = f"{old.partition('~')[0]}~{choose.number(1, 9)}"
    return {old, node.name}


def reorder(tree: Tree, choose: Chooser) -> set[str]:
    lines = [line for line in tree.lines if len(line) > 1]
    if not lines:
        return set()
    line = choose.pick(lines)
    at = choose.number(0, len(line) - 2)
    line[at], line[at + 1] = line[at + 1], line[at]
    return {line[at].name, line[at + 1].name}


def _tasks(tree: Tree) -> list[n.TaskNode]:
    return [node for node in tree.nodes if isinstance(node, n.TaskNode)]


def retype(tree: Tree, choose: Chooser) -> set[str]:
    tasks = _tasks(tree)
    if not tasks:
        return set()
    node = choose.pick(tasks)
    node.task = make_task(node.task.name, version="2")
    return {node.name}


def tune(tree: Tree, choose: Chooser) -> set[str]:
    """Change what is in no interface: attempts, delivery, times, limits of loops that fail there, bodies."""
    for node in tree.nodes:
        match node:
            case n.TaskNode() if node.task.name != "decider" and not node.task.options.version:
                node.task = choose.pick((make_task(node.task.name), node.task))
                if node.task.name == "retried":
                    node.task = choose.pick((RETRIED, make_task("retried", attempts=choose.number(1, 5))))
                if node.task.name == "once":
                    node.task = choose.pick((ONCE, make_task("once", attempts=2)))
            case n.DelayNode():
                node.duration_us = choose.number(0, 50)
            case n.SignalNode() if node.timeout_us:
                node.timeout_us = choose.number(1, 50)
            case n.LoopNode() if node.on_max == "fail":
                node.max_iterations = choose.number(3, 6)
            case _:
                pass
    return {"nothing"}


def add_child(tree: Tree, choose: Chooser) -> set[str]:
    if not tree.parallels:
        return set()
    parallel = choose.pick(tree.parallels)
    made = _new(choose)
    siblings = [v for child in parallel.children for v in _values(child)]
    if siblings and choose.number(0, 2):
        made.args = (choose.pick(siblings),)
    parallel.children.append(made if choose.number(0, 1) else n.BranchNode(f"b-{made.name}", n.Body([made])))
    return {parallel.children[-1].name, made.name}


def add_need(tree: Tree, choose: Chooser) -> set[str]:
    """A new child stands first in a parallel, and a step that was there reads it."""
    readers = [(p, child) for p in tree.parallels for child in p.children if isinstance(child, n.TaskNode)]
    if not readers:
        return set()
    parallel, reader = choose.pick(readers)
    made = _new(choose)
    parallel.children.insert(0, made)
    reader.args = (*reader.args, n.Value(made))
    return {made.name, reader.name}


def add_case(tree: Tree, choose: Chooser) -> set[str]:
    routes = [node for node in tree.nodes if isinstance(node, n.RouteNode)]
    if not routes:
        return set()
    route = choose.pick(routes)
    made = n.Body([n.TaskNode(_new(choose).name, make_task("decider"), (n.Const(1),), {})])
    made.output = n.Value(made.nodes[0])
    route.cases = [*route.cases, (f"z{choose.number(0, 999)}", made)]
    return {"nothing"}


def rewire(tree: Tree, choose: Chooser) -> set[str]:
    tasks = _tasks(tree)
    if not tasks:
        return set()
    node = choose.pick(tasks)
    node.args = (*node.args, n.Const(choose.number(100, 999)))
    return {node.name}


EDITS: tuple[Callable[[Tree, Chooser], set[str]], ...] = (
    append, append_at_the_end, yield_another, insert, remove, rename, rename_with_was, rename_with_was, reorder, retype,
    tune, add_child, add_child, add_need, add_case, rewire,
)  # fmt: skip
#: what must never keep a run where it is
HARMLESS = ("tune", "add_case", "append_at_the_end", "rename_with_was")


def edit(given: Workflow[Any, Any], choose: Chooser) -> Edited | None:
    """Return a workflow with one thing changed; ``None`` where the edit does not apply or makes no graph."""
    change = choose.pick(EDITS)
    copied = _Copier().body(given.body)
    concerns = change(tree_of(copied), choose)
    if not concerns or any(
        isinstance(node, n.ChildNode) and not node.workflow.body.nodes for node in tree_of(copied).nodes
    ):
        return None
    try:
        made = workflow(copied, given.name, given.has_input)
        assert made.plan
    except GraphError:
        return None
    return Edited(change.__name__, concerns, made)
