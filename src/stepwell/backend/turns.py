"""Who is claimed next: a queue for each definition, served in turn, and lanes that only so many may pass at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

Held: TypeAlias = Mapping[tuple[str, str], int]
"""How many instances are held, by workflow and lane."""


class Due(NamedTuple):
    """An instance that is due; they sort as they are claimed."""

    due_us: int
    number: int
    lane: str


class Room:
    """How many more instances may be held in each lane. ``held`` is asked for once, and only if it matters."""

    def __init__(self, most: Mapping[int, int], workflow: Callable[[int], str], held: Callable[[], Held]) -> None:
        self._most, self._workflow, self._held = most, workflow, held
        self._counts: Counter[tuple[str, str]] | None = None

    def limits(self, definition: int) -> bool:
        return definition in self._most

    def left(self, definition: int, lane: str) -> int:
        """Return how many more instances of a limited definition may be held in this lane."""
        return max(self._most[definition] - self._count()[self._workflow(definition), lane], 0)

    def take(self, definition: int, lane: str) -> bool:
        """Return whether one more may be held, and count it."""
        if not self._most:
            return True
        if self.limits(definition) and not self.left(definition, lane):
            return False
        self._count()[self._workflow(definition), lane] += 1
        return True

    def fitting(self, definition: int, rows: Iterable[Due]) -> list[Due]:
        """Return of each lane as many of the first as it has room for."""
        chosen: Counter[str] = Counter()
        fitting: list[Due] = []
        for row in rows:
            if chosen[row.lane] < self.left(definition, row.lane):
                chosen[row.lane] += 1
                fitting.append(row)
        return fitting

    def _count(self) -> Counter[tuple[str, str]]:
        if self._counts is None:
            self._counts = Counter(self._held())
        return self._counts


def in_turn(queues: Mapping[int, Sequence[Due]], limit: int, room: Room) -> list[int]:
    """Return the numbers of up to ``limit`` instances: the first of each queue, the second of each, and so on."""
    turns = sorted((turn, row, definition) for definition, rows in queues.items() for turn, row in enumerate(rows))
    found: list[int] = []
    for _, row, definition in turns:
        if len(found) >= limit:
            break
        if room.take(definition, row.lane):
            found.append(row.number)
    return found
