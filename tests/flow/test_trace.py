"""What ``@workflow`` records, and every mistake it tells the author about."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from stepwell.errors import GraphError, UsageError
from stepwell.flow.plan import Built, Constant, Plan, PlanNode, Ref, Selected
from stepwell.flow.task import task
from stepwell.flow.trace import branch, delay, parallel, signal, workflow
from stepwell.flow.workflow import Workflow


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
async def reserve(order: Order) -> int: ...
@task
def ship(payment: str, stock: int) -> str: ...
@task
def either(a: object, b: object = None) -> str: ...
@task
def escalate() -> Approval: ...


@workflow
def shipping(order: Order) -> str:
    return pack(order)


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


class TestSequence:
    """Statements run in the order written."""

    def test_order_and_wiring(self) -> None:
        """Each call is a node; handles are references to the rows that yield them."""

        @workflow
        def flow(order: Order) -> str:
            payment = charge(order)
            label = pack(order)
            return either(label, payment)

        assert flow.draw() == "flow\n├─ charge\n├─ pack\n└─ either"
        assert node(flow, "either").args == (Ref(number(flow.plan, "pack")), Ref(number(flow.plan, "charge")))
        assert flow.plan.nodes[0].output == number(flow.plan, "either")

    def test_types(self) -> None:
        """Input and output types are the function's."""
        assert (shipping.input_type, shipping.output_type, shipping.has_input) == (Order, str, True)
        assert (nightly.output_type, nightly.has_input) == (Approval, False)

    def test_output_type_is_inferred(self) -> None:
        """Without a return annotation the producer's type is taken."""

        @workflow
        def flow(order: Order):
            return charge(order)

        assert flow.output_type is str

    def test_name_and_metadata(self) -> None:
        """Both may be given with the decorator."""

        @workflow("other", metadata={"team": "search"})
        def flow(order: Order) -> str:
            return charge(order)

        assert (flow.name, dict(flow.metadata)) == ("other", {"team": "search"})

    def test_repeats_are_numbered_and_named(self) -> None:
        """The same task may stand anywhere, under its name or another."""

        @workflow
        def flow(order: Order) -> str:
            charge(order)
            charge(order)
            return charge.named("charge-eu", was="charge-old")(order)

        assert flow.draw() == "flow\n├─ charge\n├─ charge#2\n└─ charge-eu"
        assert (node(flow, "charge-eu").was, node(flow, "charge-eu").task) == ("charge-old", "charge")

    def test_keyword_and_positional_calls_are_one_graph(self) -> None:
        """How arguments are spelt does not matter."""

        @workflow("flow")
        def by_position(order: Order) -> str:
            return pack(order, "x")

        @workflow("flow")
        def by_name(order: Order) -> str:
            return pack(label="x", order=order)

        assert by_position.plan.data == by_name.plan.data

    def test_selection(self) -> None:
        """Attributes and items are chosen at run time, in one selector."""

        @workflow
        def flow(order: Order) -> str:
            return either(order.lines[0].sku, order.id)

        first, second = node(flow, "either").args
        assert first == Selected(Ref(1), (("attr", "lines"), ("item", 0), ("attr", "sku")))
        assert second == Selected(Ref(1), (("attr", "id"),))

    def test_displays_and_constants(self) -> None:
        """List, tuple and dict displays holding handles are arguments; without handles they are constants."""

        @workflow
        def flow(order: Order) -> str:
            return either({"a": [order.id, 1]}, ([1, 2], {"x": 3}))

        held, constant = node(flow, "either").args
        assert isinstance(held, Built)
        assert held.kind == "dict"
        assert isinstance(held.items[0], Built)
        assert isinstance(constant, Constant)
        assert flow.bodies.constants[constant.index] == ([1, 2], {"x": 3})

    @pytest.mark.parametrize("result", [7, None, "text"])
    def test_returning_a_constant(self, result: object) -> None:
        """The output may be a constant."""

        @workflow
        def flow(order: Order) -> object:
            charge(order)
            return result

        assert flow.plan.data is not None
        assert flow.draw() == "flow\n└─ charge"

    def test_local_types(self) -> None:
        """Types of the function around the workflow resolve."""

        @dataclass
        class Local:
            x: int

        @task
        def use(value: Local) -> int: ...
        @workflow
        def flow(value: Local) -> int:
            return use(value)

        assert flow.input_type is Local

    def test_plain_helper_functions_are_part_of_the_trace(self) -> None:
        """A helper that composes tasks is run where it is called."""

        def both(order: Any) -> Any:
            return either(charge(order), pack(order))

        @workflow
        def flow(order: Order) -> str:
            result: str = both(order)
            return result

        assert flow.draw() == "flow\n├─ charge\n├─ pack\n└─ either"


class TestAsync:
    """``async def`` workflows await async tasks."""

    def test_await(self) -> None:
        """An awaited handle is the value."""

        @workflow
        async def flow(order: Order) -> str:
            stock = await reserve(order)
            return ship(charge(order), stock)

        assert flow.draw() == "flow\n├─ reserve\n├─ charge\n└─ ship"
        assert flow.output_type is str

    def test_async_helper(self) -> None:
        """A coroutine function that awaits handles may be awaited in its turn."""

        async def helper(order: Order) -> int:
            return await reserve(order)

        @workflow
        async def flow(order: Order) -> str:
            return ship("x", await helper(order))

        assert flow.draw() == "flow\n├─ reserve\n└─ ship"

    def test_needs_no_event_loop_and_minds_none(self) -> None:
        """Tracing is the same inside a running loop."""

        async def build() -> str:
            @workflow
            async def flow(order: Order) -> int:
                return await reserve(order)

            return flow.draw()

        assert asyncio.run(build()) == "flow\n└─ reserve"

    def test_sync_workflow_refuses_async_tasks(self) -> None:
        """Else its types would lie."""

        def flow(order: Order) -> object:
            return reserve(order)

        refused(flow, "task 'reserve' is async; make the workflow an `async def`", at="reserve(order)")

    def test_never_awaited(self) -> None:
        """A forgotten await is found at the end."""

        async def flow(order: Order) -> str:
            reserve(order)
            return charge(order)

        refused(flow, "task 'reserve' is async and was never awaited", at="reserve(order)")

    def test_used_before_await(self) -> None:
        """An unawaited call is no value."""

        async def flow(order: Order) -> str:
            stock: Any = reserve(order)
            return ship("x", stock)

        refused(flow, r"write `await` before its call at .*test_trace.py", at="ship(")

    def test_selected_before_await(self) -> None:
        """Nor can it be selected from."""

        async def flow(order: Order) -> str:
            stock: Any = reserve(order)
            return ship("x", stock.count)

        refused(flow, "task 'reserve' is async; write `await`", at="stock.count")

    def test_awaiting_a_sync_task(self) -> None:
        """What type checkers would refuse is refused."""

        async def flow(order: Order) -> str:
            return await charge(order)

        refused(flow, "task 'charge' is not async; leave out `await`", at="await charge")

    @pytest.mark.parametrize("pause", [0, 1])
    def test_awaiting_anything_else(self, pause: int) -> None:
        """Only handles can be awaited, with or without a running loop."""

        async def flow(order: Order) -> str:
            await asyncio.sleep(pause)
            return charge(order)

        refused(flow, "a workflow may await async tasks only")

    def test_other_runtime_errors_pass(self) -> None:
        """An error of the author's own code stays itself."""

        async def flow(order: Order) -> str:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            workflow(flow)


class TestParallel:
    """Inside ``parallel()`` order is data flow."""

    def test_needs(self) -> None:
        """A child waits for the siblings it reads."""

        @workflow
        async def flow(order: Order) -> str:
            with parallel(on_error="wait"):
                payment = charge(order)
                stock = await reserve(order)
                shipped = ship(payment, stock)
            return either(shipped)

        assert node(flow, "parallel/ship").needs == (
            number(flow.plan, "parallel/charge"),
            number(flow.plan, "parallel/reserve"),
        )
        assert node(flow, "parallel").on_error == "wait"

    def test_branches_are_sequences(self) -> None:
        """A named branch holds delays, signals and steps; its values are read by siblings and afterwards."""

        @workflow
        def flow(order: Order) -> str:
            with parallel("work"):
                with branch("eu"):
                    delay("1h")
                    signal("go")
                    payment = charge(order)
                label = pack(order, payment)
            return either(payment, label)

        assert flow.draw() == (
            "flow\n├─ work (parallel)\n│  ├─ eu (branch)\n│  │  ├─ delay (delay 1h)\n│  │  ├─ go (signal)\n"
            "│  │  └─ charge\n│  └─ pack\n└─ either"
        )
        assert node(flow, "work/pack").needs == (number(flow.plan, "work/eu"),)

    def test_nesting(self) -> None:
        """Parallels stand in parallels and in branches."""

        @workflow
        def flow(order: Order) -> str:
            with parallel():
                with parallel("inner"):
                    a = charge(order)
                    b = pack(order)
                with branch("side"), parallel("deep"):
                    c = charge(order)
                    d = pack(order)
            return either([a, b], [c, d])

        assert [node(flow, p).kind for p in ("parallel/inner/charge", "parallel/side/deep/pack")] == ["task", "task"]

    def test_signal_that_is_read(self) -> None:
        """A signal may stand in a parallel if somebody waits for its payload."""

        @workflow
        def flow(order: Order) -> str:
            with parallel():
                approval = signal("approve", Approval)
                charge(order)
            return either(approval.decision)

        assert node(flow, "parallel/approve").kind == "signal"

    def test_unread_signal(self) -> None:
        """A signal that nobody reads belongs into a branch."""

        def flow(order: Order) -> None:
            with parallel():
                signal("approve", Approval)
                charge(order)

        refused(flow, "nobody reads signal 'approve', which stands directly in a parallel", at="signal(")

    def test_bare_delay(self) -> None:
        """A delay in a parallel holds up nothing."""

        def flow(order: Order) -> None:
            with parallel():
                delay("1h", name="rest")
                charge(order)

        refused(flow, "delay 'rest' stands directly in a parallel", at="delay(")

    def test_branch_outside(self) -> None:
        """A branch is a part of a parallel."""

        def flow(order: Order) -> str:
            with branch("eu"):
                return charge(order)

        refused(flow, r"branch 'eu' must stand directly inside `with parallel\(\):`", at="branch(")

    def test_branch_in_branch(self) -> None:
        """A branch is a sequence, so it has no branches of its own."""

        def flow(order: Order) -> None:
            with parallel(), branch("a"), branch("b"):
                charge(order)

        refused(flow, "branch 'b' must stand directly", at="branch(")

    def test_empty(self) -> None:
        """Empty parallels and branches are refused."""

        def no_steps(order: Order) -> None:
            with parallel():
                pass

        def no_steps_in_branch(order: Order) -> None:
            with parallel(), branch("eu"):
                pass

        refused(no_steps, "parallel.* holds no steps", at="parallel()")
        refused(no_steps_in_branch, "branch 'eu' holds no steps", at="parallel()")

    def test_on_error(self) -> None:
        """There are two answers to a failure."""

        def flow(order: Order) -> None:
            with parallel(on_error="ignore"):
                charge(order)

        refused(flow, "on_error must be 'cancel' or 'wait', not 'ignore'", at="parallel(")


class TestWaiting:
    """Delays and signals."""

    def test_delay(self) -> None:
        """A delay keeps its span in microseconds."""

        @workflow
        def flow(order: Order) -> str:
            delay("90s", name="cool")
            return charge(order)

        assert node(flow, "cool").duration_us == 90_000_000

    def test_signal(self) -> None:
        """A signal has a type, a timeout and what follows it."""

        @workflow
        def flow(order: Order) -> str:
            approval = signal("approve", Approval, timeout="2d", on_timeout=escalate)
            return either(approval.decision, order)

        assert (node(flow, "approve").signal, node(flow, "approve").timeout_us) == ("approve", 2 * 86_400_000_000)
        assert flow.bodies.types[number(flow.plan, "approve")] is Approval
        assert node(flow, "approve/timeout/escalate").kind == "task"

    @pytest.mark.parametrize("duration", ["soon", -1, float("nan"), "11000d"])
    def test_bad_delay(self, duration: Any) -> None:
        """Spans are checked at build."""

        def flow(order: Order) -> str:
            delay(duration)
            return charge(order)

        refused(flow, "delay must be", at="delay(")

    def test_bad_timeout(self) -> None:
        """So are timeouts, which cannot be zero."""

        def flow(order: Order) -> str:
            signal("go", str, timeout=0)
            return charge(order)

        refused(flow, "timeout of signal 'go' must be between", at="signal(")

    def test_on_timeout_needs_a_timeout(self) -> None:
        """A branch that is never taken is a mistake."""

        def flow(order: Order) -> str:
            signal("go", str, on_timeout=escalate)
            return charge(order)

        refused(flow, "signal 'go' has on_timeout= but no timeout=", at="signal(")

    def test_one_name_has_one_type(self) -> None:
        """A message is checked where it is sent, so its type must be known by its name."""

        def flow(order: Order) -> str:
            signal("go", str)
            signal("go", int)
            return charge(order)

        refused(flow, "signal 'go' is awaited with two payload types", at='signal("go", int)')


class TestChild:
    """Workflows in workflows."""

    def test_child(self) -> None:
        """A child stands under its own name."""

        @workflow
        def flow(order: Order) -> object:
            return either(shipping(order), nightly())

        assert flow.draw() == ("flow\n├─ shipping (child)\n│  └─ pack\n├─ nightly (child)\n│  └─ escalate\n└─ either")

    def test_argument_count(self) -> None:
        """A child takes its input or nothing."""

        def too_many(order: Order) -> object:
            return nightly(order)

        def too_few(order: Order) -> object:
            return shipping()

        refused(too_many, "workflow 'nightly' takes no argument, not 1", at="nightly(order)")
        refused(too_few, "workflow 'shipping' takes one argument, not 0", at="shipping()")

    def test_type_mismatch(self) -> None:
        """Plain classes that cannot fit are refused."""

        def flow(order: Order) -> object:
            return shipping(charge(order))

        refused(flow, "workflow 'shipping' wants .*Order, but it is given str", at="shipping(")

    def test_outside_of_a_trace(self) -> None:
        """A workflow is given to a runner, not called."""
        with pytest.raises(UsageError, match="is not called directly"):
            shipping(Order("1", []))
