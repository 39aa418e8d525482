"""Instances whose workflow was edited: they go on under the present graph where that fits, else they are held.

Which of the two is the engine's decision (:mod:`stepwell.engine.change`); here the two graphs and the journal are
brought together, and what was decided is written. Moves go forward only: to a graph that came to the store later than
the instance's own. So code that was rolled back leaves alone what newer code has moved on.

Before the graphs are compared, what was sent under the old one is taken in under the old one, in the same commit:
unread messages, of which decisions name steps as the old graph does, and the end of steps that were closing when their
process died. So a message means the same whether its sender advanced the instance or a holder died before reading it.

:func:`decide` writes nothing, so a preview is what a restart would do, by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from stepwell.backend.base import Change, Entry, Header, Loaded, Rest
from stepwell.backend.base import Session as StoreSession
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.change import Obstacle, compare
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import AlreadyRunning, InstanceConflict, InstanceDamaged, InstanceEnded, InstanceError
from stepwell.flow.plan import Plan
from stepwell.types import ENDED, State

from . import stored
from .live import Live, frontier_of
from .outside import taken_in

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .invoke import Prepared
    from .room import Room

CHANGED = "changed"  # the reason of a hold
PAGE = 500


@dataclass(frozen=True, slots=True)
class ChangePreview:
    """What a workflow's present graph would mean for one unfinished instance.

    Attributes:
        instance_id, run: which one.
        state: how it stands.
        path: the step that keeps it from moving; ``""`` if nothing does, or no step in particular.
        obstacle: one sentence: what differs there, and how to mend it; ``""`` if it would move.

    Example:
        >>> for seen in client.preview_change(checkout):  # doctest: +SKIP
        ...     print(seen.instance_id, "moves" if seen.moves else seen.obstacle)
    """

    instance_id: str
    run: int
    state: State
    path: str = ""
    obstacle: str = ""

    @property
    def moves(self) -> bool:
        """Whether it would go on under the present graph; one that its unread messages end, just ends."""
        return not self.obstacle


class Decided(NamedTuple):
    """What becomes of an instance under another graph, not yet written.

    Attributes:
        state: the run after ``rows``, in terms of the new graph if it ``moves``.
        rows: journal rows to write.
        taken: unread messages that they take in.
        moves: whether it goes on under the new graph.
        obstacle: what keeps it from that; neither: what it took in has ended it.
    """

    state: Frontier
    rows: list[Entry]
    taken: Sequence[int]
    moves: bool
    obstacle: Obstacle | None


# --- which graph ---------------------------------------------------------------------------------------------


def fits(prepared: Prepared, header: Header) -> bool:
    """Say whether an instance is of the present graph. Raises InstanceConflict for one that is of another workflow."""
    if header.workflow != prepared.workflow.name:
        raise InstanceConflict(
            header.instance_id, f"it belongs to workflow {header.workflow!r}, not {prepared.workflow.name!r}"
        )
    return header.fingerprint == prepared.workflow.fingerprint


def check_forward(prepared: Prepared, header: Header) -> None:
    """Refuse to take an instance back to an older graph. Raises InstanceConflict."""
    if prepared.definition < header.definition:
        raise InstanceConflict(header.instance_id, _is_newer(header))


def _is_newer(header: Header) -> str:
    return (
        f"it goes on under a newer graph of workflow {header.workflow!r} than this code has; it is left untouched: "
        "run the newer code, or take it back with client.move()"
    )


# --- deciding ------------------------------------------------------------------------------------------------


def decide(room: Room, loaded: Loaded, plan: Plan) -> Decided:
    """Say what becomes of an instance that nothing runs of under ``plan``, another graph than its own.

    An ended run is never held, and its unread messages stay for a retry.

    Raises:
        InstanceDamaged: its rows cannot be read, or its journal and its state disagree.
    """
    old, header = stored.stored_plan(room, loaded.header), loaded.header
    state = frontier_of(old, loaded)
    mail = () if state.ended else loaded.mail
    rows = [] if state.ended else taken_in(old, state, loaded.mail, room.clock.now_us())
    taken = [message.id for message in mail]
    if state.ended and header.state not in ENDED:
        return Decided(state, rows, taken, moves=False, obstacle=None)
    try:
        asked = compare(old, plan, state, chain(_history(room, header), [f.decode(row.facts) for row in rows]))
        under, event = (old, _hold(asked)) if isinstance(asked, Obstacle) else (plan, asked)
        if not (isinstance(asked, Obstacle) and state.ended):
            rows += Live.rows(under, state, [event], room.clock.now_us())
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise InstanceDamaged(
            header.instance_id, f"its journal cannot be read ({type(error).__name__}); others are not affected"
        ) from error
    return Decided(state, rows, taken, under is plan, asked if isinstance(asked, Obstacle) else None)


def _hold(obstacle: Obstacle) -> e.HoldAsked:
    """Hold the run itself: a hold of the step would say that the step is to be decided about."""
    return e.HoldAsked(CHANGED, obstacle.reason)


def _history(room: Room, header: Header) -> Iterator[Sequence[f.Fact]]:
    assert room.backend is not None
    after = 0
    while after < header.seq and (page := room.backend.history(header.instance, after, min(PAGE, header.seq - after))):
        for entry in page:
            yield f.decode(entry.facts)
        after = page[-1].seq


# --- writing -------------------------------------------------------------------------------------------------


def settle(room: Room, loaded: Loaded, prepared: Prepared, held_by: StoreSession | None) -> None:
    """Move an instance to the present graph, or hold it. A lost race changes nothing.

    An ended run is never held. Nothing of the instance may be running.

    Args:
        held_by: the session that holds the instance; ``None``: nobody does.

    Raises:
        InstanceConflict: it has ended, and cannot move; or it goes on under a newer graph.
        InstanceDamaged: it cannot be read.
    """
    check_forward(prepared, loaded.header)
    decided = decide(room, loaded, prepared.plan)
    if decided.obstacle is not None and loaded.header.state in ENDED:
        raise _refused(loaded.header, decided.obstacle)
    _write(room, loaded, decided, prepared, held_by, release=not decided.moves)


def _refused(header: Header, obstacle: Obstacle) -> InstanceConflict:
    return InstanceConflict(
        header.instance_id,
        f"it cannot go on under the present graph of workflow {header.workflow!r}: {obstacle.reason}",
    )


def _write(
    room: Room, loaded: Loaded, decided: Decided, prepared: Prepared, held_by: StoreSession | None, *, release: bool
) -> bool:
    """Write what was decided, with an image: no load may fold facts of one graph onto a state of another."""
    assert room.backend is not None
    now, header, state = room.clock.now_us(), loaded.header, decided.state
    definition = prepared.definition if decided.moves else None
    rest = Rest(state.status(now), to_image(state), state.next_due_us(), release, state.result, definition)
    change = Change(header.instance, header.seq, decided.rows, decided.taken, rest)
    return room.backend.commit(held_by, [change])[0] in ("done", "mail")


def lift(room: Room, loaded: Loaded, prepared: Prepared, held_by: StoreSession | None) -> bool:
    """End a hold that was only there because the graph had changed; the code that it fits is back.

    Returns ``False`` only if it lost a race, which changes nothing.
    """
    state = frontier_of(prepared.plan, loaded)
    if state.held is None or state.held.reason != CHANGED:
        return True
    asked = e.Decided(state.held.node, state.held.turns, "rerun", "", "")
    rows = Live.rows(prepared.plan, state, [asked], room.clock.now_us())
    decided = Decided(state, rows, (), moves=False, obstacle=None)
    return _write(room, loaded, decided, prepared, held_by, release=held_by is None)


# --- what a client asks --------------------------------------------------------------------------------------


def move(room: Room, instance_id: str, prepared: Prepared) -> None:
    """Let an instance that nobody holds go on under the workflow's graph, older or newer.

    One that is of this graph already and is held since another one did not fit it, goes on.

    Raises:
        InstanceNotFound, InstanceEnded, InstanceConflict, InstanceDamaged, AlreadyRunning.
    """
    while not _moved(room, stored.load(room, instance_id), prepared):
        pass  # somebody else wrote or claimed it in between, or its messages have ended it: look again


def _moved(room: Room, loaded: Loaded, prepared: Prepared) -> bool:
    header = loaded.header
    if fits(prepared, header):
        return header.state != "held" or bool(header.session) or lift(room, loaded, prepared, None)
    if header.state == "completed":
        raise InstanceEnded(header.instance_id, "it has completed, so there is nothing to go on with")
    if header.session:
        raise AlreadyRunning(header.instance_id, f"{header.held_by} works on it; it can be moved once that has ended")
    decided = decide(room, loaded, prepared.plan)
    if decided.obstacle is not None:
        raise _refused(header, decided.obstacle)
    return _write(room, loaded, decided, prepared, None, release=True) and decided.moves


def preview(room: Room, workflow: AnyWorkflow) -> list[ChangePreview]:
    """Say for each unfinished instance of another graph what a restart with ``workflow`` does. Nothing is written."""
    number = _number(room, workflow.plan)
    found = (_preview(room, header, workflow.plan, number) for header in stored.unfinished(room, workflow.name))
    return [each for each in found if each is not None]


def _number(room: Room, plan: Plan) -> int | None:
    """Return the store's number of a graph, ``None`` for one that is new to it and will get the greatest."""
    assert room.backend is not None
    known = room.backend.plan(plan.fingerprint, plan.name)
    return None if known is None else room.backend.register(plan.name, plan.fingerprint, known)  # it is there already


def _preview(room: Room, header: Header, plan: Plan, number: int | None) -> ChangePreview | None:
    assert room.backend is not None
    if header.fingerprint == plan.fingerprint or (loaded := room.backend.load(header.instance_id)) is None:
        return None
    try:
        obstacle = decide(room, loaded, plan).obstacle
    except InstanceError as error:
        return ChangePreview(header.instance_id, header.run, header.state, "", str(error))
    path, reason = (obstacle.path, obstacle.reason) if obstacle is not None else ("", "")
    if number is not None and number < header.definition:
        reason = reason or _is_newer(header)
    return ChangePreview(header.instance_id, header.run, header.state, path, reason)
