"""Mistakes that show when a workflow is run: each names the instance and the step."""

from __future__ import annotations

import asyncio
from typing import Any

from stepwell import (
    Again,
    AlreadyRunning,
    Closed,
    Done,
    Flow,
    InProcessRunner,
    InputMismatch,
    InstanceConflict,
    InstanceHeld,
    InstanceNotFound,
    MissingDependency,
    NoTaskContext,
    OptionError,
    PooledWorker,
    SyncInAsync,
    UsageError,
    WorkflowFailed,
    inject,
    loop,
    route,
    signal,
    task,
    task_context,
    workflow,
)

from .shop import Bank, Order, approval, charge, checkout, pay, thank
from .table import SECRET, Desk, case

ORDER = Order("7", 300, SECRET)

# --- before anything runs ----------------------------------------------------------------------------


@case(MissingDependency, "Bank|bank", "task 'pay'", "deps={Bank:")
def a_missing_dependency(desk: Desk) -> None:
    desk.runner().run(pay, ORDER)


@case(MissingDependency, "Bank|bank", "task 'pay'", "deps={Bank:")
def a_dependency_under_its_name(desk: Desk) -> None:
    desk.runner(deps={"bank": Bank()}).run(pay, ORDER)


@case(SyncInAsync, "CheckpointingRunner", "inside a running event loop", "AsyncCheckpointingRunner|await")
def a_sync_runner_in_a_running_loop(desk: Desk) -> None:
    runner = desk.runner()

    async def handler() -> None:
        runner.run(checkout, ORDER)

    asyncio.run(handler())


@case(SyncInAsync, "WorkflowClient.result()", "inside a running event loop", "AsyncWorkflowClient|await")
def a_sync_client_in_a_running_loop(desk: Desk) -> None:
    client = desk.client()

    async def handler() -> None:
        client.result("order-7")

    asyncio.run(handler())


@case(Closed, "closed", "this runner", "make a new one")
def a_closed_runner(desk: Desk) -> None:
    with desk.runner() as runner:
        pass
    runner.run(checkout, ORDER)


@case(UsageError, "Chain", "runner", "build()")
def a_pipeline_that_was_not_built(desk: Desk) -> None:
    desk.runner().run(Flow("buy").then(charge), ORDER)  # type: ignore[call-overload]


@case(UsageError, "str", "runner", "@workflow")
def a_workflow_by_its_name(desk: Desk) -> None:
    desk.runner().run("checkout", ORDER)  # type: ignore[call-overload]


@case(UsageError, "workflow 'checkout'|an input", "shop.py:", "give it after the workflow")
def a_run_without_the_input(desk: Desk) -> None:
    desk.runner().run(checkout)  # type: ignore[call-overload]


@case(UsageError, "workflow 'checkout'|str", "takes Order|shop.py:", "expected Order")
def a_run_with_another_input(desk: Desk) -> None:
    desk.runner().run(checkout, SECRET)  # type: ignore[call-overload]


@case(OptionError, "'instance'|not an option", "options are", "did you mean instance_id=")
def a_misspelt_option_of_run(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, instance="order-7")  # type: ignore[call-overload]


@case(OptionError, "on_conflict|'replace'", "ConflictPolicy", "terminate_existing")
def a_conflict_policy_that_is_none(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, on_conflict="replace")


@case(OptionError, "instance id", "int", "must be a str|write str(")
def an_id_that_is_a_number(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, instance_id=7)  # type: ignore[call-overload]


@case(OptionError, "instance id", "has 0", "1 to 256 bytes")
def an_empty_id(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, instance_id="")


@case(OptionError, "2 inputs and 1 instance_ids", "instance_ids", "one id for each input")
def fewer_ids_than_inputs(desk: Desk) -> None:
    desk.runner().run_many(checkout, [ORDER, ORDER], instance_ids=["order-7"])


@case(OptionError, "1 inputs and 2 instance_ids", "instance_ids", "one id for each input")
def more_ids_than_inputs(desk: Desk) -> None:
    desk.client().start_many(checkout, [ORDER], instance_ids=["order-7", "order-8"])


@case(OptionError, "a str", "instance_ids", "a list with one id for each input")
def one_id_for_a_list_of_ids(desk: Desk) -> None:
    desk.client().start_many(checkout, [ORDER, ORDER], instance_ids="78")


@case(AlreadyRunning, "this id twice", "'order-7'", "an id of its own")
def an_id_for_two_inputs(desk: Desk) -> None:
    desk.runner().run_many(checkout, [ORDER, ORDER], instance_ids=["order-7", "order-7"])


@case(OptionError, "a list", "labels", "labels must be a mapping, as labels={'customer': 'ann'}")
def labels_that_are_a_list(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, labels=[SECRET])  # type: ignore[call-overload]


@case(OptionError, "int|'customer'", "labels", "must be a str|write str(")
def a_label_that_is_a_number(desk: Desk) -> None:
    desk.runner().run(checkout, ORDER, labels={"customer": 4711})  # type: ignore[call-overload]


@case(OptionError, "'note'|280", "labels", "256 bytes")
def a_label_that_is_a_letter(desk: Desk) -> None:
    desk.client().start_many(checkout, [ORDER], labels={"note": f"{SECRET:<280}"})


@case(OptionError, "the name of a label|0", "labels", "1 to 256 bytes")
def a_label_without_a_name(desk: Desk) -> None:
    desk.client().list(labels={"": "ann"})


@case(OptionError, "bytes in all", "labels", "keep more in the input")
def labels_without_end(desk: Desk) -> None:
    desk.client().start(checkout, ORDER, labels={f"note-{n}": SECRET for n in range(5_000)})


@case(UsageError, "a Workflow", "recover()", "recover([checkout, approval])")
def a_recovery_without_the_list(desk: Desk) -> None:
    desk.runner().recover(approval)  # type: ignore[arg-type]


@case(UsageError, "a str", "recover()", "a list of workflows")
def a_recovery_by_name(desk: Desk) -> None:
    desk.runner().recover("approval")  # type: ignore[arg-type]


@case(OptionError, "threads|'8'", "threads", "whole number from 1")
def a_number_in_quotes(desk: Desk) -> None:
    desk.runner(threads="8")


@case(UsageError, "a worker", "at least one workflow", "pass a list of them")
def a_worker_of_nothing(desk: Desk) -> None:
    PooledWorker(desk.backend(), [])


@case(UsageError, "a worker|str", "given a backend", "SqliteBackend('file.db')")
def a_path_for_a_backend_of_a_worker(desk: Desk) -> None:
    PooledWorker("shop.db", [checkout])  # type: ignore[arg-type]


@case(NoTaskContext, "task_context()", "outside a running task", "task_context(default=None)")
def a_context_outside_a_task(desk: Desk) -> None:
    task_context()


# --- the instance is there already -------------------------------------------------------------------


@case(InputMismatch, "another input", "'order-7'", "on_mismatch='ignore'")
def an_id_with_another_input(desk: Desk) -> None:
    runner = desk.runner()
    runner.run(checkout, ORDER, instance_id="order-7")
    runner.run(checkout, Order("8", 1, SECRET), instance_id="order-7")


@case(InstanceConflict, "'checkout'|'approval'", "'order-7'", "another id")
def an_id_of_another_workflow(desk: Desk) -> None:
    runner = desk.runner()
    runner.run(checkout, ORDER, instance_id="order-7")
    runner.run(approval, ORDER, instance_id="order-7")


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()|start()")
def an_id_that_nobody_started(desk: Desk) -> None:
    desk.runner().resume(checkout, "order-8")


@case(InstanceHeld, "stamp is new|charge", "'order-7'|before charge", "put it behind that|client.cancel()")
def a_workflow_that_was_changed(desk: Desk) -> None:
    @task
    def stamp(order: Order) -> str:
        return order.id

    @workflow("approval")
    def changed(order: Order) -> str:
        stamp(order)
        charge(order)
        return thank(signal("approve", str, timeout="2d"))

    runner = desk.runner()
    runner.start(approval, ORDER, instance_id="order-7")
    runner.resume(changed, "order-7")


# --- while it runs -------------------------------------------------------------------------------------


@case(WorkflowFailed, "no case for 'north'", "'order-7'|step route", "add the case or a default")
def a_key_without_a_case(desk: Desk) -> None:
    @task
    def region(order: Order) -> str:
        return "north"

    @workflow
    def buy(order: Order) -> str:
        return route(region(order), {"eu": lambda: thank("eu"), "us": lambda: thank("us")})

    desk.runner().run(buy, ORDER, instance_id="order-7")


@case(WorkflowFailed, "still said Again", "'order-7'|step refine", "max_iterations=3|on_max='last'")
def a_loop_without_end(desk: Desk) -> None:
    @task
    def refine(text: str) -> Again[str] | Done[str]:
        return Again(text)

    @workflow
    def buy(text: str) -> str:
        return loop(refine, text, max_iterations=3)

    desk.runner().run(buy, SECRET, instance_id="order-7")


@case(WorkflowFailed, "loop refine returned str", "'order-7'|step refine", "return Again(value)|Done(value)")
def a_loop_body_that_says_neither(desk: Desk) -> None:
    @task
    def refine(text: str) -> Any:
        return text

    @workflow
    def buy(text: str) -> str:
        return loop(refine, text)

    desk.runner().run(buy, SECRET, instance_id="order-7")


@case(WorkflowFailed, "'look_up'", "'order-7'|step look_up", "its timeout of 10ms")
def a_task_that_takes_too_long(desk: Desk) -> None:
    @task(timeout="10ms")
    async def look_up(order: Order) -> str:
        await asyncio.Event().wait()
        return order.id

    @workflow
    async def buy(order: Order) -> str:
        return await look_up(order)

    desk.runner(clock=None).run(buy, ORDER, instance_id="order-7")


@case(WorkflowFailed, "no message 'approve'", "'order-7'|step approve", "within 2d|on_timeout=")
def a_signal_that_never_comes(desk: Desk) -> None:
    desk.runner().run(approval, ORDER, instance_id="order-7")


@case(WorkflowFailed, ".name|str", "'order-7'|step thank", "mend what 'find'")
def a_field_that_is_not_there(desk: Desk) -> None:
    @task
    def find(order: Order) -> Any:
        return order.card

    @workflow
    def buy(order: Order) -> str:
        return thank(find(order).name)

    desk.runner().run(buy, ORDER, instance_id="order-7")


@case(WorkflowFailed, "transaction()|InProcessRunner", "task 'move'", "CheckpointingRunner(SqliteBackend('file.db'))")
def a_transaction_without_a_store(desk: Desk) -> None:
    @task
    def move(order: Order) -> str:
        with task_context().transaction():
            return order.id

    with InProcessRunner() as runner:
        runner.run(move, ORDER)


def count(order: str, *, bank: Bank = inject()) -> str:
    return order


@case(UsageError, "process|Bank", "task 'count'", "deps={Bank: make}")
def an_object_for_a_process(desk: Desk) -> None:
    desk.runner(deps={Bank: Bank()}).run(task(run_in="process")(count), "x")
