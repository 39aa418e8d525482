"""Where handles can be read, what they refuse, and mistakes in the workflow function itself."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pytest

from stepwell.errors import GraphError, OptionError, UsageError
from stepwell.flow.builder import Flow
from stepwell.flow.plan import Plan, PlanNode, Ref
from stepwell.flow.task import inject, task
from stepwell.flow.trace import branch, delay, loop, parallel, route, signal, workflow
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


@task
def charge(order: Order) -> str: ...
@task
def pack(order: Order, label: str = "") -> str: ...
@task
def ship(payment: str, stock: int) -> str: ...
@task
def either(a: object, b: object = None) -> str: ...
@task
def escalate() -> Approval: ...
@task
def refine(text: str) -> Again[str] | Done[int]: ...
@task
def hold(order: Order, *, db: dict[str, str] = inject()) -> str: ...


@workflow
def shipping(order: Order) -> str:
    return pack(order)


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


class TestScopes:
    """Where a value can be read."""

    def test_case_value_outside(self) -> None:
        """A case may not have run."""

        def flow(order: Order) -> object:
            kept: list[Any] = []
            route(order.kind, {"new": lambda: kept.append(charge(order))}, default=lambda: None)
            return either(kept[0])

        message = (
            r"task 'charge', made at .*test_handle.py:\d+ inside a case of route 'route', "
            r"cannot be read outside of it; return it from there"
        )
        refused(flow, message, at="either(kept")

    def test_loop_value_outside(self) -> None:
        """A turn's value exists many times."""

        def flow(text: str) -> object:
            kept: list[Any] = []

            def body(t: str) -> Any:
                kept.append(t)
                return refine(t)

            loop(body, text)
            return either(kept[0])

        refused(flow, "inside the body of loop 'body', cannot be read outside", at="either(kept")

    def test_timeout_value_outside(self) -> None:
        """A timeout may not come."""

        def flow(order: Order) -> object:
            kept: list[Any] = []
            signal("go", str, timeout=1, on_timeout=lambda: kept.append(charge(order)))
            return either(kept[0])

        refused(flow, "inside the timeout branch of signal 'go', cannot be read outside", at="either(kept")

    def test_other_workflow(self) -> None:
        """A handle belongs to the workflow in which it was made."""
        kept: list[Any] = []

        @workflow
        def first(order: Order) -> str:
            kept.append(order)
            return charge(order)

        def second(order: Order) -> object:
            return either(kept[0])

        refused(second, "the input of workflow 'first', made at .*inside workflow 'first'", at="either(kept")

    def test_nested_definition(self) -> None:
        """A workflow defined in another's trace records into itself."""

        @workflow
        def outer(order: Order) -> str:
            @workflow
            def inner(x: Order) -> str:
                return charge(x)

            return inner(order)

        assert outer.draw() == "outer\n└─ inner (child)\n   └─ charge"

    def test_inner_reads_outer(self) -> None:
        """Blocks read what is around them."""

        @workflow
        def flow(order: Order) -> object:
            payment = charge(order)
            return route(order.kind, {"new": lambda: either(payment)}, default=lambda: payment)

        assert node(flow, "route/kind=new/either").args == (Ref(number(flow.plan, "charge")),)


def _each_refusal() -> list[tuple[str, Callable[[Any], object]]]:
    binary = [
        "add",
        "sub",
        "mul",
        "matmul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "lshift",
        "rshift",
        "and_",
        "or_",
        "xor",
    ]
    compare = ["eq", "ne", "lt", "le", "gt", "ge"]
    unary = ["neg", "pos", "invert", "abs", "index", "length_hint"]
    cases: list[tuple[str, Callable[[Any], object]]] = []
    for name in binary + compare:
        operation = getattr(operator, name)
        cases.append((name, lambda h, op=operation: op(h, 1)))
        cases.append((f"r{name}", lambda h, op=operation: op(1, h)))
    cases += [(name, getattr(operator, name)) for name in unary]
    cases += [
        (fn.__name__, fn)
        for fn in (bool, iter, next, len, str, bytes, hash, int, float, complex, round, reversed, list)
    ]
    cases += [
        ("divmod", lambda h: divmod(h, 2)),
        ("rdivmod", lambda h: divmod(2, h)),
        ("in", lambda h: 1 in h),
        ("not", lambda h: not h),
        ("if", lambda h: 1 if h else 2),
        ("unpack", lambda h: (lambda *a: a)(*h)),
        ("format", lambda h: f"{h}"),
        ("percent", lambda h: "%s" % h),  # noqa: UP031 - the old way is the point
        ("call", lambda h: h()),
        ("method", lambda h: h.strip()),
        ("set", lambda h: {h}),
        ("key", lambda h: {h: 1}),
        ("with", lambda h: h.__enter__()),
        ("slice", lambda h: h[1:2]),
        ("handle-item", lambda h: h[h]),
        ("setattr", lambda h: setattr(h, "x", 1)),
        ("delattr", lambda h: delattr(h, "x")),
        ("setitem", lambda h: operator.setitem(h, 0, 1)),
        ("delitem", lambda h: operator.delitem(h, 0)),
    ]
    return cases


class TestHandle:
    """A handle refuses what would need the value."""

    @pytest.mark.parametrize(("name", "use"), _each_refusal(), ids=lambda x: x if isinstance(x, str) else "")
    def test_refusals(self, name: str, use: Callable[[Any], object]) -> None:
        """Each use raises GraphError that names the handle's maker and says what to write instead."""

        def flow(order: Order) -> object:
            charge(order)
            return use(order)

        with pytest.raises(GraphError, match=r"the input of workflow 'flow'.*(route|loop|task|select|dict value)"):
            workflow(flow)

    def test_condition(self) -> None:
        """The message stands at the user's line."""

        def flow(order: Order) -> object:
            if order.kind == "new":
                return charge(order)
            return pack(order)

        refused(
            flow, r"cannot be compared: .* to choose by a value use route\(\), to repeat use loop\(\)", at="if order"
        )

    def test_private_names(self) -> None:
        """Underscored names are no selectors; looking them up is harmless."""

        def flow(order: Any) -> object:
            assert not hasattr(order, "__deepcopy__")
            assert not hasattr(order, "_repr_html_")
            return charge(order._secret)

        refused(flow, "'_secret' cannot be selected", at="order._secret")

    def test_repr(self) -> None:
        """The repr is safe, for debuggers and logs."""
        seen: list[str] = []

        @workflow
        def flow(order: Order) -> str:
            paid = charge(order)
            seen.append(repr(paid))
            return paid

        assert seen[0].startswith("<handle of task 'charge', made at ")

    def test_hidden_in_a_value(self) -> None:
        """Only displays are looked into; anything else is made in a task."""

        def in_dataclass(order: Order) -> object:
            return charge(Order(order.id, []))

        def in_named_tuple(order: Order) -> object:
            class Pair(NamedTuple):
                a: object
                b: object

            return either(Pair(order, 1))

        refused(in_dataclass, "a Order holds a handle; only list, tuple and dict displays may", at="charge(")
        refused(in_named_tuple, "a Pair holds a handle", at="either(")

    def test_deep_display(self) -> None:
        """Depth is bounded before the stack is."""

        def flow(order: Order) -> object:
            deep: Any = order
            for _ in range(300):
                deep = [deep]
            return either(deep)

        refused(flow, "nested deeper than 200", at="either(")


class TestMistakes:
    """What is told about the function itself and its calls."""

    def test_empty(self) -> None:
        """A workflow does something."""

        def flow(order: Order) -> Order:
            return order

        refused(flow, "workflow 'flow' has no steps")

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda order: charge(), "missing a required argument: 'order'"),
            (lambda order: charge(order, colour=1), "unexpected keyword argument 'colour'"),
            (lambda order: charge(order, 1, 2), "too many positional"),
            (lambda order: hold(order, db=order), "db= is injected by the runner"),
            (lambda order: ship(order, 1), "'ship' wants payment: str, but it is given .*Order"),
            (lambda order: ship(1, 1), "'ship' wants payment: str, but it is given int by a constant"),
            (lambda order: either(object()), "a constant of a workflow must be storable"),
            (lambda order: either(charge), "a constant of a workflow must be storable"),
        ],
    )
    def test_calls(self, call: Any, message: str) -> None:
        """A call that cannot work is told at its line."""

        def flow(order: Order) -> object:
            return call(order)

        with pytest.raises(GraphError, match=message) as caught:
            workflow(flow)
        assert caught.value.where.rpartition(":")[0] == __file__

    def test_two_callables_one_name(self) -> None:
        """A step's code is found by its task's name."""

        @task("charge")
        def other(order: Order) -> str: ...
        def flow(order: Order) -> object:
            return either(charge(order), other(order))

        refused(flow, "two functions are called 'charge' in one workflow", at="either(")

    def test_parameters(self) -> None:
        """A workflow has one input or none."""

        def two(a: int, b: int) -> None: ...
        def by_name(*, a: int) -> None: ...
        def many(*a: int) -> None: ...
        def default(a: int = 1) -> None: ...

        for fn in (two, by_name, many):
            refused(fn, "takes one input or none; put several values into a dataclass")
        refused(default, "a default of the input is never used")

    @pytest.mark.parametrize("thing", [charge, len, 3, Order])
    def test_not_functions(self, thing: Any) -> None:
        """Only a plain function can be traced."""
        with pytest.raises(GraphError, match="@workflow needs a plain `def`"):
            workflow()(thing)

    def test_names(self) -> None:
        """A workflow's name stands in paths."""
        with pytest.raises(GraphError, match="a workflow's name 'a/b' contains '/'"):
            workflow("a/b")(lambda order: charge(order))
        with pytest.raises(GraphError, match="has no name of its own"):
            workflow(lambda order: charge(order))

    def test_block_names(self) -> None:
        """So do the names of its parts."""
        for use in (
            lambda: parallel("a/b"),
            lambda: delay(1, "a/b"),
            lambda: signal("a/b"),
            lambda: loop(refine, "x", name="a/b"),
        ):
            with pytest.raises(GraphError, match="'a/b' contains '/'"):
                workflow("flow")(use)

    def test_metadata(self) -> None:
        """Metadata is JSON-like."""
        with pytest.raises(OptionError, match="metadata of workflow 'shipping' must be what JSON can hold"):
            workflow("shipping", metadata={"x": object()})(lambda: charge(Order("", [])))

    def test_outside_of_a_workflow(self) -> None:
        """Blocks mean nothing outside a workflow function."""
        for use in (
            lambda: parallel(),
            lambda: branch("a"),
            lambda: delay(1),
            lambda: signal("a"),
            lambda: loop(refine, "x"),
            lambda: route("x", {}),
        ):
            with pytest.raises(UsageError, match="stands inside a @workflow function only"):
                use()

    def test_unresolvable_annotation(self) -> None:
        """The input's type must be known when the workflow is made."""

        def flow(order: Nowhere) -> None:  # noqa: F821 - a name that does not exist is the point
            charge(order)

        refused(flow, "workflow 'flow': its annotations cannot be resolved")

    def test_trace_ends_after_an_error(self) -> None:
        """A failed trace leaves tasks callable as functions."""

        def flow(order: Order) -> object:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            workflow(flow)
        assert escalate() is None

    def test_chain_is_no_case(self) -> None:
        """A chain is a step of the fluent form; built, it is a workflow like any other."""

        def flow(order: Order) -> object:
            return route(order.kind, {"new": Flow().then(escalate)}, default=escalate)

        refused(flow, "stands where a function is needed", at="route(")
