"""Checked by mypy and pyright, never run: what the public types say of correct programs."""

# mypy: disable-error-code=empty-body
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_type

import apsw
import psycopg

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    CheckpointingRunner,
    ConflictPolicy,
    InMemoryBackend,
    InProcessRunner,
    InstanceStatus,
    PostgresBackend,
    SqliteBackend,
    task_context,
)
from stepwell.flow.builder import Chain, Flow, Fork
from stepwell.flow.task import inject, task
from stepwell.flow.trace import branch, delay, loop, parallel, route, signal, workflow
from stepwell.flow.workflow import Workflow
from stepwell.types import Again, Done


@dataclass
class Order:
    id: str
    kind: Literal["new", "old"]


@dataclass
class Receipt:
    total: int


class Stock:
    pass


@task
def charge(order: Order) -> Receipt: ...
@task("reserve", attempts=3, timeout="30s")
async def reserve(order: Order, *, stock: Stock = inject()) -> int: ...
@task
def confirm(order: Order, receipt: Receipt, count: int) -> str: ...
@task
def refund(receipt: Receipt) -> str: ...
@task
def kind(order: Order) -> Literal["new", "old"]: ...
@task
def refine(text: str) -> Again[str] | Done[int]: ...
@task
async def refine_async(text: str) -> Again[str] | Done[int]: ...
@task
def escalate() -> Receipt: ...
@task
async def escalate_async() -> Receipt: ...
@task
def total(receipt: Receipt) -> int: ...
@task
async def total_async(receipt: Receipt) -> int: ...
@task
def start() -> Order: ...
@task
async def start_async() -> Order: ...
@task
def text_of(count: int) -> str: ...
@task
async def text_of_async(count: int) -> str: ...
@task
def by_name(charge: Receipt, reserve: int) -> str: ...
@task
async def by_dict(parts: dict[str, Any]) -> bytes: ...


# --- tasks are still functions -----------------------------------------------------------------------


async def direct(order: Order) -> None:
    assert_type(charge(order), Receipt)
    assert_type(await reserve(order), int)
    assert_type(await reserve(order, stock=Stock()), int)
    assert_type(charge.named("charge-eu", was="charge")(order), Receipt)


# --- workflow functions ------------------------------------------------------------------------------


@workflow
async def checkout(order: Order) -> str:
    with parallel(on_error="wait"):
        receipt = charge(order)
        with branch("stock"):
            delay("1s")
            count = await reserve(order)
    assert_type(receipt, Receipt)
    assert_type(count, int)
    assert_type(signal("approve", Receipt), Receipt)
    assert_type(signal("approve", Receipt, timeout="2d"), Receipt)
    assert_type(signal("approve", Receipt, timeout="2d", on_timeout=escalate), Receipt)
    assert_type(signal("other", int, timeout="2d", on_timeout=escalate_async), int | Receipt)
    assert_type(signal("other", int, timeout="2d", on_timeout=lambda: charge(order)), int | Receipt)
    assert_type(loop(refine, "x"), int)
    assert_type(loop(refine, "x", on_max="last"), int | str)
    assert_type(loop(refine_async, "x", max_iterations=3), int)
    assert_type(route(order.kind, {"new": lambda: reserve(order), "old": lambda: reserve(order)}), int)
    assert_type(route(order.kind, {"new": escalate, "old": escalate}, default=escalate), Receipt)
    assert_type(route(order.kind, {"new": escalate_async}, default=escalate_async), Receipt)
    assert_type(route(order.kind, {"new": nightly, "old": nightly}), int)
    return route(order.kind, {"new": lambda: confirm(order, receipt, count), "old": lambda: refund(receipt)})


@workflow
def settle(order: Order) -> int:
    assert_type(route(kind(order), {"new": lambda: charge(order)}, default=lambda: escalate()), Receipt)
    return total(charge(order))


@workflow("nightly", metadata={"team": "ops"})
def nightly() -> int:
    return settle(start())


@workflow()
async def nightly_async() -> Order:
    return await start_async()


@workflow
def turn(text: str) -> Again[str] | Done[int]:
    return refine(text)


assert_type(checkout, Workflow[Order, str])
assert_type(settle, Workflow[Order, int])
assert_type(nightly, Workflow[None, int])
assert_type(nightly_async, Workflow[None, Order])


# --- pipelines -----------------------------------------------------------------------------------------

begun = Flow("digest", metadata={"team": "search"}).then(charge)
assert_type(begun, Chain[Order, Receipt])
assert_type(begun.then(total), Chain[Order, int])
assert_type(begun.then(total_async), Chain[Order, int])
assert_type(begun.then(total_async).then(text_of), Chain[Order, str])
assert_type(begun.then(lambda r: r.total, name="total"), Chain[Order, int])
assert_type(begun.delay("rest", "1h"), Chain[Order, Receipt])
assert_type(begun.build(), Workflow[Order, Receipt])
assert_type(Flow("x").then(start), Chain[None, Order])
assert_type(Flow("x").then(start_async), Chain[None, Order])
assert_type(Flow("x").then(total_async), Chain[Receipt, int])
assert_type(Flow("x").then(settle), Chain[Order, int])
assert_type(Flow("x").delay("rest", 1).then(start).then(settle), Chain[None, int])
assert_type(Flow("x").then(start).then(Flow().then(charge).then(total)), Chain[None, int])

order_chain = Flow("x").then(start)
assert_type(order_chain.fork(), Fork[None, Order])
assert_type(order_chain.fork().branch(charge).branch(reserve).join(by_name), Chain[None, str])
assert_type(order_chain.fork().branch(charge).branch(reserve).join(by_dict), Chain[None, bytes])
order_chain.fork().branch(charge, total)
order_chain.fork().branch(charge, total, text_of)
order_chain.fork().branch(charge, total_async, text_of)
order_chain.fork().branch(reserve, text_of_async)
order_chain.fork().branch(charge, total_async, text_of_async)
order_chain.fork().branch(reserve, text_of_async, refine_async)
order_chain.fork().branch(charge, total, text_of, refine)
order_chain.fork().branch(settle, text_of).branch(Flow().then(charge), total)
order_chain.fork().branch(lambda o: o.id, lambda i: len(i), name="length")

assert_type(order_chain.route(kind, {"new": charge, "old": charge}), Chain[None, Receipt])
order_chain.route(kind, {"new": reserve, "old": reserve}).then(text_of)
assert_type(order_chain.route(kind, {"new": settle}, default=settle), Chain[None, int])
assert_type(order_chain.route(kind, {"new": Flow().then(charge)}, default=Flow().then(charge)), Chain[None, Receipt])
order_chain.route(kind, {"new": charge, "old": Flow().then(charge)}).then(total)
order_chain.route(kind, {"new": settle, "old": Flow().then(charge).then(total)})
order_chain.route(kind, {"new": reserve, "old": settle}).then(text_of)
Flow("x").route(kind, {"new": settle, "old": reserve})
assert_type(Flow("x").route(kind, {"new": charge, "old": charge}), Chain[Order, Receipt])

text_chain = order_chain.then(lambda o: o.id, name="id")
assert_type(text_chain, Chain[None, str])
assert_type(text_chain.loop(refine), Chain[None, int])
assert_type(text_chain.loop(refine, max_iterations=5, on_max="fail"), Chain[None, int])
assert_type(text_chain.loop(refine, on_max="last"), Chain[None, int | str])
assert_type(text_chain.loop(refine_async), Chain[None, int])
assert_type(text_chain.loop(turn), Chain[None, int])
assert_type(text_chain.loop(Flow().then(refine)), Chain[None, int])
assert_type(Flow("x").loop(refine), Chain[str, int])
assert_type(Flow("x").loop(refine_async), Chain[str, int])

assert_type(text_chain.signal("go", Receipt), Chain[None, Receipt])
assert_type(text_chain.signal("go", Receipt, timeout="1d"), Chain[None, Receipt])
assert_type(order_chain.signal("go", int, timeout=1, on_timeout=charge), Chain[None, int | Receipt])
assert_type(order_chain.signal("go", Receipt, timeout=1, on_timeout=charge), Chain[None, Receipt])
assert_type(order_chain.signal("go", str, timeout=1, on_timeout=reserve), Chain[None, str | int])
assert_type(Flow("x").signal("go", Receipt), Chain[None, Receipt])


# --- runners ---------------------------------------------------------------------------------------------------------


@workflow
def settled(order: Order) -> Receipt:
    return charge(order)


@workflow
def inputless() -> Receipt:
    return charge(start())


def run_them(order: Order) -> None:
    with InProcessRunner() as memory:
        assert_type(memory.run(settled, order), Receipt)
        assert_type(memory.run(inputless), Receipt)
        assert_type(memory.run_many(settled, [order]), list[Receipt])
        assert_type(memory.run(charge, order), Receipt)
        assert_type(memory.run(reserve, order), int)
        assert_type(memory.run(Flow("x").then(charge).then(total).build(), order), int)
    with CheckpointingRunner(InMemoryBackend()) as runner:
        assert_type(runner.run(settled, order, instance_id="i", on_conflict=ConflictPolicy.FAIL), Receipt)
        assert_type(runner.run(inputless, instance_id="i"), Receipt)
        assert_type(runner.start(settled, order), InstanceStatus)
        assert_type(runner.run(charge, order, instance_id="c"), Receipt)
        assert_type(runner.run(reserve, order), int)
        assert_type(runner.resume(settled, "i"), Receipt)
        assert_type(runner.result(settled, "i", timeout="1s"), Receipt)
        assert_type(runner.run_many(settled, [order], instance_ids=["a"]), list[Receipt])
        assert_type(runner.recover([settled, inputless]), list[InstanceStatus])


async def await_them(order: Order) -> None:
    async with AsyncInProcessRunner() as memory:
        assert_type(await memory.run(settled, order), Receipt)
        assert_type(await memory.run(inputless), Receipt)
    async with AsyncCheckpointingRunner(SqliteBackend("x.db")) as runner:
        assert_type(await runner.run(settled, order), Receipt)
        assert_type(await runner.start(inputless), InstanceStatus)
        assert_type(await runner.resume(settled, "i"), Receipt)
        assert_type(await runner.result(settled, "i"), Receipt)


# --- transactions ----------------------------------------------------------------------------------------


def in_their_database(postgres: PostgresBackend, sqlite: SqliteBackend) -> None:
    with task_context().transaction(psycopg.Connection) as db:
        assert_type(db, psycopg.Connection)
        row = db.execute("SELECT %s", (1,)).fetchone()
        assert_type(row, tuple[Any, ...] | None)
    with task_context().transaction(apsw.Connection) as file:
        assert_type(file, apsw.Connection)
    with task_context().transaction() as either:
        assert_type(either, apsw.Connection)
    assert_type(sqlite.connect(), apsw.Connection)
    with postgres.connect() as connection:
        assert_type(connection, psycopg.Connection)
