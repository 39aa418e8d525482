"""Many clients at once on one instance that a runner works on: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import threading
from contextlib import suppress
from random import Random

import pytest

from stepwell import Again, Done, StepwellError, loop, signal, task, workflow
from stepwell.runtime.client import WorkflowClient

from .client_worlds import ID, World

SIGNALS = 24
SENDERS = 3


@task
def adds(total: tuple[int, ...], got: int) -> Again[tuple[int, ...]] | Done[tuple[int, ...]]:
    total = (*total, got)
    return Done(total) if len(total) == SIGNALS else Again(total)


@workflow
def turn(total: tuple[int, ...]) -> Again[tuple[int, ...]] | Done[tuple[int, ...]]:
    return adds(total, signal("number", int))


@workflow
def collecting(total: tuple[int, ...]) -> tuple[int, ...]:
    return loop(turn, total, max_iterations=SIGNALS)


def ask(client: WorkflowClient, random: Random) -> None:
    """Pause or resume, as it comes; an instance that has ended takes neither."""
    with suppress(StepwellError):
        if random.random() < 0.5:
            client.pause(ID, by="somebody")
        else:
            client.resume(ID, by="somebody")


def send(client: WorkflowClient, numbers: list[int], random: Random) -> None:
    """Send each number, some of them twice under one id, with requests in between."""
    for number in numbers:
        client.signal(ID, "number", number, signal_id=f"n{number}")
        with suppress(StepwellError):
            client.signal(ID, "number", number, signal_id=f"n{number}")
        ask(client, random)


def drive(world: World, over: threading.Event) -> None:
    """Go on with the instance whenever it can, until it has ended."""
    while not over.is_set():
        with suppress(StepwellError):
            world.client.resume(ID)
        with suppress(StepwellError):
            world.runner.resume(collecting, ID)
        if world.client.status(ID).finished:
            over.set()


@pytest.mark.parametrize("seed", range(3))
def test_every_signal_counts_once_whatever_crosses(world: World, seed: int) -> None:
    """Three clients send and pause, a runner works, comes to rest and is resumed; the sum is what was sent."""
    world.runner.start(collecting, (), instance_id=ID)
    numbers, over = list(range(SIGNALS)), threading.Event()
    Random(seed).shuffle(numbers)
    senders = [
        threading.Thread(target=send, args=(world.client, numbers[n::SENDERS], Random((seed, n).__hash__())))
        for n in range(SENDERS)
    ]
    worker = threading.Thread(target=drive, args=(world, over))
    for thread in (*senders, worker):
        thread.start()
    for thread in senders:
        thread.join(60)
    worker.join(60)
    over.set()
    assert sorted(world.client.result(ID, collecting)) == list(range(SIGNALS))
    came = [event for event in world.client.history(ID) if event.kind == "signal came"]
    assert len(came) == SIGNALS
