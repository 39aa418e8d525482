"""The async client: the same methods with the same parameters, and a loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, get_overloads

import pytest

from stepwell import InMemoryBackend, OptionError, StepwellError
from stepwell.runtime.client import WorkflowClient
from stepwell.runtime.client_async import AsyncWorkflowClient
from stepwell.types import Complete

from .client_worlds import ID, World


def public(client: type) -> set[str]:
    return {name for name, member in inspect.getmembers(client) if callable(member) and not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any, object, object]]:
    """Return names, kinds, defaults and annotations, without self."""
    found = list(inspect.signature(function).parameters.values())[1:]
    return [(p.name, p.kind, p.default, p.annotation) for p in found]


@pytest.mark.parametrize("name", sorted({"__init__"} | public(WorkflowClient) - {"over"}))
def test_the_twins_differ_in_nothing_but_await(name: str) -> None:
    """Parameters, overloads and what is returned are the same."""
    one, other = getattr(WorkflowClient, name), getattr(AsyncWorkflowClient, name)
    assert parameters(one) == parameters(other)
    assert [parameters(f) for f in get_overloads(one)] == [parameters(f) for f in get_overloads(other)]
    if name == "iterate":
        assert inspect.isasyncgenfunction(other)
        return
    assert inspect.iscoroutinefunction(other) is (name != "__init__")
    assert inspect.signature(one).return_annotation == inspect.signature(other).return_annotation
    assert name == "__init__" or f":meth:`WorkflowClient.{name}`" in (other.__doc__ or "")


def test_neither_has_a_method_of_its_own() -> None:
    """What one can do the other can."""
    assert public(WorkflowClient) == public(AsyncWorkflowClient)


@pytest.mark.parametrize("name", sorted(public(WorkflowClient)))
def test_every_method_is_explained(name: str) -> None:
    """With an example, but for the two that are no user's business."""
    text = inspect.getdoc(getattr(WorkflowClient, name)) or ""
    assert text
    assert "Example:" in text or name in ("over", "close")


def test_a_loop_looks_after_instances(world: World) -> None:
    """Every method once, awaited."""
    world.bring("held at a step")

    async def main() -> None:
        backend: Any = world.client._room.backend
        async with AsyncWorkflowClient(backend, clock=world.clock) as client:
            await client.decide(ID, "charge", Complete(41), by="ann")
            assert await client.task_result(ID, "charge") == 41
            await client.pause(ID, by="ann")
            await client.resume(ID, by="ann")
            assert (await client.status(ID)).state == "waiting"
            assert [type(r).__name__ for r in (await client.explain(ID)).reasons] == ["AwaitsSignal"]
            await client.cancel(ID)
            await client.retry(ID)
            data = await client.snapshot(ID)
            assert (await client.restore(data, instance_id="copy")).instance_id == "copy"
            started = await client.start(world.flows.quick, 1)
            many = await client.start_many(world.flows.quick, [1, 2])
            found = [status.instance_id async for status in client.iterate()]
            assert found == [many[1].instance_id, many[0].instance_id, started.instance_id, "copy", ID]
            assert [s.instance_id for s in await client.list(limit=1)] == found[:1]
            assert await client.count(workflow="quick") == 3
            assert [a.outcome for a in await client.attempts(ID)][:2] == ["interrupted", "decided"]
            assert (await client.history(ID, limit=1))[0].kind == "started"
            assert await client.stuck() == []
            assert await client.purge(keep=0) == 0
            await client.signal("copy", "answer", 1)
            assert await client.result("copy", world.flows.charging) == 41
            await client.delete("copy")
            with pytest.raises(TimeoutError):
                await client.result(ID, timeout=0)
        with pytest.raises(StepwellError, match="closed"):
            await client.status(ID)

    asyncio.run(main())


def test_the_loop_goes_on_while_a_result_is_waited_for(world: World) -> None:
    """The waiting coroutine leaves it to the one that brings the result about."""
    world.bring("at a signal")

    async def main() -> object:
        async with AsyncWorkflowClient(world.backend, clock=world.clock) as client:
            client._room.poll_us = 1_000
            waiting = asyncio.create_task(client.result(ID, world.flows.asking))
            await client.signal(ID, "answer", 5)
            await asyncio.to_thread(world.recover)
            return await waiting

    assert asyncio.run(main()) == 6


def test_a_shared_room_outlives_the_client(world: World) -> None:
    """What a runner gives out is closed with the runner."""

    async def main() -> None:
        client = AsyncWorkflowClient.over(world.runner._room)
        await client.close()
        assert await client.count() == 0

    asyncio.run(main())


def test_errors_come_through(world: World) -> None:
    """As they are raised by the sync client."""

    async def main() -> None:
        async with AsyncWorkflowClient(InMemoryBackend()) as client:
            with pytest.raises(OptionError):
                await client.list(limit=0)

    asyncio.run(main())
