"""One instance as its journal tells it: each step with its states, times, attempts and errors.

Nothing is decided here. What is open and how it stands is read from the engine's own frontier; when it began, how long
it waited for hands and how long it worked is read from the journal, which tells the same story from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, Step
from stepwell.engine.moved import renumbering
from stepwell.errors import InstanceDamaged
from stepwell.flow.plan import Key, Plan, Turns
from stepwell.runtime.explaining import shown_state
from stepwell.runtime.inspection import ErrorInfo, Row, error_info, journal
from stepwell.runtime.live import frontier_of
from stepwell.runtime.stored import load, stored_plan
from stepwell.types import State

if TYPE_CHECKING:
    from stepwell.backend.base import Header, Loaded
    from stepwell.codec import Codec
    from stepwell.runtime.room import Room

Doing: TypeAlias = Literal["queue", "work", "failed", "gap", "wait"]

STEPS: Final = frozenset({"task", "route", "delay", "signal"})


@dataclass(slots=True)
class Piece:
    """A stretch of a step's time. ``end_us`` is 0 while it lasts."""

    doing: Doing
    begin_us: int
    end_us: int = 0


@dataclass(slots=True)
class Told:
    """What is known of one node at one turn. ``state`` is ``""`` as long as nothing has happened.

    ``ready_us`` is since when it might have been worked on; ``address`` the journal entry that keeps its value.
    """

    state: str = ""
    opened_us: int = 0
    ended_us: int = 0
    ready_us: int = 0
    due_us: int = 0
    attempts: int = 0
    pieces: list[Piece] = field(default_factory=list[Piece])
    error: ErrorInfo | None = None
    note: str = ""
    address: int = 0

    def spent_us(self, doing: Doing, now_us: int) -> int:
        """Return how long the step has done this."""
        return sum(max(0, (p.end_us or now_us) - p.begin_us) for p in self.pieces if p.doing == doing)


class Run:
    """One instance as it stood at one moment.

    Attributes:
        steps: by node and turn, in the order in which they were opened.
        turns: how many turns each loop has begun.
        cases: the name of the case that each route took.
    """

    def __init__(self, header: Header, plan: Plan, state: Frontier, now_us: int) -> None:
        self.header, self.plan, self.state, self.now_us = header, plan, state, now_us
        self.steps: dict[Key, Told] = {}
        self.turns: dict[Key, int] = {}
        self.cases: dict[Key, str] = {}

    @property
    def shown_state(self) -> State:
        """The state that an observer would name now."""
        return shown_state(self.header, self.state, self.now_us)

    @property
    def end_us(self) -> int:
        return self.header.ended_us or self.now_us

    def step(self, node: int, turns: Turns) -> Told:
        """Return what is known of a node; a scope is told by what is in it."""
        return self.steps.get((node, turns), NOTHING)

    def open_paths(self) -> tuple[str, ...]:
        """Return the paths of what the instance is at: what it is held for, what failed, or what is open."""
        state, plan = self.state, self.plan
        if state.ended == "completed" or not state.started:
            return ()
        if (last := state.held or state.failure) and last.node:
            return (plan.path(last.node, last.turns),)
        phases = ("failed", "closed") if state.ended else ("ready", "began", "tried", "parked", "closing")
        shown = [key for key, step in state.steps.items() if step.phase in phases and plan.kind[key[0]] != "pack"]
        return tuple(plan.path(*key) for key in shown)


NOTHING: Final = Told()


def read_run(room: Room, instance_id: str) -> Run:
    """Return an instance as it stands. Raises InstanceNotFound, InstanceDamaged."""
    loaded = load(room, instance_id)
    run = glance(room, loaded)
    _Teller(run, room.codec).tell([r for r in journal(room, loaded.header) if r.entry.seq <= loaded.header.seq])
    return run


def glance(room: Room, loaded: Loaded) -> Run:
    """Return where an instance stands, without its past."""
    plan = stored_plan(room, loaded.header)
    return Run(loaded.header, plan, frontier_of(plan, loaded), room.clock.now_us())


_About: TypeAlias = f.Opened | f.StepDone | f.AttemptFailed | f.HoldDecided | f.TimerFired | f.MessageTaken


class _Teller:
    """Reads a journal from its beginning and notes what each fact says about its node."""

    def __init__(self, run: Run, codec: Codec) -> None:
        self.run, self.codec = run, codec

    def tell(self, rows: list[Row]) -> None:
        try:
            for row in rows:
                for fact in row.facts:
                    self._fact(fact, row, row.entry.at_us)
        except LookupError as error:
            raise InstanceDamaged(self.run.header.instance_id, "its journal does not fit its plan") from error
        for key, step in self.run.state.steps.items():
            self._stands(key, step)
        self._held()

    def _at(self, fact: _About) -> Told:
        return self.run.steps.setdefault((fact.node, fact.turns), Told())

    def _fact(self, fact: f.Fact, row: Row, at_us: int) -> None:  # noqa: C901 - one case for each kind of fact
        run = self.run
        match fact:
            case f.Opened():
                self._opened(self._at(fact), row.plan.kind[fact.node], fact, at_us)
            case f.StepDone():
                self._worked(self._at(fact), row, "work", "done")
                self._at(fact).address = row.entry.seq
            case f.RouteTaken(node, turns, case):
                run.cases[node, turns] = case
                self._worked(run.steps.setdefault((node, turns), Told()), row, "work", "")
            case f.AttemptFailed():
                self._failed(self._at(fact), row, fact)
            case f.HoldDecided(kind="complete" | "fail"):
                self._decided(self._at(fact), row, fact)
            case f.TimerFired():
                self._waited(self._at(fact), at_us, "done", "timed out" if row.plan.kind[fact.node] == "signal" else "")
            case f.MessageTaken():
                self._waited(self._at(fact), at_us, "done", "")
                self._at(fact).address = fact.address
            case f.ScopeDone(node, turns):
                told = run.steps.setdefault((node, turns), Told())
                told.state, told.ended_us = "done", at_us
            case f.Turned(node, turns):
                run.turns[node, turns[:-1]] = turns[-1]
            case f.StepRefused(node, turns, reason):
                told = run.steps.setdefault((node, turns), Told())
                told.state, told.ended_us, told.note = "failed", at_us, reason.replace("_", " ")
            case f.Skipped(node, turns) | f.ChildFailed(node, turns):
                told = run.steps.setdefault((node, turns), Told())
                told.state = "skipped" if isinstance(fact, f.Skipped) else "failed"
            case f.RunMoved():
                self._moved(fact)
            case _:
                return  # about the run itself, which its frontier knows

    def _opened(self, told: Told, kind: str, fact: f.Opened, at_us: int) -> None:
        told.opened_us = told.opened_us or at_us
        told.state, told.ended_us, told.ready_us, told.due_us = "", 0, at_us, fact.due_us
        if kind in ("delay", "signal"):
            told.pieces.append(Piece("wait", at_us))

    def _worked(self, told: Told, row: Row, doing: Doing, state: str) -> None:
        begin_us = row.entry.at_us - row.entry.took_us
        if told.ready_us and begin_us > told.ready_us:
            told.pieces.append(Piece("queue", told.ready_us, begin_us))
        told.pieces.append(Piece(doing, begin_us, row.entry.at_us))
        told.attempts += 1
        told.state, told.ended_us = state, row.entry.at_us

    def _failed(self, told: Told, row: Row, fact: f.AttemptFailed) -> None:
        self._worked(told, row, "failed", "failed")
        told.error = error_info(self.codec, row.entry.output)
        if fact.due_us >= 0:
            told.ready_us = max(fact.due_us, row.entry.at_us)
            told.pieces.append(Piece("gap", row.entry.at_us, told.ready_us))

    def _decided(self, told: Told, row: Row, fact: f.HoldDecided) -> None:
        told.state = "done" if fact.kind == "complete" else "failed"
        told.address = row.entry.seq if fact.kind == "complete" else 0
        told.ended_us, told.note = row.entry.at_us, f"decided{f' by {fact.by}' if fact.by else ''}"
        if fact.kind == "fail":
            told.error = error_info(self.codec, row.entry.output)
        if self.run.plan.kind[fact.node] == "route" and fact.kind == "complete":
            self.run.cases[fact.node, fact.turns] = fact.tag

    def _waited(self, told: Told, at_us: int, state: str, note: str) -> None:
        for piece in told.pieces:
            piece.end_us = piece.end_us or at_us
        told.state, told.ended_us, told.note = state, at_us, note

    def _moved(self, fact: f.RunMoved) -> None:
        rows = renumbering(fact.rows)
        run = self.run
        run.steps = {(rows[n], turns): told for (n, turns), told in run.steps.items() if n in rows}
        run.turns = {(rows[n], turns): turn for (n, turns), turn in run.turns.items() if n in rows}
        run.cases = {(rows[n], turns): case for (n, turns), case in run.cases.items() if n in rows}

    # --- what is open ---

    def _stands(self, key: Key, step: Step) -> None:
        """Say of an open step what the engine says of it."""
        run, told = self.run, self.run.steps.setdefault(key, Told())
        gated = step.phase == "ready" and bool(run.state.paused or run.state.held)
        match step.phase:
            case "parked":
                told.state, told.due_us = "waits", step.due_us
            case "ready" if step.due_us > run.now_us:
                told.state, told.due_us = "retries", step.due_us
            case "ready" | "began" | "tried" if run.header.session and not gated:
                told.state = "running"
                told.pieces.append(Piece("work", told.ready_us or run.now_us))
            case "ready" | "tried":
                told.state = "ready"
                told.pieces.append(Piece("queue", told.ready_us or run.now_us))
            case "closing":
                told.state = "closing"
            case "failed":
                told.state = "failed"
            case _:
                self._stopped(told, "cut off" if step.phase == "began" else "")

    def _stopped(self, told: Told, note: str) -> None:
        told.state, told.note = "stopped", note
        for piece in told.pieces:
            piece.end_us = piece.end_us or self.run.header.ended_us or self.run.header.updated_us

    def _held(self) -> None:
        if (held := self.run.state.held) and held.node:
            self.run.steps.setdefault((held.node, held.turns), Told()).state = "held"


# --- the shape of a run -----------------------------------------------------------------------------


def shown_children(plan: Plan, node: int) -> Iterator[int]:
    """Yield the children that a reader knows of; a loop's turn is seen through."""
    for child in plan.nodes[node].children:
        if plan.kind[child] == "turn":
            yield from shown_children(plan, child)
        elif plan.kind[child] not in ("input", "pack"):
            yield child


def below(run: Run, node: int, turns: Turns) -> Iterator[Key]:
    """Yield the nodes that stand directly in a scope, with the turns that it has begun and the case it took."""
    plan, kind = run.plan, run.plan.kind[node]
    if kind == "loop":
        for turn in range(1, run.turns.get((node, turns), 0) + 1):
            yield from ((child, (*turns, turn)) for child in shown_children(plan, node))
    elif kind == "route":
        case = run.cases.get((node, turns))
        for child in plan.nodes[node].children:
            if plan.nodes[child].name == case:
                yield from ((c, turns) for c in shown_children(plan, child))
    elif kind == "signal":
        for child in plan.nodes[node].children:
            if any((c, turns) in run.steps for c in shown_children(plan, child)):
                yield from ((c, turns) for c in shown_children(plan, child))
    else:
        yield from ((child, turns) for child in shown_children(plan, node))


def state_of(run: Run, node: int, turns: Turns) -> str:
    """Return a node's state: its own, or for a scope the most urgent of what is in it."""
    told = run.step(node, turns)
    if told.state or run.plan.kind[node] in ("task", "delay"):
        return told.state
    inner = [state_of(run, *key) for key in below(run, node, turns)]
    urgent = next((state for state in _URGENT if state in inner), "")
    return urgent or ("running" if "done" in inner else "")


_URGENT: Final = ("held", "failed", "running", "closing", "ready", "retries", "waits", "stopped")


def began_us(run: Run, node: int, turns: Turns) -> int:
    """Return when a node was opened, a scope with the first of what is in it; 0: not yet."""
    if own := run.step(node, turns).opened_us:
        return own
    begins = (began_us(run, *key) for key in below(run, node, turns))
    return min((at for at in begins if at), default=0)
