"""Offers in the reference store: a book of rows, and for each definition and set of tags a queue of the free ones.

As with runs, an entry of a queue counts only if its offer is still free at that moment. Nothing here locks or knows
whether a session is over; :mod:`.memory_store` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .base import Message, Offer, lost_message
from .memory_rows import Definition, Held, Queue, Run, Standing


class Offers:
    """All offers of a store. ``tell`` puts a message into a run's inbox."""

    def __init__(self, tell: Callable[[Run, Message], None]) -> None:
        self._tell = tell
        self._rows: dict[int, Standing] = {}
        self._ids = 0

    def __iter__(self) -> Iterator[Standing]:
        return iter(self._rows.values())

    def make(self, run: Run, offer: Offer) -> bool:
        """Offer a step, unless it is offered already."""
        if offer.step in run.offers:
            return False
        self._ids += 1
        row = self._rows[self._ids] = run.offers[offer.step] = Standing(self._ids, run, offer)
        self._queue(row)
        return True

    def claimed(self, held: Held, number: int) -> Standing | None:
        """Return an offer that this session has claimed."""
        return self._rows[number] if number in held.offers else None

    def claim(self, held: Held, definitions: Iterable[Definition], tags: frozenset[str]) -> Standing | None:
        """Claim the free offer of the lowest rank that this session can run."""
        queues = [queue for each in definitions for asked, queue in each.free.items() if asked <= tags]
        firsts = [first for queue in queues if (first := queue.first()) is not None]
        if not firsts:
            return None
        row = self._rows[min(firsts)[1]]
        row.session = held.session.id
        held.offers[row.id] = None
        return row

    def give_up(self, held: Held, number: int, *, lost: bool) -> None:
        """Let others have a claimed offer, or end it if it was called off or cost too many sessions."""
        row = self._rows[number]
        row.lost += lost
        if row.called_off or (lost and row.lost >= row.offer.lives):
            self.remove(row, held)
            self._tell(row.run, lost_message(row.offer.step))
        else:
            del held.offers[number]
            row.session = 0
            self._queue(row)

    def remove(self, row: Standing, held: Held | None) -> None:
        """Take an offer out; ``held`` is the session that has claimed it."""
        del self._rows[row.id], row.run.offers[row.offer.step]
        if held is not None:
            del held.offers[row.id]

    def move(self, run: Run) -> None:
        """Let those be found that belong to a run with a new definition."""
        for row in run.offers.values():
            self._queue(row)

    def _queue(self, row: Standing) -> None:
        free, tags, definition = row.run.definition.free, frozenset(row.offer.tags), row.run.definition.id
        if row.session:
            return
        if tags not in free:
            free[tags] = Queue(lambda rank_us, number: self._is_free(definition, rank_us, number))
        free[tags].push(row.offer.rank_us, row.id)

    def _is_free(self, definition: int, rank_us: int, number: int) -> bool:
        row = self._rows.get(number)
        return row is not None and not row.session and row.run.definition.id == definition
