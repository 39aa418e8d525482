"""What recover takes up and what it leaves alone, however much that is."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AsyncCheckpointingRunner,
    CheckpointingRunner,
    SqliteBackend,
    delay,
    signal,
    task,
    workflow,
)
from stepwell.runtime import claiming
from stepwell.runtime.clock import SystemClock, Wait
from stepwell.testing import VirtualClock


@task
def add(x: int, y: int) -> int:
    return x + y


@task
def plain(x: int) -> int:
    return x


@workflow
def asking(x: int) -> int:
    return add(x, signal("answer", int))


@workflow
def napping(x: int) -> int:
    delay("8h")
    return plain(x)


class Waiting(SystemClock):
    """Says when a call is about to wait."""

    def __init__(self) -> None:
        self.waiting = threading.Event()

    def timeout_s(self, wait: Wait) -> float | None:
        self.waiting.set()
        return super().timeout_s(wait)


def test_what_waits_is_not_touched(backend: Any, open_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither read nor claimed nor written, whether a message or a time is awaited."""
    first, second = open_runner(backend), open_runner(backend)
    for name in ("a", "b"):
        first.start(asking, 1, instance_id=name)
        first.start(napping, 1, instance_id=f"nap-{name}")
    for name in ("claim", "load", "commit", "header"):
        monkeypatch.setattr(backend, name, None)
    assert second.recover([asking, napping]) == []


def test_what_comes_to_rest_is_given_back_while_the_call_stays(backend: Any, open_runner: Any) -> None:
    """It is nobody's while it waits; the call hears of the message that another runner takes in for it."""
    stays, other = open_runner(backend, clock=(watched := Waiting()), poll="1ms"), open_runner(backend, clock=Waiting())
    other.client.start(asking, 1, instance_id="i")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(stays.recover, [asking], wait=True)
        assert watched.waiting.wait(20)
        assert backend.header("i").held_by == ""
        other.client.signal("i", "answer", 2)
        assert [s.state for s in future.result(20)] == ["completed"]


def test_a_message_through_the_same_runner_is_heard_at_once(backend: Any, open_runner: Any) -> None:
    """The call that waits does not go by its poll alone, which is an hour here."""
    runner = open_runner(backend, clock=(watched := Waiting()), poll="1h")
    runner.client.start(asking, 1, instance_id="i")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.recover, [asking], wait=True)
        assert watched.waiting.wait(20)
        runner.client.signal("i", "answer", 2)
        assert [(s.instance_id, s.state) for s in future.result(20)] == [("i", "completed")]


def test_closing_ends_a_call_that_waits(backend: Any, open_runner: Any) -> None:
    """With Closed, although it works on nothing; the instance stays as it was."""
    from stepwell.errors import Closed

    runner = open_runner(backend, clock=(watched := Waiting()), poll="1h")
    runner.client.start(asking, 1, instance_id="i")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.recover, [asking], wait=True)
        assert watched.waiting.wait(20)
        runner.close()
        with pytest.raises(Closed):
            future.result(20)
    assert backend.header("i").state == "waiting"


@pytest.mark.parametrize("stay", [False, True])
def test_few_are_in_memory_at_a_time(
    backend: Any, open_runner: Any, monkeypatch: pytest.MonkeyPatch, stay: bool
) -> None:
    """Twenty are due, three at a time are worked on, and each of them goes as far as it can."""
    runner, most = open_runner(backend), 0
    enter = runner._room.enter

    def entering(*args: Any) -> None:
        nonlocal most
        enter(*args)
        most = max(most, len(runner._room._working))

    runner.client.start_many(both, list(range(20)))
    monkeypatch.setattr(claiming, "AT_ONCE", 3)
    monkeypatch.setattr(runner._room, "enter", entering)
    found = runner.recover([both], wait=stay)
    assert (most, len(found), {s.state for s in found}) == (3, 20, {"completed" if stay else "waiting"})


@workflow
def both(x: int) -> int:
    y = plain(x)
    delay("8h")
    return plain(y)


def test_the_next_time_is_kept_by_the_store_alone(backend: Any, open_runner: Any, clock: VirtualClock) -> None:
    """A call that stays sleeps until the first is due, then until the next."""
    runner, before = open_runner(backend), clock.now
    for name in ("a", "b"):
        runner.client.start(napping, 1, instance_id=name)
        clock.advance("1h")
    assert {s.state for s in runner.recover([napping], wait=True)} == {"completed"}
    assert (clock.now - before).total_seconds() == 9 * 3600


def test_the_async_twin_stays_too(backend: Any, clock: VirtualClock) -> None:
    """Through every delay."""

    async def main() -> list[str]:
        async with AsyncCheckpointingRunner(backend, clock=clock) as runner:
            await runner.client.start_many(both, [1, 2])
            return [status.state for status in await runner.recover([both], wait=True)]

    assert asyncio.run(main()) == ["completed", "completed"]


@pytest.mark.broken_store
@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("spoil", ["UPDATE instance SET image = x'c1c1'", "UPDATE journal SET output = NULL"])
def test_what_cannot_be_read_is_taken_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, stay: bool
) -> None:
    """It is due all the time, does not keep the call busy or the others from their turn, and is given back."""
    monkeypatch.setattr(claiming, "AT_ONCE", 1)
    with SqliteBackend(tmp_path / "runs.db") as backend, CheckpointingRunner(backend) as runner:
        for name in ("bad", "good"):
            runner.start(asking, 1, instance_id=name)
            runner.client.signal(name, "answer", 2)
        with closing(backend.connect()) as connection:
            number = backend.header("bad").instance  # type: ignore[union-attr]
            connection.execute(f"{spoil} WHERE {'id' if 'image' in spoil else 'instance'} = ?", (number,))
        found = {s.instance_id: s for s in runner.recover([asking], wait=stay)}
        assert {name: s.state for name, s in found.items()} == {"bad": "running", "good": "completed"}
        assert "bad" in found["bad"].detail or "journal" in found["bad"].detail
        assert backend.header("bad").held_by == ""  # type: ignore[union-attr]


def edited() -> Any:
    """The workflow ``asking`` with a step more at its end."""

    @workflow("asking")
    def more(x: int) -> int:
        return plain(add(x, signal("answer", int)))

    return more


def test_older_graphs_are_left_at_once(backend: Any, open_runner: Any) -> None:
    """The one that got its message ends; the one that only waits goes on waiting, under the graph of today."""
    runner = open_runner(backend)
    for name in ("a", "b"):
        runner.start(asking, 1, instance_id=name)
    runner.client.signal("b", "answer", 2)
    found = {s.instance_id: s.state for s in open_runner(backend).recover([edited()])}
    assert found == {"a": "waiting", "b": "completed"}
    assert {backend.header(name).fingerprint for name in "ab"} == {edited().fingerprint}


def test_a_newer_graph_is_left_alone(backend: Any, open_runner: Any) -> None:
    """Code that was rolled back does not take up what newer code has, and does not wait for it either."""
    old, new = open_runner(backend), open_runner(backend)
    old.start(asking, 1, instance_id="old")
    old.client.signal("old", "answer", 2)
    new.client.start(edited(), 1, instance_id="new")
    new.client.signal("new", "answer", 2)
    assert [s.instance_id for s in old.recover([asking], wait=True)] == ["old"]
    assert backend.header("new").state == "running"
