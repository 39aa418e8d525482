"""The stages of a fluent pipeline: each knows how to add its nodes to a body and what value it leaves.

Nodes are made anew at every :meth:`Stage.add`, so one row of stages can be built twice, be continued in two ways, or
stand in several places, and nothing leaks from one graph into another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from stepwell.errors import GraphError

from .declared import declared
from .nodes import (
    Body,
    BranchNode,
    ChildNode,
    Const,
    DelayNode,
    Display,
    Input,
    LoopNode,
    Node,
    OnError,
    OnMax,
    ParallelNode,
    RouteNode,
    SignalNode,
    Source,
    TaskNode,
    Value,
)
from .steps import entry_type, label
from .task import AnyTask
from .workflow import AnyWorkflow


class Stage(Protocol):
    """Something that adds nodes to a line of them."""

    @property
    def name(self) -> str:
        """What its node is called."""
        ...

    def wants(self) -> object:
        """Return the declared type of the value it starts from, ``None`` if it needs none."""
        ...

    def add(self, line: list[Node], value: Source | None) -> Source | None:
        """Append nodes to ``line`` and return the value they leave."""
        ...


Stages: TypeAlias = tuple[Stage, ...]


def add_all(stages: Stages, line: list[Node], value: Source | None) -> Source | None:
    """Add a row of stages, each fed by the one before, and return the value they leave."""
    for stage in stages:
        value = stage.add(line, value)
    return value


def wants(stages: Stages) -> object:
    """Return what a row of stages starts from: delays pass a value through, so the first that is not one says."""
    return next((stage.wants() for stage in stages if not isinstance(stage, Delay)), None)


def first_name(stages: Stages, value: Source | None) -> str:
    """Return the name of the first task or child that stages make, else of their first node."""
    line: list[Node] = []
    add_all(stages, line, value)
    return next((n.name for n in line if isinstance(n, TaskNode | ChildNode)), line[0].name)


def _body(stages: Stages, value: Source | None) -> Body:
    body = Body()
    body.output = add_all(stages, body.nodes, value)
    return body


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A task on the value before it."""

    task: AnyTask
    name: str
    was: str
    where: str

    def wants(self) -> object:
        required = any(p.required for p in self.task.params.values())
        return entry_type(self.task) if required else None

    def add(self, line: list[Node], value: Source | None) -> Source:
        bound = self.task.bind(() if value is None else (value,), {}, self.where, _ONE_VALUE)
        return _put(line, TaskNode(self.name, self.task, *bound, where=self.where, was=self.was))


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A workflow on the value before it."""

    workflow: AnyWorkflow
    name: str
    was: str
    where: str

    def wants(self) -> object:
        return self.workflow.input_type if self.workflow.has_input else None

    def add(self, line: list[Node], value: Source | None) -> Source:
        if self.workflow.has_input != (value is not None):
            takes, mend = (
                ("an input", "put a step that returns one before it")
                if self.workflow.has_input
                else ("no input", "begin the flow with it, or give it an input")
            )
            raise GraphError(
                f"workflow {self.workflow.name!r} takes {takes}, so it cannot stand here; {mend}", self.where
            )
        return _put(line, ChildNode(self.name, self.workflow, value, where=self.where, was=self.was))


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    stages: Stages
    name: str
    where: str

    def add(self, children: list[Node], value: Source | None) -> Source:
        """Add one child to a parallel: the node itself if the branch is one node, else a sequence of them."""
        line: list[Node] = []
        left = add_all(self.stages, line, value)
        if len(line) == 1 and not isinstance(line[0], DelayNode):
            line[0].name = self.name
            children.append(line[0])
        else:
            children.append(BranchNode(self.name, Body(line), self.where))
        return Const(None) if left is None else left


@dataclass(frozen=True, slots=True, eq=False)
class ForkJoin:
    """Branches side by side; it leaves the dict of their values."""

    name: str
    on_error: OnError
    was: str
    branches: tuple[Branch, ...]
    join: Call
    where: str

    def wants(self) -> object:
        wanted = [wants(b.stages) for b in self.branches]
        return next((w for w in wanted if w is not None and w is not Any), Any if Any in wanted else None)

    def add(self, line: list[Node], value: Source | None) -> Source:
        node = ParallelNode(self.name, [], self.on_error, self.where, self.was)
        line.append(node)
        values = [branch.add(node.children, value) for branch in self.branches]
        by_name = dict(zip(unique_names(self.branches), values, strict=True))
        join = self.join
        return _put(line, TaskNode(join.name, join.task, *self._joined(by_name), where=join.where, was=join.was))

    def _joined(self, by_name: Mapping[str, Source]) -> tuple[tuple[Source, ...], dict[str, Source]]:
        join, where = self.join.task, self.join.where
        params = join.params.values()
        required = [p.name for p in params if p.required]
        if len(required) == 1:
            gathered = Display("dict", tuple(by_name.values()), tuple(by_name))
            return join.bind(_one(gathered), {}, where)
        open_ended = any(p.kind.name == "VAR_KEYWORD" for p in params)
        missing = [n for n in required if n not in by_name]
        extra = [n for n in by_name if n not in join.params and not open_ended]
        if missing or extra or not params:
            raise GraphError(
                f"join {join.name!r} takes ({', '.join(p.name for p in params)}), but the branches are called "
                f"{', '.join(by_name)}; it takes one dict of all, or one parameter per branch by the branch's name "
                f"(branch(..., name=) gives one)",
                where,
            )
        return join.bind((), by_name, where)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A key computed from the value before it, and the case it chooses, which starts from that same value."""

    key: Call | Child
    cases: tuple[tuple[object, Stages], ...]
    default: Stages | None
    name: str
    was: str
    where: str

    def wants(self) -> object:
        return self.key.wants()

    def add(self, line: list[Node], value: Source | None) -> Source:
        key = self.key.add(line, value)
        cases = [(k, _body(stages, value)) for k, stages in self.cases]
        default = None if self.default is None else _body(self.default, value)
        key_type = declared(key)
        known = None if key_type is Any else key_type
        return _put(line, RouteNode(self.name, key, label(key), cases, default, known, self.where, self.was))


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A body repeated on its own value."""

    stages: Stages
    name: str
    max_iterations: int
    on_max: OnMax
    was: str
    where: str

    def wants(self) -> object:
        return wants(self.stages)

    def add(self, line: list[Node], value: Source | None) -> Source:
        if value is None:
            raise GraphError(
                f"loop {self.name!r} has no value to start from; put a step before it, or give Flow(…, input=type)",
                self.where,
            )
        wanted = self.wants()
        body = Body(input_type=declared(value) if wanted is Any else wanted)
        body.output = add_all(self.stages, body.nodes, Input(body))
        return _put(line, LoopNode(self.name, value, body, self.max_iterations, self.on_max, self.where, self.was))


@dataclass(frozen=True, slots=True, eq=False)
class Delay:
    """A wait; the value passes."""

    name: str
    duration_us: int
    was: str
    where: str

    def wants(self) -> object:
        return None

    def add(self, line: list[Node], value: Source | None) -> Source | None:
        line.append(DelayNode(self.name, self.duration_us, self.where, self.was))
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """A wait for a message, whose payload is the value after it."""

    name: str
    payload_type: object
    timeout_us: int | None
    on_timeout: Stages | None
    was: str
    where: str

    def wants(self) -> object:
        return wants(self.on_timeout or ())

    def add(self, line: list[Node], value: Source | None) -> Source:
        stages = self.on_timeout
        body = None if stages is None else _body(stages, None if wants(stages) is None else value)
        node = SignalNode(self.name, self.name, self.payload_type, self.timeout_us, body, self.where, self.was)
        return _put(line, node)


_ONE_VALUE: Final = "; a step of a flow is given the one value before it, so give other parameters a default"


def _one(source: Source) -> tuple[Source, ...]:
    return (source,)


def _put(line: list[Node], node: Node) -> Value:
    line.append(node)
    return Value(node)


def unique_names(branches: Sequence[Branch]) -> list[str]:
    """Return the branches' names as paths will have them, ``#2`` and so on for repeats."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for branch in branches:
        seen[branch.name] += 1
        names.append(branch.name if seen[branch.name] == 1 else f"{branch.name}#{seen[branch.name]}")
    return names
