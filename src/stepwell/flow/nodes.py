"""What an author writes, as a tree: both front ends make these nodes, and the compiler reads nothing else.

A :data:`Source` says where a value comes from; a :class:`Body` is a sequence of nodes with an output. Nodes are compared
by identity, because the same task may stand in many places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from .task import AnyTask
    from .workflow import AnyWorkflow

SelectorStep: TypeAlias = tuple[Literal["attr"], str] | tuple[Literal["item"], str | int | bool | None]
DisplayKind: TypeAlias = Literal["list", "tuple", "dict"]
OnError: TypeAlias = Literal["cancel", "wait"]
OnMax: TypeAlias = Literal["fail", "last"]


# --- where values come from ------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """What a node yields."""

    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """What a body is entered with: a workflow's input, or a loop's value of this turn."""

    body: Body


@dataclass(frozen=True, slots=True, eq=False)
class Select:
    """A part of a value, chosen when the consumer is bound."""

    base: Source
    steps: tuple[SelectorStep, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A value written in the workflow itself."""

    value: object


@dataclass(frozen=True, slots=True, eq=False)
class Display:
    """A list, tuple or dict written around sources; ``keys`` is empty unless it is a dict."""

    kind: DisplayKind
    items: tuple[Source, ...]
    keys: tuple[object, ...] = ()


Source: TypeAlias = Value | Input | Select | Const | Display


# --- nodes ------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Body:
    """Nodes in the order they run, and where the output comes from (``None``: the output is None)."""

    nodes: list[Node] = field(default_factory=list)
    output: Source | None = None
    input_type: object = None


@dataclass(slots=True, eq=False)
class TaskNode:
    name: str
    task: AnyTask
    args: tuple[Source, ...]
    kwargs: dict[str, Source]
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class ParallelNode:
    """Children start as soon as what they read is there; its end waits for all of them."""

    name: str
    children: list[Node]
    on_error: OnError = "cancel"
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class BranchNode:
    name: str
    body: Body
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class RouteNode:
    """``label`` is the key's name in paths; ``key_type`` the declared type of the key, for the check at build."""

    name: str
    key: Source
    label: str
    cases: Sequence[tuple[object, Body]]
    default: Body | None = None
    key_type: object = None
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class LoopNode:
    name: str
    first: Source
    body: Body
    max_iterations: int
    on_max: OnMax = "fail"
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class DelayNode:
    name: str
    duration_us: int
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class SignalNode:
    name: str
    signal: str
    payload_type: object
    timeout_us: int | None = None
    on_timeout: Body | None = None
    where: str = ""
    was: str = ""


@dataclass(slots=True, eq=False)
class ChildNode:
    """Another workflow, inlined by the compiler; ``arg`` feeds its input."""

    name: str
    workflow: AnyWorkflow
    arg: Source | None
    where: str = ""
    was: str = ""


Node: TypeAlias = TaskNode | ParallelNode | BranchNode | RouteNode | LoopNode | DelayNode | SignalNode | ChildNode
