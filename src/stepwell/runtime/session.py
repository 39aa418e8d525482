"""Continuing a run and reading its end: what the sync and async runners share around a drive, besides starting."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from stepwell.backend.base import Change, Header, Loaded, Message
from stepwell.codec import type_name
from stepwell.engine.frontier import Frontier
from stepwell.errors import AlreadyRunning, DecodeError
from stepwell.flow.plan import Plan
from stepwell.types import ENDED, RESTING, check_instance_id

from . import moving
from .ending import Ending, InstanceStatus, status_of
from .live import Live, frontier_of
from .outside import left_at_rest, taken_in
from .requests import request
from .stored import load, missing, stored_plan

if TYPE_CHECKING:
    from .drive import Drive
    from .invoke import Prepared
    from .room import Room


Action: TypeAlias = Literal["attach", "replace", "restart"]
"""What a start does with an instance that exists: go on with it, begin a new run in its place, or reopen it."""

Judge: TypeAlias = "Callable[[Header], Action]"


class Entered(NamedTuple):
    """A run that a call is concerned with: one that a drive works on, or one that rests already."""

    prepared: Prepared
    live: Live | None
    loaded: Loaded | None

    @property
    def instance_id(self) -> str:
        if self.live is not None:
            return self.live.instance_id
        assert self.loaded is not None
        return self.loaded.header.instance_id


def _attach(header: Header) -> Action:
    return "attach"


# --- continuing ---------------------------------------------------------------------------------------


def resume(drive: Drive, prepared: Prepared, instance_id: str, *, judge: Judge = _attach) -> Entered:
    """Take up an unfinished instance where it stands; an ended one is returned as it is, or reopened.

    ``judge`` says which, and may refuse, of the row as it is once it is claimed: nothing can change it any more.

    Raises:
        InstanceNotFound, InstanceConflict, InstanceDamaged, AlreadyRunning, and whatever ``judge`` raises.
    """
    room = drive.room
    with room.entering:
        live = Live(room, prepared, check_instance_id(instance_id), 0, 1, copy_context())
        _pass_replaced(room, instance_id)
        drive.join(live)
        return _take_up(drive, live, judge)


def _pass_replaced(room: Room, instance_id: str) -> None:
    """A run that this runner still works on does not count if another one has taken its place."""
    assert room.backend is not None
    if room.running_plan(instance_id) is not None and (header := room.backend.header(instance_id)) is not None:
        room.make_way(instance_id, header.instance)


def _take_up(drive: Drive, live: Live, judge: Judge) -> Entered:
    room, prepared, instance_id = drive.room, live.prepared, live.instance_id
    try:
        loaded, action = _claim(room, live, judge)
        if action == "restart":
            reopen(room, moved(room, live, loaded))
            loaded, _ = _claim(room, live, judge)
        if live.instance:
            loaded = moved(room, live, loaded)
        elif loaded.header.state not in ENDED:
            raise AlreadyRunning(
                instance_id, f"{loaded.header.held_by} works on it; it can be resumed here once that has ended"
            )
        if loaded.header.state in ENDED or not moving.fits(prepared, loaded.header):
            drive.abandon([live])
            return Entered(prepared, None, loaded)
        live.restore(loaded)
        drive.begin(live, loaded.mail)
    except BaseException:
        drive.abandon([live])
        raise
    return Entered(prepared, live, None)


def _claim(room: Room, live: Live, judge: Judge) -> tuple[Loaded, Action]:
    assert room.backend is not None
    loaded = room.fenced(room.backend.claim, live.instance_id)
    if loaded is None:
        raise missing(room.backend, live.instance_id)
    if loaded.header.session == room.session().id:
        live.instance, live.run = loaded.header.instance, loaded.header.run
    action = judge(loaded.header)
    if not moving.fits(live.prepared, loaded.header) and loaded.header.state not in ENDED:
        moving.check_forward(live.prepared, loaded.header)
    return loaded, action


def moved(room: Room, live: Live, loaded: Loaded) -> Loaded:
    """Bring an instance to the present graph if it is of another one, or hold it; return it as it stands then.

    Raises AlreadyRunning if another run has taken its place meanwhile.
    """
    session = room.session() if live.instance else None
    if not moving.fits(live.prepared, loaded.header):
        moving.settle(room, loaded, live.prepared, session)
    elif loaded.header.state == "held":
        moving.lift(room, loaded, live.prepared, session)
    else:
        return loaded
    loaded = load(room, live.instance_id)
    if live.instance not in (0, loaded.header.instance):
        raise AlreadyRunning(live.instance_id, "another run has just taken its place; call again to go on with that")
    return loaded


def reopen(room: Room, loaded: Loaded) -> None:
    """Let a failed or cancelled run go on where it stopped, with its results kept; a lost race changes nothing."""
    assert room.backend is not None
    plan, now = stored_plan(room, loaded.header), room.clock.now_us()
    state = frontier_of(plan, loaded)
    change = reopening(plan, state, loaded, request("retry", "", "", now), now)
    if change.entries:
        room.backend.commit(None, [change])


def reopening(plan: Plan, state: Frontier, loaded: Loaded, retry: Message, now: int) -> Change:
    """Return what a retry of an ended run writes: of what it left unread the signals count, its requests are past."""
    signals = [message for message in loaded.mail if message.kind == "signal"]
    rows = taken_in(plan, state, [retry], now)
    rows += taken_in(plan, state, signals, now) if rows else []
    return left_at_rest(loaded, state, rows, now, taken=[message.id for message in loaded.mail])


# --- reading ends ----------------------------------------------------------------------------------------


def output_of(room: Room, entered: Entered) -> Any:
    """Return the output of a run at rest. Raises what it came to instead."""
    if entered.live is not None and entered.live.lost is not None:
        raise entered.live.lost
    ending = ending_of(room, entered)
    ending.raise_if_unfinished()
    raw = ending.value(ending.state.result)
    if raw is None or not entered.prepared.stored:
        return raw
    try:
        return entered.prepared.output_decoder(raw)
    except DecodeError as error:
        workflow = entered.prepared.workflow
        what = f"the output of workflow {workflow.name!r} in instance {entered.instance_id!r}"
        text = f"{what} cannot be read as {type_name(workflow.output_type)}, which it declares: {error}"
        raise type(error)(text, error.path) from error


def ending_of(room: Room, entered: Entered) -> Ending:
    """Return how a run rests, from memory or from its rows."""
    codec = room.codec if room.stored else None
    if entered.live is not None:
        live = entered.live
        return Ending(live.instance_id, live.plan, live.state, live.value, codec, live.errors)
    assert entered.loaded is not None
    return stored_ending(room, entered.loaded)


def stored_ending(room: Room, loaded: Loaded) -> Ending:
    """Return how a stored run rests."""
    header = loaded.header
    plan = stored_plan(room, header)

    def value(address: int) -> Any:
        assert room.backend is not None
        return room.backend.values(header.instance, [address]).get(address) if address else None

    return Ending(header.instance_id, plan, frontier_of(plan, loaded), value, room.codec, {})


def status_from(room: Room, instance_id: str) -> InstanceStatus:
    """Return an instance's status. Raises InstanceNotFound."""
    return stored_status(room, load(room, instance_id))


def stored_status(room: Room, loaded: Loaded) -> InstanceStatus:
    """Return the status of a loaded instance; of one that a session holds, what it has written until now."""
    header = loaded.header
    if header.state not in _TELLING and not header.session:
        return status_of(header, "", loaded.mail)
    ending = stored_ending(room, loaded)
    if header.session:
        header = replace(header, state=ending.state.status(room.clock.now_us()))
    return status_of(header, ending.detail(), loaded.mail)


_TELLING: Final = RESTING - {"completed"}
