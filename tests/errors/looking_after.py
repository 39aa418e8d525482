"""Mistakes with a client: each names the instance, and what is there instead."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stepwell import (
    Complete,
    CorruptValue,
    InMemoryBackend,
    InProcessRunner,
    InstanceEnded,
    InstanceExists,
    InstanceHeld,
    InstanceNotFound,
    InstancePaused,
    OptionError,
    Rerun,
    StepNotFinished,
    UsageError,
    WorkflowClient,
    task,
)

from .shop import Order, approval, checkout
from .table import SECRET, Desk, case

ORDER = Order("7", 300, SECRET)


def waiting(desk: Desk) -> Any:
    """Return a runner with an instance that waits for a signal."""
    runner = desk.runner()
    runner.start(approval, ORDER, instance_id="order-7")
    return runner


def ended(desk: Desk) -> Any:
    """Return a runner with an instance that has completed."""
    runner = desk.runner()
    runner.run(checkout, ORDER, instance_id="order-7")
    return runner


@case(UsageError, "InProcessRunner|keeps no instances", "InProcessRunner", "CheckpointingRunner")
def a_client_of_a_runner_that_keeps_nothing(desk: Desk) -> None:
    with InProcessRunner() as runner:
        runner.client.status("order-7")


@case(UsageError, "'aprove'|'approval'", "'order-7'", "approve")
def a_misspelt_signal(desk: Desk) -> None:
    waiting(desk).client.signal("order-7", "aprove", "yes")


@case(InstanceEnded, "it has ended (completed)", "'order-7'", "takes no signal|on_conflict='terminate_existing'")
def a_signal_that_is_late(desk: Desk) -> None:
    ended(desk).client.signal("order-7", "approve", "yes")


@case(InstanceEnded, "completed", "'order-7'", "on_conflict='terminate_existing'")
def a_retry_of_what_went_well(desk: Desk) -> None:
    ended(desk).client.retry("order-7")


@case(UsageError, "waiting|has not failed", "'order-7'", "client.explain()")
def a_retry_of_what_only_waits(desk: Desk) -> None:
    waiting(desk).client.retry("order-7")


@case(UsageError, "'chrage'", "'order-7'", "charge")
def a_misspelt_step(desk: Desk) -> None:
    ended(desk).client.task_result("order-7", "chrage")


@case(StepNotFinished, "thank", "'order-7'", "client.explain()")
def a_result_that_is_not_there_yet(desk: Desk) -> None:
    waiting(desk).client.task_result("order-7", "thank")


@case(TimeoutError, "within the timeout", "'order-7'", "it goes on all the same|client.explain()")
def a_wait_that_is_too_short(desk: Desk) -> None:
    waiting(desk).client.result("order-7", timeout=0)


@case(UsageError, "waiting", "'order-7'", "cancel it first")
def a_deletion_of_what_still_waits(desk: Desk) -> None:
    waiting(desk).client.delete("order-7")


@case(OptionError, "purge()", "older_than", "keep")
def a_purge_of_everything(desk: Desk) -> None:
    desk.client().purge()


@case(OptionError, "keep|'3'", "keep", "whole number from 0")
def a_number_to_keep_in_quotes(desk: Desk) -> None:
    desk.client().purge(keep="3")  # type: ignore[arg-type]


@case(OptionError, "limit|-1", "limit", "whole number from 0")
def a_purge_of_fewer_than_none(desk: Desk) -> None:
    desk.client().purge(keep=3, limit=-1)


@case(UsageError, "str", "workflows and tasks", "@workflow")
def a_preview_by_name(desk: Desk) -> None:
    desk.client().preview_change("approval")  # type: ignore[arg-type]


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()")
def a_status_of_what_nobody_started(desk: Desk) -> None:
    desk.client().status("order-8")


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()")
def a_signal_to_what_nobody_started(desk: Desk) -> None:
    desk.client().signal("order-8", "approve", "yes")


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()")
def a_wait_for_what_nobody_started(desk: Desk) -> None:
    desk.client().result("order-8")


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()")
def a_wait_of_a_runner_for_what_nobody_started(desk: Desk) -> None:
    desk.runner().result(checkout, "order-8")


@case(InstanceNotFound, "no such instance", "'order-8'|shop.db", "client.list()")
def a_deletion_of_what_nobody_started(desk: Desk) -> None:
    desk.client().delete("order-8")


@case(InstanceNotFound, "no such instance", "'order-8'|InMemoryBackend()", "client.list()")
def a_snapshot_of_what_nobody_started(desk: Desk) -> None:
    WorkflowClient(InMemoryBackend()).snapshot("order-8")


@case(OptionError, "state|'fail'", "state", "failed")
def a_misspelt_state(desk: Desk) -> None:
    desk.client().list(state="fail")  # type: ignore[arg-type]


@case(OptionError, "created_after", "created_after", "time zone")
def a_moment_without_a_time_zone(desk: Desk) -> None:
    desk.client().list(created_after=datetime(2030, 1, 1))


@case(OptionError, "limit|0", "limit", "from 1 to")
def a_page_of_nothing(desk: Desk) -> None:
    desk.client().list(limit=0)


@case(InstancePaused, "legal is looking|ann", "'order-7'", "client.resume()")
def a_run_that_is_paused(desk: Desk) -> None:
    runner = waiting(desk)
    runner.client.pause("order-7", reason="legal is looking", by="ann")
    runner.resume(approval, "order-7")


# --- holds -------------------------------------------------------------------------------------------


@task(delivery="at_most_once")
def wire(order: Order) -> str:
    raise KeyboardInterrupt


def held(desk: Desk) -> Any:
    """Return a runner with an instance that was cut off in a step that must not be done twice."""
    first, runner = desk.runner(), desk.runner()
    try:
        first.run(wire, ORDER, instance_id="order-7")
    except KeyboardInterrupt:
        first.close()
    runner.recover([wire])
    return runner


@case(InstanceHeld, "interrupted|nobody knows whether it happened", "'order-7'|at wire", "Rerun()|Complete(|Fail(")
def a_step_that_was_cut_off(desk: Desk) -> None:
    held(desk).resume(wire, "order-7")


@case(UsageError, "'wrie'", "'order-7'|'wire'", "the decision must be about 'wire'")
def a_decision_about_another_step(desk: Desk) -> None:
    held(desk).client.decide("order-7", "wrie", Rerun())


@case(OptionError, "bool", "decision", "Rerun(), Complete(value) or Fail(reason)")
def a_decision_that_is_none(desk: Desk) -> None:
    held(desk).client.decide("order-7", "wire", True)


@case(UsageError, "int", "'order-7'|wire", "returns str")
def a_decision_with_another_value(desk: Desk) -> None:
    held(desk).client.decide("order-7", "wire", Complete(4711))


@case(UsageError, "not held", "'order-7'", "client.explain()")
def a_decision_about_what_is_not_held(desk: Desk) -> None:
    waiting(desk).client.decide("order-7", "approve", Rerun())


# --- snapshots -----------------------------------------------------------------------------------------


@case(OptionError, "str", "snapshot", "client.snapshot()")
def a_text_for_a_snapshot(desk: Desk) -> None:
    desk.client().restore("order-7.stepwell")  # type: ignore[arg-type]


@case(CorruptValue, "not a stepwell snapshot", "header", "client.snapshot()")
def bytes_for_a_snapshot(desk: Desk) -> None:
    desk.client().restore(SECRET.encode())


@case(InstanceExists, "exists", "'order-7'", "instance_id=")
def a_snapshot_beside_its_instance(desk: Desk) -> None:
    client = ended(desk).client
    client.restore(client.snapshot("order-7"))
