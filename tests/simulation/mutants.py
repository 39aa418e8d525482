"""Mistakes that the simulation must find: each takes one line's worth out of the runtime or the reference store.

A mutant says which workflows and faults show it soonest; nothing else about it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from stepwell.backend.base import Message
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.memory_offers import Offers
from stepwell.backend.memory_rows import Run
from stepwell.backend.memory_store import MemoryStore
from stepwell.errors import LeaseLost
from stepwell.runtime import desk
from stepwell.runtime.context import TaskContext
from stepwell.runtime.desk import Desk
from stepwell.runtime.drive import Drive
from stepwell.runtime.live import Live
from stepwell.runtime.pooling import Pool
from stepwell.runtime.serving import Serving
from stepwell.runtime.trials import Trials

Patch = Callable[[Any], Any]
_GONE: Final = object()


@dataclass(frozen=True)
class Mutant:
    """One planted mistake: what is put in place of which attribute, given the one that was there."""

    name: str
    place: Any
    attribute: str
    patch: Patch | None
    workflows: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    meddling: bool | None = None
    seed: int = 0  # where to begin

    @contextmanager
    def planted(self) -> Iterator[None]:
        here = vars(self.place).get(self.attribute, _GONE)
        was = getattr(self.place, self.attribute)
        if self.patch is None:
            delattr(self.place, self.attribute)
        else:
            setattr(self.place, self.attribute, self.patch(was))
        try:
            yield
        finally:
            if here is _GONE:
                delattr(self.place, self.attribute)
            else:
                setattr(self.place, self.attribute, here)


# --- the store ---------------------------------------------------------------------------------------


def _unfenced(was: Any) -> Any:
    def commit(self: Any, session: Any, changes: Any) -> Any:
        try:
            return was(self, session, changes)
        except LeaseLost:
            return was(self, None, changes)

    return commit


def _claimed_is_free(was: Any) -> Any:
    def is_free(self: Any, definition: int, rank_us: int, number: int) -> bool:
        row = self._rows.get(number)
        return row is not None and row.run.definition.id == definition

    return is_free


def _settled_untold(was: Any) -> Any:
    def settle(self: Any, held: Any, number: int, message: Message) -> bool:
        row = self._offers.claimed(held, number)
        if row is not None:
            self._offers.remove(row, held)
        return row is not None

    return settle


def _settled_by_the_lost(was: Any) -> Any:
    def settle(self: Any, session: Any, results: Any) -> Any:
        try:
            return was(self, session, results)
        except LeaseLost:
            rows = [(self._offers._rows.get(number), message) for number, message in results]
            for row, message in rows:
                if row is not None:
                    self._tell(row.run, message)
            return [row is not None for row, _ in rows]

    return settle


def _held_is_due(was: Any) -> Any:
    def is_due(self: Any, definition: int, due_us: int, number: int) -> bool:
        run = self._runs.get(number)
        return run is not None and run.definition.id == definition and run.due_us == due_us

    return is_due


def _freed_for_nobody(was: Any) -> Any:
    def free(self: Any, run: Any) -> None:
        self._drop_claim(run)
        run.due_us = None

    return free


# --- the runtime -------------------------------------------------------------------------------------


def _begun_again(was: Any) -> Any:
    class Everything:
        def __contains__(self, key: object) -> bool:
            return True

    return lambda self, live, begun=(): was(self, live, Everything())


def _no_rest_in_a_drain(was: Any) -> Any:
    def drain(self: Any) -> None:
        was(self)
        self._restless = {}

    return drain


def _due_never(was: Any) -> Any:
    from msgspec.structs import replace

    return lambda self, release: replace(was(self, release), due_us=None)


def _signal_swallowed(was: Any) -> Any:
    def deliver(self: Any, live: Any, message: Message) -> bool:
        return False if message.kind == "signal" and live.flights else was(self, live, message)

    return deliver


def _word_needed(was: Any) -> Any:
    def wait(self: Any) -> Any:
        found = was(self)
        return found and found._replace(poll_us=None)

    return wait


def _no_cap(was: Any) -> Any:
    from msgspec.structs import replace

    return lambda self, limit: replace(was(self, limit), most={})


def _asks_while_draining(was: Any) -> Any:
    def space(self: Any) -> int:
        draining, self._draining = self._draining, False
        try:
            return was(self)
        finally:
            self._draining = draining

    return space


def _guests_outlive(was: Any) -> Any:
    def leave(self: Any, *exc: object) -> None:
        guests, self._guests = self._guests, {}
        for guest in guests.values():
            self._flights.stop(guest, "the worker has stopped")
        was(self, *exc)

    return leave


_KILLS: Final = ("kill", "kill before", "kill after", "pass by")
_ZOMBIES: Final = ("freeze", "stall before", "stall after", "others first", "pass by")
_DOUBT: Final = ("lost reply", "refused", "others after")
_OTHERS: Final = ("others first", "others after")
_WIDE: Final = ("wide", "nested")

MUTANTS: Final = (
    Mutant("a lost session's commit lands", InMemoryBackend, "commit", _unfenced, None, _ZOMBIES),
    Mutant("an offer is claimed twice", Offers, "_is_free", _claimed_is_free, _WIDE, ()),
    Mutant("an outcome's message is dropped", InMemoryBackend, "_settle", _settled_untold, ("tagged",), ()),
    Mutant("a lost session settles an offer", InMemoryBackend, "settle", _settled_by_the_lost, _WIDE, _ZOMBIES),
    Mutant("what is held is due", MemoryStore, "_is_due", _held_is_due, None, ()),
    Mutant("what was freed is never due", MemoryStore, "_free", _freed_for_nobody, None, _KILLS),
    Mutant("lost sessions are not counted", Run, "suspect", lambda was: property(lambda run: 0), ("poison",), ()),
    Mutant("a begun at-most-once step runs again", Desk, "_survey", _begun_again, ("careful", "tagged"), _KILLS),
    Mutant("every step of a lost session is tried at once", Trials, "admits", lambda was: lambda *_: True,
           ("poison", "wide", "chain", "routed"), (), None, 50),
    Mutant("a drain gives nothing back", Pool, "_drain", _no_rest_in_a_drain, ("routed", "wide"), ("drain",)),
    Mutant("a drain waits for what others run", Pool, "_write_rests", None, _WIDE, ("drain",)),
    Mutant("a drain asks for what is due", Pool, "_space", _asks_while_draining, None, ("drain",)),
    Mutant("a parked instance's time is forgotten", Live, "rest", _due_never, ("routed", "looping"), ()),
    Mutant("a signal is taken and has no effect", Desk, "_deliver", _signal_swallowed, ("signalled",), ()),
    Mutant("nothing moves without a word", Pool, "_wait", _word_needed, None, ("no word",)),
    Mutant("max_running is ignored", Pool, "_want", _no_cap, ("capped",), ()),
    Mutant("guests outlive their pool", Pool, "__exit__", _guests_outlive, _WIDE, (*_ZOMBIES, "outage")),
    Mutant("what was queued is queued again", Pool, "_keep_ready", None, _WIDE, _DOUBT, None, 150),
    Mutant("a start in doubt counts as another's", desk, "_begun_by_us", lambda was: lambda live, loaded: set(),
           ("careful", "tagged"), _DOUBT),
    Mutant("a claim in doubt is forgotten", Pool, "_compare",
           lambda was: lambda self: setattr(self, "in_doubt", False), None, _DOUBT),
    Mutant("the idempotency key follows the attempt", TaskContext, "idempotency_key",
           lambda was: property(lambda self: f"{was.fget(self)}-{self.attempt}"), ("looping", "nested"), _KILLS),
    Mutant("nothing is left to older workers", Serving, "_leaves", lambda was: lambda self, header: False,
           ("edited",), ("others first",)),
    Mutant("mail is never read", Drive, "_read_mail", lambda was: lambda self: None, ("signalled", "wide"), ()),
)  # fmt: skip
