"""What a worker leaves to workers with older code.

While a new version is rolled out, workers of both serve one store. An instance whose graph the new code no longer fits
can still be ended by the old code, so it must not be held by the first new worker that sees it due. Each worker
therefore tells the store which graphs it has the code of, for as long as its session lives and does not drain; and of
what is due it leaves out every older graph that somebody else serves. Once nobody does, what is there is moved or held.

Mostly nothing has to be asked for that. A worker asks when it begins and finds older graphs in the store, before it
moves or holds an instance of one, and, while it leaves some out, at its poll interval.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from stepwell.backend.base import Filter, Header
from stepwell.errors import AlreadyRunning, InstanceError

from .claiming import Claiming
from .clock import AnyMailbox

if TYPE_CHECKING:
    from .room import Room

_LOG: Final = logging.getLogger("stepwell.runtime")

LOOKS: Final = 100  # instances that are looked at in one turn


class Serving(Claiming):
    """A claiming drive that says whose code it has, and leaves older graphs to those that have theirs."""

    def __init__(self, room: Room, mailbox: AnyMailbox, runnables: Iterable[object], *, poll_us: int) -> None:
        super().__init__(room, mailbox, runnables, stay=True)
        self._poll_us = poll_us
        self._own = frozenset(each.definition for each in self._known)
        self._serves = False
        self._older: dict[int, str] = {}  # graphs of which it was asked who serves them, and their workflows
        self._left: frozenset[int] = frozenset()  # those of them that others serve
        self._ask_at = 0
        self._at_hand: Iterator[Header | None] = iter(())
        self._taken: list[str] = []  # what others looked at in the moment when it was to be looked at here

    def _jittered(self) -> int:
        """Return the poll interval, a little longer or shorter each time."""
        return self._poll_us

    def _begin_looking(self) -> None:
        self.room.fenced(self._backend.serve, sorted(self._own))
        self._serves = True
        self._learn_next()
        if older := {number: name for number, name in self._definitions.items() if number not in self._own}:
            self._ask_who_serves(older)
        super()._begin_looking()

    def _serve_no_more(self) -> None:
        """Nothing more is taken up here, so nobody has to leave anything to this worker."""
        if self._serves:
            self.room.fenced(self._backend.serve, ())

    # --- who serves what ---

    def _passes_over(self, definition: int) -> bool:
        return definition in self._left

    def _leaves(self, header: Header) -> bool:
        if header.definition in self._own:
            return False
        if header.definition not in self._left:  # asked anew each time: a hold should be right
            self._ask_who_serves({header.definition: header.workflow})
        return header.definition in self._left

    def _ask_who_serves(self, graphs: Mapping[int, str]) -> None:
        """Learn which of these graphs others serve, and of those that were asked about before."""
        self._older.update(graphs)
        before, self._left = self._left, frozenset(self._backend.served(sorted(self._older)))
        self._ask_at = time.perf_counter_ns() + self._jittered() * 1_000
        if self._left != before:
            self._definitions = {each: name for each, name in self._definitions.items() if each not in self._left}
            self._learned, self._look_at = False, 0
            self._tell(self._left - before, "is left to the workers that have its code")
        if freed := before - self._left:
            self._tell(freed, "is served by no worker any more, so this one looks after it")
            self._at_hand = chain(self._at_hand, self._resting_of(freed))

    def _tell(self, graphs: frozenset[int], what: str) -> None:
        for number in sorted(graphs):
            _LOG.info("an older graph (%d) of workflow %s %s", number, self._older[number], what)

    # --- what is looked at although nothing makes it due ---

    def _look_after_older(self, space: int) -> bool:
        """Do what there is to do at this moment about older graphs. Returns whether there was anything."""
        if (self._left or self._taken) and time.perf_counter_ns() >= self._ask_at:
            self._ask_who_serves({})
            taken, self._taken = self._taken, []
            self._at_hand = chain(self._at_hand, self._given_back(taken))
        found = list(islice(self._at_hand, LOOKS)) if space > 0 else []
        for header in found:
            if header is not None:
                self._look_at_resting(header)
        return bool(found)

    def _resting_of(self, graphs: frozenset[int]) -> Iterator[Header | None]:
        """Yield what rests on these graphs, and ``None`` for each other that was seen on the way."""
        names: Sequence[str] = sorted({self._older[number] for number in graphs})
        for name in names:
            for header in self._found(Filter(("waiting", "held", "paused"), name)):
                yield header if header.definition in graphs else None

    def _refuse(self, header: Header, error: InstanceError) -> None:
        if isinstance(error, AlreadyRunning):  # whoever it is may find that it is not for him
            self._taken.append(header.instance_id)
            self._ask_at = max(self._ask_at, time.perf_counter_ns() + self._jittered() * 1_000)

    def _given_back(self, taken: Sequence[str]) -> Iterator[Header | None]:
        """Yield those of these that rest and that nobody holds any more; others are looked at later."""
        for instance_id in taken:
            header = self._backend.header(instance_id)
            if header is not None and header.session and header.state in ("held", "paused"):
                self._taken.append(instance_id)
            yield header if header is not None and not header.session else None
