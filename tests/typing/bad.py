"""Checked by mypy and pyright, never run: each line that ends in ``# error`` must be an error in both, no other may."""

# mypy: disable-error-code=empty-body
from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

import apsw
import psycopg

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    PostgresBackend,
    SqliteBackend,
    task_context,
)
from stepwell.flow.builder import Flow
from stepwell.flow.task import task
from stepwell.flow.trace import delay, loop, parallel, route, signal, workflow
from stepwell.flow.workflow import Workflow
from stepwell.types import Again, Done


@dataclass
class Order:
    id: str
    kind: Literal["new", "old"]


@task
def charge(order: Order) -> int: ...
@task
async def reserve(order: Order) -> int: ...
@task
def text_of(count: int) -> str: ...
@task
def kind(order: Order) -> Literal["new", "old"]: ...
@task
def start() -> Order: ...
@task
def refine(text: str) -> Again[str] | Done[int]: ...
@workflow
def settle(order: Order) -> int:
    return charge(order)


@workflow
def sized(size: int) -> int:
    return size


@workflow
def turn(text: str) -> Again[str] | Done[int]:
    return refine(text)


# --- tasks ---------------------------------------------------------------------------------------------

charge("order")  # error
charge()  # error
charge(Order("1", "new"), colour=1)  # error
charge(Order("1", "new")).upper()  # error
reserve(Order("1", "new")) + 1  # error
task(run_in="fiber")(len)  # error
task(delivery="exactly_once")(len)  # error
task(attemps=3)(len)  # error
task(timeout=[1])(len)  # error


# --- workflow functions ------------------------------------------------------------------------------


@workflow
async def awaits(order: Order) -> str:
    text_of(reserve(order))  # error
    await charge(order)  # error
    with parallel(on_error="ignore"):  # error
        count = await reserve(order)
    charge(count)  # error
    delay([1])  # error
    signal("go", int, timeout="1s").upper()  # error
    route(order.kind, {"new": charge(order)})  # error
    route(order.kind, {"new": lambda: charge(order)}).upper()  # error
    route(order.kind, {"new": lambda: reserve(order)}).upper()  # error
    loop(refine, 3)  # error
    loop(text_of, 3)  # error
    loop(refine, "x").upper()  # error
    loop(refine, "x", on_max="stop")  # error
    settle("x")  # error
    settle()  # error
    return await reserve(order)  # error


@workflow  # error
def two_inputs(a: int, b: int) -> None: ...


wrong_input: Workflow[int, int] = settle  # error
wrong_output: Workflow[Order, str] = settle  # error


# --- pipelines -----------------------------------------------------------------------------------------

begun = Flow("x").then(start)

begun.then(text_of)  # error
begun.then(reserve).then(charge)  # error
begun.then(Flow().then(text_of))  # error
begun.then(lambda order: order.colour, name="colour")  # error
begun.then(charge, nmae="c")  # error
begun.fork(on_error="ignore")  # error
begun.fork().branch(text_of)  # error
begun.fork().branch(charge, charge)  # error
begun.fork().branch(reserve, charge)  # error
begun.fork().branch(charge, text_of, charge)  # error
begun.fork().build()  # error
begun.route(text_of, {"new": charge})  # error
begun.route(kind, {"new": text_of})  # error
begun.route(kind, {"new": charge}, default=text_of)  # error
begun.loop(refine)  # error
begun.loop(charge)  # error
begun.signal("go", int).then(charge)  # error
begun.signal("go", int, timeout="1s", on_timeout=reserve).then(charge)  # error
begun.then(sized)  # error
begun.then(charge).then(settle)  # error
begun.fork().branch(charge, settle)  # error
begun.route(kind, {"new": settle, "old": sized})  # error
begun.loop(turn)  # error
begun.delay("rest", [1])  # error
int_flow: Workflow[None, str] = begun.then(charge).build()  # error


def run_them(order: Order) -> None:
    with InProcessRunner() as memory:
        memory.run(settle, 1)  # error
        memory.run(settle)  # error
        memory.run(settle, order, instance_id=1)  # error
    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.run(settle, "order")  # error
        runner.run(settle, order, instance="i")  # error
        runner.start(settle, 1)  # error
        text: str = runner.resume(settle, "i")  # error
        wrong: str = runner.result(settle, "i")  # error
        print(text, wrong)


def in_another_database(postgres: PostgresBackend, sqlite: SqliteBackend) -> None:
    with task_context().transaction(psycopg.Connection) as db:
        db.set_busy_timeout(1)  # error
        db.execute("SELECT 1").fetchall().upper()  # error
    with task_context().transaction(apsw.Connection) as file:
        file.cancel()  # error
    task_context().transaction("psycopg")  # error
    task_context().transaction(sqlite3.Connection)  # error
    task_context().transaction(psycopg.connect("dbname=shop"))  # error
    wrong: psycopg.Connection = sqlite.connect()  # error
    postgres.connect().set_busy_timeout(1)  # error
    print(wrong)
