"""Instances left in every state there is, for tests that take them elsewhere and go on.

Each story begins an instance, leaves it somewhere, and knows how it ends. The tasks write down that they ran and with
which idempotency key, so that whoever goes on can be compared with whoever stays.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

from stepwell import (
    Again,
    Done,
    Retry,
    StepwellError,
    branch,
    delay,
    inject,
    loop,
    parallel,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Change, Rest
from stepwell.engine import facts as f
from stepwell.engine.change import compare
from stepwell.engine.frontier import to_image
from stepwell.runtime.live import Live, frontier_of
from stepwell.testing import VirtualClock

ID = "story"


class Size(Enum):
    SMALL = 1
    LARGE = (2, 3)


@dataclass(frozen=True)
class Parcel:
    """A value with something of every kind that one codec writes otherwise than the other."""

    number: int
    content: bytes = b"\x00\xff"
    marks: frozenset[str | bytes] = frozenset({"a", b"a", "\ud800"})
    parts: tuple[int, ...] = (1, 2**70)
    price: Decimal = Decimal("1.50")
    weight: float = float("inf")
    size: Size = Size.LARGE
    sent: dt.datetime = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=dt.UTC)
    more: dict[Any, Any] = field(default_factory=lambda: {1: [b"x"], ("k",): {"!type": "x"}})


class Call(NamedTuple):
    path: str
    attempt: int
    key: str


class Ledger:
    """What the tasks did. ``mended``: the failing one fails no more. ``inside`` is called by the task that asks."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cursors: list[object] = []
        self.mended = False
        self.inside: Callable[[], object] = bool

    def note(self) -> None:
        context = task_context()
        self.calls.append(Call(context.path, context.attempt, context.idempotency_key))

    @property
    def steps(self) -> list[tuple[str, int]]:
        """Which steps ran, in an order that does not depend on the threads they ran in."""
        return sorted(call[:2] for call in self.calls)


# --- tasks ---------------------------------------------------------------------------------------------


@task
def pack(number: int, ledger: Ledger = inject()) -> Parcel:
    ledger.note()
    return Parcel(number)


@task
def weigh(*parcels: Parcel, ledger: Ledger = inject()) -> int:
    ledger.note()
    assert all(parcel == Parcel(parcel.number) for parcel in parcels)
    return sum(parcel.number for parcel in parcels)


@task(retry=Retry(attempts=3, delay="1h"))
def shaky(parcel: Parcel, ledger: Ledger = inject()) -> Parcel:
    ledger.note()
    context = task_context()
    ledger.cursors.append(context.cursor)
    context.heartbeat((context.attempt, b"seen"))
    if context.attempt < 3:
        raise OSError("not this time")
    return parcel


@task
def broken(parcel: Parcel, ledger: Ledger = inject()) -> Parcel:
    ledger.note()
    if not ledger.mended:
        raise ValueError("it does not fit")
    return parcel


@task(delivery="at_most_once")
def once(parcel: Parcel, ledger: Ledger = inject()) -> Parcel:
    ledger.note()
    raise KeyboardInterrupt


@task
def looking(parcel: Parcel, ledger: Ledger = inject()) -> Parcel:
    """Let the test look at its own instance while it runs."""
    ledger.note()
    ledger.inside()
    return parcel


@task
def one_more(parcel: Parcel, ledger: Ledger = inject()) -> Again[Parcel] | Done[Parcel]:
    ledger.note()
    return Again(Parcel(parcel.number + 1)) if parcel.number < 5 else Done(parcel)


# --- workflows -----------------------------------------------------------------------------------------


@workflow
def napping(number: int) -> int:
    parcel = pack(number)
    delay("8h")
    return weigh(parcel)


@workflow
def asking(number: int) -> int:
    parcel = pack(number)
    delay("1h")
    first = signal("answer", Parcel)
    delay("1h", name="again")
    return weigh(parcel, first, signal("answer", Parcel))


@workflow
def retrying(number: int) -> int:
    return weigh(shaky(pack(number)))


@workflow
def failing(number: int) -> int:
    return weigh(broken(pack(number)))


@workflow
def paying(number: int) -> int:
    return weigh(once(pack(number)))


@workflow
def observed(number: int) -> int:
    return weigh(looking(pack(number)))


@workflow
def forking(number: int) -> int:
    parcel = pack(number)
    with parallel():
        with branch("done"):
            left = pack(number)
        with branch("failing"):
            shaky(pack(number))
        with branch("asleep"):
            delay("90m")
            middle = pack(2)
        with branch("asked"):
            right = signal("answer", Parcel)
    return weigh(parcel, left, middle, right)


@workflow
def slowly(parcel: Parcel) -> Again[Parcel] | Done[Parcel]:
    delay("1h")
    return one_more(parcel)


@workflow
def looping(number: int) -> int:
    return weigh(loop(slowly, pack(number), max_iterations=9))


@workflow
def nested(parcel: Parcel) -> Parcel:
    before = shaky(parcel)
    delay("1h")
    return looking(before)


@workflow
def nesting(number: int) -> int:
    parcel = pack(number)
    return weigh(parcel, nested(parcel))


def with_one_more_step() -> Any:
    @workflow
    def napping(number: int) -> int:
        parcel = pack(number)
        delay("8h")
        return weigh(parcel, shaky(parcel))

    return napping


napping_longer = with_one_more_step()


# --- stories ----------------------------------------------------------------------------------------------


class World(NamedTuple):
    """A runner on a store, and what its tasks write down."""

    runner: Any
    clock: VirtualClock
    ledger: Ledger


@dataclass(frozen=True)
class Story:
    """``begin`` leaves the instance in ``state``; ``finish`` says what it comes to."""

    name: str
    workflow: Any
    state: str
    begin: Callable[[World], object]
    finish: Callable[[World], object]


def outcome(call: Callable[[], object]) -> object:
    """Return what a call gives, or in words what it raises."""
    try:
        return call()
    except StepwellError as error:
        return f"{type(error).__name__}: {error} <- {error.__cause__!r}"


def resumed(made: Any) -> Callable[[World], object]:
    return lambda world: outcome(lambda: world.runner.resume(made, ID))


def started(made: Any) -> Callable[[World], object]:
    return lambda world: world.runner.start(made, 3, instance_id=ID)


def asked_early(world: World) -> None:
    """Two messages come before anybody waits for one."""
    started(asking)(world)
    for number in (10, 20):
        world.runner.client.signal(ID, "answer", Parcel(number), signal_id=str(number))


def paused(world: World) -> None:
    started(napping)(world)
    world.runner.client.pause(ID, reason="lunch", by="ann")


def unpaused(world: World) -> object:
    world.runner.client.resume(ID, by="bob")
    return resumed(napping)(world)


def cancelled(world: World) -> None:
    started(napping)(world)
    world.runner.client.cancel(ID, reason="enough", by="ann")


def cut_off(world: World) -> None:
    try:
        world.runner.run(paying, 3, instance_id=ID)
    except KeyboardInterrupt:
        outcome(lambda: world.runner.resume(paying, ID))


def failed(world: World) -> None:
    outcome(lambda: world.runner.run(failing, 3, instance_id=ID))


def mended(world: World) -> object:
    world.ledger.mended = True
    return outcome(lambda: world.runner.run(failing, 3, instance_id=ID, on_conflict="restart_if_failed"))


def forked(world: World) -> None:
    started(forking)(world)
    world.clock.advance("1h")
    world.runner.recover([forking])


def answered(world: World) -> object:
    world.runner.client.signal(ID, "answer", Parcel(7))
    return resumed(forking)(world)


def two_turns(world: World) -> None:
    started(looping)(world)
    for _ in range(2):
        world.clock.advance("1h")
        world.runner.recover([looping])


def in_the_child(world: World) -> None:
    started(nesting)(world)
    for _ in range(2):
        world.clock.advance("4h")
        world.runner.recover([nesting])


def moved_on(world: World) -> None:
    """Let an instance go on under another graph, as a runner that knows that graph would."""
    started(napping)(world)
    room = world.runner._room
    loaded, new = room.backend.load(ID), room.prepare(napping_longer)
    old = room.stored_plan("napping", loaded.header.fingerprint)
    state = frontier_of(old, loaded)
    facts = [f.decode(entry.facts) for entry in room.backend.history(loaded.header.instance, 0, 99)]
    asked: Any = compare(old, new.plan, state, facts)
    rows = Live.rows(new.plan, state, [asked], world.clock.now_us())
    rest = Rest(state.status(0), to_image(state), state.next_due_us(), definition=new.definition)
    change = Change(loaded.header.instance, loaded.header.seq, rows, rest=rest)
    assert room.backend.commit(None, [change]) == ["done"]


STORIES = [
    Story("delay", napping, "waiting", started(napping), resumed(napping)),
    Story("messages", asking, "waiting", asked_early, resumed(asking)),
    Story("backoff", retrying, "waiting", started(retrying), resumed(retrying)),
    Story("paused", napping, "paused", paused, unpaused),
    Story("held", paying, "held", cut_off, resumed(paying)),
    Story("failed", failing, "failed", failed, resumed(failing)),
    Story("mended", failing, "failed", failed, mended),
    Story("cancelled", napping, "cancelled", cancelled, resumed(napping)),
    Story("completed", observed, "completed", started(observed), resumed(observed)),
    Story("fork", forking, "waiting", forked, answered),
    Story("loop", looping, "waiting", two_turns, resumed(looping)),
    Story("child", nesting, "waiting", in_the_child, resumed(nesting)),
    Story("moved", napping_longer, "waiting", moved_on, resumed(napping_longer)),
]
