"""What an author writes, as a tree: both front ends make these nodes, and the compiler reads nothing else.

A :data:`Source` says where a value comes from; a :class:`Body` is a sequence of nodes with an output. Nodes are
compared by identity, because the same task may stand in many places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from .task import AnyTask
    from .workflow import AnyWorkflow

SelectorStep: TypeAlias = tuple[Literal["attr"], str] | tuple[Literal["item"], str | int | bool | None]
DisplayKind: TypeAlias = Literal["list", "tuple", "dict"]
OnError: TypeAlias = Literal["cancel", "wait"]
OnMax: TypeAlias = Literal["fail", "last"]


# --- where values come from ------------------------------------------------------


class Value(msgspec.Struct, frozen=True, eq=False):
    """What a node yields."""

    node: Node


class Input(msgspec.Struct, frozen=True, eq=False):
    """What a body is entered with: a workflow's input, or a loop's value of this turn."""

    body: Body


class Select(msgspec.Struct, frozen=True, eq=False):
    """A part of a value, chosen when the consumer is bound."""

    base: Source
    steps: tuple[SelectorStep, ...]


class Const(msgspec.Struct, frozen=True, eq=False):
    """A value written in the workflow itself."""

    value: object


class Display(msgspec.Struct, frozen=True, eq=False):
    """A list, tuple or dict written around sources; ``keys`` is empty unless it is a dict."""

    kind: DisplayKind
    items: tuple[Source, ...]
    keys: tuple[object, ...] = ()


Source: TypeAlias = Value | Input | Select | Const | Display


# --- nodes ------------------------------------------------------------------------


class Body(msgspec.Struct, eq=False):
    """Nodes in the order they run, and where the output comes from (``None``: the output is None)."""

    nodes: list[Node] = []
    output: Source | None = None
    input_type: object = None


class TaskNode(msgspec.Struct, eq=False):
    name: str
    task: AnyTask
    args: tuple[Source, ...]
    kwargs: dict[str, Source]
    where: str = ""
    was: str = ""


class ParallelNode(msgspec.Struct, eq=False):
    """Children start as soon as what they read is there; its end waits for all of them."""

    name: str
    children: list[Node]
    on_error: OnError = "cancel"
    where: str = ""
    was: str = ""


class BranchNode(msgspec.Struct, eq=False):
    name: str
    body: Body
    where: str = ""
    was: str = ""


class RouteNode(msgspec.Struct, eq=False):
    """``label`` is the key's name in paths; ``key_type`` the declared type of the key, for the check at build."""

    name: str
    key: Source
    label: str
    cases: Sequence[tuple[object, Body]]
    default: Body | None = None
    key_type: object = None
    where: str = ""
    was: str = ""


class LoopNode(msgspec.Struct, eq=False):
    name: str
    first: Source
    body: Body
    max_iterations: int
    on_max: OnMax = "fail"
    where: str = ""
    was: str = ""


class DelayNode(msgspec.Struct, eq=False):
    name: str
    duration_us: int
    where: str = ""
    was: str = ""


class SignalNode(msgspec.Struct, eq=False):
    name: str
    signal: str
    payload_type: object
    timeout_us: int | None = None
    on_timeout: Body | None = None
    where: str = ""
    was: str = ""


class ChildNode(msgspec.Struct, eq=False):
    """Another workflow, inlined by the compiler; ``arg`` feeds its input."""

    name: str
    workflow: AnyWorkflow
    arg: Source | None
    where: str = ""
    was: str = ""


Node: TypeAlias = TaskNode | ParallelNode | BranchNode | RouteNode | LoopNode | DelayNode | SignalNode | ChildNode
