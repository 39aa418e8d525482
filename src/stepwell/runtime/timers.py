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

    Most moments never come to pass: the body ends before its timeout, the message before its deadline. ``awaited`` says
    of an entry whether it still counts; the others are thrown out when they may outnumber it, so that an entry pays
    next to nothing and the heap stays in proportion to what is open.
    """

    def __init__(self, awaited: Callable[[int, Live, What], bool]) -> None:
        self._awaited = awaited
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

    def next_us(self) -> int | None:
        """Return the next moment, ``None`` if there is none."""
        return self.heap[0][0] if self.heap else None

    def take(self, now_us: int) -> Iterator[tuple[Live, What]]:
        """Take out, one after the other, what is due and still awaited."""
        while self.heap and self.heap[0][0] <= now_us:
            due_us, _, live, what = heapq.heappop(self.heap)
            if self._awaited(due_us, live, what):
                yield live, what
