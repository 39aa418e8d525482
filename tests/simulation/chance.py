"""Where the decisions of a schedule come from: all of them from one seed.

What happens next is drawn from one stream. Whether something goes wrong is drawn apart from it, anew for each occasion
and from its number alone. So a schedule can be told again with fewer faults, which is how a failing one is made short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

_MASK: Final = 2**64 - 1


class Fault(NamedTuple):
    """Something that went wrong: on the how manieth occasion, what, and where."""

    nth: int
    kind: str
    where: str


class Chance:
    """The decisions of one schedule.

    Attributes:
        rates: how likely each kind of fault is on an occasion that knows it.
        only: the numbers of the occasions on which something may go wrong; ``None``: all.
        faults: what went wrong so far.
    """

    def __init__(self, seed: int, only: Collection[int] | None = None) -> None:
        self.seed, self.only = seed, only
        self.rng = Random(seed)
        self.rates: Mapping[str, float] = {}
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.calm = False
        self._occasions = 0

    # --- what happens next ---

    def below(self, most: int) -> int:
        return int(self.rng.random() * most)

    def between(self, least: int, most: int) -> int:
        return least + self.below(most - least + 1)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def maybe(self, likely: float) -> bool:
        return self.rng.random() < likely

    def span_us(self, most_us: int) -> int:
        """Return a span of time, short ones as often as long ones."""
        return int(most_us ** self.rng.random())

    # --- what goes wrong ---

    def fault(self, kinds: Sequence[str], where: str) -> str:
        """Say what goes wrong on this occasion: one of these kinds, or ``""``."""
        self._occasions += 1
        if self.calm or (self.only is not None and self._occasions not in self.only):
            return ""
        drawn = _mix(self.seed, self._occasions)
        for kind in kinds:
            drawn -= self.rates.get(kind, 0.0)
            if drawn < 0:
                self.faults.append(Fault(self._occasions, kind, where))
                self.counts[kind] += 1
                return kind
        return ""


def _mix(seed: int, nth: int) -> float:
    """Return a number from 0 to 1 for an occasion, unlike that of any other."""
    x = (seed * 0x9E3779B97F4A7C15 + nth * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & _MASK
    for _ in range(2):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) / 2**64
