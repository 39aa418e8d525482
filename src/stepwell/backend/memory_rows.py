"""What the reference store keeps: sessions, definitions, runs, and queues of runs by a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from stepwell.types import ENDED, State

from .base import PATIENT, Change, Creation, Entry, Holder, Message, Session

STALE_LEAST: Final = 64  # a queue shorter than this is not worth sweeping


class Queue:
    """Numbers of runs by a time, smallest first. ``counts`` tells an entry from a stale one."""

    __slots__ = ("_counts", "_heap", "_most")

    def __init__(self, counts: Callable[[int, int], bool]) -> None:
        self._counts = counts
        self._heap: list[tuple[int, int]] = []
        self._most = STALE_LEAST

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at_us: int, number: int) -> None:
        """Add a run, and drop what is stale as soon as that may be half of all."""
        heapq.heappush(self._heap, (at_us, number))
        if len(self._heap) > self._most:
            self._heap = sorted({entry for entry in self._heap if self._counts(*entry)})
            self._most = max(2 * len(self._heap), STALE_LEAST)

    def first(self) -> tuple[int, int] | None:
        """Return the smallest entry that counts, and leave it."""
        heap = self._heap
        while heap and not self._counts(*heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None


@dataclass(slots=True)
class Held:
    """A session as the store knows it. ``runs`` are the numbers it holds, in order of claiming."""

    session: Session
    holder: Holder
    until_us: int
    runs: dict[int, None] = field(default_factory=dict[int, None])


@dataclass(slots=True)
class Definition:
    id: int
    name: str
    fingerprint: str
    plan: bytes
    due: Queue


@dataclass(slots=True)
class Run:
    """One run of an instance. ``due_us`` counts only while it is not ended; ``replaced`` runs take no more writes.

    ``earlier`` is the run that it replaced.
    """

    number: int
    run: int
    made: Creation
    definition: Definition
    state: State
    updated_us: int
    ended_us: int | None
    due_us: int | None
    image: bytes | None
    journal: list[Entry]
    earlier: Run | None = None
    image_seq: int = 0
    result_seq: int = 0
    session: int = 0
    replaced: bool = False
    mail: list[Message] = field(default_factory=list[Message])
    known: set[str] = field(default_factory=set[str])

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def parked(self) -> bool:
        """Whether its last rest still says when it wants to be claimed."""
        return self.state in PATIENT and len(self.journal) == self.image_seq and not self.mail

    def admits(self, change: Change) -> bool:
        """Whether the change continues this run's journal without a gap and brings no message twice."""
        seq = change.base
        if self.replaced or len(self.journal) != seq:
            return False
        for entry in change.entries:
            seq += 1
            if entry.seq != seq:
                return False
        return not change.message_ids or self.known.isdisjoint(change.message_ids)
