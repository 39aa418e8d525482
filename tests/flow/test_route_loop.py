"""Routes and loops in a workflow function: what they record, and every mistake they tell the author about."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple, TypedDict

import pytest

from stepwell.errors import GraphError
from stepwell.flow.plan import Plan, PlanNode, Ref
from stepwell.flow.task import task
from stepwell.flow.trace import loop, route, workflow
from stepwell.flow.workflow import Workflow
from stepwell.types import Again, Done


@dataclass
class Line:
    sku: str
    count: int


@dataclass
class Order:
    id: str
    lines: list[Line]
    kind: Literal["new", "old"] = "new"


@dataclass
class Approval:
    decision: Literal["yes", "no"]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Row(NamedTuple):
    name: str
    colour: Colour


class Table(TypedDict):
    row: Row


@task
def charge(order: Order) -> str: ...
@task
def pack(order: Order, label: str = "") -> str: ...
@task
async def reserve(order: Order) -> int: ...
@task
def ship(payment: str, stock: int) -> str: ...
@task
def either(a: object, b: object = None) -> str: ...
@task
def escalate() -> Approval: ...
@task
def refine(text: str) -> Again[str] | Done[int]: ...


@workflow
def nightly() -> Approval:
    return escalate()


def node(flow: Workflow[Any, Any], path: str) -> PlanNode:
    """Return the plan's row at a path."""
    found = flow.plan.find(path)
    assert found is not None, path
    return flow.plan.nodes[found[0]]


def number(plan: Plan, path: str) -> int:
    """Return the row's number at a path."""
    found = plan.find(path)
    assert found is not None, path
    return found[0]


def line_of(fn: Callable[..., Any], text: str) -> str:
    """Return ``file:line`` of the line in a function's source that contains ``text``."""
    lines, first = inspect.getsourcelines(fn)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def refused(fn: Callable[..., Any], message: str, at: str = "") -> None:
    """Check that a function cannot be traced, with a message and the line that contains ``at``."""
    with pytest.raises(GraphError, match=message) as caught:
        workflow(fn)
    if at:
        assert caught.value.where == line_of(fn, at)


class TestRoute:
    """One case runs, chosen by a key."""

    def test_cases(self) -> None:
        """Each case is a body of its own; constants and earlier values may be a case's value."""

        @workflow
        def flow(order: Order) -> object:
            payment = charge(order)
            return route(
                order.kind, {"new": lambda: pack(order), "old": lambda: payment}, default=lambda: None, name="by-kind"
            )

        assert flow.draw() == (
            "flow\n├─ charge\n└─ by-kind (route)\n   ├─ kind=new\n   │  └─ pack\n   ├─ kind=old\n   └─ else"
        )

    @pytest.mark.parametrize(
        ("key", "label"),
        [
            (lambda order: order.kind, "kind"),
            (lambda order: order.lines[0].sku, "sku"),
            (lambda order: order.lines[0], "lines"),
            (lambda order: charge(order), "charge"),
            (lambda order: charge(order)["x"], "charge"),
            (lambda order: order, "key"),
        ],
    )
    def test_label(self, key: Any, label: str) -> None:
        """The key's name in paths: last attribute, else producer, else ``key``."""

        @workflow
        def flow(order: Any) -> object:
            return route(key(order), {"x": lambda: pack(order)}, default=lambda: None)

        assert flow.plan.find(f"route/{label}=x/pack") is not None

    def test_key_types_are_found_through_selectors(self) -> None:
        """Exhaustiveness is checked where the declared type lists its values."""

        def flow(table: Table) -> object:
            return route(table["row"].colour, {Colour.RED: escalate})

        refused(flow, "has no case for .*BLUE", at="route(")

    def test_exhaustive_literal(self) -> None:
        """A Literal's values all need a case, and no other has one."""

        def missing(order: Order) -> object:
            return route(order.kind, {"new": lambda: charge(order)})

        def extra(order: Order) -> object:
            return route(order.kind, {"new": lambda: charge(order), "used": lambda: None}, default=lambda: None)

        refused(missing, "route 'route' has no case for 'old'", at="route(")
        refused(extra, "'used' is not one of", at="route(")

    def test_async_cases(self) -> None:
        """A case may be an async task's call; it is awaited for the author."""

        @workflow
        async def flow(order: Order) -> int:
            return route(order.kind, {"new": lambda: reserve(order), "old": lambda: reserve(order)})

        assert node(flow, "route/kind=old/reserve").kind == "task"

    def test_case_may_be_async_def(self) -> None:
        """So several async steps fit into a case."""

        @workflow
        async def flow(order: Order) -> str:
            async def sell() -> str:
                return ship(charge(order), await reserve(order))

            return route(order.kind, {"new": sell}, default=sell)

        assert node(flow, "route/else/ship").kind == "task"

    def test_async_case_in_sync_workflow(self) -> None:
        """A sync workflow has no async parts."""

        def flow(order: Order) -> object:
            async def sell() -> int:
                return 1

            return route(order.kind, {"new": sell}, default=sell)

        refused(flow, "an async function stands in a sync workflow", at="route(")

    def test_case_is_a_task_or_workflow(self) -> None:
        """What takes no arguments can be a case itself."""

        @workflow
        def flow(order: Order) -> object:
            return route(order.kind, {"new": escalate, "old": nightly})

        assert node(flow, "route/kind=old/nightly/escalate").kind == "task"

    def test_key_is_a_handle(self) -> None:
        """A key that is known needs no route."""

        def flow(order: Order) -> object:
            return route("new", {"new": lambda: charge(order)})

        refused(flow, "route.. chooses by a handle, not by a str", at="route(")

    def test_case_is_a_function(self) -> None:
        """A value in place of a function would run before the choice."""

        def flow(order: Order) -> object:
            return route(order.kind, {"new": charge(order)}, default=lambda: None)

        refused(flow, r"stands where a function is needed, .*write `lambda: \.\.\.`", at="route(")

    def test_case_takes_nothing(self) -> None:
        """A case reads what it needs from around it."""

        def flow(order: Order) -> object:
            return route(order.kind, {"new": lambda x: x}, default=lambda: None)

        refused(flow, "a case of route 'route' is a function of no arguments: missing a required argument: 'x'")

    def test_cases_are_a_dict(self) -> None:
        """Anything else has no keys."""

        def flow(order: Order) -> object:
            return route(order.kind, [charge])

        refused(flow, "a route's cases are a dict of key and step, not a list")

    def test_no_cases(self) -> None:
        """A route without cases chooses nothing."""

        def flow(order: Order) -> object:
            charge(order)
            return route(order.id, {})

        refused(flow, "route 'route' has no cases", at="route(")

    def test_bad_key(self) -> None:
        """Keys are what paths can show."""

        def flow(order: Order) -> object:
            return route(order.id, {1.5: lambda: charge(order)})

        refused(flow, "a key is a str, int, bool or Enum, not float", at="route(")


class TestLoop:
    """A body feeds itself."""

    def test_task_body(self) -> None:
        """The body's task reads the turn's value."""

        @workflow
        def flow(text: str) -> int:
            return loop(refine, text, max_iterations=3)

        assert flow.draw() == "flow\n└─ refine (loop, at most 3)\n   └─ refine"
        assert flow.output_type is int
        inner = flow.plan.nodes[number(flow.plan, "refine[1]/refine")]
        assert isinstance(inner.args[0], Ref)
        assert flow.plan.kind[inner.args[0].node] == "input"

    def test_function_body(self) -> None:
        """A function is traced as a sub-graph; it may read values from around it."""

        @workflow
        def flow(order: Order) -> int:
            def improve(text: str) -> Again[str] | Done[int]:
                return refine(either(text, order))

            return loop(improve, order.id, on_max="fail")

        assert flow.draw() == "flow\n└─ improve (loop, at most 10)\n   ├─ either\n   └─ refine"

    def test_workflow_body(self) -> None:
        """A workflow may be a body."""

        @workflow
        def turn(text: str) -> Again[str] | Done[int]:
            return refine(text)

        @workflow
        def flow(text: str) -> int | str:
            return loop(turn, text, on_max="last", name="again")

        assert node(flow, "again[1]/turn/refine").kind == "task"

    def test_output_type_is_inferred(self) -> None:
        """``on_max="last"`` may also yield the turn's value."""

        @workflow
        def fails(text: str):
            return loop(refine, text)

        @workflow
        def yields(text: str):
            return loop(refine, text, on_max="last")

        assert (fails.output_type, yields.output_type) == (int, int | str)

    @pytest.mark.parametrize("bad", [0, -1, True, 2.0, "3"])
    def test_bad_counts(self, bad: Any) -> None:
        """The number of turns is whole and positive."""

        def flow(text: str) -> object:
            return loop(refine, text, max_iterations=bad)

        refused(flow, "max_iterations must be a whole number from 1", at="loop(")

    def test_bad_on_max(self) -> None:
        """There are two answers to too many turns."""

        def flow(text: str) -> object:
            return loop(refine, text, on_max="stop")

        refused(flow, "on_max must be 'fail' or 'last'", at="loop(")

    def test_lambda_needs_a_name(self) -> None:
        """Paths need a name."""

        def flow(text: str) -> object:
            return loop(lambda t: refine(t), text)

        refused(flow, "has no name of its own", at="loop(")

    def test_body_takes_one_value(self) -> None:
        """The turn's value is all a body is given."""

        def no_value(text: str) -> object:
            return loop(lambda: refine("x"), text, name="x")

        def no_value_workflow(text: str) -> object:
            return loop(nightly, text)

        refused(no_value, "the body of loop 'x' is a function of one value: too many positional arguments", at="loop(")
        refused(no_value_workflow, "loop 'nightly': its body takes no value", at="loop(")

    def test_again_is_made_in_a_task(self) -> None:
        """A decision in the traced function would be the same in every turn."""

        def flow(text: str) -> object:
            def body(t: str) -> Again[str]:
                return Again(charge(t))

            return loop(body, text)

        refused(flow, r"Again\(...\) is made in a task")

    def test_body_must_say_again_or_done(self) -> None:
        """Else the loop could not know what to do."""

        def flow(order: Order) -> object:
            return loop(charge, order)

        refused(flow, "not Again or Done", at="loop(")
