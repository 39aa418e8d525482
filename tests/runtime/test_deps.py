"""Dependencies are found before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell import MissingDependency, inject, parallel, task, workflow
from stepwell.backend.base import Filter


class Stock:
    def __init__(self, count: int) -> None:
        self.count = count


@task
def first(x: int) -> int:
    return x


@task
def reserve(x: int, *, stock: Stock = inject()) -> int:
    return stock.count + x


@task
async def reserve_later(x: int, *, stock: Stock = inject()) -> int:
    return stock.count - x


@workflow
async def reserving(x: int) -> list[int]:
    first(x)
    with parallel():
        a, b = reserve(x), await reserve_later(x)
    return [a, b, reserve(x)]


def test_a_task_gets_what_the_runner_was_given(any_runner: Any) -> None:
    """By the parameter's annotation, in sync and async tasks."""
    assert any_runner(deps={Stock: Stock(10)}).run(reserving, 3) == [13, 7, 13]


def test_a_missing_dependency_is_told_before_anything_runs(any_runner: Any) -> None:
    """The message names task, parameter and type."""
    ran: list[int] = []

    @task
    def notes(x: int) -> int:
        ran.append(x)
        return x

    @workflow
    def lacking(x: int) -> int:
        return reserve(notes(x))

    with pytest.raises(MissingDependency, match=r"task 'reserve' needs stock: Stock") as caught:
        any_runner(deps={}).run(lacking, 1)
    assert (caught.value.task, caught.value.parameter, caught.value.type_name) == ("reserve", "stock", "Stock")
    assert ran == []


def test_a_missing_dependency_leaves_no_instance_behind(backend: Any, open_runner: Any) -> None:
    """Nothing was created, so the id is free once the runner is mended."""
    with pytest.raises(MissingDependency):
        open_runner(backend).run(reserving, 1, instance_id="r")
    assert backend.count(Filter()) == 0
    assert open_runner(backend, deps={Stock: Stock(1)}).run(reserving, 1, instance_id="r") == [2, 0, 2]


def test_two_runners_inject_their_own(any_runner: Any) -> None:
    """Nothing is kept at the workflow."""
    assert any_runner(deps={Stock: Stock(1)}).run(reserving, 0) == [1, 1, 1]
    assert any_runner(deps={Stock: Stock(2)}).run(reserving, 0) == [2, 2, 2]
