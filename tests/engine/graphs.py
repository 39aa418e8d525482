"""Random workflows: trees of every node kind, nested anywhere, with data flow through selections and displays.

A grower asks a :class:`Chooser` for every choice, so the same grower serves Hypothesis (which shrinks) and a plain
seeded generator (which is fast). Names of tasks are unique within a tree, so a name tells where a step stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from stepwell.flow import nodes as n
from stepwell.flow.task import AnyTask, task
from stepwell.flow.workflow import Workflow

T = TypeVar("T")


class Chooser(Protocol):
    def number(self, least: int, most: int) -> int: ...
    def pick(self, options: Sequence[T]) -> T: ...


class Drawn:
    """Choices that Hypothesis makes and shrinks towards the first option and the least number."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw

    def number(self, least: int, most: int) -> int:
        return int(self.draw(st.integers(least, most)))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number(0, len(options) - 1)]


class Seeded:
    """Choices of a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


def _body(*args, **kwargs):  # type: ignore[no-untyped-def]  # undeclared, so that any value may flow in and out
    """Stand for any work; the hands of these tests compute the result."""


def make_task(name: str, **options: Any) -> AnyTask:
    """Return a task of any arguments and results."""
    made: AnyTask = task(name, **options)(_body)
    return made


PLAIN = make_task("plain")
RETRIED = make_task("retried", attempts=3)
ONCE = make_task("once", delivery="at_most_once")
DECIDER = make_task("decider")
ZERO = n.Const(0)


def workflow(body: n.Body, name: str = "flow", has_input: bool = False) -> Workflow[Any, Any]:
    """Return a body as a workflow."""
    return Workflow(name, body, input_type=Any, output_type=Any, has_input=has_input, metadata={}, where="graphs.py:1")


# --- trees written by hand ---------------------------------------------------------------


def step(name: str, *reads: n.Node | n.Source, task: AnyTask = PLAIN, **by_name: n.Node | n.Source) -> n.TaskNode:
    """Return a task node that reads what the given nodes yield."""
    return n.TaskNode(name, task, tuple(map(_source, reads)), {k: _source(v) for k, v in by_name.items()})


def _source(given: n.Node | n.Source) -> n.Source:
    return given if isinstance(given, n.Value | n.Input | n.Select | n.Const | n.Display) else n.Value(given)


def line(*nodes: n.Node, output: n.Node | n.Source | None = None) -> n.Body:
    """Return a sequence that yields what its last node does, or ``output``."""
    last = n.Value(nodes[-1]) if nodes else None
    return n.Body(list(nodes), _source(output) if output is not None else last)


def flow(*nodes: n.Node, output: n.Node | n.Source | None = None) -> Workflow[Any, Any]:
    """Return a workflow of these nodes."""
    return workflow(line(*nodes, output=output))


def together(*children: n.Node, on_error: n.OnError = "cancel", name: str = "parallel") -> n.ParallelNode:
    return n.ParallelNode(name, list(children), on_error)


def branch(name: str, *nodes: n.Node) -> n.BranchNode:
    return n.BranchNode(name, line(*nodes))


def awaited(
    signal: str, timeout_us: int | None = None, on_timeout: n.Body | None = None, name: str = ""
) -> n.SignalNode:
    return n.SignalNode(name or signal, signal, Any, timeout_us, on_timeout)


def deciding(name: str, *reads: n.Node | n.Source) -> n.TaskNode:
    """Return a step that may say Again or Done."""
    return step(name, *reads, task=DECIDER)


def repeated(name: str, body: n.Body, most: int = 3, on_max: n.OnMax = "fail", first: n.Source = ZERO) -> n.LoopNode:
    return n.LoopNode(name, first, body, most, on_max)


# --- trees grown at random ---------------------------------------------------------------


class _Grower:
    """Grows one tree; without ``failing`` it can end well: timeouts have branches, loops enough turns."""

    def __init__(self, choose: Chooser, size: int, failing: bool) -> None:
        self.choose, self.left, self.failing = choose, size, failing
        self.count = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    # --- sources ---

    def source(self, seen: Sequence[n.Source], nest: int = 1) -> n.Source:
        shape = self.choose.pick(("seen", "seen", "seen", "const", "select", "display"))
        if shape == "const" or not seen:
            return n.Const(self.choose.number(0, 9))
        if shape == "select":
            return n.Select(self.choose.pick(seen), (("item", self.choose.number(0, 1)), ("attr", "part")))
        if shape == "display" and nest:
            items = tuple(self.source(seen, nest - 1) for _ in range(self.choose.number(1, 2)))
            kind = self.choose.pick(("list", "tuple", "dict"))
            return n.Display(kind, items, tuple(f"k{i}" for i in range(len(items))) if kind == "dict" else ())
        return self.choose.pick(seen)

    # --- sequences ---

    def body(self, seen: Sequence[n.Source], depth: int, least: int = 0) -> tuple[n.Body, list[n.Source]]:
        """Return a sequence and the values that are known behind it, where its kind lets them out."""
        body, known = n.Body(), list(seen)
        self.fill(body, known, depth, least)
        body.output = self.source(known) if self.choose.number(0, 3) else None
        return body, known

    def fill(self, body: n.Body, known: list[n.Source], depth: int, least: int = 0) -> None:
        for _ in range(max(least, self.choose.number(0, 3))):
            if self.left > 0 or len(body.nodes) < least:
                body.nodes.append(self.node(known, depth))

    def node(self, known: list[n.Source], depth: int) -> n.Node:
        """Grow one node and add what it makes known."""
        self.left -= 1
        deep = ("parallel", "parallel", "route", "loop", "child") if depth and self.left > 0 else ()
        kind = self.choose.pick(("task", "task", "task", "signal", "delay", *deep))
        grown: n.Node = getattr(self, kind)(known, depth - 1)
        if kind != "delay":
            known.append(n.Value(grown))
        return grown

    # --- nodes ---

    def task(self, known: Sequence[n.Source], depth: int) -> n.TaskNode:
        args = tuple(self.source(known) for _ in range(self.choose.number(0, 2)))
        kwargs = {"extra": self.source(known)} if self.choose.number(0, 4) == 4 else {}
        return n.TaskNode(self.name("t"), self.choose.pick((PLAIN, RETRIED, ONCE)), args, kwargs)

    def delay(self, known: Sequence[n.Source], depth: int) -> n.DelayNode:
        return n.DelayNode(self.name("d"), self.choose.number(0, 3) * 10)

    def signal(self, known: Sequence[n.Source], depth: int) -> n.SignalNode:
        signal = self.choose.pick(("go", "stop", "late"))
        if signal != "late":
            return n.SignalNode(self.name("s"), signal, Any)
        branch = not self.failing or self.choose.number(0, 2)
        on_timeout = self.body(known, depth)[0] if branch else None
        return n.SignalNode(self.name("s"), signal, Any, 20, on_timeout)

    def parallel(self, known: list[n.Source], depth: int) -> n.ParallelNode:
        children: list[n.Node] = []
        for _ in range(self.choose.pick((2, 3, 4, 1))):
            if self.choose.number(0, 1):
                body, inner = self.body(known, depth, least=1)
                branch = n.BranchNode(self.name("b"), body)
                known[:] = [*inner, n.Value(branch)]
                children.append(branch)
            else:
                children.append(self.node(known, depth))
        return n.ParallelNode(self.name("p"), children, self.choose.pick(("cancel", "cancel", "wait")))

    def route(self, known: Sequence[n.Source], depth: int) -> n.RouteNode:
        cases = [(key, self.body(known, depth)[0]) for key in ("x", "y")[: self.choose.number(1, 2)]]
        default = self.body(known, depth)[0] if self.choose.number(0, 1) else None
        return n.RouteNode(self.name("r"), self.source(known), "key", cases, default)

    def loop(self, known: Sequence[n.Source], depth: int) -> n.LoopNode:
        on_max = self.choose.pick(("fail", "last"))
        most = self.choose.number(3 if on_max == "fail" and not self.failing else 1, 4)
        return n.LoopNode(self.name("l"), self.source(known), self.turn(known, depth), most, on_max)

    def turn(self, known: Sequence[n.Source], depth: int) -> n.Body:
        body = n.Body()
        inner: list[n.Source] = [*known, n.Input(body)]
        self.fill(body, inner, depth)
        decider = self.decider(inner, depth)
        body.nodes.append(decider)
        body.output = n.Value(decider)
        if not self.choose.number(0, 3):
            body.nodes.append(self.node([*inner, n.Value(decider)], depth))
        return body

    def decider(self, known: Sequence[n.Source], depth: int) -> n.Node:
        """Return a node that says Again or Done: a task, or a route whose cases do."""
        if depth <= 0 or self.choose.number(0, 2):
            return n.TaskNode(self.name("again"), DECIDER, (self.source(known),), {})
        cases = [(key, self.deciding_case(known, depth)) for key in ("x", "y")]
        return n.RouteNode(self.name("r"), self.source(known), "key", cases)

    def deciding_case(self, known: Sequence[n.Source], depth: int) -> n.Body:
        body, inner = n.Body(), list(known)
        self.fill(body, inner, depth - 1)
        body.nodes.append(self.decider(inner, 0))
        body.output = n.Value(body.nodes[-1])
        return body

    def child(self, known: Sequence[n.Source], depth: int) -> n.ChildNode:
        body = n.Body()
        has_input = bool(self.choose.number(0, 1))
        inner: list[n.Source] = [n.Input(body)] if has_input else []
        self.fill(body, inner, depth, least=1)
        body.output = self.source(inner)
        arg = self.source(known) if has_input else None
        name = self.name("c")
        return n.ChildNode(name, workflow(body, name, has_input), arg)


def grow(choose: Chooser, size: int = 12, failing: bool = True) -> Workflow[Any, Any]:
    """Return a random workflow of about ``size`` nodes."""
    grower = _Grower(choose, choose.number(1, size), failing)
    body = n.Body()
    has_input = bool(choose.number(0, 1))
    known: list[n.Source] = [n.Input(body)] if has_input else []
    if size > 4 and choose.number(0, 2):
        body.nodes.append(grower.parallel(known, 3))  # most of what can go wrong needs several things open at once
    grower.fill(body, known, depth=3, least=0 if body.nodes else 1)
    body.output = grower.source(known) if choose.number(0, 3) else None
    return workflow(body, has_input=has_input)


@st.composite
def workflows(
    draw: Callable[[st.SearchStrategy[Any]], Any], size: int = 12, failing: bool = True
) -> Workflow[Any, Any]:
    """Random workflows for Hypothesis."""
    return grow(Drawn(draw), size, failing)
