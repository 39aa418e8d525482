"""Entering a run and reading its end: everything the sync and async runners share around a drive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from stepwell.backend.base import Change, Created, Creation, Filter, Header, Loaded, Rest
from stepwell.codec import digest, type_name
from stepwell.engine import events as e
from stepwell.engine.frontier import to_image
from stepwell.errors import (
    AlreadyRunning,
    CodecError,
    DecodeError,
    EncodeError,
    InputMismatch,
    InstanceConflict,
    InstanceDamaged,
    InstanceExists,
    InstanceNotFound,
    OptionError,
    UsageError,
)
from stepwell.flow.plan import Plan
from stepwell.types import ENDED, RESTING, ConflictPolicy, check_instance_id

from .ending import Ending, InstanceStatus, status_of
from .live import Arrived, Live, frontier_of

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .drive import Drive
    from .invoke import Prepared
    from .room import Room


class NoInput:
    """Stands for "no value was given"; a workflow may well take None."""

    def __repr__(self) -> str:
        return "<no input>"


NO_INPUT = NoInput()


class Start(NamedTuple):
    """What a caller asks for when starting one instance."""

    value: object = NO_INPUT
    instance_id: str | None = None
    on_conflict: ConflictPolicy | str | None = None
    on_mismatch: str = "fail"
    labels: Mapping[str, str] = {}


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


def start_of(value: object, options: Mapping[str, Any]) -> Start:
    """Return one start from the options of a runner's method. Raises OptionError for one that does not exist."""
    if unknown := set(options) - set(Start._fields[1:]):
        raise OptionError(
            f"{sorted(unknown)[0]!r} is not an option here; the options are {', '.join(Start._fields[1:])}"
        )
    if options.get("on_mismatch", "fail") not in ("fail", "ignore"):
        raise OptionError(f"on_mismatch must be 'fail' or 'ignore', not {options['on_mismatch']!r}")
    start = Start(value, **{k: v for k, v in options.items() if v is not None})
    _policy(start)
    return start


def starts_of(values: Sequence[object], instance_ids: Sequence[str] | None) -> list[Start]:
    """Return one start for each input."""
    if instance_ids is not None and len(instance_ids) != len(values):
        raise OptionError(f"run_many() was given {len(values)} inputs and {len(instance_ids)} instance ids")
    return [Start(value, instance_ids[i] if instance_ids is not None else None) for i, value in enumerate(values)]


# --- entering -----------------------------------------------------------------------------------


def enter_all(drive: Drive, runnable: object, starts: Sequence[Start]) -> list[Entered]:
    """Create instances, or attach to those that exist as each one's policy says; all creations are one transaction."""
    room, prepared = drive.room, drive.room.prepare(runnable)
    lives = [_new_live(room, prepared, start) for start in starts]
    for live in lives:
        drive.join(live)
    if room.backend is None:
        answers: Sequence[Any] = [None] * len(lives)
    else:
        answers = room.backend.create(
            room.session(), [_creation(live, start) for live, start in zip(lives, starts, strict=True)]
        )
    return [_entered(drive, live, start, answer) for live, start, answer in zip(lives, starts, answers, strict=True)]


def _new_live(room: Room, prepared: Prepared, start: Start) -> Live:
    instance_id = room.fresh_id() if start.instance_id is None else check_instance_id(start.instance_id)
    live = Live(room, prepared, instance_id, 0, 1, copy_context())
    live.advance(Arrived(e.Start(), _encode_input(prepared, start.value), room.clock.now_us()))
    return live


def _encode_input(prepared: Prepared, value: object) -> Any:
    workflow = prepared.workflow
    if workflow.has_input is isinstance(value, NoInput):
        wanted = "an input; give it after the workflow" if workflow.has_input else "no input; leave the value out"
        raise UsageError(f"workflow {workflow.name!r} takes {wanted} (it is defined at {workflow.where})")
    if isinstance(value, NoInput):
        return None
    if not prepared.stored:
        return value
    try:
        stored = prepared.codec.encode(value)
    except CodecError as error:
        raise EncodeError(f"the input of workflow {workflow.name!r} cannot be stored: {error}") from error
    try:
        prepared.input_decoder(stored)
    except CodecError as error:
        raise UsageError(f"workflow {workflow.name!r} takes {type_name(workflow.input_type)}: {error}") from error
    return stored


def _creation(live: Live, start: Start, replacing: Change | None = None) -> Creation:
    state, at_us = live.state, live.entries[0].at_us
    live.resting = state.status(at_us) == "waiting"  # a workflow may begin with a delay or a signal
    return Creation(
        instance_id=live.instance_id,
        definition=live.prepared.definition,
        input_digest=input_digest(live.prepared, start.value),
        entries=live.entries,
        at_us=at_us,
        state="waiting" if live.resting else "running",
        due_us=state.next_due_us() if live.resting else 0,
        image=to_image(state) if live.resting else None,
        labels=dict(start.labels),
        replacing=replacing,
    )


def input_digest(prepared: Prepared, value: object) -> bytes:
    """Return what two inputs are compared by; an absent one has none."""
    return b"" if isinstance(value, NoInput) else digest(prepared.codec, value)


def _entered(drive: Drive, live: Live, start: Start, answer: Created | Header | str | None) -> Entered:
    if answer is None:
        drive.begin(live)
        return Entered(live.prepared, live, None)
    if isinstance(answer, Created):
        return _begin_created(drive, live, answer)
    drive.abandon([live])
    assert isinstance(answer, Header), "only a replacing creation can meet a conflict"
    return _attach(drive, live.prepared, start, answer)


def _begin_created(drive: Drive, live: Live, created: Created) -> Entered:
    live.instance, live.run = created.header.instance, created.header.run
    live.committed()
    drive.begin(live)
    return Entered(live.prepared, live, None)


def _attach(drive: Drive, prepared: Prepared, start: Start, header: Header) -> Entered:
    policy = _policy(start)
    if policy == ConflictPolicy.FAIL:
        raise InstanceExists(header.instance_id, f"it exists already ({header.state}); the conflict policy is FAIL")
    if header.workflow != prepared.workflow.name:
        raise InstanceConflict(
            header.instance_id,
            f"it belongs to workflow {header.workflow!r}, not {prepared.workflow.name!r}; choose another id",
        )
    if policy == ConflictPolicy.TERMINATE_EXISTING:
        return _replace(drive, prepared, start, header)
    if start.on_mismatch == "fail" and header.input_digest != input_digest(prepared, start.value):
        raise InputMismatch(
            header.instance_id, "it was started with another input; on_mismatch='ignore' attaches to it all the same"
        )
    return resume(drive, prepared, header.instance_id, retry=policy == ConflictPolicy.RESTART_IF_FAILED)


def _policy(start: Start) -> ConflictPolicy:
    try:
        return ConflictPolicy(start.on_conflict) if start.on_conflict is not None else ConflictPolicy.USE_EXISTING
    except ValueError:
        known = ", ".join(repr(policy.value) for policy in ConflictPolicy)
        raise OptionError(
            f"on_conflict must be a ConflictPolicy or one of {known}, not {start.on_conflict!r}"
        ) from None


def _replace(drive: Drive, prepared: Prepared, start: Start, header: Header) -> Entered:
    """Cancel the old run and begin a new one, in one transaction; whoever held the old one is fenced by its journal."""
    room = drive.room
    assert room.backend is not None
    while True:
        live = _new_live(room, prepared, start._replace(instance_id=header.instance_id))
        drive.join(live)
        loaded = _load(room, header.instance_id)
        ending = _cancelled(room, loaded) if loaded.header.state not in ENDED else None
        if ending is None:
            ending = Change(loaded.header.instance, loaded.header.seq, ())
        answer = room.backend.create(room.session(), [_creation(live, start, ending)])[0]
        if isinstance(answer, Created):
            return _begin_created(drive, live, answer)
        drive.abandon([live])


def _cancelled(room: Room, loaded: Loaded) -> Change:
    """Return the change that ends a run at once, whatever still runs of it: its late results meet a taken seq."""
    plan = stored_plan(room, loaded.header)
    state = frontier_of(plan, loaded)
    now = room.clock.now_us()
    entries = Live.rows(plan, state, [e.CancelAsked("replaced by a new run")], now)
    closing = tuple(k for k, s in state.steps.items() if s.phase == "closing")
    entries += Live.rows(plan, state, [e.Settled(closing)] if closing else [], now)
    rest = Rest("cancelled", to_image(state), None, True, 0)
    return Change(loaded.header.instance, loaded.header.seq, entries, [m.id for m in loaded.mail], rest)


# --- continuing ---------------------------------------------------------------------------------------


def resume(drive: Drive, prepared: Prepared, instance_id: str, *, retry: bool = False) -> Entered:
    """Take up an unfinished instance where it stands; an ended one is returned as it is, unless ``retry``.

    Raises:
        InstanceNotFound, InstanceConflict, InstanceDamaged, AlreadyRunning.
    """
    room = drive.room
    assert room.backend is not None
    live = Live(room, prepared, check_instance_id(instance_id), 0, 1, copy_context())
    drive.join(live)
    try:
        loaded = _claim(room, live)
        if retry and loaded.header.state in ("failed", "cancelled"):
            _check_graph(prepared, loaded.header)
            reopen(room, loaded)
            loaded = _claim(room, live)
        if loaded.header.state in ENDED:
            drive.abandon([live])
            return Entered(prepared, None, loaded)
        if not live.instance:
            raise AlreadyRunning(
                instance_id, f"{loaded.header.held_by} works on it; it can be resumed here once that has ended"
            )
        live.restore(loaded)
        drive.begin(live)
    except BaseException:
        drive.abandon([live])
        raise
    return Entered(prepared, live, None)


def _claim(room: Room, live: Live) -> Loaded:
    assert room.backend is not None
    session = room.session()
    loaded = room.backend.claim(session, live.instance_id)
    if loaded is None:
        raise InstanceNotFound(live.instance_id, "no such instance; start() creates one")
    if loaded.header.session == session.id:
        live.instance, live.run = loaded.header.instance, loaded.header.run
    _check_fits(live.prepared, loaded.header)
    return loaded


def reopen(room: Room, loaded: Loaded) -> None:
    """Let a failed or cancelled run go on where it stopped, with its results kept; a lost race changes nothing."""
    assert room.backend is not None
    plan, now = stored_plan(room, loaded.header), room.clock.now_us()
    state = frontier_of(plan, loaded)
    entries = Live.rows(plan, state, [e.RetryAsked()], now)
    rest = Rest(state.status(now), to_image(state), state.next_due_us(), True, 0)
    room.backend.commit(None, [Change(loaded.header.instance, loaded.header.seq, entries, (), rest)])


def _check_fits(prepared: Prepared, header: Header) -> None:
    workflow = prepared.workflow
    if header.workflow != workflow.name:
        raise InstanceConflict(header.instance_id, f"it belongs to workflow {header.workflow!r}, not {workflow.name!r}")
    if header.state not in ENDED:
        _check_graph(prepared, header)


def _check_graph(prepared: Prepared, header: Header) -> None:
    workflow = prepared.workflow
    if header.fingerprint != workflow.fingerprint:
        raise InstanceConflict(
            header.instance_id,
            f"it was started with another graph of workflow {workflow.name!r} "
            f"(fingerprint {header.fingerprint[:8]}, now {workflow.fingerprint[:8]}); "
            "it is left untouched: run the code it was started with, or start a new instance",
        )


def recover_all(drive: Drive, runnables: Iterable[object], passed_over: list[InstanceStatus]) -> list[Entered]:
    """Take up every unfinished instance of these workflows; what cannot be taken up is added to ``passed_over``."""
    entered: list[Entered] = []
    for runnable in runnables:
        prepared = drive.room.prepare(runnable)
        for header in _unfinished(drive.room, prepared.workflow):
            try:
                entered.append(resume(drive, prepared, header.instance_id))
            except InstanceNotFound:
                continue  # it has ended and was deleted since
            except (InstanceConflict, InstanceDamaged, AlreadyRunning) as error:
                passed_over.append(status_of(header, str(error)))
    return entered


def _unfinished(room: Room, workflow: AnyWorkflow) -> list[Header]:
    """Return every unfinished instance of a workflow, oldest first."""
    assert room.backend is not None
    found: list[Header] = []
    after: int | None = None
    while page := room.backend.list(Filter(workflow=workflow.name, unfinished=True, after=after, limit=500)):
        found += page
        after = page[-1].instance
    return found[::-1]


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


def at_rest(room: Room, workflow: AnyWorkflow, instance_id: str) -> Loaded | None:
    """Return an instance that has ended, or is held or paused; ``None`` while it goes on.

    Raises:
        InstanceNotFound, InstanceConflict.
    """
    assert room.backend is not None
    header = room.backend.header(check_instance_id(instance_id))
    if header is None:
        raise InstanceNotFound(instance_id, "no such instance")
    if header.workflow != workflow.name:
        raise InstanceConflict(instance_id, f"it belongs to workflow {header.workflow!r}, not {workflow.name!r}")
    return _load(room, instance_id) if header.state in RESTING else None


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
    loaded = _load(room, instance_id)
    if loaded.header.state in ("failed", "cancelled", "held", "paused"):
        return status_of(loaded.header, stored_ending(room, loaded).detail())
    return status_of(loaded.header)


def _load(room: Room, instance_id: str) -> Loaded:
    assert room.backend is not None
    loaded = room.backend.load(check_instance_id(instance_id))
    if loaded is None:
        raise InstanceNotFound(instance_id, "no such instance")
    return loaded


def stored_plan(room: Room, header: Header) -> Plan:
    """Return the plan that an instance was last advanced with. Raises InstanceDamaged if it is not stored."""
    try:
        plan = room.stored_plan(header.workflow, header.fingerprint)
    except msgspec.MsgspecError as error:
        raise InstanceDamaged(
            header.instance_id, f"the stored plan of workflow {header.workflow!r} cannot be read: {error}"
        ) from error
    if plan is None:
        raise InstanceDamaged(header.instance_id, f"the plan of workflow {header.workflow!r} is missing from the store")
    return plan
