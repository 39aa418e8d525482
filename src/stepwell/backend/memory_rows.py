"""What the reference store keeps: sessions, definitions, runs, and queues of runs by a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from stepwell.types import ENDED, State

from .base import PATIENT, Change, Creation, Entry, Filter, Header, Holder, Message, Offer, Session

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

    def due(self, until_us: int, most: int, fits: Callable[[int], bool]) -> list[tuple[int, int]]:
        """Return the smallest entries up to a time whose numbers fit, and leave them."""
        found: list[tuple[int, int]] = []
        passed: list[tuple[int, int]] = []
        while len(found) < most and (entry := self.first()) is not None and entry[0] <= until_us:
            heapq.heappop(self._heap)
            if entry in passed[-1:]:
                continue  # the same twice
            passed.append(entry)
            if fits(entry[1]):
                found.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found

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
    """A session as the store knows it: the numbers of the runs and of the offers it holds, in order of claiming."""

    session: Session
    holder: Holder
    until_us: int
    serves: frozenset[int] = frozenset()
    runs: dict[int, None] = field(default_factory=dict[int, None])
    offers: dict[int, None] = field(default_factory=dict[int, None])


@dataclass(slots=True)
class Definition:
    """A plan, and what waits for somebody who knows it: runs by lane and offers by what they ask for."""

    id: int
    name: str
    fingerprint: str
    plan: bytes
    due: dict[str, Queue] = field(default_factory=dict[str, Queue])
    free: dict[frozenset[str], Queue] = field(default_factory=dict[frozenset[str], Queue])


@dataclass(slots=True)
class Run:
    """One run of an instance. ``due_us`` counts only while it is not ended; ``replaced`` runs take no more writes.

    ``earlier`` is the run that it replaced. ``lost`` sessions held it when its last entry was ``lost_seq``.
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
    avoid: str = ""
    lost: int = 0
    lost_seq: int = 0
    offers: dict[bytes, Standing] = field(default_factory=dict[bytes, "Standing"])

    @property
    def suspect(self) -> int:
        return self.lost if self.lost_seq == len(self.journal) else 0

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


@dataclass(slots=True, eq=False)
class Standing:
    """An offer as it stands: who has claimed it, and how many sessions were lost with it."""

    id: int
    run: Run
    offer: Offer
    session: int = 0
    lost: int = 0
    called_off: bool = False


def header_of(run: Run, held: Held | None) -> Header:
    """Return the row of a run as others see it; ``held`` is the session that counts as its holder."""
    return Header(
        instance=run.number,
        instance_id=run.made.instance_id,
        run=run.run,
        workflow=run.definition.name,
        fingerprint=run.definition.fingerprint,
        state=run.state,
        seq=len(run.journal),
        created_us=run.made.at_us,
        updated_us=run.updated_us,
        ended_us=run.ended_us,
        due_us=None if run.ended else run.due_us,
        input_digest=run.made.input_digest,
        result_seq=run.result_seq,
        held_by=held.holder.name if held is not None else "",
        mail=len(run.mail),
        labels=run.made.labels,
        trace=run.made.trace,
        session=held.session.id if held is not None else 0,
        definition=run.definition.id,
        origin=run.made.origin,
        suspect=run.suspect,
        offered=len(run.offers),
        lane=run.made.lane,
    )


def matches(run: Run, where: Filter) -> bool:
    return (
        (not where.states or run.state in where.states)
        and (not where.workflow or run.definition.name == where.workflow)
        and where.labels.items() <= run.made.labels.items()
        and (where.created_from_us is None or run.made.at_us >= where.created_from_us)
        and (where.created_to_us is None or run.made.at_us < where.created_to_us)
        and not (where.unfinished and run.ended)
    )
