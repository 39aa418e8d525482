"""Damaged rows, failing stores and lost acknowledgements: what they cost, and whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    BackendError,
    CheckpointingRunner,
    InMemoryBackend,
    InstanceDamaged,
    SqliteBackend,
    delay,
    parallel,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.engine import facts as f
from stepwell.runtime.live import frontier_of
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend


@task
def step(x: int) -> int:
    return x + 1


@workflow
def asking(x: int) -> int:
    with parallel():
        a = step(x)
        step(x)
    step(a)
    return step(signal("answer", int))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(tmp_path / "damage.db")
    yield backend
    backend.close()


def spoil(store: SqliteBackend, instance_id: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change the facts in the last journal row of an instance by hand, and forget its image."""
    number = store.header(instance_id).instance  # type: ignore[union-attr]
    connection = store.connect()
    ((seq, facts),) = connection.execute(
        "SELECT seq, facts FROM journal WHERE instance = ? ORDER BY seq DESC LIMIT 1", (number,)
    )
    connection.execute("UPDATE instance SET image = NULL, image_seq = 0 WHERE id = ?", (number,))
    changed = change(facts)
    if changed is None:
        connection.execute("DELETE FROM journal WHERE instance = ? AND seq = ?", (number, seq - 1))
    else:
        connection.execute("UPDATE journal SET facts = ? WHERE instance = ? AND seq = ?", (changed, number, seq))
    connection.close()


@pytest.mark.broken_store
@pytest.mark.parametrize(
    "change",
    [
        lambda facts: b"",
        lambda facts: b"\xff\x00nonsense",
        lambda facts: facts[:-1],
        lambda facts: f.encode([f.StepDone(99)]),
        lambda facts: f.encode([f.MessageTaken(1, (), 7)]),
        lambda facts: None,
    ],
    ids=["empty", "nonsense", "cut", "no such node", "no such message", "row missing"],
)
def test_a_damaged_journal_stops_its_instance_alone(
    change: Callable[[bytes], bytes | None], store: SqliteBackend
) -> None:
    """resume says that it is damaged; recover passes it over and says why; the others go on, and nobody holds it."""
    with CheckpointingRunner(store) as runner:
        for name in ("before", "bad", "after"):
            runner.start(asking, 1, instance_id=name)
        spoil(store, "bad", change)
        with pytest.raises(InstanceDamaged, match="'bad'"):
            runner.resume(asking, "bad")
        for name in ("before", "after"):
            runner.client.signal(name, "answer", 1)
        with pytest.raises(InstanceDamaged):
            runner.client.signal("bad", "answer", 1)
        statuses = {s.instance_id: s for s in runner.recover([asking])}
        assert {name: s.state for name, s in statuses.items()} == {
            "before": "completed",
            "after": "completed",
            "bad": "waiting",
        }
        assert "journal" in statuses["bad"].detail
        assert store.header("bad").held_by == ""  # type: ignore[union-attr]


def test_whatever_stands_in_a_journal_is_read_or_told(store: SqliteBackend) -> None:
    """Three hundred spoiled journals: each is either a state or InstanceDamaged, never another error."""
    choose, told = random.Random(7), 0
    with CheckpointingRunner(store) as runner:
        runner.start(asking, 1, instance_id="i")
    loaded = store.load("i")
    number = loaded.header.instance  # type: ignore[union-attr]
    entries = store.history(number, 0, 100)
    from msgspec.structs import replace

    for _ in range(300):
        spoiled = list(entries)
        at = choose.randrange(len(spoiled))
        kind = choose.choice(("flip", "swap", "other"))
        facts = bytearray(spoiled[at].facts)
        if kind == "flip":
            facts[choose.randrange(len(facts))] ^= 1 << choose.randrange(8)
        elif kind == "other":
            facts = bytearray(choose.choice(entries).facts)
        spoiled[at] = replace(spoiled[at], facts=bytes(facts))
        if kind == "swap":
            choose.shuffle(spoiled)
        try:
            frontier_of(asking.plan, replace(loaded, image=None, entries=spoiled))
        except InstanceDamaged:
            told += 1
    assert told > 100


@pytest.mark.broken_store
def test_a_damaged_image_is_told(store: SqliteBackend) -> None:
    """As damage of that instance."""
    with CheckpointingRunner(store) as runner:
        runner.start(asking, 1, instance_id="i")
        connection = store.connect()
        connection.execute("UPDATE instance SET image = x'c1c1'")
        connection.execute("UPDATE agenda SET due_us = 0")
        connection.close()
        with pytest.raises(InstanceDamaged):
            runner.resume(asking, "i")
        assert ["cannot be read" in s.detail for s in runner.recover([asking])] == [True]
        assert runner.client.list()[0].held_by == ""


# --- a failing store ----------------------------------------------------------------------------------


class World:
    """A run with a fork, a retry, a delay and a message; it counts its calls and sends past the failing store."""

    def __init__(self, client: Any) -> None:
        self.calls: list[str] = []

        @task
        def first(x: int) -> int:
            self.calls.append("first")
            client.signal("i", "answer", 100, signal_id="once")
            return x

        @task
        def left(x: int) -> int:
            self.calls.append("left")
            return x + 1

        @task(attempts=2)
        def right(x: int) -> int:
            self.calls.append("right")
            if task_context().attempt == 1:
                raise OSError("again")
            return x + 2

        @task
        def last(a: int, b: int, c: int) -> int:
            self.calls.append("last")
            return a + b + c

        @workflow
        def world(x: int) -> int:
            a = first(x)
            with parallel():
                b, c = left(a), right(a)
            delay("1h")
            return last(b, c, signal("answer", int))

        self.workflow = world


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["open_session", "register", "create", "commit", "mail", "hint", "end_session"])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_that_fails_never_fails_the_run(kind: str, method: str, when: Any, tmp_path: Path) -> None:
    """Each call of each method fails in its turn, done or not; the caller is told, and the next call ends well."""
    nth, fired = 0, True
    while fired:
        nth += 1
        inner: Any = InMemoryBackend() if kind == "memory" else SqliteBackend(tmp_path / f"{nth}.db", durability="fast")
        fired = survives(inner, Fault(when, method, nth))
        inner.close()
    assert nth > 1, f"no call of {method} was reached"


def survives(inner: Any, fault: Fault) -> bool:
    """Run with one fault, then without; return whether it fired."""
    clock, struck = VirtualClock(), list[Fault]()

    def strike() -> None:
        struck.append(fault)
        raise BackendError("the disk is on fire")

    with CheckpointingRunner(inner, clock=clock) as runner:
        world = World(runner.client)
        try:
            with CheckpointingRunner(FaultyBackend(inner, [fault], strike), clock=clock) as failing:
                assert failing.run(world.workflow, 1, instance_id="i") == 105
                assert not struck or fault.method == "end_session"
        except BackendError as error:
            assert struck, error  # noqa: PT017  # an error before the fault would be another one
        found = inner.header("i")
        assert found is None or (found.state != "failed" and found.held_by == "") or fault.method == "end_session", (
            fault
        )
        if fault.method == "end_session" and struck:
            inner.end_session(failing._room._lease.session)
        assert runner.run(world.workflow, 1, instance_id="i") == 105, fault
    assert not inner.stuck(0)
    assert all(world.calls.count(name) <= 2 + (name == "right") for name in ("first", "left", "right", "last")), fault
    return bool(struck)


@pytest.mark.broken_store
def test_a_value_that_is_gone_is_damage_and_not_none(tmp_path: Path) -> None:
    """A lost row never reads as None; the other instances of the call go on."""
    path = tmp_path / "runs.db"
    with SqliteBackend(path) as backend, CheckpointingRunner(backend) as runner:
        for name in ("hurt", "well"):
            assert runner.start(awaits_then_adds, 3, instance_id=name).state == "waiting"
        with closing(backend.connect()) as connection:
            connection.execute(
                "UPDATE journal SET output = NULL WHERE seq = 2"
                " AND instance = (SELECT id FROM instance WHERE instance_id = 'hurt')"
            )
        for name in ("hurt", "well"):
            runner.client.signal(name, "go", 4)
        with pytest.raises(InstanceDamaged, match=r"'hurt'.*entry 2 is gone"):
            runner.resume(awaits_then_adds, "hurt")
        assert runner.resume(awaits_then_adds, "well") == 3 + 1 + 4


@task
def one_more(x: int) -> int:
    return x + 1


@task
def both(x: int, y: int) -> int:
    return x + y


@workflow
def awaits_then_adds(x: int) -> int:
    more = one_more(x)
    return both(more, signal("go", int))
