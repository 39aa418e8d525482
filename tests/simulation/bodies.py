"""The workflows of the simulation, and the outside world in which their tasks leave their traces.

Each has a result that follows from its input alone, so that whatever happened on the way it is the same as that of a
run that nothing disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from stepwell import (
    Again,
    Done,
    Retry,
    Workflow,
    delay,
    inject,
    loop,
    parallel,
    route,
    signal,
    task,
    task_context,
    workflow,
)


class Outside(Protocol):
    """What tasks do to the world."""

    def start(self) -> None:
        """An attempt begins."""

    def effect(self) -> None:
        """Its effect happens."""

    def pay(self, cents: int) -> None:
        """Money moves, once for each idempotency key."""

    def die(self) -> None:
        """The process ends, as under ``kill -9``."""

    def pause(self) -> None:
        """Time passes in the middle of a body."""


class Nowhere:
    """An outside world that takes no notice."""

    def start(self) -> None: ...

    def effect(self) -> None: ...

    def pay(self, cents: int) -> None: ...

    def die(self) -> None: ...

    def pause(self) -> None: ...


def _done(outside: Outside, value: int) -> int:
    outside.start()
    outside.pause()
    outside.effect()
    return value


@task
def double(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, 2 * x)


@task(run_in="inline")
def add_one(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 1)


@task
async def add_two(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 2)


@task
def part(x: int, number: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x * 10 + number)


@task(priority=1)
def urgent(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 100)


@task(tags=["gpu"])
def shade(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 7)


@task(tags=["gpu"], delivery="at_most_once")
def shade_once(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 9)


@task
def total(parts: list[int], *, outside: Outside = inject()) -> int:
    return _done(outside, sum(parts))


@task
def listed(parts: list[int], *, outside: Outside = inject()) -> list[int]:
    _done(outside, 0)
    return parts


@task(retry=Retry(attempts=4, delay="300ms", factor=2, max_delay="2s"))
def flaky(x: int, *, outside: Outside = inject()) -> int:
    outside.start()
    if task_context().attempt < 3:
        raise ConnectionError("not yet")
    outside.effect()
    return x + 3


@task(timeout="1s", attempts=3)
def timed(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 4)


@task(delivery="at_most_once")
def once(x: int, *, outside: Outside = inject()) -> int:
    return _done(outside, x + 5)


@task
def pay(x: int, *, outside: Outside = inject()) -> int:
    outside.start()
    outside.pay(x)
    outside.pause()
    outside.effect()
    return x


@task
def walk(x: int, *, outside: Outside = inject()) -> int:
    outside.start()
    context = task_context()
    done = context.cursor
    for at in range(done if isinstance(done, int) else 0, x % 4 + 2):
        outside.pause()
        context.heartbeat(at + 1)
    outside.effect()
    return x + 6


@task
def poisonous(x: int, *, outside: Outside = inject()) -> int:
    outside.start()
    outside.die()
    return x


@task
def exits(x: int, *, outside: Outside = inject()) -> int:
    outside.start()
    if task_context().attempt < 2:
        raise SystemExit(3)
    outside.effect()
    return x + 8


@task
def small(x: int, *, outside: Outside = inject()) -> bool:
    outside.start()
    return x % 2 == 0


@task
def grow(x: int, *, outside: Outside = inject()) -> Again[int] | Done[int]:
    outside.start()
    return Done(x) if x > 40 else Again(2 * x + 1)


# --- workflows -------------------------------------------------------------------------------------


@workflow
async def chain(x: int) -> int:
    a = double(x)
    b = add_one(a)
    c = await add_two(b)
    return pay(c)


@workflow
def wide(x: int) -> int:
    with parallel():
        parts = [part(x, number) for number in range(7)]
        parts.append(urgent(x))
    return total(parts)


@workflow
def nested(x: int) -> int:
    with parallel():
        a = wide(x)
        b = flaky(x)
        c = pay(x)
    return total([a, b, c])


@workflow
def routed(x: int) -> int:
    even = small(x)
    delay("2s", name="cooling")
    return route(even, {True: lambda: wide(x), False: lambda: double(x)})


@workflow
def looping(x: int) -> int:
    grown = loop(grow, x, max_iterations=20)
    return flaky(grown)


@workflow
def slow(x: int) -> int:
    with parallel():
        a = timed(x)
        b = walk(x)
    return total([a, b])


@workflow
def signalled(x: int) -> list[int]:
    first = signal("go", int)
    with parallel():
        a = part(first, x)
        second = signal("go", int)
    third = signal("go", int)
    return listed([x, a, first, second, third])


@workflow
def careful(x: int) -> int:
    a = once(x)
    with parallel():
        b = once(a)
        c = part(a, 1)
        d = part(a, 2)
    return total([b, c, d])


@workflow
def tagged(x: int) -> int:
    with parallel():
        a = shade(x)
        b = shade_once(x)
        c = part(x, 1)
    return total([a, b, c])


@workflow
def capped(x: int) -> int:
    return pay(double(x))


@workflow
def poison(x: int) -> int:
    with parallel():
        a = part(x, 1)
        b = poisonous(x)
        c = part(x, 2)
    return total([a, b, c])


@workflow
def exiting(x: int) -> int:
    with parallel():
        a = exits(x)
        b = part(x, 1)
    return total([a, b])


@workflow
def sleeper(x: int) -> int:
    delay("30d", name="night")
    return double(x)


@workflow
def foreign(x: int) -> int:
    return double(x)


@workflow
def edited(x: int) -> int:
    a = double(x)
    delay("4s", name="night")
    b = add_one(a)
    delay("4s", name="another night")
    return pay(b)


@workflow("edited")
def edited_since(x: int) -> int:
    """The same in a later version, which nothing that was begun by the earlier one can go on under."""
    a = part(x, 1)
    delay("4s", name="night")
    return pay(a)


SIGNALS: Final = 3


SERVED: Final[tuple[Workflow[Any, Any], ...]] = (
    chain, wide, nested, routed, looping, slow, signalled, careful, tagged, capped, poison, exiting, sleeper,
)  # fmt: skip
VERSIONS: Final[tuple[Workflow[Any, Any], ...]] = edited, edited_since
"""Of one workflow, the older one first; a worker has the code of one of them."""

KNOWN: Final[dict[str, Callable[[int], object]]] = {
    "signalled": lambda x: [x, x, 0, 1, 2],  # its three signals bring 0, 1 and 2
    "poison": lambda x: 21 * x + 3,  # somebody says that the poisonous step gave x
    "exiting": lambda x: 11 * x + 9,
}
"""What those come to that need somebody, or a second attempt."""
