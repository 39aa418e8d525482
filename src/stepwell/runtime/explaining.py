"""Why an instance stands where it stands: one typed reason for each open step, and what would move it.

A reason is data, for programs; its ``text`` is a sentence, for people. All are read from the stored state, so they say
what was true when it was read; of steps that a process works on, only that they are in its hands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import msgspec

from stepwell.backend.base import Header, Loaded
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, Request, Step
from stepwell.flow.plan import Key, Plan, Turns
from stepwell.timing import moment
from stepwell.types import State

from .ending import deaths, died_text, hold_mend, hold_text
from .inspection import in_words, journal, last_errors
from .live import frontier_of
from .offered import ref_of
from .requests import in_words as message_in_words
from .stored import load, stored_plan

if TYPE_CHECKING:
    from .room import Room


@dataclass(frozen=True, slots=True)
class Running:
    """The step is in a live process's hands: its body runs, or starts when a thread is free.

    ``crashes`` processes in a row have died in it before.
    """

    kind: ClassVar[str] = "running"
    path: str
    worker: str
    attempt: int
    since: datetime | None
    crashes: int = 0

    @property
    def text(self) -> str:
        since = f" since {in_words(self.since)}" if self.since else ""
        return f"{self.path}: attempt {self.attempt} is in the hands of {self.worker}{since}{_after(self.crashes)}"


@dataclass(frozen=True, slots=True)
class Offered:
    """The step is offered to other workers than the one that holds its instance, and none has taken it yet.

    ``tags`` are what a worker must have to run it; without any, its holder ``worker`` has its hands full. ``crashes``
    processes in a row have died in it before.
    """

    kind: ClassVar[str] = "offered"
    path: str
    attempt: int
    tags: tuple[str, ...]
    worker: str
    crashes: int = 0

    @property
    def text(self) -> str:
        return f"{self.path}: attempt {self.attempt} is {in_offer(self.tags)}{_after(self.crashes)}"


@dataclass(frozen=True, slots=True)
class Ready:
    """The step could start, but nobody works on the instance, or a pause or hold keeps it.

    ``crashes`` processes in a row have died in it before.
    """

    kind: ClassVar[str] = "ready"
    path: str
    attempt: int
    crashes: int = 0

    @property
    def text(self) -> str:
        return f"{self.path}: attempt {self.attempt} is ready to start{_after(self.crashes)}"


@dataclass(frozen=True, slots=True)
class CutOff:
    """An at-most-once step was begun by a process that is gone; whoever takes the instance up will hold it."""

    kind: ClassVar[str] = "cut off"
    path: str
    attempt: int

    @property
    def text(self) -> str:
        return (
            f"{self.path}: attempt {self.attempt} was cut off; once a runner has seen to it, client.decide() is asked"
        )


@dataclass(frozen=True, slots=True)
class Crashed:
    """A step was begun by a process that is gone, not the first to go; whoever takes the instance up tries it again.

    ``crashes`` counts those in a row that died in it before that one.
    """

    kind: ClassVar[str] = "crashed"
    path: str
    attempt: int
    crashes: int = 0

    @property
    def text(self) -> str:
        return (
            f"{self.path}: the process that ran attempt {self.attempt} is gone{_after(self.crashes)}; "
            "whoever takes the instance up tries it again, or holds the instance if that was one too many"
        )


@dataclass(frozen=True, slots=True)
class DueAt:
    """A delay is over at a moment."""

    kind: ClassVar[str] = "due at"
    path: str
    at: datetime

    @property
    def text(self) -> str:
        return f"{self.path}: is over at {in_words(self.at)}"


@dataclass(frozen=True, slots=True)
class AwaitsSignal:
    """A signal node waits. ``buffered`` messages of its name are there already, kept by a pause or hold."""

    kind: ClassVar[str] = "awaits signal"
    path: str
    name: str
    until: datetime | None
    buffered: int

    @property
    def text(self) -> str:
        until = f" until {in_words(self.until)}" if self.until else ""
        there = f"; {self.buffered} already there" if self.buffered else ""
        return f"{self.path}: waits for client.signal(id, {self.name!r}, …){until}{there}"


@dataclass(frozen=True, slots=True)
class Backoff:
    """An attempt failed; the next one, ``attempt``, is due at a moment. ``error`` is what the last one failed with."""

    kind: ClassVar[str] = "backoff"
    path: str
    until: datetime
    attempt: int
    error: str

    @property
    def text(self) -> str:
        return f"{self.path}: attempt {self.attempt} is due at {in_words(self.until)}, after {self.error}"


@dataclass(frozen=True, slots=True)
class Closing:
    """The step must end before its scope can fail or the instance can be cancelled; its result moves nothing."""

    kind: ClassVar[str] = "closing"
    path: str
    worker: str

    @property
    def text(self) -> str:
        worker = f" {self.worker} to end it" if self.worker else " a process to take that up"
        return f"{self.path}: is being closed; waits for{worker}"


@dataclass(frozen=True, slots=True)
class Failed:
    """The step has failed for good."""

    kind: ClassVar[str] = "failed"
    path: str
    error: str

    @property
    def text(self) -> str:
        return f"{self.path}: has failed: {self.error}; once the run has ended, client.retry() tries it again"


@dataclass(frozen=True, slots=True)
class Cancelling:
    """The instance ends as cancelled when what is open has closed."""

    kind: ClassVar[str] = "cancelling"
    reason: str
    by: str

    @property
    def text(self) -> str:
        return f"it is being cancelled{_because(self.reason, self.by)}; it ends when its running steps have"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The instance has ended as cancelled."""

    kind: ClassVar[str] = "cancelled"
    reason: str
    by: str

    @property
    def text(self) -> str:
        return f"it was cancelled{_because(self.reason, self.by)}; client.retry() lets it go on"


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing starts until ``client.resume``."""

    kind: ClassVar[str] = "paused"
    reason: str
    by: str

    @property
    def text(self) -> str:
        return f"it is paused{_because(self.reason, self.by)}; client.resume() lets it go on"


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing starts until ``client.decide``. ``path`` is the step it is held for, ``""`` for the run itself.

    ``reason`` is ``interrupted``, ``quarantined``, ``undecodable`` or ``changed``; of a quarantined step ``crashes``
    says how many processes in a row died in it.
    """

    kind: ClassVar[str] = "held"
    reason: str
    detail: str
    path: str
    text: str
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class NoWorker:
    """Something could be done now, and no live process works on the instance."""

    kind: ClassVar[str] = "no worker"
    workflow: str

    @property
    def text(self) -> str:
        return f"nobody works on it now; runner.recover([{self.workflow}]) or runner.resume() goes on with it"


@dataclass(frozen=True, slots=True)
class Queued:
    """Something could be done now, and live workers with the code of its very graph are there to do it.

    Newer workers leave it to them. ``graph`` is its fingerprint, ``workers`` how many they are.
    """

    kind: ClassVar[str] = "queued"
    workflow: str
    graph: str
    workers: int

    @property
    def text(self) -> str:
        live = "1 live worker has" if self.workers == 1 else f"{self.workers} live workers have"
        return f"it is queued for workers with the code of its graph {self.graph[:8]}, which {live}"


Reason: TypeAlias = (
    Running | Offered | Ready | CutOff | Crashed | DueAt | AwaitsSignal | Backoff | Closing | Failed
    | Cancelling | Cancelled | Paused | Held | NoWorker | Queued
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an instance stands where it stands.

    Attributes:
        state: as ``status`` shows it.
        reasons: those about the whole instance first, then one for each open step. Empty for a completed one.
        pending: requests and signals that its holder has not taken in yet, in words.

    Example:
        >>> print(client.explain("order-42").text)  # doctest: +SKIP
        order-42 is waiting
        approval: waits for client.signal(id, 'approval', …) until 2030-01-02 00:00:00 UTC
    """

    instance_id: str
    workflow: str
    state: State
    reasons: tuple[Reason, ...]
    pending: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All of it in sentences, a line each."""
        lines = [f"{self.instance_id} is {self.state}", *(reason.text for reason in self.reasons)]
        return "\n".join([*lines, *(f"pending: {message}" for message in self.pending)])

    def __str__(self) -> str:
        return self.text


def _after(crashes: int) -> str:
    return f"; {died_text(crashes)} before" if crashes else ""


def in_offer(tags: Sequence[str]) -> str:
    """Say to whom a step is offered that nobody has taken."""
    named = f"workers with tag{'s' if len(tags) > 1 else ''} {', '.join(tags)}"
    return f"offered to {named if tags else 'other workers'}; none has taken it yet"


def _because(reason: str, by: str) -> str:
    return f"{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"


def explain(room: Room, instance_id: str) -> Explanation:
    """Return why an instance stands where it stands; see ``WorkflowClient.explain``."""
    loaded = load(room, instance_id)
    plan = stored_plan(room, loaded.header)
    state, now = frontier_of(plan, loaded), room.clock.now_us()
    reader = _Reader(room, loaded, plan, state, now)
    reasons = () if state.ended == "completed" else (*reader.of_instance(), *reader.of_steps())
    pending = tuple(map(message_in_words, loaded.mail))
    return Explanation(instance_id, plan.name, shown_state(loaded.header, state, now), reasons, pending)


def shown_state(header: Header, state: Frontier, now_us: int) -> State:
    """Return the state that an observer would name now.

    The row says how it was left last, and not what a holder has done since, also one that has died.
    """
    begun = header.state == "pending" and header.seq > 1  # the first entry is written by whoever creates it
    return state.status(now_us) if header.session or begun else header.state


class _Reader:
    """One instance as it was loaded, and how its reasons are found."""

    def __init__(self, room: Room, loaded: Loaded, plan: Plan, state: Frontier, now: int) -> None:
        self.room, self.loaded, self.plan, self.state, self.now = room, loaded, plan, state, now
        self.worker = loaded.header.held_by
        self.since = _openings(loaded)
        self.out = _offered(room, loaded)
        self.errors: Mapping[str, str] = {}
        if any(step.phase == "failed" or self._backs_off(step) for step in state.steps.values()) or state.failure:
            self.errors = last_errors(journal(room, loaded.header), room.codec)

    def of_instance(self) -> Iterator[Reason]:
        state = self.state
        if asked := state.cancelling:
            yield (Cancelled if state.ended else Cancelling)(asked.reason, asked.by)
        if state.held:
            yield self._held(state.held)
        if state.paused:
            yield Paused(state.paused.reason, state.paused.by)
        if self._deserted():
            yield self._waits_for_hands()
        if state.ended == "failed" and (first := state.failure) and (first.node, first.turns) not in state.steps:
            path = self.plan.path(first.node, first.turns)  # a loop that failed is no step
            yield Failed(path, self.errors.get(path, first.reason))

    def _held(self, held: Request) -> Held:
        path, died = self.plan.path(held.node, held.turns), deaths(self.state)
        detail = died_text(died) if died else "" if held.by == path else held.by
        text = f"{hold_text(self.plan, held, died)}; {hold_mend(self.plan, held)}"
        return Held(held.reason, detail, path, text, died)

    def _waits_for_hands(self) -> Reason:
        header, backend = self.loaded.header, self.room.backend
        assert backend is not None
        workers = backend.served([header.definition]).get(header.definition, 0)
        return Queued(self.plan.name, header.fingerprint, workers) if workers else NoWorker(self.plan.name)

    def _deserted(self) -> bool:
        due_us = self.state.next_due_us()
        wanted = due_us is not None and due_us <= self.now
        return not self.worker and not self.state.ended and (wanted or bool(self.loaded.mail))

    def of_steps(self) -> Iterator[Reason]:
        held = self.state.held
        for key, step in self.state.steps.items():
            if held is None or key != (held.node, held.turns):
                yield from self._of_step(key, step)

    def _of_step(self, key: Key, step: Step) -> Iterator[Reason]:
        path = self.plan.path(*key)
        match step.phase:
            case "failed":
                yield Failed(path, self.errors.get(path, "its error is not recorded"))
            case "closing":
                yield Closing(path, self.out.get((*key, step.attempt)) or self.worker)
            case "parked":
                yield self._parked(key, step, path)
            case "ready" if step.due_us > self.now:
                yield Backoff(path, moment(step.due_us), step.attempt, self.errors.get(path, "an error"))
            case "ready" | "began" | "tried" if self.worker and not self._gated(step):
                yield self._in_hands(key, step, path)
            case "began":
                yield CutOff(path, step.attempt)
            case "tried" if self.loaded.header.suspect:
                yield Crashed(path, step.attempt, step.crashes)
            case "ready" | "tried":
                yield Ready(path, step.attempt, step.crashes)
            case _:
                return  # closed: it stopped with its scope, which says why

    def _in_hands(self, key: Key, step: Step, path: str) -> Reason:
        guest = self.out.get((*key, step.attempt), self.worker)
        if not guest:
            return Offered(path, step.attempt, tuple(self.plan.nodes[key[0]].tags), self.worker, step.crashes)
        at_us = self.since.get(key)
        return Running(path, guest, step.attempt, moment(at_us) if at_us else None, step.crashes)

    def _gated(self, step: Step) -> bool:
        """Whether a pause or hold keeps a step; one that has begun goes on."""
        return step.phase == "ready" and bool(self.state.paused or self.state.held)

    def _parked(self, key: Key, step: Step, path: str) -> Reason:
        row = self.plan.nodes[key[0]]
        until = moment(step.due_us) if step.due_us else None
        if row.kind == "signal":
            return AwaitsSignal(path, row.signal, until, len(self.state.inbox.get(row.signal, ())))
        assert until is not None, "a delay has an end"
        return DueAt(path, until)

    def _backs_off(self, step: Step) -> bool:
        return step.phase == "ready" and step.due_us > self.now


def _offered(room: Room, loaded: Loaded) -> dict[tuple[int, Turns, int], str]:
    """Return which attempts are out, each with who has taken it, ``""`` if nobody has."""
    if not loaded.header.offered:
        return {}
    assert room.backend is not None
    found: dict[tuple[int, Turns, int], str] = {}
    for step, name in room.backend.offered(loaded.header.instance).items():
        with suppress(msgspec.MsgspecError):  # a damaged one is told by the check of the store
            meant = ref_of(step)
            if meant.graph in ("", loaded.header.fingerprint):
                found[meant.node, meant.turns, meant.attempt] = name
    return found


def _openings(loaded: Loaded) -> dict[Key, int]:
    """Return when steps were opened or begun, as far as the entries after the image tell."""
    found: dict[Key, int] = {}
    for entry in loaded.entries:
        for fact in f.decode(entry.facts):
            if isinstance(fact, f.Opened | f.StepBegan | f.StepTried | f.AttemptFailed | f.StepCrashed):
                found[(fact.node, fact.turns)] = entry.at_us
    return found
