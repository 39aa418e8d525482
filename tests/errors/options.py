"""Options that are misspelt, out of range, or do not go together: each names the task and the option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stepwell import (
    InMemoryBackend,
    InProcessRunner,
    JsonCodec,
    Limits,
    MsgpackCodec,
    OptionError,
    Retention,
    Retry,
    RetryAfter,
    WorkflowClient,
    inject,
    open_backend,
    task,
)
from stepwell.testing import VirtualClock

from .shop import Bank, checkout
from .table import Desk, case


def charge(order: Any) -> Any:
    return order


@case(OptionError, "'atempts'", "task 'charge'", "did you mean attempts=")
def a_misspelt_option(desk: Desk) -> None:
    task("charge", atempts=3)(charge)  # type: ignore[call-overload]


@case(OptionError, "'max_retries'", "task 'charge'", "attempts, retry, timeout")
def an_option_of_another_library(desk: Desk) -> None:
    task("charge", max_retries=3)(charge)  # type: ignore[call-overload]


@case(OptionError, "timeout|'30 sec'", "task 'charge'", "'30s'")
def a_timeout_in_words(desk: Desk) -> None:
    task("charge", timeout="30 sec")(charge)


@case(OptionError, "retry|3", "task 'charge'", "retry=Retry(attempts=…)")
def a_number_for_a_policy(desk: Desk) -> None:
    task("charge", retry=3)(charge)  # type: ignore[call-overload]


@case(OptionError, "retry", "task 'charge'", "retry=Retry(attempts=…)")
def a_whole_book_for_a_policy(desk: Desk) -> None:
    task("charge", retry="page " * 10_000)(charge)  # type: ignore[call-overload]


@case(OptionError, "attempts=|retry=", "task 'charge'", "retry=Retry(attempts=")
def two_policies(desk: Desk) -> None:
    task("charge", attempts=3, retry=Retry())(charge)


@case(OptionError, "attempts|0", "task 'charge'", "from 1")
def no_attempt_at_all(desk: Desk) -> None:
    task("charge", attempts=0)(charge)


@case(OptionError, "on=|ConnectionError", "Retry", "on=(OSError,)")
def an_error_that_is_no_tuple(desk: Desk) -> None:
    Retry(on=ConnectionError)  # type: ignore[arg-type]


@case(OptionError, "tags|'eu'", "task 'charge'", "list or tuple")
def a_tag_that_is_no_list(desk: Desk) -> None:
    task("charge", tags="eu")(charge)


@case(OptionError, "priority|9", "task 'charge'", "1 (highest) to 5")
def a_priority_out_of_range(desk: Desk) -> None:
    task("charge", priority=9)(charge)


@case(OptionError, "at_most_once|attempts=", "task 'charge'", "leave out")
def at_most_once_with_retries(desk: Desk) -> None:
    task("charge", delivery="at_most_once", attempts=3)(charge)


@case(OptionError, "delivery|'exactly_once'", "task 'charge'", "'at_least_once', 'at_most_once'")
def exactly_once(desk: Desk) -> None:
    task("charge", delivery="exactly_once")(charge)  # type: ignore[call-overload]


@case(OptionError, "inline|timeout=", "task 'charge'", "run_in='thread'")
def a_timeout_that_nothing_can_enforce(desk: Desk) -> None:
    task("charge", run_in="inline", timeout="1s")(charge)


@case(OptionError, "run_in='process'", "task 'charge'", "module-level function")
def a_local_function_in_a_process(desk: Desk) -> None:
    def inner(order: Any) -> Any:
        return order

    task("charge", run_in="process")(inner)


@case(OptionError, "run_in=|async", "task 'charge'", "event loop")
def an_async_task_in_a_process(desk: Desk) -> None:
    async def fetch(order: Any) -> Any:
        return order

    task("charge", run_in="process")(fetch)


class Till:
    def charge(self, order: Any) -> Any:
        return order


@case(OptionError, "Till.charge|method", "task 'charge'", "inject()")
def a_method(desk: Desk) -> None:
    task(Till.charge)


def numbers() -> Iterator[int]:
    yield 1


@case(OptionError, "numbers|generator", "options.py", "into a list")
def a_generator(desk: Desk) -> None:
    task(numbers)


@case(OptionError, "lambda", "options.py", "@task('name')")
def a_nameless_task(desk: Desk) -> None:
    task(lambda order: order)


@case(OptionError, "bank=inject()", "task 'charge'", "annotation")
def a_dependency_without_a_type(desk: Desk) -> None:
    def charge(order: Any, bank=inject()) -> Any:  # type: ignore[no-untyped-def]
        return order

    task(charge)


@case(OptionError, "task already|'charge'", "options.py", "leave out")
def a_task_twice(desk: Desk) -> None:
    task(task(charge))


@case(OptionError, "workflow 'checkout'|no task", "shop.py:", "call it in another workflow")
def a_workflow_as_a_task(desk: Desk) -> None:
    task(checkout)  # type: ignore[call-overload]


@case(OptionError, "RetryAfter|-1", "wait", "between 0 s and ten years")
def a_wait_into_the_past(desk: Desk) -> None:
    raise RetryAfter(-1)


@case(OptionError, "RetryAfter|'30 sec'", "wait", "'30s'")
def a_wait_in_words(desk: Desk) -> None:
    raise RetryAfter("30 sec")


@case(OptionError, "Retention", "age=", "keep=")
def a_retention_of_nothing(desk: Desk) -> None:
    Retention()


@case(OptionError, "depth|100000", "Limits", "1 to")
def limits_beyond_the_stack(desk: Desk) -> None:
    JsonCodec(Limits(depth=100_000))


@case(OptionError, "a str", "codec=", "codec=JsonCodec()")
def a_codec_by_its_name(desk: Desk) -> None:
    desk.backend(codec="json")


@case(OptionError, "the class JsonCodec", "codec=", "codec=JsonCodec()")
def a_class_for_a_codec(desk: Desk) -> None:
    desk.backend(codec=JsonCodec)


@case(OptionError, "a str", "codec=", "codec=JsonCodec()")
def a_codec_by_its_name_in_memory(desk: Desk) -> None:
    InMemoryBackend("json")  # type: ignore[arg-type]


@case(OptionError, "the class MsgpackCodec", "codec=", "codec=MsgpackCodec()")
def a_class_for_a_codec_of_a_runner(desk: Desk) -> None:
    InProcessRunner(isolate=True, codec=MsgpackCodec)  # type: ignore[arg-type]


@case(OptionError, "a str", "codec=", "codec=JsonCodec()")
def a_codec_by_its_name_beside_a_url(desk: Desk) -> None:
    open_backend("memory:", codec="json")  # type: ignore[arg-type]


@case(OptionError, "a int", "clock=", "VirtualClock()|leave it out")
def a_number_for_a_clock(desk: Desk) -> None:
    desk.runner(clock=3)


@case(OptionError, "the class VirtualClock", "clock=", "VirtualClock()")
def a_class_for_a_clock(desk: Desk) -> None:
    InProcessRunner(clock=VirtualClock)  # type: ignore[arg-type]


@case(OptionError, "a int", "clock=", "VirtualClock()")
def a_number_for_a_clock_of_a_client(desk: Desk) -> None:
    WorkflowClient(desk.backend(), clock=3)  # type: ignore[arg-type]


@case(OptionError, "a list", "deps=", "deps={Bank: bank}")
def a_list_of_dependencies(desk: Desk) -> None:
    desk.runner(deps=[Bank()])


@case(OptionError, "span|'tomorrow'", "span", "'1d'")
def a_clock_moved_to_tomorrow(desk: Desk) -> None:
    VirtualClock().advance("tomorrow")
