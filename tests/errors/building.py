"""Mistakes in a workflow's graph: each points at the line to mend."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from stepwell import Again, Flow, GraphError, UsageError, branch, delay, loop, parallel, route, signal, task, workflow

from .shop import Answer, Order, Receipt, ask, charge, checkout, pay, reserve, ship, thank
from .table import Desk, case

# --- a result is used as if it were there -----------------------------------------------------------


@case(GraphError, "task 'charge'|condition", how="route()")
def a_condition_on_a_result(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        receipt = charge(order)
        if receipt.paid:  # here
            return ship(order, receipt)
        return thank("nobody")


@case(GraphError, "the input|compared", how="route()")
def a_comparison_with_the_input(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return thank("a rich one" if order.total > 100 else "you")  # here


@case(GraphError, "task 'list_orders'|iterated", how="a task")
def a_loop_over_a_result(desk: Desk) -> None:
    @task
    def list_orders() -> list[Order]:
        return []

    @workflow
    def buy() -> None:
        for order in list_orders():  # here
            charge(order)


@case(GraphError, "task 'charge'|text", how="format it in a task")
def a_result_in_an_f_string(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        receipt = charge(order)
        return thank(f"owner of {receipt.number}")  # here


@case(GraphError, "the input|computed", how="in a task")
def arithmetic_on_the_input(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return thank(order.total + 1)  # type: ignore[arg-type,operator]  # here


@case(GraphError, "task 'thank'|called", how="in a task")
def a_method_of_a_result(desk: Desk) -> None:
    @workflow
    def buy(name: str) -> str:
        return thank(name).upper()  # here


@case(GraphError, "task 'thank'|len()", how="in a task")
def the_length_of_a_result(desk: Desk) -> None:
    @workflow
    def buy(name: str) -> int:
        return len(thank(name))  # here


@case(GraphError, "task 'charge'|changed", how="in a task")
def a_result_is_changed(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Receipt:
        receipt = charge(order)
        receipt.paid = False  # type: ignore[misc]  # here
        return receipt


@case(GraphError, ".numbr|'charge'|Receipt", how="did you mean .number?")
def a_misspelt_field(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        receipt = charge(order)
        return thank(receipt.numbr)  # type: ignore[attr-defined]  # here


@case(GraphError, "Order|handle", how="in a task")
def a_record_made_of_results(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Receipt:
        return charge(Order(thank(order.id), 3, "x"))  # here


# --- async and sync ---------------------------------------------------------------------------------


@case(GraphError, "task 'reserve'|async|never awaited", how="`await`")
def a_forgotten_await(desk: Desk) -> None:
    @workflow
    async def buy(order: Order) -> Receipt:
        reserve(order)  # type: ignore[unused-coroutine]  # here
        return charge(order)


@case(GraphError, "task 'reserve'|async", how="`await`")
def a_forgotten_await_of_an_argument(desk: Desk) -> None:
    @workflow
    async def buy(order: Order) -> str:
        shelf: Any = reserve(order)
        return thank(shelf)  # here


@case(GraphError, "task 'reserve'|async", how="`async def`|`await`")
def an_async_task_in_a_sync_workflow(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Any:
        return reserve(order)  # here


@case(GraphError, "task 'charge'|not async", how="`await`")
def an_await_too_many(desk: Desk) -> None:
    @workflow
    async def buy(order: Order) -> Any:
        return await charge(order)  # type: ignore[misc]  # here


@case(GraphError, "await", how="delay()|in an async task")
def sleeping_in_a_workflow(desk: Desk) -> None:
    @workflow
    async def buy(order: Order) -> Receipt:
        await asyncio.sleep(0)  # here
        return charge(order)


@case(GraphError, "await", how="in an async task")
def waiting_for_a_reply_in_a_workflow(desk: Desk) -> None:
    async def main() -> None:
        @workflow
        async def buy(order: Order) -> Receipt:
            await asyncio.get_running_loop().create_future()  # here
            return charge(order)

    asyncio.run(main())


# --- wiring -----------------------------------------------------------------------------------------


@case(GraphError, "task 'ship'|(order, receipt)", how="missing a required argument: 'receipt'")
def a_missing_argument(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return ship(order)  # type: ignore[call-arg]  # here


@case(GraphError, "task 'ship'|(order, receipt)", how="no 'reciept' (did you mean receipt?)")
def a_misspelt_argument(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return ship(order, reciept=charge(order))  # type: ignore[call-arg]  # here


@case(GraphError, "'thank'|name: str|Receipt|'charge'", how="convert it in a task, or mend the annotation")
def a_result_of_another_type(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return thank(charge(order))  # type: ignore[arg-type]  # here


@case(GraphError, "task 'pay'|bank=", how="leave it out")
def a_dependency_passed_by_hand(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return pay(order, bank=order)  # here


@case(GraphError, "'charge'|two functions", how="@task('other-name')")
def two_functions_under_one_name(desk: Desk) -> None:
    @task("charge")
    def charge_abroad(order: Order) -> Receipt:
        return Receipt(order.id, paid=False)

    @workflow
    def buy(order: Order) -> Receipt:
        charge(order)
        return charge_abroad(order)  # here


@case(GraphError, "constant|lock", how="inject()")
def a_constant_that_cannot_be_stored(desk: Desk) -> None:
    @task
    def guard(lock: Any) -> None: ...

    @workflow
    def buy() -> None:
        guard(threading.Lock())  # here


@case(GraphError, "task 'thank'|inside a case of route", how="return it from there")
def a_result_of_a_case_used_outside(desk: Desk) -> None:
    kept: list[Any] = []

    @workflow
    def buy(order: Order) -> str:
        def yes() -> str:
            kept.append(thank(order.id))
            return thank(order.id)

        route(ask(order), {Answer.YES: yes, Answer.NO: yes, Answer.LATER: yes})
        return thank(kept[0])  # here


@case(GraphError, "workflow 'buy'|one input", how="a dataclass")
def two_inputs(desk: Desk) -> None:
    @workflow  # here
    def buy(order: Order, name: str) -> str:
        return thank(name)


@case(GraphError, "workflow 'buy'|default", how="leave it out")
def an_input_with_a_default(desk: Desk) -> None:
    @workflow  # here
    def buy(name: str = "you") -> str:
        return thank(name)


@case(GraphError, "workflow 'buy'|str|None", how="is a `return` missing?")
def a_forgotten_return(desk: Desk) -> None:
    @workflow  # here
    def buy(name: str) -> str:  # type: ignore[return]
        thank(name)


@case(GraphError, "workflow 'buy'|no steps", how="call a task in it")
def a_workflow_without_steps(desk: Desk) -> None:
    @workflow  # here
    def buy(order: Order) -> Order:
        return order


@case(GraphError, "task 'look'|Basket", how="import")
def an_annotation_of_something_unknown(desk: Desk) -> None:
    @task  # here
    def look(basket: Basket) -> str:  # type: ignore[name-defined]  # noqa: F821
        return "nice"

    @workflow
    def buy(name: str) -> str:
        return look(name)


@case(GraphError, "workflow 'checkout'|one argument", how="call it as checkout(value)")
def a_child_without_its_input(desk: Desk) -> None:
    @workflow
    def buy() -> str:
        return checkout()  # type: ignore[misc]  # here


@case(GraphError, "constant|Task", how="call it: ask(…)")
def a_task_that_is_not_called(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return thank(ask)  # type: ignore[arg-type]  # here


@case(GraphError, "'thank'|name: str|int|.total of the workflow's input", how="convert it in a task")
def a_part_of_another_type(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return thank(order.total)  # type: ignore[arg-type]  # here


@case(GraphError, "@workflow|a Task", how="plain `def`")
def decorators_in_the_wrong_order(desk: Desk) -> None:
    workflow(charge)  # type: ignore[call-overload]  # here


# --- routes, loops, waits -----------------------------------------------------------------------------


@case(GraphError, "route 'route'|Answer.LATER", how="add one or a default")
def a_route_that_forgets_a_case(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return route(  # here
            ask(order), {Answer.YES: lambda: thank("yes"), Answer.NO: lambda: thank("no")}
        )


@case(GraphError, "'yes'|Answer", how="Answer.YES")
def a_route_with_texts_for_an_enum(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return route(ask(order), {"yes": lambda: thank("yes"), "no": lambda: thank("no")})  # here


@case(GraphError, "task 'thank'|function is needed", how="`lambda: ...`")
def a_case_that_is_called_at_once(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return route(ask(order), {Answer.YES: thank("yes")}, default=lambda: thank("no"))  # here


@case(GraphError, "route()|str", how="needs no route")
def a_route_by_what_is_known(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return route("eu", {"eu": lambda: thank("eu")})  # here


@case(GraphError, "cases|list", how="{'yes': …}")
def cases_in_a_list(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> str:
        return route(ask(order), [(Answer.YES, lambda: thank("yes"))])  # type: ignore[arg-type]  # here


@case(GraphError, "loop 'thank'|str", how="return Again(value)|Done(value)")
def a_loop_whose_body_never_says_when(desk: Desk) -> None:
    @workflow
    def buy(name: str) -> Any:
        return loop(thank, name)  # here


@case(GraphError, "max_iterations|0", how="from 1 to")
def a_loop_of_no_turns(desk: Desk) -> None:
    @workflow
    def buy(name: str) -> Any:
        return loop(thank, name, max_iterations=0)  # here


@case(GraphError, "Again(...)", how="made in a task")
def again_said_by_the_workflow(desk: Desk) -> None:
    @workflow
    def buy(name: str) -> str:
        return thank(Again(name))  # type: ignore[arg-type]  # here


@case(GraphError, "delay|'5 minutes'", how="'5m'")
def a_delay_in_words(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Receipt:
        delay("5 minutes")  # here
        return charge(order)


@case(GraphError, "delay 'cooling-off'|parallel()", how='with branch("name"):')
def a_delay_side_by_side_with_steps(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> None:
        with parallel():
            delay("1h", name="cooling-off")  # here
            charge(order)


@case(GraphError, "signal 'approve'|nobody reads", how='with branch("name"):')
def a_signal_that_nobody_reads(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> None:
        with parallel():
            signal("approve", str)  # here
            charge(order)


@case(GraphError, "signal 'approve'|on_timeout=", how="timeout=")
def a_timeout_branch_without_a_timeout(desk: Desk) -> None:
    @workflow
    def buy() -> str:
        return thank(signal("approve", str, on_timeout=lambda: thank("nobody")))  # type: ignore[call-overload]  # here


@case(GraphError, "signal 'approve'|str|int", how="one name has one type")
def a_signal_of_two_types(desk: Desk) -> None:
    @workflow
    def buy() -> None:
        thank(signal("approve", str))
        signal("approve", int)  # here


@case(GraphError, "branch 'eu'", how="inside `with parallel():`")
def a_branch_of_nothing(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Receipt:
        with branch("eu"):  # here
            return charge(order)


@case(GraphError, "parallel()|no steps", how="call a task in it")
def a_parallel_without_steps(desk: Desk) -> None:
    @workflow
    def buy(order: Order) -> Receipt:
        with parallel():  # here
            pass
        return charge(order)


@case(GraphError, "a signal's name|'approve/now'", how="/ [ ] # = and control characters are used by paths")
def a_name_with_a_slash(desk: Desk) -> None:
    @workflow
    def buy() -> str:
        return thank(signal("approve/now", str))  # here


# --- the fluent form ------------------------------------------------------------------------------------


@case(GraphError, "the lambda", how="then(…, name='name')")
def a_lambda_without_a_name(desk: Desk) -> None:
    Flow("buy").then(lambda order: order)  # here


@case(GraphError, "Flow()|without a name", how="give it a name")
def a_flow_without_a_name(desk: Desk) -> None:
    Flow().then(thank).build()  # here


@case(GraphError, "fork|branch()", how="before join(); add one")
def a_fork_without_branches(desk: Desk) -> None:
    Flow("buy").then(charge).fork().join(thank)  # here


@case(GraphError, "join()|not a workflow", how="by then()")
def a_join_with_a_workflow(desk: Desk) -> None:
    Flow("buy").fork().branch(charge).join(checkout)  # type: ignore[call-overload]  # here


@case(GraphError, "workflow 'nightly'|no input", how="begin the flow with it")
def a_workflow_that_takes_nothing_in_a_flow(desk: Desk) -> None:
    @workflow
    def nightly() -> str:
        return thank("all")

    Flow("buy").then(charge).then(nightly).build()  # type: ignore[call-overload]  # here


@case(GraphError, "on_error|'ignore'", how="'cancel' or 'wait'")
def an_error_policy_that_is_none(desk: Desk) -> None:
    Flow("buy").fork(on_error="ignore")  # type: ignore[arg-type]  # here


@case(GraphError, "workflow 'buy'|no steps", how="then()")
def a_flow_without_steps(desk: Desk) -> None:
    Flow("buy").build()  # here


@case(GraphError, "join 'ship'|(order, receipt)|charge, ask", how="name=")
def a_join_with_other_names(desk: Desk) -> None:
    Flow("buy").fork().branch(charge).branch(ask).join(ship)  # here


@case(GraphError, "task 'ship'|'receipt'", how="the one value before it, so give other parameters a default")
def a_step_that_takes_two_values(desk: Desk) -> None:
    Flow("buy").then(charge).then(ship)  # type: ignore[call-overload]  # here


@case(GraphError, "'thank'|name: str|Receipt", how="convert it in a task")
def a_step_after_one_of_another_type(desk: Desk) -> None:
    Flow("buy").then(charge).then(thank).build()  # type: ignore[call-overload]  # here


# --- in the wrong place -------------------------------------------------------------------------------


@case(UsageError, "workflow 'checkout'|not called", "Runner", "InProcessRunner().run(checkout")
def a_workflow_called_as_a_function(desk: Desk) -> None:
    checkout(Order("7", 3, "x"))


@case(UsageError, "delay()", "inside a @workflow function", "time.sleep()")
def a_delay_in_a_task(desk: Desk) -> None:
    @task
    def nap() -> None:
        delay("1s")

    nap()


@case(UsageError, "task 'pay'|bank=", "called directly", "by hand")
def a_direct_call_without_its_dependency(desk: Desk) -> None:
    pay(Order("7", 3, "x"))


@dataclass
class Shop:
    name: str


@case(GraphError, "the class Shop", how="plain `def`")
def a_class_as_a_workflow(desk: Desk) -> None:
    workflow(Shop)  # type: ignore[arg-type]  # here
