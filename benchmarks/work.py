"""What every contestant has to do: the same value, the same bodies, the same check of the outcome.

A step copies its value and counts it up, so that a contestant that skips, repeats or mixes up steps gives a wrong
number and is shown as wrong instead of fast. The checks stand outside the timed part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST_S = 0.2  # short work is repeated for at least this long, and the mean is taken

Value = dict[str, Any]

# 200 bytes of compact JSON.
VALUE: Value = {
    "n": 0,
    "order": "2f1c7d0a-9a51-4c0e-8f6c-5a3c1b7e9d24",
    "customer": "Ada Byron",
    "amount": 129.95,
    "paid": True,
    "tags": ["eu", "express", "gift"],
    "note": "leave it with the neighbours at number 12, please ...",
}


def step(value: Value) -> Value:
    return {**value, "n": value["n"] + 1}


class Seen:
    """When the bodies of this process ran, on a clock that all processes share."""

    at_s: list[float] = []

    @classmethod
    def take(cls) -> list[float]:
        found, cls.at_s = cls.at_s, []
        return found


def seen(value: Value) -> Value:
    """A step that notes when it runs."""
    Seen.at_s.append(time.monotonic())
    return step(value)


async def step_async(value: Value) -> Value:
    return {**value, "n": value["n"] + 1}


def total(values: Sequence[Value]) -> int:
    return sum(value["n"] for value in values)


def check(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"wrong result: {found!r:.80} instead of {wanted!r:.80}")


def check_value(found: Value, steps: int) -> None:
    """Check what a chain or loop of so many steps made of :data:`VALUE`."""
    check(found, {**VALUE, "n": steps})


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def us_each(call: Callable[[], object], units: int) -> float:
    """Return the mean microseconds per unit of calls that do ``units`` units each, over at least ``LEAST_S``."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < LEAST_S:
        call()
        calls += 1
    return took / calls / units * 1e6


def percentiles_us(samples: Sequence[float]) -> dict[str, float]:
    """Return the 50th and 99th percentile, in microseconds, of samples in seconds."""
    ordered = sorted(samples)
    return {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] * 1e6 for p in (50, 99)}
