"""One instance in a runner's hands: its frontier, the values it may still read, and what is to be committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from stepwell.backend.base import PATIENT, Change, Entry, Loaded, Rest
from stepwell.engine import advance
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, fold, from_image, to_image
from stepwell.errors import InstanceConflict, InstanceDamaged
from stepwell.flow.plan import Key, Plan

from .invoke import Body, Job, Prepared, Raws, Tagged
from .observed import restored
from .trials import suspects

if TYPE_CHECKING:
    from stepwell.observe.watching import RunWatch

    from .room import Room

_STORE_SLACK: Final = 64
_AVOIDED_FROM_US: Final = 1_000_000  # a shorter wait is not worth looking for another worker
STARTED: Final = frozenset({"began", "tried"})
"""Phases of a step whose start is recorded."""
_NO_ERRORS: Final[Mapping[int, BaseException]] = MappingProxyType({})
_NO_STEPS: Final[frozenset[Key]] = frozenset()


Arrived: TypeAlias = tuple[e.Event, int, Any, int, bool]
"""One event on its way into the journal: when it came, what it brought, how long that took, and whether it is mail."""


class Live:
    """One run of an instance while a drive works on it.

    Attributes:
        store: values by address: stored bytes, or the objects themselves when nothing is stored.
        errors: exceptions of this process by address, to chain them to what ``run`` raises.
        entries: journal rows that the next commit appends after ``base``; ``arrived`` are the events that led to them.
        taken: inbox messages that those rows took in.
        lost: why it could not be worked on any more, although others of its call could.
        let_go: whether it is not worked on here any more; what is queued of it does not start.
        upcoming: steps that may start once the commit has landed.
        kept: how many steps could start and are kept back by the drive.
        suspects: open steps that may have killed a process.
        lost_sessions: how many were lost with it since its last entry was written; 0 once that was looked at.
        offered: how many of its steps the store has on offer to other sessions, as it was loaded.
        unrested: whether it was loaded as somebody had to leave it in the middle, so that the row tells of no rest.
    """

    guest = False  # whether another session holds the instance

    __slots__ = (
        "arrived", "backend_id", "base", "bodies", "context", "entries", "errors", "flights", "instance",
        "instance_id", "kept", "let_go", "lost", "lost_sessions", "metadata", "observed", "offered", "plan",
        "prepared", "resting", "room", "run", "state", "store", "store_limit", "stored", "suspects", "taken", "trace",
        "unrested", "upcoming", "workflow",
    )  # fmt: skip

    def __init__(
        self, room: Room, prepared: Prepared, instance_id: str, instance: int, run: int, context: Context
    ) -> None:
        self.room, self.prepared, self.plan = room, prepared, prepared.plan
        self.bodies = prepared.bodies
        self.instance_id, self.instance, self.run, self.context = instance_id, instance, run, context
        self.workflow, self.metadata = prepared.workflow.name, prepared.workflow.metadata
        self.backend_id, self.stored = room.backend_id, prepared.stored
        self.state = Frontier()
        self.base = 0
        self.store: dict[int, Any] = {0: None}
        self.store_limit = _STORE_SLACK
        self.errors: Mapping[int, BaseException] = _NO_ERRORS
        self.entries: list[Entry] = []
        self.arrived: list[Arrived] = []
        self.taken: Sequence[int] = ()
        self.upcoming: list[Key] = []
        self.flights: dict[Key, Job] = {}
        self.suspects = _NO_STEPS
        self.kept = self.offered = self.lost_sessions = 0
        self.resting = self.unrested = self.let_go = False
        self.lost: BaseException | None = None
        self.trace = ""
        self.observed: RunWatch | None = None

    # --- events in, facts out ---

    def advance(
        self, event: e.Event, at_us: int, output: Any = None, took_us: int = 0, from_inbox: bool = False
    ) -> Sequence[f.Fact]:
        """Let the engine decide, and note what a commit has to write."""
        state, room = self.state, self.room
        facts = advance.advance(self.plan, state, event, at_us)
        if not facts:
            return facts
        if room.check_laws is not None:
            room.check_laws(self.plan, state)
        self.resting = False
        seq = state.seq
        if output is not None:
            self.store[seq] = output
        if room.backend is not None:
            self.entries.append(Entry(seq, f.encode(facts), output, at_us, took_us))
            self.arrived.append((event, at_us, output, took_us, from_inbox))
        elif len(self.store) > self.store_limit:
            self._prune()
        return facts

    @staticmethod
    def rows(
        plan: Plan, state: Frontier, events: Iterable[e.Event], now: int, output: bytes | None = None
    ) -> list[Entry]:
        """Advance a stored state that nobody works on, and return the journal rows for it."""
        rows: list[Entry] = []
        for event in events:
            if facts := advance.advance(plan, state, event, now):
                rows.append(Entry(state.seq, f.encode(facts), output, now))
        return rows

    def _prune(self) -> None:
        """Forget values that nobody can read any more, then wait until as many again have come: so it costs little."""
        needed = self._needed()
        self.store = {at: raw for at, raw in self.store.items() if at in needed}
        self.store_limit = 2 * len(self.store) + _STORE_SLACK

    def _needed(self) -> set[int]:
        state = self.state
        needed = {0, state.seq, state.result, *state.values.values(), *state.cursors.values()}
        for kept in state.inbox.values():
            needed.update(kept)
        return needed

    # --- values ---

    def encode(self, value: object) -> Any:
        """Return a body's result as it is kept: envelope bytes, or the object itself when nothing is stored."""
        return self.prepared.codec.encode(value) if self.stored else value

    def gather(self, body: Body, key: Key) -> Raws:
        """Return the stored values that a body reads. Raises InstanceDamaged if one is gone."""
        state, store = self.state, self.store
        if state.cursors:  # read here, as a store that fails is no failure of the body that asks for it
            self.fetch([state.cursors.get(key, 0)])
        if body.top_keys is not None and not state.tags:
            values = state.values
            try:
                if body.top_key is not None:
                    return (store[values[body.top_key]],)
                return [store[values[key]] for key in body.top_keys]
            except KeyError:  # a value that this process has not read yet
                self.fetch([values[key] for key in body.top_keys])
        depth, turns = self.plan.depth, key[1]
        addresses = [state.values[(ref, turns[: depth[ref]])] for ref in body.refs]
        if any(at not in store for at in addresses):
            self.fetch(addresses)
        if state.tags:
            return [Tagged(state.tags[at], store[at]) if at in state.tags else store[at] for at in addresses]
        return [store[at] for at in addresses]

    def fetch(self, addresses: Iterable[int]) -> None:
        """Read values from the backend that this process has not seen yet. Raises InstanceDamaged if one is gone."""
        missing = [at for at in addresses if at not in self.store]
        if self.room.backend is None:
            self.store.update(dict.fromkeys(missing))  # what is passed on as None is not kept
        elif missing:
            self.store.update(self.room.backend.values(self.instance, missing))
            if gone := [at for at in missing if at not in self.store]:
                raise InstanceDamaged(self.instance_id, f"the value of its journal entry {gone[0]} is gone")

    def value(self, address: int) -> Any:
        """Return one value as it is kept."""
        if address not in self.store:
            self.fetch([address])
        return self.store[address]

    def read_cursor(self, key: Key) -> object:
        """Return what an earlier attempt of a step kept, or ``None``."""
        address = self.state.cursors.get(key, 0)
        raw = self.value(address)
        return self.prepared.codec.decode(raw) if self.prepared.stored and raw is not None else raw

    # --- control ---

    @property
    def ended(self) -> bool:
        return bool(self.state.ended)

    def stop_asked(self) -> bool:
        """Whether a running body should stop."""
        return self.state.stopping

    # --- to and from rows ---

    def change(self, rest: Rest | None) -> Change:
        """Return what the next commit writes of this instance."""
        return Change(self.instance, self.base, self.entries, self.taken, rest)

    def committed(self) -> None:
        """Take note that everything noted so far is stored."""
        if self.observed is not None:
            self.observed.committed(self.base)
        self.base = self.state.seq
        self.entries, self.arrived, self.taken = [], [], ()
        if len(self.store) > self.store_limit:
            self._prune()

    def rest(self, release: bool) -> Rest:
        """Describe how the instance is left: for good, or until its next moment or message."""
        state, now, name = self.state, self.room.clock.now_us(), self.room.name
        avoid = name if name and self._backs_off(now) else ""
        due_us = state.next_due_us()
        return Rest(state.status(now), to_image(state), due_us, release or self.ended, state.result, avoid=avoid)

    def _backs_off(self, now: int) -> bool:
        """Whether a step failed here and is to be tried again after a while, better by somebody else."""
        return any(
            step.phase == "ready" and step.due_us >= now + _AVOIDED_FROM_US for step in self.state.steps.values()
        )

    def replaced(self) -> None:
        """Forget what was not stored: the run that took this one's place has cancelled it."""
        self.state, now = Frontier(), self.room.clock.now_us()
        for event in (e.Start(), e.CancelAsked("another run has taken its place")):
            self.advance(event, now)
        self.advance(e.Settled(tuple(self.state.steps)), now)
        self.entries = []

    def restore(self, loaded: Loaded) -> None:
        """Take on a stored state. Raises InstanceDamaged if its rows cannot be read, InstanceConflict if it moved."""
        if loaded.header.fingerprint != self.plan.fingerprint:
            raise InstanceConflict(self.instance_id, "it was moved to another graph meanwhile; resume it once more")
        self.state = frontier_of(self.plan, loaded)
        self.backend_id, self.trace = loaded.header.origin or self.room.backend_id, loaded.header.trace
        self.base = self.state.seq
        self.store = {0: None, **{entry.seq: entry.output for entry in loaded.entries if entry.output is not None}}
        self.entries, self.taken, self.upcoming = [], (), []
        self.unrested = bool(loaded.entries) or loaded.header.state not in PATIENT
        restored(self, loaded)
        self.lost_sessions, self.offered = loaded.header.suspect, loaded.header.offered
        self.suspects = suspects(self.plan, self.state, self.lost_sessions)


def frontier_of(plan: Plan, loaded: Loaded) -> Frontier:
    """Return the engine's state of a loaded instance: its image and the later facts.

    Raises:
        InstanceDamaged: the rows are not what stepwell wrote.
    """
    header = loaded.header
    try:
        state = from_image(loaded.image) if loaded.image else Frontier()
        for entry in loaded.entries:
            fold(plan, state, f.decode(entry.facts))
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise InstanceDamaged(
            header.instance_id, f"its journal cannot be read ({type(error).__name__}); other instances are not affected"
        ) from error
    if state.seq != header.seq:
        raise InstanceDamaged(
            header.instance_id, f"its journal has {header.seq} entries, but its state says {state.seq}"
        )
    return state
