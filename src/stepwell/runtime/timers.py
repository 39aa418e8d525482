"""What a drive has to do at given moments, the next one first: due steps, timeouts, and the grace of a cancel."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, TypeAlias

from stepwell.flow.plan import Key

from .invoke import Job
from .live import Live

_SLACK: Final = 64

What: TypeAlias = Key | Job | None
"""A step that is due, a job whose timeout ends, or ``None``: a cancelled instance's grace is over."""


class Timers:
    """Moments of many instances in one heap.

    Most moments never come to pass: the body ends before its timeout, the message before its deadline. Entries that
    do not count any more are thrown out when they may outnumber the others, so that an entry pays next to nothing and
    the heap stays in proportion to what is open. ``works_on`` says whether an instance is still worked on here.
    """

    def __init__(self, works_on: Callable[[Live], bool]) -> None:
        self._works_on = works_on
        self.heap: list[tuple[int, int, Live, What]] = []
        self._order = count()
        self._limit = _SLACK

    def add(self, due_us: int, live: Live, what: What) -> None:
        heap = self.heap
        if len(heap) >= self._limit:
            heap[:] = [entry for entry in heap if self._awaited(entry[0], entry[2], entry[3])]
            heapq.heapify(heap)
            self._limit = 2 * len(heap) + _SLACK
        heapq.heappush(heap, (due_us, next(self._order), live, what))

    def _awaited(self, due_us: int, live: Live, what: What) -> bool:
        if not self._works_on(live):
            return False
        if isinstance(what, Job):
            return live.flights.get(what.key) is what
        step = live.state.steps.get(what) if what is not None else None
        return step.due_us == due_us if step is not None else what is None and bool(live.flights)

    def due(self, now_us: Callable[[], int]) -> bool:
        """Say whether a moment has come; the clock is looked at only if there is one."""
        return bool(self.heap) and self.heap[0][0] <= now_us()

    def next_us(self) -> int | None:
        """Return the next moment, ``None`` if there is none."""
        return self.heap[0][0] if self.heap else None

    def take(self, now_us: int) -> Iterator[tuple[Live, What]]:
        """Take out, one after the other, what is due and still awaited."""
        while self.heap and self.heap[0][0] <= now_us:
            due_us, _, live, what = heapq.heappop(self.heap)
            if self._awaited(due_us, live, what):
                yield live, what
