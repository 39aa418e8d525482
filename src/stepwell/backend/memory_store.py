"""What every method of :class:`.memory.InMemoryBackend` stands on: the lock, who holds what, and how that ends.

A run is *held* while ``run.session`` names a session that still exists; ending a session is the one way to free what it
holds, and its offers with it. Due runs are found through a queue per definition and lane whose entries may be stale:
one counts only if the run is still free and still due at that moment, so nothing ever has to be taken out of the
middle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import RLock

from msgspec.structs import replace

from stepwell.errors import Closed, LeaseLost, OptionError

from .base import BROUGHT_BYTES, Change, Entry, Header, Loaded, Message, Session
from .liveness import is_dead
from .memory_offers import Offers
from .memory_rows import Definition, Held, Queue, Run, header_of


class MemoryStore:
    """The rows. Each public method of the backend is one use of :meth:`_open`, and nothing here locks by itself."""

    def __init__(self, lease_clock: Callable[[], int]) -> None:
        self._clock = lease_clock
        self._lock = RLock()
        self._closed = False
        self._writes: int = 0
        self._sessions: dict[int, Held] = {}
        self._definitions: list[Definition] = []
        self._runs: dict[int, Run] = {}
        self._last: dict[str, Run] = {}
        self._ended: dict[int, int] = {}  # of last runs, when they ended
        self._oldest: list[tuple[int, int]] | None = None  # the same sorted, the next to purge last; None: not sorted
        self._numbers = 0
        self._messages = 0
        self._session_ids = 0
        self._offers = Offers(self._tell)
        self._watchers: dict[object, Callable[[], None]] = {}

    def _open(self) -> AbstractContextManager[object]:
        if self._closed:
            raise Closed("this InMemoryBackend is closed; make a new one")
        return self._watched() if self._watchers else self._lock

    @contextmanager
    def _watched(self) -> Generator[None, None, None]:
        with self._lock:
            before = self._writes
            yield
            wakes = self._watchers.values() if self._writes != before else ()
        for wake in wakes:
            wake()

    def _live(self, session: Session) -> Held:
        held = self._sessions.get(session.id)
        if held is None or held.session.token != session.token:
            raise LeaseLost("this session was ended or taken over")
        return held

    def _over(self, held: Held) -> bool:
        return held.until_us <= self._clock() or is_dead(held.holder)

    def _holder_of(self, run: Run) -> Held | None:
        """Return the live session that holds the run, after ending one that is not live any more."""
        held = self._sessions.get(run.session)
        if held is None or not self._over(held):
            return held
        self._end(held, lost=True)
        return None

    def _hold(self, held: Held, run: Run) -> None:
        self._writes += 1
        held.runs[run.number] = None
        run.session = held.session.id

    def _drop_claim(self, run: Run) -> None:
        held = self._sessions.get(run.session)
        if held is not None:
            del held.runs[run.number]
        run.session = 0

    def _free(self, run: Run) -> None:
        """End a claim without a rest: whoever comes next has to look, unless the run is still parked as it was."""
        self._writes += 1
        self._drop_claim(run)
        run.due_us = run.due_us if run.parked else 0
        self._queue(run)

    def _end(self, held: Held, *, lost: bool) -> None:
        """End a session, by itself or ``lost``; the second is remembered of all that it had."""
        self._writes += 1
        for number in tuple(held.runs):
            run = self._runs[number]
            if lost:
                run.lost, run.lost_seq = run.suspect + 1, len(run.journal)
            self._free(run)
        for number in sorted(held.offers):
            self._offers.give_up(held, number, lost=lost)
        del self._sessions[held.session.id]

    def _end_others(self, held: Held) -> None:
        for other in [other for other in self._sessions.values() if other is not held and self._over(other)]:
            self._end(other, lost=True)

    def _drop_offers(self, run: Run) -> None:
        for row in tuple(run.offers.values()):
            self._offers.remove(row, self._sessions.get(row.session))

    def _queue(self, run: Run) -> None:
        if run.due_us is None or run.ended:
            return
        due, lane = run.definition.due, run.made.lane
        if lane not in due:
            due[lane] = Queue(partial(self._is_due, run.definition.id))
        due[lane].push(run.due_us, run.number)

    def _note_end(self, run: Run) -> None:
        if run.ended_us is not None:
            self._ended[run.number], self._oldest = run.ended_us, None
        else:
            self._ended.pop(run.number, None)

    def _definition(self, number: int) -> Definition:
        if not 1 <= number <= len(self._definitions):
            raise OptionError(f"no definition has the number {number}; register it in this backend first")
        return self._definitions[number - 1]

    def _check_rest(self, change: Change | None) -> None:
        if change is not None and change.rest is not None and change.rest.definition is not None:
            self._definition(change.rest.definition)

    def _remove(self, instance_id: str) -> None:
        self._writes += 1
        run: Run | None = self._last.pop(instance_id)
        while run is not None:
            self._ended.pop(run.number, None)
            del self._runs[run.number]
            run = run.earlier

    def _loaded(self, run: Run, asking: Held | None = None) -> Loaded:
        later, header = run.journal[run.image_seq :], self._header(run, asking)
        entries = [entry if _is_brought(entry) else replace(entry, output=None) for entry in later]
        return Loaded(header, run.image, entries, tuple(run.mail))

    def _header(self, run: Run, asking: Held | None = None) -> Header:
        held = self._sessions.get(run.session)
        return header_of(run, None if held is not None and held is not asking and self._over(held) else held)

    def _receive(self, run: Run, message: Message) -> None:
        self._messages += 1
        run.mail.append(replace(message, id=self._messages))
        if message.message_id:
            run.known.add(message.message_id)

    def _tell(self, run: Run, message: Message) -> None:
        """Put a message into the inbox of a run whoever holds it; if nobody does, it is due."""
        self._writes += 1
        if message.message_id and message.message_id in run.known:
            return
        self._receive(run, message)
        if not run.session:
            run.due_us = 0
            self._queue(run)

    def _is_due(self, definition: int, due_us: int, number: int) -> bool:
        run = self._runs.get(number)
        return run is not None and not run.session and run.definition.id == definition and run.due_us == due_us


def _is_brought(entry: Entry) -> bool:
    return entry.seq == 1 and entry.output is not None and len(entry.output) <= BROUGHT_BYTES
