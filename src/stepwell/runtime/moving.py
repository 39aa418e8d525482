"""Instances whose workflow was edited: they go on under the present graph where that fits, else they are held.

Which of the two is the engine's decision (:mod:`stepwell.engine.change`); here the two graphs and the journal are
brought together, and what was decided is written. Moves go forward only: to a graph that came to the store later than
the instance's own. So code that was rolled back leaves alone what newer code has moved on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        path: the step that keeps it from moving; ``""`` if nothing does.
        obstacle: one sentence: what differs there, and how to mend it; ``""`` if it would move.
    """

    instance_id: str
    run: int
    state: State
    path: str = ""
    obstacle: str = ""

    @property
    def moves(self) -> bool:
        """Whether it would go on under the present graph."""
        return not self.obstacle


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
        raise InstanceConflict(
            header.instance_id,
            f"it goes on under a newer graph of workflow {header.workflow!r} than this code has; it is left untouched: "
            "run the newer code, or take it back with client.move()",
        )


def ask(room: Room, loaded: Loaded, plan: Plan) -> tuple[Frontier, e.MoveAsked | Obstacle]:
    """Return a stored state and whether it may go on under ``plan``. Raises InstanceDamaged."""
    old = stored.stored_plan(room, loaded.header)
    state = frontier_of(old, loaded)
    try:
        return state, compare(old, plan, state, _history(room, loaded.header))
    except (msgspec.MsgspecError, LookupError, ValueError) as error:
        raise InstanceDamaged(
            loaded.header.instance_id, f"its journal cannot be read ({type(error).__name__}); others are not affected"
        ) from error


def _history(room: Room, header: Header) -> Iterator[Sequence[f.Fact]]:
    assert room.backend is not None
    after = 0
    while after < header.seq and (page := room.backend.history(header.instance, after, min(PAGE, header.seq - after))):
        for entry in page:
            yield f.decode(entry.facts)
        after = page[-1].seq


def settle(room: Room, loaded: Loaded, prepared: Prepared, held_by: StoreSession | None) -> None:
    """Move an instance to the present graph, or hold it. A lost race changes nothing.

    An ended run is never held.

    Args:
        held_by: the session that holds the instance; ``None``: nobody does.

    Raises:
        InstanceConflict: it has ended, and cannot move.
        InstanceDamaged: it cannot be read.
    """
    state, asked = ask(room, loaded, prepared.plan)
    if isinstance(asked, Obstacle):
        if loaded.header.state in ENDED:
            raise _refused(loaded.header, asked)
        _hold(room, loaded, state, asked, held_by)
    else:
        _move(room, loaded, state, asked, prepared, held_by)


def _refused(header: Header, obstacle: Obstacle) -> InstanceConflict:
    return InstanceConflict(
        header.instance_id,
        f"it cannot go on under the present graph of workflow {header.workflow!r}: {obstacle.reason}",
    )


def _move(
    room: Room, loaded: Loaded, state: Frontier, asked: e.MoveAsked, prepared: Prepared, held_by: StoreSession | None
) -> None:
    rows = Live.rows(prepared.plan, state, [asked], room.clock.now_us())
    _write(room, loaded, state, rows, prepared.definition, held_by, release=False)


def _hold(room: Room, loaded: Loaded, state: Frontier, obstacle: Obstacle, held_by: StoreSession | None) -> None:
    """Hold an instance, unless it is held already; then that is to be decided first."""
    plan = stored.stored_plan(room, loaded.header)
    rows = Live.rows(plan, state, [e.HoldAsked(CHANGED, obstacle.reason)], room.clock.now_us())
    _write(room, loaded, state, rows, None, held_by, release=True)


def _write(
    room: Room,
    loaded: Loaded,
    state: Frontier,
    rows: list[Entry],
    definition: int | None,
    held_by: StoreSession | None,
    *,
    release: bool,
) -> bool:
    assert room.backend is not None
    now, header = room.clock.now_us(), loaded.header
    rest = Rest(state.status(now), to_image(state), state.next_due_us(), release, state.result, definition)
    change = Change(header.instance, header.seq, rows, (), rest)
    return room.backend.commit(held_by, [change])[0] in ("done", "mail")


def lift(room: Room, loaded: Loaded, prepared: Prepared, held_by: StoreSession | None) -> None:
    """End a hold that was only there because the graph had changed; the code that it fits is back."""
    state = frontier_of(prepared.plan, loaded)
    if state.held is None or state.held.reason != CHANGED:
        return
    asked = e.Decided(state.held.node, state.held.turns, "rerun", "", "")
    rows = Live.rows(prepared.plan, state, [asked], room.clock.now_us())
    _write(room, loaded, state, rows, None, held_by, release=False)


# --- what a client asks ----------------------------------------------------------------------------------


def move(room: Room, instance_id: str, prepared: Prepared) -> None:
    """Let an instance that nobody holds go on under the workflow's graph, older or newer.

    Raises:
        InstanceNotFound, InstanceEnded, InstanceConflict, InstanceDamaged, AlreadyRunning.
    """
    while True:
        loaded = stored.load(room, instance_id)
        header = loaded.header
        if fits(prepared, header):
            return
        if header.state == "completed":
            raise InstanceEnded(instance_id, "it has completed, so there is nothing to go on with")
        if header.session:
            raise AlreadyRunning(instance_id, f"{header.held_by} works on it; it can be moved once that has ended")
        state, asked = ask(room, loaded, prepared.plan)
        if isinstance(asked, Obstacle):
            raise _refused(header, asked)
        rows = Live.rows(prepared.plan, state, [asked], room.clock.now_us())
        if _write(room, loaded, state, rows, prepared.definition, None, release=True):
            return


def preview(room: Room, workflow: AnyWorkflow) -> list[ChangePreview]:
    """Say for each unfinished instance of another graph whether it would move. Nothing is written."""
    found = [_preview(room, header, workflow.plan) for header in stored.unfinished(room, workflow.name)]
    return [each for each in found if each is not None]


def _preview(room: Room, header: Header, plan: Plan) -> ChangePreview | None:
    assert room.backend is not None
    if header.fingerprint == plan.fingerprint or (loaded := room.backend.load(header.instance_id)) is None:
        return None
    try:
        _, asked = ask(room, loaded, plan)
    except InstanceError as error:
        return ChangePreview(header.instance_id, header.run, header.state, "", str(error))
    path, reason = (asked.path, asked.reason) if isinstance(asked, Obstacle) else ("", "")
    return ChangePreview(header.instance_id, header.run, header.state, path, reason)
