"""Values between steps: typed, copied or passed, refused before they are stored, and limited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    EncodeError,
    InMemoryBackend,
    InProcessRunner,
    InstanceHeld,
    JsonCodec,
    Limits,
    MsgpackCodec,
    SqliteBackend,
    ValueTooLarge,
    WorkflowFailed,
    parallel,
    task,
    workflow,
)


class Colour(Enum):
    RED = "r"
    BLUE = "b"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass
class Order:
    id: UUID
    at: datetime
    day: date
    wait: timedelta
    colour: Colour
    lines: list[Line]
    tags: set[str] = field(default_factory=set)
    note: str | None = None


ORDER = Order(
    UUID(int=7),
    datetime(2030, 1, 2, 3, tzinfo=UTC),
    date(2030, 1, 2),
    timedelta(seconds=5),
    Colour.BLUE,
    [Line("a", Decimal("1.10")), Line("b", Decimal("2"))],
    {"x", "y"},
)


@task
def echo(order: Order) -> Order:
    assert type(order) is Order
    return order


@task
def total(lines: list[Line]) -> Decimal:
    return sum((line.price for line in lines), Decimal(0))


@task
def untyped(value):  # type: ignore[no-untyped-def]
    return value


@workflow
def echoing(order: Order) -> Order:
    return echo(echo(order))


@workflow
def totalling(order: Order) -> Decimal:
    return total(echo(order).lines)


@workflow("anything")
def anything(value: Any) -> Any:
    return untyped(untyped(value))


@pytest.fixture(params=["isolated", "isolated-msgpack", "memory", "memory-msgpack", "sqlite", "sqlite-msgpack"])
def storing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Every runner that sends values through a codec."""
    kind, _, packed = request.param.partition("-")
    codec = MsgpackCodec() if packed else JsonCodec()
    with ExitStack() as stack:
        if kind == "isolated":
            yield stack.enter_context(InProcessRunner(isolate=True, codec=codec))
            return
        store = InMemoryBackend(codec) if kind == "memory" else SqliteBackend(tmp_path / "v.db", codec=codec)
        stack.callback(store.close)
        yield stack.enter_context(CheckpointingRunner(store))


def test_a_dataclass_comes_back_as_itself(storing: Any) -> None:
    """Equal, of the same classes, through every store and codec; a selection reads the value as declared."""
    found = storing.run(echoing, ORDER)
    assert found == ORDER
    assert found is not ORDER
    assert [type(line) for line in found.lines] == [Line, Line]
    assert storing.run(totalling, ORDER) == Decimal("3.10")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        float("inf"),
        "",
        "ü\0\ud800",
        b"\0\xff",
        [],
        {},
        (),
        {1: "a", (1, 2): "b"},
        {1, 2},
        frozenset("a"),
        [1, (2, [3, {4}])],
        Decimal("1e-9"),
        date(2030, 1, 2),
        datetime(2030, 1, 2, 3),
        timedelta(days=-1),
        UUID(int=1),
    ],
    ids=repr,
)
def test_undeclared_values_come_back_exactly(value: Any, storing: Any) -> None:
    """Equal and of the same type, without a hint."""
    found = storing.run(anything, value)
    assert (found, type(found)) == (value, type(value))


def test_nobody_shares_a_value_that_was_stored(storing: Any) -> None:
    """Two readers of one result each get their own copy."""

    @task
    def makes() -> list[int]:
        return [1]

    @task
    def spoils(items: list[int]) -> int:
        items.append(2)
        return len(items)

    @workflow
    def sharing() -> list[int]:
        made = makes()
        with parallel():
            a, b = spoils(made), spoils(made)
        return [a, b, spoils(made)]

    assert storing.run(sharing) == [2, 2, 2]


def test_a_runner_in_memory_passes_the_object_itself() -> None:
    """Unless isolate=True was asked for."""
    marker = object()
    with InProcessRunner() as runner:
        assert runner.run(anything, marker) is marker


class Sending:
    """A workflow whose task returns what cannot be stored, and counts how often it ran."""

    def __init__(self, value: Any) -> None:
        self.calls = 0

        @task(attempts=5)
        def sends(x: int) -> Any:
            self.calls += 1
            return value

        @workflow
        def sending(x: int) -> Any:
            return sends(x)

        self.workflow = sending


@pytest.mark.parametrize(
    "value", [{"a": [1, object()]}, {"a": [1, lambda: 0]}, {"a": [1, open]}], ids=["object", "lambda", "function"]
)
def test_what_cannot_be_stored_fails_the_step_once(value: Any, storing: Any) -> None:
    """Without a retry: its side effect ran once. The message names task, path and place in the value."""
    sending = Sending(value)
    with pytest.raises(WorkflowFailed, match=r"the result of 'sends' at sends cannot be stored") as caught:
        storing.run(sending.workflow, 1)
    assert sending.calls == 1
    assert isinstance(caught.value.__cause__, EncodeError)
    assert "a" in caught.value.__cause__.path
    assert "[1]" in str(caught.value)


def test_an_input_that_cannot_be_stored_is_refused_before_anything_runs(storing: Any) -> None:
    """With the workflow's name."""
    with pytest.raises(EncodeError, match="the input of workflow 'anything'"):
        storing.run(anything, object())


@pytest.mark.parametrize("kind", ["isolated", "memory", "sqlite"])
def test_a_value_over_the_limit_fails_the_step_once(kind: str, tmp_path: Path) -> None:
    """Where the limit is set on the codec; the step names itself, and the value is not in the message."""
    codec, sending = JsonCodec(Limits(value_bytes=1000)), Sending("secret" * 1000)
    runner: Any
    if kind == "isolated":
        runner = InProcessRunner(isolate=True, codec=codec)
    else:
        runner = CheckpointingRunner(
            InMemoryBackend(codec) if kind == "memory" else SqliteBackend(tmp_path / "l.db", codec=codec)
        )
    with runner, pytest.raises(WorkflowFailed, match="'sends' at sends") as caught:
        runner.run(sending.workflow, 1)
    assert isinstance(caught.value.__cause__, ValueTooLarge)
    assert "secretsecret" not in str(caught.value)
    assert sending.calls == 1


def versioned(stop: bool, **fields: type) -> Any:
    """A workflow whose value has the same class by name, with these fields."""
    Item = make_dataclass("Item", fields.items())

    def makes(x: int) -> Any:
        return Item(*[kind(x) for kind in fields.values()])

    def uses(item: Any) -> int:
        if stop:
            raise KeyboardInterrupt
        return 1

    makes.__annotations__["return"] = uses.__annotations__["item"] = Item
    made, used = task(makes), task(uses)

    @workflow
    def using(x: int) -> int:
        return used(made(x))

    return using


def test_a_stored_value_that_no_longer_fits_holds_the_instance(backend: Any, open_runner: Any) -> None:
    """The code changed a class while the run was under way: no attempt is used up, and a person has to look."""
    before, after = versioned(True, size=int), versioned(False, colour=str)
    assert before.fingerprint == after.fingerprint
    with pytest.raises(KeyboardInterrupt):
        open_runner(backend).run(before, 1, instance_id="i")
    runner = open_runner(backend)
    with pytest.raises(InstanceHeld, match=r"undecodable.* at uses") as caught:
        runner.resume(after, "i")
    assert caught.value.reason == "undecodable"
    assert runner.client.status("i").state == "held"


@pytest.mark.broken_store
def test_a_damaged_value_holds_its_instance_and_no_other(tmp_path: Path) -> None:
    """One flipped byte in one stored output."""
    stop = [True]

    @task
    def makes(x: int) -> list[int]:
        return [x, x]

    @task
    def uses(items: list[int]) -> int:
        if stop[0]:
            raise KeyboardInterrupt
        return sum(items)

    @workflow
    def using(x: int) -> int:
        return uses(makes(x))

    backend = SqliteBackend(tmp_path / "d.db")
    with CheckpointingRunner(backend) as runner:
        for name in ("good", "bad"):
            with pytest.raises(KeyboardInterrupt):
                runner.run(using, 2, instance_id=name)
    number = backend.header("bad").instance  # type: ignore[union-attr]
    connection = backend.connect()
    ((seq, output),) = connection.execute(
        "SELECT seq, output FROM journal WHERE instance = ? AND output IS NOT NULL ORDER BY seq DESC LIMIT 1", (number,)
    )
    spoiled = bytes([*output[:-1], output[-1] ^ 1])
    connection.execute("UPDATE journal SET output = ? WHERE instance = ? AND seq = ?", (spoiled, number, seq))
    connection.close()
    stop[0] = False
    with CheckpointingRunner(backend) as runner:
        assert {s.instance_id: s.state for s in runner.recover([using], wait=True)} == {
            "good": "completed",
            "bad": "held",
        }
        assert "'makes'" in runner.client.status("bad").detail
    backend.close()


def test_an_async_run_stores_values_the_same_way() -> None:
    """The twins share one path."""
    import asyncio

    async def main() -> Order:
        async with AsyncCheckpointingRunner(InMemoryBackend(MsgpackCodec())) as runner:
            return await runner.run(echoing, ORDER)

    assert asyncio.run(main()) == ORDER
